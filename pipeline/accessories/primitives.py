"""Small meshes to build props from: sheets, tubes, balls. Metres; triangles are counter-clockwise
from outside.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Floats
from dff.pipeline.accessories.meshes import Prop


@cache
def grid(rows: int, columns: int, *, closed: bool = False) -> NDArray[np.int32]:
    """(M, 3) triangles of a sheet of vertices numbered row by row; ``closed``: its last column
    meets the first.

    The outside is where rows run down and columns to the right.
    """
    last = columns if closed else columns - 1
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(last), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    below = columns
    quads = np.stack([a, a + below, b + below, a, b + below, b], axis=-1)
    return np.ascontiguousarray(quads.reshape(-1, 3).astype(np.int32))


def sheet(
    points: Floats, colour: Floats | tuple[float, float, float], *, closed: bool = False
) -> Prop:
    """The surface through (R, C, 3) points; ``colour`` (3,) or (R, C, 3)."""
    rows, columns = points.shape[:2]
    shade = np.broadcast_to(np.asarray(colour, dtype=np.float64), (rows, columns, 3)).reshape(-1, 3)
    return Prop.plain(points.reshape(-1, 3), grid(rows, columns, closed=closed), shade)


def tubes(
    paths: Floats,
    radii: Floats,
    colour: Floats | tuple[float, float, float],
    *,
    sides: int = 6,
    loop: bool = False,
) -> Prop:
    """Tubes along (T, L, 3) paths of (T, L) or (T, L, 2) radii (two: across and along the frame),
    ends closed.

    ``colour``: (3,), or (T, L, 3). ``loop``: the paths end where they begin. A tube's frame starts
    from the axis that its path leans to least.
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
    return Prop.plain(vertices.reshape(-1, 3), every.reshape(-1, 3), shades.reshape(-1, 3))


def ball(
    centre: Floats,
    radii: Floats,
    colour: Floats | tuple[float, float, float],
    *,
    rows: int = 8,
    columns: int = 12,
) -> Prop:
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
