"""Cameras at a finite, unknown distance.

At arm's length a nose appears a tenth larger than from afar, which exceeds the variation of noses
between people. One photo hardly determines which is the case. Several photos of one person do, so
the inverse depth of each photo's camera is then an unknown: the last column of the Jacobian.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dff.aligner.config import MultiImageConfig
from dff.aligner.fitting.fit_model import FitState
from dff.face.arrays import Floats
from dff.face.solve.gauss_newton import apply_step, evaluate_shape, jacobian


def perspective_jacobian(state: FitState, mean: Floats, basis: Floats) -> tuple[Floats, Floats]:
    """(B, N, 2) projections and their (B, N, 2, 6 + P + 1) derivatives.

    As ``dff.face.solve.gauss_newton.jacobian``; the last column is the inverse depth of the camera.
    """
    inverse_depth = state.inverse_depth
    px, without = jacobian(state, mean, basis, inverse_depth)
    points = evaluate_shape(mean, basis, state.coefficients)
    depth = np.matmul(points, state.rotation[:, 2, :, None])  # (B, N, 1)
    slope = -(px - state.centre[:, None]) * depth / (1.0 + inverse_depth[:, None, None] * depth)
    return px, np.concatenate([without, slope[..., None]], axis=3)


def move(state: FitState, delta: Floats, config: MultiImageConfig) -> FitState:
    """The state after (B, 6 + P + 1) ``delta`` in the columns of ``perspective_jacobian``.

    Inverse depths are clipped to 0 .. ``config.nearest``.
    """
    face = apply_step(state, delta[:, :-1])
    inverse_depth = np.clip(state.inverse_depth + delta[:, -1], 0.0, config.nearest)
    return replace(state.with_face(face), inverse_depth=inverse_depth)
