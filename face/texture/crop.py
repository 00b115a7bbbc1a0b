"""The square crop of a photo in which a face is recovered."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Array, Bool, Bytes, Float, Floats, UInt8
from dff.face.model.landmarks import chin_to_brows


@dataclass(frozen=True)
class CropConfig:
    """Extent of a crop around the landmarks."""

    margin: float = 1.7  # its side over that of the landmark box: forehead, chin and ears fit in
    lift: float = 0.12  # of the distance from chin to brows: a face goes on above the landmarks


CROP = CropConfig()


@dataclass(frozen=True)
class Crop:
    """A square cut from a photo; ``crop_px = (photo_px - corner) * scale``."""

    pixels: UInt8[Array, "S S 3"]  # RGB
    valid: Bool[Array, "S S"]  # False where the photo ended and its border was repeated
    corner: Float[Array, " 2"]  # whole photo pixels
    scale: float


def square_crop(pixels: Bytes, landmarks: Floats, size: int, config: CropConfig = CROP) -> Crop:
    """Cut the face of (68, 2) ``landmarks`` from (H, W, 3) ``pixels``, scaled to ``size`` pixels.

    The cut has whole-pixel edges, so that the scale and the corner are exact. Beyond the photo its
    border repeats.
    """
    low, high = landmarks.min(0), landmarks.max(0)
    side = max(int(np.ceil(config.margin * (high - low).max())), 2)
    lift = config.lift * chin_to_brows(landmarks)
    corner = np.round((low + high) / 2 + lift - side / 2).astype(np.int64)
    height, width = pixels.shape[:2]
    columns, rows = corner[0] + np.arange(side), corner[1] + np.arange(side)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
    cut = pixels[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)[None]]
    interpolation = cv2.INTER_AREA if size < side else cv2.INTER_CUBIC
    scaled = cv2.resize(cut, (size, size), interpolation=interpolation)
    valid = cv2.resize(inside.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    return Crop(scaled, valid > 0.99, corner.astype(np.float64), size / side)
