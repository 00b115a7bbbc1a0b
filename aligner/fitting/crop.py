"""Square, upright crops of a photo: the input of the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numba
import numpy as np

from dff.aligner.area_shrinking import shrink_by_area
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.face.arrays import Array, Bytes, Float, Floats
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import rotation_2d
from dff.face.numba_cache import CACHE


@dataclass(frozen=True)
class Crops:
    """B squares in pixels of their photos."""

    centre: Float[Array, "faces 2"]  # pixels
    side: Float[Array, " faces"]  # pixels
    angle: Float[Array, " faces"]  # radians clockwise on the screen: the crop's x axis in the photo
    size: int  # pixels of the crop's side

    def photo_from_crop(self, points: Floats) -> Floats:
        """(B, N, 2) crop pixels to photo pixels."""
        out = np.empty(points.shape)
        _fill_photo_points(points, self.centre, self.side / self.size, self.angle, self.size, out)
        return out

    def crop_from_photo(self, points: Floats) -> Floats:
        """(B, N, 2) photo pixels to crop pixels."""
        out = np.empty(points.shape)
        _fill_crop_points(points, self.centre, self.size / self.side, self.angle, self.size, out)
        return out

    def cut(self, image: Bytes, crop: int) -> Bytes:
        """(size, size, 3) pixels of one crop; what lies outside the photo is black.

        Shrinking by two or more first averages whole blocks, so that fine texture does not alias.
        """
        # plain numbers: arrays of two take longer than the pixels
        centre, ratio = self.centre[crop].tolist(), float(self.side[crop]) / self.size
        cos, sin = math.cos(self.angle[crop]), math.sin(self.angle[crop])
        # the turned square, and what interpolation and blocks need beside it; ratio: photo pixels
        # for each crop pixel
        reach = self.side[crop] / 2 * (abs(cos) + abs(sin)) + 3 * ratio + 2
        size = image.shape[1::-1]
        block = max(int(ratio), 1)
        spans = [
            (max(math.floor(middle - reach), 0), min(math.ceil(middle + reach), end))
            for middle, end in zip(centre, size, strict=True)
        ]
        if any(high <= low for low, high in spans):
            return np.zeros((self.size, self.size, 3), np.uint8)
        if block > 1:
            spans = [
                trim_to_blocks(*span, end, block) for span, end in zip(spans, size, strict=True)
            ]
        (left, right), (top, bottom) = spans
        part = image[top:bottom, left:right]
        shrink = [1.0, 1.0]
        if block > 1:
            wide, high = (max((high - low) // block, 1) for low, high in spans)
            shrink = [wide / (right - left), high / (bottom - top)]
            part = shrink_by_area(part, (wide, high))
        # OpenCV counts the first pixel's centre as 0 on both sides of the map part_from_crop.
        map_to_part = np.empty((2, 3))
        for axis, turn in enumerate(((cos * ratio, -sin * ratio), (sin * ratio, cos * ratio))):
            a, b = shrink[axis] * turn[0], shrink[axis] * turn[1]
            away = shrink[axis] * (centre[axis] - spans[axis][0])
            map_to_part[axis] = a, b, away + (a + b) * (0.5 - self.size / 2) - 0.5
        return np.asarray(
            cv2.warpAffine(
                part,
                map_to_part,
                (self.size, self.size),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_CONSTANT,
            )
        )


def trim_to_blocks(low: int, high: int, size: int, block: int) -> tuple[int, int]:
    """One side of a part of an image, a whole multiple of ``block`` pixels where that is free.

    From ``low`` to ``high`` along a side of the image, which has ``size`` pixels. Averages over
    whole blocks take a tenth of the time of others. A part that ends within the image holds pixels
    to spare; one that spans the whole image is kept.
    """
    spare = (high - low) % block
    if low > 0:
        return low + spare, high
    return low, high - spare if high < size else high


def row_turns(angle: Floats) -> Floats:
    """(..., 2, 2) matrices that rotate row vectors clockwise on the screen by (...) radians."""
    return rotation_2d(-angle)


def frame_boxes(boxes: Sequence[Box], margin: float, size: int) -> Crops:
    """Upright crops: squares of ``margin`` times the longer side of each box."""
    side = np.array([margin * max(box.width, box.height) for box in boxes])
    return Crops(np.stack([box.centre for box in boxes]), side, np.zeros(len(boxes)), size)


def frame_faces(fit_model: FitModel, state: FitState, margin: float, size: int) -> Crops:
    """``frame_landmarks`` of fitted faces."""
    return frame_landmarks(fit_model.landmarks(state), state.rotation, margin, size)


def frame_landmarks(landmarks: Floats, rotation: Floats, margin: float, size: int) -> Crops:
    """Crops about (B, L, 2) landmarks, pixels, turned so that the head is upright.

    They are not turned where the y axis of the head, by (B, 3, 3) ``rotation``, points nearly along
    the view.
    """
    centre, extent, angle = np.empty((len(landmarks), 2)), *np.empty((2, len(landmarks)))
    _frame(landmarks, rotation, centre, extent, angle)
    return Crops(centre, margin * extent, angle, size)


@numba.njit(cache=CACHE, nogil=True)
def _frame(landmarks, rotation, centre, extent, angle):  # type: ignore[no-untyped-def]
    """Fill centre, longer side and angle of the upright boxes about landmarks."""
    for i in range(len(landmarks)):
        x, y = rotation[i, 0, 1], rotation[i, 1, 1]
        angle[i] = np.arctan2(x, -y) if np.hypot(x, y) > 0.3 else 0.0
        c, s = np.cos(angle[i]), np.sin(angle[i])
        left, right, top, bottom = np.inf, -np.inf, np.inf, -np.inf
        for n in range(landmarks.shape[1]):
            x = c * landmarks[i, n, 0] + s * landmarks[i, n, 1]
            y = c * landmarks[i, n, 1] - s * landmarks[i, n, 0]
            left, right, top, bottom = min(left, x), max(right, x), min(top, y), max(bottom, y)
        x, y = (left + right) / 2, (top + bottom) / 2
        centre[i, 0], centre[i, 1] = c * x - s * y, s * x + c * y
        extent[i] = max(right - left, bottom - top)


@numba.njit(cache=CACHE, nogil=True)
def _fill_photo_points(points, centre, scale, angle, size, out):  # type: ignore[no-untyped-def]
    """Fill ``Crops.photo_from_crop``; ``scale``: photo pixels for each crop pixel."""
    for i in range(len(points)):
        c, s = scale[i] * np.cos(angle[i]), scale[i] * np.sin(angle[i])
        for n in range(points.shape[1]):
            x, y = points[i, n, 0] - size / 2, points[i, n, 1] - size / 2
            out[i, n, 0], out[i, n, 1] = c * x - s * y + centre[i, 0], s * x + c * y + centre[i, 1]


@numba.njit(cache=CACHE, nogil=True)
def _fill_crop_points(points, centre, scale, angle, size, out):  # type: ignore[no-untyped-def]
    """Fill ``Crops.crop_from_photo``; ``scale``: crop pixels for each photo pixel."""
    for i in range(len(points)):
        c, s = scale[i] * np.cos(angle[i]), scale[i] * np.sin(angle[i])
        for n in range(points.shape[1]):
            x, y = points[i, n, 0] - centre[i, 0], points[i, n, 1] - centre[i, 1]
            out[i, n, 0], out[i, n, 1] = c * x + s * y + size / 2, c * y - s * x + size / 2
