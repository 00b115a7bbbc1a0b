"""Clients that ask for more than they read."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.limits import UploadLimits
from tests.aligner.service.uvicorn_thread import serving_with_uvicorn

SECONDS, RATE = 0.5, 1 << 20
FRONT = FrontConfig(uploads=UploadLimits(chunk_seconds=SECONDS, rate=RATE))
ANSWER = bytes(8 << 20)  # more than the kernel takes
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def answer_at_length(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await Response(ANSWER)(scope, receive, send)


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A connection that takes little at a time."""
    parts = urlsplit(url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.settimeout(30)
        client.connect((parts.hostname, parts.port))
        yield client


def test_a_client_that_reads_nothing_is_left() -> None:
    with serving_with_uvicorn(answer_at_length, front=FRONT) as url, connected(url) as client:
        client.sendall(REQUEST)
        time.sleep(4 * SECONDS)
        received = 0
        with suppress(ConnectionResetError):
            while data := client.recv(1 << 16):
                received += len(data)
        assert received < len(ANSWER)


def test_a_client_that_reads_slowly_enough_has_its_answer() -> None:
    with serving_with_uvicorn(answer_at_length, front=FRONT) as url, connected(url) as client:
        client.sendall(REQUEST)
        received, began = 0, time.monotonic()
        while data := client.recv(1 << 16):
            received += len(data)
            time.sleep(max(0.0, began + received / (3 * RATE) - time.monotonic()))
        assert time.monotonic() - began > 3 * SECONDS
        assert received > len(ANSWER)


def test_a_web_socket_that_reads_nothing_is_left() -> None:
    ended = Event()

    async def tell_much(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return
        session = WebSocket(scope, receive, send)
        await session.accept()
        try:
            while True:
                await session.send_bytes(ANSWER)
        except WebSocketDisconnect:
            ended.set()

    with serving_with_uvicorn(tell_much, front=FRONT) as url, connected(url) as client:
        handshake = ClientProtocol(parse_uri(url.replace("http", "ws")))
        handshake.send_request(handshake.connect())
        client.sendall(b"".join(handshake.data_to_send()))
        assert ended.wait(30)
