from __future__ import annotations

import numpy as np
import pytest

from dff.face.solve.least_squares import (
    damp,
    eliminate,
    eliminate_scalars,
    marginalise,
    normal_equations,
)

GROUPS, OWN, SHARED = 4, 3, 5


def arrow(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Blocks of positive definite matrices: own, coupling, shared, and the two right sides."""
    rows = rng.normal(size=(GROUPS, 40, OWN + SHARED))
    whole = np.swapaxes(rows, 1, 2) @ rows
    right = rng.normal(size=(GROUPS, OWN + SHARED))
    own, coupling, shared = whole[:, :OWN, :OWN], whole[:, :OWN, OWN:], whole[:, OWN:, OWN:]
    return own, coupling, shared, right[:, :OWN], right[:, OWN:]


def dense(*blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    own, coupling, shared, own_right, shared_right = blocks
    size = GROUPS * OWN
    whole, right = np.zeros((size + SHARED, size + SHARED)), np.zeros(size + SHARED)
    for b in range(GROUPS):
        rows = slice(b * OWN, (b + 1) * OWN)
        whole[rows, rows], whole[rows, size:], whole[size:, rows] = (
            own[b],
            coupling[b],
            coupling[b].T,
        )
        right[rows] = own_right[b]
    whole[size:, size:], right[size:] = shared.sum(0), shared_right.sum(0)
    return whole, right


def test_normal_equations_are_those_of_the_stacked_rows() -> None:
    rng = np.random.default_rng(0)
    rows, residual = rng.normal(size=(2, 30, 4)), rng.normal(size=(2, 30))
    weights = rng.uniform(size=(2, 30))
    hessian, gradient = normal_equations(rows, residual, weights)
    for b in range(2):
        root = np.sqrt(weights[b])
        found = np.linalg.solve(hessian[b], gradient[b])
        expected = np.linalg.lstsq(rows[b] * root[:, None], residual[b] * root, rcond=None)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_elimination_and_substitution_solve_the_dense_system() -> None:
    blocks = arrow(np.random.default_rng(1))
    whole, right = dense(*blocks)
    eliminated = eliminate(*blocks)
    shared = np.linalg.solve(eliminated.hessian.sum(0), eliminated.gradient.sum(0))
    found = np.concatenate([eliminated.substitute(shared).ravel(), shared])
    np.testing.assert_allclose(found, np.linalg.solve(whole, right), rtol=1e-9)


def test_marginal_precision_is_the_inverse_of_the_shared_covariance() -> None:
    own, coupling, shared, *_ = arrow(np.random.default_rng(2))
    for b in range(GROUPS):
        whole = np.block([[own[b], coupling[b]], [coupling[b].T, shared[b]]])
        covariance = np.linalg.inv(whole)[OWN:, OWN:]
        found = marginalise(own[b : b + 1], coupling[b : b + 1], shared[b : b + 1])[0]
        np.testing.assert_allclose(np.linalg.inv(found), covariance, rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_scalars_are_eliminated_like_groups_of_one(dtype: type) -> None:
    rng = np.random.default_rng(3)
    own, pull = rng.uniform(1, 2, 50), rng.normal(size=50)
    coupling = rng.normal(size=(50, SHARED)).astype(dtype)
    hessian, gradient = eliminate_scalars(own, coupling, pull)
    assert hessian.dtype == gradient.dtype == dtype
    zero = np.zeros((50, SHARED, SHARED))
    blocks = own[:, None, None], coupling[:, None].astype(np.float64), zero
    expected = eliminate(*blocks, pull[:, None], np.zeros((50, SHARED)))
    np.testing.assert_allclose(-hessian, expected.hessian.sum(0), atol=1e-4)
    np.testing.assert_allclose(-gradient, expected.gradient.sum(0), atol=1e-4)


def test_damping_raises_the_diagonals_only() -> None:
    hessian = np.random.default_rng(4).normal(size=(2, 3, 3))
    before = hessian.copy()
    damp(hessian, 0.5)
    change = hessian - before
    expected = 0.5 * np.einsum("bii->bi", before) + 1e-9
    np.testing.assert_allclose(np.einsum("bii->bi", change), expected)
    assert np.count_nonzero(change) == 6
