"""The square crop of a photo in which a face is recovered."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes, Floats
from dff.face.model.landmarks import JAW

MARGIN = 1.7  # crop side over the longer side of the landmark box: forehead, chin and ears fit in
LIFT = 0.12  # of the distance from chin to brows: landmarks end at the brows, faces do not


@dataclass(frozen=True)
class Crop:
    """A square cut from a photo; ``crop_px = (photo_px - corner) * scale``."""

    pixels: Bytes  # (S, S, 3) RGB
    valid: Bools  # (S, S) False where the photo ended and its border was repeated
    corner: Floats  # (2,) whole photo pixels
    scale: float


def square_crop(pixels: Bytes, landmarks: Floats, size: int) -> Crop:
    """Cut the face of (68, 2) ``landmarks`` from (H, W, 3) ``pixels`` and bring it to ``size``
    pixels.

    The cut has whole-pixel edges, so that the scale and the corner are exact. Beyond the photo its
    border repeats.
    """
    low, high = landmarks.min(0), landmarks.max(0)
    up = landmarks[17:27].mean(0) - landmarks[JAW][6:11].mean(0)
    side = max(int(np.ceil(MARGIN * (high - low).max())), 2)
    corner = np.round((low + high) / 2 + LIFT * up - side / 2).astype(np.int64)
    height, width = pixels.shape[:2]
    columns, rows = corner[0] + np.arange(side), corner[1] + np.arange(side)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
    cut = pixels[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)[None]]
    how = cv2.INTER_AREA if size < side else cv2.INTER_CUBIC
    resized = cv2.resize(cut, (size, size), interpolation=how)
    valid = (
        cv2.resize(inside.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR) > 0.99
    )
    return Crop(resized, valid, corner.astype(np.float64), size / side)
