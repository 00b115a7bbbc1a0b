"""Untrusted images: bytes to pixels within limits. Errors say what is wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dff.face.arrays import Bytes, Floats
from dff.face.errors import BadPhoto

FORMATS = ("JPEG", "PNG", "WEBP")  # each further decoder adds attack surface
MAX_PIXELS = 40_000_000

Fault = Literal["empty", "not-an-image", "damaged", "animated", "too-many-pixels"]

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")


class BadImage(BadPhoto):
    """Bytes that are no image within limits; ``fault`` says why."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def decode(
    data: bytes,
    *,
    upright: bool = True,
    max_pixels: int = MAX_PIXELS,
    reduce_to: int | None = None,
) -> Bytes:
    """(H, W, 3) uint8 RGB of a JPEG, PNG or WebP file.

    The size is checked before a pixel is decoded. ``upright`` applies the EXIF orientation.
    Transparent images are composited over white; 16-bit grey keeps its high bits. With
    ``reduce_to`` a JPEG is decoded, several times as fast, at 1/2, 1/4 or 1/8 of its size, as long
    as both sides keep that many pixels. Raises BadImage.
    """
    if not data:
        raise BadImage("empty", "the image is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(
            "too-many-pixels", f"the image has more than {max_pixels / 1e6:.0f} megapixels"
        ) from error
    except Exception as error:  # Pillow's parsers raise errors of many kinds for damaged headers
        if data.startswith(_BEGINNINGS):
            raise BadImage("damaged", "the image ends or breaks within its header") from error
        raise BadImage("not-an-image", "this is not a JPEG, PNG or WebP image") from error
    with image:
        if image.width * image.height > max_pixels:
            raise BadImage(
                "too-many-pixels",
                f"{image.width} x {image.height} pixels are more than "
                f"{max_pixels / 1e6:.0f} megapixels",
            )
        # Phones store a second, smaller image in a JPEG (MPO), which is no animation.
        if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
            raise BadImage("animated", "the image is animated: send one of its frames")
        try:
            if reduce_to is not None:
                image.draft(image.mode, (reduce_to, reduce_to))
            image.load()
            return _rgb(ImageOps.exif_transpose(image) if upright else image)
        except Exception as error:
            raise BadImage("damaged", f"the image is truncated or damaged: {error}") from error


def read_image(path: Path | str) -> Bytes:
    """``decode`` a file of this machine, upright. Raises BadPhoto, which names the file."""
    try:
        return decode(Path(path).read_bytes())
    except BadImage as error:
        raise BadPhoto(f"{path}: {error}") from error
    except OSError as error:
        raise BadPhoto(f"can't read {path}: {error.strerror}") from error


def _rgb(image: Image.Image) -> Bytes:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        grey = (np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def as_stored(data: bytes, points: Floats) -> tuple[Floats, bool]:
    """(N, 2) pixels of a file's upright image in the image as stored, and whether that is mirrored.

    ``data``: bytes that ``decode`` takes.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    x, y = np.asarray(points, dtype=np.float64).T
    if orientation >= 5:  # rows and columns are exchanged
        x, y = y, x
    if orientation in (2, 3, 7, 8):
        x = width - x
    if orientation in (3, 4, 6, 7):
        y = height - y
    return np.column_stack([x, y]), orientation in (2, 4, 5, 7)
