"""What lies before the skin in a photo, and is no part of its texture: strands, a hat's brim, dark
lenses, fingers.

It is told by what it does to the photo: there the fitted face explains the colours badly. Where
faces themselves differ most from any model (eyes, brows, nose, mouth, and where beards grow)
nothing is called covered, but for dark lenses.
"""

from __future__ import annotations

import cv2
import numpy as np

from dff.face.arrays import Bools, Floats
from dff.face.render.frame import Frame, shaded
from dff.pipeline.recovery.inverse import Recovery

FACING = -0.2  # of normals: beyond, the outline's error is larger than what covers it
DARK = 0.05  # of 1: added to colours before their logarithm is taken
THIN = 0.30  # change (log) of brightness within some pixels that skin does not show
WIDE = 21  # px of a 256 px crop: what is thinner is a strand, what is wider light or shadow
SOFT = 1.2  # px of such a crop, over which a cover ends
LENS = (
    -0.55
)  # brightness (log, over the fitted face) of the skin below an eye, from which a lens is before it
EYES = ((slice(36, 42), slice(17, 22)), (slice(42, 48), slice(22, 27)))
NOSE, MOUTH = slice(27, 36), slice(48, 68)


def covered(
    recovery: Recovery, frame: Frame, skin: Bools, albedo: Floats
) -> tuple[Floats, tuple[bool, bool]]:
    """(S, S) float32 0..1: how far something covers the ``skin`` of the photo, and for each eye if
    a lens hides it.

    ``albedo`` (S, S, 3) of the fitted face in its ``frame``. First comes the eye of landmark 36.
    """
    size = len(recovery.crop)
    unit = size / 256.0
    facing = skin & (frame.normal[..., 2] < FACING) & recovery.valid
    photo = cv2.GaussianBlur(recovery.crop, (0, 0), 0.7 * unit).astype(np.float32) / np.float32(
        255.0
    )
    expected = np.maximum(shaded(frame, albedo, recovery.light), 0.0)
    excess = np.where(facing, np.log((photo + DARK) / (expected + DARK)).mean(axis=2), 0.0)
    levels = np.clip(128.0 + 128.0 * excess, 0, 255).astype(np.uint8)
    around = cv2.medianBlur(levels, 2 * round(WIDE * unit / 2.0) + 1)
    thin = np.abs(levels.astype(np.float32) - around) / 128.0 > THIN
    found = facing & (recovery.occluded | thin)

    marks = recovery.landmarks
    eye = float(np.linalg.norm(marks[36] - marks[39]) + np.linalg.norm(marks[42] - marks[45])) / 2.0
    own = np.zeros((size, size), dtype=np.uint8)
    lenses = []
    for lids, brow in EYES:
        lenses.append(_behind_lens(excess, facing, marks[lids], eye))
        around_eye = _hull(size, np.concatenate([marks[lids], marks[brow]]), 0.35 * eye)
        if lenses[-1]:
            found |= (around_eye > 0) & skin
        else:
            own |= around_eye
    own |= _hull(size, marks[NOSE], 0.2 * eye) | _hull(size, marks[MOUTH], 0.3 * eye)
    up = marks[36:48].mean(0) - marks[8]
    rows, columns = np.mgrid[:size, :size] + 0.5
    bearded = (columns - marks[33, 0]) * up[0] + (rows - marks[33, 1]) * up[1] < 0.0
    found &= ~(own > 0) & ~bearded
    grown = cv2.dilate(found.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    share = cv2.GaussianBlur(grown.astype(np.float32), (0, 0), SOFT * unit)
    return np.asarray(np.minimum(1.6 * share, 1.0), dtype=np.float32), (lenses[0], lenses[1])


def _behind_lens(excess: Floats, facing: Bools, lids: Floats, eye: float) -> bool:
    """Whether the skin right below an eye's (6, 2) lids is darker than the fitted face explains."""
    middle = lids.mean(0)
    across = (lids[3] - lids[0]) / max(float(np.linalg.norm(lids[3] - lids[0])), 1e-6)
    down = np.array([-across[1], across[0]])
    steps = np.stack(
        np.meshgrid(np.linspace(-0.35, 0.35, 7), np.linspace(0.30, 0.55, 5)), axis=-1
    ).reshape(-1, 2)
    at = middle + eye * (steps[:, :1] * across + steps[:, 1:] * down)
    x, y = np.clip(np.floor(at).astype(np.int64), 0, len(excess) - 1).T
    shown = facing[y, x]
    return bool(shown.mean() > 0.5 and np.median(excess[y, x][shown]) < LENS)


def _hull(
    size: int, points: Floats, margin: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(S, S) 1 within ``margin`` px of the convex outline of (N, 2) points."""
    out = np.zeros((size, size), dtype=np.uint8)
    outline = cv2.convexHull(np.round(points).astype(np.int32))
    cv2.fillConvexPoly(out, outline, 1)
    cv2.polylines(out, [outline], True, 1, max(round(2.0 * margin), 1))
    return out
