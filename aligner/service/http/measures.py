"""Measurements of each request, for the log and the metrics of the front."""

from __future__ import annotations

import json
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-dff-measures"  # from the application to the front, which takes it off the answer


@dataclass
class Measures:
    """Of one request. Durations in seconds."""

    faces: int = 0
    failed: int = 0  # faces whose fit was rejected
    decoded: int = 0  # bytes of decoded photos
    waiting: int = 0  # photos that waited for the aligner when the request came
    queue: float = 0.0
    decode: float = 0.0
    align: float = 0.0


_current: ContextVar[Measures | None] = ContextVar("measures", default=None)


def get_measures() -> Measures:
    """The measurements of the current request; outside of a request, new ones, to be discarded."""
    return _current.get() or Measures()


class TellMeasures:
    """ASGI middleware: the measures of each request in a header of its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        measures = Measures()
        _current.set(measures)

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start" and measures.decoded:
                MutableHeaders(scope=message)[HEADER] = json.dumps(vars(measures))
            await send(message)

        await self._app(scope, receive, send_measured)
