"""Crops of stored views with exact targets.

Crop geometry is one affine map ``input_from_source`` (2, 3) in the project's pixel convention
(first centre at 0.5). The image is warped by it, and the surface point of every output pixel is
looked up at that pixel's exact centre in the source, between the four source pixels round it. A
bent crop follows a smooth map that is affine nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from dff.face.arrays import Array, Bool, Bools, Bytes, Float, Floats, Integer, Ints
from dff.face.descriptor import ANCHOR_DENSITY, FRAMING, SKIN_REGIONS, STRIDE, surface_coordinates
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from dff.trainer.data.augment import augment_photometric, occlude
from dff.trainer.data.view_cache import StoredView

SAME_SHEET = 0.010
"""Metres in surface coordinates: source neighbours further apart than this lie on two sides of an
edge.
"""

DISPLACED_SHARE = 0.5
"""Share of crops that are stretched and bent, since other people's faces, and other models', are
laid out otherwise.
"""

FACELESS_SHARE = 0.03
"""Share of views whose face is painted over: what a search must not find."""


@dataclass(frozen=True)
class TrainingSurface:
    """The model's surface as training sees it. Row F of the tables by triangle stands for the
    background.
    """

    faces: Integer[Array, "faces 3"]
    coordinates: Float[Array, "vertices 6"]  # surface coordinates, metres
    mirrored: Float[Array, "vertices 6"]  # of the mirror vertex
    # of each face, and False for the background
    anchored: Bool[Array, " triangles"]  # it lies in a region that has anchors
    skin: Bool[Array, " triangles"]  # it shows the face


def build_training_surface(model: MorphableModel) -> TrainingSurface:
    """The chart of a model; regions by the tables of ``dff.face.descriptor``."""
    coordinates = surface_coordinates(model)
    names = np.array(model.region_names)[model.region]
    return TrainingSurface(
        faces=model.faces,
        coordinates=coordinates,
        mirrored=coordinates[model.mirror],
        anchored=np.append(np.isin(names, list(ANCHOR_DENSITY)), False),
        skin=np.append(np.isin(names, SKIN_REGIONS), False),
    )


class CropPlacement(NamedTuple):
    """How a crop lies over a face; the zeros are the plain crop."""

    zoom: float = 1.0  # side of the crop over the plain one
    shift: tuple[float, float] = (0.0, 0.0)  # of the crop's centre, in sides of the plain crop
    degrees: float = 0.0  # turn of the image
    mirrored: bool = False


def sample_crop_placement(rng: np.random.Generator) -> CropPlacement:
    """What a detector's boxes and people's necks do to a crop."""
    reach = 0.25 if rng.random() < 0.3 else 0.12
    return CropPlacement(
        zoom=float(np.exp(rng.uniform(np.log(0.75), np.log(1.4)))),
        shift=(float(rng.uniform(-reach, reach)), float(rng.uniform(-reach, reach))),
        degrees=sample_rotation(rng),
        mirrored=bool(rng.random() < 0.5),
    )


def sample_rotation(rng: np.random.Generator) -> float:
    """Degrees that an image is turned by: mostly a little."""
    reach = 60.0 if rng.random() < 0.35 else 20.0
    return float(rng.uniform(-reach, reach))


def input_from_source(box: Box, size: int, placement: CropPlacement) -> Floats:
    """(2, 3) affine map from source pixels to the pixels of a ``size`` x ``size`` crop about a
    landmark box.
    """
    side = FRAMING * max(box.width, box.height)
    centre = box.centre + side * np.array(placement.shift)
    scale = size / (side * placement.zoom)
    angle = np.deg2rad(placement.degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if placement.mirrored:
        linear[0] *= -1.0
    return np.column_stack([linear, size / 2 - linear @ centre])


def sample_displacement(size: int, *, rng: np.random.Generator) -> Floats:
    """(size, size, 2) float32: how far from its own place, in px of the crop, each pixel of a bent
    crop is taken.

    A stretch along a random direction (5 % standard deviation) beside smooth random shifts, of a
    standard deviation of up to 2 % of the crop, between points an eighth to a quarter of it apart.
    Neighbours never change places: slopes stay below one.
    """
    stretch = float(np.clip(rng.normal(0.0, 0.05), -0.12, 0.12))
    angle = rng.uniform(0.0, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag(np.exp([stretch, -stretch])) @ turn.T - np.eye(2)
    away = np.arange(size, dtype=np.float32) + 0.5 - size / 2
    x, y = np.meshgrid(away, away)
    knots = int(rng.integers(4, 9))
    shifts = np.clip(rng.standard_normal((knots, knots, 2), dtype=np.float32), -2.0, 2.0)
    shifts *= np.float32(rng.uniform(0.0, 0.09 / knots) * size)
    smooth = cv2.resize(shifts, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(
        np.stack([x, y], axis=-1) @ linear.T.astype(np.float32) + smooth, dtype=np.float32
    )


def warp_displaced(
    image: Bytes, matrix: Floats, displacement: Floats, border: int | tuple[int, int, int]
) -> tuple[Bytes, Floats]:
    """((S, S, 3) crop under ``matrix`` (2, 3) and ``displacement`` (S, S, 2), (N, 2) source px of
    its output pixels).

    The latter as ``grid_in_source`` has them, to a fiftieth of a pixel. ``border`` as ``warp`` has
    it.
    """
    size = len(displacement)
    own = np.arange(size, dtype=np.float32) + 0.5
    back = inverse_affine(matrix).astype(np.float32)
    source = (np.stack(np.meshgrid(own, own), axis=-1) + displacement) @ back[:, :2].T + back[:, 2]
    mode, colour = (border, (0, 0, 0)) if isinstance(border, int) else (cv2.BORDER_CONSTANT, border)
    crop = cv2.remap(
        _low_passed(image, matrix),
        source - 0.5,
        None,
        cv2.INTER_LINEAR,
        borderMode=mode,
        borderValue=colour,
    )
    half = size // STRIDE
    grid = (
        source.reshape(half, STRIDE, half, STRIDE, 2).mean((1, 3), dtype=np.float64).reshape(-1, 2)
    )
    return np.asarray(crop, dtype=np.uint8), grid


def inverse_affine(matrix: Floats) -> Floats:
    """(2, 3) inverse of a (2, 3) affine map."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def warp(image: Bytes, matrix: Floats, size: int, border: int | tuple[int, int, int]) -> Bytes:
    """The (size, size, 3) crop of an image under ``matrix`` (2, 3): low-passed when it shrinks.

    ``border``: an OpenCV border mode, or the colour beyond the image.
    """
    image = _low_passed(image, matrix)
    # OpenCV counts from pixel centres at 0: (u + 0.5) -> matrix -> (v + 0.5).
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5
    mode, colour = (border, (0, 0, 0)) if isinstance(border, int) else (cv2.BORDER_CONSTANT, border)
    out = cv2.warpAffine(
        image, shifted, (size, size), flags=cv2.INTER_LINEAR, borderMode=mode, borderValue=colour
    )
    return np.asarray(out, dtype=np.uint8)


def _low_passed(image: Bytes, matrix: Floats) -> Bytes:
    """The image less what is too fine for a crop under ``matrix``."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale >= 0.8:
        return image
    return cv2.GaussianBlur(image, (0, 0), 0.45 * float(np.sqrt(1.0 / scale**2 - 1.0))).astype(
        np.uint8
    )


def grid_in_source(matrix: Floats, size: int) -> Floats:
    """((size / STRIDE)^2, 2) source px of the centres of the output pixels, row by row, of a crop
    under ``matrix``.
    """
    centres = (np.arange(size // STRIDE) + 0.5) * STRIDE
    grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    back = inverse_affine(matrix)
    return np.asarray(grid @ back[:, :2].T + back[:, 2])


def lookup_triangles(view: StoredView, px: Floats, faces: int) -> Ints:
    """(N,) triangle that the source pixel holding each of (N, 2) ``px`` shows; ``faces`` (their
    number) for none.
    """
    height, width = view.triangle.shape
    column, row = np.floor(px).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    ids = view.triangle[np.where(inside, row, 0), np.where(inside, column, 0)].astype(np.int64)
    return np.where(inside, np.minimum(ids, faces), faces)


def interpolate_coordinates(
    view: StoredView, px: Floats, surface: TrainingSurface, *, mirrored: bool = False
) -> tuple[Floats, Bools]:
    """((N, 6) surface coordinates at (N, 2) source px, (N,) whether they are known).

    Bilinear between the four pixel centres round a place; unknown where one of them shows no
    anchored surface or another sheet of it, which is where the truth changes within a pixel.
    """
    height, width = view.triangle.shape
    at = px - 0.5
    corner = np.floor(at).astype(np.int64)
    fraction = (at - corner).astype(np.float32)
    inside = ((corner >= 0) & (corner < [width - 1, height - 1])).all(1)
    corner = np.where(inside[:, None], corner, 0)
    columns = corner[:, :1] + np.array([0, 1, 0, 1])
    rows = corner[:, 1:] + np.array([0, 0, 1, 1])
    faces = len(surface.faces)
    ids = np.minimum(view.triangle[rows, columns].astype(np.int64), faces)  # (N, 4)
    known = inside & surface.anchored[ids].all(1)
    weight = np.empty((*ids.shape, 3), np.float32)
    weight[..., :2] = view.weight[rows, columns] * np.float32(1.0 / 255.0)
    weight[..., 2] = 1.0 - weight[..., 0] - weight[..., 1]
    table = surface.mirrored if mirrored else surface.coordinates
    corners = table[surface.faces[np.where(known[:, None], ids, 0)]]  # (N, 4, 3, 6)
    coordinates = np.einsum("npk,npkc->npc", weight, corners)
    spread = np.linalg.norm(coordinates - coordinates[:, :1], axis=2).max(1)
    fx, fy = fraction.T
    blend = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], axis=1)
    return np.einsum("np,npc->nc", blend, coordinates), known & (spread < SAME_SHEET)


class TrainingSample(NamedTuple):
    """One crop and what is known about its pixels."""

    image: Bytes  # (S, S, 3) RGB
    pixel: Ints  # (K,) int64 output pixels learned from, counted row by row
    coordinate: Floats  # (K, 6) float32 metres, surface coordinates, mirrored as the crop is
    known: Floats  # (K,) float32: 1, or 0 for a filler
    face: Floats  # (S / STRIDE, S / STRIDE) float32: 1 where the pixel shows the face


def make_sample(
    view: StoredView, surface: TrainingSurface, *, size: int, pixels: int, rng: np.random.Generator
) -> TrainingSample:
    """A random crop of a view with all augmentations and ``pixels`` surface points to learn
    from.
    """
    placement = sample_crop_placement(rng)
    matrix = input_from_source(view.box, size, placement)
    # Beyond a photo's edge the aligner sees black; other fillings keep the network from leaning on
    # that.
    r, g, b = (int(c) for c in rng.integers(0, 256, 3))
    borders: list[int | tuple[int, int, int]] = [cv2.BORDER_REPLICATE, (0, 0, 0), (r, g, b)]
    border = borders[rng.integers(3)]
    if rng.random() < FACELESS_SHARE:
        view = paint_over_face(view, surface, rng=rng)
    if rng.random() < DISPLACED_SHARE:
        image, px = warp_displaced(view.image, matrix, sample_displacement(size, rng=rng), border)
    else:
        image, px = warp(view.image, matrix, size, border), grid_in_source(matrix, size)
    return finish_sample(
        image,
        lookup_triangles(view, px, len(surface.faces)),
        lambda chosen: interpolate_coordinates(
            view, px[chosen], surface, mirrored=placement.mirrored
        ),
        surface,
        pixels=pixels,
        rng=rng,
    )


def paint_over_face(
    view: StoredView, surface: TrainingSurface, *, rng: np.random.Generator
) -> StoredView:
    """The view with its face painted over: a head that shows none, as masks, hoods and censors make
    them.
    """
    none = np.iinfo(view.triangle.dtype).max
    skin = surface.skin[np.minimum(view.triangle, len(surface.faces))]
    colour = rng.uniform(0.0, 255.0, 3)
    if skin.any() and rng.random() < 0.6:
        colour = view.image[skin].mean(0)
    noise = rng.standard_normal(view.image.shape, dtype=np.float32) * np.float32(
        rng.uniform(0.0, 8.0)
    )
    painted = np.clip(colour.astype(np.float32) + noise, 0.0, 255.0).astype(np.uint8)
    # A little further than the face, so that no rim of it is left.
    over = cv2.dilate(skin.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return StoredView(
        image=np.where(over[..., None], painted, view.image),
        triangle=np.where(over, none, view.triangle).astype(view.triangle.dtype),
        weight=view.weight,
        box=view.box,
    )


def finish_sample(
    image: Bytes,
    triangle: Ints,
    coordinates: Callable[[Ints], tuple[Floats, Bools]],
    surface: TrainingSurface,
    *,
    pixels: int,
    rng: np.random.Generator,
) -> TrainingSample:
    """A sample of an (S, S, 3) image whose output pixels show ``triangle`` ((S / STRIDE)^2,), seen
    by a real camera.

    ``coordinates`` looks up the surface coordinates of chosen output pixels and whether they are
    known.
    """
    half = image.shape[0] // STRIDE
    if rng.random() < 0.35:
        image, covered = occlude(image, rng=rng)
        triangle = np.where(covered[1::STRIDE, 1::STRIDE].ravel(), len(surface.faces), triangle)
    chosen = rng.permutation(np.flatnonzero(surface.anchored[triangle]))[:pixels]
    coordinate, known = coordinates(chosen)
    fill = pixels - len(chosen)
    return TrainingSample(
        image=augment_photometric(image, rng=rng),
        pixel=np.pad(chosen, (0, fill)),
        coordinate=np.pad(coordinate, ((0, fill), (0, 0))).astype(np.float32),
        known=np.pad(known, (0, fill)).astype(np.float32),
        face=surface.skin[triangle].reshape(half, half).astype(np.float32),
    )
