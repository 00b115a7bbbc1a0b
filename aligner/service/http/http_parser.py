"""The HTTP parser of uvicorn servers: h11, and a limit of the time that headers may take."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
import uuid
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlsplit

import h11
from starlette.datastructures import Headers
from starlette.types import Scope
from uvicorn.config import HTTP_PROTOCOLS, WS_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol

from dff.aligner.service.http.access_log import AccessLine
from dff.aligner.service.http.limits import UploadLimits
from dff.aligner.service.http.metrics import UNREADABLE
from dff.aligner.service.http.problems import MEDIA_TYPE, Problem
from dff.aligner.service.http.request_id import ensure_request_id
from dff.aligner.service.http.slow_readers import EndsSlowReaders, SocketProtocol

HEADER_SECONDS = UploadLimits.header_seconds
LINGER = 1.0  # seconds for which a refused connection is still read
REFUSED = "refused"  # in a scope's state: status and bytes of the answer that is given here
HTTP_2 = b"PRI * HTTP/2.0\r\n"  # how a connection begins that takes HTTP/2 for granted
HEADER_BYTES = 64 << 10  # of a request's line and headers, at most
# of the headers of a WebSocket handshake, and bytes of one, at most
WEBSOCKET_HEADERS, WEBSOCKET_HEADER = 100, 8000


class StrictConnection(h11.Connection):
    """The parser of one connection: refuses long headers, and bodies of two lengths.

    h11 alone limits only what comes in several packets. A ``Content-Length`` beside a
    ``Transfer-Encoding`` may hide a second request from a proxy (RFC 9112, section 6.3).
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=HEADER_BYTES)

    def next_event(self) -> Any:
        """As h11's, with a path as the target of each request."""
        event = super().next_event()
        if not isinstance(event, h11.Request):
            return event
        size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
        if size > HEADER_BYTES:
            too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise h11.RemoteProtocolError("long headers", error_status_hint=too_large)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
            raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        return _take_origin(event)


def _take_origin(request: h11.Request) -> h11.Request:
    """A request whose target is an address, as for proxies, with its path alone (RFC 9112, 3.2.2).

    The host of the address stands for that of the headers.
    """
    if not request.target.lower().startswith((b"http://", b"https://")):
        return request
    try:
        address = urlsplit(request.target.decode("ascii"))
    except ValueError as error:
        raise h11.RemoteProtocolError("its target is no address") from error
    target = (address.path or "/") + (f"?{address.query}" if address.query else "")
    host = address.netloc.encode()
    return h11.Request(
        method=request.method,
        target=target.encode(),
        headers=[(name, host if name == b"host" else value) for name, value in request.headers],
        http_version=request.http_version,
    )


class IdleConnections:
    """Connections that wait for a request, ``most`` at most; of more the oldest is ended."""

    def __init__(self, most: int = UploadLimits.idle) -> None:
        self._most = most
        self._waiting: dict[TimedH11Protocol, None] = {}  # in the order in which they began

    def add(self, connection: TimedH11Protocol) -> None:
        """One that begins to wait."""
        self.remove(connection)
        self._waiting[connection] = None
        if len(self._waiting) > self._most:
            longest = next(iter(self._waiting))
            self.remove(longest)
            longest.transport.abort()

    def remove(self, connection: TimedH11Protocol) -> None:
        """One that waits no longer, or is closed."""
        self._waiting.pop(connection, None)


class TimedH11Protocol(EndsSlowReaders, H11Protocol):
    """One connection; status 408 when the headers of a request take too long.

    httptools, uvicorn's own choice, drops the body of a request that offers ``Upgrade: h2c``, as
    clients in Java and ``curl --http2`` do; h11 leaves the offer unanswered, as HTTP allows.
    """

    header_seconds = HEADER_SECONDS
    prefix = ""  # of the service's paths, in the types of problems
    idle = IdleConnections()

    _waiting: asyncio.TimerHandle | None = None
    _since: float | None = None  # when that began, seconds of the clock
    _ending: asyncio.TimerHandle | None = None  # of a connection that is refused

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = StrictConnection()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Hand the bytes on; wait for the rest of the headers where they are incomplete.

        To h11, the beginning of HTTP/2 would be a request and then what is no HTTP.
        """
        if self._ending is not None:
            return
        if self.cycle is None and data.startswith(HTTP_2):
            self._refuse(Problem("bad-http", "this is HTTP/2: the server speaks HTTP/1.1"))
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._waiting is None:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        if self._ending is not None:
            self._ending.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request, for some seconds, as long as few others do."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.idle.add(self)

    def _wait_for_headers(self) -> None:
        self.idle.add(self)
        self._since = time.time()
        self._waiting = self.loop.call_later(self.header_seconds, self._refuse_slow_headers)

    def _stop_waiting(self) -> None:
        self.idle.remove(self)
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = self._since = None

    def _refuse_slow_headers(self) -> None:
        self._waiting = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        self._refuse(Problem("too-slow"))

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: uvicorn would warn of each request of a client that offers HTTP/2."""

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Let the WebSocket library answer the handshakes that it accepts.

        It would refuse others without problem details and unseen by the front.
        """
        if fault := find_handshake_fault(event):
            problem = Problem("bad-http", f"no WebSocket handshake: {fault}")
            self._refuse(problem, cast(Scope, self.scope))
        else:
            super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, as uvicorn asks for, by problem details."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            fault = sys.exception()
            hint = fault.error_status_hint if isinstance(fault, h11.RemoteProtocolError) else None
            is_long = hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse(Problem("headers-too-large") if is_long else Problem("bad-http", msg))
            return
        if not cycle.response_started:
            request_id = ensure_request_id(cast(Scope, cycle.scope))
            cycle.scope["state"][REFUSED] = self._answer(Problem("bad-http", msg), request_id)
        # the front is told that the client has left, and writes the request's line
        cycle.disconnected = True
        cycle.message_event.set()
        self._end()

    def _refuse(self, problem: Problem, scope: Scope | None = None) -> None:
        """Answer the problem, unless an answer has been given, and close the connection.

        No front sees what is refused here, so the log and the metrics are told here, too.
        ``scope``: of the request, where it could be read.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            if scope is None:
                line = AccessLine(uuid.uuid4().hex, started=self._since or time.time())
            else:
                line = AccessLine.of(scope, ensure_request_id(scope))
            line.status, line.sent = self._answer(problem, line.request_id)
            line.write()
            UNREADABLE.labels(str(line.status)).inc()
        self._end()

    def _end(self) -> None:
        """Close the connection, but for a moment read on what the client still sends.

        Bytes that are not read would reset it, and the client could lose the answer.
        """
        self._stop_waiting()
        if not self.transport.can_write_eof():
            self.transport.close()
        elif self._ending is None and not self.transport.is_closing():
            self.transport.write_eof()
            self._ending = self.loop.call_later(LINGER, self.transport.close)

    def _answer(self, problem: Problem, request_id: str) -> tuple[int, int]:
        """Send the problem; its status, and the bytes of the answer's body."""
        answer = problem.to_response(request_id, self.prefix)
        body = bytes(answer.body)
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=answer.status_code, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        return answer.status_code, len(body)


def find_handshake_fault(request: h11.Request) -> str:
    """What is wrong with a WebSocket handshake (RFC 6455, section 4.2.1); "" for nothing."""
    headers = Headers(raw=[*request.headers])
    keys, versions = headers.getlist("sec-websocket-key"), headers.getlist("sec-websocket-version")
    try:
        is_key = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except ValueError:  # also binascii.Error
        is_key = False
    if request.method != b"GET":
        return f"its method is {request.method.decode()}, not GET"
    if versions != ["13"]:
        return "its Sec-WebSocket-Version is not 13"
    if not is_key:
        return "its Sec-WebSocket-Key is not one of 16 bytes"
    longest = max(len(name) + len(value) for name, value in request.headers)
    longest = max(longest, len(request.target))
    if len(headers.raw) > WEBSOCKET_HEADERS or longest > WEBSOCKET_HEADER:
        return f"it has more than {WEBSOCKET_HEADERS} headers, or one of {WEBSOCKET_HEADER} bytes"
    return ""


def use_timed_h11(header_seconds: float = HEADER_SECONDS, prefix: str = "") -> None:
    """Make ``TimedH11Protocol`` the parser of uvicorn servers that this process starts from now on.

    And ``SocketProtocol`` that of their web sockets. For servers that another library starts, as
    Ray Serve's proxies. To ``uvicorn.run`` give ``http=TimedH11Protocol`` and
    ``ws=SocketProtocol``.
    """
    TimedH11Protocol.header_seconds, TimedH11Protocol.prefix = header_seconds, prefix
    name = f"{TimedH11Protocol.__module__}:{TimedH11Protocol.__name__}"
    HTTP_PROTOCOLS["auto"] = name
    WS_PROTOCOLS["auto"] = f"{SocketProtocol.__module__}:{SocketProtocol.__name__}"
