"""Triangle meshes: surface points and normals. Triangles are counter-clockwise from outside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Array, Float, Floats, Integer, Ints


@dataclass(frozen=True)
class SurfacePoints:
    """Points on a mesh that move with it.

    Raises ValueError when the shapes disagree.
    """

    triangle: Integer[Array, "*points"]  # row of ``faces``
    barycentric: Float[Array, "*points 3"]  # weights of the triangle's corners, sum one

    def __post_init__(self) -> None:
        if self.barycentric.shape != (*self.triangle.shape, 3):
            raise ValueError(
                f"{self.triangle.shape} triangles with barycentrics {self.barycentric.shape}"
            )

    def of(self, values: Floats, faces: Ints) -> Floats:
        """Interpolate (V, C) vertex values (positions, normals, colours) at the points: (N, C)."""
        return np.asarray(np.einsum("nk,nkc->nc", self.barycentric, values[faces[self.triangle]]))


def unique_edges(faces: Ints) -> Ints:
    """(E, 2) the vertices of each edge of (F, 3) triangles once, the lower first, in order."""
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(sides, axis=1), axis=0)


def triangle_normals(vertices: Floats, faces: Ints) -> Floats:
    """(F, 3) outward normals of length twice the triangle's area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(vertices: Floats, faces: Ints) -> Floats:
    """(V, 3) unit normals, weighted by area, in the frame of ``vertices``.

    Vertices of no triangle get zero.
    """
    per_triangle = triangle_normals(vertices, faces)
    total = np.zeros_like(vertices)
    for corner in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(
                faces[:, corner], weights=per_triangle[:, axis], minlength=len(vertices)
            )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.asarray(total / np.where(length > 0, length, 1.0))
