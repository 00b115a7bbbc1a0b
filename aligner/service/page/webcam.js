// Frames of the webcam, tracked over a web socket: the next one is sent when the last one is answered.
import { readImage, socketProtocols } from "./server.js";

const WIDTH = 640;  // pixels of a frame that is sent

export class Webcam {
  constructor({ onFrame, onStop, onError, say }) {
    Object.assign(this, { onFrame, onStop, onError, say, stream: null });
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
    const socket = new WebSocket(new URL("v1/track", document.baseURI.replace(/^http/, "ws")), socketProtocols());
    try { await opened(socket); } catch (error) { this.stop(); this.onError(error); return; }
    while (this.stream?.active) {
      const started = performance.now(), file = await grab(video), stream = this.stream;
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
      this.onFrame(picture, answer);
      this.say(answer ? `Webcam: ${(1000 / (performance.now() - started)).toFixed(1)} frames a second.` : "Webcam: no face in this frame.");
    }
    socket.close();
  }

  // `keep`: the last frame becomes a photo.
  stop(keep = false) {
    const was = this.stream;
    this.stream = null;
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

function grab(video) {
  const scale = Math.min(1, WIDTH / video.videoWidth);
  const canvas = Object.assign(document.createElement("canvas"), { width: Math.round(video.videoWidth * scale), height: Math.round(video.videoHeight * scale) });
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob((blob) => done(new File([blob], "webcam.jpg", { type: "image/jpeg" })), "image/jpeg", 0.9));
}
