"""Several photos in one request: each is answered as if sent alone, or has its own problem."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx
import numpy as np
import pytest
import trimesh
from fastapi.testclient import TestClient

from dff.aligner.align import Aligner
from dff.aligner.alignment import PersonAlignment
from dff.aligner.face_description import FaceDescriber
from dff.aligner.face_request import Steps
from dff.aligner.intrinsics import Intrinsics
from dff.aligner.service.app import create_app
from dff.aligner.service.face_aligner import Boxes
from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.limits import LARGE_BODIES, Limits, UploadLimits
from dff.face.arrays import Bytes
from dff.face.errors import BadPhoto
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import bomb, encoded, pixels, turned
from tests.aligner.known_aligner import KnownAligner
from tests.aligner.oracle import PositionCode, make_scene

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

BATCH, PERSON = "/v1/align/batch", "/v1/align/person"
LIMITS = Limits(
    body=150_000,
    photos=6,
    pixels=40_000_000,
    person_pixels=100_000,
    boxes=4,
    batch=3,
)
BLACK = encoded(np.zeros((64, 64, 3), np.uint8))
GOOD = encoded(pixels())
NOISE = np.random.default_rng(0).integers(0, 256, (200, 250, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def client(toy_model: MorphableModel) -> Iterator[TestClient]:
    uploads = UploadLimits(bodies=dict.fromkeys(LARGE_BODIES, 400_000))
    app = create_app(KnownAligner(toy_model), limits=LIMITS, front=FrontConfig(uploads=uploads))
    with TestClient(app) as client:
        yield client


def post(client: TestClient, files: Sequence[bytes], path: str = BATCH, **form: str) -> Any:
    return client.post(path, files=[("images", ("a.png", data)) for data in files], data=form)


def kind_of(problem: dict[str, Any]) -> str:
    assert {"type", "title", "status", "detail"} <= set(problem)
    return str(problem["type"]).removeprefix("/problems/")


def refused(response: Any) -> tuple[int, str]:
    """Status and kind of a request that was refused as a whole."""
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    return response.status_code, kind_of(response.json())


def test_each_photo_is_answered_as_if_sent_alone(client: TestClient) -> None:
    files = [
        GOOD,
        turned(pixels(), 6),
        encoded(pixels(90, 200)),
        GOOD,
        encoded(pixels(100, 100), "JPEG"),
    ]
    body = post(client, files).json()
    assert set(body) == {"photos", "model", "timing", "request_id"}
    for data, photo in zip(files, body["photos"], strict=True):
        alone = client.post("/v1/align", files={"image": data}).json()
        assert photo == {"faces": alone["faces"], "image": alone["image"]}
        assert body["model"] == alone["model"]


def test_a_bad_photo_fails_alone(client: TestClient) -> None:
    bad = {
        "empty": b"",
        "not-an-image": b"GIF89a not really",
        "damaged": encoded(pixels(), "JPEG")[:-300],
        "too-many-pixels": bomb(),
        "too-large": encoded(NOISE),
        "no-face": BLACK,
    }
    for kind, data in bad.items():
        response = post(client, [GOOD, data, GOOD])
        assert response.status_code == 200
        first, second, third = response.json()["photos"]
        assert set(second) == {"problem"}
        assert kind_of(second["problem"]) == kind
        assert first == third
        assert len(first["faces"]) == 1


def test_a_photo_that_the_aligner_refuses_fails_alone(toy_model: MorphableModel) -> None:
    class Strict(KnownAligner):
        def align_batch(self, images: Sequence[Bytes], boxes: Sequence[Boxes] | None = None) -> Any:
            if any(min(image.shape[:2]) < 16 for image in images):
                raise BadPhoto("too small")
            return super().align_batch(images, boxes)

    with TestClient(create_app(Strict(toy_model), limits=LIMITS)) as client:
        first, second, third = post(client, [GOOD, encoded(pixels(10, 10)), GOOD]).json()["photos"]
    assert kind_of(second["problem"]) == "unusable-image"
    assert first == third
    assert "faces" in first


def test_a_photo_with_an_internal_error_fails_alone(
    toy_model: MorphableModel, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(KnownAligner):
        def align_batch(self, images: Sequence[Bytes], boxes: Sequence[Boxes] | None = None) -> Any:
            if any(image.shape[:2] == (90, 200) for image in images):
                raise RuntimeError("a secret path")
            return super().align_batch(images, boxes)

    with TestClient(create_app(Broken(toy_model), limits=LIMITS)) as client:
        response = post(client, [GOOD, encoded(pixels(90, 200)), GOOD])
    first, second, third = response.json()["photos"]
    assert kind_of(second["problem"]) == "internal"
    assert first == third
    assert "faces" in first
    assert "secret" not in response.text
    assert "a secret path" in caplog.text
    assert response.headers["x-request-id"] in caplog.text


@pytest.mark.parametrize(
    "box",
    [
        "[NaN, 0, 9, 9]",
        "[0, 0, 1e999, 9]",
        "[-1e308, 0, 1e308, 9]",
        "[9, 0, 0, 9]",
        "[0, 0, 9]",
        "[0, 0, 9, null]",
        '[0, 0, 9, "x"]',
        "[0, 0, 0.01, 0.01]",
        "[-9, -9, 0, 0]",
        "[0, 0, 9000, 9]",
        "[" * 5000,
    ],
)
def test_invalid_boxes_are_refused_by_every_route(client: TestClient, box: str) -> None:
    several = post(client, [GOOD], boxes=f"[[{box}]]")
    kinds = [
        kind_of(several.json() if several.is_error else several.json()["photos"][0]["problem"])
    ]
    for path, field in (("/v1/align", "image"), (PERSON, "images")):
        response = client.post(path, files={field: GOOD}, data={"boxes": f"[{box}]"})
        assert response.status_code == 422
        kinds.append(kind_of(response.json()))
    assert kinds == ["bad-boxes"] * 3


def test_boxes_belong_to_their_photos(client: TestClient) -> None:
    boxes = [[[10, 10, 50, 60], [80, 20, 150, 110]], None, [[500, 500, 600, 600]]]
    first, second, third = post(client, [GOOD] * 3, boxes=json.dumps(boxes)).json()["photos"]
    assert [face["box"] for face in first["faces"]] == boxes[0]
    assert [face["box"] for face in second["faces"]] == [[40, 30, 120, 90]]  # found
    assert kind_of(third["problem"]) == "bad-boxes"


@pytest.mark.parametrize(
    ("count", "form", "status", "kind"),
    [
        (0, {}, 422, "bad-request"),
        (7, {}, 413, "too-many-images"),
        (2, {"boxes": "[null]"}, 422, "bad-boxes"),
        (2, {"boxes": "nonsense"}, 422, "bad-boxes"),
        (2, {"boxes": "[[1, 2, 3, 4], null]"}, 422, "bad-boxes"),
        (2, {"boxes": json.dumps([[[0, 0, 9, 9]] * 3, [[0, 0, 9, 9]] * 2])}, 422, "bad-boxes"),
    ],
)
def test_invalid_batches_are_refused(
    client: TestClient, count: int, form: dict[str, str], status: int, kind: str
) -> None:
    assert refused(post(client, [GOOD] * count, **form)) == (status, kind)


@pytest.mark.parametrize("path", [BATCH, PERSON, f"{PERSON}.glb"])
def test_more_than_a_request_may_carry(client: TestClient, path: str) -> None:
    over = encoded(NOISE[:180, :240])
    assert len(over) < LIMITS.body
    assert refused(post(client, [over] * 4, path)) == (413, "too-large")
    assert refused(post(client, [BLACK] * 7, path)) == (413, "too-many-images")
    assert (
        client.post(path, content=b"x", headers={"content-type": "text/plain"}).status_code == 422
    )
    assert post(client, [b"x"] * 1001, path).status_code == 400  # what a form may hold at all
    assert client.post(path, data={"images": "a name"}).status_code == 422


def test_a_route_for_one_photo_refuses_several(client: TestClient) -> None:
    """The rest would be dropped without a word."""
    response = client.post("/v1/align", files=[("image", GOOD), ("image", GOOD)])
    assert refused(response) == (413, "too-many-images")
    assert BATCH in response.json()["detail"]


def test_photos_of_a_request_are_aligned_in_batches(toy_model: MorphableModel) -> None:
    calls: list[int] = []

    class Counting(KnownAligner):
        def align_batch(self, images: Sequence[Bytes], boxes: Sequence[Boxes] | None = None) -> Any:
            calls.append(len(images))
            return super().align_batch(images, boxes)

    with TestClient(create_app(Counting(toy_model), limits=Limits(batch=3))) as client:
        while client.get("/readyz").status_code == 503:
            pass
        calls.clear()
        response = post(client, [GOOD] * 7)
    assert all("faces" in photo for photo in response.json()["photos"])
    assert sum(calls) == 7
    assert max(calls) <= 3


def test_meshes_on_demand(client: TestClient, toy_model: MorphableModel) -> None:
    body = post(client, [GOOD, b"", GOOD], path=f"{BATCH}?mesh=1").json()
    assert np.shape(body["triangles"])[1] == 3
    assert np.shape(body["photos"][2]["faces"][0]["mesh"]) == (len(toy_model.template), 3)


def test_one_person_has_one_identity(client: TestClient, toy_model: MorphableModel) -> None:
    body = post(client, [GOOD, b"no image", BLACK, GOOD], path=f"{PERSON}?mesh=1").json()
    first, second, third, fourth = body["photos"]
    assert body["identity"] == [2.0] * len(toy_model.identity)
    assert first["face"]["identity"] == fourth["face"]["identity"] == body["identity"]
    assert first["image"] == {"width": 160, "height": 120}
    assert kind_of(second["problem"]) == "not-an-image"
    assert third["problem"]["detail"] == "no face found"
    assert np.shape(body["rest"]) == (len(toy_model.template), 3)
    assert "rest" not in post(client, [GOOD], path=PERSON).json()


def test_boxes_of_one_person(client: TestClient) -> None:
    boxes = [[10, 10, 50, 60], [500, 500, 600, 600], None]
    first, second, third = post(client, [GOOD] * 3, path=PERSON, boxes=json.dumps(boxes)).json()[
        "photos"
    ]
    assert first["face"]["box"] == boxes[0]
    assert kind_of(second["problem"]) == "bad-boxes"
    assert third["face"]["box"] == [40, 30, 120, 90]
    assert refused(post(client, [GOOD], path=PERSON, boxes="[[[1, 2, 3, 4]]]")) == (
        422,
        "bad-boxes",
    )


@pytest.mark.parametrize(
    ("files", "status", "kind"),
    [
        ([BLACK, BLACK], 422, "no-face"),
        ([b"no image", BLACK], 422, "no-face"),
        ([b"", b"no image"], 422, "empty"),
        ([encoded(pixels(8, 8))], 422, "unusable-image"),
        ([encoded(pixels(240, 240))] * 2, 413, "too-many-pixels"),
    ],
)
def test_a_person_without_a_usable_photo_is_a_problem(
    client: TestClient, files: list[bytes], status: int, kind: str
) -> None:
    assert refused(post(client, files, path=PERSON)) == (status, kind)
    assert refused(post(client, files, path=f"{PERSON}.glb")) == (status, kind)


def test_the_person_as_glb(client: TestClient, toy_model: MorphableModel) -> None:
    response = post(client, [GOOD, BLACK, GOOD], path=f"{PERSON}.glb")
    mesh = trimesh.load(io.BytesIO(response.content), file_type="glb", force="mesh", process=False)
    body = post(client, [GOOD, BLACK, GOOD], path=f"{PERSON}?mesh=1").json()
    np.testing.assert_allclose(mesh.vertices[: len(body["rest"])], body["rest"], atol=1e-5)


def test_a_person_holds_no_small_photo(toy_model: MorphableModel) -> None:
    """The photos of a person are aligned in steps; a small photo waits for one of them."""
    begun = threading.Event()
    done: list[str] = []

    class Long(KnownAligner):
        def align_person_in_steps(
            self,
            images: Sequence[Bytes],
            boxes: Sequence[Box | None] | None = None,
            *,
            faces: int,
        ) -> Steps[PersonAlignment]:
            begun.set()
            while not done:
                time.sleep(0.01)
                yield None
            return (yield from super().align_person_in_steps(images, boxes, faces=faces))

    with TestClient(create_app(Long(toy_model))) as client, ThreadPoolExecutor(1) as thread:
        person = thread.submit(post, client, [encoded(pixels())] * 2, path=PERSON)
        assert begun.wait(30)
        small = client.post("/v1/align", files={"image": encoded(pixels())})
        done.append("small")
        assert small.status_code == 200
        assert person.result(30).status_code == 200


def test_health_while_several_photos_are_aligned(toy_model: MorphableModel) -> None:
    """Both kinds at once: neither waits for the event loop."""
    aligner = KnownAligner(toy_model)

    async def run() -> list[int]:
        transport = httpx.ASGITransport(create_app(aligner, limits=LIMITS))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            aligner.seconds = 0.1
            files = [("images", GOOD)] * 4
            slow = [
                asyncio.create_task(client.post(path, files=files))
                for path in (BATCH, PERSON, BATCH)
            ]
            await asyncio.sleep(0.05)
            alive = await asyncio.wait_for(client.get("/healthz"), 0.3)
            assert not any(task.done() for task in slow)
            return [
                alive.status_code,
                *(response.status_code for response in await asyncio.gather(*slow)),
            ]

    assert asyncio.run(run()) == [200] * 4


def last_digit(value: float) -> float:
    """One unit of the last digit with which the number is written."""
    return float(10.0 ** int(Decimal(repr(value)).as_tuple().exponent))


def assert_close(answer: Any, expected: Any) -> None:
    """Equal, but for numbers, which may differ by a unit of their last digit.

    Photos that arrive together are aligned as one batch, whose sums differ by some 1e-6 pixels
    from those of a single photo: a number may be rounded to the neighbouring digit.
    """
    if isinstance(expected, dict):
        assert answer.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(answer[key], value)
    elif isinstance(expected, list):
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, float):
        # A trailing zero isn't written: the longer of the two numbers shows the digits.
        digit = min(last_digit(float(answer)), last_digit(expected))
        assert answer == pytest.approx(expected, rel=0, abs=1.01 * digit)
    else:
        assert answer == expected


def test_the_real_aligner_answers_as_without_a_server(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    scenes = [
        make_scene(open_head, code, yaw=yaw, rng=np.random.default_rng(i))
        for i, yaw in enumerate((0.0, 30.0))
    ]
    # PNG keeps the code of positions that the oracle reads
    files = [encoded(scene.image) for scene in scenes]
    boxes = [[scene.box.x0, scene.box.y0, scene.box.x1, scene.box.y1] for scene in scenes]
    with TestClient(create_app(oracle_aligner, limits=Limits(deadline=60.0))) as client:
        many = post(
            client,
            [files[0], b"no image", files[1]],
            boxes=json.dumps([[boxes[0]], None, [boxes[1]]]),
        ).json()
        together = post(client, files, path=PERSON, boxes=json.dumps(boxes)).json()
    alone = [oracle_aligner.align(scene.image, [scene.box]) for scene in scenes]
    describer = FaceDescriber(oracle_aligner.model)
    cameras = [Intrinsics.of(*scene.image.shape[1::-1]) for scene in scenes]
    expected_faces = [
        [describer.describe(face, camera) for face in some]
        for some, camera in zip(alone, cameras, strict=True)
    ]
    assert_close([many["photos"][i]["faces"] for i in (0, 2)], expected_faces)
    expected = oracle_aligner.align_person(
        [scene.image for scene in scenes], [scene.box for scene in scenes]
    )
    assert together["identity"] == expected.identity.round(4).tolist()
    expected_person = [
        describer.describe(face, camera)
        for face, camera in zip(expected.faces, cameras, strict=True)
        if face is not None
    ]
    assert_close([photo["face"] for photo in together["photos"]], expected_person)
