"""Mouths that are open wider than their fit: the lower lip is matched below where the fit has it.

A fit starts from a closed mouth. Where the mouth is wide open, the matches of the lower lip lie
beyond the gate, count as outliers, and the fit keeps the lower lip at the upper teeth.
"""

from __future__ import annotations

import numpy as np

from dff.aligner.config import MouthConfig
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.observation import Observation
from dff.face.arrays import Floats, Ints
from dff.face.solve.gauss_newton import evaluate_shape, project


def find_lagging_mouths(
    fit_model: FitModel, observation: Observation, state: FitState, config: MouthConfig
) -> Ints:
    """The rows of the faces whose lower lip is matched at least ``config.lag`` below its fit.

    Faces in profile are left alone.
    """
    lag, weight = measure_lag(fit_model, observation, state)
    frontal = state.rotation[:, 2, 2] < config.turned
    return np.flatnonzero((lag > config.lag) & (weight > config.fewest) & frontal)


def measure_lag(
    fit_model: FitModel, observation: Observation, state: FitState
) -> tuple[Floats, Floats]:
    """(B,) how far below the fitted lower lips their matches lie, and (B,) their total weight.

    Distances are fractions of the face size, along the face's own vertical. The mean is over all
    matches with anchors of ``FitModel.lower_lip``, however far they lie from the fit; weights count
    matched pixels.
    """
    near, matches = fit_model.lower_lip, observation.matches
    chosen = np.flatnonzero(near)
    if len(chosen) == 0:
        return np.zeros(len(matches.mask)), np.zeros(len(matches.mask))
    place = np.zeros(len(near), np.int64)
    place[chosen] = np.arange(len(chosen))
    basis = fit_model.double_anchor_basis[chosen]
    points = evaluate_shape(fit_model.anchor_mean[chosen], basis, state.coefficients)
    predicted = project(state, points, state.inverse_depth)
    faces = np.arange(len(predicted))[:, None, None]
    away = observation.px[:, :, None] - predicted[faces, place[matches.anchor]]
    down = -state.rotation[:, :2, 1]
    down = down / np.maximum(np.linalg.norm(down, axis=1, keepdims=True), 1e-6)
    weight = matches.probability * matches.mask[..., None] * near[matches.anchor]
    total = weight.sum((1, 2))
    below = (weight * np.matmul(away, down[:, None, :, None])[..., 0]).sum((1, 2))
    return below / np.maximum(total, 1e-6) / fit_model.face_size(state), total
