// The page: photos in, alignments shown, results out.
import { drawAxes, drawMesh, drawPoints, fit, NOSE_TIP, outlined, pixelAt } from "./drawing.js";
import { MatchView } from "./match.js";
import { readImage, save, send, useKey } from "./server.js";
import { Webcam } from "./webcam.js";

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), context = canvas.getContext("2d");
const STEP_MS = 700;
const still = matchMedia("(prefers-reduced-motion: reduce)");

// `photos`: {file, name, image, answer}. `step` runs from 0 to the number of iterations - 1; a fraction lies between two.
const state = { photos: [], current: -1, face: 0, step: 0, playing: 0, marking: false, drag: null, request: null, live: null, solid: null };

const photo = () => state.photos[state.current];
const shownFile = () => (state.live ?? photo()).file;
const answer = () => (state.live ?? photo())?.answer;  // null of a frame without a face
const image = () => (state.live ?? photo())?.image;
const face = () => answer()?.faces[state.face];
const lastStep = () => Math.max(0, (face()?.trace?.length ?? 1) - 1);
const settled = () => state.step >= lastStep();
const chosen = (name) => document.querySelector(`[name=${name}]:checked`).value;

// ---- photo in --------------------------------------------------------------------------------------------------

async function take(files) {
  webcam.stop();
  const film = [...files].find((file) => file.type.startsWith("video/"));
  if (film) { await playFilm(film); return; }
  const good = [...files];
  if (!good.length) return;
  const first = state.photos.length;
  for (const file of good) {
    const one = { file, name: file.name || `photo ${state.photos.length + 1}`, image: null, answer: null, tried: false };
    state.photos.push(one);
    try { one.image = await readImage(file); } catch { /* the server tells what is wrong with it */ }
  }
  showStrip();
  match.setPhotos(state.photos);
  if (chosen("task") === "match") { state.current = first; return; }
  await choosePhoto(first);
  for (let i = first + 1; i < state.photos.length && state.current === first; i++) await alignQuietly(i);
  showStrip();
}

// Further photos of a drop are aligned one after the other, without being shown.
async function alignQuietly(index) {
  const one = state.photos[index];
  one.tried = true;
  try { await ask(one); } catch (error) { one.problem = error; }
}

async function ask(one, boxes = null, signal = null) {
  const started = performance.now();
  one.answer = await (await send("v1/align?mesh=1&trace=1", { image: one.file, boxes }, signal)).json();
  one.took = performance.now() - started;
}

async function choosePhoto(index) {
  stop();
  state.current = index;
  state.face = 0;
  const one = photo();
  mark(false);
  $("mark").disabled = !one.image;
  $("drop").hidden = Boolean(one.image);
  canvas.hidden = !one.image;
  showError(null);
  showStrip();
  if (chosen("task") === "match") { match.setFirst(index); return; }
  if (one.answer) { showAnswer(); sayAnswer(one); } else if (one.problem) refuse(one.problem); else await align(null);
}

function showStrip() {
  $("strip").hidden = state.photos.length < 2;
  $("strip").replaceChildren(...state.photos.map((one, i) => {
    const item = document.createElement("li"), button = document.createElement("button"), small = document.createElement("canvas");
    button.type = "button";
    const count = one.answer?.faces.length;
    button.setAttribute("aria-label", `${one.name}${count ? `, ${count} ${count === 1 ? "face" : "faces"}` : one.problem ? `, ${one.problem.title}` : ""}`);
    button.setAttribute("aria-current", String(i === state.current));
    button.classList.toggle("failed", Boolean(one.problem));
    small.width = small.height = 128;
    if (one.image) {
      const side = Math.min(one.image.naturalWidth, one.image.naturalHeight);
      small.getContext("2d").drawImage(one.image, (one.image.naturalWidth - side) / 2, (one.image.naturalHeight - side) / 4, side, side, 0, 0, 128, 128);
    }
    button.append(small);
    button.addEventListener("click", () => choosePhoto(i));
    item.append(button);
    return item;
  }));
}

$("file").addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
$("sample").addEventListener("click", async () => {
  const data = await (await fetch("page/sample.jpg")).blob();
  take([new File([data], "sample.jpg", { type: "image/jpeg" })]);
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])].filter((f) => f.type.startsWith("image/"));
  if (files.length) { event.preventDefault(); take(files); }
});
for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => {
  event.preventDefault();
  $("stage").classList.add("over");
});
for (const name of ["dragleave", "drop"]) document.addEventListener(name, (event) => {
  event.preventDefault();
  if (name === "drop" || !event.relatedTarget) $("stage").classList.remove("over");
});
document.addEventListener("drop", (event) => take([...event.dataTransfer.files]));

// ---- alignment -------------------------------------------------------------------------------------------------

async function align(boxes) {
  state.request?.abort();
  const request = (state.request = new AbortController()), one = photo();
  stop();
  one.answer = one.problem = null;
  showError(null);
  $("panel").hidden = $("steps-card").hidden = $("solid-card").hidden = true;
  $("busy").hidden = false;
  $("stage").setAttribute("aria-busy", "true");
  say("Aligning…");
  resize();
  try {
    await ask(one, boxes, request.signal);
    if (photo() !== one) return;
    showAnswer();
    sayAnswer(one);
    if (lastStep() > 0 && !still.matches) play(); else state.step = lastStep();
  } catch (error) {
    if (error.name === "AbortError") return;
    one.problem = error;
    if (photo() === one) refuse(error);
  } finally {
    if (state.request === request) {
      $("busy").hidden = true;
      $("stage").removeAttribute("aria-busy");
    }
    showStrip();
    resize();
  }
}

function refuse(error) {
  say("");
  $("panel").hidden = $("steps-card").hidden = $("solid-card").hidden = true;
  if (error.kind === "no-face" && photo()?.image) {
    showError({
      title: error.title,
      detail: "Only upright faces are searched. Drag a box over the face, turn the photo, or try another one.",
    });
    mark(true);
  } else {
    showError(error);
  }
  resize();
}

// ---- a box drawn by hand ---------------------------------------------------------------------------------------

function mark(on) {
  state.marking = on;
  state.drag = null;
  $("mark").setAttribute("aria-pressed", String(on));
  $("mark").textContent = on ? "Drag a box over the face" : "Draw a box by hand";
  $("stage").classList.toggle("drawing", on);
  $("whole").hidden = !on;
  draw();
}
$("mark").addEventListener("click", () => mark(!state.marking));
$("whole").addEventListener("click", () => { mark(false); align([[0, 0, image().naturalWidth, image().naturalHeight]]); });

function pixel(event) {
  const [x, y] = pixelAt(canvas, view(), event);
  return [Math.min(Math.max(x, 0), image().naturalWidth), Math.min(Math.max(y, 0), image().naturalHeight)];
}
canvas.addEventListener("pointerdown", (event) => {
  if (!state.marking) { chooseAt(pixel(event)); return; }
  canvas.setPointerCapture(event.pointerId);
  state.drag = [...pixel(event), ...pixel(event)];
});
canvas.addEventListener("pointermove", (event) => {
  if (!state.drag) return;
  state.drag = [state.drag[0], state.drag[1], ...pixel(event)];
  draw();
});
canvas.addEventListener("pointerup", () => {
  if (!state.drag) return;
  const [a, b, c, d] = state.drag;
  const box = [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];
  const big = box[2] - box[0] > 8 && box[3] - box[1] > 8;
  if (big) { mark(false); align([box]); } else { state.drag = null; draw(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.marking) mark(false); });

function chooseAt([x, y]) {
  const found = answer()?.faces.findIndex(({ box: [x0, y0, x1, y1] }) => x >= x0 && x <= x1 && y >= y0 && y <= y1) ?? -1;
  if (found >= 0 && found !== state.face) { $(`face-${found}`).checked = true; chooseFace(found); }
}

// ---- words and numbers -----------------------------------------------------------------------------------------

function say(text) { $("status").textContent = text; }

function sayAnswer({ answer, took }) {
  const count = answer.faces.length, notes = (answer.warnings ?? []).map((warning) => ` Note: ${warning}.`);
  say(`${count} ${count === 1 ? "face" : "faces"} in ${Math.round(took)} ms (${Math.round(answer.timing.align_ms)} ms aligning).${notes.join("")}`);
}

function showError(error) {
  $("error").hidden = !error;
  $("key-form").hidden = error?.kind !== "unauthorized";
  if (!error) return;
  if (!$("key-form").hidden) $("key").focus();
  const title = document.createElement("strong");
  title.textContent = error.title || "Something broke in this page";
  const wanted = $("key-form").hidden ? error.detail : "This server wants an API key: enter one below.";
  $("error").replaceChildren(title, wanted || String(error.message || ""));
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  for (const one of state.photos) { one.problem = null; one.tried = Boolean(one.answer); }
  showError(null);
  if (state.photos.length) choosePhoto(state.current); else say("The key is used from now on.");
});

function showAnswer() {
  const { faces, model, request_id: request } = answer();
  $("panel").hidden = false;
  $("which-card").hidden = faces.length < 2;
  $("which").replaceChildren(...faces.map((each, i) => {
    const span = document.createElement("span");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "face", id: `face-${i}`, className: "visually-hidden", checked: i === 0 });
    const label = Object.assign(document.createElement("label"), { htmlFor: `face-${i}`, textContent: `${i + 1}${each.failed ? " ✕" : ""}` });
    input.addEventListener("change", () => chooseFace(i));
    span.append(input, label);
    return span;
  }));
  const terms = [...new Set((model.weights.data_licences ?? []).flatMap((some) => some.split(" AND ")))].join(", ");
  $("about").textContent = `Face model: ${model.face_model}, ${model.face_model_licence}. ` +
    (terms ? `Weights trained on data under ${terms}. ` : "") + `Request ${request.slice(0, 8)}.`;
  chooseFace(0);
}

function chooseFace(index) {
  stop();
  state.face = index;
  state.step = lastStep();
  $("step").max = lastStep();
  $("steps-card").hidden = lastStep() === 0;
  showNumbers();
  resize();
  showSolid();
}

function showNumbers() {
  const one = face();
  if (!one) return;
  const at = settled() ? null : one.trace[Math.round(state.step)];
  const pose = at ? at.pose : one.pose;
  for (const angle of ["yaw", "pitch", "roll"]) $(angle).textContent = `${pose[angle] < 0 ? "−" : ""}${Math.abs(pose[angle]).toFixed(1)}°`;
  $("verdict").textContent = one.failed
    ? `Failed: ${one.reason || "the fit was rejected"}. These numbers mean nothing.`
    : `Confidence ${(100 * one.face_confidence).toFixed(0)} %; ${one.visibility.filter((v) => v >= 0.5).length} of 68 landmarks visible.`;
  $("verdict").className = one.failed ? "bad" : "quiet";
  const step = Math.round(state.step), shown = one.trace?.[step];
  $("step").value = step;
  $("step-label").textContent = shown ? `${step + 1} of ${one.trace.length}, residual ${(100 * shown.residual).toFixed(2)} % of the box` : "";
  $("step").setAttribute("aria-valuetext", $("step-label").textContent);
  canvas.setAttribute("aria-label",
    `Photo with ${answer().faces.length} aligned faces. Face ${state.face + 1}: yaw ${pose.yaw.toFixed(0)}, ` +
    `pitch ${pose.pitch.toFixed(0)}, roll ${pose.roll.toFixed(0)} degrees${one.failed ? ", failed" : ""}.`);
}

// ---- 3D --------------------------------------------------------------------------------------------------------

async function showSolid() {
  const one = face();
  if (!one?.mesh || one.failed) { $("solid-card").hidden = true; return; }
  $("solid-card").hidden = false;
  try {
    if (!state.solid) {
      const { SolidView } = await import("./solid.js");
      state.solid ??= new SolidView($("solid"));
    }
    state.solid.show(one, answer().triangles, image(), $("textured").checked);
  } catch (error) {
    $("solid").hidden = true;
    $("solid-help").textContent = "This browser has no WebGL: download the mesh instead.";
  }
}
$("textured").addEventListener("change", showSolid);

// ---- iterations ------------------------------------------------------------------------------------------------

function play() {
  stop();
  state.step = 0;
  $("play").textContent = "■ Stop";
  let before = null;  // the first frame's time can lie before this call
  const frame = (now) => {
    before ??= now;
    if (still.matches) {
      if (now - before > STEP_MS) { state.step = Math.min(lastStep(), Math.floor(state.step) + 1); before = now; }
    } else {
      state.step = Math.min(lastStep(), state.step + (now - before) / STEP_MS);
      before = now;
    }
    showNumbers();
    draw();
    if (settled()) stop(); else state.playing = requestAnimationFrame(frame);
  };
  state.playing = requestAnimationFrame(frame);
}
function stop() {
  cancelAnimationFrame(state.playing);
  state.playing = 0;
  $("play").textContent = "▶ Play";
}
$("play").addEventListener("click", () => {
  if (!state.playing) { play(); return; }
  stop();
  state.step = lastStep();
  showNumbers();
  draw();
});
$("step").addEventListener("input", (event) => { stop(); state.step = Number(event.target.value); showNumbers(); draw(); });

// ---- drawing ---------------------------------------------------------------------------------------------------

// The visible part of the photo: left, top, width, height in its pixels.
function view() {
  const { naturalWidth: w, naturalHeight: h } = image(), one = face();
  if (!one || !$("zoom").checked) return [0, 0, w, h];
  const [x0, y0, x1, y1] = one.box, half = 1.1 * Math.max(x1 - x0, y1 - y0);
  const x = (x0 + x1) / 2, y = (y0 + y1) / 2 - 0.15 * half;
  const left = Math.max(0, x - half), top = Math.max(0, y - half);
  return [left, top, Math.max(1, Math.min(w, x + half) - left), Math.max(1, Math.min(h, y + half) - top)];
}

function resize() {
  if (!image()) return;
  fit(canvas, view(), $("stage").clientWidth, Math.max(320, innerHeight * 0.78));
  draw();
}
addEventListener("resize", () => { resize(); state.solid?.resize(); match.resize(); });
$("zoom").addEventListener("change", resize);
for (const input of document.querySelectorAll("#panel input:not([type=range])")) input.addEventListener("change", draw);

function pointsAt(one, step) {
  if (step >= lastStep()) return one[chosen("jaw")];
  const i = Math.floor(step), t = step - i;
  const a = one.trace[i].landmarks_2d, b = one.trace[i + 1].landmarks_2d;
  return a.map(([x, y], k) => [x + (b[k][0] - x) * t, y + (b[k][1] - y) * t]);
}

function draw() {
  if (!image() || !canvas.width) return;
  const [left, top, width] = view(), scale = canvas.width / width;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(scale, 0, 0, scale, -left * scale, -top * scale);
  if ($("show-photo").checked || !answer()) context.drawImage(image(), 0, 0);
  const unit = Math.min(devicePixelRatio || 1, 2) / scale;  // one CSS pixel in photo pixels
  (answer()?.faces ?? []).forEach((one, i) => {
    if (i === state.face) drawFace(one, unit);
    else { context.globalAlpha = 0.6; drawPoints(context, one, one.landmarks_2d, unit * 0.7); context.globalAlpha = 1; }
  });
  if (state.drag) {
    const [a, b, c, d] = state.drag;
    outlined(context, () => context.strokeRect(a, b, c - a, d - b), "#ffffff", 2 * unit);
  }
}

function drawFace(one, unit) {
  const mesh = chosen("mesh");
  if (one.mesh && mesh !== "none" && settled()) drawMesh(context, one.mesh, answer().triangles, mesh, unit);
  if ($("show-box").checked) {
    const [x0, y0, x1, y1] = one.box;
    outlined(context, () => context.strokeRect(x0, y0, x1 - x0, y1 - y0), "#ffffff", 1.5 * unit);
  }
  const points = pointsAt(one, state.step);
  if ($("show-points").checked) drawPoints(context, one, points, unit);
  if ($("show-axes").checked && settled()) drawAxes(context, one, points[NOSE_TIP], unit);
}

// ---- webcam ----------------------------------------------------------------------------------------------------

const webcam = new Webcam({
  onFrame(picture, found, file) {
    state.live = { image: picture, answer: found, file };
    state.face = Math.min(state.face, Math.max(0, (found?.faces.length ?? 1) - 1));
    state.step = 0;
    $("drop").hidden = true;
    canvas.hidden = false;
    $("panel").hidden = !found;
    if (found) showNumbers(); else canvas.setAttribute("aria-label", "Frame without a face.");
    resize();
  },
  onStop(file) {
    state.live = null;
    $("webcam").setAttribute("aria-pressed", "false");
    $("webcam").textContent = "Webcam";
    if (file) take([file]);
  },
  onError: showError,
  say,
});
async function playFilm(file) {
  if (chosen("task") === "match") { $("task-align").click(); }
  beginLive();
  await webcam.play(file);
}

function beginLive() {
  showError(null);
  state.request?.abort();
  $("steps-card").hidden = $("solid-card").hidden = true;
  $("webcam").setAttribute("aria-pressed", "true");
  $("webcam").textContent = "■ Take this picture";
}

$("webcam").addEventListener("click", async () => {
  if (webcam.running) { webcam.stop(true); return; }
  beginLive();
  await webcam.start();
});

// ---- two photos ------------------------------------------------------------------------------------------------

const match = new MatchView({ onError: showError });
for (const input of document.querySelectorAll("[name=task]")) input.addEventListener("change", () => {
  const two = chosen("task") === "match";
  webcam.stop();
  showError(null);
  $("align-task").hidden = two;
  $("match-task").hidden = !two;
  $("mark").hidden = two;
  say("");
  if (two) match.setPhotos(state.photos);
  else if (photo()) choosePhoto(state.current);
});

// ---- downloads -------------------------------------------------------------------------------------------------

$("save-json").addEventListener("click", () => save(new Blob([JSON.stringify(answer())], { type: "application/json" }), "alignment.json"));
$("save-csv").addEventListener("click", () => save(new Blob([csv(shownFile().name, answer())], { type: "text/csv" }), "alignment.csv"));
$("save-png").addEventListener("click", () => canvas.toBlob((blob) => save(blob, "alignment.png")));
$("save-glb").addEventListener("click", async () => {
  $("save-glb").disabled = true;
  try { save(await (await send("v1/align.glb", { image: shownFile(), boxes: [face().box] })).blob(), "face.glb"); } catch (error) { showError(error); }
  $("save-glb").disabled = false;
});

// One row a face; the columns of `dff align --csv`, but X, Y and Z of the landmarks. Frames of a video have no `model`,
// and so no names for expressions.
function csv(name, { faces, model }) {
  const points = (axis) => [...Array(68).keys()].map((i) => `${axis}_${i}`);
  const columns = [
    "image", "face_id", "confidence", "success", "error", "pose_Tx", "pose_Ty", "pose_Tz", "pose_Rx", "pose_Ry", "pose_Rz",
    ...points("x"), ...points("y"), ...(model?.expression_names ?? []),
  ];
  const rows = faces.map((one, i) => [
    name, i, one.face_confidence, Number(!one.failed), one.reason,
    ...[
      ...one.head_in_camera.translation.map((metres) => 1000 * metres),
      ...[one.pose.pitch, one.pose.yaw, one.pose.roll].map((degrees) => degrees * Math.PI / 180),
      ...one.landmarks_2d.map(([x]) => x), ...one.landmarks_2d.map(([, y]) => y), ...(model ? one.expression : []),
    ].map((value) => value.toFixed(4)),
  ]);
  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell);
  return [columns, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
}

const at = (path) => new URL(path, location.href);
$("curl").textContent = `# one photo
curl -F image=@photo.jpg ${at("v1/align")}

# several photos: faces or a problem for each
curl -F images=@a.jpg -F images=@b.jpg ${at("v1/align/batch")}

# several photos of one person: one identity, a pose and expression each
curl -F images=@a.jpg -F images=@b.jpg ${at("v1/align/person")}

# points of one photo in another
curl -F image_a=@a.jpg -F image_b=@b.jpg -F 'points=[[120, 80]]' ${at("v1/match")}`;
