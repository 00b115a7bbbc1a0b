from __future__ import annotations

import numba
import numpy as np

from dff.face.solve.robust import geman_mcclure, robust_energy, robust_weights


def test_weights_are_the_slope_of_the_energy_by_the_squared_residual() -> None:
    square = np.linspace(0.0, 9.0, 50)
    residual, step = np.sqrt(square)[:, None], 1e-6
    after = robust_energy(np.sqrt(square + step)[:, None], 1.5)
    slope = (after - robust_energy(residual, 1.5)) / step
    np.testing.assert_allclose(robust_weights(residual, 1.5), slope, atol=1e-5)


def test_a_residual_of_the_scale_counts_one_fourth_and_costs_half_of_the_most() -> None:
    residual = np.array([[3.0, 4.0], [3e6, 4e6]])
    np.testing.assert_allclose(robust_weights(residual, 5.0), [0.25, 0.0], atol=1e-9)
    np.testing.assert_allclose(robust_energy(residual, 5.0, np.array([1.0, 2.0])), [12.5, 50.0])


def test_compiled_code_computes_the_same_weight() -> None:
    @numba.njit
    def compiled(square):  # type: ignore[no-untyped-def]
        return geman_mcclure(square)

    assert compiled(0.7) == geman_mcclure(0.7)
