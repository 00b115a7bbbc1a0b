"""The id of a request, in the log and in its answer."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers
from starlette.types import Scope

_USABLE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def ensure_request_id(scope: Scope) -> str:
    """The id of a request or a socket; the client's ``X-Request-ID`` where that is usable.

    It is chosen once, and kept in ``scope["state"]["request_id"]``.
    """
    state = scope.setdefault("state", {})
    if "request_id" not in state:
        given = Headers(scope=scope).get("x-request-id", "")
        state["request_id"] = given if _USABLE.fullmatch(given) else uuid.uuid4().hex
    found: str = state["request_id"]
    return found
