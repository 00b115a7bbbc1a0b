"""The shading pass: from triangle ids to colours over a background, in one pass.

For each pixel it computes the surface point, samples the texture and applies the light, and writes
little but the result. The reference implementation is ``frame``:
``shaded(sample_texture(resolve(ids)))``; depths are equal to the bit, colours to 0.01 / 255.
Outlines are anti-aliased with ``zbuffer.samples``: eight samples in each pixel that an outline
touches, each coloured like the nearest pixel of the same surface, as multi-sampling hardware does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Array, Bools, Float, Floats, Integer, Ints, UInt8
from dff.face.geometry.lighting import C0, C1, C2, C3, C4
from dff.face.numba_cache import CACHE
from dff.face.render import kernels, zbuffer
from dff.face.render.frame import Image, Mesh
from dff.face.render.simd import LANES, blend_2, blend_4, look_up

CREASE = 0.006
"""Depth step in metres between neighbouring pixels that makes an outline, where colours differ."""

ALIKE = 8.0 / 255.0
"""Difference of colours up to which an outline between two parts is not visible."""

VERTEX_COLOURED = 15
"""Part number of the vertex-coloured triangles."""

# Metres of depth added for each part number; at the largest, float32 still resolves 0.1 mm.
APART = np.float32(100.0)

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
    """A texture on a mesh, in 8 bits.

    Raises ValueError when shapes disagree or it has less than 2 x 2 texels.
    """

    texels: UInt8[Array, "rows columns 4"]  # red, green, blue, transparency
    # of each triangle's corners, texels; the first texel's centre at 0
    corners: Float[Array, "faces 3 2"]
    # 1 .. 14: which part each triangle belongs to; outlines separate parts
    parts: UInt8[Array, " faces"]

    def __post_init__(self) -> None:
        if self.texels.ndim != 3 or self.texels.shape[2] != 4 or min(self.texels.shape[:2]) < 2:
            raise ValueError(
                f"Texture wants (S, T, 4) of at least 2 x 2 texels, got {self.texels.shape}"
            )
        if self.corners.ndim != 3 or self.corners.shape[1:] != (3, 2):
            raise ValueError(f"Texture.corners wants (F, 3, 2), got {self.corners.shape}")
        if (
            self.parts.shape != self.corners.shape[:1]
            or not ((self.parts > 0) & (self.parts < VERTEX_COLOURED)).all()
        ):
            raise ValueError(
                f"Texture.parts wants ({len(self.corners)},) in 1 .. {VERTEX_COLOURED - 1}, "
                f"got {self.parts.shape}"
            )

    @staticmethod
    def of(image: Floats, uv: Floats, uv_faces: Ints, parts: Ints | None = None) -> Texture:
        """From an (S, T, 4) ``image`` in 0..1 and (N, 2) ``uv`` as of ``frame.sample_texture``.

        ``parts``: (F,); without it all triangles are one part.
        """
        levels = np.empty(image.shape, dtype=np.uint8)
        _to_levels(np.ascontiguousarray(image, dtype=np.float32).reshape(-1), levels.reshape(-1))
        places = uv.astype(np.float64) * np.array(image.shape[1::-1]) - 0.5
        of = np.ones(len(uv_faces)) if parts is None else parts
        return Texture(levels, places[uv_faces].astype(np.float32), np.asarray(of, dtype=np.uint8))


@dataclass(frozen=True, eq=False)
class VertexColours:
    """Vertex colours, with a repeating pattern, of the triangles that follow the textured ones.

    Raises ValueError when shapes disagree.
    """

    first: int  # vertex of the first row of ``attributes``
    # albedo (3), place in the pattern (across, along; 1 is a repeat), strength of the pattern
    attributes: Float[Array, "vertices 6"]
    # relative change of the albedo at strength 1; the side is a power of two
    pattern: Float[Array, "side side"]

    def __post_init__(self) -> None:
        side = len(self.pattern)
        if (
            self.attributes.ndim != 2
            or self.attributes.shape[1] != 6
            or self.pattern.shape != (side, side)
            or side & (side - 1)
        ):
            raise ValueError(
                f"VertexColours wants (N, 6) and (Q, Q) of a power of two: "
                f"{self.attributes.shape}, {self.pattern.shape}"
            )


NO_VERTEX_COLOURS = VertexColours(0, np.zeros((0, 6), np.float32), np.zeros((1, 1), np.float32))
"""For meshes whose triangles are all textured."""


@dataclass(frozen=True, eq=False)
class ShadedImage:
    """Colours of a rendered mesh, and what each pixel shows."""

    triangle: Integer[Array, "rows columns"]  # as ``Frame.triangle``
    depth: Float[Array, "rows columns"]  # metres, as ``Frame.depth``
    part: UInt8[Array, "rows columns"]  # of the triangle; background 0
    parts: UInt8[Array, " faces"]  # of the textured triangles; the others are VERTEX_COLOURED
    image: Float[Array, "rows columns 3"]  # colours over the background; may exceed 0..1


def shading_pass(
    mesh: Mesh,
    ids: NDArray[np.int32],
    texture: Texture,
    light: Floats,
    background: Image,
    vertex_colours: VertexColours = NO_VERTEX_COLOURS,
) -> ShadedImage:
    """Colours of (H, W) triangle ``ids`` of a mesh under (9, 3) ``light``, with hard outlines.

    Writes into the (H, W, 3) float32 ``background``: fewer images fit a processor's cache, which is
    what makes this fast. Raises ValueError for ids that are not of the mesh, for triangles with
    neither texture nor vertex colours, and for a background of another shape or a read-only one.
    """
    textured = len(texture.corners)
    if ids.size and ids.max() >= len(mesh.faces):
        raise ValueError("the ids name triangles that this mesh does not have")
    if textured > len(mesh.faces) or (
        len(mesh.faces) > textured
        and vertex_colours.first + len(vertex_colours.attributes) < len(mesh.vertices)
    ):
        raise ValueError(
            f"{len(mesh.faces)} triangles, {textured} of them textured: some have no colours"
        )
    if (
        background.shape != (*ids.shape, 3)
        or background.dtype != np.float32
        or not background.flags.carray
    ):
        raise ValueError(
            f"ids of {ids.shape} want a writable float32 background of {(*ids.shape, 3)}, "
            f"not {background.dtype} {background.shape}"
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
        vertex_colours.first,
        vertex_colours.attributes.reshape(-1),
        vertex_colours.pattern,
        depth,
        part,
        background,
    )
    return ShadedImage(ids, depth, part, texture.parts, background)


def find_outlines(seen: ShadedImage) -> Bools:
    """(H, W) the pixels on both sides of an outline.

    An outline is the border of the background, and the border of a part or a depth step of CREASE
    where colours differ by more than ALIKE.
    """
    out = np.zeros(seen.triangle.shape, dtype=np.bool_)
    _outlines(seen.part, seen.depth, seen.image, np.float32(CREASE), np.float32(ALIKE), out)
    return out


def antialias(seen: ShadedImage, mesh: Mesh) -> None:
    """Anti-alias the outlines of a shaded mesh, in place."""
    fine = zbuffer.samples(
        mesh.px, mesh.screen_depth, mesh.faces, seen.triangle, find_outlines(seen)
    )
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


@numba.njit(cache=CACHE, nogil=True)
def _to_levels(values, out):  # type: ignore[no-untyped-def]
    for n in range(len(values)):
        level = min(max(values[n], np.float32(0.0)), np.float32(1.0)) * np.float32(255.0)
        out[n] = np.uint8(np.int32(level + np.float32(0.5)))


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
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
    attributes,
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
    coloured = np.zeros(TILE * 8, dtype=np.float32)
    zero, one, share = np.float32(0.0), np.float32(1.0), np.float32(1.0 / 255.0)
    for row in range(height):
        begin, end = width, 0
        for column in range(width):
            if ids[row, column] >= 0:
                begin = min(begin, column)
                end = column + 1
        for start in range(begin, end, TILE):
            stop = min(start + TILE, end)
            any_coloured = _surface(
                ids,
                row,
                start,
                stop,
                corners,
                faces,
                uv,
                parts,
                first,
                attributes,
                pattern,
                mixed,
                coloured,
                part,
            )
            _texture(stop - start, texels, columns, rows, mixed, scratch, whole)
            if any_coloured:
                for column in range(start, stop):
                    if part[row, column] == VERTEX_COLOURED:
                        n = np.uint64(column - start)
                        at = n * np.uint64(8)
                        scratch[n + RED], scratch[n + HIDDEN] = coloured[at], zero
                        scratch[n + GREEN], scratch[n + BLUE] = (
                            coloured[at + np.uint64(1)],
                            coloured[at + np.uint64(2)],
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


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _surface(  # type: ignore[no-untyped-def]
    ids,
    row,
    start,
    stop,
    corners,
    faces,
    uv,
    parts,
    first,
    attributes,
    pattern,
    mixed,
    coloured,
    part,
):
    """Depth, normal, part, and place in the texture or vertex colour of a tile's pixels.

    Returns whether any pixel is vertex-coloured.
    """
    any_coloured = False
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
            any_coloured = True
            part[row, column] = VERTEX_COLOURED
            six, at = np.uint64(6), n * eight
            i = np.uint64(faces[t, 0] - first) * six
            j = np.uint64(faces[t, 1] - first) * six
            k = np.uint64(faces[t, 2] - first) * six
            blend_4(attributes, i, j, k, a, b, c, coloured, at)
            blend_2(attributes, i + four, j + four, k + four, a, b, c, coloured, at + four)
            across, along, strength = (
                coloured[at + np.uint64(3)],
                coloured[at + four],
                coloured[at + np.uint64(5)],
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
                coloured[place] = min(max(coloured[place] * gain, zero), white)
    return any_coloured


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _texture(count, texels, columns, rows, mixed, scratch, whole):  # type: ignore[no-untyped-def]
    """Bilinear samples, 0..255; beyond the outermost texel centres the border is repeated."""
    two, beyond = np.uint64(2), PLACE + np.uint64(1)
    zero, one = np.float32(0.0), np.float32(1.0)
    # Slightly less than the last texel, so that there is always one beyond.
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


@numba.njit(cache=CACHE, nogil=True)
def _byte(word, shift):  # type: ignore[no-untyped-def]
    return np.float32(np.int32((word >> shift) & 255))


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _shade(count, light, mixed, scratch):  # type: ignore[no-untyped-def]
    """Multiply the colours by the shading of ``dff.face.geometry.lighting``.

    ``light`` is already multiplied by the norms of the harmonics.
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


@numba.njit(cache=CACHE, nogil=True)
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


@numba.njit(cache=CACHE, nogil=True)
def _parted(part, other, depth, beyond, crease, limit, parted):  # type: ignore[no-untyped-def]
    for column in range(limit):
        here, there = part[column], other[column]
        apart = (here != there) | (abs(depth[column] - beyond[column]) > crease)
        parted[column] = (
            np.uint8(1) if (here != there) & ((here == 0) | (there == 0)) else np.uint8(2 * apart)
        )


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
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
            kind = VERTEX_COLOURED if f >= len(parts) else parts[f] if f >= 0 else 0
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


@numba.njit(cache=CACHE, nogil=True)
def _level(depth, part):  # type: ignore[no-untyped-def]
    """Depth with a large offset for each part: another part is taken only as a last resort."""
    return depth + APART * np.float32(part)


@numba.njit(cache=CACHE, nogil=True)
def _first(levels, wanted, crease, away, best):  # type: ignore[no-untyped-def]
    """A sample has the colour of its own pixel unless there is a crease between."""
    for n in range(len(wanted)):
        apart = abs(levels[n] - wanted[n])
        away[n] = np.float32(0.0) if apart < crease else apart
        best[n] = np.int32(0)


@numba.njit(cache=CACHE, nogil=True)
def _nearer(levels, wanted, way, away, best):  # type: ignore[no-untyped-def]
    for n in range(len(wanted)):
        apart = abs(levels[n] - wanted[n])
        nearer = apart < away[n]
        away[n] = apart if nearer else away[n]
        best[n] = way if nearer else best[n]
