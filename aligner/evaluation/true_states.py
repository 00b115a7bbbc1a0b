"""The states of a fit model that are nearest to rendered views, whose pose and shape are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.face.arrays import Floats, Ints
from dff.face.solve.gauss_newton import initial_pose, step
from dff.infra.datasets.shards import ViewRow


@dataclass(frozen=True)
class TrueStateConfig:
    """How closely states follow a view. Raises ValueError for counts that make no sense."""

    anchors: int = 4  # one in ``anchors`` anchors counts, beside the landmarks
    landmark_weight: float = 3.0  # over an anchor's: alignments are evaluated at the landmarks
    noise: float = 0.015  # face sizes: how closely the projected points are followed
    observations: float = 50.0  # independent points that these count as
    steps: int = 3  # Gauss-Newton

    def __post_init__(self) -> None:
        if min(self.anchors, self.steps) < 1:
            raise ValueError(f"TrueStateConfig wants positive counts: {self}")


def find_true_states(
    fit_model: FitModel,
    rows: Sequence[ViewRow],
    start: FitState | None = None,
    config: TrueStateConfig | None = None,
) -> FitState:
    """The states of B views nearest to their landmarks and anchors, by Gauss-Newton.

    ``start``: states that the steps begin from, and whose inverse depths stay; by default weak
    perspective, posed in closed form.
    """
    config = config or TrueStateConfig()
    some = slice(None, None, config.anchors)
    vertex = np.concatenate([fit_model.model.landmarks.vertex, fit_model.anchor_vertex[some]])
    mean = np.concatenate([fit_model.landmark_mean, fit_model.anchor_mean[some]])
    basis = np.concatenate([fit_model.landmark_basis, fit_model.double_anchor_basis[some]])
    points, px = _project_vertices(fit_model, rows, vertex)
    weight = np.full(px.shape[:2], config.observations / config.noise**2 / len(vertex))
    weight[:, :68] *= config.landmark_weight
    modes = len(fit_model.modes)
    state = start or FitState.of(initial_pose(points, px, weight, modes), 0.0)
    for _ in range(config.steps):
        face = step(
            state,
            mean,
            basis,
            px,
            weight,
            # Noise as wide as the face: residuals of exact points are no outliers.
            noise=fit_model.face_size(state),
            prior=np.zeros(modes),
            prior_sd=np.ones(modes),
            inverse_depth=state.inverse_depth,
        )
        state = state.with_face(face)
    return state


def _project_vertices(
    fit_model: FitModel, rows: Sequence[ViewRow], vertex: Ints
) -> tuple[Floats, Floats]:
    """(B, N, 3) metres in ``head`` and (B, N, 2) pixels of the vertices of B views."""
    model = fit_model.model
    points = [model.vertices(row.coefficients(model))[vertex] for row in rows]
    px = [
        row.camera.px_from_cam(row.cam_from_head.apply(some))
        for row, some in zip(rows, points, strict=True)
    ]
    return np.stack(points), np.stack(px)
