"""Clients of the service: the same alignments as in process, and patience with a busy server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import dff
from dff.aligner.alignment import Alignment
from dff.aligner.service.app import create_app
from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.keys import hash_keys
from dff.face.errors import BadPhoto, ServiceError
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import encoded, pixels
from tests.aligner.known_aligner import WIDE, KnownAligner
from tests.aligner.service.uvicorn_thread import serving_with_uvicorn

KEY = "a key of the team"


@pytest.fixture(scope="module")
def url(toy_model: MorphableModel) -> Iterator[str]:
    front = FrontConfig(keys=hash_keys([KEY]))
    app = create_app(KnownAligner(toy_model), front=front)
    with serving_with_uvicorn(app, front=front) as url:
        yield url


def test_warnings_of_the_server_are_logged(
    url: str, toy_model: MorphableModel, caplog: pytest.LogCaptureFixture
) -> None:
    with dff.Client(url, key=KEY, model=toy_model) as client:
        client.align(pixels())
        client.align(pixels(60, WIDE + 1))
    (message,) = [record.message for record in caplog.records if record.name == "dff.client"]
    assert str(WIDE) in message


def check_same(one: Alignment, other: Alignment) -> None:
    assert (one.box, one.failed, one.model) == (other.box, other.failed, other.model)
    for name in ("landmarks_2d", "landmarks_3d", "visibility", "vertices", "vertices_px"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=0.02)
    np.testing.assert_allclose(one.pose.matrix, other.pose.matrix, atol=1e-5)


def test_both_clients_answer_as_the_aligner(
    url: str, toy_model: MorphableModel, tmp_path: Path
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(pixels()))
    boxes = [Box(20, 20, 90, 100), Box(1, 2, 30, 40)]
    aligner = KnownAligner(toy_model)

    async def align_both() -> list[list[Alignment]]:
        async with dff.AsyncClient(url, key=KEY, model=toy_model) as client:
            return await client.align_batch([file, pixels()], [boxes, None])

    with dff.Client(url, key=KEY, model=toy_model) as client:
        found = [*client.align_batch([file, pixels()], [boxes, None]), client.align(str(file))]
        assert client.align(np.zeros((64, 64, 3), np.uint8)) == []
    expected = [aligner.align(pixels(), boxes), *[aligner.align(pixels())] * 2]
    for some, others in zip(found + asyncio.run(align_both()), expected + expected, strict=False):
        for one, other in zip(some, others, strict=True):
            check_same(one, other)


def test_errors_are_those_of_the_aligner(url: str, toy_model: MorphableModel) -> None:
    with dff.Client(url, key=KEY, model=toy_model) as client:
        with pytest.raises(BadPhoto, match="not an image"):
            client.align(b"no image")
        with pytest.raises(BadPhoto, match="can't read nowhere"):
            client.align("nowhere.jpg")
        with pytest.raises(ValueError, match="nothing to match: give points, landmarks or"):
            client.match(encoded(pixels()), [], encoded(pixels()))
        with pytest.raises(ValueError, match="outside the image"):
            client.align(pixels(), [Box(900, 900, 990, 990)])
    with dff.Client(url) as client, pytest.raises(ServiceError, match="Send a key") as refused:
        client.align(pixels())
    assert (refused.value.status, refused.value.kind) == (401, "unauthorized")
    with (
        dff.Client("http://127.0.0.1:9", patience=0) as client,
        pytest.raises(ServiceError, match=r"no answer from http://127\.0\.0\.1:9"),
    ):
        client.align(pixels())


def test_a_client_needs_no_network() -> None:
    """Machines that only ask a server load no torch, and start quickly."""
    script = "import sys, dff; dff.Client; print(sorted({'torch', 'cv2', 'ray'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def busy(times: int, calls: list[int], **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    """A server that is busy so many ``times`` and then finds no face."""

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(len(request.read()))
        if len(calls) <= times:
            return httpx.Response(503 if len(calls) % 2 else 429, headers=headers)
        return httpx.Response(422, json={"type": "/problems/no-face", "detail": "none"})

    return answer


def test_a_busy_server_is_asked_again() -> None:
    """After the seconds that it says, with the whole photo, and not for ever."""
    calls: list[int] = []
    transport = httpx.MockTransport(busy(3, calls, **{"Retry-After": "0"}))
    with dff.Client("http://here", transport=transport) as client:
        assert client.align(pixels()) == []
    assert len(calls) == 4
    assert len(set(calls)) == 1

    async def align() -> list[Alignment]:
        transport = httpx.MockTransport(busy(3, calls, **{"Retry-After": "0"}))
        async with dff.AsyncClient("http://here", transport=transport) as client:
            return await client.align(pixels())

    calls.clear()
    assert asyncio.run(align()) == []
    assert len(calls) == 4
    calls.clear()
    transport = httpx.MockTransport(busy(9, calls, **{"Retry-After": "3600"}))
    with (
        dff.Client("http://here", transport=transport, patience=5) as client,
        pytest.raises(ServiceError),
    ):
        client.align(pixels())
    assert len(calls) == 1
