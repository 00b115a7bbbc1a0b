"""Damaged files and requests of random fields: no server error, and every refusal says why.

``DFF_FUZZ`` in the environment is the number of files; every tenth adds a round of requests:
``make fuzz`` tries 3,000 files.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, strategies as st

from dff.aligner.service.app import create_app
from dff.aligner.service.http.limits import Limits
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import encoded, turned
from tests.aligner.known_aligner import KnownAligner
from tests.any_files import COMMON, image_files

FILES = int(os.environ.get("DFF_FUZZ", "200"))
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
GOOD = (
    encoded(NOISE),
    encoded(NOISE, "JPEG", quality=80),
    encoded(NOISE, "JPEG", progressive=True),
    encoded(NOISE, "WEBP"),
    turned(NOISE, 6),
)
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
    # 501: the aligner of these tests can't match
    assert answer.status_code < 500 or answer.status_code == 501, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"]
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    return int(answer.status_code)


def test_damaged_files(client: TestClient) -> None:
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


def test_requests_of_random_fields(client: TestClient) -> None:
    """Every operation of the description, with values of every kind in every place."""
    rng = random.Random(0)
    paths = client.get("/openapi.json").json()["paths"]
    operations = [(path, method) for path, some in paths.items() for method in some]
    assert len(operations) > 10
    names = ("image", "images", "boxes", "mesh", "trace", "face", "points", "other")

    def pick(count: int) -> dict[str, str]:
        return {rng.choice(names): rng.choice(VALUES) for _ in range(rng.randrange(count))}

    for _ in range(max(FILES // 10, 1)):
        for path, method in operations:
            url = path.replace("{name}", rng.choice(("aligner", "..", "%00")))
            options: dict[str, Any] = {"params": pick(3)}
            if method == "post":
                kind = rng.randrange(4)
                if kind == 0:
                    options["data"] = pick(4)
                elif kind == 1:
                    files = [(rng.choice(names), rng.choice(GOOD)) for _ in range(rng.randrange(4))]
                    options |= {"files": files, "data": pick(3)}
                elif kind == 2:
                    options["json"] = rng.choice((pick(4), [], None, {"image": [1, {}]}))
                else:
                    options["content"] = rng.randbytes(rng.randrange(300))
                    kinds = (
                        "image/png",
                        "application/json",
                        "multipart/form-data",
                        "text/plain",
                        "",
                    )
                    options["headers"] = {"Content-Type": rng.choice(kinds)}
            check(client.request(method, url, **options))
