// An alignment drawn on a canvas whose unit is a pixel of the photo. `unit`: a CSS pixel in these.

export const LINES = [[0, 16], [17, 21], [22, 26], [27, 30], [31, 35], [36, 41, true], [42, 47, true], [48, 59, true], [60, 67, true]];
export const NOSE_TIP = 30;
const STOPS = [[255, 61, 129], [255, 210, 63], [46, 230, 166]];

export function colour(sure) {
  const t = Math.min(Math.max(sure, 0), 1) * 2, i = Math.min(1, Math.floor(t));
  return `rgb(${STOPS[i].map((v, k) => Math.round(v + (STOPS[i + 1][k] - v) * (t - i))).join(",")})`;
}

export function outlined(context, stroke, hue, width) {
  context.lineWidth = width * 7 / 3;
  context.strokeStyle = "rgba(0,0,0,.45)";
  stroke();
  context.lineWidth = width;
  context.strokeStyle = hue;
  stroke();
}

export function drawPoints(context, one, points, unit) {
  const [x0, y0, x1, y1] = one.box;
  const radius = Math.min(Math.max(1.6, Math.hypot(x1 - x0, y1 - y0) / unit / 130), 4) * unit;
  context.lineJoin = "round";
  context.beginPath();
  for (const [first, last, closed] of LINES) {
    context.moveTo(points[first][0], points[first][1]);
    for (let i = first + 1; i <= last; i++) context.lineTo(points[i][0], points[i][1]);
    if (closed) context.closePath();
  }
  context.strokeStyle = "rgba(255,255,255,.55)";
  context.lineWidth = unit;
  context.stroke();
  points.forEach(([x, y], i) => dot(context, x, y, radius, colour(one.confidence[i]), one.visibility[i] >= 0.5, unit));
}

// Filled where the point is visible, hollow where it is not.
export function dot(context, x, y, radius, hue, filled, unit) {
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.lineWidth = 1.2 * unit;
  if (filled) {
    context.fillStyle = hue;
    context.strokeStyle = "rgba(0,0,0,.7)";
    context.fill();
    context.stroke();
  } else {
    context.lineWidth = 3 * unit;
    context.strokeStyle = "rgba(0,0,0,.55)";
    context.stroke();
    context.lineWidth = 1.6 * unit;
    context.strokeStyle = hue;
    context.stroke();
  }
}

export function drawAxes(context, one, [x, y], unit) {
  const [x0, y0, x1, y1] = one.box, length = 0.45 * Math.sqrt((x1 - x0) * (y1 - y0)), turn = one.pose.matrix;
  // the head's axes: to its left, up, and out of the face; red, green and blue as everywhere in 3D
  ["#ef4444", "#22c55e", "#3b82f6"].forEach((hue, axis) => {
    outlined(context, () => {
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x + length * turn[0][axis], y + length * turn[1][axis]);
      context.stroke();
    }, hue, 2.5 * unit);
  });
}

export function drawMesh(context, vertices, triangles, style, unit) {
  const seen = [];
  for (const [i, j, k] of triangles) {
    const a = vertices[i], b = vertices[j], c = vertices[k];
    const ux = b[0] - a[0], uy = b[1] - a[1], uz = b[2] - a[2], vx = c[0] - a[0], vy = c[1] - a[1], vz = c[2] - a[2];
    const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
    if (nz >= 0) continue;  // back face: y counts down, so front faces run clockwise
    const size = Math.hypot(nx, ny, nz) || 1;
    seen.push([a, b, c, a[2] + b[2] + c[2], -nz / size, (-0.35 * -nx + 0.45 * ny * -1 - 0.82 * nz) / size]);
  }
  const path = ([a, b, c]) => { context.moveTo(a[0], a[1]); context.lineTo(b[0], b[1]); context.lineTo(c[0], c[1]); context.closePath(); };
  if (style === "solid") {
    seen.sort((p, q) => p[3] - q[3]);
    context.lineWidth = 0.7 * unit;
    for (const one of seen) {
      const light = Math.round(70 + 165 * Math.max(0, one[5]));
      context.fillStyle = context.strokeStyle = `rgb(${light},${Math.round(light * 0.97)},${Math.round(light * 0.94)})`;
      context.beginPath();
      path(one);
      context.fill();
      context.stroke();  // hides the seams between triangles
    }
    return;
  }
  const bins = [[], [], [], []];  // the steeper, the fainter
  for (const one of seen) bins[Math.min(3, Math.floor(one[4] * 4))].push(one);
  bins.forEach((some, i) => {
    context.beginPath();
    some.forEach(path);
    context.strokeStyle = `rgba(94, 234, 212, ${0.1 + 0.1 * i})`;
    context.lineWidth = 0.6 * unit;
    context.stroke();
  });
}

// The canvas as large as fits, in device pixels; returns the scale from pixels of the view.
export function fit(canvas, [, , w, h], room, tall) {
  const scale = Math.min(room / w, tall / h, Math.max(1, 640 / Math.max(w, h)));
  const sharp = Math.min(devicePixelRatio || 1, 2);
  canvas.style.width = `${w * scale}px`;
  canvas.style.height = `${h * scale}px`;
  canvas.width = Math.max(1, Math.round(w * scale * sharp));
  canvas.height = Math.max(1, Math.round(h * scale * sharp));
}

// The pixel of the photo under a pointer.
export function pixelAt(canvas, [left, top, width, height], event) {
  const place = canvas.getBoundingClientRect();
  return [left + (event.clientX - place.left) / place.width * width, top + (event.clientY - place.top) / place.height * height];
}
