"""Mesh files in other programs: Khronos' validator, three.js and ``<model-viewer>``.

Skipped where these (``make gltf-tools``), Chromium or Playwright are missing. Pictures of the
viewer go to ``$DFF_SCREENSHOTS``.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dff.aligner.alignment import Alignment, PersonAlignment
from dff.aligner.mesh_file import HeadMotion, animated_glb, glb
from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.morphable import Coefficients, MorphableModel
from tests.aligner.known_aligner import known_alignment

PACKAGES = Path(sys.prefix) / "gltf"
pytestmark = pytest.mark.skipif(
    not (PACKAGES / "node_modules" / "@google").is_dir(), reason="needs make gltf-tools"
)
CHROMIUM = shutil.which("chromium")
JAW_OPEN = "jawOpen"
WAIT = 60_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def face(open_head: MorphableModel) -> Alignment:
    """A face with an identity and two expressions."""
    expression = np.zeros(len(open_head.expression))
    expression[[24, 43]] = 0.5, 1.0
    coefficients = Coefficients(np.ones(5), expression)
    return replace(
        known_alignment(open_head, Box(40, 40, 140, 140)),
        coefficients=coefficients,
        vertices=open_head.vertices(coefficients),
    )


@pytest.fixture(scope="module")
def texture() -> Bytes:
    """Green, which no light of a viewer makes of another colour."""
    return np.broadcast_to(np.array([20, 200, 60], np.uint8), (64, 64, 3)).copy()


@pytest.fixture(scope="module")
def motion(open_head: MorphableModel) -> HeadMotion:
    """A head that opens its jaw and turns to one side within a second."""
    expressions = np.zeros((3, len(open_head.expression)))
    expressions[:, open_head.expression_names.index(JAW_OPEN)] = 0.0, 0.5, 1.0
    poses = tuple(
        Rigid(rotation_from_angles(yaw, 0.0, 0.0), np.array([0.0, 0.0, 1.0]))
        for yaw in (0.0, 20.0, 40.0)
    )
    return HeadMotion(np.ones(4), np.array([0.0, 0.5, 1.0]), expressions, poses)


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    face: Alignment,
    motion: HeadMotion,
    texture: Bytes,
    open_head: MorphableModel,
) -> Path:
    """A folder with the file of a photo, of a person in two photos, and of a film."""
    folder = tmp_path_factory.mktemp("glb")
    person = PersonAlignment.of(open_head, 2, {0: face, 1: face}, {}, {})
    for name, data in (
        ("face", glb(face, open_head, texture=texture)),
        ("person", glb(person, open_head, texture=texture)),
        ("plain", glb(person, open_head)),
        ("film", animated_glb(motion, open_head, texture=texture)),
    ):
        (folder / f"{name}.glb").write_bytes(data)
    return folder


VALIDATE = """
const data = new Uint8Array(require("fs").readFileSync(process.argv[1]));
require("gltf-validator").validateBytes(data).then(r => console.log(JSON.stringify(r.issues)));
"""


UNUSED = ["UNUSED_OBJECT"]  # texture coordinates, for people who paint the face


@pytest.mark.parametrize(
    ("name", "notes"), [("face", []), ("person", []), ("plain", UNUSED), ("film", [])]
)
def test_the_official_validator_finds_no_fault(name: str, notes: list[str], files: Path) -> None:
    run = subprocess.run(
        ["node", "-e", VALIDATE, str(files / f"{name}.glb")],
        cwd=PACKAGES,
        capture_output=True,
        text=True,
        timeout=60,
    )
    issues = json.loads(run.stdout)
    assert issues["numErrors"] == issues["numWarnings"] == 0, issues
    assert [message["code"] for message in issues["messages"]] == notes, issues


class QuietHandler(SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each request."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


PAGE = """<!doctype html>
<script type="importmap">{"imports": {
    "three": "/node_modules/three/build/three.module.js",
    "three/addons/": "/node_modules/three/examples/jsm/"
}}</script>
<script type="module" src="/node_modules/@google/model-viewer/dist/model-viewer.min.js"></script>
<script type="module">
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
import { Vector3 } from "three";
window.read = async (name, weights) => {
    const { scene } = await new GLTFLoader().loadAsync(name);
    let mesh;
    scene.traverse((node) => { if (node.isMesh) mesh = node; });
    for (const [target, weight] of Object.entries(weights))
        mesh.morphTargetInfluences[mesh.morphTargetDictionary[target]] = weight;
    const count = mesh.geometry.attributes.position.count;
    const vertices = [...Array(count).keys()].map(
        (i) => mesh.getVertexPosition(i, new Vector3()).toArray());
    return { targets: Object.keys(mesh.morphTargetDictionary), vertices };
};
</script>
<body style="margin: 0">
<model-viewer style="width: 400px; height: 400px" interaction-prompt="none"></model-viewer>
"""


@pytest.fixture(scope="module")
def page(files: Path) -> Iterator[Any]:
    """A page with both viewers, whose errors fail the tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    (files / "index.html").write_text(PAGE)
    (files / "node_modules").symlink_to(PACKAGES / "node_modules")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(files)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wrong: list[str] = []
    with closing(server.socket), playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        page.wait_for_function("() => window.read && customElements.get('model-viewer')")
        yield page
        browser.close()
        server.shutdown()
    assert not wrong


@pytest.mark.parametrize(("name", "at_rest"), [("face", False), ("person", True)])
def test_three_js_moves_the_mesh_as_the_model_does(
    name: str, at_rest: bool, page: Any, face: Alignment, open_head: MorphableModel
) -> None:
    """Its vertices, before and after another program opens the jaw."""
    expression = face.coefficients.expression * (0.0 if at_rest else 1.0)
    jaw = open_head.expression_names.index(JAW_OPEN)
    for weights in ({}, {JAW_OPEN: 0.7}):
        told = page.evaluate("([name, weights]) => read(name, weights)", [f"{name}.glb", weights])
        assert told["targets"] == list(open_head.expression_names)
        if weights:
            expression = expression.copy()
            expression[jaw] = weights[JAW_OPEN]
        expected = open_head.vertices(Coefficients(face.coefficients.identity, expression))
        shown = np.array(told["vertices"])[: len(expected)]
        assert np.allclose(shown, expected, atol=1e-6)


SHOW = """async (name) => {
    const viewer = document.querySelector("model-viewer");
    await new Promise((done, fail) => {
        viewer.addEventListener("load", done, { once: true });
        viewer.addEventListener("error", (e) => fail(e.detail.sourceError), { once: true });
        viewer.src = name;
    });
    return viewer.availableAnimations;
}"""
SEEK = """async (seconds) => {
    const viewer = document.querySelector("model-viewer");
    viewer.play();  // shows no frame of an animation that never played
    viewer.pause();
    viewer.currentTime = seconds;
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""


def look(page: Any, name: str) -> Floats:
    """The (400, 400, 3) RGB picture of the viewer, kept for people as well."""
    png = page.locator("model-viewer").screenshot()
    folder = os.environ.get("DFF_SCREENSHOTS")
    if folder:
        Path(folder, f"{name}.png").write_bytes(png)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)


def test_model_viewer_shows_the_face_in_its_colours(page: Any) -> None:
    assert page.evaluate(SHOW, "face.glb") == []
    page.evaluate(SEEK, 0)
    shown = look(page, "model-viewer-face")
    green = np.abs(shown - (20, 200, 60)).max(axis=2) < 12
    assert 0.15 < green.mean() < 0.9, "the texture is shown as it is"


def test_model_viewer_plays_the_film(page: Any) -> None:
    assert page.evaluate(SHOW, "film.glb") == ["film"]
    pictures = []
    for seconds in (0.0, 0.99):
        page.evaluate(SEEK, seconds)
        pictures.append(look(page, f"model-viewer-film-{seconds:g}"))
    first, last = (np.argwhere(p[..., 1] > p[..., 0] + 60) for p in pictures)
    assert len(first) > 4000
    assert last[:, 0].max() > first[:, 0].max() + 5, "the chin goes down"
    assert np.abs(pictures[0] - pictures[1]).mean() > 3
