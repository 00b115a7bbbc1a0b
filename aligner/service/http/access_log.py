"""The log of requests: one line of JSON for each, by the logger ``dff.access``.

It holds nothing of the images, the query and the client's address.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from dff.aligner.service.http.measures import Measures

ACCESS_LOG = "dff.access"  # name of the logger
CLIENT_LEFT = 499  # status of requests whose client went away unanswered, as nginx has it
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass
class AccessLine:
    """One line of the log."""

    request_id: str
    method: str = ""  # none where the request could not be read
    path: str = ""
    trace_id: str = ""  # of a W3C ``traceparent``
    status: int | None = None  # None: no answer has begun
    received: int = 0  # bytes of the request's body
    sent: int = 0  # bytes of the answer's body
    measures: Measures | None = None
    frames: int | None = None  # that a web socket has answered
    started: float = field(default_factory=time.time)
    # from the headers of the request, or the wait for them, to the end of the answer
    seconds: float = 0.0

    @staticmethod
    def of(scope: Scope, request_id: str) -> AccessLine:
        """The line of a request or of a web socket, which begins now."""
        trace = _TRACE.fullmatch(Headers(scope=scope).get("traceparent", ""))
        return AccessLine(
            request_id,
            scope.get("method", "WEBSOCKET"),
            scope["path"],
            trace.group(1) if trace else "",
        )

    def count_frame(self, measures: Measures) -> None:
        """Count an answered frame of a web socket."""
        self.frames = (self.frames or 0) + 1
        self.measures = self.measures or Measures()
        self.measures.add(measures)

    def write(self) -> None:
        """Write the line; the request ends now."""
        self.seconds = time.time() - self.started
        fields: dict[str, Any] = {
            "time": round(self.started, 3),
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path[:200],
            "status": self.status,
            "seconds": round(self.seconds, 4),
            "received": self.received,
            "sent": self.sent,
        }
        if self.measures is not None:
            fields |= {
                name: round(value, 4) if isinstance(value, float) else value
                for name, value in vars(self.measures).items()
            }
        if self.frames is not None:
            fields["frames"] = self.frames
        if self.trace_id:
            fields["trace_id"] = self.trace_id
        logging.getLogger(ACCESS_LOG).info("%s", json.dumps(fields))


def print_access_log() -> None:
    """Print the lines of ``dff.access`` to standard error, from now on."""
    logger = logging.getLogger(ACCESS_LOG)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
