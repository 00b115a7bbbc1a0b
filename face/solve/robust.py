"""Geman and McClure's robust loss: r^2 / (1 + r^2 / s^2) of a residual of length r with scale s.

Far beyond the scale a residual adds the constant s^2. Iteratively re-weighted least squares lowers
the loss with the weights below. Source: Black and Rangarajan, "On the Unification of Line
Processes, Outlier Rejection, and Robust Statistics" (1996).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from dff.face.arrays import Floats


@register_jitable(inline="always")
def geman_mcclure(square: Any) -> Any:
    """Weights of squared residuals over the squared scale, numbers or arrays: one fourth at one.

    Compiled code may call it with numbers.
    """
    return 1.0 / (1.0 + square) ** 2


def robust_weights(residual: Floats, scale: Floats | float) -> Floats:
    """(...) weights of (..., D) residuals; a residual of length ``scale`` counts one fourth.

    ``scale``: in the residuals' unit, one for all or of a shape that broadcasts to the weights.
    """
    return np.asarray(geman_mcclure((residual**2).sum(-1) / scale**2))


def robust_energy(residual: Floats, scale: Floats | float, weights: Floats | float = 1.0) -> Floats:
    """(...) losses of (..., D) residuals times their ``weights``; ``scale`` as above."""
    square = (residual**2).sum(-1)
    return np.asarray(weights * square / (1.0 + square / scale**2))
