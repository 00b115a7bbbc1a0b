"""Images as a search over whole photos meets them: several small faces, parts of faces, or none,
before any ground.

Layers of stored views lie over a ground that shows no face. The target of an output pixel is that
of the foremost layer there, looked up as in a crop of that view alone, so it stays exact; where a
layer is half transparent nothing is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes, Floats, Ints
from dff.face.descriptor import FRAMING, STRIDE
from dff.trainer.data.crops import (
    FACELESS_SHARE,
    TrainingSample,
    TrainingSurface,
    finish_sample,
    grid_in_source,
    interpolate_coordinates,
    lookup_triangles,
    paint_over_face,
    sample_rotation,
    warp,
)
from dff.trainer.data.view_cache import StoredView

MOST_FACES = 4

NEAREST, FARTHEST = 1.2, 4.2
"""Sides of a mosaic over the plain crop of a face in it; the far one makes a face of 20 px in
128.
"""

EMPTY_SHARE = 0.15
"""Share of mosaics that show no face."""

NARROW = 12
"""Source pixels: background beside a head that is narrower than this is no ground."""


def make_mosaic(
    views: Sequence[StoredView],
    surface: TrainingSurface,
    *,
    size: int,
    pixels: int,
    rng: np.random.Generator,
) -> TrainingSample:
    """A sample that shows the faces of ``views``, or none, on grounds cut from the same views."""
    image, triangle, coordinates = compose_layers(views, surface, size, rng=rng)
    return finish_sample(image, triangle, coordinates, surface, pixels=pixels, rng=rng)


def compose_layers(
    views: Sequence[StoredView], surface: TrainingSurface, size: int, *, rng: np.random.Generator
) -> tuple[Bytes, Ints, Callable[[Ints], tuple[Floats, Bools]]]:
    """A mosaic before any camera: image, and triangles and places of its output pixels as
    ``finish_sample`` takes them.
    """
    image = make_background(views[-1], surface, size, rng=rng)
    if rng.random() < 0.5:
        image = _join_along_line(image, make_background(views[0], surface, size, rng=rng), rng)
    shown = [] if rng.random() < EMPTY_SHARE else list(views[:MOST_FACES])
    triangle = np.full((size // STRIDE) ** 2, len(surface.faces), dtype=np.int64)
    layer = np.full(len(triangle), -1)
    lookups: list[tuple[StoredView, Floats, bool]] = []
    for number, view in enumerate(shown):
        mirrored = bool(rng.random() < 0.5)
        matrix = _sample_view_placement(view, size, mirrored, rng)
        cover = (
            _head_opacity(view, len(surface.faces), rng)
            if rng.random() < 0.6
            else _full_opacity(view)
        )
        if rng.random() < 3 * FACELESS_SHARE:
            view = paint_over_face(view, surface, rng=rng)
        alpha = warp(cover, matrix, size, (0, 0, 0))[..., :1].astype(np.float32) / 255.0
        seen = warp(view.image, matrix, size, cv2.BORDER_REPLICATE)
        image = np.rint(image + (seen.astype(np.float32) - image) * alpha).astype(np.uint8)
        # Opaque over the whole output pixel: the view's own truth; else nothing, unless it is all
        # but clear there.
        cells = (
            alpha.reshape(size // STRIDE, STRIDE, -1, STRIDE)
            .transpose(0, 2, 1, 3)
            .reshape(len(triangle), -1)
        )
        opaque, touched = cells.min(1) > 0.97, cells.max(1) > 0.03
        px = grid_in_source(matrix, size)
        layer[touched] = -1
        layer[opaque] = number
        front = cells.mean(1) > 0.5
        triangle[front] = lookup_triangles(view, px[front], len(surface.faces))
        lookups.append((view, px, mirrored))

    def coordinates(chosen: Ints) -> tuple[Floats, Bools]:
        coordinate, known = np.zeros((len(chosen), 6)), np.zeros(len(chosen), dtype=bool)
        for number, (view, px, mirrored) in enumerate(lookups):
            own = layer[chosen] == number
            coordinate[own], known[own] = interpolate_coordinates(
                view, px[chosen[own]], surface, mirrored=mirrored
            )
        return coordinate, known

    return image, triangle, coordinates


def make_background(
    view: StoredView, surface: TrainingSurface, size: int, *, rng: np.random.Generator
) -> Bytes:
    """(size, size, 3): the widest part of a view beside the head, repeated in mirrors, turned and
    scaled at random.

    Cloudy noise where the head fills the view.
    """
    head = view.triangle < len(surface.faces)
    width = head.shape[1]
    columns, rows = np.flatnonzero(head.any(0)), np.flatnonzero(head.any(1))
    left, right, top = (
        (int(columns[0]), int(columns[-1]) + 1, int(rows[0])) if len(columns) else (width, width, 0)
    )
    widest = max(left, width - right, top)
    if widest < NARROW:
        cloud = rng.standard_normal((6, 6, 3), dtype=np.float32) * np.float32(
            rng.uniform(5.0, 60.0)
        )
        cloud = cv2.resize(cloud, (size, size), interpolation=cv2.INTER_CUBIC)
        return np.clip(rng.uniform(0.0, 255.0, 3).astype(np.float32) + cloud, 0.0, 255.0).astype(
            np.uint8
        )
    if widest == left:
        part = view.image[:, :left]
    elif widest == top:
        part = view.image[:top]
    else:
        part = view.image[:, right:]
    angle, scale = (
        rng.uniform(0.0, 2.0 * np.pi),
        float(np.exp(rng.uniform(np.log(0.5), np.log(2.5)))),
    )
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(0.0, 1.0, 2) * part.shape[1::-1]
    return warp(
        part, np.column_stack([linear, size / 2 - linear @ centre]), size, cv2.BORDER_REFLECT_101
    )


def _join_along_line(image: Bytes, other: Bytes, rng: np.random.Generator) -> Bytes:
    """``image`` on one side of a random line, ``other`` on the other."""
    size = image.shape[0]
    angle, offset = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(-0.4, 0.4) * size
    along = np.arange(size) - size / 2
    side = along[None] * np.cos(angle) + along[:, None] * np.sin(angle) > offset
    return np.where(side[..., None], other, image)


def _sample_view_placement(
    view: StoredView, size: int, mirrored: bool, rng: np.random.Generator
) -> Floats:
    """(2, 3) mosaic from source pixels: the centre of the landmark box anywhere within, each size
    as likely.
    """
    zoom = np.exp(rng.uniform(np.log(NEAREST), np.log(FARTHEST)))
    scale = size / (FRAMING * max(view.box.width, view.box.height) * zoom)
    angle = np.deg2rad(sample_rotation(rng))
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        linear[0] *= -1.0
    return np.column_stack([linear, rng.uniform(0.05, 0.95, 2) * size - linear @ view.box.centre])


def _full_opacity(view: StoredView) -> Bytes:
    return np.full((*view.triangle.shape, 3), 255, np.uint8)


def _head_opacity(view: StoredView, faces: int, rng: np.random.Generator) -> Bytes:
    """(H, W, 3) opacity 0 to 255: one on the head, falling to zero somewhere in what surrounds
    it.
    """
    reach = float(rng.uniform(0.02, 0.25)) * max(view.box.width, view.box.height)
    away = cv2.distanceTransform((view.triangle >= faces).astype(np.uint8), cv2.DIST_L2, 3)
    softness = float(rng.uniform(0.1, 0.6)) * reach
    opacity = np.clip((reach - away) / softness, 0.0, 1.0) * 255.0
    return np.repeat(opacity.astype(np.uint8)[..., None], 3, axis=2)
