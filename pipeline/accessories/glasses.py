"""Glasses: rims, a bridge and temples of thin tubes. Only dark lenses have a mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Floats
from dff.face.model.landmarks import EYES, JAW_ENDS, LEFT_EYE, NOSE_ROOT, RIGHT_EYE
from dff.face.model.morphable import MorphableModel
from dff.pipeline.accessories.config import Colour, Range, read_config
from dff.pipeline.accessories.meshes import AccessoryMesh, merge_meshes
from dff.pipeline.accessories.primitives import tubes


@dataclass(frozen=True)
class GlassesShape:
    """The shape of a kind of glasses; see ``Glasses``."""

    width: float
    height: float
    square: float
    drop: float


@dataclass(frozen=True)
class GlassesPrior:
    """How glasses are drawn; see ``data/glasses.toml``."""

    shapes: dict[str, GlassesShape]
    dark_scale: float
    scale_deviation: float
    metal_share: float
    metal_share_plastic: float
    plastic_shapes: tuple[str, ...]
    metal_thickness: Range
    plastic_thickness: Range
    metal_colours: tuple[Colour, ...]
    plastic_colours: tuple[Colour, ...]
    colour_level: Range
    lens_colour: Colour
    lens_level: Range
    tint: Range
    tint_share: float
    height_deviation: float
    drop_level: Range
    upper_share: float
    slide_deviation: float
    slide_minimum: float


@dataclass(frozen=True)
class GlassesFit:
    """How glasses sit on a face; see ``data/glasses.toml``."""

    around: int  # vertices along a rim
    wrap: float  # 1 / metres
    skin_gap: float  # metres
    eye_gap: float  # metres


FIT = read_config(GlassesFit, "glasses.toml", "fit")


@dataclass(frozen=True)
class Glasses:
    """The shape of a pair of glasses. Lengths are metres on an average face and grow with it."""

    width: float  # of a lens
    height: float
    square: float  # exponent of the outline: 2 for an ellipse, more for a rounded rectangle
    # -1 to 1: above 0 the outline hangs at its lower outer end (aviators), below 0 it rises at its
    # upper outer end (cat eyes)
    drop: float
    thickness: float  # of the rims
    upper: bool  # no rim below
    frame: Colour
    lens: Colour | None  # albedo of dark lenses
    slide: float  # metres down the nose


def sample_glasses(*, rng: np.random.Generator, dark: bool, prior: GlassesPrior) -> Glasses:
    """Draw glasses; ``dark``: sunglasses."""
    kind = str(rng.choice(list(prior.shapes)))
    shape = prior.shapes[kind]
    scale = rng.normal(prior.dark_scale if dark else 1.0, prior.scale_deviation)
    plastic = kind in prior.plastic_shapes
    metal = rng.random() < (prior.metal_share_plastic if plastic else prior.metal_share)
    thickness = rng.uniform(*(prior.metal_thickness if metal else prior.plastic_thickness))
    palette = prior.metal_colours if metal else prior.plastic_colours
    frame = np.array(palette[int(rng.integers(len(palette)))]) * rng.uniform(*prior.colour_level)
    frame = np.clip(frame, 0.0, 1.0)
    lens = np.array(prior.lens_colour) * rng.uniform(*prior.lens_level)
    lens = lens + rng.uniform(*prior.tint, 3) * (rng.random() < prior.tint_share)
    return Glasses(
        width=float(shape.width * scale),
        height=float(shape.height * scale * rng.normal(1.0, prior.height_deviation)),
        square=shape.square,
        drop=float(shape.drop * rng.uniform(*prior.drop_level)),
        thickness=float(thickness),
        upper=bool(not dark and rng.random() < prior.upper_share),
        frame=(float(frame[0]), float(frame[1]), float(frame[2])),
        lens=(float(lens[0]), float(lens[1]), float(lens[2])) if dark else None,
        slide=float(max(rng.normal(0.0, prior.slide_deviation), prior.slide_minimum)),
    )


def build_glasses(
    glasses: Glasses, model: MorphableModel, neutral: Floats, *, fit: GlassesFit = FIT
) -> AccessoryMesh:
    """The mesh on a face of (V, 3) ``neutral``; its temples reach the ears."""
    marks = neutral[model.landmarks.vertex]
    eyes = np.stack([marks[RIGHT_EYE].mean(0), marks[LEFT_EYE].mean(0)])
    apart = float(eyes[1, 0] - eyes[0, 0])
    size = float(np.clip(apart / 0.061, 0.85, 1.15))
    half_width, half_height = 0.5 * glasses.width * size, 0.5 * glasses.height * size
    gap = max(apart / 2.0, half_width + 0.006)
    height = float(eyes[:, 1].mean()) - glasses.slide - 0.12 * half_height
    angle = np.linspace(0.0, 2.0 * np.pi, fit.around, endpoint=False)
    power = 2.0 / glasses.square
    x = half_width * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
    y = half_height * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power
    outer = np.clip(x / half_width, 0.0, 1.0)
    y = y - glasses.drop * half_height * 0.5 * outer * np.where(glasses.drop > 0, y < 0, y > 0)
    y = np.where((y < 0) & (x < 0), y * (1.0 - 0.18 * np.abs(x) / half_width), y)
    front = _find_front(fit, model, neutral, marks, gap, half_width, half_height, height)

    def place(across: Floats, up: Floats) -> Floats:
        return np.stack([across, height + up, front - fit.wrap * across**2], axis=-1)

    rims = np.stack([place(side * (gap + x), y) for side in (-1.0, 1.0)])
    thick = np.full(rims.shape[:2], glasses.thickness)
    if glasses.upper:
        thick = np.where(np.stack([y, y]) < -0.2 * half_height, 0.25 * glasses.thickness, thick)
    parts = [tubes(rims, thick, glasses.frame, sides=5, loop=True)]
    share = np.linspace(-1.0, 1.0, 5)
    bridge = place(share * (gap - half_width), half_height * (0.30 + 0.18 * (1.0 - share**2)))
    parts.append(
        tubes(bridge[None], np.full((1, 5), 1.1 * glasses.thickness), glasses.frame, sides=5)
    )
    parts.append(
        _build_temples(fit, glasses, model, neutral, gap + half_width, half_height, height, front)
    )
    if glasses.lens is not None:
        parts += [_build_lens(rim, np.array(glasses.lens)) for rim in rims]
    return merge_meshes(parts)


def _find_front(
    fit: GlassesFit,
    model: MorphableModel,
    neutral: Floats,
    marks: Floats,
    gap: float,
    width: float,
    height: float,
    level: float,
) -> float:
    """z of the front in the middle of the face, so that rims and lenses clear skin and eyes."""
    v = neutral
    across = np.abs(v[:, 0])
    behind = (
        (across > gap - 1.0 * width)
        & (across < gap + 1.05 * width)
        & (np.abs(v[:, 1] - level) < 1.1 * height)
    )
    behind &= v[:, 2] > marks[EYES, 2].min() - 0.03
    # The inner rim may touch the side of the nose, as the pads of glasses do.
    skin = behind & (across > gap - 0.75 * width)
    out = (
        float((v[skin, 2] + fit.wrap * v[skin, 0] ** 2).max()) + fit.skin_gap
        if skin.any()
        else float(marks[NOSE_ROOT, 2])
    )
    if {"eyes", "lashes"} & set(model.region_names):
        names = [n for n in ("eyes", "lashes") if n in model.region_names]
        rows = np.unique(model.faces[model.find_triangles(*names)])
        near = v[rows]
        if len(near):
            out = max(out, float((near[:, 2] + fit.wrap * near[:, 0] ** 2).max()) + fit.eye_gap)
    return out


def _build_temples(
    fit: GlassesFit,
    glasses: Glasses,
    model: MorphableModel,
    neutral: Floats,
    edge: float,
    tall: float,
    level: float,
    front: float,
) -> AccessoryMesh:
    named = model.find_triangles(*({"ears"} & set(model.region_names)))
    if len(named):
        ears = neutral[np.unique(model.faces[named])]
        root = ears[np.abs(ears[:, 0]) < np.quantile(np.abs(ears[:, 0]), 0.5)]
        top, far = float(np.quantile(root[:, 1], 0.97)) + 0.001, float(np.quantile(root[:, 2], 0.6))
        breadth = float(np.quantile(np.abs(ears[:, 0]), 0.25)) + 0.003
    else:
        jaw = neutral[model.landmarks.vertex[list(JAW_ENDS)]]
        top, far, breadth = (
            float(jaw[:, 1].mean()) + 0.01,
            float(jaw[:, 2].mean()) - 0.02,
            float(jaw[1, 0]) + 0.003,
        )
    hinge = np.array([edge, level + 0.35 * tall, front - fit.wrap * edge**2])
    # Between hinge and ear a temple passes outside the widest point of the head.
    between = (
        (neutral[:, 2] < hinge[2]) & (neutral[:, 2] > far) & (np.abs(neutral[:, 1] - top) < 0.008)
    )
    side = np.abs(neutral[between, 0])
    wide = float(np.quantile(side, 0.98)) + 0.0025 if between.any() else breadth
    wide = min(max(wide, breadth, edge), max(edge, breadth) + 0.012)
    path = np.array(
        [
            hinge + np.array([0.0, 0.0, 0.001]),
            [max(edge + 0.002, 0.6 * wide + 0.4 * edge), hinge[1], hinge[2] - 0.006],
            [wide, 0.7 * hinge[1] + 0.3 * top, hinge[2] + 0.35 * (far - hinge[2])],
            [wide, 0.3 * hinge[1] + 0.7 * top, hinge[2] + 0.70 * (far - hinge[2])],
            [breadth, top, far],
            [breadth - 0.002, top - 0.006, far - 0.010],
            [breadth - 0.005, top - 0.024, far - 0.014],
        ]
    )
    paths = np.stack([path * [-1.0, 1.0, 1.0], path])
    tall_side = (
        np.array([1.9, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8]) if glasses.thickness > 0.001 else np.ones(7)
    )
    radii = np.stack([0.7 * np.ones(7), tall_side], axis=1)[None] * glasses.thickness
    return tubes(paths, np.repeat(radii[..., ::-1], 2, axis=0), glasses.frame, sides=5)


def _build_lens(rim: Floats, colour: Floats) -> AccessoryMesh:
    """A slightly arched fan over a rim; lighter at the top, where it reflects the sky."""
    middle = rim.mean(0) + np.array([0.0, 0.0, 0.0015])
    vertices = np.concatenate([rim, middle[None]])
    i = np.arange(len(rim))
    j = (i + 1) % len(rim)
    faces = np.stack([np.full(len(rim), len(rim)), i, j], axis=1)
    a, b = rim[0] - middle, rim[1] - middle
    if np.cross(a, b)[2] < 0:
        faces = faces[:, ::-1]
    up = (vertices[:, 1] - middle[1]) / max(float(np.ptp(rim[:, 1])), 1e-6)
    return AccessoryMesh.plain(
        vertices, faces, np.clip(colour * (1.0 + 1.2 * up[:, None]) + 0.10 * up[:, None], 0.0, 1.0)
    )
