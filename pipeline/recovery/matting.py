"""What of a photo is the person: hair, hat, neck and clothes, told from what stands behind them.

The fitted head says where the person surely is; colours decide the rest, by a cut through a graph
of pixels. Source: Rother, Kolmogorov and Blake, "GrabCut" (2004), as in OpenCV.
"""

from __future__ import annotations

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes, Floats
from dff.face.model.landmarks import JAW
from dff.face.render.frame import Frame

SIDE = 96  # px at which the cut is made: it takes 15 ms, and its edge is soft anyway
ROUNDS = 2
NEAR_HEAD = 0.015  # metres from the head's outline within which the rest is rather person
NEAR_BODY = 0.05  # the same below the chin
# metres beyond which nothing above the eyes is the person's: without any, the cut takes all
FAR = 0.05
FACING = 0.35  # cosine from which the fitted skin is surely seen
SOFT = 1.0  # px, of the edge


def person_matte(
    crop: Bytes, valid: Bools, frame: Frame, skin: Bools, landmarks: Floats, pixel: float
) -> Floats:
    """(S, S) float32 0..1: how far each pixel of the (S, S, 3) crop is the person.

    ``frame`` is the fitted head and ``skin`` (S, S) where it shows a face, ``landmarks`` (68, 2)
    px, ``pixel`` the metres that one spans. What lies beyond the photo's border, where it is not
    ``valid``, belongs to nobody.
    """
    size = len(crop)
    to_side = SIDE / size
    small = cv2.cvtColor(
        cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB
    )
    head, sure, shown = (
        cv2.resize(m.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        for m in (frame.mask, skin & (frame.normal[..., 2] < -FACING), valid)
    )
    away = cv2.distanceTransform(1 - head, cv2.DIST_L2, 5) * (pixel / to_side)
    chin = landmarks[JAW][8] * to_side
    up = landmarks[36:48].mean(0) * to_side - chin
    at = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=2) + 0.5 - chin
    height = at @ up / max(float(up @ up), 1.0)  # 0 at the chin, 1 at the eyes
    marks = np.full((SIDE, SIDE), cv2.GC_PR_BGD, dtype=np.uint8)
    marks[away < np.where(height < 0.0, NEAR_BODY, NEAR_HEAD)] = cv2.GC_PR_FGD
    marks[(away > FAR) & (height > 1.0)] = cv2.GC_BGD
    marks[shown == 0] = cv2.GC_BGD
    hull = cv2.convexHull(np.round(landmarks[17:] * to_side).astype(np.int32))
    cv2.fillConvexPoly(sure, hull, 1)  # eyes and mouth are no skin
    marks[(cv2.erode(sure, np.ones((3, 3), np.uint8)) & head & shown) > 0] = cv2.GC_FGD
    known = [(marks & 1).any(), not (marks & 1).all()]
    if all(known):
        cv2.setRNGSeed(0)  # the colours' clusters begin at random
        cv2.grabCut(
            small, marks, None, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK
        )
    cut = cv2.GaussianBlur((marks & 1).astype(np.float32), (0, 0), SOFT)
    return np.asarray(
        cv2.resize(cut, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.float32
    )
