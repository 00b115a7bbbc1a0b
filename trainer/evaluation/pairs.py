"""Pairs of images with points that both show: held-out training views, rendered views, photos.

``DevPair`` has the exact ground truth of two stored views of one identity; training is validated on
such pairs. ``ViewPair`` pairs rows of a dataset, of one identity or of two, by the surface points
of the face model, or photos of two people by their landmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Array, Bool, Bools, Float, Floats, Integer, UInt8
from dff.face.descriptor import STRIDE
from dff.face.geometry.camera import Box
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.landmarks import INNER
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import Frame
from dff.infra.datasets.shards import ViewRow, resolve_frame
from dff.trainer.data.crops import (
    CropPlacement,
    TrainingSurface,
    build_training_surface,
    find_pixel_quads,
    find_pixels,
    grid_in_source,
    input_from_source,
    interpolate_coordinates,
    warp,
)
from dff.trainer.data.views import ViewStore
from dff.trainer.evaluation.config import EVALUATION, MATCHING, EvaluationConfig, MatchingConfig


@dataclass(frozen=True)
class DevPair:
    """Plain crops of two views of one identity, and points that both show."""

    images: UInt8[Array, "2 side side 3"]  # RGB
    first: Integer[Array, " points"]  # output pixels of the first crop, counted row by row
    second: Float[Array, "points 2"]  # the same points in the second, output pixels
    coordinate: Float[Array, "points 6"]  # surface coordinates, metres


def sample_dev_pairs(
    store: ViewStore,
    surface: TrainingSurface,
    *,
    count: int,
    size: int,
    config: EvaluationConfig = EVALUATION,
) -> list[DevPair]:
    """Up to ``count`` pairs of held-out views, cropped to ``size`` px; none without such views.

    The same store always gives the same pairs.
    """
    rng = np.random.default_rng(0)
    held, identity = store.held_out(config.shards)
    out: list[DevPair] = []
    for _ in range(4 * count):
        if len(out) == count or not len(held):
            break
        a = int(rng.integers(len(held)))
        others = held[(identity == identity[a]) & (held != held[a])]
        if len(others):
            numbers = int(held[a]), int(rng.choice(others))
            pair = _make_dev_pair(store, surface, numbers, size, config, rng)
            if len(pair.first) >= config.min_points:
                out.append(pair)
    return out


def _make_dev_pair(
    store: ViewStore,
    surface: TrainingSurface,
    numbers: tuple[int, int],
    size: int,
    config: EvaluationConfig,
    rng: np.random.Generator,
) -> DevPair:
    images, coordinates, known = [], [], []
    for number in numbers:
        view = store.view(number)
        matrix = input_from_source(view.box, size, CropPlacement())
        images.append(warp(view.image, matrix, size, (0, 0, 0)))
        coordinate, ok = interpolate_coordinates(
            view, grid_in_source(matrix, size), surface, max_spread=config.max_spread
        )
        coordinates.append(coordinate)
        known.append(ok)
    first = rng.permutation(np.flatnonzero(known[0]))[: 4 * config.points]
    candidates = np.flatnonzero(known[1])
    if not len(first) or not len(candidates):
        return DevPair(np.stack(images), first[:0], np.zeros((0, 2)), np.zeros((0, 6)))
    distance = np.linalg.norm(
        coordinates[0][first][:, None] - coordinates[1][candidates][None], axis=2
    )
    nearest = distance.argmin(1)
    same = np.flatnonzero(distance[np.arange(len(first)), nearest] < config.same_point)
    same = same[: config.points]
    pixel = candidates[nearest[same]]
    half = size // STRIDE
    centre = np.stack([pixel % half, pixel // half], axis=1) + 0.5
    return DevPair(np.stack(images), first[same], centre, coordinates[0][first[same]])


@dataclass(frozen=True, eq=False)
class ViewPair:
    """Plain crops of two images, and points that both show.

    An output px is ``STRIDE`` px of a crop wide.
    """

    images: UInt8[Array, "2 side side 3"]  # RGB
    first: Float[Array, "points 2"]  # in the first crop, output px
    second: Float[Array, "points 2"]  # the same surface points in the second
    face: Bool[Array, " pixels"]  # output pixels of the second that show its face
    box: float  # geometric mean of the sides of the second's landmark box, output px
    yaw: float  # degrees between the views, positive
    same: bool  # both show one identity


def sample_view_pairs(
    rows: Sequence[ViewRow],
    model: MorphableModel,
    *,
    count: int,
    size: int,
    rng: np.random.Generator,
    config: MatchingConfig = MATCHING,
) -> list[ViewPair]:
    """Up to ``count`` pairs of views for each yaw bin, of the same identity and of different ones.

    ``size``: side of the crops, px. Raises BadDataset when a row is of another model.
    """
    surface = build_training_surface(model)
    yaw = np.array([row.pose[0] for row in rows])
    identity = np.unique([row.identity_id for row in rows], return_inverse=True)[1]
    difference = np.abs(yaw[:, None] - yaw[None])
    same = identity[:, None] == identity[None]
    others = ~np.eye(len(rows), dtype=bool)
    out = []
    for low, high in config.yaw_ranges:
        for wanted in (same, ~same):
            cell = np.argwhere((difference >= low) & (difference < high) & wanted & others)
            found: list[ViewPair] = []
            # Views from two sides of a face may share too few points.
            for a, b in cell[rng.permutation(len(cell))[: 4 * count]]:
                if len(found) == count:
                    break
                pair = _make_view_pair((rows[a], rows[b]), model, surface, size, config, rng)
                if len(pair.first) >= config.min_points:
                    found.append(pair)
            out += found
    return out


def _make_view_pair(
    rows: tuple[ViewRow, ViewRow],
    model: MorphableModel,
    surface: TrainingSurface,
    size: int,
    config: MatchingConfig,
    rng: np.random.Generator,
) -> ViewPair:
    a, b = rows
    boxes = [Box.around(row.landmarks_3d) for row in rows]
    matrices = [input_from_source(box, size, CropPlacement()) for box in boxes]
    frames = [resolve_frame(row, model) for row in rows]
    vertices = b.cam_from_head.apply(model.vertices(b.coefficients(model)))
    known, coordinate, cam = transfer_points(
        frames[0], grid_in_source(matrices[0], size), surface, vertices, config.max_spread
    )
    source = b.camera.px_from_cam(cam)
    # Negative for occluders and background: the mask removes what they index.
    skin = surface.skin[frames[1].triangle]
    skin &= frames[1].mask
    known &= is_visible(frames[1], skin, source, coordinate, surface, config.same_point)
    second = (source @ matrices[1][:, :2].T + matrices[1][:, 2]) / STRIDE
    half = size // STRIDE
    known &= ((second >= 0) & (second < half)).all(1)
    chosen = rng.permutation(np.flatnonzero(known))[: config.points]
    crops = [
        warp(row.pixels(), matrix, size, (0, 0, 0))
        for row, matrix in zip(rows, matrices, strict=True)
    ]
    return ViewPair(
        images=np.stack(crops),
        first=np.stack([chosen % half, chosen // half], axis=1) + 0.5,
        second=second[chosen],
        face=lookup_mask(skin, grid_in_source(matrices[1], size)),
        box=boxes[1].size * float(matrices[1][0, 0]) / STRIDE,
        yaw=abs(a.pose[0] - b.pose[0]),
        same=a.identity_id == b.identity_id,
    )


def lookup_mask(mask: Bools, px: Floats) -> Bools:
    """(N,) a mask's value in the pixel that holds each of (N, 2) ``px``; False outside."""
    row, column, inside = find_pixels(px, mask.shape)
    return inside & mask[row, column]


def transfer_points(
    frame: Frame, px: Floats, surface: TrainingSurface, vertices: Floats, max_spread: float
) -> tuple[Bools, Floats, Floats]:
    """Surface points that a frame shows at (N, 2) ``px``, transferred to another mesh.

    Returns (N,) whether the point is known, its (N, 6) surface coordinates, and its (N, 3) position
    on ``vertices``. Bilinear between four pixel centres, where surface points are exact; unknown
    where the four show no skin, or points more than ``max_spread`` metres apart.
    """
    quads = find_pixel_quads(px, frame.triangle.shape)
    ids = frame.triangle[quads.rows, quads.columns]  # (N, 4)
    known = quads.inside & ((ids >= 0) & surface.skin[ids]).all(1)
    corners = surface.faces[np.where(known[:, None], ids, 0)]  # (N, 4, 3)
    weight = frame.barycentric[quads.rows, quads.columns]
    coordinate = np.einsum("npk,npkc->npc", weight, surface.coordinates[corners])
    known &= np.linalg.norm(coordinate - coordinate[:, :1], axis=2).max(1) < max_spread
    blend = quads.weights(np.float64)
    cam = np.einsum("np,npk,npkc->nc", blend, weight, vertices[corners])
    # An unknown point has no position; any in front of the camera can be projected.
    cam[~known] = vertices.mean(0)
    return known, np.einsum("np,npc->nc", blend, coordinate), cam


def is_visible(
    frame: Frame,
    skin: Bools,
    px: Floats,
    coordinate: Floats,
    surface: TrainingSurface,
    same_point: float,
) -> Bools:
    """(N,) whether the pixels that hold (N, 2) ``px`` show the surface at (N, 6) ``coordinate``.

    ``skin``: (H, W) pixels of the face. ``same_point``: largest distance, metres.
    """
    row, column, inside = find_pixels(px, skin.shape)
    visible = inside & skin[row, column]
    corners = surface.faces[np.where(visible, frame.triangle[row, column], 0)]
    shown = np.einsum("nk,nkc->nc", frame.barycentric[row, column], surface.coordinates[corners])
    return visible & (np.linalg.norm(shown - coordinate, axis=1) < same_point)


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo of one face with its labels."""

    image: UInt8[Array, "height width 3"]  # RGB
    landmarks: Float[Array, "68 2"]  # px, 3D scheme
    pose: tuple[float, float, float]  # yaw, pitch, roll in degrees


def sample_photo_pairs(
    photos: Sequence[LabelledPhoto],
    model: MorphableModel,
    *,
    count: int,
    size: int,
    rng: np.random.Generator,
    config: MatchingConfig = MATCHING,
) -> list[ViewPair]:
    """Up to ``count`` pairs of photos of two people for each yaw bin.

    ``size``: side of the crops, px. The points are the 51 inner landmarks that both photos show,
    according to the normals of ``model``'s template in the labelled poses. The jaw landmarks are
    left out: they follow the visible contour, not a point of the surface.
    """
    normal = vertex_normals(model.template, model.faces)[model.landmarks.vertex]
    visible = np.array([_is_inner_visible(normal, photo.pose, config) for photo in photos])
    yaw = np.array([photo.pose[0] for photo in photos])
    difference = np.abs(yaw[:, None] - yaw[None])
    shared = (visible[:, None] & visible[None]).sum(2) >= config.min_points
    allowed = shared & ~np.eye(len(photos), dtype=bool)
    out = []
    for low, high in config.yaw_ranges:
        cell = np.argwhere((difference >= low) & (difference < high) & allowed)
        out += [
            _make_photo_pair((photos[a], photos[b]), visible[a] & visible[b], size, config)
            for a, b in rng.permutation(cell)[:count]
        ]
    return out


def _is_inner_visible(
    normal: Floats, pose: tuple[float, float, float], config: MatchingConfig
) -> Bools:
    """(68,) whether a landmark is an inner one and faces the camera. ``normal``: (68, 3)."""
    facing = -(normal @ rotation_from_angles(*pose).T)[:, 2] > config.min_facing
    inner = np.zeros(len(normal), dtype=bool)
    inner[INNER] = True
    return np.asarray(facing & inner)


def _make_photo_pair(
    photos: tuple[LabelledPhoto, LabelledPhoto], visible: Bools, size: int, config: MatchingConfig
) -> ViewPair:
    a, b = photos
    boxes = [Box.around(photo.landmarks) for photo in photos]
    matrices = [input_from_source(box, size, CropPlacement()) for box in boxes]
    first, second = (
        (photo.landmarks @ matrix[:, :2].T + matrix[:, 2]) / STRIDE
        for photo, matrix in zip(photos, matrices, strict=True)
    )
    half = size // STRIDE
    hull = cv2.convexHull(second.astype(np.float32))[:, 0]
    hull = hull.mean(0) + config.hull_scale * (hull - hull.mean(0))
    face = np.zeros((half, half), np.uint8)
    # OpenCV counts from pixel centres at 0, here in sixteenths.
    cv2.fillConvexPoly(face, np.round((hull - 0.5) * 16).astype(np.int32), 1, cv2.LINE_8, 4)
    crops = [
        warp(photo.image, matrix, size, (0, 0, 0))
        for photo, matrix in zip(photos, matrices, strict=True)
    ]
    return ViewPair(
        images=np.stack(crops),
        first=first[visible],
        second=second[visible],
        face=face.ravel() > 0,
        box=boxes[1].size * float(matrices[1][0, 0]) / STRIDE,
        yaw=abs(a.pose[0] - b.pose[0]),
        same=False,
    )
