"""The inner loops of ``dff.face.render.frame``, compiled by numba.

They compute in float64, write float32 and keep no state. Outputs at the background are left as they
are: zeros.
"""

from __future__ import annotations

import numba
import numpy as np
from numba.extending import register_jitable

from dff.face.geometry.interpolation import bilinear_cell
from dff.face.geometry.lighting import C0, C1, C2, C3, C4
from dff.face.numba_cache import CACHE


@numba.njit(cache=CACHE, nogil=True)
def finite(points):  # type: ignore[no-untyped-def]
    """Whether all of (N, 3) numbers are finite."""
    total = 0.0
    for n in range(len(points)):
        total += 0.0 * points[n, 0] + 0.0 * points[n, 1] + 0.0 * points[n, 2]
    return total == 0.0


@register_jitable(inline="always")
def triangle_corners(faces, f):  # type: ignore[no-untyped-def]
    """The three vertices of a triangle, as unsigned numbers: array indices without a sign check."""
    t = np.uint64(f)
    return np.uint64(faces[t, 0]), np.uint64(faces[t, 1]), np.uint64(faces[t, 2])


@register_jitable(inline="always")
def weights_at(barycentric, row, column):  # type: ignore[no-untyped-def]
    """The three float64 barycentric weights of a pixel."""
    return (
        np.float64(barycentric[row, column, 0]),
        np.float64(barycentric[row, column, 1]),
        np.float64(barycentric[row, column, 2]),
    )


@numba.njit(cache=CACHE, nogil=True)
def within(numbers, count):  # type: ignore[no-untyped-def]
    """Whether all of (N, 3) int32 numbers are in 0 .. ``count`` - 1."""
    least, most = np.int32(0), np.int32(-1)
    for n in range(len(numbers)):
        for k in range(3):
            least, most = min(least, numbers[n, k]), max(most, numbers[n, k])
    return least == 0 and most < count


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def through_pinhole(points, focal, centre, px, weight, screen_depth):  # type: ignore[no-untyped-def]
    """Project (V, 3) ``points`` as ``dff.face.geometry.camera.Pinhole`` does.

    Fills ``px``, ``weight`` and ``screen_depth``; NaN for points behind the camera.
    """
    for v in range(len(points)):
        z = points[v, 2]
        screen_depth[v] = -1.0 / z
        if z > 0:
            scale = focal / z
            px[v, 0] = points[v, 0] * scale + centre[0]
            px[v, 1] = points[v, 1] * scale + centre[1]
            weight[v] = 1.0 / z
        else:
            px[v, 0] = px[v, 1] = weight[v] = np.nan


@numba.njit(cache=CACHE, nogil=True)
def smooth_normals(vertices, faces):  # type: ignore[no-untyped-def]
    """(V, 3) unit normals weighted by area; zero for vertices of no triangle."""
    out = np.zeros((len(vertices), 3))
    for f in range(len(faces)):
        i, j, k = triangle_corners(faces, f)
        ax = vertices[j, 0] - vertices[i, 0]
        ay = vertices[j, 1] - vertices[i, 1]
        az = vertices[j, 2] - vertices[i, 2]
        bx = vertices[k, 0] - vertices[i, 0]
        by = vertices[k, 1] - vertices[i, 1]
        bz = vertices[k, 2] - vertices[i, 2]
        nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        for corner in (i, j, k):
            out[corner, 0] += nx
            out[corner, 1] += ny
            out[corner, 2] += nz
    for v in range(len(out)):
        length = np.sqrt(out[v, 0] ** 2 + out[v, 1] ** 2 + out[v, 2] ** 2)
        if length > 0:
            for c in range(3):  # a row of its own would be counted
                out[v, c] /= length
    return out


@numba.njit(cache=CACHE, nogil=True)
def _closest_on_triangle(x, y, x0, y0, x1, y1, x2, y2):  # type: ignore[no-untyped-def]
    """Barycentrics of the point of the triangle's outline that is nearest to (x, y)."""
    best = np.inf
    b0, b1, b2 = 1.0, 0.0, 0.0
    for edge in range(3):
        if edge == 0:
            px, py, qx, qy = x0, y0, x1, y1
        elif edge == 1:
            px, py, qx, qy = x1, y1, x2, y2
        else:
            px, py, qx, qy = x2, y2, x0, y0
        dx, dy = qx - px, qy - py
        square = dx * dx + dy * dy
        t = 0.0
        if square > 0:
            t = min(max(((x - px) * dx + (y - py) * dy) / square, 0.0), 1.0)
        distance = (px + t * dx - x) ** 2 + (py + t * dy - y) ** 2
        if distance < best:
            best = distance
            if edge == 0:
                b0, b1, b2 = 1.0 - t, t, 0.0
            elif edge == 1:
                b0, b1, b2 = 0.0, 1.0 - t, t
            else:
                b0, b1, b2 = t, 0.0, 1.0 - t
    return b0, b1, b2


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def screen_weights(x, y, x0, y0, x1, y1, x2, y2):  # type: ignore[no-untyped-def]
    """Barycentrics of (x, y) in a triangle on the screen.

    A sample may lie outside its triangle by the snapping of visibility (at most 0.003 px): then
    those of the nearest point of the outline, so that none is negative.
    """
    inverse = 1.0 / ((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0))
    b1 = ((x - x0) * (y2 - y0) - (x2 - x0) * (y - y0)) * inverse
    b2 = ((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) * inverse
    b0 = 1.0 - b1 - b2
    if not (b0 >= 0 and b1 >= 0 and b2 >= 0):  # also without an area
        return _closest_on_triangle(x, y, x0, y0, x1, y1, x2, y2)
    return b0, b1, b2


@numba.njit(cache=CACHE, nogil=True)
def corners(vertices, faces, px, weight):  # type: ignore[no-untyped-def]
    """(V, 8) pixel, screen weight, 0, depth and smooth normal of each vertex.

    Side by side, so that a vertex is one cache line.
    """
    normals = smooth_normals(vertices, faces)
    out = np.empty((len(vertices), 8))
    for v in range(len(vertices)):
        out[v, 0], out[v, 1], out[v, 2], out[v, 3] = px[v, 0], px[v, 1], weight[v], 0.0
        out[v, 4], out[v, 5], out[v, 6], out[v, 7] = (
            vertices[v, 2],
            normals[v, 0],
            normals[v, 1],
            normals[v, 2],
        )
    return out


@numba.njit(cache=CACHE, nogil=True)
def resolve(ids, xy, vertices, faces, px, weight, normals, barycentric, depth, normal):  # type: ignore[no-untyped-def]
    """Fill (R, C, ...) ``barycentric``, ``depth`` and ``normal`` of samples from (R, C) ``ids``.

    ``xy``: where the samples lie in pixels, (R, C, 2), or (0, 0, 2) for the pixel centres of an (R,
    C) image. Returns False, with the outputs unfinished, when an id names a triangle that has no
    place on the screen.
    """
    height, width = ids.shape
    for row in range(height):
        for column in range(width):
            f = ids[row, column]
            if f < 0:
                continue
            i, j, k = triangle_corners(faces, f)
            if len(xy) > 0:
                x, y = xy[row, column, 0], xy[row, column, 1]
            else:
                x, y = column + 0.5, row + 0.5
            b0, b1, b2 = screen_weights(
                x, y, px[i, 0], px[i, 1], px[j, 0], px[j, 1], px[k, 0], px[k, 1]
            )
            w0, w1, w2 = b0 * weight[i], b1 * weight[j], b2 * weight[k]
            total = w0 + w1 + w2
            if not (total > 0):
                return False
            scale = 1.0 / total
            w0, w1, w2 = w0 * scale, w1 * scale, w2 * scale
            barycentric[row, column, 0] = w0
            barycentric[row, column, 1] = w1
            barycentric[row, column, 2] = w2
            depth[row, column] = w0 * vertices[i, 2] + w1 * vertices[j, 2] + w2 * vertices[k, 2]
            nx = w0 * normals[i, 0] + w1 * normals[j, 0] + w2 * normals[k, 0]
            ny = w0 * normals[i, 1] + w1 * normals[j, 1] + w2 * normals[k, 1]
            nz = w0 * normals[i, 2] + w1 * normals[j, 2] + w2 * normals[k, 2]
            length = np.sqrt(nx * nx + ny * ny + nz * nz)
            if length > 1e-9:
                unit = 1.0 / length
                normal[row, column, 0] = nx * unit
                normal[row, column, 1] = ny * unit
                normal[row, column, 2] = nz * unit
            else:  # opposite vertex normals: towards the camera
                normal[row, column, 0] = 0.0
                normal[row, column, 1] = 0.0
                normal[row, column, 2] = -1.0
    return True


@numba.njit(cache=CACHE, nogil=True)
def interpolate(ids, barycentric, values, faces, out):  # type: ignore[no-untyped-def]
    """Fill (H, W, C) ``out`` with (V, C) ``values``."""
    height, width, channels = out.shape
    for row in range(height):
        for column in range(width):
            f = ids[row, column]
            if f < 0:
                continue
            i, j, k = triangle_corners(faces, f)
            w0, w1, w2 = weights_at(barycentric, row, column)
            for c in range(channels):
                out[row, column, c] = w0 * values[i, c] + w1 * values[j, c] + w2 * values[k, c]


@numba.njit(cache=CACHE, nogil=True)
def sample_texture(ids, barycentric, texture, uv, uv_faces, out):  # type: ignore[no-untyped-def]
    """Fill (H, W, C) ``out`` bilinearly from (S, T, C) ``texture``."""
    height, width, channels = out.shape
    rows, columns = texture.shape[0], texture.shape[1]
    texels = texture.ravel()
    for row in range(height):
        for column in range(width):
            f = ids[row, column]
            if f < 0:
                continue
            i, j, k = triangle_corners(uv_faces, f)
            w0, w1, w2 = weights_at(barycentric, row, column)
            x = (w0 * uv[i, 0] + w1 * uv[j, 0] + w2 * uv[k, 0]) * columns - 0.5
            y = (w0 * uv[i, 1] + w1 * uv[j, 1] + w2 * uv[k, 1]) * rows - 0.5
            left, top, fx, fy = bilinear_cell(x, y, columns, rows)
            right, bottom = min(left + 1, columns - 1), min(top + 1, rows - 1)
            nw, ne = (
                np.uint64((top * columns + left) * channels),
                np.uint64((top * columns + right) * channels),
            )
            sw, se = (
                np.uint64((bottom * columns + left) * channels),
                np.uint64((bottom * columns + right) * channels),
            )
            a, b = np.float32((1.0 - fx) * (1.0 - fy)), np.float32(fx * (1.0 - fy))
            c, d = np.float32((1.0 - fx) * fy), np.float32(fx * fy)
            for channel in range(channels):
                n = np.uint64(channel)
                out[row, column, n] = (
                    a * texels[nw + n]
                    + b * texels[ne + n]
                    + c * texels[sw + n]
                    + d * texels[se + n]
                )


@numba.njit(cache=CACHE, nogil=True)
def shaded(ids, normal, albedo, light, out):  # type: ignore[no-untyped-def]
    """Fill (H, W, 3) ``out`` with albedo times the shading of ``dff.face.geometry.lighting``.

    ``light``: (9, 3) float64.
    """
    height, width = ids.shape
    for row in range(height):
        for column in range(width):
            if ids[row, column] < 0:
                continue
            x = np.float64(normal[row, column, 0])
            y = np.float64(normal[row, column, 1])
            z = np.float64(normal[row, column, 2])
            for c in range(3):
                value = C0 * light[0, c] + C1 * (
                    light[1, c] * y + light[2, c] * z + light[3, c] * x
                )
                value += C2 * (light[4, c] * x * y + light[5, c] * y * z + light[7, c] * x * z)
                value += C3 * light[6, c] * (3.0 * z * z - 1.0) + C4 * light[8, c] * (x * x - y * y)
                out[row, column, c] = albedo[row, column, c] * max(value, 0.0)


@numba.njit(cache=CACHE, nogil=True)
def edges(ids, depth, step, out):  # type: ignore[no-untyped-def]
    """Set (H, W) ``out`` at pixels that an outline parts from one of their eight neighbours.

    An outline is where the background begins, or where depth jumps by more than ``step``.
    """
    height, width = ids.shape
    for row in range(height):
        for column in range(width):
            here, z = ids[row, column] >= 0, depth[row, column]
            for r, c in (
                (row, column + 1),
                (row + 1, column - 1),
                (row + 1, column),
                (row + 1, column + 1),
            ):
                if r == height or c < 0 or c == width:
                    continue
                there = ids[r, c] >= 0
                if here != there or (here and abs(depth[r, c] - z) > step):
                    out[row, column] = True
                    out[r, c] = True


@register_jitable(inline="always")
def farthest_of_four(ids, depth, x, y):  # type: ignore[no-untyped-def]
    """The largest depth of the four pixel centres round pixel (x, y); infinite at the background.

    Of centres outside the image the nearest one inside counts. A surface point is occluded where
    this is less than its own depth: all four centres show something before it.
    """
    height, width = ids.shape
    left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    out = -np.inf
    for r in (top, top + 1):
        for c in (left, left + 1):
            row, column = min(max(r, 0), height - 1), min(max(c, 0), width - 1)
            out = max(out, np.inf if ids[row, column] == -1 else depth[row, column])
    return out


@numba.njit(cache=CACHE, nogil=True)
def unoccluded(ids, depth, px, z, tolerance, out):  # type: ignore[no-untyped-def]
    """Fill (N,) ``out``: whether points are in the image and not occluded by over ``tolerance``.

    The points are at (N, 2) ``px`` and depth ``z``.
    """
    height, width = ids.shape
    for n in range(len(px)):
        x, y = px[n, 0], px[n, 1]
        out[n] = False
        if not (x >= 0 and y >= 0 and x < width and y < height and z[n] > -np.inf):
            continue
        out[n] = farthest_of_four(ids, depth, x, y) >= z[n] - tolerance
