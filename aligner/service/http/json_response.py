"""Answers as JSON. Long ones are written in a thread: large meshes block no other request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import orjson
from pydantic import BaseModel
from starlette.responses import Response


async def respond(build: Callable[[], BaseModel], *, short: bool = False) -> Response:
    """The response with the answer that ``build`` returns.

    It is called and written in a thread unless it is ``short``: then the change of threads would
    take longer than the answer, which is a millisecond.
    """

    def write() -> bytes:
        return encode_answer(build())

    data = write() if short else await anyio.to_thread.run_sync(write)
    return Response(data, media_type="application/json")


def encode_answer(answer: BaseModel) -> bytes:
    """JSON of an answer, without the optional fields that it leaves out.

    The encoder holds the interpreter for the length of a call, so each model inside the answer, a
    face with its mesh at most, is a call of its own.
    """
    fields = {
        name: getattr(answer, name)
        for name, field in type(answer).model_fields.items()
        if field.is_required() or getattr(answer, name) is not None
    }
    return orjson.dumps({name: _encode_models(value) for name, value in fields.items()})


def _encode_models(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return orjson.Fragment(encode_answer(value))
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return [orjson.Fragment(encode_answer(model)) for model in value]
    return value
