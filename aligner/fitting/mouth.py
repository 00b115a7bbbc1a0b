"""Mouths that are open wider than their fit: the lower lip is matched below where the fit has it.

A fit starts from a closed mouth. Where the mouth is wide open, the matches of the lower lip lie
beyond the gate, count as outliers, and the fit keeps the lower lip at the upper teeth.
"""

from __future__ import annotations

import numba
import numpy as np

from dff.aligner.config import MouthConfig
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.kernels import project_point
from dff.aligner.fitting.observation import Observation
from dff.face.arrays import Floats, Ints
from dff.face.numba_cache import CACHE


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
    matches, chosen = observation.matches, fit_model.lower_lip_anchors
    below, total = np.zeros((2, len(matches.mask)))
    if len(chosen) == 0:
        return below, total
    _sum_lags(
        matches.anchor,
        matches.probability,
        matches.mask,
        observation.px,
        fit_model.lower_lip,
        chosen,
        fit_model.anchor_mean,
        fit_model.anchor_basis,
        state.scale,
        state.rotation,
        state.centre,
        state.coefficients,
        state.inverse_depth,
        below,
        total,
    )
    return below / np.maximum(total, 1e-6) / fit_model.face_size(state), total


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _sum_lags(  # type: ignore[no-untyped-def]
    anchor,
    probability,
    mask,
    px,
    near,
    chosen,
    anchor_mean,
    anchor_basis,
    scale,
    rotation,
    centre,
    coefficients,
    inverse_depth,
    below,
    total,
):
    """Fill (B,) weighted sums of pixels below the fitted lip, and (B,) sums of the weights."""
    point, predicted = np.empty(3), np.empty((len(near), 2))
    for i in range(len(mask)):
        for a in chosen:
            for c in range(3):
                moved = 0.0
                for k in range(anchor_basis.shape[2]):
                    moved += np.float64(anchor_basis[a, c, k]) * coefficients[i, k]
                point[c] = anchor_mean[a, c] + moved
            predicted[a] = project_point(point, rotation[i], scale[i], centre[i], inverse_depth[i])
        x, y = -rotation[i, 0, 1], -rotation[i, 1, 1]
        length = max(np.sqrt(x * x + y * y), 1e-6)
        for n in range(mask.shape[1]):
            for j in range(anchor.shape[2]):
                a = anchor[i, n, j]
                if near[a] > 0.0:
                    weight = probability[i, n, j] * mask[i, n] * near[a]
                    dx, dy = px[i, n, 0] - predicted[a, 0], px[i, n, 1] - predicted[a, 1]
                    below[i] += weight * (dx * x + dy * y) / length
                    total[i] += weight
