"""Residual deformations of a face: a Gaussian process over the template.

It forms smooth shapes that the morphable model cannot. Source: Lüthi et al., "Gaussian Process
Morphable Models", PAMI 2018.
"""

from __future__ import annotations

import numpy as np

from dff.face.arrays import Floats, Ints

LEAST = 1e-9  # share of the largest variance; smaller variances are rounding errors
LEAST_EXPONENT = -700.0  # exponentials of smaller numbers are subnormal
TIED = 1e-12  # relative difference from a function's largest value that counts as equal


def smooth_fields(
    template: Floats, vertex: Ints, *, reach: float, count: int, parity: int = 0
) -> Floats:
    """(count, V) leading functions of a Gaussian process on the (V, 3) template, float64.

    Their sum, weighted with independent standard normal numbers, is the process: of deviation 1,
    with a Gaussian covariance of standard deviation ``reach`` (metres). Eigenfunctions are found at
    the (A,) ``vertex`` and extended to all vertices (Nyström). ``parity`` 1 or -1 keeps the part
    that is even or odd in x. There are fewer than ``count`` where A is small.
    """
    points = template.astype(np.float64)
    covariance = gaussian_kernel(points, points[vertex], reach)  # (V, A)
    if parity:
        covariance = (
            covariance + parity * gaussian_kernel(points * [-1.0, 1.0, 1.0], points[vertex], reach)
        ) / 2.0
        # With mirrored points the matrix has to be made symmetric to the last bit.
        covariance[vertex] = (covariance[vertex] + covariance[vertex].T) / 2.0
    variance, vectors = np.linalg.eigh(covariance[vertex])
    strongest = np.arange(len(variance))[::-1][:count]
    strongest = strongest[variance[strongest] > LEAST * variance[-1]]
    fields = covariance @ (vectors[:, strongest] / np.sqrt(variance[strongest]))
    # The sign of an eigenvector is arbitrary: the largest value is made positive. On a symmetric
    # face two vertices can be largest up to rounding; the first one counts.
    size = np.abs(fields)
    largest = (size >= (1.0 - TIED) * size.max(0)).argmax(0)
    return np.asarray((fields * np.sign(fields[largest, np.arange(fields.shape[1])])).T)


def gaussian_kernel(a: Floats, b: Floats, reach: float) -> Floats:
    """(N, M) exp(-d^2 / (2 reach^2)) of the distances d between (N, 3) and (M, 3) points.

    Without subnormal numbers, with which products of matrices take ten times as long.
    """
    from scipy.spatial.distance import cdist  # takes a fifth of a second to import

    exponent = -0.5 * cdist(a, b, "sqeuclidean") / reach**2
    exponent[exponent < LEAST_EXPONENT] = -np.inf
    return np.asarray(np.exp(exponent))
