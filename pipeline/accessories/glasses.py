"""Glasses: two rims, a bridge and temples of thin tubes; dark lenses hide the eyes, clear ones are
left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Floats
from dff.face.model.morphable import MorphableModel
from dff.pipeline.accessories.meshes import Prop, together
from dff.pipeline.accessories.primitives import tubes

AROUND = 20  # vertices along a rim
WRAP = 2.6  # 1 / metres: how the front bends back towards the temples
CLEAR = 0.0035  # metres between the rims and the skin
BEFORE_EYES = 0.006  # metres between the lenses and the eyes, lids and lashes

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Glasses:
    """The shape of a pair of glasses; lengths in metres of an average face, widened with the
    face.
    """

    width: float  # of a lens
    height: float
    square: float  # exponent of its outline: 2 an ellipse, more a rounded rectangle
    # -1 .. 1: aviators hang at the outside's foot (> 0), cat's eyes rise at its top (< 0)
    drop: float
    thickness: float  # of the rims
    upper: bool  # no rim below
    frame: Colour
    lens: Colour | None  # albedo of dark lenses
    slide: float  # metres down the nose


def sample_glasses(*, rng: np.random.Generator, dark: bool) -> Glasses:
    """Glasses as people wear them; ``dark``: sunglasses."""
    kind = rng.choice(["round", "oval", "rectangle", "wayfarer", "aviator", "cat"])
    width, height, square, drop = {
        "round": (0.044, 0.042, 2.0, 0.0),
        "oval": (0.050, 0.032, 2.3, 0.0),
        "rectangle": (0.052, 0.030, 4.5, 0.0),
        "wayfarer": (0.051, 0.039, 3.6, -0.25),
        "aviator": (0.055, 0.048, 2.8, 0.5),
        "cat": (0.052, 0.036, 3.0, -0.6),
    }[str(kind)]
    scale = rng.normal(1.06 if dark else 1.0, 0.05)
    metal = rng.random() < (0.2 if kind in ("wayfarer", "cat") else 0.5)
    thin = rng.uniform(0.0006, 0.0010) if metal else rng.uniform(0.0012, 0.0024)
    palette = (
        ((0.45, 0.44, 0.43), (0.55, 0.45, 0.25), (0.15, 0.15, 0.16))
        if metal
        else (
            (0.05, 0.05, 0.05),
            (0.05, 0.05, 0.05),
            (0.22, 0.12, 0.07),
            (0.35, 0.08, 0.08),
            (0.10, 0.13, 0.25),
        )
    )
    colour = np.clip(
        np.array(palette[int(rng.integers(len(palette)))]) * rng.uniform(0.8, 1.2), 0.0, 1.0
    )
    tint = np.array([0.055, 0.05, 0.05]) * rng.uniform(0.4, 2.2) + rng.uniform(0.0, 0.05, 3) * (
        rng.random() < 0.4
    )
    return Glasses(
        width=float(width * scale),
        height=float(height * scale * rng.normal(1.0, 0.06)),
        square=square,
        drop=float(drop * rng.uniform(0.6, 1.2)),
        thickness=float(thin),
        upper=bool(not dark and rng.random() < 0.15),
        frame=(float(colour[0]), float(colour[1]), float(colour[2])),
        lens=(float(tint[0]), float(tint[1]), float(tint[2])) if dark else None,
        slide=float(max(rng.normal(0.0, 0.003), -0.002)),
    )


def glasses_of(glasses: Glasses, model: MorphableModel, neutral: Floats) -> Prop:
    """The mesh on a face: the front clears the skin and the eyes, the temples reach the ears."""
    marks = neutral[model.landmarks.vertex]
    eyes = np.stack([marks[36:42].mean(0), marks[42:48].mean(0)])
    apart = float(eyes[1, 0] - eyes[0, 0])
    size = float(np.clip(apart / 0.061, 0.85, 1.15))
    half_width, half_height = 0.5 * glasses.width * size, 0.5 * glasses.height * size
    gap = max(apart / 2.0, half_width + 0.006)
    height = float(eyes[:, 1].mean()) - glasses.slide - 0.12 * half_height
    angle = np.linspace(0.0, 2.0 * np.pi, AROUND, endpoint=False)
    power = 2.0 / glasses.square
    x = half_width * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
    y = half_height * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power
    outer = np.clip(x / half_width, 0.0, 1.0)
    y = y - glasses.drop * half_height * 0.5 * outer * np.where(glasses.drop > 0, y < 0, y > 0)
    y = np.where((y < 0) & (x < 0), y * (1.0 - 0.18 * np.abs(x) / half_width), y)
    front = _front(model, neutral, marks, gap, half_width, half_height, height)

    def placed(across: Floats, up: Floats) -> Floats:
        return np.stack([across, height + up, front - WRAP * across**2], axis=-1)

    rims = np.stack([placed(side * (gap + x), y) for side in (-1.0, 1.0)])
    thick = np.full(rims.shape[:2], glasses.thickness)
    if glasses.upper:
        thick = np.where(np.stack([y, y]) < -0.2 * half_height, 0.25 * glasses.thickness, thick)
    parts = [tubes(rims, thick, glasses.frame, sides=5, loop=True)]
    share = np.linspace(-1.0, 1.0, 5)
    bridge = placed(share * (gap - half_width), half_height * (0.30 + 0.18 * (1.0 - share**2)))
    parts.append(
        tubes(bridge[None], np.full((1, 5), 1.1 * glasses.thickness), glasses.frame, sides=5)
    )
    parts.append(_temples(glasses, model, neutral, gap + half_width, half_height, height, front))
    if glasses.lens is not None:
        parts += [_lens(rim, np.array(glasses.lens)) for rim in rims]
    return together(parts)


def _front(
    model: MorphableModel,
    neutral: Floats,
    marks: Floats,
    gap: float,
    width: float,
    height: float,
    level: float,
) -> float:
    """z of the front in the middle of the face, so that rims and lenses clear what lies behind
    them.
    """
    v = neutral
    across = np.abs(v[:, 0])
    behind = (
        (across > gap - 1.0 * width)
        & (across < gap + 1.05 * width)
        & (np.abs(v[:, 1] - level) < 1.1 * height)
    )
    behind &= v[:, 2] > marks[36:48, 2].min() - 0.03
    # The inner rim may touch the side of the nose, as pads do.
    skin = behind & (across > gap - 0.75 * width)
    out = (
        float((v[skin, 2] + WRAP * v[skin, 0] ** 2).max()) + CLEAR
        if skin.any()
        else float(marks[27, 2])
    )
    if {"eyes", "lashes"} & set(model.region_names):
        names = [n for n in ("eyes", "lashes") if n in model.region_names]
        rows = np.unique(model.faces[model.triangles_of(*names)])
        near = v[rows]
        if len(near):
            out = max(out, float((near[:, 2] + WRAP * near[:, 0] ** 2).max()) + BEFORE_EYES)
    return out


def _temples(
    glasses: Glasses,
    model: MorphableModel,
    neutral: Floats,
    edge: float,
    tall: float,
    level: float,
    front: float,
) -> Prop:
    named = model.triangles_of(*({"ears"} & set(model.region_names)))
    if len(named):
        ears = neutral[np.unique(model.faces[named])]
        root = ears[np.abs(ears[:, 0]) < np.quantile(np.abs(ears[:, 0]), 0.5)]
        top, far = float(np.quantile(root[:, 1], 0.97)) + 0.001, float(np.quantile(root[:, 2], 0.6))
        breadth = float(np.quantile(np.abs(ears[:, 0]), 0.25)) + 0.003
    else:
        jaw = neutral[model.landmarks.vertex[[0, 16]]]
        top, far, breadth = (
            float(jaw[:, 1].mean()) + 0.01,
            float(jaw[:, 2].mean()) - 0.02,
            float(jaw[1, 0]) + 0.003,
        )
    hinge = np.array([edge, level + 0.35 * tall, front - WRAP * edge**2])
    # Between hinge and ear a temple passes outside of the widest point of the head there.
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


def _lens(rim: Floats, colour: Floats) -> Prop:
    """A fan over a rim, a little arched; lighter at the top, where it mirrors the sky."""
    middle = rim.mean(0) + np.array([0.0, 0.0, 0.0015])
    vertices = np.concatenate([rim, middle[None]])
    i = np.arange(len(rim))
    j = (i + 1) % len(rim)
    faces = np.stack([np.full(len(rim), len(rim)), i, j], axis=1)
    a, b = rim[0] - middle, rim[1] - middle
    if np.cross(a, b)[2] < 0:
        faces = faces[:, ::-1]
    up = (vertices[:, 1] - middle[1]) / max(float(np.ptp(rim[:, 1])), 1e-6)
    return Prop.plain(
        vertices, faces, np.clip(colour * (1.0 + 1.2 * up[:, None]) + 0.10 * up[:, None], 0.0, 1.0)
    )
