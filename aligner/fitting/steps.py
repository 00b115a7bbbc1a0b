"""Gauss-Newton steps on the soft correspondences of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dff.aligner.config import AlignConfig, CorrespondenceConfig
from dff.aligner.fitting import kernels
from dff.aligner.fitting.batch import choose_rows, replace_rows, take_rows, with_fields
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.mouth import find_lagging_mouths
from dff.aligner.fitting.observation import MatchedPixels, Observation
from dff.aligner.fitting.silhouette import match_silhouette
from dff.aligner.fitting.visibility import Visibility, compute_visibility
from dff.face.arrays import Bools, Floats
from dff.face.solve.gauss_newton import Lines


def fit_from_detection(
    fit_model: FitModel, config: AlignConfig, observation: Observation, start: FitState
) -> FitState:
    """Fit without a prediction: pose in closed form, pose alone, then pose and shape.

    The poses are those of the mean face. ``SolverConfig.pose_noise``: for each estimate in closed
    form, the fraction of the face size from which residuals are outliers of the next one. ``start``
    gives only the expected size; faces that cannot be fitted keep it.
    """
    solver, matches = config.solver, observation.matches
    b, pixels = observation.px.shape[:2]
    state = with_fields(start.copied(), coefficients=np.zeros((b, len(fit_model.modes))))
    kernels.find_poses(
        matches.anchor,
        matches.probability,
        matches.mask,
        observation.px,
        fit_model.anchor_mean,
        np.zeros((pixels, 3, 0), np.float32),
        fit_model.size,
        np.array(solver.pose_noise),
        np.array(solver.rigid_noise),
        solver.observations,
        state.scale,
        state.rotation,
        state.centre,
        state.inverse_depth,
    )
    return follow_matches(
        fit_model,
        observation,
        state,
        np.ones((b, len(fit_model.anchor_mean))),
        solver.first_correspondences,
        observations=solver.observations,
    )


def fit_from_last_frame(
    fit_model: FitModel,
    config: AlignConfig,
    observation: Observation,
    state: FitState,
    visibility: Visibility,
) -> FitState:
    """Fit faces whose shape is nearly known and whose pose may have jumped.

    ``visibility``: of the meshes in ``state``. Where the last pose explains too few of the matches
    (``SolverConfig.still``), the pose is found in closed form from all matches, with the last
    shape.
    """
    state, jumped = find_jumped_poses(fit_model, config, observation, state, visibility.anchors)
    rows = np.flatnonzero(jumped)
    if len(rows):
        seen = compute_visibility(fit_model, state[rows], config.visibility)
        visibility = replace_rows(visibility, rows, seen)
    solver = replace(config.solver, later_steps=config.solver.followed_steps)
    return refine(fit_model, replace(config, solver=solver), observation, state, visibility)


def find_jumped_poses(
    fit_model: FitModel,
    config: AlignConfig,
    observation: MatchedPixels,
    state: FitState,
    visible: Floats,
) -> tuple[FitState, Bools]:
    """The states, with the pose in closed form where the last one explains too few of the matches.

    (B, A) ``visible`` anchors, 0 to 1; (B,) whether a face has jumped.
    """
    solver, matches, state = config.solver, observation.matches, state.copied()
    jumped = kernels.find_jumped(
        matches.anchor,
        matches.probability,
        matches.mask,
        observation.px,
        visible,
        fit_model.anchor_mean,
        fit_model.anchor_basis,
        fit_model.size,
        np.array(solver.pose_noise),
        solver.still_reach,
        solver.still,
        state.scale,
        state.rotation,
        state.centre,
        state.coefficients,
        state.inverse_depth,
    )
    return state, jumped


def refine(
    fit_model: FitModel,
    config: AlignConfig,
    observation: Observation,
    state: FitState,
    visibility: Visibility,
) -> FitState:
    """Fit from a prediction: matches count where the visible anchors are predicted.

    A mouth whose lower lip is matched far below its prediction is opened first.
    """
    rows = find_lagging_mouths(fit_model, observation, state, config.mouth)
    if len(rows) == 0:
        return _refine(fit_model, config, observation, state, visibility)
    if len(rows) == len(state.scale):
        return _open_mouths(fit_model, config, observation, state, visibility)
    refined = _refine(fit_model, config, observation, state, visibility)
    lagging = take_rows(observation, rows)
    opened = _open_mouths(fit_model, config, lagging, state[rows], take_rows(visibility, rows))
    return replace_rows(refined, rows, opened)


def _open_mouths(
    fit_model: FitModel,
    config: AlignConfig,
    observation: Observation,
    state: FitState,
    visibility: Visibility,
) -> FitState:
    """Fit mouths from a prediction that has them closed: by gates that narrow step by step."""
    mouth, lip = config.mouth, fit_model.lower_lip
    more = mouth.observations * config.solver.observations
    # a lip that the closed mouth hides counts, too
    visible = np.maximum(visibility.anchors * fit_model.anchor_weight, lip)
    visible = visible * (1.0 + (mouth.weight - 1.0) * lip)
    opened = follow_matches(
        fit_model, observation, state, visible, mouth.correspondences, observations=more
    )
    solver = replace(config.solver, observations=more)
    return _refine(fit_model, replace(config, solver=solver), observation, opened, visibility)


def _refine(
    fit_model: FitModel,
    config: AlignConfig,
    observation: Observation,
    state: FitState,
    visibility: Visibility,
) -> FitState:
    lines = match_silhouette(fit_model, state, visibility.contour, observation, config.silhouette)
    visible, solver = visibility.anchors * fit_model.anchor_weight, config.solver
    return follow_matches(
        fit_model,
        observation,
        state,
        visible,
        solver.later_correspondences,
        observations=solver.observations,
        lines=lines,
    )


def follow_matches(
    fit_model: FitModel,
    observation: MatchedPixels,
    state: FitState,
    visible: Floats,
    correspondences: Sequence[CorrespondenceConfig],
    *,
    observations: float,
    lines: Lines | None = None,
) -> FitState:
    """Gauss-Newton: compute each soft correspondence about the last prediction, and step to it.

    (B, A) ``visible`` 0 to 1: weights of the anchors. ``observations``: independent ones that all
    pixels of a face count as. ``lines``: other points, which are drawn to lines of the image.
    """
    matches, modes, state = observation.matches, len(fit_model.modes), state.copied()
    lines = lines or Lines.none(len(state.scale), modes)
    for correspondence in correspondences:
        kernels.take_steps(
            matches.anchor,
            matches.probability,
            matches.mask,
            observation.px,
            visible,
            fit_model.anchor_mean,
            fit_model.anchor_basis,
            fit_model.size,
            correspondence.gate,
            np.array(correspondence.noise),
            observations,
            lines.mean,
            lines.basis,
            lines.targets,
            lines.normal,
            lines.weights,
            state.scale,
            state.rotation,
            state.centre,
            state.coefficients,
            state.inverse_depth,
        )
    return state


def scale_weights(weight: Floats, observations: float) -> Floats:
    """(B, N) weights that sum to ``observations`` independent points where all N count fully.

    Errors of neighbouring pixels are correlated, so the number of pixels overstates the evidence.
    """
    return np.asarray(weight * (observations / weight.shape[1]))


def accept(found: FitState, before: FitState, face_size: Floats) -> FitState:
    """``found`` where its numbers, size and place are plausible; else ``before``."""
    ratio = found.scale / before.scale
    good = np.isfinite(found.scale) & (ratio > 0.1) & (ratio < 10)
    good &= np.isfinite(found.rotation).all((1, 2)) & np.isfinite(found.coefficients).all(1)
    good &= np.isfinite(found.inverse_depth)
    good &= np.linalg.norm(found.centre - before.centre, axis=1) < 5 * face_size
    return choose_rows(good, found, before)
