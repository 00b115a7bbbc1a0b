"""Visibility on the CPU: a z-buffer with integer edge functions, compiled by numba.

Exact and deterministic: coverage is decided in 64-bit integers. Depth, rounded, and the triangle's
number share one 64-bit key, and the least key wins; so the order of the triangles does not matter,
and at equal depth the first triangle wins. Eight samples are tested at once, without unpredictable
branches: triangles of a face cover a few pixels each, where a misprediction costs more than the
work. Source of the edge functions and the top-left rule: Pineda, "A Parallel Algorithm for Polygon
Rasterization" (1988).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Array, Bools, Float, Floats, Integer, Ints
from dff.face.numba_cache import CACHE
from dff.face.render.kernels import triangle_corners
from dff.face.render.simd import LANES, SAMPLE_PATTERN, cover_pixel, cover_row
from dff.face.render.visibility import OUT_OF_REACH, SUBPIXELS, snapped

EMPTY = np.iinfo(np.int64).max
SAMPLES = len(SAMPLE_PATTERN)
STEP = SUBPIXELS // 16  # of the unit of SAMPLE_PATTERN


def visibility(
    px: Floats, screen_depth: Floats, faces: Ints, size: tuple[int, int]
) -> NDArray[np.int32]:
    """(H, W) triangle of each pixel; see ``dff.face.render.visibility.Visibility``."""
    height, width = size
    depth, triangles = _plain(screen_depth, faces)
    # Room for the SIMD lanes beyond a triangle at the right border.
    keys = np.full((height, width + LANES), EMPTY)
    ids = np.empty(size, dtype=np.int32)
    grid = snapped(px)
    _raster(grid, depth, triangles, *_levels(grid, depth, triangles), keys, ids)
    return ids


@dataclass(frozen=True, eq=False)
class Samples:
    """Triangle and depth of eight samples, at ``simd.SAMPLE_PATTERN``, in each of some pixels."""

    pixel: Integer[Array, " pixels"]  # int32 number in the image, row by row: row * W + column
    triangle: Integer[Array, "pixels 8"]  # int32; -1 is background
    # the camera's, to 2**-36 of the mesh's range or finer; background 0
    screen_depth: Float[Array, "pixels 8"]


def samples(px: Floats, screen_depth: Floats, faces: Ints, ids: Ints, pixels: Bools) -> Samples:
    """The samples of the set ones of the (H, W) ``pixels``, by the rules of ``visibility``.

    Back-facing triangles count only if (H, W) ``ids`` shows them anywhere: most are hidden by
    others.
    """
    depth, triangles = _plain(screen_depth, faces)
    grid = snapped(px)
    near, scale, most, shift = _levels(grid, depth, triangles)
    places = np.flatnonzero(pixels).astype(np.int32)
    before = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + 1), dtype=np.int32)
    _count(np.ascontiguousarray(pixels), before)
    keys = np.full((len(places), SAMPLES), EMPTY)
    shown = _shown(np.ascontiguousarray(ids, dtype=np.int32), len(triangles))
    _raster_samples(
        grid, depth, triangles, near, scale, most, shift, shown, places, before, keys.reshape(-1)
    )
    triangle, found = np.empty(keys.shape, dtype=np.int32), np.zeros(keys.shape)
    _open_keys(keys, near, scale, shift, triangle, found)
    return Samples(places, triangle, found)


def _plain(screen_depth: Floats, faces: Ints) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    return np.ascontiguousarray(screen_depth, dtype=np.float64), np.ascontiguousarray(
        faces, dtype=np.int32
    )


def _levels(grid: Ints, depth: Floats, faces: Ints) -> tuple[float, float, float, int]:
    """How a key holds depth: the nearest depth, levels for each unit, their number, bits below."""
    shift = max(len(faces).bit_length(), 12)
    most = float(1 << (62 - shift))
    near, far = _range(grid, depth)
    return near, most / (far - near) if far > near else 0.0, most, shift


@numba.njit(cache=CACHE, nogil=True)
def _range(grid, depth):  # type: ignore[no-untyped-def]
    """The least and greatest depth of vertices that can be drawn."""
    near, far = np.inf, -np.inf
    for v in range(len(depth)):
        if grid[v, 0] != OUT_OF_REACH and np.isfinite(depth[v]):
            near, far = min(near, depth[v]), max(far, depth[v])
    return near, far


@numba.njit(cache=CACHE, nogil=True)
def _triangle(x0, y0, x1, y1, x2, y2, d0, d1, d2, near, scale, x, y):  # type: ignore[no-untyped-def]
    """Edge functions, positive inside, and the level of depth.

    Values are those at (x, y), steps those for a subpixel right and down. An edge that is neither
    left nor top leaves out its own points: one unit less. The sign makes triangles that are seen
    from behind the same as others, without a branch.
    """
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    sign = (area >> 63) | 1
    ax, ay = (y1 - y2) * sign, (x2 - x1) * sign
    bx, by = (y2 - y0) * sign, (x0 - x2) * sign
    cx, cy = (y0 - y1) * sign, (x1 - x0) * sign
    a = ay * (y - y1) + ax * (x - x1)
    b = by * (y - y2) + bx * (x - x2)
    c = cy * (y - y0) + cx * (x - x0)
    each = scale / (area * sign)
    u, v = (d1 - d0) * each, (d2 - d0) * each
    z = (d0 - near) * scale + (b * u + c * v)
    a -= 1 - ((ax > 0) | ((ax == 0) & (ay > 0)))
    b -= 1 - ((bx > 0) | ((bx == 0) & (by > 0)))
    c -= 1 - ((cx > 0) | ((cx == 0) & (cy > 0)))
    return a, ax, ay, b, bx, by, c, cx, cy, z, bx * u + cx * v, by * u + cy * v


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _raster(grid, depth, faces, near, scale, most, shift, keys, ids):  # type: ignore[no-untyped-def]
    height, width = ids.shape
    stride = keys.shape[1]
    flat = keys.ravel()
    for f in range(len(faces)):
        i, j, k = triangle_corners(faces, f)
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
        d0, d1, d2 = depth[i], depth[j], depth[k]
        if not np.isfinite(d0 + d1 + d2):
            continue
        a, ax, ay, b, bx, by, c, cx, cy, z, zx, zy = _triangle(
            x0, y0, x1, y1, x2, y2, d0, d1, d2, near, scale, left * 256 + 128, top * 256 + 128
        )
        # Steps from pixel to pixel are whole units of 256: flooring to such units keeps the sign,
        # which decides.
        a, b, c, zx, zy = a >> 8, b >> 8, c >> 8, zx * 256, zy * 256
        at = top * stride + left
        for _ in range(top, bottom + 1):
            cover_row(
                flat, np.uint64(at), a, ax, ay, b, bx, by, c, cx, cy, z, zx, zy, most, shift, f
            )
            for n in range(LANES, right + 1 - left, LANES):
                m = np.uint64(at + n)
                cover_row(
                    flat,
                    m,
                    a + n * ax,
                    ax,
                    ay,
                    b + n * bx,
                    bx,
                    by,
                    c + n * cx,
                    cx,
                    cy,
                    z + n * zx,
                    zx,
                    zy,
                    most,
                    shift,
                    f,
                )
            a, b, c, z, at = a + ay, b + by, c + cy, z + zy, at + stride
    low = (np.int64(1) << shift) - 1
    for row in range(height):
        for column in range(width):
            key = keys[row, column]
            ids[row, column] = -1 if key == EMPTY else key & low


@numba.njit(cache=CACHE, nogil=True)
def _shown(ids, count):  # type: ignore[no-untyped-def]
    """(count + 1,) whether a triangle is visible anywhere; the last row is the background's."""
    out = np.zeros(count + 1, dtype=np.bool_)
    for row in range(ids.shape[0]):
        for column in range(ids.shape[1]):
            out[ids[row, column]] = True
    return out


@numba.njit(cache=CACHE, nogil=True)
def _count(pixels, before):  # type: ignore[no-untyped-def]
    """Count the set pixels left of and above each corner; the first row and column are 0."""
    height, width = pixels.shape
    for row in range(height):
        here = np.int32(0)
        for column in range(width):
            here += np.int32(pixels[row, column])
            before[row + 1, column + 1] = before[row, column + 1] + here


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _raster_samples(grid, depth, faces, near, scale, most, shift, shown, places, before, keys):  # type: ignore[no-untyped-def]
    height, width = before.shape[0] - 1, before.shape[1] - 1
    for f in range(len(faces)):
        i, j, k = triangle_corners(faces, f)
        x0, y0 = grid[i, 0], grid[i, 1]
        x1, y1 = grid[j, 0], grid[j, 1]
        x2, y2 = grid[k, 0], grid[k, 1]
        if x0 == OUT_OF_REACH or x1 == OUT_OF_REACH or x2 == OUT_OF_REACH:
            continue
        left, right = max(min(x0, x1, x2) >> 8, 0), min(max(x0, x1, x2) >> 8, width - 1)
        top, bottom = max(min(y0, y1, y2) >> 8, 0), min(max(y0, y1, y2) >> 8, height - 1)
        if (left > right) | (top > bottom):
            continue
        # Most triangles meet no such pixel.
        if (
            before[bottom + 1, right + 1] - before[top, right + 1]
            == before[bottom + 1, left] - before[top, left]
        ):
            continue
        d0, d1, d2 = depth[i], depth[j], depth[k]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area == 0 or (area > 0 and not shown[f]) or not np.isfinite(d0 + d1 + d2):
            continue
        a, ax, ay, b, bx, by, c, cx, cy, z, zx, zy = _triangle(
            x0, y0, x1, y1, x2, y2, d0, d1, d2, near, scale, left * 256, top * 256
        )
        ax, bx, cx, zx = STEP * ax, STEP * bx, STEP * cx, STEP * zx
        ay, by, cy, zy = STEP * ay, STEP * by, STEP * cy, STEP * zy
        for row in range(top, bottom + 1):
            # The pixels are numbered row by row: these are the ones of this row within the bounding
            # box.
            start = before[row, width] - before[row, left] + before[row + 1, left]
            stop = before[row, width] - before[row, right + 1] + before[row + 1, right + 1]
            y = 16 * (row - top)
            u, v, w, q = a + y * ay, b + y * by, c + y * cy, z + y * zy
            corner = row * width + left
            for n in range(start, stop):
                x = 16 * (places[n] - corner)
                at = np.uint64(n * SAMPLES)
                cover_pixel(
                    keys,
                    at,
                    u + x * ax,
                    ax,
                    ay,
                    v + x * bx,
                    bx,
                    by,
                    w + x * cx,
                    cx,
                    cy,
                    q + x * zx,
                    zx,
                    zy,
                    most,
                    shift,
                    f,
                )


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _open_keys(keys, near, scale, shift, ids, depth):  # type: ignore[no-untyped-def]
    low = (np.int64(1) << shift) - 1
    for n in range(keys.shape[0]):
        for sample in range(SAMPLES):
            key = keys[n, sample]
            ids[n, sample] = -1
            if key != EMPTY:
                ids[n, sample] = key & low
                depth[n, sample] = near + ((key >> shift) / scale if scale > 0 else 0.0)
