"""Smooth deformations of a face, whatever its model can form: a Gaussian process over the template.

Source: Lüthi et al., "Gaussian Process Morphable Models", PAMI 2018.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from dff.face.arrays import Floats, Ints

LEAST = 1e-9  # of the largest variance; below it is rounding
TIED = 1e-12  # of a function's largest value; as near to it is as large


def smooth_fields(
    template: Floats, vertex: Ints, *, reach: float, count: int, parity: int = 0
) -> Floats:
    """(count, V) functions on the (V, 3) template, float64, that vary most at the ``vertex`` (A,)
    of it.

    Times independent standard normal numbers and summed they are a Gaussian process of deviation 1,
    whose covariance falls with distance as a Gaussian of ``reach`` (metres), but for its finest
    part. ``parity``: 1 or -1 keep the part of it that is even or odd in x; both parts together are
    the whole. Fewer where so few vertices allow no more.
    """
    points = template.astype(np.float64)
    covariance = _covariance(points, points[vertex], reach)  # (V, A)
    if parity:
        covariance = (
            covariance + parity * _covariance(points * [-1.0, 1.0, 1.0], points[vertex], reach)
        ) / 2.0
        # Of places beside their mirror images the matrix has to be symmetric to the last bit.
        covariance[vertex] = (covariance[vertex] + covariance[vertex].T) / 2.0
    variance, vectors = np.linalg.eigh(covariance[vertex])
    strongest = np.arange(len(variance))[::-1][:count]
    strongest = strongest[variance[strongest] > LEAST * variance[-1]]
    fields = covariance @ (
        vectors[:, strongest] / np.sqrt(variance[strongest])
    )  # to all vertices, by Nyström
    # Which way an eigenvector points is the library's choice, and where two places of a symmetric
    # face are furthest off alike, only rounding tells them apart: the first of them counts.
    size = np.abs(fields)
    largest = (size >= (1.0 - TIED) * size.max(0)).argmax(0)
    return np.asarray((fields * np.sign(fields[largest, np.arange(fields.shape[1])])).T)


def _covariance(a: Floats, b: Floats, reach: float) -> Floats:
    return np.asarray(np.exp(-0.5 * cdist(a, b, "sqeuclidean") / reach**2))
