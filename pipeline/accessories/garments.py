"""Clothes as meshes: shoulders and chest, hats, caps, headscarves, hoods, masks and cloths."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dff.face.arrays import Floats
from dff.face.model.landmarks import CHIN, INDEX, NOSE_BASE
from dff.face.model.morphable import MorphableModel
from dff.pipeline.accessories.config import Colour, read_config
from dff.pipeline.accessories.head_map import HeadMap, angles_from_direction, direction_from_angles
from dff.pipeline.accessories.meshes import AccessoryMesh, merge_meshes
from dff.pipeline.accessories.primitives import normalize, sheet, slerp, tubes

HATS = ("beanie", "cap", "brim", "headscarf", "hood")
CUTS = ("plain", "open", "shirt", "stripes", "turtleneck")


@dataclass(frozen=True)
class BodyShape:
    """The shape of shoulders and chest; see ``data/garments.toml``."""

    around: int  # columns of the mesh
    collar: float  # metres from the skin to the cloth
    # metres below the neck's rim, half breadth and half depth, of an average body
    rows: tuple[tuple[float, float, float], ...]


BODY = read_config(BodyShape, "garments.toml", "body")


@dataclass(frozen=True)
class Hat:
    """A hat, cap, headscarf or hood. Raises ValueError for a kind that is none of HATS."""

    kind: str
    colour: Colour  # albedo
    second: Colour  # of brims, bands and ribs
    low: float  # radians by which it is pulled down
    tall: float  # metres above the head
    reach: float  # metres, of a brim or visor
    seed: int  # of its folds

    def __post_init__(self) -> None:
        if self.kind not in HATS:
            raise ValueError(f"Hat.kind must be one of {HATS}, got {self.kind!r}")


@dataclass(frozen=True)
class FaceCover:
    """A mask or cloth over mouth and nose."""

    colour: Colour  # albedo
    top: float  # 0: below the nose; 1: at its bridge
    around: float  # radians to each side; more than 2: tied at the back of the head
    low: float  # radians below the chin
    loops: bool  # over the ears
    seed: int  # of its folds


def build_body(
    rim: Floats,
    collar: Floats,
    *,
    colour: Colour,
    second: Colour,
    cut: str,
    breadth: float,
    shape: BodyShape = BODY,
) -> AccessoryMesh:
    """Shoulders and chest below a neck.

    ``rim`` are (R, 3) points of the neck's lower border, and ``collar`` the same raised to where
    clothes end; ``breadth`` is that of the shoulders over the average. Raises ValueError for a
    ``cut`` that is none of CUTS.
    """
    if cut not in CUTS:
        raise ValueError(f"cut must be one of {CUTS}, got {cut!r}")
    middle = (rim.max(0) + rim.min(0)) / 2.0
    around = shape.around
    angle = np.linspace(-np.pi, np.pi, around, endpoint=False)
    away = collar - middle
    azimuth, radius = np.arctan2(away[:, 0], away[:, 2]), np.hypot(away[:, 0], away[:, 2])
    order = np.argsort(azimuth)
    period = 2.0 * np.pi
    reach = np.interp(angle, azimuth[order], radius[order], period=period) + shape.collar
    top = np.interp(angle, azimuth[order], collar[order, 1], period=period)
    # The neck's border is ragged; the collar is smooth and never below it.
    for _ in range(2):
        reach = np.maximum(reach, (np.roll(reach, 1) + np.roll(reach, -1)) / 2.0)
        top = np.maximum(top, (np.roll(top, 1) + np.roll(top, -1)) / 2.0)
    raised = 0.030 if cut == "turtleneck" else 0.0
    unit = np.stack([np.sin(angle), np.zeros(around), np.cos(angle)], axis=1)
    level = np.array([0.0, 1.0, 0.0])
    ring = middle * [1.0, 0.0, 1.0] + unit * reach[:, None] + level * top[:, None]
    rows = [ring - unit * 0.006 - level * 0.004]
    if raised:
        rows.append(ring - unit * 0.007 + level * raised)
        rows.append(ring - unit * 0.001 + level * raised)
    rows.append(ring + level * 0.002)
    for drop, broad, deep in shape.rows:
        wide = np.stack(
            [broad * breadth * np.sin(angle), np.zeros(around), deep * np.cos(angle)], axis=1
        )
        share = np.clip(drop / 0.042, 0.0, 1.0)
        height = (1.0 - share) * (top - drop) + share * (middle[1] - drop)
        flat = np.maximum(np.hypot(wide[:, 0], wide[:, 2]), (reach + 0.3 * drop) * (1.0 - share))
        rows.append(
            middle * [1.0, 0.0, 1.0] + normalize(wide) * flat[:, None] + level * height[:, None]
            + np.array([0.0, 0.0, -0.012 * share])
        )  # fmt: skip
    points = np.stack(rows)
    shade = np.broadcast_to(np.array(colour), points.shape).copy()
    if cut == "stripes":
        shade[(len(rows) - len(shape.rows)) :: 2] = second
    if cut in ("open", "shirt"):
        below = np.clip(top[None] - points[..., 1], 0.0, 0.3)
        inner = np.abs(angle)[None] < (1.0 if cut == "open" else 0.16) * np.exp(-below / 0.10)
        shade[inner] = second
    shade[0] *= 0.6
    parts = [sheet(points, shade, closed=True)]
    if cut in ("shirt", "open"):
        parts.append(
            _build_collar(ring, unit, angle, np.array(colour) * (1.0 if cut == "shirt" else 0.8))
        )
    return merge_meshes(parts)


def _build_collar(ring: Floats, unit: Floats, angle: Floats, colour: Floats) -> AccessoryMesh:
    """A folded collar, open at the throat."""
    kept = np.abs(angle) > 0.25
    order = np.argsort(np.where(angle > 0, angle, angle + 2.0 * np.pi)[kept])
    base, out = ring[kept][order], unit[kept][order]
    spread = np.exp(-((np.abs(angle[kept][order]) - 0.3) ** 2) / 0.15)[:, None]
    up, down = np.array([0.0, 0.010, 0.0]), np.array([0.0, -0.026, 0.0])
    rows = np.stack(
        [base, base + up + 0.002 * out, base + down * (1.0 + 0.4 * spread) + out * 0.018]
    )
    return sheet(rows, np.clip(colour * 1.06, 0.0, 1.0))


def build_hat(hat: Hat, head_map: HeadMap, brows: float, ears: Floats) -> AccessoryMesh:
    """The mesh of a hat on a head, whose (N, 3) ``ears`` are vertices in metres, head.

    ``brows`` is the polar angle of the brows, in radians from the top.
    """
    if hat.kind in ("headscarf", "hood"):
        return _build_headscarf(hat, head_map, brows)
    rng = np.random.default_rng(hat.seed)
    columns, rows = 32, 9
    azimuth = np.linspace(-np.pi, np.pi, columns, endpoint=False)
    front = brows - 0.30 + hat.low
    ear = 1.35 if len(ears) == 0 else float(angles_from_direction(ears - head_map.middle)[1].min())
    side, back = ear - 0.02 + hat.low, 1.62 + hat.low
    if hat.kind == "beanie":
        side, back = ear + 0.22 + hat.low, 1.85
    turn = np.cos(azimuth)
    rim = np.where(turn > 0, side + (front - side) * turn**2, side + (back - side) * turn**2)
    share = np.linspace(0.02, 1.0, rows)[:, None]
    polar = rim * share
    height = 0.006 + hat.tall * np.cos(0.5 * np.pi * share) ** 0.6 + 0.0 * polar
    if hat.kind == "brim":
        height = 0.008 + hat.tall * np.clip(1.0 - share**4, 0.0, 1.0) + 0.0 * polar
    if hat.kind == "beanie":
        height = height + 0.0012 * np.cos(np.arange(columns) * np.pi) + 0.006 * (share > 0.78)
        height = height + 0.004 * np.sin(2.0 * azimuth + rng.uniform(0, 6)) * (1.0 - share)
    place = head_map.at(np.broadcast_to(azimuth, polar.shape), polar)
    points = place + normalize(place - head_map.middle) * height[..., None]
    shade = np.broadcast_to(np.array(hat.colour), points.shape).copy()
    shade *= 1.0 + 0.08 * rng.standard_normal(columns)[None, :, None] * (hat.kind == "beanie")
    if hat.kind == "beanie":
        shade[share[:, 0] > 0.78] = np.array(hat.second)
    if hat.kind == "brim":
        shade[-2:] = np.array(hat.second) * 0.7
    inner = (
        points[-1:] - normalize(points[-1:] - head_map.middle) * (height[-1:] - 0.001)[..., None]
    )
    shell = sheet(
        np.concatenate([points, inner]), np.concatenate([shade, shade[-1:] * 0.5]), closed=True
    )
    grain = np.stack(
        [np.tile(azimuth * 2.0, rows + 1), np.repeat(np.arange(rows + 1.0), columns) / 3.0], axis=1
    )
    strong = np.full((len(grain), 1), 0.10 if hat.kind == "beanie" else 0.03)
    parts = [replace(shell, grain=np.concatenate([grain, strong], axis=1))]
    if hat.kind == "cap":
        parts.append(_build_visor(hat, head_map, points[-1], azimuth))
    if hat.kind == "brim":
        parts.append(_build_brim(hat, points[-1], rng))
    return merge_meshes(parts)


def _build_visor(hat: Hat, head_map: HeadMap, rim: Floats, azimuth: Floats) -> AccessoryMesh:
    edge = rim[np.abs(azimuth) < 1.05]
    across = np.linspace(-1.0, 1.0, len(edge))
    levels = np.linspace(0.0, 1.0, 5)[:, None]
    reach = hat.reach * np.sqrt(np.clip(1.0 - across**2, 0.0, 1.0))
    out = edge[None] + np.stack(
        [
            0.004 * across * levels,
            (-0.014 * (0.6 + levels) - 0.016 * across**2) * levels * reach / hat.reach,
            reach * levels,
        ],
        axis=-1,
    )
    shade = np.broadcast_to(np.array(hat.second), out.shape)
    top = sheet(out, shade)
    under = sheet(out[:, ::-1] - [0.0, 0.0022, 0.0], 0.55 * shade)
    return merge_meshes([top, under])


def _build_brim(hat: Hat, rim: Floats, rng: np.random.Generator) -> AccessoryMesh:
    away = (rim - rim.mean(0)) * [1.0, 0.0, 1.0]
    angle = np.arctan2(away[:, 0], away[:, 2])
    wave = 0.25 * np.sin(2.0 * angle + rng.uniform(0, 6.3))
    level = np.linspace(0.0, 1.0, 4)[:, None, None]
    out = rim[None] + normalize(away)[None] * hat.reach * level
    out = out + np.array([0.0, 1.0, 0.0]) * (hat.reach * level * (wave[None, :, None] - 0.28))
    shade = np.broadcast_to(np.array(hat.colour), out.shape)
    return merge_meshes(
        [
            sheet(out, shade, closed=True),
            sheet(out[:, ::-1] - [0.0, 0.0025, 0.0], 0.6 * shade, closed=True),
        ]
    )


def _build_headscarf(hat: Hat, head_map: HeadMap, brows: float) -> AccessoryMesh:
    """Cloth around the face that falls to the shoulders. A hood is wider and shows the hair."""
    rng = np.random.default_rng(hat.seed)
    columns = 28
    # 0 is up, as seen from in front of the face.
    angle = np.linspace(-np.pi, np.pi, columns, endpoint=False)
    up = (1.0 + np.cos(angle)) / 2.0
    hood = hat.kind == "hood"
    # Angles from straight ahead: at the forehead, at the temples, under the chin.
    ahead = np.pi / 2.0 - brows
    top, side, low = ahead + 0.30 - hat.low, 1.24 if not hood else 1.40, 1.30 if not hood else 1.45
    ends = np.where(up > 0.5, top, low)
    open_at = 1.0 / np.sqrt((np.cos(angle) / ends) ** 2 + (np.sin(angle) / side) ** 2)
    begin = np.stack(
        [np.sin(open_at) * np.sin(angle), np.sin(open_at) * np.cos(angle), np.cos(open_at)], axis=1
    )  # fmt: skip
    end = direction_from_angles(
        np.sign(angle + 1e-9) * (np.pi - np.abs(angle)), 1.72 + 1.13 * (1.0 - up)
    )
    levels = np.linspace(0.0, 1.0, 8)[:, None]
    # Over the head, not by the shortest path around it.
    over = np.stack([np.sin(angle), np.cos(angle) + 0.15, -0.25 + 0.45 * (1.0 - up)], axis=1)
    first, last = (
        np.clip(2.0 * levels, 0.0, 1.0)[..., None],
        np.clip(2.0 * levels - 1.0, 0.0, 1.0)[..., None],
    )
    path = slerp(slerp(begin, over, first), end, last)
    at, polar = angles_from_direction(path)
    place = head_map.at(at, polar)
    folds = 0.0025 * np.sin(5.0 * angle + rng.uniform(0, 6.3)) * levels
    beside = np.exp(-(((np.abs(at) - 1.75) / 0.6) ** 2) - ((polar - 1.6) / 0.6) ** 2)
    height = (
        (0.026 if hood else 0.006)
        + hat.tall * 0.3 * np.sin(np.pi * levels)
        + folds
        + 0.022 * beside
    )
    points = place + normalize(place - head_map.middle) * height[..., None]
    edge = points[:1] - normalize(place[:1] - head_map.middle) * (height[:1] - 0.002)[..., None]
    if hood:
        edge = points[:1] - normalize(place[:1] - head_map.middle) * 0.008 - [0.0, 0.0, 0.012]
    away = normalize((points[-1] - head_map.middle) * [1.0, 0.0, 1.0])
    drape = np.stack(
        [
            points[-1]
            + away * wide
            + np.array([0.0, -drop, 0.0])
            + away * (folds[-1] * 3.0)[:, None]
            for drop, wide in ((0.030, 0.012), (0.065, 0.045), (0.100, 0.085))
        ]
    )
    every = np.concatenate([edge, points, drape])
    shade = np.broadcast_to(np.array(hat.colour), every.shape) * (
        1.0 + 0.10 * np.sin(7.0 * angle + np.arange(len(every))[:, None])[..., None]
    )
    shade = np.clip(shade, 0.0, 1.0)
    shade[0] *= 0.5
    return _orient_outward(sheet(every, shade, closed=True), head_map.middle)


def _orient_outward(mesh: AccessoryMesh, middle: Floats) -> AccessoryMesh:
    """The mesh, reversed if most of its triangles face ``middle``."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    out = (np.cross(b - a, c - a) * (a - middle)).sum()
    return mesh if out >= 0 else replace(mesh, faces=mesh.faces[:, ::-1])


def build_cover(
    cover: FaceCover, head_map: HeadMap, model: MorphableModel, neutral: Floats
) -> AccessoryMesh:
    """The mesh of a mask or cloth on a face of (V, 3) ``neutral``; it moves with the jaw."""
    rng = np.random.default_rng(cover.seed)
    marks = neutral[model.landmarks.vertex] - head_map.middle
    polar = angles_from_direction(marks)[1]
    bridge, chin = polar[INDEX["nose_bridge_2"]], polar[CHIN]
    nose = bridge + (1.0 - cover.top) * (polar[NOSE_BASE] - bridge)
    upper_jaw, lower_jaw = polar[INDEX["jaw_right_6"]], polar[INDEX["jaw_right_4"]]
    columns, rows = 18, 9
    across = np.linspace(-1.0, 1.0, columns)
    azimuth = np.broadcast_to(across * cover.around, (rows, columns))
    share = np.linspace(0.0, 1.0, rows)[:, None]
    spread = np.clip(np.abs(azimuth[0]) / 1.05, 0.0, 1.0)
    high = nose + (upper_jaw - 0.12 - nose) * spread**1.2
    low = (
        chin
        + cover.low
        + (lower_jaw - chin - cover.low) * (spread**2 if cover.around < 2.0 else 0.0)
    )
    at = high + (low - high) * share
    place = head_map.at(azimuth, at)
    out = place - head_map.middle
    radius = np.linalg.norm(out, axis=2)
    # Cloth is stretched over nose and chin and bridges the hollows between them.
    tight = radius.copy()
    for _ in range(6):
        padded = np.pad(tight, 1, mode="edge")
        tight = np.maximum(
            tight,
            np.maximum(
                (padded[1:-1, :-2] + padded[1:-1, 2:]) / 2.0,
                (padded[:-2, 1:-1] + padded[2:, 1:-1]) / 2.0,
            ),
        )
    pleats = 0.0010 * np.sin(np.arange(rows) * np.pi + rng.uniform(0, 1))[:, None] * (cover.loops)
    height = (
        0.0070
        + 0.006 * np.sin(np.pi * share) * np.exp(-((azimuth / 0.7) ** 2))
        + pleats
        - 0.003 * np.maximum(spread - 0.8, 0.0)
    )
    points = head_map.middle + out / radius[..., None] * (tight + height)[..., None]
    shade = np.array(cover.colour) * (
        1.0 + 0.05 * np.cos(np.arange(rows) * np.pi)[:, None, None] * cover.loops
    )
    shade = np.clip(np.broadcast_to(shade, points.shape), 0.0, 1.0)
    main = sheet(points, shade).following(head_map.vertex(azimuth, at).ravel(), np.array(0.85))
    if not cover.loops:
        return main
    loops = []
    for side, column in ((-1.0, 0), (1.0, columns - 1)):
        for row in (0, rows - 1):
            start = points[row, column]
            reach = np.linspace(0.0, 1.0, 5)
            turn = side * (cover.around + (1.86 - cover.around) * reach)
            level = at[row, column] + ((1.50 if row == 0 else 1.80) - at[row, column]) * reach
            path = head_map.at(turn, level)
            path = (
                path
                + normalize(path - head_map.middle)
                * (0.003 + 0.004 * np.sin(np.pi * reach))[:, None]
            )
            path[0] = start
            loops.append(path)
    cords = tubes(
        np.stack(loops),
        np.full((4, 5), 0.0011),
        np.clip(np.array(cover.colour) * 1.1, 0, 1),
        sides=4,
    )
    return merge_meshes([main, cords])
