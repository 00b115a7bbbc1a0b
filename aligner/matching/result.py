"""The results of matching: values only."""

from __future__ import annotations

from dataclasses import dataclass

from dff.aligner.alignment import Alignment
from dff.aligner.fitting.crop import Crops
from dff.aligner.matching.found_points import FoundPoints
from dff.face.arrays import Array, Float


@dataclass(frozen=True, eq=False)
class PointMatches(FoundPoints):
    """Points that were found in this process, with what they were found by."""

    # per point, relative to its most similar pixel: 1 there, towards 0 where nothing is similar;
    # of the output pixels of ``crop``
    heat: Float[Array, "points rows columns"]
    crop: Crops  # of the face of the second photo
    faces: tuple[Alignment | None, ...]  # that each point was taken from; None: not on a face
    found: Alignment  # the face in the second photo
