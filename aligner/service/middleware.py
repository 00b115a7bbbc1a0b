"""ASGI middleware: request ids, and limits of the body."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dff.aligner.service.problems import TooLarge


class RequestGuard:
    """Give each request an id, count its bytes, and refuse a body over the limit with 413.

    ``bodies``: limits by path, where they differ from ``body``; all in bytes.
    """

    def __init__(self, app: ASGIApp, *, body: int, bodies: Mapping[str, int]) -> None:
        self.app, self.body, self.bodies = app, body, bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        received = 0
        limit = self.bodies.get(scope["path"].removeprefix(scope.get("root_path", "")), self.body)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", [])
                message["headers"] = [*headers, (b"x-request-id", request_id.encode())]
            await send(message)

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise TooLarge(limit)
            return message

        declared = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if declared.isdigit() and int(declared) > limit:
                raise TooLarge(limit)
            await self.app(scope, receive_counted, send_with_id)
        except TooLarge as error:
            refusal = error.to_problem().to_response(request_id)
            await refusal(scope, receive, send_with_id)
