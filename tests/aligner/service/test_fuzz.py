"""Damaged files and requests of random fields: no server error, and every refusal says why.

The files go to an aligner that knows its answers, the requests to the shipped one, which matches.

``DFF_FUZZ`` in the environment is the number of files; each 50 add a round of requests:
``make fuzz`` tries 3,000 files.
"""

from __future__ import annotations

import base64
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, strategies as st
from PIL import Image

from dff.aligner.load import load_aligner
from dff.aligner.preset import AlignPreset
from dff.aligner.service.app import create_app
from dff.aligner.service.http.limits import Limits
from dff.aligner.service.routes.pages import FILES as PAGE_FILES
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import encoded, turned
from tests.aligner.known_aligner import KnownAligner
from tests.any_files import COMMON, image_files

FILES = int(os.environ.get("DFF_FUZZ", "100"))
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
PORTRAIT = np.asarray(Image.open(PAGE_FILES["sample.jpg"]))[56:216, 145:305]
GOOD = (
    encoded(NOISE),
    encoded(NOISE, "JPEG", quality=80),
    encoded(NOISE, "JPEG", progressive=True),
    encoded(NOISE, "WEBP"),
    turned(NOISE, 6),
)
# values of fields, the first one right on some route, beside those that fit none
FITTING = {
    "points": ("[[80, 75]]", "[[0.5, 0.5], [1000, 3]]", "[]"),
    "landmarks": ('["nose_tip", "chin"]', "5,wflw98,irises", "dense478", "none"),
    "vertices": ("[12, 40]", "[-1]", "[123456789]"),
    "boxes": ("[[45, 40, 115, 110]]", "[null]", "[[[45, 40, 115, 110]]]"),
    "box": ("[45, 40, 115, 110]",),
    "box_a": ("[45, 40, 115, 110]", "[500, 500, 900, 900]"),
    "box_b": ("[45, 40, 115, 110]", "[-5, -5, 1e9, 1e9]"),
    "focal_px": ("300", "0", "1e300"),
    "weights": ("default", "other"),
    "heat_map": ("1", "true"),
    "mesh": ("1",),
    "trace": ("1",),
    "face": ("0", "7"),
}
VALUES = ("", "null", "[]", "[[1,2,30,40]]", "1", "-1", "nan", "[[NaN]]", "\x00", "💥", "9" * 400)

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(scope="module")
def client(toy_model: MorphableModel) -> Iterator[TestClient]:
    app = create_app(KnownAligner(toy_model), limits=Limits(deadline=60.0))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def damage(data: bytes, rng: random.Random) -> bytes:
    """A file with bytes changed, cut out, repeated or lost at its end."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not out:
            break
        start = rng.randrange(len(out))
        end = start + rng.choice((1, 2, 4, 64))
        match rng.randrange(4):
            case 0:
                out[start:end] = rng.randbytes(len(out[start:end]))
            case 1:
                del out[start:end]
            case 2:
                out[start:start] = out[start:end]
            case _:
                del out[max(start, 1) :]
    return bytes(out) or b"\0"


def check(answer: Any) -> int:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"]
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    return int(answer.status_code)


def test_damaged_files_are_answered_or_named(client: TestClient) -> None:
    rng = random.Random(0)
    statuses = Counter(
        check(client.post("/v1/align", files={"image": damage(rng.choice(GOOD), rng)}))
        for _ in range(FILES)
    )
    assert {200, 415, 422} <= set(statuses)  # some can still be read


@COMMON(max_examples=150, deadline=None)
@given(data=image_files(), declared=st.sampled_from(["image/jpeg", "image/png", "", "a/b"]))
def test_any_file_is_answered_or_a_problem(client: TestClient, data: bytes, declared: str) -> None:
    answer = client.post("/v1/align", files={"image": ("x", data, declared)})
    assert check(answer) in (200, 413, 415, 422)


@dataclass(frozen=True)
class Operation:
    """A method of a path, and the names of its fields, as OpenAPI describes them."""

    path: str
    method: str
    files: tuple[str, ...]  # required ones
    texts: tuple[str, ...]  # of the form and the query

    @property
    def names(self) -> tuple[str, ...]:
        return self.files + self.texts


def read_operations(schema: Any) -> list[Operation]:
    """All operations, and HEAD and OPTIONS of each path."""
    found = []
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            body = about.get("requestBody", {}).get("content", {}).get("application/json", {})
            form = body.get("schema", {"properties": {}, "required": []})
            query = [each["name"] for each in about.get("parameters", ()) if each["in"] == "query"]
            texts = [name for name in form["properties"] if name not in form["required"]]
            found.append(Operation(path, method, tuple(form["required"]), (*texts, *query)))
        found += [Operation(path, method, (), ()) for method in ("head", "options")]
    return found


@pytest.fixture(scope="module")
def matching() -> Iterator[TestClient]:
    """The service with the shipped weights."""
    aligner = load_aligner(preset=AlignPreset.fast).with_quick_search()
    limits = Limits(deadline=60.0, slowdown=60.0)
    app = create_app(aligner, limits=limits, also={"other": aligner})
    with TestClient(app, raise_server_exceptions=False) as client:
        while client.get("/readyz").status_code == 503:
            pass
        yield client


class RandomRequests:
    """Requests of an operation; ``every``: names of the fields of all of them."""

    def __init__(self, rng: random.Random, every: Sequence[str], photos: Sequence[bytes]) -> None:
        self._rng, self._every, self._photos = rng, every, photos

    def build(self, operation: Operation) -> dict[str, Any]:
        """Of three requests one is as it should be, unless its values do not go together."""
        good = self._rng.random() < 1 / 3
        options: dict[str, Any] = {"params": {} if good else self._pick_fields(operation, good)}
        if operation.method == "post":
            options |= self._build_body(operation, good)
        return options

    def _build_body(self, operation: Operation, good: bool) -> dict[str, Any]:
        rng, files = self._rng, self._pick_files(operation, good)
        fields = self._pick_fields(operation, good)
        match rng.randrange(1, 2 if good else 9):
            case 1 | 2 | 3 | 4 | 5:
                return {"files": files, "data": fields}
            case 6:
                named = {name: base64.b64encode(data).decode() for name, data in files}
                return {"json": rng.choice((named | fields, [], None, {"image": [1, {}]}))}
            case 7:
                kinds = "image/png", "application/json", "multipart/form-data", "text/plain", ""
                headers = {"Content-Type": rng.choice(kinds)}
                return {"content": rng.randbytes(rng.randrange(300)), "headers": headers}
            case _:
                return {"data": fields}

    def _pick_files(self, operation: Operation, good: bool) -> list[tuple[str, bytes]]:
        rng = self._rng
        if good:
            return [(name, self._photos[0]) for name in operation.files]
        names = operation.files if rng.random() < 0.7 else rng.choices(self._every, k=2)
        photos = [rng.choice(self._photos) for _ in names]
        damaged = [damage(photo, rng) if rng.random() < 0.3 else photo for photo in photos]
        return [*zip(names, damaged, strict=True)]

    def _pick_fields(self, operation: Operation, good: bool) -> dict[str, str]:
        rng = self._rng
        names = [*operation.texts] if good or rng.random() < 0.8 else self._every
        some = rng.sample(names, min(rng.randrange(4), len(names)))
        return {name: self._pick_value(name, good) for name in some}

    def _pick_value(self, name: str, good: bool) -> str:
        if good and name in FITTING:
            return FITTING[name][0]
        return self._rng.choice(FITTING.get(name, VALUES) if self._rng.random() < 0.6 else VALUES)


def test_requests_of_random_fields(matching: TestClient) -> None:
    """Every operation of the description, with values of every kind in every place."""
    operations = read_operations(matching.get("/openapi.json").json())
    every = sorted({name for each in operations for name in each.names} | {"other"})
    assert {"image_a", "vertices", "box_b", "focal_px", "weights", "heat_map"} <= set(every)
    rng = random.Random(0)
    requests = RandomRequests(rng, every, (encoded(PORTRAIT), *GOOD))
    answered: Counter[tuple[str, int]] = Counter()
    for _ in range(max(FILES // 50, 1)):
        for operation in operations:
            url = operation.path.replace("{name}", rng.choice(("aligner", "..", "%00")))
            answer = matching.request(operation.method, url, **requests.build(operation))
            answered[operation.path, check(answer)] += 1
    if FILES >= 1000:
        for operation in operations:
            assert answered[operation.path, 200], operation.path
