"""Small meshes that accessories are made of: sheets, tubes and balls, and interpolated directions.

Lengths are metres. Triangles are counter-clockwise as seen from outside.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Floats
from dff.pipeline.accessories.meshes import AccessoryMesh


@cache
def grid(rows: int, columns: int, *, closed: bool = False) -> NDArray[np.int32]:
    """(M, 3) triangles of a sheet of vertices that are numbered row by row.

    ``closed``: the last column meets the first. The outside is where rows run down and columns to
    the right.
    """
    last = columns if closed else columns - 1
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(last), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    below = columns
    quads = np.stack([a, a + below, b + below, a, b + below, b], axis=-1)
    return np.ascontiguousarray(quads.reshape(-1, 3).astype(np.int32))


def sheet(
    points: Floats, colour: Floats | tuple[float, float, float], *, closed: bool = False
) -> AccessoryMesh:
    """The surface through (R, C, 3) points; ``colour`` (3,) or (R, C, 3)."""
    rows, columns = points.shape[:2]
    shade = np.broadcast_to(np.asarray(colour, dtype=np.float64), (rows, columns, 3)).reshape(-1, 3)
    return AccessoryMesh.plain(points.reshape(-1, 3), grid(rows, columns, closed=closed), shade)


def tubes(
    paths: Floats,
    radii: Floats,
    colour: Floats | tuple[float, float, float],
    *,
    sides: int = 6,
    loop: bool = False,
) -> AccessoryMesh:
    """Tubes with closed ends along (T, L, 3) paths.

    ``radii`` are (T, L), or (T, L, 2) across and along the tube's frame, which starts from the axis
    that the path is least parallel to. ``colour`` is (3,) or (T, L, 3). ``loop``: each path ends
    where it begins.
    """
    count, length = paths.shape[:2]
    ahead = np.roll(paths, -1, axis=1) - np.roll(paths, 1, axis=1)
    if not loop:
        ahead[:, 0], ahead[:, -1] = paths[:, 1] - paths[:, 0], paths[:, -1] - paths[:, -2]
    ahead = ahead / np.maximum(np.linalg.norm(ahead, axis=2, keepdims=True), 1e-12)
    helper = np.eye(3)[np.abs(ahead).mean(1).argmin(1)][:, None]
    side = np.cross(ahead, np.broadcast_to(helper, ahead.shape))
    side = side / np.maximum(np.linalg.norm(side, axis=2, keepdims=True), 1e-12)
    other = np.cross(side, ahead)
    angle = np.linspace(0.0, 2.0 * np.pi, sides, endpoint=False)
    wide = np.broadcast_to(
        np.asarray(radii)[..., None] if np.ndim(radii) < 3 else radii, (count, length, 2)
    )
    rings = paths[:, :, None] + (
        side[:, :, None] * (np.cos(angle)[:, None] * wide[:, :, None, :1])
        + other[:, :, None] * (np.sin(angle)[:, None] * wide[:, :, None, 1:])
    )
    shade = np.broadcast_to(np.asarray(colour, dtype=np.float64), (count, length, 3))
    body = grid(length, sides, closed=True)
    per = length * sides
    if loop:
        i = np.arange(sides)
        last = (length - 1) * sides
        seam = np.stack(
            [last + i, i, (i + 1) % sides, last + i, (i + 1) % sides, last + (i + 1) % sides],
            axis=1,
        )
        faces = np.concatenate([body, seam.reshape(-1, 3).astype(np.int32)])
        vertices = rings.reshape(count, per, 3)
        shades = np.repeat(shade, sides, axis=1)
    else:
        i = np.arange(sides)
        j = (i + 1) % sides
        first = np.stack([np.full(sides, per), i, j], axis=1)
        end = np.stack(
            [np.full(sides, per + 1), (length - 1) * sides + j, (length - 1) * sides + i], axis=1
        )
        faces = np.concatenate([body, first, end]).astype(np.int32)
        vertices = np.concatenate(
            [rings.reshape(count, per, 3), paths[:, :1], paths[:, -1:]], axis=1
        )
        shades = np.concatenate(
            [np.repeat(shade, sides, axis=1), shade[:, :1], shade[:, -1:]], axis=1
        )
    number = vertices.shape[1]
    every = (faces[None] + (np.arange(count) * number)[:, None, None]).astype(np.int32)
    return AccessoryMesh.plain(vertices.reshape(-1, 3), every.reshape(-1, 3), shades.reshape(-1, 3))


def ball(
    centre: Floats,
    radii: Floats,
    colour: Floats | tuple[float, float, float],
    *,
    rows: int = 8,
    columns: int = 12,
) -> AccessoryMesh:
    """An ellipsoid with (3,) half axes along x, y, z."""
    polar = np.linspace(0.0, np.pi, rows)[:, None]
    around = np.linspace(0.0, 2.0 * np.pi, columns, endpoint=False)[None]
    unit = np.stack(
        [
            np.sin(polar) * np.sin(around),
            np.cos(polar) + 0.0 * around,
            np.sin(polar) * np.cos(around),
        ],
        axis=-1,
    )
    return sheet(np.asarray(centre) + unit * np.asarray(radii), colour, closed=True)


def normalize(vectors: Floats) -> Floats:
    """(..., N) vectors of length one; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def slerp(a: Floats, b: Floats, s: Floats) -> Floats:
    """Points at shares ``s`` of the great circles from directions ``a`` to ``b``."""
    a, b = normalize(a), normalize(b)
    angle = np.arccos(np.clip((a * b).sum(-1, keepdims=True), -1.0, 1.0))
    sine = np.maximum(np.sin(angle), 1e-6)
    return np.asarray((np.sin((1.0 - s) * angle) * a + np.sin(s * angle) * b) / sine)
