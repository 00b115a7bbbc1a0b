"""Assessment of fits: how well they agree with the forward pass that they were made from."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from dff.aligner.config import VisibilityConfig
from dff.aligner.fitting import kernels
from dff.aligner.fitting.batch import choose_rows, replace_rows, with_fields
from dff.aligner.fitting.correspondence import Matches
from dff.aligner.fitting.face_fit import FaceFit
from dff.aligner.fitting.fit_model import FitModel, FitState, average_states
from dff.aligner.fitting.observation import Observation, Observer
from dff.aligner.fitting.visibility import compute_visibility
from dff.face.arrays import Floats
from dff.face.numba_cache import CACHE

# Calibrations depend on these two, since they define the calibration features.
AGREEMENT = 0.035  # fraction of the face size: a match this far from its prediction agrees to 60 %
GATE = 0.1  # fraction of the face size beyond which a match is an outlier


def assess(
    fit_model: FitModel,
    observer: Observer,
    observation: Observation,
    before: FaceFit,
    state: FitState,
    config: VisibilityConfig,
    *,
    kept_motion: float = 0.0,
) -> FaceFit:
    """The record of B faces that one pass has moved from ``before`` to ``state``.

    ``kept_motion``: fraction of the face size. Faces that moved by less keep the visibility that
    ``before`` holds.
    """
    moved = move_fit(fit_model, before, state)
    visibility = before.visibility
    stale = ~(moved.motion < kept_motion)
    if stale.all():
        visibility = compute_visibility(fit_model, state, config)
    elif stale.any():
        rows = np.flatnonzero(stale)
        seen = compute_visibility(fit_model, state[rows], config)
        visibility = replace_rows(visibility, rows, seen)
    agreement, residual = measure_agreement(
        fit_model, state, observation.matches, observation.px, visibility.anchors
    )
    return with_fields(
        moved,
        crops=observation.crops,
        visibility=visibility,
        matches=observation.matches,
        px=observation.px,
        agreement=agreement,
        probes=observer.probe(observation, moved.landmarks),
        residual=residual,
    )


def see_meshes(fit_model: FitModel, fit: FaceFit, config: VisibilityConfig) -> FaceFit:
    """The record of B faces with the visibility of their meshes."""
    return with_fields(fit, visibility=compute_visibility(fit_model, fit.state, config))


def move_fit(fit_model: FitModel, before: FaceFit, state: FitState) -> FaceFit:
    """The record of B faces at a new ``state``, before any observation there."""
    landmarks = fit_model.landmarks(state)
    motion = _mean_distance(landmarks, before.landmarks)
    return with_fields(
        before,
        state=state,
        landmarks=landmarks,
        motion=motion / fit_model.face_size(state),
        residual=np.full(len(motion), np.nan),
        detected=np.zeros_like(before.detected),
    )


@numba.njit(cache=CACHE, nogil=True)
def _mean_distance(a, b):  # type: ignore[no-untyped-def]
    """(B,) mean distance between two (B, L, 2) sets of points."""
    out = np.zeros(len(a))
    for i in range(len(a)):
        for n in range(a.shape[1]):
            x, y = a[i, n, 0] - b[i, n, 0], a[i, n, 1] - b[i, n, 1]
            out[i] += np.sqrt(x * x + y * y)
        out[i] /= a.shape[1]
    return out


def average_fits(fit_model: FitModel, fit: FaceFit, others: Sequence[FaceFit]) -> FaceFit:
    """``fit`` of B faces with states averaged over others; what was observed is its own.

    Faces that any of the fits lost keep their state.
    """
    lost = np.logical_or.reduce([fit.lost, *(other.lost for other in others)])
    mean = average_states([fit.state, *(other.state for other in others)])
    state = choose_rows(~lost, mean, fit.state)
    return with_fields(fit, state=state, landmarks=fit_model.landmarks(state))


def measure_agreement(
    fit_model: FitModel, state: FitState, matches: Matches, px: Floats, visible: Floats
) -> tuple[Floats, Floats]:
    """(B, N) agreement of each pixel, and (B,) mean distance of the agreeing matches.

    Agreement is the probability that the pixel shows the face and matches a visible point that the
    fit puts close to it; the distance is a fraction of the face size. (B, N, 2) ``px`` of the
    matches; (B, A) ``visible`` anchors, 0 to 1.
    """
    agreement, residual = kernels.agree(
        matches.anchor,
        matches.probability,
        matches.mask,
        px,
        visible,
        fit_model.anchor_mean,
        fit_model.anchor_basis,
        fit_model.size,
        GATE,
        AGREEMENT,
        state.scale,
        state.rotation,
        state.centre,
        state.coefficients,
        state.inverse_depth,
    )
    return agreement, residual
