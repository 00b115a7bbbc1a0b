"""The layer before the application: request ids, uploads, errors of the server, the log.

An ASGI middleware that needs neither the aligner nor torch. Under uvicorn it is part of the
application; under Ray Serve it runs in the proxies (``proxy_middleware``), so that requests enter
Serve's queue when they are complete.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dff.aligner.service.http import metrics
from dff.aligner.service.http.access_log import CLIENT_LEFT, AccessLine, print_access_log
from dff.aligner.service.http.http_parser import REFUSED, use_timed_h11
from dff.aligner.service.http.keys import GUARDED, is_allowed
from dff.aligner.service.http.limits import UploadLimits
from dff.aligner.service.http.measures import HEADER, MESSAGE_KEY, Measures
from dff.aligner.service.http.metrics import Metrics
from dff.aligner.service.http.problems import MEDIA_TYPE, RETRY_AFTER, Problem, answer_status
from dff.aligner.service.http.request_id import ensure_request_id
from dff.aligner.service.http.uploads import CLOSE, Disconnected, Upload, Uploads, refuse_size

VARIABLE = "DFF_FRONT"  # environment variable with the configuration of Ray Serve's proxies
SERVE_TIMEOUT = "x-request-timeout-seconds"  # header of Ray Serve: 0 for none
SERVE_NO_DISCONNECT = "x-request-disconnect-disabled"
# paths of health checks, and the seconds within which they are answered
HEALTH = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
HEALTH_SECONDS = 1.0
_SWITCHED = 101  # status of web sockets in the log
NO_KEY = {"WWW-Authenticate": "Bearer", **CLOSE}  # headers of the answer to who has no API key
HINT = " (`dff serve --origin` names the origins)"


@dataclass(frozen=True)
class FrontConfig:
    """Configuration of the front. Raises ValueError for an origin or a prefix that is none."""

    uploads: UploadLimits = field(default_factory=UploadLimits)
    # web pages of these, as https://example.org, may use the service from a browser; * for all
    origins: tuple[str, ...] = ()
    root_path: str = ""  # prefix under which a proxy shows the service, as /faces
    keys: tuple[str, ...] = ()  # hashes of API keys (``keys.hash_keys``); none: all may ask

    def __post_init__(self) -> None:
        check_origins(self.origins)
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path):
            raise ValueError(f"{self.root_path!r} is no prefix: write it as /faces")

    def to_json(self) -> str:
        """Text for the environment variable ``VARIABLE``."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> FrontConfig:
        """The configuration that ``to_json`` wrote; raises TypeError for unknown keys."""
        fields = json.loads(text)
        uploads = UploadLimits(**fields.pop("uploads", {}))
        for name in ("origins", "keys"):
            fields[name] = tuple(fields.get(name, ()))
        return FrontConfig(uploads=uploads, **fields)


def proxy_middleware() -> list[Middleware]:
    """The front as Ray Serve's proxies take it, with the configuration in ``DFF_FRONT``.

    Serve calls this when a proxy starts, if ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it.
    """
    text = os.environ.get(VARIABLE)
    config = FrontConfig.from_json(text) if text else FrontConfig()
    use_timed_h11(config.uploads.header_seconds, config.root_path)
    print_access_log()
    return [Middleware(Front, config=config)]


class Front:
    """Completes requests before ``app`` sees them, and answers for a server that can't.

    * Each request has one id, the client's ``X-Request-ID`` where that is usable, in its headers,
      in ``scope["state"]["request_id"]`` and in the answer.
    * Where there are API keys, a request without one is refused before its body is read.
    * Bodies are read completely, within ``UploadLimits``.
    * A request whose client leaves before its answer is cancelled.
    * Errors that are not problem details come from the server, not from the application: a proxy
      that knows no replica yet, a queue that is full. They become problem details.
    * ``/metrics`` is answered here, for all replicas behind this front.
    * Health is told within a second, whether or not the application answers.
    * Each request has one line in the log (``access_log``).
    """

    def __init__(self, app: ASGIApp, *, config: FrontConfig) -> None:
        self._config = config
        self._uploads = Uploads(config.uploads)
        self._metrics = Metrics()
        self._app: ASGIApp = _Answering(app, config.root_path)
        self._handle: ASGIApp = self._receive
        if config.origins:
            self._handle = _CrossOrigin(
                self._receive,
                config.root_path,
                allow_origins=config.origins,
                allow_methods=["GET", "HEAD", "POST"],
                allow_headers=["*"],
                expose_headers=["X-Request-ID", "Retry-After"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._open_socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _begin_request(scope)
        line, left = AccessLine.of(scope, request_id), False

        async def receive_noted() -> Message:
            nonlocal left
            message = await receive()
            left = left or message["type"] == "http.disconnect"
            return message

        async def send_logged(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = request_id
                line.status = message["status"]
                if HEADER in answered:
                    line.measures = Measures(**json.loads(answered[HEADER]))
                    del answered[HEADER]
            else:
                line.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._handle(scope, receive_noted, send_logged)
            if line.status is None and not left:  # as Ray Serve's proxy ends when a replica dies
                answer = Problem("internal").to_response(request_id, self._config.root_path)
                await answer(scope, receive_noted, send_logged)
        except Disconnected:
            left = True
        except asyncio.CancelledError:
            left = True
            raise
        finally:
            line.received = scope["state"]["received"]
            if REFUSED in scope["state"]:  # the rest of the request was no HTTP
                line.status, line.sent = scope["state"][REFUSED]
            if line.status is None:
                line.status = CLIENT_LEFT if left else HTTPStatus.INTERNAL_SERVER_ERROR
            line.write()
            path = scope["path"].removeprefix(self._config.root_path)
            self._metrics.observe(path, line.status, line.seconds, line.received)
            if line.measures is not None:
                self._metrics.add(line.measures)

    async def _open_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a web socket through that has a key, where keys are needed, and may come from its
        page; others are refused by problem details, as are those of unknown paths.
        """
        request_id = _begin_request(scope)
        headers = MutableHeaders(scope=scope)
        headers[SERVE_TIMEOUT] = "0"  # none: the service itself ends silent sessions
        line = AccessLine.of(scope, request_id)

        async def send_logged(message: Message) -> None:
            if message["type"] == "websocket.close" and line.status is None:
                # the application closes no socket that it has not accepted, but for its path
                unknown = HTTPException(HTTPStatus.NOT_FOUND)
                await answer_status(unknown, request_id, root_path)(scope, receive, send_logged)
                return
            if message["type"] == "websocket.accept":
                line.status, line.frames = _SWITCHED, 0
                self._metrics.sockets.inc()
            elif message["type"] == "websocket.http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
                line.status = message["status"]
            if MESSAGE_KEY in message:
                measures = Measures(**message[MESSAGE_KEY])
                message = {key: message[key] for key in message if key != MESSAGE_KEY}
                self._metrics.count_frame(measures)
                line.count_frame(measures)
            line.sent += len(message.get("text") or message.get("body") or "")
            await send(message)

        async def receive_counted() -> Message:
            message = await receive()
            line.received += len(message.get("bytes") or b"")
            return message

        root_path = self._config.root_path
        path = scope["path"].removeprefix(root_path)
        try:
            match self._find_socket_problem(path, headers):
                case None:
                    await self._app(scope, receive_counted, send_logged)
                    return
                case Problem() as problem:
                    answer = problem.to_response(request_id, root_path)
                case refused:
                    answer = answer_status(refused, request_id, root_path)
            await answer(scope, receive, send_logged)
        finally:
            if line.status is None:
                line.status = HTTPStatus.INTERNAL_SERVER_ERROR
            line.write()
            if line.status == _SWITCHED:
                self._metrics.sockets.dec()
            self._metrics.observe(path, line.status, line.seconds, line.received)

    def _find_socket_problem(self, path: str, headers: Headers) -> Problem | HTTPException | None:
        keys = self._config.keys
        if keys and path.startswith(GUARDED) and not is_allowed(headers, keys):
            return Problem("unauthorized", headers=NO_KEY)
        if not _may_connect(headers, self._config.origins):
            origin = headers["origin"]
            return HTTPException(HTTPStatus.FORBIDDEN, f"a page of {origin} may not connect{HINT}")
        return None

    async def _receive(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        root_path = self._config.root_path
        path = scope["path"].removeprefix(root_path)
        limit = self._config.uploads.bodies.get(path, self._config.uploads.body)
        declared = headers.get("content-length", "0")
        try:
            keys = self._config.keys
            if keys and path.startswith(GUARDED) and not is_allowed(headers, keys):
                raise Problem("unauthorized", headers=NO_KEY)
            if path == "/metrics":
                await self._answer_metrics(scope, receive, send)
                return
            if declared.isdecimal() and int(declared) > limit:
                raise refuse_size(limit)
            if declared == "0" and "transfer-encoding" not in headers:
                app = self._check_health if path in HEALTH else self._app
                await app(scope, receive, send)
                return
            async with self._uploads.receive(receive, limit=limit) as upload:
                await self._forward(upload, scope, receive, send)
        except Problem as problem:
            answer = problem.to_response(scope["state"]["request_id"], root_path)
            await answer(scope, receive, send)

    async def _answer_metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        allow = {"Allow": "GET, HEAD, OPTIONS"}
        match scope["method"]:
            case "GET" | "HEAD":
                text = self._metrics.to_text(self._uploads.arriving)
                answer = Response(text, media_type=metrics.MEDIA_TYPE)
            case "OPTIONS":
                answer = Response(status_code=HTTPStatus.NO_CONTENT, headers=allow)
            case _:
                refused = HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={**allow, **CLOSE})
                request_id: str = scope["state"]["request_id"]
                answer = answer_status(refused, request_id, self._config.root_path)
        await answer(scope, receive, send)

    async def _check_health(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application tell its health, unless it is silent for ``HEALTH_SECONDS``.

        Ray Serve holds requests back while an application has no replica. Raises Problem
        ``not-ready``.
        """
        try:
            async with asyncio.timeout(HEALTH_SECONDS) as patience:

                async def send_in_time(message: Message) -> None:
                    patience.reschedule(None)
                    await send(message)

                await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if not patience.expired():
                raise
        if patience.expired():  # Serve's proxy takes the cancellation for a client that left
            raise Problem(
                "not-ready",
                f"the aligner did not answer within {HEALTH_SECONDS:g} s: it is starting, or has "
                "too much to do",
                {"Retry-After": str(RETRY_AFTER)},
            )

    async def _forward(self, upload: Upload, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer a complete request; cancel it when the client leaves.

        Raises Disconnected then.
        """
        scope["state"]["received"] = upload.size
        answered, left = False, asyncio.Event()

        async def receive_rest() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send_noted(message: Message) -> None:
            nonlocal answered
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            answered = answered or is_last  # before the server takes that for the client's leave
            await send(message)

        try:
            async with asyncio.timeout(None) as presence:

                async def watch() -> None:
                    await receive()
                    left.set()
                    if not answered:
                        presence.reschedule(asyncio.get_running_loop().time())

                watching = asyncio.create_task(watch())
                try:
                    await self._app(scope, upload.replay(receive_rest), send_noted)
                finally:
                    watching.cancel()
        except TimeoutError:
            if not presence.expired():
                raise
        if presence.expired():  # Serve's proxy ends its request when it is cancelled
            raise Disconnected


class _CrossOrigin(CORSMiddleware):
    """Lets web pages of named origins use the service; refuses others by problem details, too."""

    def __init__(self, app: ASGIApp, root_path: str, **options: Any) -> None:
        super().__init__(app, **options)
        self._root_path = root_path

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether a page may send a request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < HTTPStatus.BAD_REQUEST:
            return answer
        refused = bytes(answer.body).decode().removeprefix("Disallowed CORS ")
        origin = request_headers["origin"]
        detail = f"the server does not allow this to a page of {origin}: {refused}"
        if not self.is_allowed_origin(origin):
            detail += HINT
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name not in ("content-length", "content-type")
        }
        refusal = HTTPException(answer.status_code, detail, kept)
        return answer_status(refusal, request_headers["x-request-id"], self._root_path)


class _Answering:
    """Puts problem details in the place of errors that the server and not the application gives."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root_path = app, root_path
        self._served = False  # whether the application has answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_answered = scope["type"] in ("http", "websocket")
        if not is_answered or scope["path"].startswith("/-/"):  # Ray Serve's own paths
            await self._app(scope, receive, send)
            return
        replaced = False

        async def send_answer(message: Message) -> None:
            nonlocal replaced
            # Ray Serve's own answers to web sockets, too, are those to requests
            if message["type"].removeprefix("websocket.") == "http.response.start":
                problem = _find_server_problem(message, served=self._served)
                if problem is None:
                    self._served = True
                else:
                    replaced = True
                    answer = problem.to_response(scope["state"]["request_id"], self._root_path)
                    await answer(scope, receive, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, send_answer)


def _find_server_problem(start: Message, *, served: bool) -> Problem | None:
    """The problem that replaces an error of the server; None for an answer of the application.

    ``served``: whether the application has answered before.
    """
    status, headers = start["status"], Headers(raw=start.get("headers", []))
    if status < 400 or headers.get("content-type", "").startswith(MEDIA_TYPE):
        return None
    wait = {"Retry-After": headers.get("retry-after", str(RETRY_AFTER))}
    match status:
        case 404:  # the application itself answers every path
            return Problem("stopping" if served else "not-ready", headers=wait)
        case 408:
            return Problem("deadline", headers=wait)
        case 429 | 503:
            return Problem("busy", headers=wait)
        case _ if status >= 500:
            return Problem("internal")
    return None


def _begin_request(scope: Scope) -> str:
    """The id of a request or a socket, which is put where the application looks for it.

    Headers by which clients could change Ray Serve's limits are taken away.
    """
    request_id = ensure_request_id(scope)
    headers = MutableHeaders(scope=scope)  # the last: each copies the headers of the scope
    for name in (SERVE_TIMEOUT, SERVE_NO_DISCONNECT):
        if name in headers:
            del headers[name]
    headers["x-request-id"] = request_id
    scope["state"]["received"] = 0
    return request_id


def _may_connect(headers: Headers, origins: Sequence[str]) -> bool:
    """Whether a web socket may come from its page; browsers leave that to the server."""
    origin = headers.get("origin")
    if origin is None or "*" in origins or origin in origins:
        return True
    return urlsplit(origin).netloc == headers.get("host")


def check_origins(origins: Sequence[str]) -> None:
    """Raises ValueError for text that is no origin from which web pages could use a service."""
    for origin in origins:
        parts = urlsplit(origin)
        is_web = parts.scheme in ("http", "https") and parts.netloc
        if origin != "*" and not (is_web and origin == f"{parts.scheme}://{parts.netloc}"):
            raise ValueError(
                f"{origin!r} is no origin: write it as https://example.org, with its port if it "
                "has one and without a path, or * for all"
            )


DEFAULT_FRONT = FrontConfig()
