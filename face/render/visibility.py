"""The interface of rendering backends: which triangle each pixel centre shows.

Vertices are snapped to 1/256 px before coverage is decided, as graphics hardware does, so that
every backend sees the same triangles. Coverage follows the top-left rule: a pixel centre on an edge
that two triangles share belongs to one of them. Nothing is culled by its winding; of two triangles
with the same corners the first wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Floats, Ints
from dff.face.numba_cache import CACHE

Visibility: TypeAlias = Callable[[Floats, Floats, Ints, tuple[int, int]], NDArray[np.int32]]
"""A backend: (V, 2) pixels, (V,) screen depth, (F, 3) triangles, (height, width) -> (H, W) int32.

The result holds rows of the triangles, -1 where there is none. Smaller screen depth is nearer.
Triangles with a vertex that is not finite or out of REACH are left out: they touch the plane of the
camera.
"""

SUBPIXELS = 256
REACH = 1 << 21
"""Pixels from the image's corner within which vertices must fall.

So edge functions of snapped vertices fit 64 bits.
"""

OUT_OF_REACH = np.iinfo(np.int64).min


def snapped(px: Floats) -> NDArray[np.int64]:
    """(V, 2) pixels in units of 1/256 px.

    Both coordinates are OUT_OF_REACH for vertices beyond REACH or not finite.
    """
    grid = np.empty(px.shape, dtype=np.int64)
    _snap(np.ascontiguousarray(px, dtype=np.float64), grid)
    return grid


@numba.njit(cache=CACHE, nogil=True)
def _snap(px, grid):  # type: ignore[no-untyped-def]
    for v in range(len(px)):
        x, y = px[v, 0], px[v, 1]
        if abs(x) < REACH and abs(y) < REACH:
            grid[v, 0] = np.int64(np.rint(x * SUBPIXELS))
            grid[v, 1] = np.int64(np.rint(y * SUBPIXELS))
        else:
            grid[v, 0] = OUT_OF_REACH
            grid[v, 1] = OUT_OF_REACH
