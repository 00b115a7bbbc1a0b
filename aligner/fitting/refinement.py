"""Refinement of landmarks: where annotators put them, by what the descriptors there show.

A mesh follows the shapes of its model. Where annotators see the corner of a mouth or the end of a
brow depends on the picture, too, and the descriptors at the fitted landmarks tell part of it. The
linear map is learned on labelled photos (``dff.aligner.evaluation.landmark_refinement``).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dff.aligner.config import VisibilityConfig
from dff.aligner.fitting.correction import center_features, read_landmark_descriptors
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.visibility import Visibility
from dff.face.arrays import Floats
from dff.face.model.landmarks import MIRROR
from dff.face.solve.landmark_refinement import LandmarkRefinement


class Refiner(Protocol):
    """Finds where the landmarks of fitted faces lie beside those of their meshes."""

    def refine(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> Floats:
        """(B, 68, 2) metres right and down in the photo of each upright face.

        ``visibility``: of the meshes. ``mirrored``: whether the network saw the mirrored crops.
        """
        ...


class LinearRefiner:
    """Applies a ``LandmarkRefinement`` to the fits of a fit model."""

    def __init__(
        self, fit_model: FitModel, refinement: LandmarkRefinement, config: VisibilityConfig
    ) -> None:
        self.fit_model, self.refinement, self.config = fit_model, refinement, config
        # in single precision: it is read from memory for each face
        self.weight = np.ascontiguousarray(refinement.weight, np.float32)

    def refine(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> Floats:
        """As ``Refiner.refine``."""
        seen, visible = read_landmark_descriptors(
            self.fit_model, self.config, observation, state, visibility, mirrored=mirrored
        )
        rows = center_features(seen, visible, self.refinement.mean).astype(np.float32)
        moved = (rows @ self.weight + self.refinement.offset).reshape(-1, 68, 2)
        return mirror_displacements(moved) if mirrored else moved


def mirror_displacements(moved: Floats) -> Floats:
    """(B, 68, 2) displacements, right and down, of the mirrored faces' landmarks."""
    return np.asarray(moved[:, MIRROR] * [-1.0, 1.0])
