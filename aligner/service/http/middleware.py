"""ASGI middleware: HEAD and OPTIONS of every path."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAndOptions:
    """Answer HEAD as GET without the body, and OPTIONS with the methods of the path.

    Load balancers ask for HEAD, browsers for OPTIONS before they send to another origin. Answers to
    other methods that a path does not have name these two as well.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["type"] == "http" else ""
        refused = False  # whether the path does not have the method

        async def send_known(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 405:
                refused = True
                headers = MutableHeaders(scope=message)
                headers["allow"] = _complete(headers["allow"])
                if method == "OPTIONS":
                    kept = Headers({"allow": headers["allow"]}).raw
                    message = {**message, "status": 204, "headers": kept}
            elif message["type"] == "http.response.body" and (
                method == "HEAD" or (method == "OPTIONS" and refused)
            ):
                message = {**message, "body": b""}
            await send(message)

        asked = {**scope, "method": "GET"} if method == "HEAD" else scope
        await self.app(asked, receive, send_known)


def _complete(allow: str) -> str:
    """The methods of a path as its router names them, and those that are answered here."""
    methods = allow.split(", ")
    methods += ["HEAD"] * ("GET" in methods and "HEAD" not in methods)
    return ", ".join([*methods, "OPTIONS"])
