"""The page in a real browser: upload, strip, 3D, match, webcam, errors, keyboard, small screens.

Skipped where Chromium or Playwright is missing. Pictures of the page go to ``$DFF_SCREENSHOTS``.
"""

from __future__ import annotations

import base64
import csv
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import uvicorn
from PIL import Image

from dff.aligner.align import Aligner
from dff.aligner.service.app import create_app
from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.keys import hash_keys
from dff.aligner.service.http.limits import Limits
from dff.face.model.morphable import MorphableModel
from dff.files.table import FaceTable
from tests.aligner.oracle import PositionCode, make_scene
from tests.aligner.service.uvicorn_thread import serving_with_uvicorn

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
OPTIONS = (
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--enable-unsafe-swiftshader",
)
WAIT = 120_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def url(oracle_aligner: Aligner) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(oracle_aligner, limits=Limits(deadline=WAIT / 1000))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", http="h11"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def photos(
    tmp_path_factory: pytest.TempPathFactory, open_head: MorphableModel, code: PositionCode
) -> list[Path]:
    """A face ahead, the same from the side, and a picture without a face."""
    folder, rng = tmp_path_factory.mktemp("page"), np.random.default_rng(5)
    files = [folder / name for name in ("ahead.png", "side.png", "empty.png")]
    for file, yaw in zip(files[:2], (0.0, 30.0), strict=True):
        Image.fromarray(make_scene(open_head, code, yaw=yaw, rng=rng).image).save(file)
    Image.new("RGB", (200, 160)).save(files[2])
    return files


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The page, whose errors and refused loads fail the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None,
    )
    page.on("request", lambda asked: wrong.append(asked.url) if outside(asked.url, url) else None)
    page.goto(url)
    yield page
    context.close()
    assert not wrong


# Contrast of each visible text to the ground behind it, by WCAG 2: [ratio, text], worst first.
CONTRASTS = """() => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (one) => {
        for (; one; one = one.parentElement) {
            const colour = parse(getComputedStyle(one).backgroundColor);
            if ((colour[3] ?? 1) === 1) return colour;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const one of document.querySelectorAll('body *')) {
        const own = [...one.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
        if (!own.length || !one.checkVisibility() || one.disabled) continue;
        if (one.closest('.visually-hidden, noscript, option')) continue;
        const pair = [parse(getComputedStyle(one).color), ground(one)].map(light);
        found.push([(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), own[0].data.trim()]);
    }
    return found.sort((a, b) => a[0] - b[0]);
}"""
AA = 4.5  # least contrast of text
# Clicks on a button for a download while a video is tracked.
SAVE_FRAME = """(button) => {
    const [panel, webcam] = ['panel', 'webcam'].map((id) => document.getElementById(id));
    if (panel.hidden || webcam.getAttribute('aria-pressed') !== 'true') return false;
    document.getElementById(button).click();
    return true;
}"""


# Counts pictures and landmarks that are drawn from now on.
COUNT_CALLS = """() => {
    window.calls = { drawImage: 0, arc: 0 };
    for (const name of Object.keys(window.calls)) {
        const call = CanvasRenderingContext2D.prototype[name];
        CanvasRenderingContext2D.prototype[name] = function (...all) {
            window.calls[name] += 1;
            return call.apply(this, all);
        };
    }
}"""


def outside(address: str, url: str) -> bool:
    return not address.startswith((url, "data:", "blob:"))


def picture(page: Any, name: str) -> None:
    """Keep a picture of the page for people."""
    folder = os.environ.get("DFF_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def upload(page: Any, *files: Path) -> None:
    page.set_input_files("#file", [str(file) for file in files])


def test_the_status_is_that_of_the_chosen_photo(page: Any, photos: list[Path]) -> None:
    upload(page, photos[0], photos[1])
    page.wait_for_selector("#strip li:nth-child(2) button[aria-label$='1 face']")
    page.evaluate("document.getElementById('status').textContent = 'of the first'")
    page.click("#strip li:nth-child(2) button")  # aligned before, behind the first
    assert page.text_content("#status").startswith("1 face in ")


# Gives the page a photo in base64 as a user who pastes one does, or who drops one.
GIVE = """async ([kind, text]) => {
    const binary = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([binary], 'photo.png', { type: 'image/png' }));
    const event = kind === 'paste'
        ? new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true })
        : new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true });
    document.body.dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_photo_may_be_pasted_or_dropped_and_its_iterations_are_played(
    page: Any, photos: list[Path], kind: str
) -> None:
    page.evaluate(GIVE, [kind, base64.b64encode(photos[0].read_bytes()).decode()])
    page.wait_for_selector("#panel:not([hidden])")
    last = int(page.get_attribute("#step", "max"))
    assert last > 0
    ended = "() => document.getElementById('play').textContent.includes('Play')"
    page.wait_for_function(ended)  # they are played once by themselves
    page.evaluate(COUNT_CALLS)
    page.click("#play")
    page.wait_for_function(ended)
    assert page.text_content("#step-label").startswith(f"{last + 1} of {last + 1}, residual ")
    calls = page.evaluate("window.calls")
    assert calls["drawImage"] > last, "each iteration is drawn"


def test_photos_are_aligned_and_results_saved(
    page: Any, photos: list[Path], open_head: MorphableModel
) -> None:
    upload(page, photos[0], photos[1])
    page.wait_for_selector("#panel:not([hidden])")
    assert page.text_content("#yaw").endswith("°")
    page.wait_for_selector("#solid-card:not([hidden])")
    page.wait_for_function("() => document.querySelectorAll('#strip button').length === 2")
    picture(page, "aligned")
    for button, suffix in (("json", ".json"), ("csv", ".csv"), ("png", ".png"), ("glb", ".glb")):
        with page.expect_download() as saving:
            page.click(f"#save-{button}")
        saved = Path(saving.value.path())
        assert saving.value.suggested_filename.endswith(suffix)
        data = saved.read_bytes()
        if suffix == ".csv":
            header, row = csv.reader(data.decode().splitlines())
            columns = FaceTable(open_head, ["image"]).columns
            assert header == [name for name in columns if name[:2] not in ("X_", "Y_", "Z_")]
            told = dict(zip(header, row, strict=True))
            assert (told["image"], told["face_id"], told["success"]) == (photos[0].name, "0", "1")
            assert abs(float(told["pose_Tz"])) > 100  # millimetres
        assert len(data) > 500
    before = page.evaluate("document.getElementById('solid').toDataURL()")
    page.focus("#solid")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    after = page.evaluate("document.getElementById('solid').toDataURL()")
    assert before != after, "the 3D view turns by keyboard"
    picture(page, "turned")


def test_the_hole_between_the_lips_is_closed(page: Any) -> None:
    """Of a square sheet of 7 by 7 vertices with two holes, an eye's and the mouth's."""

    def number(row: int, column: int) -> int:
        return 7 * row + column

    eye, mouth = (1, 3), (4, 2)  # rows and columns of cells that are missing
    cells = [(r, c) for r in range(6) for c in range(6) if (r, c) not in (eye, mouth)]
    sheet = [(number(r, c), number(r + 1, c), number(r + 1, c + 1)) for r, c in cells]
    sheet += [(number(r, c), number(r + 1, c + 1), number(r, c + 1)) for r, c in cells]
    vertices = [[c, r, 0] for r in range(7) for c in range(7)]
    lips = [[mouth[1] + 0.4, mouth[0] + 0.5, 0.0]] * 8
    found = page.evaluate(
        """async (mesh) => {
            const { closeMouth } = await import(new URL("page/solid.js", location.href));
            return closeMouth(...mesh);
        }""",
        [vertices, sheet, lips],
    )
    assert found["vertices"][:-1] == vertices
    assert found["vertices"][-1] == [2.5, 4.5, pytest.approx(-0.3)]  # behind the middle
    cone = [tuple(some) for some in found["triangles"][len(sheet) :]]
    edges = {(some[i], some[i - 2]) for some in [*sheet, *cone] for i in range(3)}
    open_edges = {frozenset(edge) for edge in edges if edge[::-1] not in edges}
    corners = [number(r, c) for r, c in ((1, 3), (1, 4), (2, 4), (2, 3))]
    assert {edge for edge in open_edges if edge <= {*corners}} == {
        frozenset((corners[i - 1], corners[i])) for i in range(4)
    }
    assert len(open_edges) == 4 + 4 * 6  # the eye and the outer border
    assert len(cone) == 4


def test_a_point_is_found_in_the_second_photo(page: Any, photos: list[Path]) -> None:
    page.click("label[for=task-match]")
    upload(page, photos[0], photos[1])
    page.wait_for_selector("#second:not([hidden])")
    page.select_option("#landmark", "nose_tip")
    page.wait_for_function(
        "() => document.getElementById('match-status').textContent.startsWith('tip of the nose →')"
    )
    assert "probability" in page.text_content("#match-status")
    page.focus("#first")
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => /^1[0-9]{2}/.test(document.getElementById('match-status').textContent)"
    )
    assert not page.input_value("#landmark"), "the landmark can be chosen again"
    picture(page, "matched")
    page.click("label[for=show-dense]")
    page.wait_for_function(
        "() => document.getElementById('match-status').textContent.includes('same colour')"
    )
    picture(page, "dense")
    page.mouse.move(0, 0)
    box = page.locator("#first").bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + 3)
    page.wait_for_function(
        "() => document.getElementById('match-status').textContent.includes('not on a face')"
    )


def test_labels_of_near_points_do_not_overlap(page: Any) -> None:
    points = [{"x": 100 + 4 * i, "y": 80 + (7 * i) % 10} for i in range(6)] + [{"x": 199, "y": 1}]
    places = page.evaluate(
        """async (points) => {
            const { placeLabels } = await import("./page/match.js");
            const boxes = points.map(() => ({ width: 40, height: 15 }));
            return placeLabels(points, boxes, 200, 160, 6);
        }""",
        points,
    )
    assert len(places) == 7
    for (x, y), (u, v) in combinations(places, 2):
        assert abs(x - u) >= 40 or abs(y - v) >= 15
    assert all(0 <= x <= 160 and 0 <= y <= 145 for x, y in places)


def test_what_fails_is_told_and_can_be_mended_by_hand(page: Any, photos: list[Path]) -> None:
    upload(page, photos[2])
    page.wait_for_selector("#error:not([hidden])")
    assert "No face found" in page.text_content("#error")
    assert page.get_attribute("#mark", "aria-pressed") == "true"
    picture(page, "error")
    page.set_input_files(
        "#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}
    )
    page.wait_for_function(
        "() => document.getElementById('error').textContent.includes('Unsupported image format')"
    )


def test_the_webcam_is_aligned_until_it_is_stopped(page: Any) -> None:
    page.context.grant_permissions(["camera"])
    page.click("#webcam")
    page.wait_for_function(
        "() => document.getElementById('status').textContent.startsWith('Webcam')"
    )
    assert page.get_attribute("#webcam", "aria-pressed") == "true"
    picture(page, "webcam")
    page.click("#webcam")
    page.wait_for_function("() => document.getElementById('webcam').textContent === 'Webcam'")


def test_a_frame_without_a_face_shows_no_face(
    page: Any, photos: list[Path], tmp_path: Path
) -> None:
    """Not those of the photo that was shown before."""
    upload(page, photos[0])
    page.wait_for_selector("#panel:not([hidden])")
    page.context.grant_permissions(["camera"])  # of the fake camera, which shows no face
    page.click("#webcam")
    page.wait_for_function(
        "() => document.getElementById('status').textContent.includes('no face in this frame')"
    )
    page.evaluate(COUNT_CALLS)
    page.wait_for_function("() => window.calls.drawImage > 2")
    assert page.evaluate("() => window.calls.arc") == 0
    assert page.is_hidden("#panel")
    assert page.get_attribute("#canvas", "aria-label") == "Frame without a face."
    picture(page, "no-face")
    page.click("#webcam")


def test_the_faces_of_a_video_are_tracked(page: Any, photos: list[Path], tmp_path: Path) -> None:
    film = tmp_path / "film.webm"
    frames = [cv2.imread(str(photo)) for photo in photos[:2]]
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"VP80"), 15, (width, height))
    if not writer.isOpened():
        pytest.skip("OpenCV can't write WebM")
    for frame in [*[frames[0]] * 8, *[frames[1]] * 8]:
        writer.write(frame)
    writer.release()
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    upload(page, film)
    for button, begins in (("csv", b"image,face_id,confidence"), ("glb", b"glTF")):
        with page.expect_download() as saving:
            page.wait_for_function(SAVE_FRAME, arg=f"save-{button}")
        saved = Path(saving.value.path()).read_bytes()
        assert saved.startswith(begins)
        assert button != "csv" or saved.splitlines()[1].startswith(b"film.jpg,0,")
    page.wait_for_selector("#solid-card:not([hidden])")  # the last frame has become a photo
    assert [address.endswith("/v1/track") for address in sockets] == [True]
    picture(page, "video")
    page.set_input_files("#file", {"name": "a.mp4", "mimeType": "video/mp4", "buffer": b"none"})
    page.wait_for_function("() => document.getElementById('error').textContent.includes('played')")


def test_the_page_works_on_a_small_screen_and_in_the_dark(page: Any, photos: list[Path]) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    upload(page, photos[0])
    page.wait_for_selector("#panel:not([hidden])")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, "nothing is cut off at the right"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(16, 21, 20)"
    picture(page, "small")
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 30
        assert contrasts[0][0] >= AA, (scheme, contrasts[:5])
    page.click("label[for=task-match]")
    assert not page.text_content("#status"), "the status of one photo is not that of two"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, "small-match")


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_of_the_api_has_paragraphs_that_flow(page: Any, url: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{url}docs")
    page.wait_for_selector("#operations section")
    assert "web socket at /v1/track" in page.text_content("#about")
    texts = page.evaluate("[...document.querySelectorAll('section p')].map((p) => p.textContent)")
    assert "Every face of a photo: 68 landmarks in 2D and 3D" in texts[0]
    assert texts[1].startswith("Pixels count from"), "a blank line begins a paragraph"
    spaces = page.evaluate("getComputedStyle(document.querySelector('section p')).whiteSpace")
    assert spaces == "normal", "other line breaks are those of the window"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.wait_for_selector("#index a")
    picture(page, f"api-{width}")
    page.click("#index a[href='#align_person']")
    shown = "document.querySelector('#align_person h2').getBoundingClientRect().top"
    assert page.evaluate(shown) < 100, "the index leads to each operation"
    fields = page.locator("#align_person details table")
    assert not fields.is_visible()
    page.click("#align_person summary")
    assert fields.is_visible()


def test_the_page_of_the_api_has_landmarks_and_contrast(page: Any, url: str) -> None:
    page.goto(f"{url}docs")
    page.wait_for_selector("#operations section")
    assert page.locator("main h1").count() == 1, "screen readers jump to the content"
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 30
        assert contrasts[0][0] >= AA, (scheme, contrasts[:5])


def test_every_control_has_a_name_and_the_keyboard_reaches_it(page: Any) -> None:
    names = page.evaluate(
        """[...document.querySelectorAll('button, input, select, canvas, a')].map((one) =>
        [one.id || one.href, one.getAttribute('aria-label') || one.labels?.[0]?.textContent ||
        one.textContent])"""
    )
    assert all(name and name.strip() for _, name in names), names
    reached = set()
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"task-align", "file", "sample", "webcam"} <= reached


def test_a_key_is_asked_for_and_used(
    browser: Any, oracle_aligner: Aligner, photos: list[Path]
) -> None:
    key = "0123456789abcdef"
    front = FrontConfig(keys=hash_keys([key]))
    app = create_app(oracle_aligner, limits=Limits(deadline=WAIT / 1000), front=front)
    with serving_with_uvicorn(app, front=front) as url:
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(url)
        page.click("#webcam")  # over a socket
        page.wait_for_selector("#key-form:not([hidden])")
        assert "API key" in page.text_content("#error")
        upload(page, photos[0])
        page.wait_for_selector("#panel", state="hidden")
        page.wait_for_selector("#key-form:not([hidden])")
        assert "API key" in page.text_content("#error")
        picture(page, "key")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#panel:not([hidden])")
        assert page.is_hidden("#key-form")
        page.click("#webcam")
        page.wait_for_function(
            "() => document.getElementById('status').textContent.startsWith('Webcam')"
        )
        page.close()
