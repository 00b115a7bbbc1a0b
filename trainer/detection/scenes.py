"""Training images of the detector, with the landmarks of every face in them.

Stored views are placed over a background that shows no face, at any size and in-plane rotation. A
face that others cover, or that lies partly outside, is known by its visible share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Array, Bytes, Float, Floats, Ints, UInt8
from dff.face.geometry.transform import rotation_2d
from dff.face.model.landmarks import MIRROR
from dff.trainer.data import kernels
from dff.trainer.data.augment import augment_photometric, occlude
from dff.trainer.data.crops import TrainingSurface, paint_over_face
from dff.trainer.data.mosaic import join_along_line, make_background
from dff.trainer.data.views import StoredView
from dff.trainer.detection.config import DetectionSceneConfig
from dff.trainer.detection.covers import cover_face, paint_mask
from dff.trainer.detection.patterns import draw_pattern

EARS = (0, 16)
"""Landmarks of the jaw beside the ears."""


@dataclass(frozen=True)
class DetectionScene:
    """A training image and its faces."""

    image: UInt8[Array, "side side 3"]  # RGB
    landmarks: Float[Array, "faces 68 2"]  # 3D scheme, pixels
    visible: Float[Array, " faces"]  # share of the face that the image shows, 0 to 1


def compose_scene(
    views: Sequence[StoredView],
    surface: TrainingSurface,
    vertices: Ints,
    config: DetectionSceneConfig,
    *,
    rng: np.random.Generator,
) -> DetectionScene:
    """Draw a scene before any camera effect, from ``views`` that it chooses at random.

    (68,) ``vertices``: of the landmarks.
    """
    image = _draw_background(views, surface, config, rng)
    count = int(rng.integers(config.count[0], config.count[1] + 1))
    if rng.random() < config.empty_probability:
        count = 0
    for _ in range(int(rng.integers(config.objects[0], config.objects[1] + 1))):
        _draw_object(image, config, rng)
    for _ in range(int(rng.integers(config.parts[0], config.parts[1] + 1))):
        _draw_part(image, views[int(rng.integers(len(views)))], vertices, config, rng)
    layer = np.full((config.size, config.size), -1, np.int16)
    faces: list[Floats] = []
    for size in _draw_sizes(count, config, rng):
        view = views[int(rng.integers(len(views)))]
        matrix, mirrored = _draw_placement(view, size, config, rng)
        shown = rng.random() >= config.faceless_probability
        if not shown:
            view = paint_over_face(view, surface, config.faceless, rng=rng)
        elif rng.random() < config.cover.mask_probability:
            other = views[int(rng.integers(len(views)))]
            view = paint_mask(view, other, vertices, config.cover, config.pattern, rng=rng)
        opacity = (
            _head_opacity(view, len(surface.faces), config, rng)
            if rng.random() < config.cutout_probability or not shown
            else np.full(view.triangle.shape, 255, np.uint8)
        )
        _paste(image, layer, view.image, opacity, matrix, len(faces) if shown else -1)
        if shown:
            landmarks = view.vertex_px[vertices] @ matrix[:, :2].T + matrix[:, 2]
            faces.append(landmarks[MIRROR] if mirrored else landmarks)
            if rng.random() < config.cover.thing_probability:
                cover_face(image, layer, landmarks, config.cover, config.pattern, rng=rng)
    if rng.random() < config.occlusion.probability:
        image, covered = occlude(image, config.occlusion, rng=rng)
        layer[covered] = -1
    if rng.random() < config.shadow_probability:
        image = _shade(image, config, rng)
    if rng.random() < config.border_probability:
        image = image.copy()
        rows, columns = _draw_border(config, rng)
        image[rows, columns], layer[rows, columns] = 0, -1
    visible = np.array([_visible_share(face, layer == i) for i, face in enumerate(faces)])
    return DetectionScene(image, np.array(faces).reshape(-1, 68, 2), visible)


def photograph(
    scene: DetectionScene, config: DetectionSceneConfig, *, rng: np.random.Generator
) -> DetectionScene:
    """The scene under random camera effects, mirrored or not."""
    image, landmarks = scene.image, scene.landmarks
    if rng.random() < config.mirror_probability:
        image = np.ascontiguousarray(image[:, ::-1])
        landmarks = (landmarks * [-1.0, 1.0] + [config.size, 0.0])[:, MIRROR]
    return DetectionScene(
        augment_photometric(image, config.photometric, rng=rng), landmarks, scene.visible
    )


def _draw_background(
    views: Sequence[StoredView],
    surface: TrainingSurface,
    config: DetectionSceneConfig,
    rng: np.random.Generator,
) -> Bytes:
    """(size, size, 3): one background, or two of them on both sides of a line."""

    def draw() -> Bytes:
        if rng.random() < config.pattern_probability:
            return draw_pattern(config.size, config.pattern, rng=rng)
        view = views[int(rng.integers(len(views)))]
        return make_background(view, surface, config.size, rng=rng, config=config.mosaic)

    first = draw()
    if rng.random() >= config.mosaic.joined_probability:
        return first.copy()
    return join_along_line(first, draw(), config.mosaic, rng=rng)


def _draw_object(image: Bytes, config: DetectionSceneConfig, rng: np.random.Generator) -> None:
    """Blend an ellipse or a rectangle with a pattern into ``image``, more or less sharply."""
    low, high = np.log(config.face)
    long = float(np.exp(rng.uniform(low, high)))
    side = round(1.4 * long) + 4
    shape = _draw_shape(side, long, rng)
    drawn = draw_pattern(side, config.pattern, rng=rng)
    _blend(image, drawn, shape, rng.integers(-side // 2, config.size - side // 2, 2))


def _draw_part(
    image: Bytes,
    view: StoredView,
    vertices: Ints,
    config: DetectionSceneConfig,
    rng: np.random.Generator,
) -> None:
    """Blend an ear, an eye, or another small part of a view's face into ``image``."""
    ear = rng.random() < config.ear_share
    landmark = EARS[int(rng.integers(2))] if ear else int(rng.integers(len(vertices)))
    reach = float(rng.uniform(*config.part_reach)) * max(view.box.width, view.box.height)
    low, high = np.log(config.face)
    long = float(np.exp(rng.uniform(low, high)))
    side = round(1.4 * long) + 4
    linear = long / (2 * reach) * rotation_2d(np.deg2rad(rng.uniform(-40.0, 40.0)))
    place = view.vertex_px[vertices[landmark]].astype(np.float64)
    matrix = np.column_stack([linear, side / 2 - linear @ place])
    source = view.image
    if long < reach:  # nothing aliases
        source = cv2.GaussianBlur(source, (0, 0), 0.4 * 2 * reach / long)
    drawn = cv2.warpAffine(source, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    shape = _draw_shape(side, long, rng)
    _blend(image, drawn, shape, rng.integers(-side // 2, config.size - side // 2, 2))


def _draw_shape(side: int, long: float, rng: np.random.Generator) -> Floats:
    """(side, side) opacity 0..1 of an ellipse or a rectangle ``long`` pixels long, soft or not."""
    sides = long, float(rng.uniform(0.4, 1.0)) * long
    box = ((side / 2, side / 2), sides, float(rng.uniform(0.0, 180.0)))
    shape = np.zeros((side, side), np.float32)
    if rng.random() < 0.6:
        cv2.ellipse(shape, box, (1.0,), -1)
    else:
        cv2.fillConvexPoly(shape, np.rint(cv2.boxPoints(box)).astype(np.int32), (1.0,))
    return np.asarray(cv2.GaussianBlur(shape, (0, 0), float(rng.uniform(0.4, 0.1 * long))))


def _blend(image: Bytes, drawn: Bytes, opacity: Floats, corner: Ints) -> None:
    """Blend (side, side, 3) ``drawn`` into ``image`` from its ``corner`` (x, y) on."""
    side = len(drawn)
    first, last = np.maximum(corner, 0), np.minimum(corner + side, image.shape[1::-1])
    part = image[first[1] : last[1], first[0] : last[0]]
    low, high = first - corner, last - corner
    within = slice(low[1], high[1]), slice(low[0], high[0])
    part[:] = part + opacity[within][..., None] * (drawn[within].astype(np.float32) - part)


def _shade(image: Bytes, config: DetectionSceneConfig, rng: np.random.Generator) -> Bytes:
    """The image with one side of a random line in the shade."""
    angle, size = rng.uniform(0.0, 2.0 * np.pi), config.size
    along = np.arange(size) - rng.uniform(0.2, 0.8, (2, 1)) * size
    away = along[0] * np.cos(angle) + along[1][:, None] * np.sin(angle)
    lit = 0.5 + 0.5 * np.tanh(away / rng.uniform(2.0, 0.5 * size))
    dark = rng.uniform(*config.shadow)
    return np.asarray((image * (dark + (1.0 - dark) * lit)[..., None]).astype(np.uint8))


def _draw_sizes(count: int, config: DetectionSceneConfig, rng: np.random.Generator) -> Floats:
    """(count,) px of the faces, the largest first: it may cover the fewest others."""
    low, high = np.log(config.face)
    low_small, high_small = np.log(config.small)
    sizes = np.where(
        rng.random(count) < config.small_probability,
        rng.uniform(low_small, high_small, count),
        rng.uniform(low, high, count),
    )
    if rng.random() < config.one_size_probability:
        middle = rng.uniform(low, low + 0.6 * (high - low))
        sizes = np.clip(middle + rng.uniform(-0.25, 0.25, count), low, high)
    if count and rng.random() < config.huge_probability:
        beside = sizes[: int(rng.integers(config.most_beside_huge + 1))]
        sizes = np.append(beside, rng.uniform(*np.log(config.huge)))
    return np.asarray(np.exp(np.sort(sizes)[::-1]))


def _draw_placement(
    view: StoredView, size: float, config: DetectionSceneConfig, rng: np.random.Generator
) -> tuple[Floats, bool]:
    """The (2, 3) map from a view's pixels to the scene's, and whether it mirrors."""
    limits, shares = zip(*config.rotations, strict=True)
    limit = float(limits[rng.choice(len(limits), p=shares)])
    scale = size / max(view.box.width, view.box.height)
    linear = scale * rotation_2d(np.deg2rad(rng.uniform(-limit, limit)))
    mirrored = bool(rng.random() < config.mirror_probability)
    if mirrored:
        linear[0] *= -1.0
    # A face larger than the scene shows any of its parts.
    beyond = 0.4 * max(size / config.size - 0.8, 0.0)
    centre = rng.uniform(0.02 - beyond, 0.98 + beyond, 2) * config.size
    return np.column_stack([linear, centre - linear @ view.box.centre]), mirrored


def _head_opacity(
    view: StoredView, faces: int, config: DetectionSceneConfig, rng: np.random.Generator
) -> Bytes:
    """(H, W) opacity 0..255: full on the head, falling to zero within a margin around it."""
    mosaic = config.mosaic
    margin = float(rng.uniform(*mosaic.cutout_margin)) * max(view.box.width, view.box.height)
    distance = cv2.distanceTransform((view.triangle >= faces).astype(np.uint8), cv2.DIST_L2, 3)
    softness = float(rng.uniform(*mosaic.cutout_softness)) * margin
    opacity = np.empty(distance.shape, np.uint8)
    kernels.fade(distance, np.float32(margin), np.float32(softness), opacity)
    return opacity


def _paste(
    image: Bytes, layer: Ints, source: Bytes, opacity: Bytes, matrix: Floats, number: int
) -> None:
    """Blend a view into ``image``, and write its ``number`` into ``layer`` where it is opaque."""
    height, width = source.shape[:2]
    ends = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ matrix[:, :2].T
    ends += matrix[:, 2]
    low = np.maximum(np.floor(ends.min(0)), 0).astype(int)
    high = np.minimum(np.ceil(ends.max(0)), image.shape[1::-1]).astype(int)
    if (high <= low).any():
        return
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    linear = matrix[:, :2]
    if scale < 0.75:  # whole blocks of pixels are averaged first, so that nothing aliases
        target = max(round(width * scale), 1), max(round(height * scale), 1)
        source = cv2.resize(source, target, interpolation=cv2.INTER_AREA)
        opacity = cv2.resize(opacity, target, interpolation=cv2.INTER_AREA)
        linear = linear * (np.array([width, height]) / target)
    # OpenCV counts from pixel centres at 0
    shift = matrix[:, 2] - low + linear.sum(1) * 0.5 - 0.5
    size = tuple((high - low).tolist())
    both = np.concatenate([source, opacity[..., None]], axis=2)
    warped = cv2.warpAffine(both, np.column_stack([linear, shift]), size, flags=cv2.INTER_LINEAR)
    part = image[low[1] : high[1], low[0] : high[0]]
    alpha = warped[..., 3:].astype(np.float32) / 255.0
    # colours beyond the view's edge are black, where the opacity is zero
    part[:] = (part + alpha * (warped[..., :3].astype(np.float32) - part) + 0.5).astype(np.uint8)
    layer[low[1] : high[1], low[0] : high[0]][warped[..., 3] > 127] = number


def _draw_border(config: DetectionSceneConfig, rng: np.random.Generator) -> tuple[slice, slice]:
    first = config.size - int(rng.uniform(*config.border) * config.size)
    part = slice(first, None)
    return (part, slice(None)) if rng.random() < 0.5 else (slice(None), part)


def _visible_share(landmarks: Floats, shown: Array) -> float:
    """Share of the hull of (68, 2) landmarks whose pixels ``shown`` marks; beyond the image: 0."""
    low = np.floor(landmarks.min(0)).astype(int)
    extent = np.ceil(landmarks.max(0)).astype(int) - low + 1
    hull = np.zeros((extent[1], extent[0]), np.uint8)
    points = cv2.convexHull((landmarks - low).astype(np.float32))
    cv2.fillConvexPoly(hull, np.rint(points).astype(np.int32), 1)
    height, width = shown.shape
    first, last = np.maximum(low, 0), np.minimum(low + extent, [width, height])
    if (last <= first).any():
        return 0.0
    inside = hull[first[1] - low[1] : last[1] - low[1], first[0] - low[0] : last[0] - low[0]]
    seen = inside.astype(bool) & shown[first[1] : last[1], first[0] : last[0]]
    return float(seen.sum() / max(int(hull.sum()), 1))
