"""Pictures of faces, small ones, by which a face is compared with itself in the frame before."""

from __future__ import annotations

import numba
import numpy as np

from dff.aligner.appearance import DARK
from dff.face.arrays import Bytes, Floats
from dff.face.numba_cache import CACHE


def face_picture(frame: Bytes, landmarks: Floats, side: int) -> Floats:
    """(side, side) float32 logarithms of grey levels in the box of (L, 2) or (L, 3) landmarks.

    Each is of the mean of four samples. Beyond the edges of the frame the nearest pixels count.
    """
    out = np.empty((side, side), np.float32)
    _fill_picture(frame, landmarks, out)
    return out


def share_differing(picture: Floats, before: Floats, least: float) -> float:
    """Share of the pixels that differ by more than ``least``, but for a factor of the light."""
    return float(_share_differing(picture, before, least))


@numba.njit(cache=CACHE, nogil=True)
def _fill_picture(frame, landmarks, out):  # type: ignore[no-untyped-def]
    """Fill what ``face_picture`` returns."""
    side = len(out)
    place = np.empty((2, 2 * side), np.int64)  # the pixel before each sample, across and down
    part = np.empty((2, 2 * side))  # and how far the sample is on the way to the next one
    for axis in range(2):
        low, high = np.inf, -np.inf
        for n in range(len(landmarks)):
            low, high = min(low, landmarks[n, axis]), max(high, landmarks[n, axis])
        last = frame.shape[1 - axis] - 1
        for i in range(2 * side):
            # centres of pixels lie at halves
            at = low + (i + 0.5) * (high - low) / (2 * side) - 0.5
            at = min(max(at, 0.0), float(last))
            place[axis, i] = min(int(at), max(last - 1, 0))
            part[axis, i] = at - place[axis, i]
    right, below = min(1, frame.shape[1] - 1), min(1, frame.shape[0] - 1)
    for row in range(side):
        for column in range(side):
            total = 0.0
            for j in range(2 * row, 2 * row + 2):
                y, down = place[1, j], part[1, j]
                for i in range(2 * column, 2 * column + 2):
                    x, across = place[0, i], part[0, i]
                    for c in range(3):
                        upper = frame[y, x, c] * (1.0 - across) + frame[y, x + right, c] * across
                        lower = (
                            frame[y + below, x, c] * (1.0 - across)
                            + frame[y + below, x + right, c] * across
                        )
                        total += upper * (1.0 - down) + lower * down
            out[row, column] = np.log(total / 12.0 + DARK)


@numba.njit(cache=CACHE, nogil=True)
def _share_differing(picture, before, least):  # type: ignore[no-untyped-def]
    change = (picture - before).ravel()
    light, count = np.median(change), 0
    for n in range(len(change)):
        count += abs(change[n] - light) > least
    return count / len(change)
