"""Mosaics: training images with several small faces, parts of faces, or none, over a background.

They train the search for faces in whole photos. Stored views are composed over a background that
shows no face. An output pixel's target is that of the foremost view there, looked up as in a crop
of that view alone, so it is exact; a pixel where a view is half transparent has no target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes, Floats, Ints
from dff.face.descriptor import FRAMING, STRIDE
from dff.face.geometry.transform import rotation_2d
from dff.trainer.data import kernels
from dff.trainer.data.config import AUGMENT, AugmentConfig, MosaicConfig
from dff.trainer.data.crops import (
    TrainingSample,
    TrainingSurface,
    finish_sample,
    grid_in_source,
    interpolate_coordinates,
    lookup_triangles,
    paint_over_face,
    sample_image_rotation,
    warp,
)
from dff.trainer.data.views import StoredView


def make_mosaic(
    views: Sequence[StoredView],
    surface: TrainingSurface,
    *,
    size: int,
    pixels: int,
    rng: np.random.Generator,
    config: AugmentConfig = AUGMENT,
) -> TrainingSample:
    """Draw a sample with the faces of ``views``, or none, over a background cut from the views."""
    image, triangle, coordinates = compose_layers(views, surface, size, rng=rng, config=config)
    return finish_sample(
        image, triangle, coordinates, surface, pixels=pixels, rng=rng, config=config
    )


def compose_layers(
    views: Sequence[StoredView],
    surface: TrainingSurface,
    size: int,
    *,
    rng: np.random.Generator,
    config: AugmentConfig = AUGMENT,
) -> tuple[Bytes, Ints, Callable[[Ints], tuple[Floats, Bools]]]:
    """Compose a mosaic before any camera effect.

    Returns the (size, size, 3) image, the triangles of its output pixels, and the lookup of their
    surface coordinates, as ``finish_sample`` takes them.
    """
    mosaic = config.mosaic
    image = make_background(views[-1], surface, size, rng=rng, config=mosaic)
    if rng.random() < mosaic.joined_probability:
        other = make_background(views[0], surface, size, rng=rng, config=mosaic)
        image = join_along_line(image, other, mosaic, rng=rng)
    shown = [] if rng.random() < mosaic.empty_probability else list(views[: mosaic.most_faces])
    triangle = np.full((size // STRIDE) ** 2, len(surface.faces), dtype=np.int64)
    layer = np.full(len(triangle), -1)
    lookups: list[tuple[StoredView, Floats, bool]] = []
    for number, view in enumerate(shown):
        mirrored = bool(rng.random() < mosaic.mirror_probability)
        matrix = _sample_view_placement(view, size, mirrored, config, rng)
        opacity = (
            _head_opacity(view, len(surface.faces), mosaic, rng)
            if rng.random() < mosaic.cutout_probability
            else np.full(view.triangle.shape, 255, np.uint8)
        )
        if rng.random() < mosaic.faceless_probability:
            view = paint_over_face(view, surface, config.faceless, rng=rng)
        left, top, extent = _locate_layer(opacity.shape, matrix, size)
        within = matrix - [[0, 0, left], [0, 0, top]]
        alpha = warp(opacity, within, extent, (0, 0, 0))
        warped = warp(view.image, within, extent, cv2.BORDER_REPLICATE)
        # A layer that is opaque over a whole output pixel sets its target; a layer that is
        # transparent over all of it leaves the target; any other removes it.
        front = np.zeros(len(triangle), dtype=np.bool_)
        kernels.blend_layer(
            image,
            warped,
            alpha,
            left,
            top,
            number,
            STRIDE,
            np.float32(mosaic.transparent),
            np.float32(mosaic.opaque),
            layer,
            front,
        )
        px = grid_in_source(matrix, size)
        triangle[front] = lookup_triangles(view, px[front], len(surface.faces))
        lookups.append((view, px, mirrored))

    def lookup_coordinates(chosen: Ints) -> tuple[Floats, Bools]:
        coordinate, known = np.zeros((len(chosen), 6)), np.zeros(len(chosen), dtype=bool)
        for number, (view, px, mirrored) in enumerate(lookups):
            own = layer[chosen] == number
            coordinate[own], known[own] = interpolate_coordinates(
                view, px[chosen[own]], surface, mirrored=mirrored, max_spread=config.max_spread
            )
        return coordinate, known

    return image, triangle, lookup_coordinates


def _locate_layer(shape: tuple[int, int], matrix: Floats, size: int) -> tuple[int, int, int]:
    """Left, top and side of a square of whole output pixels that holds a view's part of a mosaic.

    ``shape``: (height, width) of the view; ``matrix``: (2, 3) mosaic from view px. The square lies
    in the mosaic of ``size`` px, and one that misses it has a side of one output pixel.
    """
    height, width = shape
    corners = matrix @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    margin = 1.0 + float(np.abs(matrix[:, :2]).max())  # of bilinear interpolation
    low = np.clip(np.floor((corners.min(1) - margin) / STRIDE), 0, size // STRIDE - 1)
    high = np.clip(np.ceil((corners.max(1) + margin) / STRIDE), low + 1, size // STRIDE)
    side = int((high - low).max())
    left, top = np.minimum(low, size // STRIDE - side).astype(int)
    return int(left) * STRIDE, int(top) * STRIDE, side * STRIDE


def make_background(
    view: StoredView,
    surface: TrainingSurface,
    size: int,
    *,
    rng: np.random.Generator,
    config: MosaicConfig = AUGMENT.mosaic,
) -> Bytes:
    """Draw a (size, size, 3) background from the widest part of a view beside the head.

    The part is rotated and scaled at random and continued by reflection. Where the head fills the
    view, the background is smooth noise.
    """
    left, right, top = kernels.head_extent(view.triangle, len(surface.faces))
    width = view.triangle.shape[1]
    widest = max(left, width - right, top)
    if widest < config.min_background:
        return _smooth_noise(size, config, rng)
    if widest == left:
        part = view.image[:, :left]
    elif widest == top:
        part = view.image[:top]
    else:
        part = view.image[:, right:]
    angle = rng.uniform(0.0, 2.0 * np.pi)
    low, high = config.background_scale
    linear = float(np.exp(rng.uniform(np.log(low), np.log(high)))) * rotation_2d(angle)
    centre = rng.uniform(0.0, 1.0, 2) * part.shape[1::-1]
    matrix = np.column_stack([linear, size / 2 - linear @ centre])
    return warp(part, matrix, size, cv2.BORDER_REFLECT_101)


def _smooth_noise(size: int, config: MosaicConfig, rng: np.random.Generator) -> Bytes:
    """(size, size, 3) random colour with smooth noise."""
    noise = rng.standard_normal((6, 6, 3), dtype=np.float32) * np.float32(
        rng.uniform(*config.plain_noise)
    )
    noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    colour = rng.uniform(0.0, 255.0, 3).astype(np.float32)
    return np.clip(colour + noise, 0.0, 255.0).astype(np.uint8)


def join_along_line(
    image: Bytes, other: Bytes, config: MosaicConfig, *, rng: np.random.Generator
) -> Bytes:
    """``image`` on one side of a random line, ``other`` on the other, both (size, size, 3)."""
    size = image.shape[0]
    angle = rng.uniform(0.0, 2.0 * np.pi)
    offset = rng.uniform(-config.join_offset, config.join_offset) * size
    along = np.arange(size) - size / 2
    side = along[None] * np.cos(angle) + along[:, None] * np.sin(angle) > offset
    out = image.copy()
    cv2.copyTo(other, side.astype(np.uint8), out)
    return out


def _sample_view_placement(
    view: StoredView, size: int, mirrored: bool, config: AugmentConfig, rng: np.random.Generator
) -> Floats:
    """Draw the (2, 3) map from source px to the mosaic: log-uniform size, uniform position."""
    low, high = config.mosaic.zoom
    zoom = np.exp(rng.uniform(np.log(low), np.log(high)))
    scale = size / (FRAMING * max(view.box.width, view.box.height) * zoom)
    linear = scale * rotation_2d(np.deg2rad(sample_image_rotation(config.placement, rng=rng)))
    if mirrored:
        linear[0] *= -1.0
    centre = rng.uniform(*config.mosaic.centre, 2) * size
    return np.column_stack([linear, centre - linear @ view.box.centre])


def _head_opacity(
    view: StoredView, faces: int, config: MosaicConfig, rng: np.random.Generator
) -> Bytes:
    """(H, W) opacity 0..255: full on the head, falling to zero within a margin around it."""
    margin = float(rng.uniform(*config.cutout_margin)) * max(view.box.width, view.box.height)
    distance = cv2.distanceTransform((view.triangle >= faces).astype(np.uint8), cv2.DIST_L2, 3)
    softness = float(rng.uniform(*config.cutout_softness)) * margin
    opacity = np.empty(distance.shape, np.uint8)
    kernels.fade(distance, np.float32(margin), np.float32(softness), opacity)
    return opacity
