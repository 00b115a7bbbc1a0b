"""Interpolation: smooth steps, and bilinear samples of images.

A place (x, y) counts pixels from the image's corner, so that the centre of its first pixel is
(0.5, 0.5). Places beyond the outermost centres get the border's value. OpenCV's ``remap`` rounds
fractions to 1/32 of a pixel, so it serves only where that does not matter.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from dff.face.arrays import Floats


def smoothstep(values: Floats, low: float, high: float) -> Floats:
    """0 at ``low`` and before, 1 at ``high`` and beyond, and the cubic without slope at either."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def bilinear(image: Floats, px: Floats) -> Floats:
    """(N, C) samples of an (H, W, C) image at (N, 2) pixels."""
    height, width = image.shape[:2]
    x = np.clip(px[:, 0] - 0.5, 0.0, width - 1.0)
    y = np.clip(px[:, 1] - 0.5, 0.0, height - 1.0)
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    upper = image[top, left] * (1 - fx) + image[top, right] * fx
    lower = image[bottom, left] * (1 - fx) + image[bottom, right] * fx
    return np.asarray(upper * (1 - fy) + lower * fy)


def bilinear_with_gradient(image: Floats, px: Floats) -> tuple[Floats, Floats]:
    """(N, C) samples of an (H, W, C) image at (N, 2) pixels, and (N, C, 2) derivatives by x and y.

    Both are of one bilinear cell, in float32: value and slope agree exactly.
    """
    height, width = image.shape[:2]
    x = np.clip(px[:, 0] - 0.5, 0.0, width - 1.001)  # a cell has a pixel on either side
    y = np.clip(px[:, 1] - 0.5, 0.0, height - 1.001)
    x0, y0 = x.astype(np.int64), y.astype(np.int64)
    fx, fy = ((at - low).astype(np.float32)[:, None] for at, low in ((x, x0), (y, y0)))
    a, b, c, d = image[y0, x0], image[y0, x0 + 1], image[y0 + 1, x0], image[y0 + 1, x0 + 1]
    top, bottom = a + (b - a) * fx, c + (d - c) * fx
    gradient = np.stack([(b - a) * (1 - fy) + (d - c) * fy, bottom - top], axis=-1)
    return top + (bottom - top) * fy, gradient


@register_jitable(inline="always")
def bilinear_cell(x, y, columns, rows):  # type: ignore[no-untyped-def]
    """(left, top, fx, fy): the four pixels round a place and its place in them, for compiled code.

    (x, y) count from the first pixel's centre. Images of one row or column have no second pixel:
    take ``min(left + 1, columns - 1)``.
    """
    x, y = min(max(x, 0.0), columns - 1.0), min(max(y, 0.0), rows - 1.0)
    left, top = min(int(x), max(columns - 2, 0)), min(int(y), max(rows - 2, 0))
    return left, top, x - left, y - top
