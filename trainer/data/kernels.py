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

    Bilinear between the four pixel centres around a point. Unknown where one of the four shows no
    anchored surface or lies outside the image, or where they show points ``max_spread`` or more
    apart. Returns the number of pixels that were resolved and of those that were clamped to an edge
    of their triangle, or -1 for a triangle behind the camera.
    """
    height, width = triangle.shape
    last = len(faces)
    one = np.float32(1.0)
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
            a0, a1 = np.float32(w0 * scale), np.float32(w1 * scale)
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
    image, warped, opacity, left, top, number, stride, transparent, opaque, layer, front
):
    """Blend (T, T, 3) ``warped`` over a part of (S, S, 3) ``image``, in place.

    By its (T, T) ``opacity`` of 0..255; the part begins at ``left`` and ``top``, which are
    multiples of ``stride``. An output pixel of ``stride`` x ``stride`` pixels of the image gets the
    layer's ``number`` in ``layer`` where the layer is opaque all over, and -1 elsewhere unless it
    is transparent all over. ``front``: whether its mean opacity is above a half.
    """
    half, own = image.shape[0] // stride, warped.shape[0] // stride
    full = np.float32(255.0)
    for row in range(own):
        for column in range(own):
            least, most, total = np.float32(2.0), np.float32(-1.0), np.float32(0.0)
            for y in range(row * stride, (row + 1) * stride):
                for x in range(column * stride, (column + 1) * stride):
                    alpha = np.float32(opacity[y, x]) / full
                    least, most, total = min(least, alpha), max(most, alpha), total + alpha
                    for c in range(3):
                        below = np.float32(image[top + y, left + x, c])
                        above = np.float32(warped[y, x, c])
                        blended = np.uint8(np.rint(below + (above - below) * alpha))
                        image[top + y, left + x, c] = blended
            cell = (row + top // stride) * half + column + left // stride
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
def tone_table(levels, contrast, gains, shift, out):  # type: ignore[no-untyped-def]
    """Fill (1, 256, 3) ``out`` with the value that each level of 0..1 has in each channel."""
    for i in range(256):
        for c in range(3):
            value = (levels[i] - 0.5) * contrast * gains[c] + 0.5 + shift
            out[0, i, c] = np.uint8(min(max(value, 0.0), 1.0) * 255.0 + 0.5)


@numba.njit(cache=CACHE, nogil=True)
def add_noise(image, bits, quantiles, deviation, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with ``image`` plus ``deviation`` times noise, within 0..255.

    The noise of a value is the one of the 2^k float32 ``quantiles`` that the upper k of 16 random
    ``bits`` choose.
    """
    shift = 0
    while len(quantiles) << shift < 1 << 16:
        shift += 1
    flat, target = image.ravel(), out.ravel()
    for i in range(len(flat)):
        value = np.float32(flat[i]) + quantiles[bits[i] >> shift] * deviation
        target[i] = np.uint8(min(max(value, np.float32(0.0)), np.float32(255.0)))


@numba.njit(cache=CACHE, nogil=True)
def colour_noise(noise, colour, contrast, out):  # type: ignore[no-untyped-def]
    """Fill (S, S, 3) ``out`` with a ``colour`` plus ``contrast`` times (S, S) ``noise``."""
    for row in range(noise.shape[0]):
        for column in range(noise.shape[1]):
            added = noise[row, column] * contrast
            for c in range(3):
                out[row, column, c] = np.uint8(min(max(colour[c] + added, 0.0), 255.0))


@numba.njit(cache=CACHE, nogil=True)
def locate_grid(back, stride, half, out):  # type: ignore[no-untyped-def]
    """Fill (half^2, 2) ``out`` with the source px of the centres of a crop's output pixels.

    ``back``: (2, 3) source from crop px.
    """
    for row in range(half):
        y = (row + 0.5) * stride
        for column in range(half):
            x = (column + 0.5) * stride
            cell = row * half + column
            out[cell, 0] = x * back[0, 0] + y * back[0, 1] + back[0, 2]
            out[cell, 1] = x * back[1, 0] + y * back[1, 1] + back[1, 2]


@numba.njit(cache=CACHE, nogil=True)
def classify(triangle, anchored, skin, candidates, face):  # type: ignore[no-untyped-def]
    """Find the anchored and the skin's triangles among (N,) ones.

    Fills ``candidates`` with the places of the anchored ones, and ``face`` with 1 for those of the
    skin, else 0. Returns the number of candidates.
    """
    count = 0
    for n in range(len(triangle)):
        t = triangle[n]
        if anchored[t]:
            candidates[count] = n
            count += 1
        face[n] = np.float32(1.0) if skin[t] else np.float32(0.0)
    return count


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def project_face(  # type: ignore[no-untyped-def]
    template,
    shape,
    basis,
    used,
    activation,
    rotation,
    translation,
    scale,
    centre,
    pinhole,
    px,
    weight,
):
    """Fill (V, 2) ``px`` and (V,) screen ``weight`` of a face with an expression before a camera.

    ``template``: (V, 3) metres in ``head``; ``shape``: (V, 3) float32 of the person's difference
    from it; ``basis``: (E, 3 V) float32, of which the units ``used`` have the float32
    ``activation``. ``scale``: the focal length of a ``pinhole``, else pixels per metre. NaN for
    points behind a pinhole.
    """
    motion = shape.copy().ravel()
    for n in range(len(used)):
        unit, amount = basis[used[n]], activation[n]
        for i in range(len(motion)):
            motion[i] += unit[i] * amount
    for v in range(len(template)):
        x = template[v, 0] + motion[3 * v]
        y = template[v, 1] + motion[3 * v + 1]
        z = template[v, 2] + motion[3 * v + 2]
        cam_x = rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z + translation[0]
        cam_y = rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z + translation[1]
        cam_z = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z + translation[2]
        factor, weight[v] = scale, 1.0
        if pinhole:
            if cam_z > 0:
                factor, weight[v] = scale / cam_z, 1.0 / cam_z
            else:
                factor = weight[v] = np.nan
        px[v, 0] = cam_x * factor + centre[0]
        px[v, 1] = cam_y * factor + centre[1]


@numba.njit(cache=CACHE, nogil=True)
def displace(linear, smooth):  # type: ignore[no-untyped-def]
    """Add a (2, 2) ``linear`` map about the middle to (S, S, 2) float32 ``smooth``, in place."""
    size = len(smooth)
    middle = np.float32(size / 2)
    for row in range(size):
        y = np.float32(row + 0.5) - middle
        for column in range(size):
            x = np.float32(column + 0.5) - middle
            smooth[row, column, 0] += x * linear[0, 0] + y * linear[0, 1]
            smooth[row, column, 1] += x * linear[1, 0] + y * linear[1, 1]


@numba.njit(cache=CACHE, nogil=True)
def locate_displaced(displacement, back, stride, source, centres):  # type: ignore[no-untyped-def]
    """Fill (S, S, 2) float32 ``source`` with where a displaced crop takes its pixels from.

    ``displacement``: (S, S, 2) px of the crop; ``back``: (2, 3) float32 source from crop px.
    ``source`` is as OpenCV counts, from the first pixel's centre. ``centres``: ((S / stride)^2, 2)
    means over cells of pixels, from the image's corner.
    """
    half = len(source) // stride
    before = np.float32(0.5)
    for row in range(half):
        for column in range(half):
            total_x, total_y = 0.0, 0.0
            for r in range(row * stride, (row + 1) * stride):
                for c in range(column * stride, (column + 1) * stride):
                    x = np.float32(c + 0.5) + displacement[r, c, 0]
                    y = np.float32(r + 0.5) + displacement[r, c, 1]
                    u = x * back[0, 0] + y * back[0, 1] + back[0, 2]
                    v = x * back[1, 0] + y * back[1, 1] + back[1, 2]
                    source[r, c, 0], source[r, c, 1] = u - before, v - before
                    total_x, total_y = total_x + u, total_y + v
            centres[row * half + column, 0] = total_x / (stride * stride)
            centres[row * half + column, 1] = total_y / (stride * stride)
