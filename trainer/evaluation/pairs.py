"""Pairs of images with points that both show: held-out training views, rendered views, photos.

``DevPair`` has the exact ground truth of two stored views of one identity; the validation figures
of training are taken from it. ``ViewPair`` pairs rows of a dataset, of one identity or of two, by
the surface point of the face model, or photos of two people, by their landmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

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
from dff.infra.shards import ViewRow, resolve_frame
from dff.trainer.data.crops import (
    SAME_SHEET,
    CropPlacement,
    TrainingSurface,
    build_training_surface,
    grid_in_source,
    input_from_source,
    interpolate_coordinates,
    warp,
)
from dff.trainer.data.view_cache import ViewStore

POINTS = 64
"""Points matched in a pair of views."""


SAME_POINT_DEV = 0.003
"""Metres in surface coordinates up to which two pixels show the same point."""
YAW_EDGES = (0.0, 30.0, 60.0, 90.0, np.inf)
"""Degrees of yaw between two views that part the bins: each has its lower edge."""


MIN_POINTS = 8
"""Points that a pair must share."""


SAME_POINT = 0.005
"""Metres in surface coordinates within which the second's pixel must show the point; further,
something hides it.
"""
MIN_FACING = 0.3
"""Cosine between a landmark's normal and the way to the camera from which it counts as seen."""


HULL_SCALE = 1.15
"""Matches are sought in the hull of the landmarks, enlarged by this about its centre: about what
the face covers.
"""


@dataclass(frozen=True)
class DevPair:
    """Two plain crops of one identity and points that both show."""

    images: UInt8[Array, "2 side side 3"]  # RGB
    first: Integer[Array, " points"]  # output pixels of the first crop, counted row by row
    second: Float[Array, "points 2"]  # the same points in the second, output pixels
    coordinate: Float[Array, "points 6"]  # surface coordinates, metres


def sample_dev_pairs(
    store: ViewStore, surface: TrainingSurface, *, count: int, size: int
) -> list[DevPair]:
    """Up to ``count`` pairs of held-out views, the same for the same store: empty when none is held
    out.

    Pairs whose views share fewer than eight points are left out.
    """
    rng = np.random.default_rng(0)
    held = np.flatnonzero(store.is_dev)
    identity = store.identity[held]
    out: list[DevPair] = []
    for _ in range(4 * count):
        if len(out) == count or not len(held):
            break
        a = int(rng.integers(len(held)))
        others = held[(identity == identity[a]) & (held != held[a])]
        if len(others):
            pair = _make_dev_pair(store, surface, int(held[a]), int(rng.choice(others)), size, rng)
            if len(pair.first) >= 8:
                out.append(pair)
    return out


def _make_dev_pair(
    store: ViewStore, surface: TrainingSurface, a: int, b: int, size: int, rng: np.random.Generator
) -> DevPair:
    images, coordinates, known = [], [], []
    for number in (a, b):
        view = store.view(number)
        matrix = input_from_source(view.box, size, CropPlacement())
        images.append(warp(view.image, matrix, size, (0, 0, 0)))
        coordinate, ok = interpolate_coordinates(view, grid_in_source(matrix, size), surface)
        coordinates.append(coordinate)
        known.append(ok)
    first = rng.permutation(np.flatnonzero(known[0]))[: 4 * POINTS]
    seen = np.flatnonzero(known[1])
    if not len(first) or not len(seen):
        return DevPair(np.stack(images), first[:0], np.zeros((0, 2)), np.zeros((0, 6)))
    apart = np.linalg.norm(coordinates[0][first][:, None] - coordinates[1][seen][None], axis=2)
    nearest = apart.argmin(1)
    same = np.flatnonzero(apart[np.arange(len(first)), nearest] < SAME_POINT_DEV)[:POINTS]
    pixel = seen[nearest[same]]
    half = size // STRIDE
    centre = np.stack([pixel % half, pixel // half], axis=1) + 0.5
    return DevPair(np.stack(images), first[same], centre, coordinates[0][first[same]])


@dataclass(frozen=True, eq=False)
class ViewPair:
    """Two plain crops and points that both show. Output pixels are ``STRIDE`` pixels of a crop
    wide.
    """

    images: UInt8[Array, "2 side side 3"]  # RGB
    first: Float[Array, "points 2"]  # in the first crop, output px
    second: Float[Array, "points 2"]  # the same surface points in the second
    face: Bool[Array, " pixels"]  # output pixels of the second that show its face: candidates
    box: float  # geometric mean of the sides of the second's landmark box, output px
    yaw: float  # degrees of yaw between the views
    same: bool  # one identity


def sample_view_pairs(
    rows: Sequence[ViewRow],
    model: MorphableModel,
    *,
    count: int,
    size: int,
    rng: np.random.Generator,
) -> list[ViewPair]:
    """Up to ``count`` pairs of views for each yaw bin, of the same identity and of different ones.

    ``size``: side of the crops, px. Raises BadDataset when a row is of another model.
    """
    surface = build_training_surface(model)
    yaw = np.array([row.pose[0] for row in rows])
    identity = np.unique([row.identity_id for row in rows], return_inverse=True)[1]
    apart = np.abs(yaw[:, None] - yaw[None])
    same = identity[:, None] == identity[None]
    others = ~np.eye(len(rows), dtype=bool)
    out = []
    for low, high in pairwise(YAW_EDGES):
        for wanted in (same, ~same):
            cell = np.argwhere((apart >= low) & (apart < high) & wanted & others)
            found: list[ViewPair] = []
            # Views from two sides of a face share little: some draws give no pair.
            for a, b in cell[rng.permutation(len(cell))[: 4 * count]]:
                if len(found) == count:
                    break
                pair = _make_view_pair(rows[a], rows[b], model, surface, size, rng)
                if len(pair.first) >= MIN_POINTS:
                    found.append(pair)
            out += found
    return out


def _make_view_pair(
    a: ViewRow,
    b: ViewRow,
    model: MorphableModel,
    surface: TrainingSurface,
    size: int,
    rng: np.random.Generator,
) -> ViewPair:
    boxes = [Box.around(row.landmarks_3d) for row in (a, b)]
    matrices = [input_from_source(box, size, CropPlacement()) for box in boxes]
    frames = [resolve_frame(row, model) for row in (a, b)]
    vertices = b.cam_from_head.apply(model.vertices(b.coefficients(model)))
    known, coordinate, cam = _follow_points(
        frames[0], grid_in_source(matrices[0], size), surface, vertices
    )
    source = b.camera.px_from_cam(cam)
    skin = surface.skin[
        frames[1].triangle
    ]  # occluders and background are negative: the row for none and one more
    skin &= frames[1].mask
    known &= _is_visible(frames[1], skin, source, coordinate, surface)
    second = (source @ matrices[1][:, :2].T + matrices[1][:, 2]) / STRIDE
    half = size // STRIDE
    known &= ((second >= 0) & (second < half)).all(1)
    chosen = rng.permutation(np.flatnonzero(known))[:POINTS]
    return ViewPair(
        images=np.stack(
            [
                warp(row.pixels(), m, size, (0, 0, 0))
                for row, m in zip((a, b), matrices, strict=True)
            ]
        ),
        first=np.stack([chosen % half, chosen // half], axis=1) + 0.5,
        second=second[chosen],
        face=_lookup_mask(skin, grid_in_source(matrices[1], size)),
        box=boxes[1].size * float(matrices[1][0, 0]) / STRIDE,
        yaw=abs(a.pose[0] - b.pose[0]),
        same=a.identity_id == b.identity_id,
    )


def _lookup_mask(mask: Bools, px: Floats) -> Bools:
    """(N,) a mask's value in the pixel that holds each of (N, 2) ``px``; False outside."""
    height, width = mask.shape
    column, row = np.floor(px).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return cast(Bools, inside & mask[np.where(inside, row, 0), np.where(inside, column, 0)])


def _follow_points(
    frame: Frame, px: Floats, surface: TrainingSurface, vertices: Floats
) -> tuple[Bools, Floats, Floats]:
    """Whether (N, 2) ``px`` show one sheet of the face, their (N, 6) surface coordinates, and (N,
    3) on ``vertices``.

    Bilinear between the four pixel centres round a place, whose surface points are exact.
    """
    height, width = frame.triangle.shape
    at = px - 0.5
    corner = np.floor(at).astype(np.int64)
    inside = ((corner >= 0) & (corner < [width - 1, height - 1])).all(1)
    fx, fy = (at - corner).T
    corner = np.where(inside[:, None], corner, 0)
    columns = corner[:, :1] + np.array([0, 1, 0, 1])
    rows = corner[:, 1:] + np.array([0, 0, 1, 1])
    ids = frame.triangle[rows, columns]  # (N, 4)
    known = inside & ((ids >= 0) & surface.skin[ids]).all(1)
    corners = surface.faces[np.where(known[:, None], ids, 0)]  # (N, 4, 3)
    weight = frame.barycentric[rows, columns]
    coordinate = np.einsum("npk,npkc->npc", weight, surface.coordinates[corners])
    known &= np.linalg.norm(coordinate - coordinate[:, :1], axis=2).max(1) < SAME_SHEET
    blend = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], axis=1)
    cam = np.einsum("np,npk,npkc->nc", blend, weight, vertices[corners])
    # A point that is not known has no place: any before the camera will do.
    cam[~known] = vertices.mean(0)
    return known, np.einsum("np,npc->nc", blend, coordinate), cam


def _is_visible(
    frame: Frame, skin: Bools, px: Floats, coordinate: Floats, surface: TrainingSurface
) -> Bools:
    """(N,) whether the pixels that hold (N, 2) ``px`` show the surface at ``coordinate`` (N, 6)."""
    seen = _lookup_mask(skin, px)
    column, row = np.where(seen[:, None], np.floor(px), 0).astype(np.int64).T
    corners = surface.faces[np.where(seen, frame.triangle[row, column], 0)]
    there = np.einsum("nk,nkc->nc", frame.barycentric[row, column], surface.coordinates[corners])
    return cast(Bools, seen & (np.linalg.norm(there - coordinate, axis=1) < SAME_POINT))


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo of one face."""

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
) -> list[ViewPair]:
    """Up to ``count`` pairs of photos, each of two people, for each bin of yaw. ``size``: side of
    the crops, px.

    Points are the 51 inner landmarks that both show, by the normals of ``model``'s template in the
    labelled poses: the outline has no texture of its own, and is annotated where it happens to lie.
    """
    normal = vertex_normals(model.template, model.faces)[model.landmarks.vertex]
    seen = np.array([_visible_inner(normal, photo.pose) for photo in photos])
    yaw = np.array([photo.pose[0] for photo in photos])
    apart = np.abs(yaw[:, None] - yaw[None])
    shared = (seen[:, None] & seen[None]).sum(2) >= MIN_POINTS
    out = []
    for low, high in pairwise(YAW_EDGES):
        cell = np.argwhere(
            (apart >= low) & (apart < high) & shared & ~np.eye(len(photos), dtype=bool)
        )
        out += [
            _make_photo_pair(photos[a], photos[b], seen[a] & seen[b], size)
            for a, b in rng.permutation(cell)[:count]
        ]
    return out


def _visible_inner(normal: Floats, pose: tuple[float, float, float]) -> Bools:
    """(68,) which landmarks are inner ones and face the camera."""
    facing = -(normal @ rotation_from_angles(*pose).T)[:, 2] > MIN_FACING
    inner = np.zeros(len(normal), dtype=bool)
    inner[INNER] = True
    return np.asarray(facing & inner)


def _make_photo_pair(a: LabelledPhoto, b: LabelledPhoto, seen: Bools, size: int) -> ViewPair:
    boxes = [Box.around(photo.landmarks) for photo in (a, b)]
    matrices = [input_from_source(box, size, CropPlacement()) for box in boxes]
    first, second = (
        (photo.landmarks @ matrix[:, :2].T + matrix[:, 2]) / STRIDE
        for photo, matrix in zip((a, b), matrices, strict=True)
    )
    half = size // STRIDE
    hull = cv2.convexHull(second.astype(np.float32))[:, 0]
    hull = hull.mean(0) + HULL_SCALE * (hull - hull.mean(0))
    face = np.zeros((half, half), np.uint8)
    # OpenCV counts from pixel centres at 0, here in sixteenths.
    cv2.fillConvexPoly(face, np.round((hull - 0.5) * 16).astype(np.int32), 1, cv2.LINE_8, 4)
    return ViewPair(
        images=np.stack(
            [warp(p.image, m, size, (0, 0, 0)) for p, m in zip((a, b), matrices, strict=True)]
        ),
        first=first[seen],
        second=second[seen],
        face=face.ravel() > 0,
        box=boxes[1].size * float(matrices[1][0, 0]) / STRIDE,
        yaw=abs(a.pose[0] - b.pose[0]),
        same=False,
    )
