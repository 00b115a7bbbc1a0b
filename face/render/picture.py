"""A picture of a mesh in one pass: surface point, texture and light of each pixel, then laid over a
background.

The fast way from triangle ids to colours, for pictures by the million: hardly an image but the
result is written. The slow twin is ``frame``: ``shaded(sample_texture(resolve(ids)))``; depths are
the same to the bit, colours to 0.01 / 255. Outlines are anti-aliased by ``zbuffer.samples``: eight
samples in each pixel that an outline touches, each coloured like the nearest pixel that shows the
same surface, as multi-sampling hardware does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Bools, Floats, Ints
from dff.face.geometry.lighting import C0, C1, C2, C3, C4
from dff.face.render import kernels, zbuffer
from dff.face.render.frame import Image, Mesh
from dff.face.render.lanes import LANES, blend_2, blend_4, look_up

CREASE = 0.006
"""Metres of depth between neighbouring pixels from which on there is an outline between them, where
colours differ.
"""

ALIKE = 8.0 / 255.0
"""Difference of colours up to which nobody sees an outline between two parts of one thing."""

TRIM = 15
"""The part of what is not textured."""

APART = np.float32(
    100.0
)  # metres that parts count as apart from each other; float32 still tells 0.1 mm at TRIM of it

_NORMS = np.array([C0, C1, C1, C1, C2, C2, C3, C2, C4])[:, None]

TILE = 256  # pixels of a row that are worked on together
# Where a tile's numbers lie. Side by side for each pixel: depth and normal; its place in the
# texture.
NORMAL, PLACE = np.uint64(0), np.uint64(4 * TILE)
MIXED = 6 * TILE
# One after the other for all pixels: colour, and how far it is covered.
RED, GREEN, BLUE, HIDDEN = (np.uint64(n * TILE) for n in range(4))
COLOURS = 4 * TILE
# The texel, and what it and its three neighbours are.
TEXEL, NW, NE, SW, SE = (np.uint64(n * TILE) for n in range(5))
TEXELS = 5 * TILE


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture on a mesh, in 8 bits. Raises ValueError when shapes disagree or it has less than 2
    x 2 texels.
    """

    texels: NDArray[np.uint8]  # (S, T, 4): red, green, blue, and how far what lies behind covers it
    corners: NDArray[
        np.float32
    ]  # (F, 3, 2) of each triangle's corners in texels, the first texel's centre at 0
    parts: NDArray[
        np.uint8
    ]  # (F,) 1 .. 14: what each triangle is of; between two parts there is an outline

    def __post_init__(self) -> None:
        if self.texels.ndim != 3 or self.texels.shape[2] != 4 or min(self.texels.shape[:2]) < 2:
            raise ValueError(
                f"Texture wants (S, T, 4) of at least 2 x 2 texels, got {self.texels.shape}"
            )
        if self.corners.ndim != 3 or self.corners.shape[1:] != (3, 2):
            raise ValueError(f"Texture.corners wants (F, 3, 2), got {self.corners.shape}")
        if (
            self.parts.shape != self.corners.shape[:1]
            or not ((self.parts > 0) & (self.parts < TRIM)).all()
        ):
            raise ValueError(
                f"Texture.parts wants ({len(self.corners)},) in 1 .. {TRIM - 1}, got {self.parts.shape}"
            )

    @staticmethod
    def of(image: Floats, uv: Floats, uv_faces: Ints, parts: Ints | None = None) -> Texture:
        """Of an (S, T, 4) ``image`` in 0..1 and (N, 2) ``uv`` as of ``frame.sample_texture``; one
        part if not said.
        """
        levels = np.empty(image.shape, dtype=np.uint8)
        _to_levels(np.ascontiguousarray(image, dtype=np.float32).reshape(-1), levels.reshape(-1))
        places = uv.astype(np.float64) * np.array(image.shape[1::-1]) - 0.5
        of = np.ones(len(uv_faces)) if parts is None else parts
        return Texture(levels, places[uv_faces].astype(np.float32), np.asarray(of, dtype=np.uint8))


@dataclass(frozen=True, eq=False)
class Trim:
    """How the triangles look that follow the textured ones: coloured at their vertices, with a
    repeating pattern.
    """

    first: int  # vertex to which the first row of ``look`` belongs
    look: NDArray[
        np.float32
    ]  # (N, 6) albedo; place in the pattern (across, along; 1 is a repeat), its strength
    pattern: NDArray[
        np.float32
    ]  # (Q, Q) by which the albedo grows where the strength is 1; Q is a power of two

    def __post_init__(self) -> None:
        side = len(self.pattern)
        if (
            self.look.ndim != 2
            or self.look.shape[1] != 6
            or self.pattern.shape != (side, side)
            or side & (side - 1)
        ):
            raise ValueError(
                f"Trim wants (N, 6) and (Q, Q) of a power of two: {self.look.shape}, {self.pattern.shape}"
            )


PLAIN = Trim(0, np.zeros((0, 6), np.float32), np.zeros((1, 1), np.float32))
"""No triangles but the textured ones."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What each pixel shows of a mesh."""

    triangle: NDArray[np.int32]  # (H, W) as ``Frame.triangle``
    depth: Image  # (H, W) metres, as ``Frame.depth``
    part: NDArray[np.uint8]  # (H, W) of the triangle; background 0
    parts: NDArray[np.uint8]  # (F,) of the textured triangles; what follows them is TRIM
    image: Image  # (H, W, 3) colours in 0..1 or beyond, before the background


def picture(
    mesh: Mesh,
    ids: NDArray[np.int32],
    texture: Texture,
    light: Floats,
    background: Image,
    trim: Trim = PLAIN,
) -> Picture:
    """The picture of (H, W) triangle ``ids`` of a mesh under (9, 3) ``light``, with hard outlines.

    It is painted over the (H, W, 3) float32 ``background``, in place: images that fit a processor's
    cache are what makes this fast. Raises ValueError when an id is not of the mesh, for triangles
    without a texture that are not trim's, and for a background of another size or one that can't be
    written.
    """
    textured = len(texture.corners)
    if ids.size and ids.max() >= len(mesh.faces):
        raise ValueError("the ids name triangles that this mesh does not have")
    if textured > len(mesh.faces) or (
        len(mesh.faces) > textured and trim.first + len(trim.look) < len(mesh.vertices)
    ):
        raise ValueError(
            f"{len(mesh.faces)} triangles, {textured} of them textured, do not fit their looks"
        )
    if (
        background.shape != (*ids.shape, 3)
        or background.dtype != np.float32
        or not background.flags.carray
    ):
        raise ValueError(
            f"a picture of {ids.shape} lies over no background of {background.shape}, {background.dtype}"
        )
    depth, part = np.zeros(ids.shape, dtype=np.float32), np.zeros(ids.shape, dtype=np.uint8)
    _paint(
        ids,
        kernels.corners(mesh.vertices, mesh.faces, mesh.px, mesh.weight),
        mesh.faces,
        texture.corners.reshape(-1),
        texture.parts,
        texture.texels.reshape(-1).view(np.int32),
        texture.texels.shape[1],
        texture.texels.shape[0],
        (light * _NORMS / 255.0).astype(np.float32),
        trim.first,
        trim.look.reshape(-1),
        trim.pattern,
        depth,
        part,
        background,
    )
    return Picture(ids, depth, part, texture.parts, background)


def outlines(seen: Picture) -> Bools:
    """(H, W) the pixels on both sides of an outline.

    That is where the background begins; or another part, or where depth jumps by CREASE, if colours
    are not ALIKE.
    """
    out = np.zeros(seen.triangle.shape, dtype=np.bool_)
    _outlines(seen.part, seen.depth, seen.image, np.float32(CREASE), np.float32(ALIKE), out)
    return out


def smooth(seen: Picture, mesh: Mesh) -> None:
    """Make the outlines of a picture of a mesh smooth, in place."""
    fine = zbuffer.samples(mesh.px, mesh.screen_depth, mesh.faces, seen.triangle, outlines(seen))
    with np.errstate(divide="ignore"):
        depth = mesh.camera.depth_on_screen(fine.screen_depth)
    _smooth(
        seen.part,
        seen.depth,
        seen.parts,
        fine.pixel,
        fine.triangle,
        depth,
        np.float32(CREASE),
        seen.image,
    )


@numba.njit(cache=True, nogil=True)
def _to_levels(values, out):  # type: ignore[no-untyped-def]
    for n in range(len(values)):
        level = min(max(values[n], np.float32(0.0)), np.float32(1.0)) * np.float32(255.0)
        out[n] = np.uint8(np.int32(level + np.float32(0.5)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _paint(  # type: ignore[no-untyped-def]
    ids,
    corners,
    faces,
    uv,
    parts,
    texels,
    columns,
    rows,
    light,
    first,
    look,
    pattern,
    depth,
    part,
    image,
):
    height, width = ids.shape
    # Several arrays, because the compiler would not vectorise loops over one with strides that
    # differ.
    mixed = np.zeros(MIXED, dtype=np.float32)
    scratch = np.zeros(COLOURS, dtype=np.float32)
    whole = np.zeros(TEXELS, dtype=np.int32)
    trim = np.zeros(TILE * 8, dtype=np.float32)
    zero, one, share = np.float32(0.0), np.float32(1.0), np.float32(1.0 / 255.0)
    for row in range(height):
        begin, end = width, 0
        for column in range(width):
            if ids[row, column] >= 0:
                begin = min(begin, column)
                end = column + 1
        for start in range(begin, end, TILE):
            stop = min(start + TILE, end)
            trimmed = _surface(
                ids,
                row,
                start,
                stop,
                corners,
                faces,
                uv,
                parts,
                first,
                look,
                pattern,
                mixed,
                trim,
                part,
            )
            _texture(stop - start, texels, columns, rows, mixed, scratch, whole)
            if trimmed:
                for column in range(start, stop):
                    if part[row, column] == TRIM:
                        n = np.uint64(column - start)
                        at = n * np.uint64(8)
                        scratch[n + RED], scratch[n + HIDDEN] = trim[at], zero
                        scratch[n + GREEN], scratch[n + BLUE] = (
                            trim[at + np.uint64(1)],
                            trim[at + np.uint64(2)],
                        )
            _shade(stop - start, light, mixed, scratch)
            for column in range(start, stop):
                n = np.uint64(column - start)
                depth[row, column] = (
                    mixed[n * np.uint64(4) + NORMAL] if part[row, column] > 0 else zero
                )
                scratch[n + HIDDEN] = scratch[n + HIDDEN] * share if part[row, column] > 0 else one
            line = image[row]
            for column in range(start, stop):
                n = np.uint64(column - start)
                red, green, blue, hidden = (
                    scratch[n + RED],
                    scratch[n + GREEN],
                    scratch[n + BLUE],
                    scratch[n + HIDDEN],
                )
                line[column, 0] = red + hidden * (line[column, 0] - red)
                line[column, 1] = green + hidden * (line[column, 1] - green)
                line[column, 2] = blue + hidden * (line[column, 2] - blue)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _surface(  # type: ignore[no-untyped-def]
    ids, row, start, stop, corners, faces, uv, parts, first, look, pattern, mixed, trim, part
):
    """Depth, normal, part and place in the texture, or colour of trim, of a tile. Says whether
    there was trim.
    """
    trimmed = False
    textured = len(parts)
    white, zero = np.float32(255.0), np.float32(0.0)
    side = np.float32(len(pattern))
    around = len(pattern) - 1  # of a power of two
    table = corners.ravel()
    y = row + 0.5
    for column in range(start, stop):
        f = ids[row, column]
        if f < 0:
            continue
        t, n = np.uint64(f), np.uint64(column - start)
        i, j, k = kernels.triangle_corners(faces, f)
        a, b, c = kernels.screen_weights(
            column + 0.5,
            y,
            corners[i, 0],
            corners[i, 1],
            corners[j, 0],
            corners[j, 1],
            corners[k, 0],
            corners[k, 1],
        )
        a, b, c = a * corners[i, 2], b * corners[j, 2], c * corners[k, 2]
        scale = 1.0 / (a + b + c)
        a, b, c = a * scale, b * scale, c * scale
        eight, four = np.uint64(8), np.uint64(4)
        i, j, k = i * eight + four, j * eight + four, k * eight + four
        blend_4(table, i, j, k, a, b, c, mixed, NORMAL + n * four)
        if f < textured:
            two, at = np.uint64(2), t * np.uint64(6)
            blend_2(uv, at, at + two, at + four, a, b, c, mixed, PLACE + n * two)
            part[row, column] = parts[t]
        else:
            trimmed = True
            part[row, column] = TRIM
            six, at = np.uint64(6), n * eight
            i = np.uint64(faces[t, 0] - first) * six
            j = np.uint64(faces[t, 1] - first) * six
            k = np.uint64(faces[t, 2] - first) * six
            blend_4(look, i, j, k, a, b, c, trim, at)
            blend_2(look, i + four, j + four, k + four, a, b, c, trim, at + four)
            across, along, strength = (
                trim[at + np.uint64(3)],
                trim[at + four],
                trim[at + np.uint64(5)],
            )
            gain = white
            if strength > 0:
                down, right = (
                    int(np.floor(along * side)) & around,
                    int(np.floor(across * side)) & around,
                )
                gain += white * strength * pattern[down, right]
            for channel in range(3):
                place = at + np.uint64(channel)
                trim[place] = min(max(trim[place] * gain, zero), white)
    return trimmed


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _texture(count, texels, columns, rows, mixed, scratch, whole):  # type: ignore[no-untyped-def]
    """Bilinear samples, 0..255; beyond the outermost texel centres the border is repeated."""
    two, beyond = np.uint64(2), PLACE + np.uint64(1)
    zero, one = np.float32(0.0), np.float32(1.0)
    # A hair less than the last texel, so that there is always one beyond.
    right, bottom = (
        np.float32(columns - 1) * np.float32(0.9999999),
        np.float32(rows - 1) * np.float32(0.9999999),
    )
    for m in range(count):
        n = np.uint64(m)
        x = min(max(mixed[n * two + PLACE], zero), right)
        y = min(max(mixed[n * two + beyond], zero), bottom)
        left, top = np.int32(x), np.int32(y)
        scratch[n + RED], scratch[n + GREEN] = x - np.float32(left), y - np.float32(top)
        whole[n + TEXEL] = top * np.int32(columns) + left
    for m in range(0, count, LANES):
        n = np.uint64(m)
        look_up(texels, whole, n + TEXEL, 0, whole, n + NW)
        look_up(texels, whole, n + TEXEL, 1, whole, n + NE)
        look_up(texels, whole, n + TEXEL, columns, whole, n + SW)
        look_up(texels, whole, n + TEXEL, columns + 1, whole, n + SE)
    for m in range(count):
        n = np.uint64(m)
        x, y = scratch[n + RED], scratch[n + GREEN]
        p, q, r, s = whole[n + NW], whole[n + NE], whole[n + SW], whole[n + SE]
        a, b, c, d = (one - x) * (one - y), x * (one - y), (one - x) * y, x * y
        scratch[n + RED] = a * _byte(p, 0) + b * _byte(q, 0) + c * _byte(r, 0) + d * _byte(s, 0)
        scratch[n + GREEN] = a * _byte(p, 8) + b * _byte(q, 8) + c * _byte(r, 8) + d * _byte(s, 8)
        scratch[n + BLUE] = (
            a * _byte(p, 16) + b * _byte(q, 16) + c * _byte(r, 16) + d * _byte(s, 16)
        )
        scratch[n + HIDDEN] = (
            a * _byte(p, 24) + b * _byte(q, 24) + c * _byte(r, 24) + d * _byte(s, 24)
        )


@numba.njit(cache=True, nogil=True)
def _byte(word, shift):  # type: ignore[no-untyped-def]
    return np.float32(np.int32((word >> shift) & 255))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _shade(count, light, mixed, scratch):  # type: ignore[no-untyped-def]
    """Multiply the colours by the shading of ``dff.face.geometry.lighting``; ``light`` comes with
    the harmonics' norms in it.
    """
    four, one_on, two_on, three_on = np.uint64(4), np.uint64(1), np.uint64(2), np.uint64(3)
    zero, one, three, tiny = np.float32(0.0), np.float32(1.0), np.float32(3.0), np.float32(1e-18)
    r0, g0, b0 = light[0]
    r1, g1, b1 = light[1]
    r2, g2, b2 = light[2]
    r3, g3, b3 = light[3]
    r4, g4, b4 = light[4]
    r5, g5, b5 = light[5]
    r6, g6, b6 = light[6]
    r7, g7, b7 = light[7]
    r8, g8, b8 = light[8]
    for m in range(count):
        n = np.uint64(m)
        at = n * four + NORMAL
        x, y, z = mixed[at + one_on], mixed[at + two_on], mixed[at + three_on]
        square = x * x + y * y + z * z
        unit = one / np.sqrt(max(square, tiny))
        x, y, z = x * unit, y * unit, (z * unit if square > tiny else -one)
        xy, yz, xz, zz, xx = x * y, y * z, x * z, three * z * z - one, x * x - y * y
        red = r0 + r1 * y + r2 * z + r3 * x + r4 * xy + r5 * yz + r6 * zz + r7 * xz + r8 * xx
        green = g0 + g1 * y + g2 * z + g3 * x + g4 * xy + g5 * yz + g6 * zz + g7 * xz + g8 * xx
        blue = b0 + b1 * y + b2 * z + b3 * x + b4 * xy + b5 * yz + b6 * zz + b7 * xz + b8 * xx
        scratch[n + RED] *= max(red, zero)
        scratch[n + GREEN] *= max(green, zero)
        scratch[n + BLUE] *= max(blue, zero)


@numba.njit(cache=True, nogil=True)
def _outlines(part, depth, image, crease, alike, out):  # type: ignore[no-untyped-def]
    height, width = part.shape
    parted = np.zeros(
        -(-width // 8) * 8, dtype=np.uint8
    )  # 1: by the background's beginning, 2: perhaps
    eight = parted.view(np.uint64)
    for row in range(height):
        for down in range(2):
            below, limit = row + down, width - 1 + down
            if below == height:
                continue
            parted[width - 1] = 0
            _parted(
                part[row],
                part[below, 1 - down :],
                depth[row],
                depth[below, 1 - down :],
                crease,
                limit,
                parted,
            )
            for word in range(len(eight)):
                if eight[word] == 0:
                    continue
                for column in range(8 * word, min(8 * word + 8, limit)):
                    right = column + 1 - down
                    if parted[column] == 2:
                        for channel in range(3):
                            if (
                                abs(image[row, column, channel] - image[below, right, channel])
                                > alike
                            ):
                                parted[column] = 1
                    if parted[column] == 1:
                        out[row, column] = out[below, right] = True


@numba.njit(cache=True, nogil=True)
def _parted(part, other, depth, beyond, crease, limit, parted):  # type: ignore[no-untyped-def]
    for column in range(limit):
        here, there = part[column], other[column]
        apart = (here != there) | (abs(depth[column] - beyond[column]) > crease)
        parted[column] = (
            np.uint8(1) if (here != there) & ((here == 0) | (there == 0)) else np.uint8(2 * apart)
        )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _smooth(part, depth, parts, pixels, triangle, sample_depth, crease, image):  # type: ignore[no-untyped-def]
    height, width = part.shape
    count = len(pixels)
    # One pixel round each after the other, and one sample after the other: long simple loops, eight
    # pixels at a time.
    levels = np.empty((9, count), dtype=np.float32)
    for n in range(count):
        row = pixels[n] // width
        column = pixels[n] - row * width
        way = 0
        for r in range(row - 1, row + 2):
            for c in range(column - 1, column + 2):
                inside = r >= 0 and c >= 0 and r < height and c < width
                levels[way, n] = _level(depth[r, c], part[r, c]) if inside else np.float32(np.inf)
                way += 1
    wanted, away = np.empty(count, dtype=np.float32), np.empty(count, dtype=np.float32)
    best = np.empty(count, dtype=np.int32)
    mixed = np.zeros((count, 3), dtype=np.float32)
    flat = image.reshape(-1, 3)
    for sample in range(zbuffer.SAMPLES):
        for n in range(count):
            f = triangle[n, sample]
            kind = TRIM if f >= len(parts) else parts[f] if f >= 0 else 0
            wanted[n] = _level(
                np.float32(sample_depth[n, sample]) if f >= 0 else np.float32(0.0), kind
            )
        _first(levels[4], wanted, crease, away, best)
        for way in range(9):
            if way != 4:
                _nearer(
                    levels[way], wanted, np.int32((way // 3 - 1) * width + way % 3 - 1), away, best
                )
        for n in range(count):
            at = np.int64(pixels[n]) + best[n]
            mixed[n, 0] += flat[at, 0]
            mixed[n, 1] += flat[at, 1]
            mixed[n, 2] += flat[at, 2]
    share = np.float32(1.0 / zbuffer.SAMPLES)
    for n in range(count):
        for channel in range(3):
            flat[pixels[n], channel] = share * mixed[n, channel]


@numba.njit(cache=True, nogil=True)
def _level(depth, part):  # type: ignore[no-untyped-def]
    """Depth, with parts so far from each other that another is only taken where there is nothing
    else.
    """
    return depth + APART * np.float32(part)


@numba.njit(cache=True, nogil=True)
def _first(levels, wanted, crease, away, best):  # type: ignore[no-untyped-def]
    """A sample has the colour of its own pixel unless there is a crease between."""
    for n in range(len(wanted)):
        apart = abs(levels[n] - wanted[n])
        away[n] = np.float32(0.0) if apart < crease else apart
        best[n] = np.int32(0)


@numba.njit(cache=True, nogil=True)
def _nearer(levels, wanted, way, away, best):  # type: ignore[no-untyped-def]
    for n in range(len(wanted)):
        apart = abs(levels[n] - wanted[n])
        nearer = apart < away[n]
        away[n] = apart if nearer else away[n]
        best[n] = way if nearer else best[n]
