"""Clients that offer HTTP/2 (``Upgrade: h2c``) are answered over HTTP/1.1."""

from __future__ import annotations

import http.client
import json
import logging
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvicorn
from uvicorn.config import HTTP_PROTOCOLS

from dff.aligner.service.app import create_app
from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.http_parser import use_timed_h11
from dff.aligner.service.http.limits import UploadLimits
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import encoded, pixels
from tests.aligner.known_aligner import KnownAligner
from tests.aligner.service.server_checks import multipart
from tests.aligner.service.uvicorn_thread import serving_with_uvicorn

H2C = {
    "Connection": "Upgrade, HTTP2-Settings",
    "Upgrade": "h2c",
    "HTTP2-Settings": "AAMAAABkAAQAAP__",
}


def post_twice(host: str, port: int) -> list[int]:
    """Statuses of two posts of a photo over one connection that both offer HTTP/2."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    statuses = []
    for _ in range(2):
        body, headers = multipart(encoded(pixels()))
        connection.request("POST", "/v1/align", body, headers | H2C)
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
    connection.close()
    return statuses


@pytest.fixture
def server(toy_model: MorphableModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Port of a uvicorn server started as Ray Serve starts its own."""
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    use_timed_h11()
    config = uvicorn.Config(create_app(KnownAligner(toy_model)), port=0, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def test_an_offer_of_http_2_is_left_unanswered(
    server: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert post_twice("127.0.0.1", server) == [200, 200]
    assert "upgrade" not in caplog.text


def test_the_connection_that_has_waited_longest_ends_for_others(toy_model: MorphableModel) -> None:
    """Whether it has sent nothing, a part of a request, or one that has been answered."""
    front = FrontConfig(uploads=UploadLimits(idle=3))
    app = create_app(KnownAligner(toy_model), front=front)
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"

    def is_open(connection: socket.socket) -> bool:
        try:
            connection.sendall(request)
            return connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        except ConnectionError:
            return False

    with serving_with_uvicorn(app, front=front) as url, ExitStack() as connections:
        host, _, port = url.removeprefix("http://").partition(":")

        def connect(sent: bytes = b"") -> socket.socket:
            connection = connections.enter_context(socket.create_connection((host, int(port))))
            connection.settimeout(30)
            connection.sendall(sent)
            return connection

        answered = connect()
        assert is_open(answered)
        silent, begun = connect(), connect(request[:20])
        time.sleep(0.2)  # until the server knows them
        assert is_open(connect())  # the fourth
        assert not is_open(answered)
        assert is_open(silent)
        begun.sendall(request[20:])
        assert begun.recv(1 << 16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("head", "status", "kind"),
    [
        ("POST /v1/align HTTP/1.1\r\nHost: a\r\nContent-Length: many", 400, "bad-http"),
        ("nonsense", 400, "bad-http"),
        ("GET / HTTP/1.1\r\n: a", 400, "bad-http"),
        ("PRI * HTTP/2.0\r\n\r\nSM", 400, "bad-http"),
        (f"GET / HTTP/1.1\r\nHost: a\r\nX: {200_000 * 'a'}", 431, "headers-too-large"),
        (f"GET / HTTP/1.1\r\nHost: a\r\nX: {66_000 * 'a'}", 431, "headers-too-large"),
        (
            "POST /v1/align HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
            "Transfer-Encoding: chunked\r\n\r\n0",
            400,
            "bad-http",
        ),
        ("GET http://[a/ HTTP/1.1\r\nHost: a", 400, "bad-http"),
    ],
    ids=[
        "content-length",
        "no-request",
        "header-without-name",
        "http-2",
        "long-header",
        "header-that-comes-at-once",
        "two-lengths",
        "target-that-is-no-address",
    ],
)
def test_what_is_no_http_is_answered_by_problem_details(
    server: int, head: str, status: int, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has one line in the log."""
    caplog.set_level(logging.INFO, logger="dff.access")
    before = read_refusals(server, status)
    with socket.create_connection(("127.0.0.1", server), timeout=30) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    top, body = answer.split(b"\r\n\r\n", 1)
    assert top.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"application/problem+json" in top
    problem = json.loads(body)
    assert problem["type"] == f"/problems/{kind}"
    assert f"x-request-id: {problem['request_id']}\r\n".encode() in top + b"\r\n"
    lines = [json.loads(record.message) for record in caplog.records if record.name == "dff.access"]
    (line,) = (line for line in lines if line["path"] != "/metrics")
    assert line["request_id"] == problem["request_id"]
    assert (line["status"], line["sent"]) == (status, len(body))
    assert read_refusals(server, status) == before + 1


@pytest.mark.parametrize("target", ["/healthz", "http://b:1/healthz?x", "HTTPS://b/healthz"])
def test_headers_of_many_packets_and_whole_addresses_are_taken(server: int, target: str) -> None:
    head = f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    head += "".join(f"X-{number}: {'a' * 1000}\r\n" for number in range(60)) + "\r\n"
    with socket.create_connection(("127.0.0.1", server), timeout=30) as connection:
        for begin in range(0, len(head), 1400):
            connection.sendall(head[begin : begin + 1400].encode())
            time.sleep(0.002)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")


def read_refusals(server: int, status: int) -> float:
    """How many requests the parser has refused by this status."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{server}/metrics").read().decode()
    known = f'^dff_unreadable_requests_total{{status="{status}"}} (.*)$'
    found = re.search(known, text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_that_asks_for_http_2_is_answered(server: int, tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    photo.write_bytes(encoded(pixels()))
    url = f"http://127.0.0.1:{server}/v1/align"
    command = ["curl", "--http2", "--silent", "--form", f"image=@{photo}", url]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.startswith('{"faces":'), answer.stdout
