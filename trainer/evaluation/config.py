"""Settings of the evaluation of descriptors: during training, and beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

import numpy as np


@dataclass(frozen=True)
class EvaluationConfig:
    """Validation during training: points of one identity matched between two held-out views.

    Raises ValueError for settings under which no pair can be made.
    """

    points: int = 64  # most points of a pair of views
    min_points: int = 8  # pairs with fewer are left out
    same_point: float = 0.003  # metres in surface coordinates: two pixels show the same point
    max_spread: float = 0.010  # metres: as ``AugmentConfig.max_spread``
    shards: int = 24  # most shards of a dataset that the views are taken from
    crop_side: int = 256  # px: errors are given at a crop of this side
    pck_px: int = 8  # px at this side within which a match is correct

    def __post_init__(self) -> None:
        if not 1 <= self.min_points <= self.points or self.shards < 1:
            raise ValueError(f"EvaluationConfig needs 1 <= min_points <= points: {self}")
        if not min(self.same_point, self.max_spread, self.crop_side, self.pck_px) > 0:
            raise ValueError(f"EvaluationConfig needs positive distances: {self}")


@dataclass(frozen=True)
class MatchingConfig:
    """The comparison of descriptors on pairs of views, or of photos."""

    points: int = 64  # most points of a pair
    min_points: int = 8  # pairs with fewer are left out
    same_point: float = 0.005
    """Metres in surface coordinates: a pixel that shows a point further away occludes it."""
    max_spread: float = 0.010  # metres: as ``AugmentConfig.max_spread``
    min_facing: float = 0.3
    """Least cosine between a landmark's normal and the direction to the camera for visibility."""
    hull_scale: float = 1.15
    """Matches in photos are searched in the landmarks' convex hull, scaled by this."""
    yaw_edges: tuple[float, ...] = (0.0, 30.0, 60.0, 90.0)
    """Lower edges of the bins of yaw between two views, degrees; the last bin has no upper edge."""
    crop_side: int = 256  # px: errors are given at a crop of this side
    pck: tuple[float, ...] = (1.0, 2.0, 5.0)  # limits, percent of the size of the face box
    wanted_pck: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType({"0-30": 90.0, "30-60": 80.0})
    )
    """Percent of points within the last limit of ``pck`` that is wanted, by yaw bin."""
    baseline_ratio: float = 3.0  # wanted: mean error of the best baseline over the descriptor's
    identity_ratio: float = 1.3  # wanted: mean error between identities over that within one

    @property
    def yaw_ranges(self) -> tuple[tuple[float, float], ...]:
        """(low, high) degrees of each yaw bin; the low edge belongs to the bin."""
        return tuple(pairwise((*self.yaw_edges, np.inf)))

    @property
    def yaw_bins(self) -> tuple[str, ...]:
        """Names of the yaw bins."""
        inner = (f"{low:g}-{high:g}" for low, high in pairwise(self.yaw_edges))
        return (*inner, f"> {self.yaw_edges[-1]:g}")

    def find_yaw_bin(self, degrees: float) -> int:
        """Index of the yaw bin of a difference of yaws, whatever its sign."""
        return int(np.searchsorted(self.yaw_edges, abs(degrees), side="right")) - 1


@dataclass(frozen=True)
class FigureConfig:
    """Pictures of matches."""

    zoom: int = 2  # enlargement of a crop
    sharpness: float = 0.3
    """Of the match maps, over that of training, with which the mark would hide a good match."""
    colours: tuple[tuple[int, int, int], ...] = (
        (230, 60, 60),
        (60, 160, 240),
        (250, 200, 40),
        (80, 210, 90),
        (200, 90, 220),
        (255, 140, 0),
    )
    """RGB of the marks, in order of the points, repeated when there are more points."""


EVALUATION, MATCHING, FIGURES = EvaluationConfig(), MatchingConfig(), FigureConfig()
"""The default settings."""
