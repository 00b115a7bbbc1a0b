// The fitted mesh in 3D, with the photo as texture; it turns by pointer, wheel and arrow keys.
import {
  AmbientLight, BufferAttribute, BufferGeometry, CanvasTexture, DirectionalLight, Group, Mesh, MeshBasicMaterial,
  MeshStandardMaterial, PerspectiveCamera, Scene, SRGBColorSpace, WebGLRenderer,
} from "./vendor/three.module.min.js";
import { OrbitControls } from "./vendor/OrbitControls.js";

const mean = (points) => [0, 1, 2].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);

// The mesh with a shallow cone that closes the hole between the lips: else an open mouth shows what is behind the head.
export function closeMouth(vertices, triangles, innerLips) {
  const edges = new Map();
  for (const [i, j, k] of triangles) for (const edge of [[i, j], [j, k], [k, i]]) edges.set(`${edge}`, edge);
  const following = new Map(); // along the borders, against the triangles beside them
  for (const [from, to] of edges.values()) if (!edges.has(`${to},${from}`)) following.set(to, from);
  const lips = mean(innerLips), away = (loop) => Math.hypot(...mean(loop.map((i) => vertices[i])).map((value, axis) => value - lips[axis]));
  let mouth = null;
  for (const start of [...following.keys()]) {
    const loop = [];
    for (let i = start; following.has(i);) { const next = following.get(i); following.delete(i); loop.push(i); i = next; }
    if (loop.length > 2 && (!mouth || away(loop) < away(mouth))) mouth = loop;
  }
  if (!mouth) return { vertices, triangles };
  const across = mouth.map((i) => vertices[i][0]), [x, y, z] = mean(mouth.map((i) => vertices[i]));
  const bottom = [x, y, z - 0.3 * (Math.max(...across) - Math.min(...across))];
  const cone = mouth.map((i, n) => [i, mouth[(n + 1) % mouth.length], vertices.length]);
  return { vertices: [...vertices, bottom], triangles: [...triangles, ...cone] };
}

export class SolidView {
  // Throws where the browser has no WebGL.
  constructor(canvas) {
    this.canvas = canvas;
    this.renderer = new WebGLRenderer({ canvas, antialias: true, alpha: true, preserveDrawingBuffer: true });
    this.scene = new Scene();
    this.camera = new PerspectiveCamera(30, 1, 0.01, 100);
    this.controls = new OrbitControls(this.camera, canvas);
    this.controls.enablePan = false;
    this.controls.addEventListener("change", () => this.render());
    this.scene.add(new AmbientLight(0xffffff, 1.2));
    const light = new DirectionalLight(0xffffff, 2.2);
    light.position.set(0.4, 0.7, 1);
    this.scene.add(light);
    this.group = new Group();
    this.scene.add(this.group);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] }[event.key];
      if (!step) return;
      event.preventDefault();
      this.turn(...step);
    });
  }

  // A face of the answer, its mesh in pixels (z towards the viewer), an image; textured or grey.
  show(face, outside, photo, textured) {
    this.group.clear();
    const { vertices, triangles } = closeMouth(face.mesh, outside, face.landmarks_3d.slice(60, 68));
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    for (const v of vertices) for (let i = 0; i < 3; i++) { low[i] = Math.min(low[i], v[i]); high[i] = Math.max(high[i], v[i]); }
    const size = Math.max(high[0] - low[0], high[1] - low[1]) || 1, middle = low.map((l, i) => (l + high[i]) / 2);
    const place = new Float32Array(vertices.length * 3), uv = new Float32Array(vertices.length * 2);
    vertices.forEach(([x, y, z], i) => {
      place.set([(x - middle[0]) / size, -(y - middle[1]) / size, (z - middle[2]) / size], 3 * i);
      uv.set([x / photo.naturalWidth, 1 - y / photo.naturalHeight], 2 * i);
    });
    const geometry = new BufferGeometry();
    geometry.setAttribute("position", new BufferAttribute(place, 3));
    geometry.setAttribute("uv", new BufferAttribute(uv, 2));
    geometry.setIndex(triangles.flat());
    geometry.computeVertexNormals();
    let material = new MeshStandardMaterial({ color: 0xc9b8a8, roughness: 0.75 });
    if (textured) {
      const most = Math.min(1, 2048 / Math.max(photo.naturalWidth, photo.naturalHeight));
      const canvas = Object.assign(document.createElement("canvas"), { width: Math.round(photo.naturalWidth * most), height: Math.round(photo.naturalHeight * most) });
      canvas.getContext("2d").drawImage(photo, 0, 0, canvas.width, canvas.height);
      const map = new CanvasTexture(canvas);
      map.colorSpace = SRGBColorSpace;
      material = new MeshBasicMaterial({ map });
    }
    this.group.add(new Mesh(geometry, material));
    this.camera.position.set(0, 0, 2.6);
    this.controls.target.set(0, 0, 0);
    this.controls.update();
    this.resize();
  }

  turn(around, over) {
    const { x, y, z } = this.camera.position, r = Math.hypot(x, y, z);
    const azimuth = Math.atan2(x, z) + around, polar = Math.min(Math.max(Math.acos(y / r) + over, 0.1), 3.0);
    this.camera.position.set(r * Math.sin(polar) * Math.sin(azimuth), r * Math.cos(polar), r * Math.sin(polar) * Math.cos(azimuth));
    this.controls.update();
    this.render();
  }

  resize() {
    const width = this.canvas.clientWidth || 300, height = this.canvas.clientHeight || 300;
    this.renderer.setPixelRatio(Math.min(devicePixelRatio || 1, 2));
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.render();
  }

  render() { this.renderer.render(this.scene, this.camera); }
}
