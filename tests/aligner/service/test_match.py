"""``/v1/match`` and ``/v1/features``, of an aligner whose network is right."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import dff
from dff.aligner.align import Aligner
from dff.aligner.matching.found_points import FoundPoints
from dff.aligner.service.app import create_app
from dff.aligner.service.http.limits import Limits
from dff.face.arrays import Bytes
from dff.face.errors import NoFace
from dff.face.model.landmarks import NOSE_TIP
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import KnownAligner
from tests.aligner.oracle import PositionCode, Scene, make_scene
from tests.aligner.service.uvicorn_thread import serving_with_uvicorn


def png(image: Bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


PATIENT = Limits(deadline=120.0)  # seconds, on a busy machine
EMPTY = png(np.zeros((64, 64, 3), np.uint8))


@pytest.fixture(scope="module")
def client(oracle_aligner: Aligner) -> Iterator[TestClient]:
    with TestClient(create_app(oracle_aligner, limits=PATIENT)) as client:
        yield client


@pytest.fixture(scope="module")
def scenes(open_head: MorphableModel, code: PositionCode) -> list[Scene]:
    rng = np.random.default_rng(8)
    return [make_scene(open_head, code, yaw=yaw, rng=rng) for yaw in (0.0, 25.0)]


def ask(client: TestClient, first: bytes, second: bytes, query: str = "", **fields: Any) -> Any:
    files = {"image_a": first, "image_b": second}
    data = {name: json.dumps(value) for name, value in fields.items()}
    return client.post(f"/v1/match{query}", files=files, data=data)


def test_points_and_landmarks_are_found(client: TestClient, scenes: list[Scene]) -> None:
    first, second = scenes
    tip = first.landmarks[NOSE_TIP].tolist()
    boxes = {
        f"box_{name}": [scene.box.x0, scene.box.y0, scene.box.x1, scene.box.y1]
        for name, scene in zip("ab", scenes, strict=True)
    }
    answer = ask(
        client,
        png(first.image),
        png(second.image),
        "?heat_map=1",
        points=[tip, [2, 2]],
        landmarks=["chin"],
        vertices=[12],
        **boxes,
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    clicked, off, chin, vertex = body["points"]
    apart = np.hypot(*(np.array([clicked["x"], clicked["y"]]) - second.landmarks[NOSE_TIP]))
    assert apart < 0.03 * second.box.size
    assert clicked["visible"]
    assert clicked["source"] == pytest.approx(tip, abs=0.01)
    assert (off["status"], off["x"], off["probability"]) == ("not on a face", None, 0.0)
    assert (chin["name"], vertex["name"]) == ("chin", "vertex 12")
    assert body["image_b"] == {"width": 320, "height": 320}
    heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["heat_map"]))))
    assert heat.shape == (320, 320, 4)
    row, column = np.floor([clicked["y"], clicked["x"]]).astype(int)
    assert heat[row, column, 3] > 200
    assert heat[2, 2, 3] == 0


def test_clients_get_what_a_matcher_finds(oracle_aligner: Aligner, scenes: list[Scene]) -> None:
    first, second = scenes
    points = [first.landmarks[NOSE_TIP].tolist(), [2.0, 2.0]]
    wanted: dict[str, Any] = {
        "landmarks": ["chin"],
        "vertices": [12],
        "box_a": first.box,
        "box_b": second.box,
    }
    expected = dff.Matcher(oracle_aligner).match(first.image, points, second.image, **wanted)

    async def match() -> FoundPoints:
        async with dff.AsyncClient(url, deadline=60) as client:
            return await client.match(first.image, points, second.image, **wanted)

    app = create_app(oracle_aligner, also={"other": oracle_aligner})
    with serving_with_uvicorn(app) as url, dff.Client(url, deadline=60) as client:
        both = client.match(first.image, points, second.image, **wanted), asyncio.run(match())
        with pytest.raises(NoFace):
            client.match(first.image, points, np.zeros((64, 64, 3), np.uint8))
        # of the weights that answer, beside others
        assert client.model.name == oracle_aligner.model.name
    for found in both:
        assert found.names == expected.names
        assert [*found.status] == [*expected.status]
        for name in ("source", "px", "probability", "visibility"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=0.006)


def test_matches_are_timed_and_measured(client: TestClient, scenes: list[Scene]) -> None:
    """As alignments are, for the answer, for the log and for the metrics."""
    first, second = (png(scene.image) for scene in scenes)
    pair = {"image_a": first, "image_b": second}
    paths: dict[str, tuple[dict[str, bytes], dict[str, str], int]] = {
        "/v1/match": (pair, {"landmarks": '["chin"]'}, 2),
        "/v1/match/dense": (pair, {}, 2),
        "/v1/features": ({"image": first}, {}, 1),
    }
    for path, (files, data, photos) in paths.items():
        before = read_metrics(client)
        answer = client.post(path, files=files, data=data).raise_for_status()
        assert "x-dff-measures" not in answer.headers
        timing = answer.json()["timing"]
        assert set(timing) == {"queue_ms", "decode_ms", "align_ms"}
        assert timing["align_ms"] > 0
        after = read_metrics(client)

        def added(name: str, after: dict[str, float] = after, before: Any = before) -> float:
            return after[name] - before.get(name, 0.0)

        spent = added('dff_stage_seconds_sum{stage="align"}')
        assert 1000 * spent == pytest.approx(timing["align_ms"], abs=0.1)
        assert added('dff_stage_seconds_count{stage="decode"}') == 1
        assert added("dff_faces_total") == photos
        assert added("dff_decoded_bytes_total") == photos * scenes[0].image.nbytes
        assert added("dff_step_faces_sum") >= photos
        assert added("dff_queue_photos_count") == 1


def read_metrics(client: TestClient) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    values = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in values}


def test_dense_colours_agree_in_both_photos(client: TestClient, scenes: list[Scene]) -> None:
    first, second = scenes
    files = {"image_a": png(first.image), "image_b": png(second.image)}
    answer = client.post("/v1/match/dense", files=files)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    layers = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(body[name]))))
        for name in ("colours_a", "colours_b")
    ]
    assert [layer.shape for layer in layers] == [(320, 320, 4)] * 2
    assert 0.6 < body["visible_share"] <= 1.0
    for layer, scene in zip(layers, scenes, strict=True):
        assert layer[2, 2, 3] == 0
        x, y = scene.landmarks[NOSE_TIP].astype(int)
        assert layer[y, x, 3] == 190
    around = [
        np.median(layer[y - 6 : y + 7, x - 6 : x + 7, :3].astype(float), axis=(0, 1))
        for layer, scene in zip(layers, scenes, strict=True)
        for x, y in [scene.landmarks[NOSE_TIP].astype(int)]
    ]
    assert np.abs(around[0] - around[1]).max() < 40
    files["image_b"] = EMPTY
    assert client.post("/v1/match/dense", files=files).json()["type"].endswith("/no-face")


def test_dense_matches_come_as_numbers(client: TestClient, scenes: list[Scene]) -> None:
    first, second = scenes
    wide = np.pad(second.image, ((0, 0), (0, 1200 - second.image.shape[1]), (0, 0)))
    files = {"image_a": png(first.image), "image_b": png(wide)}
    answer = client.post("/v1/match/dense", files=files, headers={"Accept": "application/x-npy"})
    assert answer.headers["content-type"] == "application/x-npy"
    dense = np.load(io.BytesIO(answer.content))
    assert dense.shape == (*first.image.shape[:2], 4)
    assert dense.dtype == np.float32
    inner = slice(17, 68)  # without the jaw
    columns, rows = first.landmarks[inner].astype(int).T
    found = dense[rows, columns]
    assert np.isfinite(found).all(1).mean() > 0.8
    assert ((found[:, 2:] >= 0) & (found[:, 2:] <= 1)).all()
    # pixels of the photo as it was sent, though it is matched at 1024
    off = np.linalg.norm(found[:, :2] - second.landmarks[inner], axis=1)
    assert np.median(off) < 0.02 * (second.box.x1 - second.box.x0)


def test_what_cannot_be_matched_is_told(client: TestClient, scenes: list[Scene]) -> None:
    face = png(scenes[0].image)
    for fields, detail in (
        ({}, "give 1 to 1024 points"),
        ({"points": [[1, 2, 3]]}, "JSON [[x, y], ...] in pixels: points[0] has too many"),
        ({"points": [[1]]}, "JSON [[x, y], ...] in pixels: points[0] has too few"),
        ({"points": [[1, 5000]]}, "outside the first photo"),
        ({"landmarks": ["nose"]}, "no landmark 'nose'"),
        ({"landmarks": [5]}, '["nose_tip", "chin"]: landmarks[0] is a number'),
        ({"points": [[5, 5]] * 1025}, "give 1 to 1024 points"),
    ):
        answer = ask(client, face, face, **fields)
        assert answer.status_code == 422, fields
        assert answer.json()["type"].endswith("/bad-request")
        assert detail in answer.json()["detail"]
    answer = ask(client, face, EMPTY, points=[[160, 160]])
    assert answer.json()["type"].endswith("/no-face")
    assert "second photo" in answer.json()["detail"]
    answer = ask(client, face, b"no image", points=[[160, 160]])
    assert answer.status_code == 415


def test_descriptors_come_with_their_place(client: TestClient, scenes: list[Scene]) -> None:
    scene = scenes[0]
    corners = [scene.box.x0, scene.box.y0, scene.box.x1, scene.box.y1]
    answer = client.post(
        "/v1/features", files={"image": png(scene.image)}, data={"box": json.dumps(corners)}
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    rows, columns, dims = body["shape"]
    read = np.frombuffer(base64.b64decode(body["descriptor"]), "<f2").reshape(rows, columns, dims)
    face = np.frombuffer(base64.b64decode(body["face_probability"]), "<f2").reshape(rows, columns)
    x, y = np.array(body["grid_from_photo"]) @ [*scene.landmarks[NOSE_TIP], 1.0]
    assert face[int(y), int(x)] > 0.9
    assert np.linalg.norm(read[int(y), int(x)].astype(float)) == pytest.approx(1.0, abs=0.1)
    assert face[0, 0] < 0.1


def test_an_aligner_without_a_network_says_so(toy_model: MorphableModel) -> None:
    image = png(np.full((64, 64, 3), 90, np.uint8))
    with TestClient(create_app(KnownAligner(toy_model))) as client:
        answer = ask(client, image, image, points=[[5, 5]])
    assert answer.status_code == 501
    assert "can't match" in answer.json()["detail"]
