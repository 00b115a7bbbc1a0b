"""Fields of a multipart form: files to pixels, JSON text to boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import anyio
from fastapi import UploadFile
from pydantic import TypeAdapter, ValidationError

from dff.aligner.image_checks import check_box
from dff.aligner.service.limits import Limits
from dff.aligner.service.problems import Problem
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.infra.images import UPLOADS, DecodedImage, decode_image, read_size

T = TypeVar("T")
BoxCorners = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

# null, for a photo or for all: faces are detected
BOXES: TypeAdapter[list[BoxCorners] | None] = TypeAdapter(list[BoxCorners] | None)
BOXES_OF_EACH: TypeAdapter[list[list[BoxCorners] | None] | None] = TypeAdapter(
    list[list[BoxCorners] | None] | None
)
BOX_OF_EACH: TypeAdapter[list[BoxCorners | None] | None] = TypeAdapter(
    list[BoxCorners | None] | None
)


async def read_pixel_count(image: UploadFile, limits: Limits) -> int:
    """Width times height that the header of an uploaded file announces.

    Raises BadImage, and Problem ``too-large`` for a file over the limit.
    """
    data = await _read(image, limits)
    uploads = replace(UPLOADS, pixels=limits.pixels)
    width, height = await anyio.to_thread.run_sync(partial(read_size, data, uploads))
    return width * height


async def read_pixels(image: UploadFile, limits: Limits) -> Bytes:
    """(H, W, 3) uint8 RGB of an uploaded file, upright. Raises as ``read_upload``."""
    return (await read_upload(image, limits)).pixels


async def read_upload(image: UploadFile, limits: Limits) -> DecodedImage:
    """The image of an uploaded file, upright, with its focal length.

    Raises BadImage, and Problem ``too-large`` for a file over the limit.
    """
    data = await _read(image, limits)
    uploads = replace(UPLOADS, pixels=limits.pixels)
    return await anyio.to_thread.run_sync(partial(decode_image, data, limits=uploads))


async def _read(image: UploadFile, limits: Limits) -> bytes:
    if image.size is not None and image.size > limits.body:
        raise Problem("too-large", f"a photo may have at most {limits.body} bytes")
    await image.seek(0)
    return await image.read()


def parse_boxes(form: TypeAdapter[T], text: str) -> T:
    """The value of a form field ``boxes``; raises Problem ``bad-boxes``."""
    try:
        return form.validate_json(text)
    except ValidationError as error:
        raise Problem("bad-boxes", f"boxes: {error.errors()[0]['msg']}") from error


def parse_boxes_of_each(
    form: TypeAdapter[list[T] | None], text: str | None, photos: int, limits: Limits
) -> list[T | None]:
    """An entry of the field ``boxes`` for each of so many ``photos``; None where it has none.

    Raises Problem ``too-many-images`` or ``bad-boxes``.
    """
    if photos > limits.photos:
        raise Problem(
            "too-many-images", f"{photos} images; a request may have at most {limits.photos}"
        )
    boxes = None if text is None else parse_boxes(form, text)
    if boxes is None:
        return [None] * photos
    if len(boxes) != photos:
        raise Problem("bad-boxes", f"boxes for {len(boxes)} images, but {photos} images")
    return [*boxes]


def to_boxes(corners: Sequence[BoxCorners], pixels: Bytes) -> list[Box]:
    """Boxes in an (H, W, 3) image.

    Raises Problem ``bad-boxes`` for an empty list, and for a box that can't hold a face of it.
    """
    if not corners:
        raise Problem("bad-boxes", "an empty list: omit `boxes`, or send null, to detect faces")
    try:
        return [check_box(Box(*each), pixels) for each in corners]
    except ValueError as error:
        raise Problem("bad-boxes", f"boxes: {error}") from error


def check_count(boxes: int, limits: Limits) -> None:
    """Raises Problem ``bad-boxes`` for more boxes than a request may have."""
    if boxes > limits.boxes:
        raise Problem("bad-boxes", f"{boxes} boxes; a request may have at most {limits.boxes}")
