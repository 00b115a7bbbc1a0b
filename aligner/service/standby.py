"""What answers while a replica is replaced: requests wait for the next one."""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dff.aligner.service.http.server import DRAIN

CHECK_EVERY = 0.05  # seconds
# headers of a connection, and not of a request or an answer
OF_CONNECTION = frozenset(("connection", "content-length", "date", "transfer-encoding"))


class Standby:
    """An ASGI application for a front, which makes the problem ``not-ready`` of its status 404.

    Requests wait, at most ``patience`` seconds, until a replica and nothing else answers at
    ``address``, which ``replaced`` tells. They are sent on to it then. The front tells meanwhile
    that the server is not healthy.
    """

    def __init__(
        self, address: tuple[str, int], replaced: Callable[[], bool], *, patience: float = DRAIN
    ) -> None:
        self._address, self._replaced, self._patience = address, replaced, patience
        self._nothing = Starlette()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = None
        if scope["type"] == "http":
            request = Request(scope, receive)
            if await self._wait():
                body = await request.body()
                with suppress(OSError, http.client.HTTPException):  # it is gone again
                    answer = await asyncio.to_thread(self._send_on, request, body)
        await (answer or self._nothing)(scope, receive, send)

    async def _wait(self) -> bool:
        """Whether there is a replica in time."""
        end = time.monotonic() + self._patience
        while not (replaced := self._replaced()) and time.monotonic() < end:
            await asyncio.sleep(CHECK_EVERY)
        return replaced

    def _send_on(self, request: Request, body: bytes) -> Response:
        connection = http.client.HTTPConnection(*self._address, timeout=self._patience)
        try:
            target = request.scope["raw_path"].decode("ascii")
            if request.url.query:
                target += f"?{request.url.query}"
            headers = {k: v for k, v in request.headers.items() if k not in OF_CONNECTION}
            connection.request(request.method, target, body, headers)
            answer = connection.getresponse()
            sent = {k: v for k, v in answer.getheaders() if k.lower() not in OF_CONNECTION}
            return Response(answer.read(), answer.status, sent)
        finally:
            connection.close()
