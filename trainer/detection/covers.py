"""Masks on faces, and things in front of them, with which a face must still be detected."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes, Floats, Ints
from dff.face.model.landmarks import CHIN, JAW, NOSE_ROOT, NOSE_TIP, OUTER_LIPS
from dff.trainer.data.views import StoredView
from dff.trainer.detection.config import CoverConfig, PatternConfig
from dff.trainer.detection.patterns import draw_pattern, sample_colour

MASK_COLOURS = np.array(
    [[150.0, 190.0, 215.0], [235.0, 235.0, 232.0], [30.0, 30.0, 33.0], [140.0, 140.0, 140.0]]
)
"""Levels of surgical masks and respirators: light blue, white, black, grey."""


def paint_mask(
    view: StoredView,
    other: StoredView,
    vertices: Ints,
    config: CoverConfig,
    pattern: PatternConfig,
    *,
    rng: np.random.Generator,
) -> StoredView:
    """The view with a mask over the lower face; on some of them the mouth of the ``other`` view.

    (68,) ``vertices``: of the landmarks. The mask counts as a part of the head.
    """
    points = view.vertex_px[vertices].astype(np.float64)
    unit = max(view.box.width, view.box.height)
    outline = _mask_outline(points, config, rng)
    # Only the part of the view that holds the mask is painted.
    last = np.array(view.image.shape[1::-1])
    low = np.clip(np.floor(outline.min(0)).astype(int) - 4, 0, last)
    high = np.clip(np.ceil(outline.max(0)).astype(int) + 4, 0, last)
    if (high - low < 4).any():
        return view
    part = slice(low[1], high[1]), slice(low[0], high[0])
    image = view.image.copy()
    before, points = view.image[part].astype(np.float32), points - low
    alpha = _fill(before.shape[:2], outline - low).astype(np.float32)[..., None] / np.float32(255.0)
    inside = alpha[..., 0] > 0
    if not inside.any():
        return view
    cloth = _draw_cloth(before, inside, config, pattern, rng)
    if rng.random() < config.printed_probability:
        cloth = _print_mouth(cloth, points, other, vertices, rng)
    if rng.random() < config.pleats_probability:
        _draw_pleats(cloth, points, unit, rng)
    shaded = np.clip(cloth * _measure_light(before, inside), 0, 255)
    image[part] = before + alpha * (shaded - before)
    if rng.random() < config.straps_probability:
        colour = np.clip(cloth[inside].mean(0) * 0.9, 0, 255).tolist()
        for ear, edge in ((0, 2), (16, 14)):
            ends = [tuple(np.rint(points[i] + low).astype(int).tolist()) for i in (ear, edge)]
            cv2.line(image, ends[0], ends[1], colour, max(round(0.015 * unit), 1), cv2.LINE_AA)
    return replace(view, image=image)


def _measure_light(image: Floats, inside: Bools) -> Floats:
    """(H, W, 1) the image's blurred brightness over its mean where ``inside``."""
    grey = image.mean(2)
    coarse = cv2.resize(grey, (6, 6), interpolation=cv2.INTER_AREA)
    light = cv2.resize(coarse, grey.shape[::-1], interpolation=cv2.INTER_CUBIC)
    light /= max(float(light[inside].mean()), 1.0)
    return np.asarray(np.clip(light, 0.4, 1.6)[..., None])


def _mask_outline(points: Floats, config: CoverConfig, rng: np.random.Generator) -> Floats:
    """(N, 2) convex outline: from the bridge of the nose, or lower, to below the chin."""
    first = int(rng.integers(1, 4))
    middle = points[NOSE_ROOT : NOSE_TIP + 1].mean(0)
    jaw = middle + (points[JAW][first : 17 - first] - middle) * rng.uniform(*config.mask_margin)
    bridge = points[NOSE_ROOT] + rng.uniform(*config.mask_top) * (
        points[NOSE_TIP] - points[NOSE_ROOT]
    )
    tip = middle + 1.05 * (points[NOSE_TIP] - middle)
    outline = [jaw, bridge[None], tip[None]]
    if rng.random() < config.scarf_probability:
        down = (points[CHIN] - points[NOSE_ROOT]) * rng.uniform(0.1, 0.6)
        outline.append(points[JAW][[5, 8, 11]] + down)
    return np.asarray(cv2.convexHull(np.vstack(outline).astype(np.float32))[:, 0])


def _fill(shape: tuple[int, ...], polygon: Floats) -> Bytes:
    """(H, W) 255 within a (N, 2) polygon."""
    out = np.zeros(shape, np.uint8)
    cv2.fillPoly(out, [np.rint(16 * (polygon - 0.5)).astype(np.int32)], (255,), cv2.LINE_AA, 4)
    return out


def _draw_cloth(
    image: Floats,
    inside: Bools,
    config: CoverConfig,
    pattern: PatternConfig,
    rng: np.random.Generator,
) -> Floats:
    """(H, W, 3) levels of the mask's cloth."""
    kind = rng.random()
    if kind < config.patterned_share:
        drawn = draw_pattern(max(image.shape), pattern, rng=rng)
        return drawn[: image.shape[0], : image.shape[1]].astype(np.float32)
    if kind < config.patterned_share + config.own_colour_share:
        colour = np.median(image[inside], axis=0) * rng.uniform(0.8, 1.2)
    elif kind < config.patterned_share + config.own_colour_share + config.plain_share:
        colour = MASK_COLOURS[int(rng.integers(len(MASK_COLOURS)))] + rng.normal(0.0, 12.0, 3)
    else:
        colour = sample_colour(pattern, rng=rng)
    return np.full(image.shape, colour, np.float32)


def _print_mouth(
    cloth: Floats,
    points: Floats,
    other: StoredView,
    vertices: Ints,
    rng: np.random.Generator,
) -> Floats:
    """The cloth with the lips of another view where the mouth is."""
    lips, place = other.vertex_px[vertices][OUTER_LIPS].astype(np.float64), points[OUTER_LIPS]
    across, wanted = (complex(*(mouth[6] - mouth[0])) for mouth in (lips, place))
    turn = wanted / (across or 1.0) * rng.uniform(0.8, 1.4)
    if not 0.1 < abs(turn) < 10.0:
        return cloth
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    matrix = np.column_stack([linear, place.mean(0) - linear @ lips.mean(0)])
    size = cloth.shape[1::-1]
    printed = cv2.warpAffine(other.image, matrix, size, borderMode=cv2.BORDER_REPLICATE)
    hull = lips.mean(0) + 1.15 * (cv2.convexHull(lips.astype(np.float32))[:, 0] - lips.mean(0))
    inside = _fill(cloth.shape[:2], hull @ linear.T + matrix[:, 2])[..., None] / np.float32(255.0)
    return np.asarray(cloth + inside * (printed - cloth))


def _draw_pleats(cloth: Floats, points: Floats, unit: float, rng: np.random.Generator) -> None:
    """Darken a few lines across the mask, in place."""
    for share in np.linspace(0.15, 0.8, int(rng.integers(2, 5))):
        ends = [
            tuple(np.rint(edge + share * (points[CHIN] - points[NOSE_TIP])).astype(int).tolist())
            for edge in (points[2], points[14])
        ]
        line = np.zeros(cloth.shape[:2], np.uint8)
        cv2.line(line, ends[0], ends[1], (255,), max(round(0.012 * unit), 1), cv2.LINE_AA)
        cloth *= 1.0 - np.float32(0.25 / 255.0) * line[..., None]


def cover_face(
    image: Bytes,
    layer: Ints,
    landmarks: Floats,
    config: CoverConfig,
    pattern: PatternConfig,
    *,
    rng: np.random.Generator,
) -> None:
    """Draw a thing or a hand before a landmark of a face, and -1 into ``layer``, in place."""
    size = image.shape[0]
    unit = float((landmarks.max(0) - landmarks.min(0)).max())
    at = landmarks[int(rng.integers(len(landmarks)))]
    shape = np.zeros(image.shape[:2], np.uint8)
    half = unit * rng.uniform(*config.thing, 2) / 2
    if rng.random() < config.hand_share:
        angle = rng.uniform(0.0, 2 * np.pi)
        along, aside = (
            np.array([np.cos(angle), np.sin(angle)]),
            np.array([-np.sin(angle), np.cos(angle)]),
        )
        for finger in (-1.5, -0.5, 0.5, 1.5):
            root, tip = (
                tuple(np.rint(end).astype(int).tolist())
                for end in (
                    at + 0.11 * unit * finger * aside + 0.3 * unit * along,
                    at + 0.1 * unit * finger * aside - rng.uniform(0.0, 0.25) * unit * along,
                )
            )
            cv2.line(shape, root, tip, (1,), max(round(0.1 * unit), 1))
        palm = tuple(np.rint(at + 0.5 * unit * along).astype(int).tolist())
        cv2.circle(shape, palm, round(0.28 * unit), (1,), -1)
        skin = landmarks.mean(0).astype(int).clip(0, size - 1)
        colour = image[skin[1], skin[0]] * rng.uniform(0.8, 1.2)
        texture = np.broadcast_to(colour + rng.normal(0.0, 4.0, (size, size, 1)), image.shape)
    else:
        if rng.random() < 0.5:
            box = (tuple(at.tolist()), tuple((2 * half).tolist()), float(rng.uniform(0, 180)))
            cv2.ellipse(shape, box, (1,), -1)
        else:
            box = (tuple(at.tolist()), tuple((2 * half).tolist()), float(rng.uniform(0, 90)))
            cv2.fillConvexPoly(shape, np.rint(cv2.boxPoints(box)).astype(np.int32), (1,))
        texture = draw_pattern(size, pattern, rng=rng)
    covered = shape > 0
    image[covered] = np.clip(texture[covered], 0, 255).astype(np.uint8)
    layer[covered] = -1
