"""The outline of a face: where its surface turns away from the camera, and where the network sees
the face end.

Pixels vote for points of the surface, and what they vote for leans to how faces usually are. Where
a face ends before something else its own shape shows: there a fitted surface has to end, too. How
far along is not known, so each point of an outline is a line
(``dff.face.solve.gauss_newton.Lines``).

Source: Romdhani and Vetter, "Estimating 3D Shape and Texture Using Pixel Intensity, Edges, Specular
Highlights, Texture Constraints and a Prior" (CVPR 2005); Bas, Smith, Bolkart and Wuhrer, "Fitting a
3D Morphable Model to Edges" (2016).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numba
import numpy as np

from dff.face.arrays import Bools, Floats, Ints
from dff.face.geometry.mesh import unique_edges
from dff.face.model.morphable import MorphableModel

REGIONS = (
    "face",
    "lips",
    "brows",
)  # whose outlines count: ears and scalps differ in ways that no model tells
MOST = 256  # places of a face where its surface turns away, at most
KEPT = 64  # of them that a fit counts
REACH = 0.04  # of the face's unit: how far from there the face may end
STEPS = 16  # in which that is searched, from the inside outwards
HIDDEN = 0.006  # metres behind the visible surface at which a place is hidden


@dataclass(frozen=True)
class Rim:
    """Where the visible surfaces of B faces turn away from their cameras: places between two
    vertices.
    """

    vertices: Ints  # (B, MOST, 2) int32
    share: Floats  # (B, MOST) of the second vertex
    px: Floats  # (B, MOST, 2) pixels of the photo
    outward: Floats  # (B, MOST, 2) unit normals there
    count: Ints  # (B,) places in use, the first ones

    @staticmethod
    def nothing(faces: int) -> Rim:
        return Rim(
            vertices=np.zeros((faces, MOST, 2), np.int32),
            share=np.zeros((faces, MOST)),
            px=np.zeros((faces, MOST, 2)),
            outward=np.zeros((faces, MOST, 2)),
            count=np.zeros(faces, np.int64),
        )

    def __getitem__(self, rows: Ints | Bools) -> Self:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, rows: Ints, part: Rim) -> None:
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(part, field.name)


def rim_edges(model: MorphableModel) -> Ints:
    """(E, 2) int32 vertices of the edges of the model that an outline may cross."""
    names = [name for name in REGIONS if name in model.region_names]
    return unique_edges(model.faces[model.triangles_of(*names)]).astype(np.int32)


@numba.njit(cache=True, nogil=True)
def surface_depth(ids, faces, depth):  # type: ignore[no-untyped-def]
    """(H, W) depth of each pixel's triangle at its nearest corner; infinite where ``ids`` is -1."""
    out = np.full(ids.shape, np.inf)
    for row in range(ids.shape[0]):
        for column in range(ids.shape[1]):
            f = ids[row, column]
            if f >= 0:
                out[row, column] = min(depth[faces[f, 0]], depth[faces[f, 1]], depth[faces[f, 2]])
    return out


@numba.njit(cache=True, nogil=True)
def farthest_round(depth, x, y):  # type: ignore[no-untyped-def]
    """The largest ``depth`` of the four pixels round a place, pixel centres at whole numbers."""
    height, width = depth.shape
    column, row = int(np.floor(x)), int(np.floor(y))
    out = -np.inf
    for r in (row, row + 1):
        for c in (column, column + 1):
            out = max(out, depth[min(max(r, 0), height - 1), min(max(c, 0), width - 1)])
    return out


@numba.njit(cache=True, nogil=True)
def behind(points, low, scale, depth):  # type: ignore[no-untyped-def]
    """(N,) how far (N, 3) points lie behind the surface that all four pixels round them show; zero
    before it.
    """
    out = np.empty(len(points))
    for n in range(len(points)):
        x, y = (points[n, 0] - low[0]) * scale - 0.5, (points[n, 1] - low[1]) * scale - 0.5
        out[n] = max(points[n, 2] - farthest_round(depth, x, y), 0.0)
    return out


@numba.njit(cache=True, nogil=True)
def _turn(normal, i, j):  # type: ignore[no-untyped-def]
    """Where between two vertices the surface turns away, as the share of the second, and its normal
    there.
    """
    a, b = normal[i, 2], normal[j, 2]
    t = a / (a - b)
    return (
        t,
        (1.0 - t) * normal[i, 0] + t * normal[j, 0],
        (1.0 - t) * normal[i, 1] + t * normal[j, 1],
    )


@numba.njit(cache=True, nogil=True)
def turning(seen, normal, edges, depth, scale, low, vertices, share, place, outward):  # type: ignore[no-untyped-def]
    """Fill one face's row of a ``Rim``, evenly where there are more than it holds; the number of
    places.

    (V, 3) ``seen`` as the camera sees it and its unit ``normal``; (H, W) ``depth`` of the nearest
    surface, pixels ``scale * (xy - low)``. ``place`` (MOST, 2) comes in the units of ``seen``.
    """
    crossing = np.empty(len(edges), np.int32)
    found = 0
    for e in range(len(edges)):
        i, j = edges[e]
        if (normal[i, 2] < 0.0) == (normal[j, 2] < 0.0):
            continue
        t, nx, ny = _turn(normal, i, j)
        if nx * nx + ny * ny < 0.25:  # a fold, not a turn
            continue
        x = ((1.0 - t) * seen[i, 0] + t * seen[j, 0] - low[0]) * scale - 0.5
        y = ((1.0 - t) * seen[i, 1] + t * seen[j, 1] - low[1]) * scale - 0.5
        z = (1.0 - t) * seen[i, 2] + t * seen[j, 2]
        if z - farthest_round(depth, x, y) < HIDDEN:
            crossing[found] = e
            found += 1
    used = min(found, len(share))
    for n in range(used):
        i, j = edges[crossing[n * found // used]]
        t, nx, ny = _turn(normal, i, j)
        length = np.sqrt(nx * nx + ny * ny)
        vertices[n, 0], vertices[n, 1], share[n] = i, j, t
        outward[n, 0], outward[n, 1] = nx / length, ny / length
        for axis in range(2):
            place[n, axis] = (1.0 - t) * seen[i, axis] + t * seen[j, axis]
    return used


@numba.njit(cache=True, nogil=True)
def ends(logit, start, step, count, steps, away):  # type: ignore[no-untyped-def]
    """Where the face ends, from each of ``count`` places on a (H, W) map of ``logit``, in
    ``steps``: into ``away``.

    From ``start - steps * step`` (map pixels) to ``start + steps * step``; NaN where it doesn't,
    the nearest end where it does more than once.
    """
    height, width = logit.shape
    for n in range(count):
        away[n] = np.nan
        before = 0.0
        for s in range(-steps, steps + 1):
            x, y = start[n, 0] + s * step[n, 0], start[n, 1] + s * step[n, 1]
            if not (0.0 <= x <= width - 1.001 and 0.0 <= y <= height - 1.001):
                before = -1.0  # nothing is seen beyond the crop
                continue
            c, r = int(x), int(y)
            fx, fy = x - c, y - r
            above = (1.0 - fx) * logit[r, c] + fx * logit[r, c + 1]
            below = (1.0 - fx) * logit[r + 1, c] + fx * logit[r + 1, c + 1]
            value = (1.0 - fy) * above + fy * below
            if before > 0.0 and value <= 0.0:
                end = s - 1 + before / (before - value)
                if np.isnan(away[n]) or abs(end) < abs(away[n]):
                    away[n] = end
            before = value
