// Frames of the webcam or of a video file, tracked over a web socket: the next one is sent when the last one is answered.
import { checkAccess, readImage, socketProtocols } from "./server.js";

const WIDTH = 640;  // pixels of a frame that is sent
const STEP = 1 / 15;  // seconds between two frames of a file

export class Webcam {
  constructor({ onFrame, onStop, onError, say }) {
    Object.assign(this, { onFrame, onStop, onError, say, stream: null, file: null });
  }

  get running() { return Boolean(this.stream); }

  async start() {
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: WIDTH } }, audio: false });
    } catch (error) {
      this.onStop(null);
      this.onError({ title: "No webcam", detail: error.name === "NotAllowedError" ? "The browser was not allowed to use it." : "No camera was found." });
      return;
    }
    const video = Object.assign(document.createElement("video"), { srcObject: this.stream, muted: true, playsInline: true });
    try { await video.play(); } catch { this.stop(); return; }
    await this.track(video, "Webcam", "webcam.jpg", () => this.stream?.active);
  }

  // Every frame of a file, in steps, however long the answers take.
  async play(file) {
    const video = Object.assign(document.createElement("video"), { src: URL.createObjectURL(file), muted: true, playsInline: true, preload: "auto" });
    this.file = this.stream = { active: true, getTracks: () => [] };
    try {
      await new Promise((done, fail) => { video.onloadeddata = done; video.onerror = fail; });
    } catch {
      this.stop();
      this.onError({ title: "The video can't be played", detail: "The browser does not know its format: try MP4 or WebM." });
      return;
    }
    const more = async () => {
      if (video.currentTime + STEP >= video.duration) return false;
      const sought = new Promise((done) => { video.onseeked = done; });
      video.currentTime += STEP;
      await sought;
      return true;
    };
    let first = true;
    await this.track(video, "Video", `${file.name.replace(/\.[^.]*$/, "")}.jpg`, async () => { if (first) { first = false; return true; } return more(); });
    URL.revokeObjectURL(video.src);
  }

  async track(video, name, fileName, more) {
    const stream = this.stream;
    const socket = new WebSocket(new URL("v1/track", document.baseURI.replace(/^http/, "ws")), socketProtocols());
    try {
      await opened(socket);
    } catch (error) {
      this.stop();
      await checkAccess().then(() => this.onError(error), this.onError);
      return;
    }
    let count = 0;
    while (this.stream === stream && await more()) {
      const started = performance.now(), file = await grab(video, fileName);
      const picture = await readImage(file);
      let answer = null;
      try {
        answer = await ask(socket, file);
        if (answer.problem) throw answer.problem;
      } catch (error) {
        socket.close();
        if (this.stream === stream) { this.stop(); this.onError(error); }
        return;
      }
      if (this.stream !== stream) break;
      if (!answer.faces.length) answer = null;
      this.last = file;
      this.onFrame(picture, answer, file);
      count += 1;
      this.say(answer ? `${name}: ${(1000 / (performance.now() - started)).toFixed(1)} frames a second.` : `${name}: no face in this frame.`);
    }
    socket.onclose = null;
    socket.close();
    if (this.stream === stream && stream === this.file) { this.stop(true); this.say(`Video: ${count} frames tracked; the last one is shown.`); }
  }

  // `keep`: the last frame becomes a photo.
  stop(keep = false) {
    const was = this.stream;
    this.stream = this.file = null;
    if (!was) return;
    was.getTracks().forEach((track) => track.stop());
    const last = this.last;
    this.last = null;
    this.onStop(keep ? last : null);
  }
}

function opened(socket) {
  return new Promise((done, fail) => {
    socket.onopen = done;
    socket.onerror = () => fail({ title: "No connection", detail: "The server does not take the webcam's frames." });
  });
}

function ask(socket, frame) {
  return new Promise((done, fail) => {
    socket.onmessage = (event) => done(JSON.parse(event.data));
    socket.onclose = (event) => fail({ title: "The server ended the session", detail: event.reason || "Try again later." });
    socket.send(frame);
  });
}

function grab(video, name) {
  const scale = Math.min(1, WIDTH / video.videoWidth);
  const canvas = Object.assign(document.createElement("canvas"), { width: Math.round(video.videoWidth * scale), height: Math.round(video.videoHeight * scale) });
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob((blob) => done(new File([blob], name, { type: "image/jpeg" })), "image/jpeg", 0.9));
}
