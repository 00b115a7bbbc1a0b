"""Measurements of each request, for the log and the metrics of the front."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-dff-measures"  # from the application to the front, which takes it off the answer
MESSAGE_KEY = "measures"  # the same, of a message that answers a frame of a web socket

Stage = Literal["queue", "decode", "align"]


@dataclass
class Measures:
    """Counts and durations of one request, or of the frames of a web socket; seconds."""

    faces: int = 0
    failed: int = 0  # faces whose fit was rejected
    decoded: int = 0  # bytes of decoded photos
    # photos and calls that waited for the aligner when the request came; None: it is not for one
    waiting: int | None = None
    queue: float = 0.0
    decode: float = 0.0
    align: float = 0.0
    # Faces of each step of the aligner that had some. A step that several requests share counts for
    # one of them.
    steps: list[int] = field(default_factory=list)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Count the time of a ``with`` block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.count(stage, time.monotonic() - started)

    def count(self, stage: Stage, seconds: float) -> None:
        """Add to the time of a stage."""
        setattr(self, stage, getattr(self, stage) + seconds)

    def add(self, other: Measures) -> None:
        """Add the measures of a part."""
        self.faces += other.faces
        self.failed += other.failed
        self.decoded += other.decoded
        if other.waiting is not None:
            self.waiting = other.waiting
        self.queue += other.queue
        self.decode += other.decode
        self.align += other.align
        self.steps += other.steps


_current: ContextVar[Measures | None] = ContextVar("measures", default=None)


def get_measures() -> Measures:
    """The measurements of the current request; outside of a request, new ones, to be discarded."""
    return _current.get() or Measures()


@contextmanager
def measuring() -> Iterator[Measures]:
    """The measurements of a ``with`` block, which are added to those around it at its end."""
    around, measures = _current.get(), Measures()
    token = _current.set(measures)
    try:
        yield measures
    finally:
        _current.reset(token)
        if around is not None:
            around.add(measures)


class TellMeasures:
    """ASGI middleware: the measures of each request for the aligner in a header of its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with measuring() as measures:

            async def send_measured(message: Message) -> None:
                if message["type"] == "http.response.start" and measures.waiting is not None:
                    MutableHeaders(scope=message)[HEADER] = json.dumps(vars(measures))
                await send(message)

            await self._app(scope, receive, send_measured)
