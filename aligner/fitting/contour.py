"""The occluding contour of a mesh: where its visible surface turns away from the camera.

Sources: Romdhani and Vetter, "Estimating 3D Shape and Texture Using Pixel Intensity, Edges,
Specular Highlights, Texture Constraints and a Prior" (CVPR 2005); Bas, Smith, Bolkart and Wuhrer,
"Fitting a 3D Morphable Model to Edges" (2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from dff.aligner.config import VisibilityConfig
from dff.aligner.fitting.depth_buffer import DepthBuffer, farthest_around
from dff.face.arrays import Array, Float, Floats, Int, Ints
from dff.face.numba_cache import CACHE

GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0  # multiples of it, without their integers, spread evenly


@dataclass(frozen=True)
class OccludingContour:
    """Points of the occluding contours of B faces, each on an edge between two vertices."""

    vertices: Int[Array, "faces points 2"]  # int32
    share: Float[Array, "faces points"]  # of the second vertex
    px: Float[Array, "faces points 2"]  # pixels of the photo
    outward: Float[Array, "faces points 2"]  # unit normals there, in the photo
    count: Int[Array, " faces"]  # points in use, the first ones

    @staticmethod
    def empty(faces: int, points: int) -> OccludingContour:
        """Room for ``points`` points of each face, none of them in use."""
        return OccludingContour(
            vertices=np.zeros((faces, points, 2), np.int32),
            share=np.zeros((faces, points)),
            px=np.zeros((faces, points, 2)),
            outward=np.zeros((faces, points, 2)),
            count=np.zeros(faces, np.int64),
        )


def trace_contour(
    buffer: DepthBuffer, normal: Floats, edges: Ints, depth: Floats, config: VisibilityConfig
) -> OccludingContour:
    """The contour of one face, in the units of the buffer's ``seen``, thinned evenly to its limit.

    (V, 3) unit ``normal`` as the camera sees them; (E, 2) int32 ``edges``; (H, W) ``depth`` of the
    nearest surface.
    """
    out = OccludingContour.empty(1, config.contour_points)
    out.count[0] = trace(
        buffer.seen,
        normal,
        edges,
        depth,
        buffer.scale,
        buffer.low,
        config.contour_occlusion,
        out.vertices[0],
        out.share[0],
        out.px[0],
        out.outward[0],
    )
    return out


@numba.njit(cache=CACHE, nogil=True)
def _turn(normal, i, j):  # type: ignore[no-untyped-def]
    """Where between two vertices the surface turns away: share of the second, normal there."""
    a, b = normal[i, 2], normal[j, 2]
    t = a / (a - b)
    return (
        t,
        (1.0 - t) * normal[i, 0] + t * normal[j, 0],
        (1.0 - t) * normal[i, 1] + t * normal[j, 1],
    )


@numba.njit(cache=CACHE, nogil=True)
def trace(seen, normal, edges, depth, scale, low, occlusion, vertices, share, place, outward):  # type: ignore[no-untyped-def]
    """Fill the rows of one face's contour, the first ones of it evenly spread along it.

    The order of the rows depends on the edges alone: a point more or less moves no other.

    Returns the number of points. (V, 3) ``seen`` as the camera sees it and its unit ``normal``;
    (H, W) ``depth`` of the nearest surface, pixels ``scale * (xy - low)``; points further behind it
    than ``occlusion`` are hidden. ``place`` (N, 2) comes in the units of ``seen``.
    """
    crossing = np.empty(len(edges), np.int32)
    found = 0
    for e in range(len(edges)):
        i, j = edges[e, 0], edges[e, 1]
        if (normal[i, 2] < 0.0) == (normal[j, 2] < 0.0):
            continue
        t, nx, ny = _turn(normal, i, j)
        if nx * nx + ny * ny < 0.25:  # a fold, not a turn
            continue
        x = ((1.0 - t) * seen[i, 0] + t * seen[j, 0] - low[0]) * scale - 0.5
        y = ((1.0 - t) * seen[i, 1] + t * seen[j, 1] - low[1]) * scale - 0.5
        z = (1.0 - t) * seen[i, 2] + t * seen[j, 2]
        if z - farthest_around(depth, x, y) < occlusion:
            crossing[found] = e
            found += 1
    used = min(found, len(share))
    order = np.argsort(crossing[:found] * GOLDEN % 1.0)
    for n in range(used):
        e = crossing[order[n]]
        i, j = edges[e, 0], edges[e, 1]
        t, nx, ny = _turn(normal, i, j)
        length = np.sqrt(nx * nx + ny * ny)
        vertices[n, 0], vertices[n, 1], share[n] = i, j, t
        outward[n, 0], outward[n, 1] = nx / length, ny / length
        for axis in range(2):
            place[n, axis] = (1.0 - t) * seen[i, axis] + t * seen[j, axis]
    return used
