"""ASGI middleware: request ids, limits of the body, HEAD and OPTIONS of every path."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
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


class HeadAndOptions:
    """Answer HEAD as GET without the body, and OPTIONS with the methods of the path.

    Load balancers ask for HEAD, browsers for OPTIONS before they send to another origin.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["type"] == "http" else ""

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        async def send_options(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                headers = Headers(raw=message["headers"])
                methods = headers.get("allow", "").split(", ")
                methods += ["HEAD"] * ("GET" in methods and "HEAD" not in methods)
                kept = Headers({"allow": ", ".join([*methods, "OPTIONS"])}).raw
                kept += [item for item in headers.raw if item[0] == b"x-request-id"]
                message = {**message, "status": 204, "headers": kept}
            elif message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        if method == "HEAD":
            await self.app({**scope, "method": "GET"}, receive, send_head)
        elif method == "OPTIONS":
            await self.app(scope, receive, send_options)
        else:
            await self.app(scope, receive, send)


def check_origins(origins: Sequence[str]) -> list[str]:
    """The ``origins`` from which web pages may use a service; raises ValueError for other text."""
    for origin in origins:
        parts = urlsplit(origin)
        is_web = parts.scheme in ("http", "https") and parts.netloc
        if origin != "*" and not (is_web and origin == f"{parts.scheme}://{parts.netloc}"):
            raise ValueError(
                f"{origin!r} is no origin: write it as https://example.org, with its port if it "
                "has one and without a path, or * for all"
            )
    return [*origins]
