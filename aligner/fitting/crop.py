"""Square, upright crops of a photo: the input of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.face.arrays import Array, Bytes, Float, Floats, Ints
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import rotation_2d


@dataclass(frozen=True)
class Crops:
    """B squares in pixels of their photos."""

    centre: Float[Array, "faces 2"]  # pixels
    side: Float[Array, " faces"]  # pixels
    angle: Float[Array, " faces"]  # radians clockwise on the screen: the crop's x axis in the photo
    size: int  # pixels of the crop's side

    def photo_from_crop(self, points: Floats) -> Floats:
        """(B, N, 2) crop pixels to photo pixels."""
        scaled = (points - self.size / 2) * (self.side / self.size)[:, None, None]
        return np.asarray(scaled @ row_turns(self.angle) + self.centre[:, None])

    def crop_from_photo(self, points: Floats) -> Floats:
        """(B, N, 2) photo pixels to crop pixels."""
        scaled = (points - self.centre[:, None]) * (self.size / self.side)[:, None, None]
        return np.asarray(scaled @ np.swapaxes(row_turns(self.angle), 1, 2) + self.size / 2)

    def cut(self, image: Bytes, crop: int) -> Bytes:
        """(size, size, 3) pixels of one crop; what lies outside the photo is black.

        Shrinking by two or more first averages whole blocks, so that fine texture does not alias.
        """
        ratio = self.side[crop] / self.size  # photo pixels for each crop pixel
        # the turned square, and what interpolation and blocks need beside it
        upright = abs(np.cos(self.angle[crop])) + abs(np.sin(self.angle[crop]))
        reach = self.side[crop] / 2 * upright + 3 * ratio + 2
        low = np.maximum(np.floor(self.centre[crop] - reach), 0).astype(int)
        high = np.minimum(np.ceil(self.centre[crop] + reach), image.shape[1::-1]).astype(int)
        if (high - low < 1).any():
            return np.zeros((self.size, self.size, 3), np.uint8)
        if ratio >= 2:
            low, high = trim_to_blocks(low, high, image.shape[1::-1], int(ratio))
        part = image[low[1] : high[1], low[0] : high[0]]
        shrink = np.ones(2)
        if ratio >= 2:
            target = np.maximum((high - low) // int(ratio), 1)
            shrink = target / (high - low)
            part = cv2.resize(part, (int(target[0]), int(target[1])), interpolation=cv2.INTER_AREA)
        turn = row_turns(self.angle[crop]).T * ratio
        # OpenCV counts the first pixel's centre as 0 on both sides of the map part_from_crop.
        linear = shrink[:, None] * turn
        offset = shrink * (self.centre[crop] - low) + linear @ np.full(2, 0.5 - self.size / 2) - 0.5
        return np.asarray(
            cv2.warpAffine(
                part,
                np.column_stack([linear, offset]),
                (self.size, self.size),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_CONSTANT,
            )
        )


def trim_to_blocks(low: Ints, high: Ints, size: tuple[int, ...], block: int) -> tuple[Ints, Ints]:
    """A part of an image whose sides are whole multiples of ``block`` pixels, where that is free.

    (2,) corners of the part of an image of ``size``, across and down. Averages over whole blocks
    take a tenth of the time of others. A side that ends within the image holds pixels to spare; one
    that spans the whole image is kept.
    """
    spare = (high - low) % block
    from_low = np.where(low > 0, spare, 0)
    from_high = np.where((low == 0) & (high < size), spare, 0)
    return low + from_low, high - from_high


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
    up = rotation[:, :2, 1]
    angle = np.where(np.linalg.norm(up, axis=1) > 0.3, np.arctan2(up[:, 0], -up[:, 1]), 0.0)
    upright = np.swapaxes(row_turns(angle), 1, 2)  # row vectors into the crop's axes
    points = landmarks @ upright
    low, high = points.min(1), points.max(1)
    centre = np.einsum("bi,bji->bj", (low + high) / 2, upright)
    return Crops(centre, margin * (high - low).max(1), angle, size)
