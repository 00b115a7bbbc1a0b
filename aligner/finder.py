"""Where the faces of a photo are: a protocol, and the Haar cascades that OpenCV 4 carries (5 has dropped them)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from face.arrays import Bytes, Floats
from face.camera import Box

LONGEST = 480  # pixels that a photo's longer side is shrunk to before the search
MIN_SHARE = 0.08  # of the longer side: smaller faces are not looked for
OVERLAP = 0.3  # intersection over union from which two boxes are one face

FRONTAL = "haarcascade_frontalface_alt2.xml"
PROFILE = "haarcascade_profileface.xml"

# Where the box of the 68 landmarks lies in a detector's square (x0, y0, x1, y1, fractions of its side): medians over
# 392 labelled photos. The profile cascade knows faces that look to the left of the image.
LANDMARKS_IN_FRONTAL = np.array([0.07, 0.235, 0.93, 1.07])
LANDMARKS_IN_PROFILE = np.array([0.026, 0.285, 0.796, 1.03])


class FaceFinder(Protocol):
    """Finds faces. A box is where the 68 landmarks would lie, tightly: from the brows to the chin."""

    def find(self, image: Bytes) -> list[Box]:
        """Boxes in pixels of an (H, W, 3) RGB image, the surest first; none when no face is seen."""
        ...


class HaarFinder:
    """Viola and Jones's cascades, frontal and profile both ways. Misses a quarter of turned faces: see ``FaceFinder``.

    Source: Lienhart and Maydt 2002, the cascades of OpenCV.
    """

    def find(self, image: Bytes) -> list[Box]:
        height, width = image.shape[:2]
        shrink = min(1.0, LONGEST / max(height, width))
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
        mirrored = np.ascontiguousarray(grey[:, ::-1])
        squares = _detect(FRONTAL, grey), _detect(PROFILE, grey), _detect(PROFILE, mirrored)
        frontal = _placed(squares[0], LANDMARKS_IN_FRONTAL)
        left = _placed(squares[1], LANDMARKS_IN_PROFILE)
        right = _placed(squares[2], LANDMARKS_IN_PROFILE)
        right[:, [0, 2]] = size[0] - right[:, [2, 0]]
        sides = np.concatenate([left, right])
        # A frontal hit is surer than any profile hit; the cascades' scores are not comparable.
        found = np.concatenate([frontal, sides[np.argsort(-sides[:, 4], kind="stable")]])
        scale = np.array([width / size[0], height / size[1]] * 2)
        return [Box(*(row * scale).tolist()) for row in _distinct(found)]


def _detect(name: str, grey: Bytes) -> Floats:
    """(N, 4) squares x, y, side and score, the highest score first."""
    least = max(24, round(MIN_SHARE * max(grey.shape)))
    # Twice as strict about neighbours for profiles, whose cascade fires on texture.
    boxes, _, scores = _cascade(name).detectMultiScale3(
        grey,
        scaleFactor=1.1 if name == FRONTAL else 1.15,
        minNeighbors=3 if name == FRONTAL else 4,
        minSize=(least, least),
        outputRejectLevels=True,
    )
    rows = np.array([[x, y, w, s] for (x, y, w, _), s in zip(boxes, scores, strict=True)], dtype=np.float64)
    rows = rows.reshape(-1, 4)
    return np.asarray(rows[np.argsort(-rows[:, 3], kind="stable")])


def _placed(squares: Floats, landmarks: Floats) -> Floats:
    """(N, 5) boxes of the landmarks and score in (N, 4) squares."""
    corner = squares[:, [0, 1, 0, 1]]
    return np.concatenate([corner + squares[:, 2:3] * landmarks, squares[:, 3:4]], axis=1)


def _distinct(boxes: Floats) -> Floats:
    """(M, 4): the (N, 5) boxes without those that overlap an earlier one."""
    kept: list[Floats] = []
    for box in boxes[:, :4]:
        if all(overlap(box, other) < OVERLAP for other in kept):
            kept.append(box)
    return np.array(kept).reshape(-1, 4)


def overlap(a: Floats, b: Floats) -> float:
    """Intersection over union of two (4,) boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.clip(high - low, 0.0, None)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / union


_mine = threading.local()


def _cascade(name: str) -> Any:
    """A cascade of this thread's own: they keep the picture in themselves while they search."""
    loaded: dict[str, Any] = _mine.__dict__
    if name not in loaded:
        cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / name))
        if cascade.empty():
            raise RuntimeError(f"this OpenCV carries no {name}: version 4 is needed, not {cv2.__version__}")
        loaded[name] = cascade
    return loaded[name]
