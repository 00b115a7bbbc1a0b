"""Things before a face: meshes in the head's frame that are rendered with it in one pass of the
z-buffer.

So what they hide is hidden exactly, by depth. A view's parts are put into one mesh before it is
drawn; nothing here loops over parts for each pixel or triangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from dff.face.arrays import Floats, Ints
from dff.face.render.frame import OCCLUDER

GRAIN_SIDE = 256


@dataclass(frozen=True, eq=False)
class Prop:
    """A triangle mesh in head. Raises ValueError when the shapes disagree or a triangle names no
    vertex.
    """

    vertices: Floats  # (N, 3) metres, for the face at rest
    faces: Ints  # (M, 3) int32, counter-clockwise from outside
    colour: Floats  # (N, 3) albedo 0..1
    # (N, 3) place in the strand pattern (across, along; it repeats after 1), and how strongly it
    # shows
    grain: Floats
    anchor: Ints  # (N,) the vertex of the head that each vertex follows
    follow: Floats  # (N,) 0..1: how much of that vertex's motion from rest it takes part in

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
                raise ValueError(f"Prop.{name} wants {shape}, got {getattr(self, name).shape}")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise ValueError(f"Prop.faces wants (M, 3), got {self.faces.shape}")
        if self.faces.size and (self.faces.min() < 0 or self.faces.max() >= count):
            raise ValueError("a triangle of a prop names no vertex")

    @cached_property
    def look(self) -> NDArray[np.float32]:
        """(N, 6) colour and grain side by side."""
        return np.concatenate([self.colour, self.grain], axis=1).astype(np.float32)

    @staticmethod
    def plain(vertices: Floats, faces: Ints, colour: Floats) -> Prop:
        """A rigid mesh without a pattern; ``colour`` (3,) or (N, 3)."""
        count = len(vertices)
        return Prop(
            vertices=np.asarray(vertices, dtype=np.float64),
            faces=np.asarray(faces, dtype=np.int32),
            colour=np.broadcast_to(np.asarray(colour, dtype=np.float64), (count, 3)),
            grain=np.zeros((count, 3)),
            anchor=np.zeros(count, dtype=np.int32),
            follow=np.zeros(count),
        )

    def following(self, anchor: Ints, follow: Floats) -> Prop:
        """The same, following head vertices: ``anchor`` and ``follow`` (N,) or one for all."""
        count = len(self.vertices)
        return replace(
            self,
            anchor=np.broadcast_to(np.asarray(anchor, dtype=np.int32), count),
            follow=np.broadcast_to(np.asarray(follow, dtype=np.float64), count),
        )

    def moved(self, head: Floats, neutral: Floats) -> Floats:
        """(N, 3) vertices for a face with (V, 3) vertices ``head`` that has (V, 3) ``neutral`` at
        rest.
        """
        return self.vertices + self.follow[:, None] * (head[self.anchor] - neutral[self.anchor])


NOTHING = Prop.plain(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int32), np.zeros(3))


def together(props: Sequence[Prop]) -> Prop:
    """One mesh of several; their triangles in order."""
    if not props:
        return NOTHING
    start = np.cumsum([0, *(len(p.vertices) for p in props[:-1])])
    return Prop(
        vertices=np.concatenate([p.vertices for p in props]),
        faces=np.concatenate([p.faces + np.int32(s) for p, s in zip(props, start, strict=True)]),
        colour=np.concatenate([p.colour for p in props]),
        grain=np.concatenate([p.grain for p in props]),
        anchor=np.concatenate([p.anchor for p in props]),
        follow=np.concatenate([p.follow for p in props]),
    )


def hidden_by_props(ids: NDArray[np.int32], faces: int) -> NDArray[np.int32]:
    """The (H, W) triangles of a head of ``faces`` triangles, from those of the head and the props
    after it.

    Where a prop hides it, that is OCCLUDER.
    """
    out = ids.copy()
    np.copyto(out, np.int32(OCCLUDER), where=ids >= faces)
    return out


@cache
def strands() -> NDArray[np.float32]:
    """(GRAIN_SIDE, GRAIN_SIDE) the pattern of hair: fine across (columns), slow along (rows); mean
    0, repeats.
    """
    rng = np.random.default_rng(3)
    out = np.zeros((GRAIN_SIDE, GRAIN_SIDE))
    for across, along, weight in ((0.6, 24.0, 1.0), (2.0, 40.0, 0.8), (7.0, 60.0, 0.5)):
        layer = gaussian_filter(rng.standard_normal(out.shape), (along, across), mode="wrap")
        out += weight * layer / layer.std()
    return np.asarray((out - out.mean()) / out.std(), dtype=np.float32)
