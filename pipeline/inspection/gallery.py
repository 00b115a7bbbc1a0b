"""Images of a dataset: contact sheets of views, their ground truth, and correspondences."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes, Floats
from dff.face.extras import require_extra
from dff.face.geometry.mesh import SurfacePoints
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import HIDDEN_DEPTH, OCCLUDER, Frame, visible
from dff.infra.datasets.shards import ViewRow, resolve_frame

with require_extra("synthesis"):
    import matplotlib

SHIFT = 4  # fractional bits of the coordinates that cv2 draws at: 1/16 px
PAPER = 245  # grey level between images
REGION_COLOURS = {
    "face": (240, 190, 140), "neck": (150, 190, 120), "scalp": (110, 120, 150),
    "ears": (230, 120, 190), "lips": (235, 70, 80), "brows": (150, 90, 40),
    "eyes": (70, 150, 245), "lashes": (40, 40, 60), "teeth": (255, 255, 230),
    "tongue": (200, 60, 120), "mouth": (120, 20, 40),
}  # fmt: skip
OTHER_REGION = (128, 128, 128)
OCCLUDER_COLOUR = (255, 40, 200)
INSIDE = ("eyes", "teeth", "tongue", "mouth", "lashes")  # regions without correspondences


def _to_fixed_point(px: Floats, scale: float) -> tuple[int, int]:
    """A point in pixels as cv2 draws it, where the centre of the first pixel is at 0."""
    x, y = np.round((px * scale - 0.5) * (1 << SHIFT)).astype(int)
    return int(x), int(y)


def mark_landmarks(image: Bytes, landmarks: Floats, seen: Bools, *, scale: int = 1) -> Bytes:
    """The (H, W, 3) image, ``scale`` times as large, with (N, 2) landmarks in px of the image.

    Landmarks that are not ``seen`` (N,) are hollow.
    """
    size = (image.shape[1] * scale, image.shape[0] * scale)
    out = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if scale > 1 else image.copy()
    radius = round(max(1.3, 0.008 * min(size)) * (1 << SHIFT))
    for point, is_seen in zip(landmarks, seen, strict=True):
        place = _to_fixed_point(point, scale)
        if is_seen:
            cv2.circle(out, place, radius, (60, 230, 110), -1, cv2.LINE_AA, SHIFT)
        else:
            cv2.circle(out, place, radius, (255, 120, 60), 1, cv2.LINE_AA, SHIFT)
    return out


def contact_sheet(
    rows: Sequence[ViewRow], *, columns: int = 10, tile: int = 160, landmarks: bool = False
) -> Bytes:
    """(H, W, 3) uint8: the views in their order, ``columns`` per line, each ``tile`` px wide.

    Raises ValueError when there are no views, BadDataset when an image can't be decoded.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one view")
    columns = min(columns, len(rows))
    lines = -(-len(rows) // columns)
    gap = 3
    out = np.full(
        (lines * (tile + gap) - gap, columns * (tile + gap) - gap, 3), PAPER, dtype=np.uint8
    )
    for index, row in enumerate(rows):
        image = row.pixels()
        if landmarks:
            image = mark_landmarks(image, row.landmarks_2d, row.visible_2d)
        y, x = (tile + gap) * (index // columns), (tile + gap) * (index % columns)
        out[y : y + tile, x : x + tile] = _tile(image, tile)
    return out


TRUTHS = ("view", "landmarks", "regions", "surface point", "occluders", "depth", "normal")
"""The tiles of ``truth_strip``, in their order."""


def truth_strip(row: ViewRow, model: MorphableModel, *, tile: int = 160) -> Bytes:
    """(tile, W, 3) uint8: the ground truth of a view, a tile for each of TRUTHS.

    The colour of a surface point is its place on the model's mean face, so that it is the same in
    all views. Raises BadDataset when the row is of another model or its image can't be decoded.
    """
    image, frame = row.pixels(), resolve_frame(row, model)
    triangle, seen = np.maximum(frame.triangle, 0), frame.mask
    wash = np.stack([image.mean(axis=2)] * 3, axis=2) * 0.55
    names = np.array(
        [REGION_COLOURS.get(name, OTHER_REGION) for name in model.region_names], dtype=float
    )
    regions = np.where(seen[..., None], 0.35 * image + 0.65 * names[model.region[triangle]], wash)
    low, high = model.template.min(0), model.template.max(0)
    place = 255.0 * (model.template - low) / (high - low)
    surface = wash.copy()
    surface[seen] = frame.points().of(place, model.faces)
    cover = np.where(
        (row.triangle_ids == OCCLUDER)[..., None],
        0.3 * image + 0.7 * np.array(OCCLUDER_COLOUR),
        wash,
    )
    depth = wash.copy()
    if seen.any():
        near, far = np.percentile(frame.depth[seen], (1, 99))
        share = np.clip((far - frame.depth[seen]) / max(far - near, 1e-6), 0.0, 1.0)
        depth[seen] = matplotlib.colormaps["viridis"](share)[:, :3] * 255.0
    normal = np.where(seen[..., None], (frame.normal * [1.0, -1.0, -1.0] + 1.0) * 127.5, wash)
    marked = mark_landmarks(image, row.landmarks_2d, row.visible_2d)
    tiles = [
        image,
        marked,
        *(np.asarray(t, dtype=np.uint8) for t in (regions, surface, cover, depth, normal)),
    ]
    return np.concatenate([p for t in tiles for p in (_tile(t, tile), _gap(tile))][:-1], axis=1)


def strip(images: Sequence[Bytes], *, tile: int = 128, marked: int = 0) -> Bytes:
    """(tile, W, 3) uint8: images side by side, with a wide gap after the first ``marked``.

    Raises ValueError when there are no images.
    """
    if not images:
        raise ValueError("a strip needs at least one image")
    parts: list[Bytes] = []
    for index, image in enumerate(images):
        parts += [_tile(image, tile), _gap(tile, 14 if index == marked - 1 else 3)]
    return np.concatenate(parts[:-1], axis=1)


def _tile(image: Bytes, side: int) -> Bytes:
    """A square image at another size."""
    how = cv2.INTER_AREA if side < image.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (side, side), interpolation=how))


def _gap(height: int, width: int = 3) -> Bytes:
    return np.full((height, width, 3), PAPER, dtype=np.uint8)


def find_common_points(
    a: ViewRow, b: ViewRow, model: MorphableModel, count: int
) -> tuple[SurfacePoints, Floats, Floats]:
    """Up to ``count`` surface points that both views show, with (N, 2) px in ``a`` and in ``b``.

    Each point is the candidate that is furthest from those before it. Raises BadDataset when a row
    is of another model.
    """
    frame_a, frame_b = resolve_frame(a, model), resolve_frame(b, model)
    points, cam_b = _project_points(frame_a, b, model)
    outside = np.isin(
        model.region, [model.region_names.index(n) for n in INSIDE if n in model.region_names]
    )
    keep = visible(frame_b, cam_b, b.camera, HIDDEN_DEPTH) & ~outside[points.triangle]
    rows, columns = np.nonzero(frame_a.mask)
    px_a = np.stack([columns, rows], axis=1)[keep] + 0.5
    px_b = b.camera.px_from_cam(cam_b[keep])
    chosen = _spread(np.concatenate([px_a, px_b], axis=1), count)
    kept = SurfacePoints(points.triangle[keep][chosen], points.barycentric[keep][chosen])
    return kept, px_a[chosen], px_b[chosen]


def _project_points(
    frame: Frame, other: ViewRow, model: MorphableModel
) -> tuple[SurfacePoints, Floats]:
    """The N surface points that a frame shows, and their (N, 3) places in the other view's cam."""
    points = frame.points()
    vertices = other.cam_from_head.apply(model.vertices(other.coefficients(model)))
    return points, points.of(vertices, model.faces)


def _spread(places: Floats, count: int) -> list[int]:
    """Indices of (N, C) places that are far from each other, by farthest point sampling."""
    if len(places) == 0:
        return []
    chosen = [int(np.abs(places - places.mean(0)).sum(1).argmin())]
    nearest = np.full(len(places), np.inf)
    while len(chosen) < min(count, len(places)):
        nearest = np.minimum(nearest, ((places - places[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(nearest.argmax()))
    return chosen


def draw_correspondences(
    a: ViewRow, b: ViewRow, model: MorphableModel, count: int = 24, *, scale: int = 2
) -> Bytes:
    """(H, W, 3) uint8: two views side by side, with lines between common surface points."""
    _, px_a, px_b = find_common_points(a, b, model, count)
    left, right = (
        cv2.resize(
            row.pixels(), (row.width * scale, row.height * scale), interpolation=cv2.INTER_CUBIC
        )
        for row in (a, b)
    )
    gap = 8
    height = max(len(left), len(right))
    out = np.full((height, left.shape[1] + gap + right.shape[1], 3), PAPER, dtype=np.uint8)
    out[: len(left), : left.shape[1]] = left
    out[: len(right), left.shape[1] + gap :] = right
    offset = np.array([(left.shape[1] + gap) / scale, 0.0])
    colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, max(len(px_a), 1)))[:, :3] * 255
    order = np.argsort(px_a[:, 1], kind="stable")
    for rank, index in enumerate(order):
        colour = tuple(int(c) for c in colours[rank])
        ends = _to_fixed_point(px_a[index], scale), _to_fixed_point(px_b[index] + offset, scale)
        cv2.line(out, *ends, colour, 1, cv2.LINE_AA, SHIFT)
        for end in ends:
            cv2.circle(out, end, 3 << SHIFT, colour, -1, cv2.LINE_AA, SHIFT)
    return out
