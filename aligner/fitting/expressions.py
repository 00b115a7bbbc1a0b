"""Correction of expressions: what the descriptors about a fitted face say about its activations.

A fit explains the matches of all pixels by few latent directions, under a prior. Activations that
move few pixels are drawn towards rest: closed lids stay half open. The descriptors there show more;
the map is learned on rendered views (``dff.aligner.evaluation.expression_correction``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dff.aligner.config import VisibilityConfig
from dff.aligner.fitting.correction import center_features, sample_descriptors
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.visibility import Visibility
from dff.face.arrays import Floats, Ints
from dff.face.descriptor import STRIDE
from dff.face.model.landmarks import MIRROR
from dff.face.solve.expression_correction import (
    MIRRORED_EYE_POINTS,
    ExpressionCorrection,
    place_eye_points,
)

MIRRORED_POINTS = np.concatenate([MIRROR, 68 + MIRRORED_EYE_POINTS])


class ExpressionCorrector(Protocol):
    """Finds what the expressions of a pass's fits miss, by what its observation shows."""

    def correct(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> Floats:
        """(B, E) activations to add to those of the fits.

        ``visibility``: of their meshes. ``mirrored``: whether the network saw the mirrored crops.
        """
        ...


class LearnedExpressionCorrector:
    """Applies an ``ExpressionCorrection`` to the fits of a fit model."""

    def __init__(
        self, fit_model: FitModel, correction: ExpressionCorrection, config: VisibilityConfig
    ) -> None:
        self.fit_model, self.config = fit_model, config
        self.correction = correction.in_single_precision()
        self.mirrored_units = mirror_units(fit_model.model.expression_names)

    def correct(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> Floats:
        """As ``ExpressionCorrector.correct``."""
        seen, visible = read_face_descriptors(
            self.fit_model, self.config, observation, state, visibility, mirrored=mirrored
        )
        features = center_features(seen, visible, self.correction.mean)
        fitted = read_expressions(self.fit_model, state).astype(np.float32)
        units = self.mirrored_units if mirrored else slice(None)
        change = self.correction.change(features, fitted[:, units])
        return np.asarray(change[:, units], np.float64)


def read_expressions(fit_model: FitModel, state: FitState) -> Floats:
    """(B, E) the activations of B fits."""
    count, identities = fit_model.moving_modes, len(fit_model.model.identity)
    return np.asarray(state.coefficients[:, :count] @ fit_model.modes[:count, identities:])


def read_face_descriptors(
    fit_model: FitModel,
    config: VisibilityConfig,
    observation: Observation,
    state: FitState,
    visibility: Visibility,
    *,
    mirrored: bool,
) -> tuple[Floats, Floats]:
    """(B, P, D) descriptors at landmarks and eye points of B faces, and (B, P) what counts of them.

    Float32. A landmark counts by its visibility, an eye point always. Of the mirrored faces where
    the network saw the ``mirrored`` crops.
    """
    landmarks = fit_model.landmarks(state)
    points = np.concatenate([landmarks, place_eye_points(landmarks)], axis=1)
    places = observation.crops.crop_from_photo(points) / STRIDE
    seen = sample_descriptors(observation.descriptor, places).astype(np.float32)
    visible = np.ones(seen.shape[:2], np.float32)
    visible[:, :68] = visibility.landmarks(config.occlusion)
    return (seen[:, MIRRORED_POINTS], visible[:, MIRRORED_POINTS]) if mirrored else (seen, visible)


def mirror_units(names: Sequence[str]) -> Ints:
    """(E,) for each expression the row of that of the mirrored face; its own where there is none.

    Names as ARKit's: ``eyeBlinkLeft`` and ``eyeBlinkRight``.
    """
    row = {name: i for i, name in enumerate(names)}
    swapped = [name.replace("Left", "#").replace("Right", "Left") for name in names]
    return np.array([row.get(name.replace("#", "Right"), i) for i, name in enumerate(swapped)])
