"""The correction of fits: a linear map from descriptors at the landmarks to what a fit misses.

Source: Jiang, Zhang, Deng, Guo, Liu, "Deep Face Feature for Face Alignment" (arXiv 1708.02721),
whose cascade predicts changes of pose and shape from descriptors at projected points of the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Array, Float
from dff.face.solve.gauss_newton import POSE

STRONGEST = 5.0
"""Length of the weights of one change of the pose, or its offset: those that ship are below 0.3."""


@dataclass(frozen=True)
class FitCorrection:
    """A map from the descriptors at the 68 landmarks of a fitted face to the change of its fit.

    A change is that of the pose in the axes of the face's crop, then that of the shape along some
    *directions* of the face model's coefficients. Raises ValueError when the tables disagree, and
    for changes of the pose beyond ``STRONGEST``.
    """

    mean: Float[Array, "68 channels"]  # descriptor of each landmark where it is visible
    # landmark by landmark: a descriptor without its mean, or zeros where the landmark is hidden
    weight: Float[Array, "features changes"]
    offset: Float[Array, " changes"]  # columns: ``POSE`` of the pose, then the directions
    directions: Float[Array, "directions coefficients"]  # identity, then expression

    def __post_init__(self) -> None:
        if self.mean.ndim != 2 or len(self.mean) != 68 or self.directions.ndim != 2:
            raise ValueError(
                f"FitCorrection with means {self.mean.shape}, directions {self.directions.shape}"
            )
        changes = POSE + len(self.directions)
        if self.weight.shape != (self.mean.size, changes) or self.offset.shape != (changes,):
            raise ValueError(
                f"FitCorrection with weights {self.weight.shape} and offsets {self.offset.shape} "
                f"for {self.mean.size} features and {changes} changes"
            )
        tables = (self.mean, self.weight, self.offset, self.directions)
        if not all(np.isfinite(table).all() for table in tables):
            raise ValueError("FitCorrection holds numbers that are not finite")
        strength = float(np.sqrt((self.weight[:, :POSE] ** 2).sum(0)).max(initial=0.0))
        strength = max(strength, float(np.abs(self.offset[:POSE]).max(initial=0.0)))
        if strength > STRONGEST:
            raise ValueError(
                f"FitCorrection changes poses by numbers as large as {strength:.3g}: is it damaged?"
            )
