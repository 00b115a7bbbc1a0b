"""Square crops of a photo, turned upright: the photo as the network wants to see it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes, Floats, Ints


@dataclass(frozen=True)
class Crops:
    """B squares in pixels of their photos."""

    centre: Floats  # (B, 2) pixels
    side: Floats  # (B,) pixels
    angle: Floats  # (B,) radians clockwise on the screen: the crop's x axis in the photo
    size: int  # pixels of the crop's side

    def __getitem__(self, rows: Ints | Bools) -> Crops:
        return Crops(self.centre[rows], self.side[rows], self.angle[rows], self.size)

    def photo_from_crop(self, points: Floats) -> Floats:
        """(B, N, 2) crop pixels to photo pixels."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        turn = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], -2)  # row vectors times this
        scaled = (points - self.size / 2) * (self.side / self.size)[:, None, None]
        return np.asarray(scaled @ turn + self.centre[:, None])

    def crop_from_photo(self, points: Floats) -> Floats:
        """(B, N, 2) photo pixels to crop pixels."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)  # row vectors times this
        scaled = (points - self.centre[:, None]) * (self.size / self.side)[:, None, None]
        return np.asarray(scaled @ turn + self.size / 2)

    def cut(self, image: Bytes, crop: int) -> Bytes:
        """(size, size, 3) pixels of one crop; what lies outside the photo is black.

        Shrinking by two or more first averages whole blocks, so that fine texture does not alias.
        """
        ratio = self.side[crop] / self.size  # photo pixels for each crop pixel
        reach = self.side[crop] * 0.75  # beyond half the diagonal
        low = np.maximum(np.floor(self.centre[crop] - reach), 0).astype(int)
        high = np.minimum(np.ceil(self.centre[crop] + reach), image.shape[1::-1]).astype(int)
        if (high - low < 1).any():
            return np.zeros((self.size, self.size, 3), np.uint8)
        part = image[low[1] : high[1], low[0] : high[0]]
        shrink = np.ones(2)
        if ratio >= 2:
            target = np.maximum((high - low) // int(ratio), 1)
            shrink = target / (high - low)
            part = cv2.resize(part, (int(target[0]), int(target[1])), interpolation=cv2.INTER_AREA)
        c, s = np.cos(self.angle[crop]), np.sin(self.angle[crop])
        turn = np.array([[c, -s], [s, c]]) * ratio
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
