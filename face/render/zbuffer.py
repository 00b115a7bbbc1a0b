"""Visibility on the CPU: a z-buffer with integer edge functions, compiled by numba.

Exact and deterministic: coverage is decided in 64-bit integers, depth in float64. The loop avoids branches that the
processor cannot foresee: triangles of a face cover a few pixels each, and there such branches cost more than the work.
Source of the edge functions and the top-left rule: Pineda, "A Parallel Algorithm for Polygon Rasterization" (1988).
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from face.arrays import Floats, Ints
from face.render.visibility import OUT_OF_REACH, snapped


def visibility(px: Floats, screen_depth: Floats, faces: Ints, size: tuple[int, int]) -> NDArray[np.int32]:
    """(H, W) triangle of each pixel; see ``face.render.visibility.Visibility``."""
    ids = np.full(size, -1, dtype=np.int32)
    nearest = np.full(size, np.inf)
    depth = np.ascontiguousarray(screen_depth, dtype=np.float64)
    _raster(snapped(px), depth, np.ascontiguousarray(faces, dtype=np.int32), ids, nearest)
    return ids


@numba.njit(cache=True, nogil=True)
def _raster(grid, depth, faces, ids, nearest):  # type: ignore[no-untyped-def]
    height, width = ids.shape
    ids_flat, nearest_flat = ids.ravel(), nearest.ravel()
    one = np.uint64(1)
    for f in range(len(faces)):
        # Unsigned indices spare the compiler the case of negative ones.
        i, j, k = np.uint64(faces[f, 0]), np.uint64(faces[f, 1]), np.uint64(faces[f, 2])
        x0, y0 = grid[i, 0], grid[i, 1]
        x1, y1 = grid[j, 0], grid[j, 1]
        x2, y2 = grid[k, 0], grid[k, 1]
        if x0 == OUT_OF_REACH or x1 == OUT_OF_REACH or x2 == OUT_OF_REACH:
            continue
        # Columns and rows whose centres (at 128 / 256) fall into the triangle's bounding box.
        left = max((min(x0, x1, x2) + 127) >> 8, 0)
        right = min((max(x0, x1, x2) - 128) >> 8, width - 1)
        top = max((min(y0, y1, y2) + 127) >> 8, 0)
        bottom = min((max(y0, y1, y2) - 128) >> 8, height - 1)
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if (left > right) | (top > bottom) | (area == 0):
            continue
        z0 = depth[i]
        if not np.isfinite(z0 + depth[j] + depth[k]):
            continue
        # Edge functions, positive inside: their steps from pixel to pixel in units of 256, their values at the first
        # pixel. The sign makes triangles that are seen from behind the same as others, without a branch.
        sign = (area >> 63) | 1
        ax, ay = (y1 - y2) * sign, (x2 - x1) * sign
        bx, by = (y2 - y0) * sign, (x0 - x2) * sign
        cx, cy = (y0 - y1) * sign, (x1 - x0) * sign
        px, py = left * 256 + 128, top * 256 + 128
        a_row = ay * (py - y1) + ax * (px - x1)
        b_row = by * (py - y2) + bx * (px - x2)
        c_row = cy * (py - y0) + cx * (px - x0)
        scale = 1.0 / (area * sign)
        u, v = (depth[j] - z0) * scale, (depth[k] - z0) * scale
        z_row = z0 + (b_row * u + c_row * v)
        z_dx = (bx * u + cx * v) * 256
        z_dy = (by * u + cy * v) * 256
        # An edge that is neither left nor top leaves out its own points: one unit less. Then the sign decides, and
        # as steps are whole units of 256, flooring to such units keeps it.
        a_row = (a_row - (1 - ((ax > 0) | ((ax == 0) & (ay > 0))))) >> 8
        b_row = (b_row - (1 - ((bx > 0) | ((bx == 0) & (by > 0))))) >> 8
        c_row = (c_row - (1 - ((cx > 0) | ((cx == 0) & (cy > 0))))) >> 8
        for row in range(top, bottom + 1):
            a, b, c, z = a_row, b_row, c_row, z_row
            at = np.uint64(row * width + left)
            rest = right + 1 - left
            while rest > 0 and (a | b | c) < 0:
                a += ax
                b += bx
                c += cx
                z += z_dx
                at += one
                rest -= 1
            while rest > 0 and (a | b | c) >= 0:
                nearer = z < nearest_flat[at]
                nearest_flat[at] = z if nearer else nearest_flat[at]
                ids_flat[at] = f if nearer else ids_flat[at]
                a += ax
                b += bx
                c += cx
                z += z_dx
                at += one
                rest -= 1
            a_row += ay
            b_row += by
            c_row += cy
            z_row += z_dy
