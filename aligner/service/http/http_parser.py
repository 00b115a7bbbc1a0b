"""The HTTP parser of uvicorn servers: h11, and a limit of the time that headers may take."""

from __future__ import annotations

import asyncio
import uuid

import h11
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol

from dff.aligner.service.http.access_log import AccessLine
from dff.aligner.service.http.limits import UploadLimits
from dff.aligner.service.http.metrics import UNREADABLE
from dff.aligner.service.http.problems import MEDIA_TYPE, Problem

HEADER_SECONDS = UploadLimits.header_seconds


class TimedH11Protocol(H11Protocol):
    """One connection; status 408 when the headers of a request take too long.

    httptools, uvicorn's own choice, drops the body of a request that offers ``Upgrade: h2c``, as
    clients in Java and ``curl --http2`` do; h11 leaves the offer unanswered, as HTTP allows.
    """

    header_seconds = HEADER_SECONDS

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Hand the bytes on; wait for the rest of the headers where they are incomplete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._waiting is None:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._waiting = self.loop.call_later(self.header_seconds, self._refuse_slow_headers)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _refuse_slow_headers(self) -> None:
        self._waiting = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        self._refuse(Problem("too-slow"))

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: uvicorn would warn of each request of a client that offers HTTP/2."""

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, as uvicorn asks for, by problem details."""
        self._refuse(Problem("bad-http", msg))

    def _refuse(self, problem: Problem) -> None:
        """Answer the problem, unless an answer has begun, and close the connection.

        No front sees what is refused here, so the log and the metrics are told here, too.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            line = AccessLine(uuid.uuid4().hex)
            answer = problem.to_response(line.request_id)
            body = bytes(answer.body)
            headers = [
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", line.request_id.encode()),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=answer.status_code, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            line.status, line.sent = answer.status_code, len(body)
            line.write()
            UNREADABLE.labels(str(line.status)).inc()
        self.transport.close()


def use_timed_h11(header_seconds: float = HEADER_SECONDS) -> None:
    """Make ``TimedH11Protocol`` the parser of uvicorn servers that this process starts from now on.

    For servers that another library starts, as Ray Serve's proxies. To ``uvicorn.run`` give
    ``http=TimedH11Protocol``.
    """
    TimedH11Protocol.header_seconds = header_seconds
    name = f"{TimedH11Protocol.__module__}:{TimedH11Protocol.__name__}"
    HTTP_PROTOCOLS["auto"] = name
