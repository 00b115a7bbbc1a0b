"""Checks of images and boxes before alignment."""

from __future__ import annotations

import numpy as np

from dff.face.arrays import Bytes
from dff.face.errors import BadPhoto
from dff.face.geometry.camera import Box

MIN_SIDE = 16  # pixels: no face can be aligned in less


def check_image(image: Bytes) -> None:
    """Raises BadPhoto for an array that is no (H, W, 3) uint8 image in which a face has room."""
    array = isinstance(image, np.ndarray)
    if not array or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if array else type(image).__name__
        raise BadPhoto(f"an image is (H, W, 3) uint8 RGB (dff.read_image reads a file), not {what}")
    if min(image.shape[:2]) < MIN_SIDE:
        raise BadPhoto(
            f"an image of {image.shape[1]} x {image.shape[0]} pixels is too small to hold a face"
        )


def check_box(box: Box, image: Bytes) -> Box:
    """``box``. Raises ValueError for one in which an (H, W, 3) image can't show a face."""
    if not isinstance(box, Box):
        raise ValueError(f"a box is a dff.Box(x0, y0, x1, y1), not {box!r}")
    height, width = image.shape[:2]
    if box.x0 >= width or box.y0 >= height or box.x1 <= 0 or box.y1 <= 0:
        raise ValueError(f"{box} lies outside the image of {width} x {height} pixels")
    if box.size < 1 or max(box.width, box.height) > 8 * max(width, height):
        raise ValueError(
            f"{box} has no size a face could have in an image of {width} x {height} pixels"
        )
    return box
