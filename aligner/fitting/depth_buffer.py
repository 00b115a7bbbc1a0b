"""The depth buffer of one mesh: which points its own surface hides from the camera."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numba
import numpy as np

from dff.face.arrays import Array, Bools, Float, Floats, Integer, Ints
from dff.face.numba_cache import CACHE
from dff.face.render import zbuffer


@dataclass(frozen=True)
class DepthBuffer:
    """The triangles visible to a camera, in pixels ``scale * (xy - low)`` of ``seen``."""

    seen: Float[Array, "vertices 3"]  # metres, as the camera sees them: planes stay planes
    faces: Integer[Array, "triangles 3"]
    low: Float[Array, " 2"]
    scale: float
    triangle: Integer[Array, "height width"]  # -1: none

    @staticmethod
    def of(turned: Floats, inverse_depth: float, faces: Ints, side: int) -> DepthBuffer:
        """The buffer, ``side`` pixels wide, of (V, 3) vertices turned into the camera's axes."""
        seen, low, scale, px = _frame(turned, inverse_depth, side)
        triangle = zbuffer.visibility(px, seen[:, 2], faces, (side, side))
        return DepthBuffer(seen, faces, low, scale, triangle)

    @staticmethod
    def of_front(turned: Floats, inverse_depth: float, faces: Ints, side: int) -> DepthBuffer:
        """``of`` without the triangles that face away from the camera.

        Of a closed surface they are hidden by others.
        """
        seen, low, scale, px = _frame(turned, inverse_depth, side)
        front = _front(seen, faces)
        triangle = zbuffer.visibility(px, seen[:, 2], front, (side, side))
        return DepthBuffer(seen, front, low, scale, triangle)

    def nearest_depth(self) -> Floats:
        """(H, W) depth of each pixel's triangle at its nearest corner; infinite where none is.

        It is accurate enough for tolerances of a centimetre.
        """
        return np.asarray(_nearest_depth(self.triangle, self.faces, self.seen[:, 2]))

    def clear(self, points: Floats, *, clearance: int, occlusion: float) -> Bools:
        """(N,) whether no surface within ``clearance`` pixels is in front of (N, 3) points.

        Stricter than ``depth_behind``: points just beside a nearer surface are hidden too, as their
        brightness is mixed with that of the surface. ``occlusion``: tolerance in metres.
        """
        far = self.seen[self.faces[np.maximum(self.triangle, 0)], 2].max(-1)
        depth = np.where(self.triangle >= 0, far, np.inf).astype(np.float32)
        side = 2 * clearance + 1
        depth = np.asarray(cv2.erode(depth, np.ones((side, side), np.uint8)))
        cell = ((points[:, :2] - self.low) * self.scale).astype(np.int64)
        column, row = np.clip(cell, 0, len(depth) - 1).T
        return np.asarray(points[:, 2] < depth[row, column] + occlusion)


@numba.njit(cache=CACHE, nogil=True)
def turn_points(points, rotation):  # type: ignore[no-untyped-def]
    """(V, 3) points turned by a (3, 3) rotation."""
    out = np.empty(points.shape)
    for v in range(len(points)):
        for c in range(3):
            out[v, c] = (
                rotation[c, 0] * points[v, 0]
                + rotation[c, 1] * points[v, 1]
                + rotation[c, 2] * points[v, 2]
            )
    return out


@numba.njit(cache=CACHE, nogil=True)
def _front(seen, faces):  # type: ignore[no-untyped-def]
    """The rows of the (F, 3) triangles that face the camera."""
    out, found = np.empty_like(faces), 0
    for f in range(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay = seen[j, 0] - seen[i, 0], seen[j, 1] - seen[i, 1]
        bx, by = seen[k, 0] - seen[i, 0], seen[k, 1] - seen[i, 1]
        out[found, 0], out[found, 1], out[found, 2] = i, j, k
        found += ax * by < ay * bx
    return out[:found]


@numba.njit(cache=CACHE, nogil=True)
def _frame(turned, inverse_depth, side):  # type: ignore[no-untyped-def]
    """Vertices as the camera sees them, the corner and scale of their buffer, and their pixels."""
    seen, px = np.empty(turned.shape), np.empty((len(turned), 2))
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for v in range(len(turned)):
        away = 1.0 + inverse_depth * turned[v, 2]
        for c in range(3):
            seen[v, c] = turned[v, c] / away
        for c in range(2):
            low[c], high[c] = min(low[c], seen[v, c]), max(high[c], seen[v, c])
    scale = side / max(high[0] - low[0], high[1] - low[1])
    for v in range(len(turned)):
        for c in range(2):
            px[v, c] = (seen[v, c] - low[c]) * scale
    return seen, low, scale, px


@numba.njit(cache=CACHE, nogil=True)
def _nearest_depth(ids, faces, depth):  # type: ignore[no-untyped-def]
    out = np.full(ids.shape, np.inf)
    for row in range(ids.shape[0]):
        for column in range(ids.shape[1]):
            f = ids[row, column]
            if f >= 0:
                out[row, column] = min(depth[faces[f, 0]], depth[faces[f, 1]], depth[faces[f, 2]])
    return out


@numba.njit(cache=CACHE, nogil=True)
def farthest_around(depth, x, y):  # type: ignore[no-untyped-def]
    """The largest ``depth`` of the four pixels around a place; pixel centres at whole numbers."""
    height, width = depth.shape
    column, row = int(np.floor(x)), int(np.floor(y))
    out = -np.inf
    for r in (row, row + 1):
        for c in (column, column + 1):
            out = max(out, depth[min(max(r, 0), height - 1), min(max(c, 0), width - 1)])
    return out


@numba.njit(cache=CACHE, nogil=True)
def depth_behind(points, n, low, scale, depth):  # type: ignore[no-untyped-def]
    """Metres by which one of (N, 3) points lies behind the surface in all four pixels around it.

    Zero for a point in front of it. (H, W) ``depth`` of the surface in a ``DepthBuffer``.
    """
    x, y = (points[n, 0] - low[0]) * scale - 0.5, (points[n, 1] - low[1]) * scale - 0.5
    return max(points[n, 2] - farthest_around(depth, x, y), 0.0)
