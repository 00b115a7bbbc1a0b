"""The refinement of landmarks: a linear map from their descriptors to where annotators put them.

Source: Jiang, Zhang, Deng, Guo, Liu, "Deep Face Feature for Face Alignment" (arXiv 1708.02721),
whose cascade moves landmarks by linear regression from their descriptors; after Xiong and De la
Torre, "Supervised Descent Method and Its Applications to Face Alignment" (CVPR 2013).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Array, Float

FARTHEST = 0.1
"""Metres: a refinement with a larger constant part, or one that moves landmarks by more for each
unit of a descriptor, is damaged. Those that ship have below 0.01.
"""


@dataclass(frozen=True)
class LandmarkRefinement:
    """A map from the descriptors at the 68 landmarks of a fitted face to their displacements.

    Raises ValueError when the tables disagree, hold numbers that are not finite, or displace
    landmarks beyond ``FARTHEST``.
    """

    mean: Float[Array, "68 channels"]  # descriptor of each landmark where it is visible
    # metres right, then down in the photo of the upright face, landmark by landmark, for each
    # descriptor without its mean: zeros where the landmark is hidden
    weight: Float[Array, "features 136"]
    offset: Float[Array, " 136"]

    def __post_init__(self) -> None:
        if (
            self.mean.ndim != 2
            or len(self.mean) != 68
            or self.weight.shape != (self.mean.size, 136)
            or self.offset.shape != (136,)
        ):
            raise ValueError(
                f"LandmarkRefinement with means {self.mean.shape}, weights {self.weight.shape} and "
                f"offsets {self.offset.shape}"
            )
        tables = (self.mean, self.weight, self.offset)
        if not all(np.isfinite(table).all() for table in tables):
            raise ValueError("LandmarkRefinement holds numbers that are not finite")
        farthest = float(np.sqrt((self.weight**2).sum(0)).max(initial=0.0))
        farthest = max(farthest, float(np.abs(self.offset).max(initial=0.0)))
        if farthest > FARTHEST:
            raise ValueError(
                f"LandmarkRefinement moves landmarks by {farthest:.3g} m: is it damaged?"
            )
