"""The inner loops of the training data, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np

from dff.face.numba_cache import CACHE
from dff.face.render.kernels import screen_weights


@numba.njit(cache=CACHE, nogil=True)
def coordinates_at(  # type: ignore[no-untyped-def]
    px, triangle, vertex_px, vertex_weight, faces, anchored, table, max_spread, out, known
):
    """Fill (N, 6) ``out`` with surface coordinates at (N, 2) ``px``, and (N,) whether ``known``.

    Bilinear between the four pixel centres around a point, whose barycentric weights are rounded to
    1/255. Unknown where one of the four shows no anchored surface or lies outside the image, or
    where they show points ``max_spread`` or more apart. Returns the number of pixels that were
    resolved and of those that were clamped to an edge of their triangle, or -1 for a triangle
    behind the camera.
    """
    height, width = triangle.shape
    last = len(faces)
    step = np.float32(1.0 / 255.0)
    one, half, full = np.float32(1.0), np.float32(0.5), np.float32(255.0)
    corner = np.empty((4, 6), np.float32)
    resolved, clamped = 0, 0
    for n in range(len(px)):
        known[n] = False
        for c in range(6):
            out[n, c] = 0.0
        x, y = px[n, 0] - 0.5, px[n, 1] - 0.5
        column, row = int(np.floor(x)), int(np.floor(y))
        if column < 0 or row < 0 or column >= width - 1 or row >= height - 1:
            continue
        seen = True
        for p in range(4):
            t = min(np.int64(triangle[row + (p >> 1), column + (p & 1)]), last)
            seen = seen and anchored[t]
        if not seen:
            continue
        far = False
        for p in range(4):
            r, s = row + (p >> 1), column + (p & 1)
            t = np.int64(triangle[r, s])
            i, j, k = faces[t, 0], faces[t, 1], faces[t, 2]
            b0, b1, b2 = screen_weights(
                s + 0.5,
                r + 0.5,
                vertex_px[i, 0],
                vertex_px[i, 1],
                vertex_px[j, 0],
                vertex_px[j, 1],
                vertex_px[k, 0],
                vertex_px[k, 1],
            )
            resolved += 1
            if not (b0 > 0.0 and b1 > 0.0 and b2 > 0.0):
                clamped += 1
            w0, w1, w2 = b0 * vertex_weight[i], b1 * vertex_weight[j], b2 * vertex_weight[k]
            total = w0 + w1 + w2
            if not (total > 0.0):
                return resolved, -1
            scale = 1.0 / total
            q0 = np.uint8(min(max(np.float32(w0 * scale), np.float32(0.0)), one) * full + half)
            q1 = np.uint8(min(max(np.float32(w1 * scale), np.float32(0.0)), one) * full + half)
            a0, a1 = np.float32(q0) * step, np.float32(q1) * step
            a2 = one - a0 - a1
            apart = np.float32(0.0)
            for c in range(6):
                corner[p, c] = a0 * table[i, c] + a1 * table[j, c] + a2 * table[k, c]
                difference = corner[p, c] - corner[0, c]
                apart += difference * difference
            far = far or not (np.sqrt(apart) < max_spread)
        fx, fy = np.float32(x - column), np.float32(y - row)
        w00, w10 = (one - fx) * (one - fy), fx * (one - fy)
        w01, w11 = (one - fx) * fy, fx * fy
        for c in range(6):
            out[n, c] = (
                w00 * corner[0, c] + w10 * corner[1, c] + w01 * corner[2, c] + w11 * corner[3, c]
            )
        known[n] = not far
    return resolved, clamped


@numba.njit(cache=CACHE, nogil=True)
def triangles_at(px, triangle, none, out):  # type: ignore[no-untyped-def]
    """Fill (N,) ``out`` with the triangles of the pixels that hold (N, 2) ``px``; ``none`` else."""
    height, width = triangle.shape
    for n in range(len(px)):
        column, row = int(np.floor(px[n, 0])), int(np.floor(px[n, 1]))
        out[n] = none
        if 0 <= column < width and 0 <= row < height:
            out[n] = min(np.int64(triangle[row, column]), none)


@numba.njit(cache=CACHE, nogil=True)
def blend_layer(  # type: ignore[no-untyped-def]
    image, warped, opacity, number, stride, transparent, opaque, layer, front
):
    """Blend (S, S, 3) ``warped`` over ``image``, in place, by its (S, S) ``opacity`` of 0..255.

    An output pixel, of ``stride`` x ``stride`` pixels, gets the layer's ``number`` in ``layer``
    where the layer is opaque all over, and -1 elsewhere unless it is transparent all over.
    ``front``: whether its mean opacity is above a half.
    """
    half = image.shape[0] // stride
    full = np.float32(255.0)
    for row in range(half):
        for column in range(half):
            least, most, total = np.float32(2.0), np.float32(-1.0), np.float32(0.0)
            for y in range(row * stride, (row + 1) * stride):
                for x in range(column * stride, (column + 1) * stride):
                    alpha = np.float32(opacity[y, x]) / full
                    least, most, total = min(least, alpha), max(most, alpha), total + alpha
                    for c in range(3):
                        below = np.float32(image[y, x, c])
                        above = np.float32(warped[y, x, c])
                        image[y, x, c] = np.uint8(np.rint(below + (above - below) * alpha))
            cell = row * half + column
            if least > opaque:
                layer[cell] = number
            elif most > transparent:
                layer[cell] = -1
            front[cell] = total / np.float32(stride * stride) > np.float32(0.5)


@numba.njit(cache=CACHE, nogil=True)
def head_extent(triangle, faces):  # type: ignore[no-untyped-def]
    """Left, right (one past) and top of the pixels that show a triangle below ``faces``.

    (width, width, 0) where there are none.
    """
    height, width = triangle.shape
    left, right, top = width, -1, -1
    for row in range(height):
        for column in range(width):
            if triangle[row, column] < faces:
                if top < 0:
                    top = row
                left, right = min(left, column), max(right, column + 1)
    if top < 0:
        return width, width, 0
    return left, right, top


@numba.njit(cache=CACHE, nogil=True)
def fade(distance, margin, softness, out):  # type: ignore[no-untyped-def]
    """Fill (H, W) ``out`` with 255 within ``margin - softness`` of 0 ``distance``, 0 from it on."""
    height, width = distance.shape
    full = np.float32(255.0)
    for row in range(height):
        for column in range(width):
            value = (margin - distance[row, column]) / softness
            value = min(max(value, np.float32(0.0)), np.float32(1.0)) * full
            out[row, column] = np.uint8(value)


@numba.njit(cache=CACHE, nogil=True)
def add_noise(image, noise, deviation, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with ``image`` plus ``deviation`` times ``noise``, within 0..255."""
    flat, added, target = image.ravel(), noise.ravel(), out.ravel()
    for i in range(len(flat)):
        value = np.float32(flat[i]) + added[i] * deviation
        target[i] = np.uint8(min(max(value, np.float32(0.0)), np.float32(255.0)))


@numba.njit(cache=CACHE, nogil=True)
def average_cells(values, stride, out):  # type: ignore[no-untyped-def]
    """Fill (N, 2) ``out`` with means of the ``stride`` x ``stride`` cells of (S, S, 2) values."""
    half = len(values) // stride
    for row in range(half):
        for column in range(half):
            for c in range(2):
                total = 0.0
                for y in range(row * stride, (row + 1) * stride):
                    for x in range(column * stride, (column + 1) * stride):
                        total += values[y, x, c]
                out[row * half + column, c] = total / (stride * stride)
