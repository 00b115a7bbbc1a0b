"""The part of a fitted mesh that cameras see: without what lies inside the mouth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Array, Float, Floats, Int, Integer, Ints
from dff.face.model.morphable import MorphableModel


@dataclass(frozen=True)
class OuterMesh:
    """A part of a model's mesh, with latent directions. Numbers of vertices are its own."""

    vertex: Integer[Array, " vertices"]  # int32, of the model
    faces: Integer[Array, "triangles 3"]  # int32
    mean: Float[Array, "vertices 3"]  # metres
    basis: Float[Array, "modes vertexcoordinates"]  # float32
    anchors: Int[Array, " anchors"]  # vertices
    landmarks: Int[Array, " 68"]  # vertices
    landmark_triangles: Int[Array, "68 corners"]  # those at each landmark, some repeated
    edges: Integer[Array, "edges 2"]  # int32, vertices, that an occluding contour may cross

    def vertices(self, latent: Floats) -> Floats:
        """(B, V, 3) metres in the head frame, of (B, P) latent coefficients of its directions."""
        offset = latent.astype(np.float32) @ self.basis
        return np.asarray(self.mean + offset.reshape(len(offset), -1, 3))


def cut_outer_mesh(
    model: MorphableModel,
    basis: Floats,
    inner_regions: Sequence[str],
    *,
    anchors: Ints,
    landmark_triangles: Ints,
    edges: Ints,
) -> OuterMesh:
    """The mesh without the triangles of ``inner_regions``, but with all at what is named.

    (P, 3 V) ``basis`` of the latent directions; (A,) vertices of ``anchors``, (68, T) triangles and
    (E, 2) vertices of ``edges``. Normals at these are therefore those of the whole mesh.
    """
    named = np.zeros(len(model.template), bool)
    named[anchors] = named[edges] = named[model.landmarks.vertex] = True
    kept = np.asarray(named[model.faces].any(1))
    inner = model.find_triangles(*inner_regions)
    kept[np.setdiff1d(np.arange(len(model.faces)), inner)] = True
    vertex, numbers = np.unique(model.faces[kept], return_inverse=True)
    triangle = np.cumsum(kept) - 1
    parts = basis.reshape(len(basis), -1, 3)[:, vertex]
    return OuterMesh(
        vertex=vertex.astype(np.int32),
        faces=np.ascontiguousarray(numbers.reshape(-1, 3), np.int32),
        mean=model.template[vertex].astype(np.float64),
        basis=np.ascontiguousarray(parts.reshape(len(basis), -1)),
        anchors=np.searchsorted(vertex, anchors),
        landmarks=np.searchsorted(vertex, model.landmarks.vertex),
        landmark_triangles=triangle[landmark_triangles],
        edges=np.searchsorted(vertex, edges).astype(np.int32),
    )
