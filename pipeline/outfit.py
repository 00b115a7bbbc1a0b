"""What a head model lacks and every photo has: clothes below the neck and hair beyond the scalp.

Both are drawn as soft shapes behind the face, so they never touch the ground truth: no pixel that shows the model
changes its surface point. The neck's ragged lower rim lets the clothes behind it show through.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from face import lighting
from face.arrays import Floats, Ints
from face.camera import Pinhole, WeakPerspective
from face.morphable import MorphableModel
from face.transform import Rigid

SHIFT = 4  # cv2 draws at 1/16 px
AROUND = np.linspace(0.0, 2.0 * np.pi, 20, endpoint=False)
RIM_MARGIN = 0.004  # metres above the rim's highest point that the clothes reach
SOFT = 0.003  # metres over which they end
BODY = (  # below the rim: drop, half breadth, half depth, in metres of an average body
    (-0.005, 0.062, 0.058),
    (0.020, 0.085, 0.072),
    (0.045, 0.135, 0.085),
    (0.080, 0.185, 0.095),
    (0.140, 0.215, 0.105),
    (0.700, 0.230, 0.115),
)
PALETTE = (
    (0.08, 0.08, 0.09), (0.13, 0.16, 0.27), (0.85, 0.85, 0.84), (0.45, 0.45, 0.46), (0.40, 0.12, 0.13),
    (0.20, 0.33, 0.50), (0.24, 0.30, 0.22), (0.62, 0.52, 0.40), (0.30, 0.22, 0.18), (0.70, 0.60, 0.62),
)  # fmt: skip


@dataclass(frozen=True)
class Outfit:
    """How a person is dressed and combed; colours are albedo in 0..1."""

    clothes: tuple[float, float, float]
    breadth: float  # of the shoulders, over the average
    hair: tuple[float, float, float]
    volume: float  # metres from the scalp to the hair's outline
    length: float  # metres that the hair falls below the ears; 0: short
    seed: int  # of the streaks


def sample_outfit(
    hair: Floats, *, rng: np.random.Generator, clothes: Floats | None = None, volume: tuple[float, float] = (0.0, 0.03)
) -> Outfit:
    """An outfit for (3,) ``hair`` albedo; ``clothes`` when the photo shows their colour. Two in five have long hair."""
    drawn = np.array(PALETTE[int(rng.integers(len(PALETTE)))]) + rng.normal(0.0, 0.03, 3)
    colour = np.clip(drawn if clothes is None else clothes, 0.02, 0.95)
    low, high = volume
    return Outfit(
        clothes=(float(colour[0]), float(colour[1]), float(colour[2])),
        breadth=float(np.clip(rng.normal(1.0, 0.08), 0.8, 1.2)),
        hair=(float(hair[0]), float(hair[1]), float(hair[2])),
        volume=float(rng.uniform(low, high) if rng.random() < 0.8 else 0.0),
        length=float(rng.uniform(0.04, 0.20) if rng.random() < 0.4 else 0.0),
        seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True, eq=False)
class Wardrobe:
    """Where a model wears clothes and hair."""

    rim: Ints  # vertices of the neck's lower border; none when the model has no neck
    scalp: Ints  # vertices
    ears: Ints  # vertices; the hair falls from their height
    slope: Floats  # (3,) rim height = slope . (1, z, x^2) on the template, plus the margin

    @staticmethod
    def of(model: MorphableModel) -> Wardrobe:
        pairs = np.sort(
            np.concatenate([model.faces[:, [0, 1]], model.faces[:, [1, 2]], model.faces[:, [2, 0]]]), axis=1
        )
        edges, times = np.unique(pairs, axis=0, return_counts=True)
        border = np.unique(edges[times == 1])
        chin = model.template[model.landmarks.vertex[8], 1]
        rim = border[model.template[border, 1] < chin - 0.01]
        slope = np.zeros(3)
        if len(rim) >= 3:
            x, y, z = model.template[rim].astype(np.float64).T
            terms = np.stack([np.ones_like(z), z, x * x], axis=1)
            slope = np.linalg.lstsq(terms, y, rcond=None)[0]
            slope[0] += float((y - terms @ slope).max()) + RIM_MARGIN
        else:
            rim = rim[:0]
        return Wardrobe(rim, _vertices_of(model, "scalp"), _vertices_of(model, "ears"), slope)

    def dressed(self, places: Floats) -> Floats:
        """(N,) 0..1: how much of (N, 3) points of the template the clothes cover."""
        if len(self.rim) == 0:
            return np.zeros(len(places))
        x, y, z = places.astype(np.float64).T
        top = self.slope[0] + self.slope[1] * z + self.slope[2] * x * x
        return np.asarray(np.clip((top - y) / SOFT, 0.0, 1.0))

    def collar(self, template: Floats, neutral: Floats) -> Floats:
        """(R, 3) points of the rim of a face with (V, 3) ``neutral``, raised to where its clothes end."""
        x, y, z = template[self.rim].astype(np.float64).T
        top = self.slope[0] + self.slope[1] * z + self.slope[2] * x * x
        return np.asarray(neutral[self.rim] + np.stack([0.0 * y, np.maximum(top - y, 0.0), 0.0 * y], axis=1))


_wardrobes: dict[int, tuple[MorphableModel, Wardrobe]] = {}


def wardrobe_of(model: MorphableModel) -> Wardrobe:
    """The wardrobe of a model; the last few are kept (models are too big to be hashed)."""
    if id(model) not in _wardrobes:
        while len(_wardrobes) >= 4:
            _wardrobes.pop(next(iter(_wardrobes)))
        _wardrobes[id(model)] = (model, Wardrobe.of(model))  # holds the model, so the id stays its own
    return _wardrobes[id(model)][1]


def _vertices_of(model: MorphableModel, region: str) -> Ints:
    if region not in model.region_names:
        return np.empty(0, dtype=np.int64)
    return np.unique(model.faces[model.triangles_of(region)])


def draw_behind(
    background: Floats,
    outfit: Outfit,
    model: MorphableModel,
    neutral: Floats,
    cam_from_head: Rigid,
    camera: Pinhole | WeakPerspective,
    light: Floats,
) -> Floats:
    """(H, W, 3) float32: the background with hair and shoulders before it, for a face with (V, 3) ``neutral``."""
    out = np.ascontiguousarray(background, dtype=np.float32)
    # Soft shapes have no normals: they are lit like a wall that faces the camera, from the side less.
    level = lighting.shade(np.array([[0.0, 0.0, -1.0], [0.0, -0.7, -0.71]]), light).mean(0)
    rng = np.random.default_rng(outfit.seed)
    wardrobe = wardrobe_of(model)
    if len(wardrobe.scalp) and outfit.volume + outfit.length > 0.0:
        shapes = [_project(points, cam_from_head, camera) for points in _hair(outfit, wardrobe, neutral)]
        streaks = rng.standard_normal((12, 96)).astype(np.float32) * 0.16
        out = _painted(out, shapes, np.array(outfit.hair) * level, streaks, _up(cam_from_head))
    if len(wardrobe.rim):
        rim = neutral[wardrobe.rim]
        slices = [wardrobe.collar(model.template, neutral), rim, *_body(outfit, rim)]
        shapes = [_project(np.concatenate(pair), cam_from_head, camera) for pair in pairwise(slices)]
        folds = rng.standard_normal((8, 8)).astype(np.float32) * 0.08
        out = _painted(out, shapes, np.array(outfit.clothes) * level, folds, _up(cam_from_head))
    return out


def _body(outfit: Outfit, rim: Floats) -> list[Floats]:
    """Ellipses (20, 3) in head, from the neck down."""
    middle = (rim.max(0) + rim.min(0)) / 2.0
    # The body reaches further back than the neck's rim, never before it.
    return [
        middle
        + np.stack(
            [breadth * outfit.breadth * np.cos(AROUND), np.full(len(AROUND), -drop), depth * np.sin(AROUND)], axis=1
        )
        for drop, breadth, depth in BODY
    ]


def _hair(outfit: Outfit, wardrobe: Wardrobe, neutral: Floats) -> list[Floats]:
    """Point sets (N, 3) in head whose outlines are the hair's."""
    scalp = neutral[wardrobe.scalp]
    middle = (scalp.max(0) + scalp.min(0)) / 2.0
    away = scalp - middle
    grown = scalp + away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6) * outfit.volume
    shapes = [grown]
    if outfit.length > 0.0 and len(wardrobe.ears):
        ears = neutral[wardrobe.ears]
        half = float(np.abs(ears[:, 0]).max()) + 0.3 * outfit.volume
        top, back = float(ears[:, 1].max()), float(scalp[:, 2].min())
        front = float(ears[:, 2].mean())
        depth, centre = (front - back) / 2.0 + outfit.volume, (front + back) / 2.0
        rings = [
            np.stack([breadth * np.cos(AROUND), np.full(len(AROUND), height), centre + depth * np.sin(AROUND)], axis=1)
            for breadth, height in (
                (half, top),
                (1.06 * half, top - 0.05),
                (0.98 * half, top - 0.05 - 0.8 * outfit.length),
                (0.80 * half, top - 0.05 - outfit.length),
            )
        ]
        shapes.append(np.concatenate([grown[grown[:, 1] < top + 0.05], rings[0], rings[1]]))
        shapes += [np.concatenate(pair) for pair in pairwise(rings[1:])]
    return shapes


def _up(cam_from_head: Rigid) -> float:
    """Radians by which the head's upward direction leans in the image."""
    up = cam_from_head.rotation[:, 1]
    return float(np.arctan2(up[0], -up[1]))


def _project(points: Floats, cam_from_head: Rigid, camera: Pinhole | WeakPerspective) -> Floats:
    cam = cam_from_head.apply(points)
    if isinstance(camera, Pinhole):  # a wide body may reach behind the camera of a selfie
        cam = np.concatenate([cam[:, :2], np.maximum(cam[:, 2:], 0.2 * cam_from_head.translation[2])], axis=1)
    return camera.px_from_cam(cam)


def _painted(image: Floats, shapes: list[Floats], colour: Floats, grain: Floats, lean: float) -> Floats:
    """The image with the convex outlines of ``shapes`` ((N, 2) px each) filled, slightly out of focus."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), dtype=np.uint8)
    for px in shapes:
        limited = np.clip(px, -4.0 * width, 5.0 * width) - 0.5
        hull = cv2.convexHull(np.round(limited * (1 << SHIFT)).astype(np.int32))
        cv2.fillConvexPoly(mask, hull, 255, cv2.LINE_8, SHIFT)
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return image
    soft = 3
    x0, y0, x1, y1 = max(x - soft, 0), max(y - soft, 0), min(x + w + soft, width), min(y + h + soft, height)
    part = (slice(y0, y1), slice(x0, x1))
    share = cv2.GaussianBlur(mask[part], (0, 0), 0.006 * width).astype(np.float32) * np.float32(1.0 / 255.0)
    c, s = np.cos(lean), np.sin(lean)
    rows, columns = grain.shape
    scale = np.array([columns, rows]) / width
    turn = (np.array([[c, s], [-s, c]]) * scale[:, None]).astype(np.float64)
    middle = np.array([columns, rows]) / 2.0
    warp = np.concatenate([turn, (middle - turn @ np.array([width / 2.0, height / 2.0]))[:, None]], axis=1)
    warp[:, 2] += warp[:, :2] @ np.array([x0, y0])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    texture = cv2.warpAffine(grain, warp, (x1 - x0, y1 - y0), flags=how, borderMode=cv2.BORDER_REFLECT_101)
    fill = (1.0 + texture)[..., None] * colour.astype(np.float32)
    out = image.copy()
    out[part] += share[..., None] * (fill - out[part])
    return out
