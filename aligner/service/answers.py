"""Answers as JSON, written in a thread and piece by piece: meshes of many faces stop no other
request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
from starlette.responses import Response

_dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


async def answered(answer: Callable[[], dict[str, Any]]) -> Response:
    """The response of what ``answer`` says; it is called and written in a thread."""
    data = await anyio.to_thread.run_sync(lambda: written(answer()))
    return Response(data, media_type="application/json")


def written(answer: dict[str, Any]) -> bytes:
    """The bytes that Starlette's ``JSONResponse`` gives. Raises ValueError for numbers that JSON
    can't say.
    """
    return b"".join(piece.encode() for piece in _pieces(answer))


def _pieces(value: Any) -> Iterator[str]:
    # json's encoder holds the interpreter from its beginning to its end: in one call a thread would
    # help nobody
    if value and isinstance(value, dict):
        for i, (name, inner) in enumerate(value.items()):
            yield f"{',' if i else '{'}{_dumps(name)}:"
            yield from _pieces(inner)
        yield "}"
    elif value and isinstance(value, list) and isinstance(value[0], dict):
        for i, inner in enumerate(value):
            yield "," if i else "["
            yield from _pieces(inner)
        yield "]"
    else:
        yield _dumps(value)
