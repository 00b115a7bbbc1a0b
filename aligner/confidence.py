"""How far the photo bears a fit out: for each landmark and for the whole face.

Both rest on *agreement*: for each matched pixel the probability that it shows the face and matches a visible point
that the fit puts close to it. Values lie in 0 to 1; the threshold of failure is documented beside it.
"""

from __future__ import annotations

import numpy as np

from aligner.matching import Matches, disagreement
from face.arrays import Floats

CLOSE = 0.035  # fraction of the unit: a match this far from its prediction agrees to 60 %
GATE = 0.1  # fraction of the unit beyond which a match is another point altogether
NEAR = 0.06  # fraction of the unit: the neighbourhood that speaks for a landmark

FAILED_BELOW = 0.25
"""A face whose confidence lies below this is reported as failed."""


def agreement(matches: Matches, px: Floats, predicted: Floats, visible: Floats, unit: Floats) -> tuple[Floats, Floats]:
    """(B, N) agreement of each pixel, and (B,) mean distance of the agreeing matches as a fraction of the unit.

    The arguments are those of ``matching.vote``; (B,) ``unit`` pixels.
    """
    offset, weight = disagreement(matches, px, predicted, GATE * unit, visible)
    distance = np.linalg.norm(offset, axis=2) / unit[:, None]
    agrees = weight * np.exp(-0.5 * (distance / CLOSE) ** 2)
    total = np.maximum(agrees.sum(1), 1e-9)
    return agrees, (agrees * distance).sum(1) / total


def landmark_support(
    agrees: Floats, px: Floats, landmarks: Floats, unit: Floats, pitch: Floats
) -> tuple[Floats, Floats]:
    """(B, L) share of the pixels round each landmark that agree, and (B, L) how fully pixels of the face surround it.

    (B, N) ``agrees`` at (B, N, 2) ``px``, zero in unused rows; (B, L, 2) ``landmarks``; (B,) ``pitch``: pixels of the
    photo between neighbouring matched pixels. A landmark on the face's edge counts as surrounded by half a disc.
    """
    radius = NEAR * unit[:, None, None]
    across = landmarks[:, :, None, 0] - px[:, None, :, 0]
    down = landmarks[:, :, None, 1] - px[:, None, :, 1]
    square = across * across + down * down
    near = np.exp(-0.5 * square / radius**2)
    half_disc = np.pi * (NEAR * unit / pitch) ** 2
    total = near.sum(2)
    share = np.matmul(near, agrees[..., None])[..., 0] / np.maximum(total, half_disc[:, None])
    return share, np.minimum(total / half_disc[:, None], 1.0)


def face_confidence(agrees: Floats, mask: Floats, surrounded: Floats, seen: Floats) -> Floats:
    """(B,) share of the (B, N) ``mask`` that agrees, times how fully the (B, L) ``seen`` landmarks are surrounded."""
    share = agrees.sum(1) / np.maximum(mask.sum(1), 1e-9)
    return np.asarray(share * (surrounded * seen).sum(1) / np.maximum(seen.sum(1), 1e-9))
