"""Pictures of matches: two photos side by side, and heat maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dff.aligner.fitting.crop import Crops
from dff.aligner.labels import PixelColour, Rectangle, measure_text, write_on_ground
from dff.aligner.matching.result import PointMatches
from dff.face.arrays import Bools, Bytes, Floats, Ints
from dff.face.descriptor import STRIDE
from dff.face.geometry.camera import Box

COLOURS: tuple[PixelColour, ...] = (
    (230, 60, 60),
    (60, 160, 240),
    (250, 200, 40),
    (80, 210, 90),
    (200, 90, 220),
    (255, 140, 0),
)
"""RGB of the marks, in order of the points, repeated when there are more."""

DENSE_CORNERS: tuple[PixelColour, ...] = (
    (255, 40, 60),
    (255, 220, 0),
    (30, 60, 255),
    (0, 210, 120),
)
"""RGB at the corners of the second face, where every pixel is matched: rows from the top."""

MARK = 14  # pixels around a point that its mark takes
FEW = 12  # labels up to which they are large
LABEL_SIZES = (0.8, 0.6)  # of the letters of few labels, and of more
LABEL_MARGIN = 7  # pixels of ground around the letters
LABEL_GAP = 4  # pixels between labels
LABEL_REACH = 160  # pixels beside a point within which its label may lie
LABEL_STEP = 8  # pixels between the places that are tried
GAP = 8  # pixels of white between the photos
SIDE = 900  # pixels of the height of the picture
ALONE = 32.0  # pixels that are shown on each side of a single point
SUBPIXEL = 4  # bits of fraction that OpenCV draws with


@dataclass(frozen=True)
class Label:
    """Text beside a point of a picture."""

    px: Floats  # (2,) pixels of the point
    text: str
    colour: PixelColour


def draw_point_matches(image_a: Bytes, image_b: Bytes, matches: PointMatches) -> Bytes:
    """(H, W, 3) RGB: both photos around their faces, with the points numbered.

    Marks are filled where the point is visible and hollow where it is not, with the probability in
    percent beside them in the second photo; points that are not on a face are crossed out. Numbers
    for which there is no room between others are left out.
    """
    boxes = [face.landmarks_3d[:, :2] for face in matches.faces if face is not None]
    points = np.concatenate([matches.source, *boxes])
    if np.ptp(points, axis=0).min() == 0:  # a single point, off every face, spans no box
        points = np.concatenate([points - ALONE, points + ALONE])
    shown = Box.around(points)
    left, to_left = _cut_out(image_a, shown)
    right, to_right = _cut_out(image_b, Box.around(matches.found.landmarks_3d[:, :2]))
    left_labels: list[Label] = []
    right_labels: list[Label] = []
    for i, source in enumerate(matches.source):
        colour, number = COLOURS[i % len(COLOURS)], str(i + 1)
        if not matches.on_face[i]:
            _cross(left, to_left(source), colour)
            left_labels.append(Label(to_left(source), f"{number} not on a face", colour))
            continue
        _dot(left, to_left(source), colour, filled=True)
        left_labels.append(Label(to_left(source), number, colour))
        visible = bool(matches.visible[i])
        text = f"{matches.probability[i]:.0%}" if visible else "not visible"
        _dot(right, to_right(matches.px[i]), colour, filled=visible)
        right_labels.append(Label(to_right(matches.px[i]), f"{number}: {text}", colour))
    write_labels(left, left_labels)
    write_labels(right, right_labels)
    gap = np.full((SIDE, GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def draw_heat_map(image_b: Bytes, matches: PointMatches, points: slice = slice(None)) -> Bytes:
    """(H, W, 3) RGB: the second photo in grey under the largest heat of the chosen points.

    The colours run from transparent through purple and orange to yellow, where the point matches.
    """
    heat = matches.heat[points]
    top = heat.max(0) if len(heat) else np.zeros(matches.heat.shape[1:], np.float32)
    level = spread_heat(top, matches.crop, image_b.shape[:2])[..., None]
    grey = np.repeat(0.7 * image_b.mean(2, keepdims=True), 3, axis=2)
    coloured = cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    opacity = np.minimum(1.5 * level, 0.9)
    return np.asarray((1 - opacity) * grey + opacity * coloured, dtype=np.uint8)


def colour_dense_matches(matches: Floats, shape: tuple[int, int]) -> tuple[Bytes, Bytes]:
    """(H, W, 4) RGBA layers of both photos, in which the same colour is the same point.

    ``matches``: (H, W, 4) of ``Matcher.match_every_pixel``. ``shape``: height and width of the
    second photo. The colour tells where a point lies in the second photo, with lines in steps of a
    twelfth of its face. Points that it does not show are transparent.
    """
    seen = np.asarray(np.nan_to_num(matches[..., 3]) > 0.5)
    second = np.zeros((*shape, 4), np.uint8)
    if not seen.any():
        return np.zeros((*seen.shape, 4), np.uint8), second
    px = matches[seen][:, :2].astype(np.float64)
    low, high = px.min(0), px.max(0)
    size = float((high - low).max()) + 1e-9
    first = np.zeros((*seen.shape, 4), np.uint8)
    first[seen] = _colour_places((px - low) / size)
    column, row = np.clip(np.floor(px), 0, np.array(shape[::-1]) - 1).astype(int).T
    hit = np.zeros(shape, np.uint8)
    hit[row, column] = 1
    reach = 2 * round(size / 50) + 1  # closes the gaps between the places of single pixels
    hit = cv2.morphologyEx(hit, cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8))
    there = np.asarray(hit > 0)
    rows, columns = np.nonzero(there)
    second[there] = _colour_places((np.column_stack([columns, rows]) + 0.5 - low) / size)
    return first, second


def _colour_places(places: Floats) -> Bytes:
    """(N, 4) RGBA of (N, 2) places from 0 to 1: four colours blended, darker along the lines."""
    x, y = np.clip(places, 0.0, 1.0).T[..., None]
    corners = np.array(DENSE_CORNERS, np.float64)
    colours = (1 - y) * ((1 - x) * corners[0] + x * corners[1])
    colours += y * ((1 - x) * corners[2] + x * corners[3])
    apart = np.abs(12 * places - np.round(12 * places)).min(1)
    colours[apart < 0.08] *= 0.3
    return np.column_stack([colours, np.full(len(places), 190)]).astype(np.uint8)


def spread_heat(heat: Floats, crop: Crops, shape: tuple[int, int], *, scale: float = 1.0) -> Floats:
    """(H, W) float32 heat of a photo's pixels, 0..1, from that of its crop's output pixels.

    ``scale``: of a photo that was resized to ``shape``, in pixels for one of its own.
    """
    # The map grid_from_photo; OpenCV counts the first pixel's centre as 0 on both sides.
    corners = np.array([[[0.5, 0.5], [1.5, 0.5], [0.5, 1.5]]]) / scale
    origin, x, y = crop.crop_from_photo(corners)[0]
    linear = np.column_stack([x - origin, y - origin]) / STRIDE
    return np.asarray(
        cv2.warpAffine(
            heat.astype(np.float32),
            np.column_stack([linear, origin / STRIDE - 0.5]),
            shape[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
        )
    )


def _cut_out(image: Bytes, around: Box) -> tuple[Bytes, Callable[[Floats], Floats]]:
    """The photo about a box, ``SIDE`` pixels high, and the map of its pixels there."""
    square = around.square(1.6)
    height, width = image.shape[:2]
    low = np.clip(np.floor([square.x0, square.y0]), 0, [width - 1, height - 1]).astype(int)
    high = np.clip(np.ceil([square.x1, square.y1]), low + 1, [width, height]).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    scale = SIDE / part.shape[0]
    size = max(1, round(part.shape[1] * scale)), SIDE
    drawn = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)

    def place(px: Floats) -> Floats:
        return np.asarray((px - low) * scale)

    return np.asarray(drawn, dtype=np.uint8), place


def _fixed(px: Floats) -> tuple[int, int]:
    x, y = np.rint((px - 0.5) * (1 << SUBPIXEL)).astype(int)
    return int(x), int(y)


def _dot(picture: Bytes, px: Floats, colour: PixelColour, *, filled: bool) -> None:
    place, radius = _fixed(px), 9 << SUBPIXEL
    cv2.circle(picture, place, radius, (255, 255, 255), 6, cv2.LINE_AA, SUBPIXEL)
    cv2.circle(picture, place, radius, colour, -1 if filled else 3, cv2.LINE_AA, SUBPIXEL)


def _cross(picture: Bytes, px: Floats, colour: PixelColour) -> None:
    x, y = (round(float(v)) for v in px)
    for shade, width in (((255, 255, 255), 6), (colour, 3)):
        cv2.line(picture, (x - 8, y - 8), (x + 8, y + 8), shade, width, cv2.LINE_AA)
        cv2.line(picture, (x - 8, y + 8), (x + 8, y - 8), shade, width, cv2.LINE_AA)


def write_labels(picture: Bytes, labels: Sequence[Label]) -> None:
    """Write the labels for which an (H, W, 3) RGB picture has room, each on a ground of its colour.

    A line leads to a label that is not at its point.
    """
    size = LABEL_SIZES[len(labels) > FEW]
    texts = [measure_text(label.text, size, 2) for label in labels]
    sizes = [(width + 2 * LABEL_MARGIN, height + 2 * LABEL_MARGIN) for width, height in texts]
    places = place_labels([label.px for label in labels], sizes, picture.shape[:2])
    placed = [(one, place) for one, place in zip(labels, places, strict=True) if place is not None]
    for label, place in placed:
        low, high = (place.x0, place.y0), (place.x1, place.y1)
        nearest = np.clip(label.px, low, high)
        if np.abs(nearest - label.px).max() > MARK + LABEL_GAP:
            for shade, thick in (((20, 20, 20), 4), (label.colour, 2)):
                ends = _fixed(label.px), _fixed(nearest)
                cv2.line(picture, *ends, shade, thick, cv2.LINE_AA, SUBPIXEL)
    for label, place in placed:
        write_on_ground(picture, label.text, place, label.colour, size=size, thick=2)


def place_labels(
    points: Sequence[Floats], sizes: Sequence[tuple[int, int]], shape: tuple[int, ...]
) -> list[Rectangle | None]:
    """Places of labels near ``points``, in pixels of an image of this ``shape``.

    ``sizes``: width and height of each label. A label lies to the right of its point if possible,
    else to the left, and otherwise as near as there is room: inside the image, over no point, and
    ``LABEL_GAP`` pixels from any other label. None where there is no room within ``LABEL_REACH``.
    """
    marks = [Rectangle.around(point, MARK) for point in points]
    placed: list[Rectangle | None] = []
    steps = np.arange(-LABEL_REACH, LABEL_REACH + 1, LABEL_STEP)
    down, across = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    for point, (width, height) in zip(points, sizes, strict=True):
        # a column on each side of the point, beside it and at each step beyond
        left = np.where(across >= 0, MARK + across, -MARK - width + across + LABEL_STEP)
        top = down - height // 2
        away = np.hypot(np.abs(across), np.abs(down)) + np.where(across < 0, 0.5 * LABEL_STEP, 0.0)
        x, y = (round(float(value)) for value in point)
        order = np.argsort(away, kind="stable")
        x0, y0 = x + left[order], y + top[order]
        taken = [*marks, *(one.grown(LABEL_GAP) for one in placed if one is not None)]
        free = np.flatnonzero(_are_free(x0, y0, (width, height), taken, shape))
        placed.append(
            Rectangle.at(x0[free[0]], y0[free[0]], (width, height)) if len(free) else None
        )
    return placed


def _are_free(
    x0: Ints, y0: Ints, size: tuple[int, int], taken: Sequence[Rectangle], shape: tuple[int, ...]
) -> Bools:
    """(N,) ``Rectangle.is_free`` of rectangles with the upper left corners ``x0``, ``y0``."""
    x1, y1 = x0 + size[0], y0 + size[1]
    free = (x0 >= 0) & (y0 >= 0) & (x1 <= shape[1]) & (y1 <= shape[0])
    for one in taken:
        free &= (x0 >= one.x1) | (x1 <= one.x0) | (y0 >= one.y1) | (y1 <= one.y0)
    return np.asarray(free)
