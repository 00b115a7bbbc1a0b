"""Detections: what a face detector answers, and boxes that mean one face."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import Box
from dff.face.solve.gauss_newton import FaceState

T = TypeVar("T")

OVERLAP = 0.3  # intersection over union from which two boxes are one face
INSIDE = 0.7  # share of the smaller box within the larger from which they are one face


@dataclass(frozen=True)
class Detection:
    """A face that may be there."""

    box: Box  # of its 68 landmarks, upright and tight, pixels
    score: float = 1.0  # 0 to 1
    pose: FaceState | None = None  # of one mean face; None where only the box is known
    given: bool = False  # the box of a face that someone knows to be there

    def in_photo(self, scale: Floats, corner: Floats | float = 0.0) -> Detection:
        """A detection in a resized part of a photo, in pixels of the photo.

        (2,) ``scale``: photo pixels (x, y) for one of the part's; the part begins at ``corner``.
        """
        box, pose = self.box, self.pose
        low = np.array([box.x0, box.y0]) * scale + corner
        high = np.array([box.x1, box.y1]) * scale + corner
        if pose is not None:
            centre = pose.centre * scale + corner
            pose = FaceState(
                pose.scale * float(scale.mean()), pose.rotation, centre, pose.coefficients
            )
        return Detection(Box(*low.tolist(), *high.tolist()), self.score, pose)

    def turned_back(self, turns: int, shape: tuple[int, ...]) -> Detection:
        """A detection in ``np.rot90(photo, turns)``, in pixels of the photo of this ``shape``."""
        height, width = shape[:2]
        turn = np.linalg.matrix_power(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), turns % 4)
        corner = np.array([[0, 0], [width, 0], [width, height], [0, height]][turns % 4])
        box, pose = self.box, self.pose
        ends = np.array([[box.x0, box.y0], [box.x1, box.y1]]) @ turn[:2, :2].T + corner
        if pose is not None:
            centre = pose.centre @ turn[:2, :2].T + corner
            pose = FaceState(pose.scale, turn @ pose.rotation, centre, pose.coefficients)
        return Detection(Box(*ends.min(0).tolist(), *ends.max(0).tolist()), self.score, pose)


class FaceDetector(Protocol):
    """Detects faces."""

    def find(self, image: Bytes) -> list[Detection]:
        """Faces of an (H, W, 3) RGB image by falling score; none when no face is seen."""
        ...


Search: TypeAlias = Generator[None, None, T]
"""A search in steps, between which a server can do other work."""


def search_to_end(search: Search[T]) -> T:
    """Run a search without a pause between its steps; returns what the search returns."""
    while True:
        try:
            next(search)
        except StopIteration as end:
            value: T = end.value
            return value


def distinct(detections: Sequence[Detection]) -> list[Detection]:
    """The detections by falling score, without those of a face that a better one shows."""
    kept: list[Detection] = []
    for one in sorted(detections, key=lambda detection: -detection.score):
        if not any(same_face(one.box, other.box) for other in kept):
            kept.append(one)
    return kept


def same_face(a: Box, b: Box) -> bool:
    """Whether two boxes mean one face: they overlap, or one lies within the other."""
    one, other = (a.x0, a.y0, a.x1, a.y1), (b.x0, b.y0, b.x1, b.y1)
    shared = _shared_area(one, other)
    smaller = min(a.width * a.height, b.width * b.height)
    return _share_of_union(one, other, shared) >= OVERLAP or shared >= INSIDE * smaller


def overlap(a: Floats, b: Floats) -> float:
    """Intersection over union of two (4,) boxes."""
    one, other = a.tolist(), b.tolist()
    return _share_of_union(one, other, _shared_area(one, other))


# by plain numbers: operations on arrays of four take ten times as long
def _shared_area(a: Sequence[float], b: Sequence[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(high, 0.0)


def _share_of_union(a: Sequence[float], b: Sequence[float], shared: float) -> float:
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union
