"""What a rendering backend answers: which triangle each pixel centre shows.

Vertices are snapped to 1/256 px before coverage is decided, as graphics hardware does, so that every backend sees the
same triangles. Coverage follows the top-left rule: a pixel centre on an edge that two triangles share belongs to one
of them. Nothing is culled by its winding; of two equally near triangles the first in ``faces`` wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from face.arrays import Floats, Ints

Visibility: TypeAlias = Callable[[Floats, Floats, Ints, tuple[int, int]], NDArray[np.int32]]
"""(V, 2) pixels, (V,) screen depth (smaller is nearer), (F, 3) triangles, (height, width) -> (H, W) int32 rows of
the triangles; -1 where there is none. A vertex that is not finite, or that ``snapped`` refuses, takes its triangles
with it: such triangles touch the plane of the camera."""

SUBPIXELS = 256
REACH = 1 << 21
"""Pixels from the image's corner within which a vertex must fall: edge functions of snapped vertices fit 64 bits."""

OUT_OF_REACH = np.iinfo(np.int64).min


def snapped(px: Floats) -> NDArray[np.int64]:
    """(V, 2) pixels in units of 1/256 px; both coordinates OUT_OF_REACH for vertices beyond REACH or not finite."""
    with np.errstate(invalid="ignore"):
        good = np.all(np.abs(px) < REACH, axis=1, keepdims=True)
    grid = np.rint(np.where(good, px, 0.0) * SUBPIXELS).astype(np.int64)
    return np.where(good, grid, OUT_OF_REACH)
