"""ASGI middleware: HEAD and OPTIONS of every path."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


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

        refused = False

        async def send_options(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 405:
                refused = True
                headers = Headers(raw=message["headers"])
                methods = headers.get("allow", "").split(", ")
                methods += ["HEAD"] * ("GET" in methods and "HEAD" not in methods)
                kept = Headers({"allow": ", ".join([*methods, "OPTIONS"])}).raw
                message = {**message, "status": 204, "headers": kept}
            elif message["type"] == "http.response.body" and refused:
                message = {**message, "body": b""}
            await send(message)

        if method == "HEAD":
            await self.app({**scope, "method": "GET"}, receive, send_head)
        elif method == "OPTIONS":
            await self.app(scope, receive, send_options)
        else:
            await self.app(scope, receive, send)
