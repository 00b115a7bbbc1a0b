import numpy as np
import pytest

from dff.face.solve.gauss_newton import solve_positive
from dff.face.solve.gram import LANES, multiply_by_own


@pytest.mark.parametrize("count", [0, 1, 301])
@pytest.mark.parametrize("columns", [LANES, 3 * LANES])
def test_a_matrix_is_multiplied_by_its_own_transpose(count: int, columns: int) -> None:
    rows = np.random.default_rng(0).normal(size=(count, columns)).astype(np.float32)
    out = np.full((columns, columns), np.nan, np.float32)
    multiply_by_own(rows, out)
    want = rows.T.astype(np.float64) @ rows
    np.testing.assert_allclose(np.triu(out), np.triu(want), atol=1e-3)


@pytest.mark.parametrize("count", [3, 2 * LANES, 3 * LANES + 5])
def test_equations_are_solved_for_each_right_side(count: int) -> None:
    rng = np.random.default_rng(0)
    root, sides = rng.normal(size=(count, count)), rng.normal(size=(count, 2))
    matrix = root @ root.T + np.eye(count)
    unused = np.full((count, 3), 7.0)
    upper = np.triu(matrix) + np.tril(np.full_like(matrix, 9.0), -1)
    x = np.empty((2, count))
    assert solve_positive(np.concatenate([upper, sides, unused], axis=1), x)
    np.testing.assert_allclose(x.T, np.linalg.solve(matrix, sides), rtol=1e-7)


def test_there_are_no_solutions_where_a_matrix_is_not_positive_definite() -> None:
    for matrix in (np.diag([1.0, -1.0]), np.diag([1.0, np.nan])):
        system = np.concatenate([matrix, np.ones((2, 1))], axis=1)
        assert not solve_positive(system, np.empty((1, 2)))
