"""Hair as meshes: sheets from a parting over the head, and locks that break their outline.

A strand is a curve ``(side, u, t)``: ``u`` runs along the hairline from the temple (0) to the nape
(1), ``t`` from the parting (0) to the tips (1). A curve follows the head at some height and then
falls. Sheets and locks lie on the same curves, so they fit each other on every head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dff.face.arrays import Floats, Ints
from dff.pipeline.accessories.config import Colour, read_config
from dff.pipeline.accessories.head_map import HeadMap, angles_from_direction, direction_from_angles
from dff.pipeline.accessories.meshes import AccessoryMesh, merge_meshes
from dff.pipeline.accessories.primitives import ball, grid, normalize, slerp

TIES = ("", "tail", "bun", "plaits")


@dataclass(frozen=True)
class HairMesh:
    """The resolution of the meshes of hair; see ``data/hair.toml``."""

    columns: int
    levels: int
    locks: int
    lock_levels: int
    fringe_columns: int
    fringe_levels: int
    fringe_locks: int
    tile: float  # metres
    temple: float  # radians
    ragged: float


MESH = read_config(HairMesh, "hair.toml", "mesh")


@dataclass(frozen=True)
class Hair:
    """The parameters of a hair style. Raises ValueError for a tie that is none of TIES."""

    colour: Colour  # albedo
    tips: Colour  # albedo at the tips
    volume: float  # metres from the scalp
    part: float  # where the hair is parted, from -1 (right) to 1 (left)
    whorl: float  # how far back the parting reaches, from -1 to 1
    fringe: float  # 0: brushed back; 1: down to the brows; more: over the eyes
    sweep: float  # radians by which the fringe is swept to the side
    cover: float  # 0: behind the ears; 1: over them
    length: float  # metres that it falls below the ears
    front: float  # 0: all falls behind the shoulders; 1: in front of them
    curl: float  # from 0 (straight) to 1 (curly)
    tie: str  # one of TIES
    seed: int  # of locks and streaks

    def __post_init__(self) -> None:
        if self.tie not in TIES:
            raise ValueError(f"hair is tied in one of {TIES}, got {self.tie!r}")


def build_hair(
    hair: Hair, head_map: HeadMap, ears: Floats, brows: float, *, mesh: HairMesh = MESH
) -> AccessoryMesh:
    """The mesh of hair on a head, whose (N, 3) ``ears`` are vertices in metres, head.

    ``brows`` is the polar angle of the brows, in radians from the top.
    """
    rng = np.random.default_rng(hair.seed)
    ear = _locate_ears(head_map, ears)
    parts = []
    for side in (-1.0, 1.0):
        curve = _SideCurves.of(hair, head_map, ear, side, mesh, rng)
        parts.append(_build_sheet(hair, curve, side, mesh, rng))
        parts.append(_build_locks(hair, curve, side, mesh, rng))
    if hair.fringe > 0.05:
        parts.append(_build_fringe(hair, head_map, brows, mesh, rng))
    if hair.tie:
        parts.append(_build_tied(hair, head_map, rng))
    return merge_meshes(parts)


@dataclass(frozen=True)
class _EarGeometry:
    """Where the ears are, as directions from the centre of the head, and how far they protrude."""

    azimuth: float
    polar: float
    reach: float  # metres beyond the head map
    breadth: float  # radians
    height: float  # metres, head


def _locate_ears(head_map: HeadMap, ears: Floats) -> _EarGeometry:
    if len(ears) == 0:
        return _EarGeometry(1.75, 1.75, 0.0, 0.3, float(head_map.middle[1]))
    away = ears - head_map.middle
    azimuth, polar = angles_from_direction(away)
    inside = head_map.depth_inside(ears)
    return _EarGeometry(
        float(np.abs(azimuth).mean()),
        float(polar.mean()),
        float(max(-inside.min(), 0.0)),
        float(np.ptp(np.abs(azimuth))) / 2.0,
        float(ears[:, 1].min()),
    )


Curve = Callable[[Floats, Floats, Floats], Floats]
"""(u, t, extra height in metres), all broadcast, to (..., 3) head."""


@dataclass(frozen=True, eq=False)
class _SideCurves:
    """The curves of one side of a head."""

    hair: Hair
    head_map: HeadMap
    ear: _EarGeometry
    side: float  # -1 right, 1 left
    temple: float  # radians: azimuth of the first curve
    front: Floats  # (3,) direction in which the parting begins
    crown: Floats  # (3,) and in which it ends
    tie: Floats | None  # (3,) direction in which the hair is tied behind the head, if it is
    waves: Floats  # (N, 3) as ``_evaluate_waves``

    @staticmethod
    def of(
        hair: Hair,
        head_map: HeadMap,
        ear: _EarGeometry,
        side: float,
        mesh: HairMesh,
        rng: np.random.Generator,
    ) -> _SideCurves:
        """The curves of a hair style, with waves of their own."""
        top_front = float(head_map.hairline(np.array(0.0))) - 0.06
        across = 0.40 * hair.part
        front = direction_from_angles(np.array(across / 1.3), np.array(top_front))
        back = direction_from_angles(np.array(np.pi), np.array(0.30 + 0.25 * hair.whorl))
        crown = back + np.array([0.22 * hair.part, 0.0, 0.0])
        waves = np.column_stack(
            [rng.uniform(3.0, 9.0, 4), rng.uniform(2.0, 7.0, 4), rng.uniform(0.0, 6.3, 4)]
        )
        tie = None
        if hair.tie in ("tail", "bun"):
            tie = direction_from_angles(np.array(np.pi), np.array(1.15))
        temple = mesh.temple if tie is None else 0.0
        return _SideCurves(hair, head_map, ear, side, temple, front, crown, tie, waves)

    @property
    def on_skull(self) -> float:
        """The share of a curve that lies on the head; the rest falls."""
        return 1.0 if self.hair.length <= 0 or self.hair.tie else 0.62

    def __call__(self, u: Floats, t: Floats, extra: Floats) -> Floats:
        """As ``Curve``."""
        u, t = np.broadcast_arrays(np.asarray(u, dtype=np.float64), np.asarray(t, dtype=np.float64))
        v = np.clip(u, 0.0, 1.0)
        azimuth, polar = self._follow_head(u, v, t)
        height = self._rise(v, t, azimuth, polar) + 0.0025 + extra
        place = self.head_map.at(azimuth, polar)
        out = place + normalize(place - self.head_map.middle) * height[..., None]
        return self._fall(out, u, v, t) if self.on_skull < 1.0 else out

    def _follow_head(self, u: Floats, v: Floats, t: Floats) -> tuple[Floats, Floats]:
        """Azimuth and polar angle, from the parting to the hairline, or to where hair is tied."""
        ear = self.ear
        back = np.clip(v / 0.55, 0.0, 1.0)[..., None] ** 0.8
        start = self.front * (1.0 - back) + self.crown * back
        azimuth = self.temple + (np.pi - self.temple) * u
        line = self.head_map.hairline(self.side * azimuth)
        cover = self.hair.cover * np.exp(-(((azimuth - ear.azimuth) / (2.2 * ear.breadth)) ** 2))
        low = np.maximum(line, line + cover * np.maximum(ear.polar + 0.1 - line, 0.0))
        end = direction_from_angles(self.side * azimuth, np.maximum(low - 0.03, 0.2))
        if self.tie is not None:  # brushed from the hairline to the tie
            start, end = end, np.broadcast_to(self.tie, end.shape)
        s = np.clip(t / self.on_skull, 0.0, 1.0)[..., None]
        return angles_from_direction(slerp(start, end, s))

    def _rise(self, v: Floats, t: Floats, azimuth: Floats, polar: Floats) -> Floats:
        """Metres from the head.

        At the temples hair thins out; over an ear it stands off as far as the ear protrudes.
        """
        hair, ear, on_skull = self.hair, self.ear, self.on_skull
        kept = 0.3 if hair.tie else 1.0
        rim = np.clip(v / 0.12, 0.0, 1.0) if self.tie is None else np.ones_like(v)
        rise = np.clip(t / (0.25 * on_skull), 0.0, 1.0)
        fall = np.clip((on_skull - t) / (0.30 * on_skull), 0.0, 1.0)
        loose = 1.0 if hair.length > 0 or hair.cover > 0.5 else 0.0
        height = (
            hair.volume * kept * (0.35 + 0.65 * np.sin(0.5 * np.pi * rise)) * (0.35 + 0.65 * rim)
        )
        height = height * (fall + (1.0 - fall) * (0.30 + 0.5 * loose))
        near = np.exp(
            -(((np.abs(azimuth) - ear.azimuth) / ear.breadth) ** 2)
            - ((polar - ear.polar) / 0.30) ** 2
        )
        height = height + hair.cover * near * (ear.reach + 0.004)
        wave = _evaluate_waves(v, t, self.waves)
        return np.asarray(height * (1.0 + (0.12 + 0.20 * hair.curl) * wave))

    def _fall(self, out: Floats, u: Floats, v: Floats, t: Floats) -> Floats:
        """(..., 3) places on the head, moved down where hair falls beyond it."""
        hair = self.hair
        drop = np.clip((t - self.on_skull) / (1.0 - self.on_skull), 0.0, None)
        sag = np.interp(v, [0.0, 0.5, 1.0], [1.0, 0.92, 1.06])
        # The tips of all curves are level: those that leave the head higher fall further.
        below = np.maximum(out[..., 1] - self.ear.height, 0.0) + hair.length * sag
        ahead = np.interp(v, [0.0, 0.30, 0.55, 1.0], [0.055, 0.035, -0.015, -0.030]) * hair.front
        ahead = ahead + np.interp(v, [0.0, 0.4, 1.0], [-0.03, -0.03, 0.010]) * (1.0 - hair.front)
        wide = 0.010 * np.sin(np.pi * np.minimum(drop, 1.0)) - 0.012 * drop**2
        swing = hair.curl * 0.010 * np.sin(9.0 * drop + 14.0 * u)
        outward = np.stack(
            [self.side * np.cos(1.2 * v), np.zeros_like(v), -np.sin(1.2 * v)], axis=-1
        )
        out = out + np.stack([0.0 * drop, -below * drop, ahead * drop**1.5], axis=-1)
        return np.asarray(out + outward * (wide + swing)[..., None])


def _evaluate_waves(u: Floats, t: Floats, waves: Floats) -> Floats:
    """An uneven surface of some -1 to 1, by (N, 3) frequencies along u and t and phases."""
    angle = u[..., None] * waves[:, 0] + t[..., None] * waves[:, 1] + waves[:, 2]
    return np.asarray(np.sin(angle).mean(-1) * 1.4)


def _shade_strands(hair: Hair, t: Floats, streaks: Floats) -> Floats:
    """(..., 3) albedo along strands: ``hair.tips`` at their ends."""
    share = np.clip((t - 0.45) / 0.55, 0.0, 1.0)[..., None]
    base = np.array(hair.colour) * (1.0 - share) + np.array(hair.tips) * share
    return np.asarray(np.clip(base * (1.0 + 0.12 * streaks[..., None]), 0.0, 1.0))


def _build_strands(
    hair: Hair, points: Floats, faces: Ints, shades: Floats, across: Floats, along: Floats
) -> AccessoryMesh:
    """A mesh of hair whose pattern runs along the strands, stronger on curly hair."""
    grain = np.stack([across, along, np.full(across.shape, 0.15 + 0.08 * hair.curl)], axis=-1)
    plain = AccessoryMesh.plain(points.reshape(-1, 3), faces, shades.reshape(-1, 3))
    return replace(plain, grain=grain.reshape(-1, 3))


def _orient_faces(faces: Ints, side: float, hair: Hair) -> Ints:
    """Triangles that face outwards: tied hair runs over the head the other way."""
    return faces if (side > 0) != (hair.tie in ("tail", "bun")) else faces[:, ::-1]


def _build_sheet(
    hair: Hair, curve: Curve, side: float, mesh: HairMesh, rng: np.random.Generator
) -> AccessoryMesh:
    # The first column lies under the skin, so that the edge has thickness. The two sides overlap
    # at the back.
    u = np.concatenate([[0.0], np.linspace(0.0, 1.04, mesh.columns)])
    t = np.linspace(0.0, 1.0, mesh.levels)
    # Falling hair ends unevenly, in points that the locks lengthen.
    ragged = mesh.ragged if hair.length > 0 and not hair.tie else 0.05
    ends = 1.0 - np.abs(rng.normal(0.0, ragged, len(u))) - 0.35 * ragged * (np.arange(len(u)) % 2)
    uu, tt = np.broadcast_to(u, (mesh.levels, len(u))), t[:, None] * ends
    extra = np.zeros_like(uu)
    extra[:, 0] = -0.35 * hair.volume - 0.003
    points = curve(uu, tt, extra)
    streaks = np.broadcast_to(rng.standard_normal(len(u)), uu.shape) * 0.6
    dark = 1.0 - 0.45 * (np.arange(len(u)) == 0)
    shades = _shade_strands(hair, tt, streaks) * np.broadcast_to(dark, uu.shape)[..., None]
    across = np.broadcast_to(u * 0.26 / mesh.tile, uu.shape)
    faces = grid(mesh.levels, len(u))
    return _build_strands(hair, points, _orient_faces(faces, side, hair), shades, across, tt * 1.0)


def _build_locks(
    hair: Hair, curve: Curve, side: float, mesh: HairMesh, rng: np.random.Generator
) -> AccessoryMesh:
    count = mesh.locks
    middle = rng.uniform(0.02, 1.0, count)[:, None]
    first = rng.uniform(0.0, 0.45, count)[:, None]
    loose = 0.06 if hair.length > 0 and not hair.tie else 0.0
    tips = 1.0 + rng.uniform(-0.02 - loose, 0.06 + 0.5 * loose, count)[:, None]
    last = np.minimum(first + rng.uniform(0.45, 0.9, count)[:, None] + 2.0 * loose, tips)
    share = np.linspace(0.0, 1.0, mesh.lock_levels)[None]
    t = first + (last - first) * share
    drift = rng.normal(0.0, 0.025, count)[:, None] * share
    bend = (
        0.014
        * hair.curl
        * np.sin(share * rng.uniform(5, 14, count)[:, None] + rng.uniform(0, 6.3, count)[:, None])
    )
    half = (
        rng.uniform(0.012, 0.034, count)[:, None]
        * np.minimum(1.0, 0.25 + 3.0 * share)
        * (1.0 - share**3)
    )
    lift = rng.uniform(0.0005, 0.003 + 0.10 * hair.volume, count)[:, None] * np.sin(
        np.pi * np.minimum(share + 0.1, 1.0)
    )
    lift = lift + 0.003 * hair.curl * np.sin(share * rng.uniform(6, 18, count)[:, None])
    u = np.stack(
        [middle + drift + bend - half, middle + drift + bend, middle + drift + bend + half], axis=2
    )
    tt = np.broadcast_to(t[..., None], u.shape)
    # A lock is slightly arched, so that its sides are shaded differently.
    arch = np.stack([0.0 * lift, lift + 0.0015, 0.0 * lift], axis=2)
    points = curve(u, tt, arch + 0.3 * lift[..., None])
    streaks = np.broadcast_to(rng.standard_normal(count)[:, None, None], u.shape)
    across = u * 0.26 / mesh.tile + rng.uniform(0, 1, count)[:, None, None]
    faces = _repeat_strip(mesh.lock_levels, count)
    return _build_strands(
        hair,
        points,
        _orient_faces(faces, side, hair),
        _shade_strands(hair, tt, streaks),
        across,
        tt * 1.0,
    )


def _repeat_strip(levels: int, count: int) -> Ints:
    """(F, 3) int32 triangles of ``count`` locks, each of three columns of vertices."""
    strip = grid(levels, 3)
    apart = (np.arange(count) * 3 * levels)[:, None, None]
    return np.asarray((strip[None] + apart).reshape(-1, 3).astype(np.int32))


def _make_fringe_curve(hair: Hair, head_map: HeadMap, brows: float) -> Curve:
    """The curves over the forehead: ``u`` from its right side (-1) to its left (1)."""

    def curve(v: Floats, t: Floats, extra: Floats) -> Floats:
        v, t = np.broadcast_arrays(np.asarray(v, dtype=np.float64), np.asarray(t, dtype=np.float64))
        azimuth = 0.86 * v
        line = head_map.hairline(azimuth)
        depth = np.clip(hair.fringe, 0.0, 1.3) * (1.0 - 0.22 * v**2)
        end = line + depth * np.maximum(brows - 0.06 - head_map.hairline(np.zeros(1))[0], 0.05)
        polar = (0.40 * line) + (end - 0.40 * line) * t
        swept = azimuth * (0.55 + 0.45 * t) + 0.13 * hair.part * (1 - t) + hair.sweep * t**1.6
        place = head_map.at(swept, polar)
        height = (
            0.0035
            + (0.6 * hair.volume + 0.004) * np.sin(np.pi * np.clip(0.12 + 0.80 * t, 0, 1))
            + extra
        )
        return np.asarray(place + normalize(place - head_map.middle) * height[..., None])

    return curve


def _build_fringe(
    hair: Hair, head_map: HeadMap, brows: float, mesh: HairMesh, rng: np.random.Generator
) -> AccessoryMesh:
    """A sheet and locks over the forehead, from the parting down."""

    curve = _make_fringe_curve(hair, head_map, brows)
    v = np.linspace(-1.0, 1.0, mesh.fringe_columns)
    ends = 1.0 - np.abs(rng.normal(0.0, 0.10, len(v)))
    t = np.linspace(0.0, 1.0, mesh.fringe_levels)[:, None] * ends
    vv = np.broadcast_to(v, t.shape)
    streaks = np.broadcast_to(rng.standard_normal(len(v)), t.shape) * 0.6
    sheet = _build_strands(
        hair,
        curve(vv, t, np.zeros_like(t)),
        grid(mesh.fringe_levels, len(v)),
        _shade_strands(hair, 0.6 * t, streaks),
        vv * 0.07 / mesh.tile,
        0.6 * t,
    )
    count = mesh.fringe_locks
    share = np.linspace(0.0, 1.0, mesh.fringe_levels)[None]
    middle = (
        rng.uniform(-0.95, 0.95, count)[:, None] + rng.normal(0.0, 0.10, count)[:, None] * share
    )
    half = rng.uniform(0.05, 0.12, count)[:, None] * (1.0 - share**2)
    tt = share * rng.uniform(0.85, 1.12, count)[:, None]
    u = np.stack([middle - half, middle, middle + half], axis=2)
    tt = np.broadcast_to(tt[..., None], u.shape)
    arch = np.broadcast_to(np.array([0.001, 0.003, 0.001]), u.shape)
    streaks = np.broadcast_to(rng.standard_normal(count)[:, None, None], u.shape)
    locks = _build_strands(
        hair,
        curve(u, tt, arch),
        _repeat_strip(mesh.fringe_levels, count),
        _shade_strands(hair, 0.6 * tt, streaks),
        u * 0.07 / mesh.tile + 0.3,
        0.6 * tt,
    )
    return merge_meshes([sheet, locks])


def _build_tied(hair: Hair, head_map: HeadMap, rng: np.random.Generator) -> AccessoryMesh:
    """A tail, plaits or a bun, where the hair is tied."""
    if hair.tie == "bun":
        place = head_map.towards(np.array([0.0, 0.45, -0.9]))
        radius = 0.026 + 0.5 * hair.volume
        out = ball(
            place + np.array([0.0, 0.3, -0.8]) * radius,
            np.array([1.15, 0.95, 0.9]) * radius,
            hair.colour,
        )
        away = out.vertices - out.vertices.mean(0)
        angle = np.arctan2(away[:, 0], away[:, 1])
        grain = np.stack(
            [3.0 * angle / np.pi, np.abs(away[:, 2]) / radius, np.full(len(angle), 0.3)], axis=1
        )
        return replace(out, grain=grain)
    parts = []
    sides = (-1.0, 1.0) if hair.tie == "plaits" else (0.0,)
    for side in sides:
        root = head_map.towards(np.array([1.0 * side, -0.55 if side else 0.40, -0.75]))
        away = normalize(root - head_map.middle)
        levels = 12
        t = np.linspace(0.0, 1.0, levels)
        length = 0.10 + hair.length
        path = root + away * (0.045 * np.sin(np.pi * np.minimum(1.4 * t, 1.0)))[:, None]
        path = path + np.outer(t**1.3, [0.05 * side, -length, 0.06 * abs(side) * hair.front - 0.01])
        thick = 0.020 * np.interp(t, [0, 0.12, 0.5, 0.85, 1], [0.55, 0.9, 1.15, 0.8, 0.1])
        if side:
            thick = thick * (0.55 + 0.12 * np.cos(np.arange(levels) * np.pi))
        columns = 10
        angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)
        ring = np.stack([np.cos(angle), 0.0 * angle, np.sin(angle)], axis=1)
        points = path[:, None] + ring[None] * thick[:, None, None]
        streaks = np.broadcast_to(rng.standard_normal(columns), (levels, columns)) * 0.8
        tt = np.broadcast_to(t[:, None], streaks.shape)
        across = np.broadcast_to(np.abs(np.linspace(-1, 1, columns)) * 1.3, streaks.shape)
        # Columns run counter-clockwise as seen from above, so the triangles are reversed.
        faces = grid(levels, columns, closed=True)[:, ::-1]
        parts.append(
            _build_strands(hair, points, faces, _shade_strands(hair, tt, streaks), across, tt * 2.0)
        )
    return merge_meshes(parts)
