"""Gauss-Newton steps on the soft correspondences of one forward pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dff.aligner.config import AlignConfig
from dff.aligner.fitting.batch import choose_rows, replace_rows
from dff.aligner.fitting.correspondence import soft_correspondence
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.silhouette import match_silhouette
from dff.aligner.fitting.visibility import Visibility, compute_visibility
from dff.face.arrays import Floats
from dff.face.solve.gauss_newton import (
    Lines,
    evaluate_shape,
    initial_pose,
    project,
    step,
)
from dff.face.solve.robust import robust_weights

NO_MODES = np.zeros(0)


def fit_from_detection(
    fit_model: FitModel, config: AlignConfig, observation: Observation, start: FitState
) -> FitState:
    """Fit without a prediction: pose in closed form, pose alone, then pose and shape.

    ``start`` gives only the expected size; faces that cannot be fitted keep it.
    """
    b, solver, px = len(observation.px), config.solver, observation.px
    all_visible = np.ones((b, len(fit_model.anchor_mean)))
    mean, rigid, weight = _ungated(fit_model, observation, all_visible, basis=fit_model.rigid_basis)
    state = replace(start, coefficients=np.zeros((b, 0)))
    state = closed_form_pose(fit_model, solver.pose_noise, mean, px, weight, state)
    for noise in solver.rigid_noise:
        face_size = fit_model.face_size(state)
        found = step(
            state,
            mean,
            rigid,
            px,
            scale_weights(weight, solver.observations),
            noise=noise * face_size,
            prior=NO_MODES,
            prior_sd=NO_MODES,
            inverse_depth=state.inverse_depth,
        )
        state = accept(state.with_face(found), state, face_size)
    state = replace(state, coefficients=np.zeros((b, len(fit_model.modes))))
    return gauss_newton(
        fit_model,
        config,
        observation,
        state,
        all_visible,
        gate=solver.first_gate,
        noises=solver.shape_noise,
    )


def fit_from_last_frame(
    fit_model: FitModel, config: AlignConfig, observation: Observation, state: FitState
) -> FitState:
    """Fit faces whose shape is nearly known and whose pose may have jumped.

    Where the last pose explains too few of the matches (``SolverConfig.still``), the pose is found
    in closed form from all matches, with the last shape.
    """
    visibility = compute_visibility(fit_model, state, config.visibility)
    mean, basis, weight = _ungated(
        fit_model, observation, visibility.anchors, basis=fit_model.anchor_basis
    )
    points, px, solver = (
        evaluate_shape(mean, basis, state.coefficients),
        observation.px,
        config.solver,
    )
    residual = px - project(state, points, state.inverse_depth)
    reach = solver.still_reach * fit_model.face_size(state)
    near = (weight * robust_weights(residual, reach[:, None])).sum(1)
    jumped = np.flatnonzero(near < solver.still * weight.sum(1))
    if len(jumped):
        posed = closed_form_pose(
            fit_model, solver.pose_noise, points[jumped], px[jumped], weight[jumped], state[jumped]
        )
        seen = compute_visibility(fit_model, posed, config.visibility)
        state = replace_rows(state, jumped, posed)
        visibility = replace_rows(visibility, jumped, seen)
    return refine(fit_model, config, observation, state, visibility)


def refine(
    fit_model: FitModel,
    config: AlignConfig,
    observation: Observation,
    state: FitState,
    visibility: Visibility,
) -> FitState:
    """Fit from a prediction: matches count where the visible anchors are predicted."""
    lines = match_silhouette(fit_model, state, visibility.contour, observation, config.silhouette)
    visible = visibility.anchors * fit_model.anchor_weight
    solver = config.solver
    for gate in solver.later_gates:
        state = gauss_newton(
            fit_model,
            config,
            observation,
            state,
            visible,
            gate=gate,
            noises=(solver.later_noise,) * solver.later_steps,
            lines=lines,
        )
    return state


def closed_form_pose(
    fit_model: FitModel,
    noises: tuple[float, ...],
    points: Floats,
    px: Floats,
    weight: Floats,
    state: FitState,
) -> FitState:
    """Poses of (B, N, 3) ``points`` at (B, N, 2) ``px``, re-estimated without outliers.

    ``noises``: for each estimate, the fraction of the face size from which residuals are outliers.
    ``state`` gives the shape and the expected size.
    """
    face_size = fit_model.face_size(state)
    inliers = weight
    for noise in noises:
        pose = initial_pose(points, px, inliers, 0)
        found = state.with_face(replace(pose, coefficients=state.coefficients))
        state = accept(found, state, face_size)
        residual = px - project(state, points, state.inverse_depth)
        inliers = weight * robust_weights(residual, (noise * face_size)[:, None])
    return state


def gauss_newton(
    fit_model: FitModel,
    config: AlignConfig,
    observation: Observation,
    state: FitState,
    visible: Floats,
    *,
    gate: float,
    noises: tuple[float, ...],
    lines: Lines | None = None,
) -> FitState:
    """Compute soft correspondences about the prediction of ``state``, and a step for each noise.

    ``gate`` and ``noises``: fractions of the face size; (B, A) ``visible`` 0 to 1.
    """
    face_size = fit_model.face_size(state)
    mean, basis, weight = soft_correspondence(
        observation.matches,
        observation.px,
        fit_model.anchors(state),
        gate * face_size,
        visible,
        fit_model.anchor_mean,
        fit_model.anchor_basis,
    )
    weight = scale_weights(weight, config.solver.observations)
    modes = len(fit_model.modes)
    for noise in noises:
        found = step(
            state,
            mean,
            basis,
            observation.px,
            weight,
            noise=noise * face_size,
            prior=np.zeros(modes),
            prior_sd=np.ones(modes),
            inverse_depth=state.inverse_depth,
            lines=lines,
        )
        state = accept(state.with_face(found), state, face_size)
    return state


def _ungated(
    fit_model: FitModel, observation: Observation, visible: Floats, *, basis: Floats
) -> tuple[Floats, Floats, Floats]:
    """``soft_correspondence`` without a prediction."""
    b = len(observation.px)
    return soft_correspondence(
        observation.matches,
        observation.px,
        np.zeros((b, len(fit_model.anchor_mean), 2)),
        np.full(b, np.inf),
        visible,
        fit_model.anchor_mean,
        basis,
    )


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
