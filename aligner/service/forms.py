"""Fields of a form that carries photos: files to pixels, text to boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import anyio
from fastapi import UploadFile
from pydantic import TypeAdapter, ValidationError

from dff.aligner.align import check_box
from dff.aligner.service.limits import Limits
from dff.aligner.service.problems import Problem
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.infra.images import decode

T = TypeVar("T")
Row = tuple[float, float, float, float]  # x0, y0, x1, y1


async def pixels_of(image: UploadFile, limits: Limits) -> Bytes:
    """(H, W, 3) of an uploaded file. Raises BadImage, and Problem ``too-large`` for a file over the
    limit.
    """
    if image.size is not None and image.size > limits.body:
        raise Problem("too-large", f"at most {limits.body} bytes are taken of one photo")
    data = await image.read()
    return await anyio.to_thread.run_sync(lambda: decode(data, max_pixels=limits.pixels))


def parsed(form: TypeAdapter[T], text: str) -> T:
    """JSON of a form field; raises Problem ``bad-boxes``."""
    try:
        return form.validate_json(text)
    except ValidationError as error:
        raise Problem("bad-boxes", f"boxes: {error.errors()[0]['msg']}") from error


def boxes_of(rows: Sequence[Row], pixels: Bytes) -> list[Box]:
    """Boxes in an (H, W, 3) image. Raises Problem ``bad-boxes`` for none, and for one that can hold
    no face of it.
    """
    if not rows:
        raise Problem("bad-boxes", "no box: leave `boxes` away, or say null, to have faces found")
    try:
        return [check_box(Box(*row), pixels) for row in rows]
    except ValueError as error:
        raise Problem("bad-boxes", f"boxes: {error}") from error


def check_count(boxes: int, limits: Limits) -> None:
    """Raises Problem ``bad-boxes`` for more boxes than a request may have."""
    if boxes > limits.boxes:
        raise Problem(
            "bad-boxes", f"{boxes} boxes; at most {limits.boxes} are taken in one request"
        )


def milliseconds(seconds: float) -> float:
    """To a tenth."""
    return round(seconds * 1000, 1)
