"""Settings of matching."""

from __future__ import annotations

from dataclasses import dataclass

from dff.face.matching import CROP


@dataclass(frozen=True)
class MatchConfig:
    """How points of one photo are searched in another. Raises ValueError for wrong sizes."""

    crop: int = CROP  # pixels of the side of the crops that the network sees
    surface: int = 320  # pixels of the side in which fitted meshes are rendered
    # fraction of the face size: standard deviation of the fit's prediction of a match
    prior_sd: float = 0.015
    # most that the prior counts against a pixel, in units of log odds: a fit may be wrong
    prior_cap: float = 9.0
    # fraction of the face size from the fitted mesh within which a pixel of the face belongs to it
    reach: float = 0.1
    occlusion: float = 0.012  # metres behind the visible surface at which a vertex is hidden
    # of heat maps: factor of the cosines whose exponential is the heat; searches use a larger one
    heat_sharpness: float = 5.0
    dense_batch: int = 256  # points that are matched at a time in a dense map

    def __post_init__(self) -> None:
        if min(self.crop, self.surface, self.dense_batch) < 1:
            raise ValueError(f"MatchConfig wants positive sizes: {self}")
        if min(self.prior_sd, self.prior_cap, self.reach, self.occlusion) <= 0:
            raise ValueError(f"MatchConfig wants positive distances: {self}")
