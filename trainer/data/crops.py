"""Crops of stored views with exact targets.

A crop is an affine map ``input_from_source`` (2, 3) of pixel coordinates; the first pixel's centre
is at 0.5. The image is resampled by the map. The surface coordinates of an output pixel are
interpolated between the four source pixels around its centre in the source. A warped crop adds a
smooth displacement field to the affine map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from dff.face.arrays import Array, Bool, Bools, Bytes, Float, Floats, Integer, Ints, UInt8
from dff.face.descriptor import ANCHOR_DENSITY, FRAMING, SKIN_REGIONS, STRIDE, surface_coordinates
from dff.face.errors import BadDataset
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import rotation_2d
from dff.face.model.morphable import MorphableModel
from dff.trainer.data import kernels
from dff.trainer.data.augment import add_noise, augment_photometric, occlude
from dff.trainer.data.config import (
    AUGMENT,
    AugmentConfig,
    FacelessConfig,
    PlacementConfig,
    WarpConfig,
)
from dff.trainer.data.views import StoredView

MAX_CLAMPED = 0.1
"""Share of a view's pixels clamped to an edge of their triangle above which the mesh is wrong."""

MIN_RESOLVED = 256
"""Pixels from which on that share is judged."""

Border = int | tuple[int, int, int]
"""Fill outside an image: an OpenCV border mode, or an RGB colour."""


@dataclass(frozen=True)
class TrainingSurface:
    """The model's surface as training uses it.

    The last row of the tables by triangle, of index F = ``len(faces)``, stands for the background.
    """

    faces: Integer[Array, "faces 3"]
    coordinates: Float[Array, "vertices 6"]  # surface coordinates, metres
    mirrored: Float[Array, "vertices 6"]  # of the mirror vertex
    anchored: Bool[Array, " triangles"]  # the triangle lies in a region that has anchors
    skin: Bool[Array, " triangles"]  # the triangle belongs to the face


def build_training_surface(model: MorphableModel) -> TrainingSurface:
    """Build the training surface of a model; ``dff.face.descriptor`` names the regions."""
    coordinates = surface_coordinates(model)
    names = np.array(model.region_names)[model.region]
    return TrainingSurface(
        faces=model.faces,
        coordinates=coordinates,
        mirrored=coordinates[model.mirror],
        anchored=np.append(np.isin(names, list(ANCHOR_DENSITY)), False),
        skin=np.append(np.isin(names, SKIN_REGIONS), False),
    )


@dataclass(frozen=True)
class CropPlacement:
    """Placement of a crop over a face; the defaults are the plain crop."""

    zoom: float = 1.0  # side of the crop over that of the plain one
    shift: tuple[float, float] = (0.0, 0.0)  # of the crop's centre, in sides of the plain crop
    degrees: float = 0.0  # rotation of the image
    mirrored: bool = False


def sample_crop_placement(config: PlacementConfig, *, rng: np.random.Generator) -> CropPlacement:
    """Draw a placement."""
    large = rng.random() < config.large_shift_probability
    limit = config.large_shift if large else config.shift
    low, high = config.zoom
    return CropPlacement(
        zoom=float(np.exp(rng.uniform(np.log(low), np.log(high)))),
        shift=(float(rng.uniform(-limit, limit)), float(rng.uniform(-limit, limit))),
        degrees=sample_image_rotation(config, rng=rng),
        mirrored=bool(rng.random() < config.mirror_probability),
    )


def sample_image_rotation(config: PlacementConfig, *, rng: np.random.Generator) -> float:
    """Draw the rotation of an image in degrees: small mostly, large for a share of the images."""
    large = rng.random() < config.large_rotation_probability
    limit = config.large_rotation if large else config.rotation
    return float(rng.uniform(-limit, limit))


def input_from_source(box: Box, size: int, placement: CropPlacement) -> Floats:
    """(2, 3) affine map from source px to the px of a ``size`` x ``size`` crop of a landmark box.

    The side of the plain crop is ``FRAMING`` times the longer side of the box.
    """
    side = FRAMING * max(box.width, box.height)
    centre = box.centre + side * np.array(placement.shift)
    out = np.empty((2, 3))
    linear = out[:, :2]
    linear[:] = size / (side * placement.zoom) * rotation_2d(np.deg2rad(placement.degrees))
    if placement.mirrored:
        linear[0] *= -1.0
    out[:, 2] = size / 2 - linear @ centre
    return out


def sample_displacement(size: int, config: WarpConfig, *, rng: np.random.Generator) -> Floats:
    """Draw the displacement field of a warped crop: (size, size, 2) float32, px of the crop.

    A pixel of the warped crop shows what the plain crop shows at the pixel plus its displacement.
    The field is a stretch along a random direction plus a smooth field, interpolated between
    random shifts of a grid of control points. Its slopes stay below one, so the map never folds.
    """
    stretch = float(
        np.clip(rng.normal(0.0, config.stretch), -config.max_stretch, config.max_stretch)
    )
    axes = rotation_2d(rng.uniform(0.0, np.pi))
    linear = axes @ np.diag(np.exp([stretch, -stretch])) @ axes.T - np.eye(2)
    knots = int(rng.integers(config.knots[0], config.knots[1] + 1))
    shifts = rng.standard_normal((knots, knots, 2), dtype=np.float32)
    shifts = np.clip(shifts, -config.max_shift, config.max_shift)
    shifts *= np.float32(rng.uniform(0.0, config.amplitude / knots) * size)
    out = cv2.resize(shifts, (size, size), interpolation=cv2.INTER_CUBIC)
    kernels.displace(linear.astype(np.float32), out)
    return out


def warp_displaced(
    image: Bytes, matrix: Floats, displacement: Floats, border: Border
) -> tuple[Bytes, Floats]:
    """Crop an image under an affine map and a displacement field.

    ``matrix``: (2, 3) crop from source px; ``displacement``: (S, S, 2) px of the crop. Returns the
    (S, S, 3) crop and the ((S / STRIDE)^2, 2) source px of the centres of its output pixels, as
    ``grid_in_source`` orders them, accurate to 0.02 px.
    """
    size = len(displacement)
    source, centres = np.empty_like(displacement), np.empty(((size // STRIDE) ** 2, 2))
    back = inverse_affine(matrix).astype(np.float32)
    kernels.locate_displaced(displacement, back, STRIDE, source, centres)
    mode, colour = _split_border(border)
    crop = cv2.remap(
        _low_pass(image, matrix, size),
        source,
        None,
        cv2.INTER_LINEAR,
        borderMode=mode,
        borderValue=colour,
    )
    return np.asarray(crop, dtype=np.uint8), centres


def inverse_affine(matrix: Floats) -> Floats:
    """(2, 3) inverse of a (2, 3) affine map."""
    (a, b, x), (c, d, y) = matrix.tolist()
    area = a * d - b * c
    first = [d / area, -b / area, (b * y - d * x) / area]
    second = [-c / area, a / area, (c * x - a * y) / area]
    return np.array([first, second])


def _scale_of(matrix: Floats) -> float:
    """The factor by which a (2, 3) affine map scales lengths, in the mean."""
    (a, b, _), (c, d, _) = matrix.tolist()
    return float(np.sqrt(abs(a * d - b * c)))


def warp(image: Bytes, matrix: Floats, size: int, border: Border) -> Bytes:
    """(size, size) crop of an image under ``matrix`` (2, 3), low-passed where it shrinks.

    Of one channel or three, as the image.
    """
    image = _low_pass(image, matrix, size)
    # OpenCV counts from pixel centres at 0: (u + 0.5) -> matrix -> (v + 0.5).
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5
    mode, colour = _split_border(border)
    out = cv2.warpAffine(
        image, shifted, (size, size), flags=cv2.INTER_LINEAR, borderMode=mode, borderValue=colour
    )
    return np.asarray(out, dtype=np.uint8)


def _split_border(border: Border) -> tuple[int, tuple[int, int, int]]:
    """OpenCV's border mode and border colour."""
    return (border, (0, 0, 0)) if isinstance(border, int) else (cv2.BORDER_CONSTANT, border)


def _low_pass(image: Bytes, matrix: Floats, size: int) -> Bytes:
    """Remove the frequencies that a crop under ``matrix`` would alias.

    Only where the crop of ``size`` px, warped or not, takes its pixels from; the rest stays as it
    is.
    """
    scale = _scale_of(matrix)
    if scale >= 0.8:
        return image
    deviation = 0.45 * float(np.sqrt(1.0 / scale**2 - 1.0))
    back = inverse_affine(matrix)
    corners = (np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * 1.5 - 0.25) * size
    source = corners @ back[:, :2].T + back[:, 2]
    height, width = image.shape[:2]
    reach = int(4 * deviation) + 3  # beyond the radius of OpenCV's kernel
    low = np.floor(source.min(0)).astype(int) - 2
    high = np.ceil(source.max(0)).astype(int) + 2
    (x0, y0), (x1, y1) = np.clip(low, 0, [width, height]), np.clip(high, 0, [width, height])
    if x0 >= x1 or y0 >= y1:
        return image
    left, top = max(x0 - reach, 0), max(y0 - reach, 0)
    part = image[top : min(y1 + reach, height), left : min(x1 + reach, width)]
    blurred = cv2.GaussianBlur(part, (0, 0), deviation)
    if part.shape == image.shape:
        return np.asarray(blurred, dtype=np.uint8)
    out = image.copy()
    out[y0:y1, x0:x1] = blurred[y0 - top : y1 - top, x0 - left : x1 - left]
    return out


def grid_in_source(matrix: Floats, size: int) -> Floats:
    """Centres of the output pixels of a crop under ``matrix`` (2, 3), in source px.

    Returns ((size / STRIDE)^2, 2), row by row.
    """
    out = np.empty(((size // STRIDE) ** 2, 2))
    kernels.locate_grid(inverse_affine(matrix), STRIDE, size // STRIDE, out)
    return out


def find_pixels(px: Floats, shape: tuple[int, int]) -> tuple[Ints, Ints, Bools]:
    """(N,) rows and columns of the pixels that hold (N, 2) ``px``, and (N,) inside the image.

    ``shape``: (height, width). Points outside get row and column 0.
    """
    height, width = shape
    column, row = np.floor(px).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.where(inside, row, 0), np.where(inside, column, 0), inside


@dataclass(frozen=True)
class PixelQuads:
    """The four pixels whose centres surround each of N points, row by row."""

    rows: Integer[Array, "points 4"]
    columns: Integer[Array, "points 4"]
    fraction: Float[Array, "points 2"]  # x, y of the point between the centres, 0..1
    inside: Bool[Array, " points"]  # all four lie in the image; else they are those of its corner

    def weights(self, dtype: type[np.floating]) -> Floats:
        """(N, 4) bilinear weights."""
        x, y = self.fraction.astype(dtype).T
        return np.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], axis=1)


def find_pixel_quads(px: Floats, shape: tuple[int, int]) -> PixelQuads:
    """Find the four pixels around (N, 2) ``px`` in an image of ``shape`` (height, width)."""
    height, width = shape
    from_first = px - 0.5
    corner = np.floor(from_first).astype(np.int64)
    inside = ((corner >= 0) & (corner < [width - 1, height - 1])).all(1)
    fraction = from_first - corner
    corner = np.where(inside[:, None], corner, 0)
    rows = corner[:, 1:] + np.array([0, 0, 1, 1])
    return PixelQuads(rows, corner[:, :1] + np.array([0, 1, 0, 1]), fraction, inside)


def lookup_triangles(view: StoredView, px: Floats, faces: int) -> Ints:
    """(N,) triangles that a view shows at (N, 2) source px; ``faces`` (their number) for none."""
    out = np.empty(len(px), np.int64)
    kernels.triangles_at(px, view.triangle, faces, out)
    return out


def interpolate_coordinates(
    view: StoredView,
    px: Floats,
    surface: TrainingSurface,
    *,
    mirrored: bool = False,
    max_spread: float = AUGMENT.max_spread,
) -> tuple[Floats, Bools]:
    """(N, 6) surface coordinates in metres at (N, 2) source px, and (N,) whether they are known.

    Bilinear between four pixel centres. Unknown, and zero or without meaning, where one of the four
    shows no anchored surface, and where they show points more than ``max_spread`` metres apart: an
    occluding contour passes between them. Raises BadDataset when the view was made with another
    mesh: then pixels lie outside the triangles that they are assigned to.
    """
    out, known = np.empty((len(px), 6), np.float32), np.empty(len(px), dtype=np.bool_)
    resolved, clamped = kernels.coordinates_at(
        np.ascontiguousarray(px, dtype=np.float64),
        view.triangle,
        view.vertex_px,
        view.vertex_weight,
        surface.faces,
        surface.anchored,
        surface.mirrored if mirrored else surface.coordinates,
        np.float32(max_spread),
        out,
        known,
    )
    if clamped < 0 or (resolved >= MIN_RESOLVED and clamped > MAX_CLAMPED * resolved):
        raise BadDataset(
            f"{view.name} was made with another version of the face model: make the dataset again"
        )
    return out, known


@dataclass(frozen=True)
class TrainingSample:
    """One crop, and the ground truth of its output pixels."""

    image: UInt8[Array, "side side 3"]  # RGB
    pixel: Integer[Array, " points"]  # output pixels that are trained on, counted row by row
    coordinate: Float[Array, "points 6"]  # surface coordinates, metres, mirrored as the crop is
    known: Float[Array, " points"]  # 1; 0 where the coordinates are unknown, and for padding
    face: Float[Array, "half half"]  # 1 where an output pixel shows the face, else 0


def make_sample(
    view: StoredView,
    surface: TrainingSurface,
    *,
    size: int,
    pixels: int,
    rng: np.random.Generator,
    config: AugmentConfig = AUGMENT,
) -> TrainingSample:
    """Draw an augmented crop of a view: ``size`` px wide, with targets at ``pixels`` points."""
    placement = sample_crop_placement(config.placement, rng=rng)
    matrix = input_from_source(view.box, size, placement)
    # The aligner fills what lies outside a photo with black; other fillings keep the network from
    # relying on that.
    r, g, b = (int(c) for c in rng.integers(0, 256, 3))
    borders: list[Border] = [cv2.BORDER_REPLICATE, (0, 0, 0), (r, g, b)]
    border = borders[rng.integers(3)]
    if rng.random() < config.faceless.probability:
        view = paint_over_face(view, surface, config.faceless, rng=rng)
    if rng.random() < config.warp.probability:
        displacement = sample_displacement(size, config.warp, rng=rng)
        image, px = warp_displaced(view.image, matrix, displacement, border)
    else:
        image, px = warp(view.image, matrix, size, border), grid_in_source(matrix, size)

    def lookup_coordinates(chosen: Ints) -> tuple[Floats, Bools]:
        return interpolate_coordinates(
            view, px[chosen], surface, mirrored=placement.mirrored, max_spread=config.max_spread
        )

    triangle = lookup_triangles(view, px, len(surface.faces))
    return finish_sample(
        image, triangle, lookup_coordinates, surface, pixels=pixels, rng=rng, config=config
    )


def paint_over_face(
    view: StoredView, surface: TrainingSurface, config: FacelessConfig, *, rng: np.random.Generator
) -> StoredView:
    """The view with its face painted over in one noisy colour, as by a mask, a hood or a censor."""
    none = np.iinfo(view.triangle.dtype).max
    skin = surface.skin[np.minimum(view.triangle, len(surface.faces))]
    colour = rng.uniform(0.0, 255.0, 3)
    if skin.any() and rng.random() < config.skin_colour_probability:
        colour = view.image[skin].mean(0)
    plain = np.broadcast_to(np.rint(colour).astype(np.uint8), view.image.shape)
    painted = add_noise(plain, float(rng.uniform(*config.noise)), rng=rng)
    side = 2 * config.margin + 1
    over = cv2.dilate(skin.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    return replace(
        view,
        image=np.where(over[..., None], painted, view.image),
        triangle=np.where(over, none, view.triangle).astype(view.triangle.dtype),
    )


def finish_sample(
    image: Bytes,
    triangle: Ints,
    lookup_coordinates: Callable[[Ints], tuple[Floats, Bools]],
    surface: TrainingSurface,
    *,
    pixels: int,
    rng: np.random.Generator,
    config: AugmentConfig = AUGMENT,
) -> TrainingSample:
    """Add occluders and camera effects to an (S, S, 3) image and choose the pixels to train on.

    ``triangle``: ((S / STRIDE)^2,) triangles that its output pixels show. ``lookup_coordinates``:
    output pixels to their surface coordinates, and whether these are known.
    """
    half = image.shape[0] // STRIDE
    if rng.random() < config.occlusion.probability:
        image, covered = occlude(image, config.occlusion, rng=rng)
        triangle = np.where(covered[1::STRIDE, 1::STRIDE].ravel(), len(surface.faces), triangle)
    candidates, face = np.empty(len(triangle), np.int64), np.empty(len(triangle), np.float32)
    found = kernels.classify(triangle, surface.anchored, surface.skin, candidates, face)
    chosen = rng.permutation(candidates[:found])[:pixels]
    count = len(chosen)
    pixel, known = np.zeros(pixels, np.int64), np.zeros(pixels, np.float32)
    coordinate = np.zeros((pixels, 6), np.float32)
    pixel[:count] = chosen
    coordinate[:count], known[:count] = lookup_coordinates(chosen)
    return TrainingSample(
        image=augment_photometric(image, config.photometric, rng=rng),
        pixel=pixel,
        coordinate=coordinate,
        known=known,
        face=face.reshape(half, half),
    )
