"""Fill a part of an image from what surrounds it."""

from __future__ import annotations

import cv2
import numpy as np

from dff.face.arrays import Bools, Floats


def inpaint(image: Floats, hole: Bools) -> Floats:
    """(H / 2, W / 2, 3) float32 RGB of an (H, W, 3) image with its (H, W) hole filled smoothly.

    The fill comes from a Gaussian pyramid, coarse to fine. The result has half the resolution: it
    is only ever shown out of focus.
    """
    small = cv2.resize(image.astype(np.float32), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    grown = cv2.dilate(hole.astype(np.uint8), np.ones((9, 9), np.uint8))
    known = 1.0 - cv2.resize(
        grown.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_AREA
    )
    known = np.where(known > 0.99, 1.0, 0.0).astype(np.float32)
    if not known.any():
        return np.full_like(small, small.mean(axis=(0, 1)))
    levels = [(small * known[..., None], known)]
    while min(levels[-1][1].shape) > 2:
        colour, weight = levels[-1]
        levels.append((cv2.pyrDown(colour), cv2.pyrDown(weight)))
    colour, weight = levels[-1]
    filled = colour / np.maximum(weight, 1e-6)[..., None]
    for colour, weight in reversed(levels[:-1]):
        up = cv2.pyrUp(filled, dstsize=colour.shape[1::-1])
        filled = colour + up * (1.0 - np.minimum(weight, 1.0))[..., None]
    return np.asarray(np.clip(filled, 0.0, 1.0), dtype=np.float32)
