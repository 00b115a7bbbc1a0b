"""One line of log for each request, wherever it breaks."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dff.aligner.service.app import create_app
from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.limits import UploadLimits
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import KnownAligner
from tests.aligner.service.server_checks import connection
from tests.aligner.service.uvicorn_thread import serving_with_uvicorn

PATIENCE = 1.0  # seconds of the front for headers and for each chunk
FRONT = FrontConfig(
    uploads=UploadLimits(chunk_seconds=PATIENCE, header_seconds=PATIENCE, body=2000, bodies={})
)
POST = b"POST /v1/align HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
SOCKET = b"GET /v1/track HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
END, BROKEN, GOOD = b"\r\n", b"zz\r\n", b"5\r\nabcde\r\n"
PAUSE = 0.1  # seconds between two parts of a request


@pytest.fixture(scope="module")
def url(toy_model: MorphableModel) -> Iterator[str]:
    with serving_with_uvicorn(create_app(KnownAligner(toy_model), front=FRONT), front=FRONT) as url:
        yield url


@pytest.mark.parametrize(
    ("parts", "method", "status"),
    [
        ([CHUNKED + END + BROKEN], "POST", 400),
        ([CHUNKED + b"X-Request-ID: mine\r\n" + END + BROKEN], "POST", 400),
        ([CHUNKED + END, GOOD, BROKEN], "POST", 400),
        ([b"POST /metrics" + CHUNKED[14:] + END + BROKEN], "POST", 400),
        ([CHUNKED + END + b"fff\r\n" + bytes(4095) + END, BROKEN], "POST", 413),
        ([POST + b"Content-Length: 4000\r\n" + END + b"abc"], "POST", 413),
        ([CHUNKED + END + GOOD], "POST", 408),
        ([b"POST /v1/al"], "", 408),
        ([b"nonsense\r\n" + END], "", 400),
        ([b"BREW /v1/align HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + END], "BREW", 405),
        ([SOCKET + VERSION + END], "GET", 400),
        ([SOCKET + VERSION + KEY[:-6] + END + END], "GET", 400),
        ([SOCKET + b"Sec-WebSocket-Version: 3\r\n" + KEY + END], "GET", 400),
        ([b"POST" + SOCKET[3:] + VERSION + KEY + END], "POST", 400),
        ([SOCKET + VERSION + KEY + b"X: " + b"a" * 9000 + END + END], "GET", 400),
        ([SOCKET + VERSION + KEY + b"X: a\r\n" * 200 + END], "GET", 400),
    ],
    ids=[
        "broken-chunk",
        "broken-chunk-with-id",
        "second-chunk-broken",
        "broken-chunk-to-metrics",
        "too-large-then-broken",
        "too-large",
        "slow-body",
        "slow-headers",
        "no-http",
        "unknown-method",
        "socket-without-key",
        "socket-with-short-key",
        "socket-of-old-version",
        "socket-by-post",
        "socket-with-long-header",
        "socket-with-many-headers",
    ],
)
def test_a_request_that_breaks_has_one_line_with_the_status_and_id_of_its_answer(
    parts: list[bytes], method: str, status: int, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dff.access")
    answer = b""
    with connection(url, parts[0]) as client:
        for part in parts[1:]:
            time.sleep(PAUSE)
            client.sendall(part)
        while data := client.recv(1 << 16):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.search(rb"\r\nx-request-id: (\S+)", head)
    assert found
    (line,) = wait_for_lines(caplog)
    assert (line["method"], line["status"], line["sent"]) == (method, status, len(body))
    assert int(head.split()[1]) == status
    assert b"application/problem+json" in head
    assert line["request_id"] == found[1].decode() == json.loads(body)["request_id"]
    assert (line["request_id"] == "mine") == (b"mine" in parts[0])
    assert (line["seconds"] > 0.9 * PATIENCE) == (status == 408)
    assert "Exception" not in caplog.text


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"POST /v1/al", "too-slow"),
        (b"nonsense\r\n" + END, "bad-http"),
        (POST + b"X: " + bytes(70_000), "headers-too-large"),
        (CHUNKED + END + BROKEN, "bad-http"),
        (SOCKET + VERSION + END, "bad-http"),
        (CHUNKED + END + GOOD, "too-slow"),
    ],
)
def test_problems_behind_a_proxy_have_its_prefix(
    data: bytes, kind: str, toy_model: MorphableModel
) -> None:
    front = replace(FRONT, root_path="/faces")
    app = create_app(KnownAligner(toy_model), front=front)
    with serving_with_uvicorn(app, front=front) as url, connection(url, data) as client:
        answer = b""
        while some := client.recv(1 << 16):
            answer += some
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert problem["type"] == f"/faces/problems/{kind}"


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("data", [CHUNKED + END + GOOD, POST + b"Content-Length: 9\r\n" + END])
def test_a_client_that_leaves_has_one_line(
    data: bytes, url: str, caplog: pytest.LogCaptureFixture, *, half: bool
) -> None:
    caplog.set_level(logging.INFO, logger="dff.access")
    with connection(url, data) as client:
        time.sleep(PAUSE)
        if half:
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1 << 16) == b""
    (line,) = wait_for_lines(caplog)
    assert (line["method"], line["status"], line["sent"]) == ("POST", 499, 0)


def wait_for_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """The lines of the request that ends now; more than one where there are more."""
    end = time.monotonic() + 20
    while not (lines := _read_lines(caplog)) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(2 * PAUSE)  # further ones would come
    assert lines
    return _read_lines(caplog)


def _read_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(one.message) for one in caplog.records if one.name == "dff.access"]
