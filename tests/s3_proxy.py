"""An HTTP proxy before an S3 server that relays requests as they are, and spoils chosen ones."""

from __future__ import annotations

import http.client
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("503", "500", "409", "stall", "truncate", "reset", "lost", "duplicate")
"""What can happen to a request.

* 503, 500, 409: it is answered so, and not relayed (409 only for writes);
* stall: it is answered by 500 after ``Proxy.stall`` seconds;
* truncate: half of the answer's body arrives, then the connection is closed;
* reset: the connection is reset before it is relayed;
* lost: it is relayed, and the connection is reset instead of the answer;
* duplicate: it is relayed twice, and answered by the second answer.
"""
_CODES = {"503": "SlowDown", "500": "InternalError", "409": "OperationAborted"}


@dataclass
class Proxy:
    """A running proxy."""

    upstream: str  # URL
    url: str = ""
    choose: Callable[[int, str], str] = lambda number, method: ""
    """The fault of the request of this number and method, or nothing."""
    stall: float = 2.0  # seconds
    away: threading.Event = field(default_factory=threading.Event)
    """While it is set, connections are reset: the server is not there."""
    spoilt: list[str] = field(default_factory=list)  # faults, in their order
    number: Iterator[int] = field(default_factory=itertools.count)


def every(period: int, faults: Sequence[str] = FAULTS) -> Callable[[int, str], str]:
    """One request of ``period`` meets one of ``faults``, each in turn."""

    def choose(number: int, method: str) -> str:
        return faults[number // period % len(faults)] if number % period == period - 1 else ""

    return choose


@contextmanager
def relay_to(upstream: str, *, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A proxy that listens on ``host``. Requests keep their Host, which is part of a signature."""
    proxy = Proxy(upstream)

    class Handler(_Handler):
        relay = proxy

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    proxy.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    relay: Proxy

    def handle_one_request(self) -> None:
        with suppress(OSError):
            super().handle_one_request()
            return
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        proxy = self.relay
        body = self._read_body()
        if proxy.away.is_set():
            self._reset()
            return
        fault = proxy.choose(next(proxy.number), self.command)
        if fault == "409" and self.command != "PUT":
            fault = "503"
        if fault:
            proxy.spoilt.append(fault)
        if fault in _CODES:
            self._refuse(int(fault), _CODES[fault])
        elif fault == "stall":
            time.sleep(proxy.stall)
            self._refuse(500, "InternalError")
        elif fault == "reset":
            self._reset()
        else:
            answer, content = self._ask(body)
            if fault == "duplicate":
                answer, content = self._ask(body)
            if fault == "lost":
                self._reset()
            else:
                self._answer(answer, content, cut=fault == "truncate")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _read_body(self) -> bytes:
        """As it is to be sent on: chunks, where the client does not know the length, as one."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        body = b"".join(parts)
        return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        parts = urlsplit(self.relay.upstream)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.putheader("Connection", "close")
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _answer(self, answer: http.client.HTTPResponse, content: bytes, *, cut: bool) -> None:
        self.send_response_only(answer.status, answer.reason)
        told = {name.lower() for name, _ in answer.getheaders()}
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if "content-length" not in told and answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut and content:
            self._reset()

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>an injected fault</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """Close the connection as a machine does that has lost it."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
