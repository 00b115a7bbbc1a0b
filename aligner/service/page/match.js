// Two photos side by side: a point of the first is found in the second.
import { dot, fit, outlined, pixelAt } from "./drawing.js";
import { send } from "./server.js";

const $ = (id) => document.getElementById(id);
const HUES = ["#ff3d81", "#3ca0f0", "#fac828", "#50d25a", "#c85adc", "#ff8c00"];
const LANDMARKS = {
  nose_tip: "tip of the nose", nose_bridge_1: "root of the nose", chin: "chin",
  eye_right_outer: "right eye, outer corner", eye_right_inner: "right eye, inner corner",
  eye_left_inner: "left eye, inner corner", eye_left_outer: "left eye, outer corner",
  mouth_right: "right corner of the mouth", mouth_left: "left corner of the mouth",
  lip_upper_middle: "middle of the upper lip", brow_right_inner: "right brow, inner end", brow_left_inner: "left brow, inner end",
};

export class MatchView {
  constructor({ onError }) {
    this.onError = onError;
    this.photos = [];
    this.count = 0;
    this.first = this.second = -1;
    this.points = [];  // matches as answered
    this.heat = null;
    this.dense = null;  // pictures over both photos, in which the same colour is the same point
    this.cross = null;  // pixels of the first photo
    for (const [name, text] of Object.entries(LANDMARKS)) $("landmark").append(new Option(text, name));
    $("landmark").addEventListener("change", (event) => { if (event.target.value) this.find({ landmarks: [event.target.value] }); });
    $("first-photo").addEventListener("change", (event) => this.setFirst(Number(event.target.value)));
    $("second-photo").addEventListener("change", (event) => { this.second = Number(event.target.value); this.clear(); });
    $("show-heat").addEventListener("change", () => this.draw());
    $("show-dense").addEventListener("change", () => this.showDense());
    $("clear").addEventListener("click", () => this.clear());
    $("swap").addEventListener("click", () => { [this.first, this.second] = [this.second, this.first]; this.clear(); });
    const canvas = $("first");
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.image(this.first)) return;
      this.cross = pixelAt(canvas, this.view(this.first), event);
      this.findCross();
    });
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  image(index) { return this.photos[index]?.image ?? null; }
  view(index) { const one = this.image(index); return [0, 0, one.naturalWidth, one.naturalHeight]; }

  // The latest two photos are compared until others are chosen.
  setPhotos(photos) {
    const more = photos.length > this.count;
    this.photos = photos;
    this.count = photos.length;
    if (more || this.first >= photos.length) { this.first = Math.max(0, photos.length - 2); this.second = photos.length - 1; }
    this.clear();
  }

  setFirst(index) { this.first = index; this.clear(); }

  clear() {
    this.points = [];
    this.heat = null;
    this.dense = null;
    this.cross = null;
    this.showDense();
    $("landmark").value = "";
    for (const [id, index] of [["first-photo", this.first], ["second-photo", this.second]]) {
      $(id).replaceChildren(...this.photos.map((one, i) => new Option(`${i + 1}: ${one.name}`, i)));
      $(id).value = String(index);
      $(id).disabled = !this.photos.length;
    }
    $("match-status").textContent = this.photos.length ? "" : "No photos yet.";
    this.resize();
  }

  press(event) {
    const image = this.image(this.first);
    if (!image) return;
    const step = Math.max(image.naturalWidth, image.naturalHeight) / (event.shiftKey ? 20 : 100);
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    this.cross ??= [image.naturalWidth / 2, image.naturalHeight / 2];
    if (move) {
      event.preventDefault();
      this.cross = [Math.min(Math.max(this.cross[0] + move[0], 0), image.naturalWidth), Math.min(Math.max(this.cross[1] + move[1], 0), image.naturalHeight)];
      this.draw();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.findCross();
    }
  }

  // The point is no landmark, so that the one chosen before can be chosen again.
  findCross() {
    $("landmark").value = "";
    this.find({ points: [this.cross] });
  }

  async find(wanted) {
    const a = this.photos[this.first], b = this.photos[this.second];
    if (!a?.image || !b?.image) return;
    this.request?.abort();
    const request = (this.request = new AbortController());
    this.onError(null);
    $("match-busy").hidden = false;
    try {
      const answer = await (await send("v1/match?heat_map=1", { image_a: a.file, image_b: b.file, ...wanted }, request.signal)).json();
      const [point] = answer.points;
      this.points = [...this.points, point].slice(-HUES.length);
      this.heat = null;
      if (answer.heat_map) {
        this.heat = new Image();
        this.heat.src = `data:image/png;base64,${answer.heat_map}`;
        await this.heat.decode();
      }
      $("match-status").textContent = point.status === "not on a face"
        ? "This point is not on a face."
        : `${LANDMARKS[point.name] ?? point.name.replace(",", ", ")} → ${Math.round(point.x)}, ${Math.round(point.y)}: ${point.visible ? `probability ${Math.round(100 * point.probability)} %` : "not visible in the second photo"}.`;
      $("second").setAttribute("aria-label", `Second photo. ${$("match-status").textContent}`);
    } catch (error) {
      if (error.name !== "AbortError") this.onError(error);
    } finally {
      if (this.request === request) $("match-busy").hidden = true;
      this.draw();
    }
  }

  // Every pixel of the first face, matched once for each pair of photos.
  async showDense() {
    const a = this.photos[this.first], b = this.photos[this.second];
    if (!$("show-dense").checked || this.dense || !a?.image || !b?.image || a === b) { this.draw(); return; }
    this.request?.abort();
    const request = (this.request = new AbortController());
    this.onError(null);
    $("match-busy").hidden = false;
    try {
      const answer = await (await send("v1/match/dense", { image_a: a.file, image_b: b.file }, request.signal)).json();
      this.dense = await Promise.all([answer.colours_a, answer.colours_b].map(async (data) => {
        const layer = new Image();
        layer.src = `data:image/png;base64,${data}`;
        await layer.decode();
        return layer;
      }));
      $("match-status").textContent = `The same colour is the same point. The second photo shows ${Math.round(100 * answer.visible_share)} % of the first face.`;
    } catch (error) {
      if (error.name !== "AbortError") this.onError(error);
    } finally {
      if (this.request === request) $("match-busy").hidden = true;
      this.draw();
    }
  }

  resize() {
    for (const [id, index] of [["first", this.first], ["second", this.second]]) {
      const image = this.image(index);
      $(id).hidden = !image;
      if (image) fit($(id), this.view(index), $(id).parentElement.clientWidth || 300, Math.max(320, innerHeight * 0.7));
    }
    this.draw();
  }

  draw() {
    for (const [id, index] of [["first", this.first], ["second", this.second]]) {
      const canvas = $(id), image = this.image(index), context = canvas.getContext("2d");
      if (!image) continue;
      const scale = canvas.width / image.naturalWidth, unit = Math.min(devicePixelRatio || 1, 2) / scale;
      context.setTransform(scale, 0, 0, scale, 0, 0);
      context.drawImage(image, 0, 0, image.naturalWidth, image.naturalHeight);
      if (this.dense && $("show-dense").checked) context.drawImage(this.dense[id === "first" ? 0 : 1], 0, 0, image.naturalWidth, image.naturalHeight);
      else if (id === "second" && this.heat && $("show-heat").checked) context.drawImage(this.heat, 0, 0, image.naturalWidth, image.naturalHeight);
      const labels = [];
      this.points.forEach((point, i) => {
        const [x, y] = id === "first" ? point.source : [point.x, point.y];
        if (x === null) return;
        dot(context, x, y, 5 * unit, HUES[i], id === "first" || point.visible, unit);
        if (id === "second") labels.push({ x, y, text: point.visible ? `${Math.round(100 * point.probability)} %` : "not visible" });
      });
      drawLabels(context, labels, image.naturalWidth, image.naturalHeight, unit);
      if (id === "first" && this.cross) {
        const [x, y] = this.cross, arm = 9 * unit;
        outlined(context, () => {
          context.beginPath();
          context.moveTo(x - arm, y); context.lineTo(x + arm, y);
          context.moveTo(x, y - arm); context.lineTo(x, y + arm);
          context.stroke();
        }, "#ffffff", 1.5 * unit);
      }
    }
  }
}

// Texts beside points, which overlap neither each other nor a point and lie inside the photo.
function drawLabels(context, labels, width, height, unit) {
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  const boxes = labels.map(({ text }) => ({ width: context.measureText(text).width, height: 15 * unit }));
  const places = placeLabels(labels, boxes, width, height, 6 * unit);
  places.forEach(([x, y], i) => label(context, x, y + 12 * unit, labels[i].text, unit));
}

// Upper left corners of boxes beside `points`: to the right if possible, else to the left, and as near as there is room.
export function placeLabels(points, boxes, width, height, gap) {
  const taken = points.map(({ x, y }) => [x - gap, y - gap, x + gap, y + gap]);
  return points.map(({ x, y }, i) => {
    const box = boxes[i], places = [];
    for (let row = 0; row <= points.length; row++)
      for (const up of row ? [-row, row] : [0])
        for (const left of [x + 1.5 * gap, x - 1.5 * gap - box.width]) places.push([left, y + up * (box.height + 1) - 0.7 * box.height]);
    const isFree = ([left, top]) => left >= 0 && top >= 0 && left + box.width <= width && top + box.height <= height
      && !taken.some(([x0, y0, x1, y1], k) => k !== i && left < x1 && left + box.width > x0 && top < y1 && top + box.height > y0);
    const place = places.find(isFree) ?? places[0];
    taken.push([place[0], place[1], place[0] + box.width, place[1] + box.height]);
    return place;
  });
}

function label(context, x, y, text, unit) {
  context.lineWidth = 3 * unit;
  context.strokeStyle = "rgba(0,0,0,.8)";
  context.strokeText(text, x, y);
  context.fillStyle = "#ffffff";
  context.fillText(text, x, y);
}
