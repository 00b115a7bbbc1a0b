"""Meshes of accessories, in the head's frame.

They are rendered with the head in one pass of the z-buffer, so that what they hide is hidden
exactly. The accessories of a view are merged into one mesh before it is rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from dff.face.arrays import Array, Float, Floats, Int, Ints
from dff.face.render.frame import OCCLUDER

GRAIN_SIDE = 256


@dataclass(frozen=True, eq=False)
class AccessoryMesh:
    """A triangle mesh. Raises ValueError for other shapes and for indices that are no vertex."""

    vertices: Float[Array, "N 3"]  # metres, head, for the face at rest
    faces: Int[Array, "M 3"]  # int32, counter-clockwise as seen from outside
    colour: Float[Array, "N 3"]  # albedo, 0 to 1
    # Place in the strand pattern (across, along; it repeats after 1), and strength of the pattern
    grain: Float[Array, "N 3"]
    anchor: Int[Array, " N"]  # the vertex of the head that each vertex follows
    follow: Float[Array, " N"]  # 0 to 1: share of that vertex's motion from rest

    def __post_init__(self) -> None:
        count = len(self.vertices)
        wanted = {
            "vertices": (count, 3),
            "colour": (count, 3),
            "grain": (count, 3),
            "anchor": (count,),
        }
        for name, shape in {**wanted, "follow": (count,)}.items():
            if getattr(self, name).shape != shape:
                got = getattr(self, name).shape
                raise ValueError(f"AccessoryMesh.{name} wants {shape}, got {got}")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise ValueError(f"AccessoryMesh.faces wants (M, 3), got {self.faces.shape}")
        if self.faces.size and (self.faces.min() < 0 or self.faces.max() >= count):
            raise ValueError("a triangle of AccessoryMesh.faces names no vertex")

    @cached_property
    def vertex_attributes(self) -> NDArray[np.float32]:
        """(N, 6) colour and pattern, as ``VertexColours.attributes`` of the shading pass."""
        return np.concatenate([self.colour, self.grain], axis=1).astype(np.float32)

    @staticmethod
    def plain(vertices: Floats, faces: Ints, colour: Floats) -> AccessoryMesh:
        """A rigid mesh without a pattern; ``colour`` (3,) or (N, 3)."""
        count = len(vertices)
        return AccessoryMesh(
            vertices=np.asarray(vertices, dtype=np.float64),
            faces=np.asarray(faces, dtype=np.int32),
            colour=np.broadcast_to(np.asarray(colour, dtype=np.float64), (count, 3)),
            grain=np.zeros((count, 3)),
            anchor=np.zeros(count, dtype=np.int32),
            follow=np.zeros(count),
        )

    def following(self, anchor: Ints, follow: Floats) -> AccessoryMesh:
        """The mesh, whose vertices follow those of the head: (N,) or one value for all."""
        count = len(self.vertices)
        return replace(
            self,
            anchor=np.broadcast_to(np.asarray(anchor, dtype=np.int32), count),
            follow=np.broadcast_to(np.asarray(follow, dtype=np.float64), count),
        )

    def moved(self, head: Floats, neutral: Floats) -> Floats:
        """(N, 3) metres: the vertices for a face of (V, 3) ``head``, at rest (V, 3) ``neutral``."""
        return self.vertices + self.follow[:, None] * (head[self.anchor] - neutral[self.anchor])


EMPTY_MESH = AccessoryMesh.plain(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int32), np.zeros(3))


def merge_meshes(meshes: Sequence[AccessoryMesh]) -> AccessoryMesh:
    """One mesh of several, with their triangles in order."""
    if not meshes:
        return EMPTY_MESH
    start = np.cumsum([0, *(len(p.vertices) for p in meshes[:-1])])
    return AccessoryMesh(
        vertices=np.concatenate([p.vertices for p in meshes]),
        faces=np.concatenate([p.faces + np.int32(s) for p, s in zip(meshes, start, strict=True)]),
        colour=np.concatenate([p.colour for p in meshes]),
        grain=np.concatenate([p.grain for p in meshes]),
        anchor=np.concatenate([p.anchor for p in meshes]),
        follow=np.concatenate([p.follow for p in meshes]),
    )


def mark_occluders(ids: NDArray[np.int32], faces: int) -> NDArray[np.int32]:
    """(H, W) triangles of a head of ``faces`` triangles, OCCLUDER where an accessory hides it.

    ``ids`` are triangles of the head and of the accessories, which follow it.
    """
    out = ids.copy()
    np.copyto(out, np.int32(OCCLUDER), where=ids >= faces)
    return out


@cache
def build_strand_pattern() -> NDArray[np.float32]:
    """(GRAIN_SIDE, GRAIN_SIDE) pattern of hair: fine along columns, slow along rows; it repeats.

    Its mean is 0 and its standard deviation 1.
    """
    rng = np.random.default_rng(3)
    out = np.zeros((GRAIN_SIDE, GRAIN_SIDE))
    for across, along, weight in ((0.6, 24.0, 1.0), (2.0, 40.0, 0.8), (7.0, 60.0, 0.5)):
        layer = gaussian_filter(rng.standard_normal(out.shape), (along, across), mode="wrap")
        out += weight * layer / layer.std()
    return np.asarray((out - out.mean()) / out.std(), dtype=np.float32)
