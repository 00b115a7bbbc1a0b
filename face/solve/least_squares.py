"""Weighted linear least squares: normal equations and block elimination.

The step x of a linearised energy sum_n w_n (r_n - J_n x)^2 solves H x = g with H = J^T W J and
g = J^T W r. Where B groups of unknowns x_b (one photo's pose, one point's albedo) meet only in
shared unknowns y (the identity of a person), H is an arrow:

    | A_1            C_1 | | x_1 |   | g_1 |
    |      ...       ... | | ... | = | ... |
    |           A_B  C_B | | x_B |   | g_B |
    | C_1' ...  C_B'  D  | |  y  |   |  h  |

Each group is eliminated (the Schur complement), what remains is solved for y, and the groups follow
by substituting back:

    (D - sum_b C_b' A_b^-1 C_b) y = h - sum_b C_b' A_b^-1 g_b
    x_b = A_b^-1 g_b - A_b^-1 C_b y

This is the exact solution at the cost of B small systems. Sources: Triggs et al., "Bundle
Adjustment: A Modern Synthesis" (1999), section 6; ``_schur.py`` of jaxls has the same layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Array, Float, Floats


def normal_equations(rows: Floats, residual: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """(..., Q, Q) J^T W J and (..., Q) J^T W r of (..., N, Q) rows, (..., N) residuals and weights.

    The product has the precision of ``rows``.
    """
    weighted = np.swapaxes(rows * weights[..., None], -1, -2)
    return weighted @ rows, (weighted @ residual[..., None])[..., 0]


def damp(hessian: Floats, damping: float) -> None:
    """Multiply diagonals of (..., Q, Q) matrices by 1 + ``damping`` and add 1e-9, in place."""
    diagonal = np.arange(hessian.shape[-1])
    hessian[..., diagonal, diagonal] *= 1.0 + damping
    hessian[..., diagonal, diagonal] += 1e-9


@dataclass(frozen=True)
class Eliminated:
    """The reduced systems of the shared unknowns, to be summed over the B eliminated groups."""

    hessian: Float[Array, "groups shared shared"]  # D_b - C_b' A_b^-1 C_b
    gradient: Float[Array, "groups shared"]  # h_b - C_b' A_b^-1 g_b
    solved_coupling: Float[Array, "groups own shared"]  # A_b^-1 C_b
    solved_gradient: Float[Array, "groups own"]  # A_b^-1 g_b

    def substitute(self, shared: Floats) -> Floats:
        """(B, q) the groups' own unknowns, given the (S,) shared ones."""
        return np.asarray(self.solved_gradient - self.solved_coupling @ shared)


def eliminate(
    own: Floats, coupling: Floats, shared: Floats, own_gradient: Floats, shared_gradient: Floats
) -> Eliminated:
    """Eliminate B groups of q unknowns that share S others.

    A (B, q, q) ``own``, C (B, q, S) ``coupling``, D (B, S, S) ``shared``, g (B, q)
    ``own_gradient``, h (B, S) ``shared_gradient``: the last two blocks as each group gives them.
    """
    solved = np.linalg.solve(own, np.concatenate([coupling, own_gradient[..., None]], axis=2))
    across = np.swapaxes(coupling, 1, 2)
    return Eliminated(
        shared - across @ solved[..., :-1],
        shared_gradient - (across @ solved[..., -1:])[..., 0],
        solved[..., :-1],
        solved[..., -1],
    )


def marginalise(own: Floats, coupling: Floats, shared: Floats) -> Floats:
    """(B, S, S) D - C' A^-1 C, the marginal precision of the shared unknowns.

    (B, q, q) ``own``, (B, q, S) ``coupling``, (B, S, S) ``shared``.
    """
    return np.asarray(shared - np.swapaxes(coupling, 1, 2) @ np.linalg.solve(own, coupling))


def eliminate_scalars(own: Floats, coupling: Floats, own_gradient: Floats) -> tuple[Floats, Floats]:
    """C' A^-1 C (S, S) and C' A^-1 g (S,) of N groups of one unknown each, to be subtracted.

    (N,) ``own``, (N, S) ``coupling``, (N,) ``own_gradient``; computed in the precision of
    ``coupling``.
    """
    root = np.sqrt(own)
    scaled = coupling / root[:, None].astype(coupling.dtype)
    return scaled.T @ scaled, scaled.T @ (own_gradient / root).astype(coupling.dtype)


def ridge(rows: Floats, targets: Floats, penalties: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """Ridge regression: (F, T) weights and (T,) offsets that map (N, F) rows to (N, T) targets.

    One pair for each penalty, which multiplies the mean square length of the centred rows. The
    primal or the dual system is solved, whichever is smaller.
    """
    # A second of import that only trainings need.
    from scipy.linalg import cho_factor, cho_solve

    row_mean, target_mean = rows.mean(0, dtype=np.float64), targets.mean(0)
    x, y = rows - row_mean.astype(rows.dtype), targets - target_mean
    dual = len(x) < x.shape[1]
    gram = x @ x.T if dual else x.T @ x
    load = float(np.trace(gram)) / len(x)
    right = y if dual else x.T @ y
    out = []
    for penalty in penalties:
        solved = cho_solve(
            cho_factor(gram + penalty * load * np.eye(len(gram), dtype=gram.dtype), lower=True),
            right,
        )
        weight = x.T @ solved if dual else solved
        out.append((weight, target_mean - row_mean @ weight))
    return out
