"""Visibility on the CPU: a z-buffer with integer edge functions, compiled by numba.

Exact and deterministic: coverage is decided in 64-bit integers, depth in float64.
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
    for f in range(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0 = grid[i, 0], grid[i, 1]
        x1, y1 = grid[j, 0], grid[j, 1]
        x2, y2 = grid[k, 0], grid[k, 1]
        if x0 == OUT_OF_REACH or x1 == OUT_OF_REACH or x2 == OUT_OF_REACH:
            continue
        # Columns and rows whose centres (at 128 / 256) fall into the triangle's bounding box.
        left = max((min(x0, x1, x2) + 127) >> 8, 0)
        right = min((max(x0, x1, x2) - 128) >> 8, width - 1)
        if left > right:
            continue
        top = max((min(y0, y1, y2) + 127) >> 8, 0)
        bottom = min((max(y0, y1, y2) - 128) >> 8, height - 1)
        if top > bottom:
            continue
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area == 0:
            continue
        if area < 0:  # seen from behind: walk round the other way
            area = -area
            j, k = k, j
            x1, y1, x2, y2 = x2, y2, x1, y1
        z0, z1, z2 = depth[i], depth[j], depth[k]
        if not (np.isfinite(z0) and np.isfinite(z1) and np.isfinite(z2)):
            continue
        # Steps of the edge functions from pixel to pixel, and their values at the first centre. An edge that is
        # neither top nor left leaves out its own points: one unit less.
        ax, ay = (y1 - y2) * 256, (x2 - x1) * 256
        bx, by = (y2 - y0) * 256, (x0 - x2) * 256
        cx, cy = (y0 - y1) * 256, (x1 - x0) * 256
        px, py = left * 256 + 128, top * 256 + 128
        a_row = (x2 - x1) * (py - y1) - (y2 - y1) * (px - x1)
        b_row = (x0 - x2) * (py - y2) - (y0 - y2) * (px - x2)
        c_row = (x1 - x0) * (py - y0) - (y1 - y0) * (px - x0)
        scale = 1.0 / area
        z_row = (a_row * z0 + b_row * z1 + c_row * z2) * scale
        z_dx = (ax * z0 + bx * z1 + cx * z2) * scale
        z_dy = (ay * z0 + by * z1 + cy * z2) * scale
        if not (ax > 0 or (ax == 0 and ay > 0)):
            a_row -= 1
        if not (bx > 0 or (bx == 0 and by > 0)):
            b_row -= 1
        if not (cx > 0 or (cx == 0 and cy > 0)):
            c_row -= 1
        for row in range(top, bottom + 1):
            a, b, c = a_row, b_row, c_row
            for column in range(left, right + 1):
                if (a | b | c) >= 0:
                    z = z_row + z_dx * (column - left)
                    if z < nearest[row, column]:
                        nearest[row, column] = z
                        ids[row, column] = f
                a += ax
                b += bx
                c += cx
            a_row += ay
            b_row += by
            c_row += cy
            z_row += z_dy
