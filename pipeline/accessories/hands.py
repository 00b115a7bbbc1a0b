"""Hands at a face, empty or holding something: capsules for fingers, an oval palm, a forearm in its
sleeve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Floats
from dff.face.model.morphable import MorphableModel
from dff.pipeline.accessories.hair import direction_unit
from dff.pipeline.accessories.head_map import Skull
from dff.pipeline.accessories.meshes import Prop, together
from dff.pipeline.accessories.primitives import ball, sheet, tubes

EMPTY = ("cheek", "chin", "mouth", "temple", "finger")
FULL = ("phone", "mug", "microphone")
JOINTS = 7  # vertices along a finger
# Fingers of the right hand, palm towards +z, thumb towards +x: root, length, radius, spread in
# radians.
FINGERS = (
    ((0.027, 0.090, 0.002), 0.074, 0.0086, -0.10),
    ((0.009, 0.095, 0.003), 0.083, 0.0089, -0.02),
    ((-0.009, 0.092, 0.002), 0.077, 0.0084, 0.05),
    ((-0.026, 0.083, 0.000), 0.060, 0.0074, 0.14),
)
PALM = (  # along y: half breadth, half thickness, middle x
    (-0.012, 0.026, 0.019, 0.000),
    (0.004, 0.028, 0.019, 0.000),
    (0.024, 0.035, 0.017, 0.002),
    (0.050, 0.040, 0.015, 0.002),
    (0.075, 0.042, 0.013, 0.000),
    (0.096, 0.038, 0.010, 0.000),
)
TOUCH = 0.002  # metres that fingers may press into the skin

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Held:
    """A hand before the face. Raises ValueError for a pose that is neither of EMPTY nor of FULL."""

    pose: str
    side: float  # 1: the left hand
    skin: Colour  # albedo
    sleeve: Colour
    thing: Colour  # albedo of what it holds
    lean: float  # radians by which the pose is turned
    size: float  # of the hand, over the average
    seed: int

    def __post_init__(self) -> None:
        if self.pose not in EMPTY + FULL:
            raise ValueError(f"a hand's pose is one of {EMPTY + FULL}, got {self.pose!r}")


def hand_of(held: Held, skull: Skull, model: MorphableModel, neutral: Floats) -> Prop:
    """The mesh of a hand at a face, and of what it holds; it touches the skin and does not reach
    into it.
    """
    marks = neutral[model.landmarks.vertex]
    s = held.side
    rng = np.random.default_rng(held.seed)
    chin, mouth = marks[8], marks[48:68].mean(0)
    jaw = marks[13 if s > 0 else 3]
    anchor = int(model.landmarks.vertex[8])
    curls = np.array([0.25, 0.3, 0.35, 0.4])
    thumb, thing = 0.3, None
    if held.pose == "cheek":
        target, fingers, palm, contact = (
            0.6 * jaw + 0.4 * mouth,
            (0.15 * s, 0.9, -0.35),
            (-0.85 * s, 0.1, -0.5),
            0.085,
        )
        curls = curls * 0.5
    elif held.pose == "chin":
        target, fingers, palm, contact = (
            chin,
            (-0.55 * s, 0.75, 0.10),
            (-0.15 * s, 0.35, -0.9),
            0.105,
        )
        curls = np.array([0.55, 0.72, 0.80, 0.85])
    elif held.pose == "mouth":
        target, fingers, palm, contact = (
            mouth,
            (-0.75 * s, 0.65, -0.1),
            (-0.10 * s, 0.05, -1.0),
            0.105,
        )
        curls = curls * 0.4
    elif held.pose == "temple":
        target, fingers, palm, contact = (
            marks[26 if s > 0 else 17],
            (-0.45 * s, 0.85, 0.0),
            (-0.6 * s, -0.1, -0.8),
            0.13,
        )
        curls = curls * 0.9
    elif held.pose == "finger":
        target, fingers, palm, contact = (
            mouth,
            (-0.12 * s, 0.95, 0.25),
            (-0.55 * s, 0.1, -0.8),
            0.150,
        )
        curls, thumb = np.array([0.06, 0.85, 0.95, 1.0]), 0.8
    elif held.pose == "phone":
        target = 0.5 * (marks[15 if s > 0 else 1] + jaw) + np.array([0.017 * s, 0.004, -0.010])
        fingers, palm, contact = (0.05 * s, 0.95, -0.30), (-0.95 * s, 0.0, -0.15), 0.080
        curls = np.array([0.30, 0.34, 0.38, 0.42])
        thing = _phone(target + np.array([-0.006 * s, 0.005, 0.0]), s, held)
    elif held.pose == "mug":
        target = mouth + np.array([0.012 * s, -0.035, 0.062])
        fingers, palm, contact = (-0.55 * s, 0.25, 0.75), (-0.80 * s, 0.0, -0.55), 0.075
        curls = np.array([0.50, 0.50, 0.52, 0.55])
        thing = _mug(target, held)
        target = target + np.array([0.040 * s, 0.0, 0.018])
    else:
        head = mouth + np.array([0.012 * s, -0.030, 0.055])
        axis = direction_unit(np.array([0.25 * s, -0.80, 0.45]))
        thing = _microphone(head, axis, held)
        target = head + axis * 0.105 + np.array([0.014 * s, 0.0, 0.012])
        fingers, palm, contact = (-0.70 * s, 0.35, 0.45), (-0.55 * s, 0.0, -0.85), 0.070
        curls, thumb = np.array([0.62, 0.64, 0.66, 0.70]), 0.5
    empty = _hand(held, curls + rng.normal(0.0, 0.04, 4), thumb)
    turn = _frame(np.array(fingers), np.array(palm), held.lean, s)
    grip = np.array([0.0, contact, 0.016 if held.pose in FULL else 0.012]) * held.size
    hand = _placed(empty, turn, np.asarray(target) - turn @ grip)
    if held.pose in EMPTY:
        hand = _before(hand, skull, turn)
    parts = [hand, _forearm(held, turn, hand.vertices[0], rng)]
    if thing is not None:
        parts.append(thing)
    # A hand on the chin goes down with it; one that holds something stays.
    follow = {"chin": 0.9, "mouth": 0.3, "finger": 0.3}.get(held.pose, 0.0)
    return together(parts).following(np.array(anchor), np.array(follow))


def _frame(fingers: Floats, palm: Floats, lean: float, side: float) -> Floats:
    """(3, 3) head from hand: columns thumb (of a right hand), fingers, palm; a left hand is
    mirrored in x.
    """
    y = direction_unit(fingers)
    z = direction_unit(palm - (palm @ y) * y)
    c, s = np.cos(lean), np.sin(lean)
    x = np.cross(y, z)
    x, y = c * x + s * y, c * y - s * x
    return np.stack([-x if side > 0 else x, y, z], axis=1)


def _hand(held: Held, curls: Floats, thumb: float) -> Prop:
    """Palm and fingers in the frame of the hand, metres; the palm's first vertex is on its
    wrist.
    """
    skin = np.array(held.skin)
    palm = np.array(PALM)
    path = np.stack([palm[:, 3], palm[:, 0], 0.0 * palm[:, 0]], axis=1)
    parts = [tubes(path[None], palm[None][..., [2, 1]], skin, sides=10)]
    roots = np.array([f[0] for f in FINGERS])
    lengths, radii = np.array([f[1] for f in FINGERS]), np.array([f[2] for f in FINGERS])
    spread = np.array([f[3] for f in FINGERS])
    step = np.linspace(0.0, 1.0, JOINTS)
    joint = np.interp(
        step[:-1] + 0.5 / JOINTS,
        [0.0, 0.12, 0.45, 0.55, 0.72, 0.82, 1.0],
        [0.4, 1.1, 1.3, 2.6, 2.8, 3.5, 3.6],
    )
    bend = curls[:, None] * joint[None]
    ahead = np.stack(
        [
            -np.sin(spread)[:, None] * np.cos(bend),
            np.cos(spread)[:, None] * np.cos(bend),
            np.sin(bend),
        ],
        axis=2,
    )
    reach = np.cumsum(ahead * (lengths / (JOINTS - 1))[:, None, None], axis=1)
    paths = roots[:, None] + np.concatenate([np.zeros((4, 1, 3)), reach], axis=1)
    thick = radii[:, None] * np.interp(
        step, [0.0, 0.3, 0.5, 0.9, 1.0], [1.05, 0.98, 1.0, 0.82, 0.45]
    )
    red = np.interp(step, [0.0, 0.35, 0.5, 0.65, 1.0], [0.0, 0.0, 0.5, 0.1, 1.0])[None, :, None]
    tips = np.clip(skin * (1.0 + red * np.array([0.06, -0.06, -0.06])), 0.0, 1.0)
    parts.append(tubes(paths, thick, np.broadcast_to(tips, (4, JOINTS, 3)), sides=6))
    bend = thumb * np.linspace(0.0, 1.6, JOINTS - 1)
    out = np.stack(
        [
            0.72 * np.cos(bend) - 0.2 * np.sin(bend),
            0.62 * np.ones_like(bend),
            0.30 + 0.7 * np.sin(bend),
        ],
        axis=1,
    )
    way = np.concatenate(
        [np.zeros((1, 3)), np.cumsum(direction_unit(out) * 0.098 / (JOINTS - 1), axis=0)]
    )
    thick = np.interp(step, [0.0, 0.3, 0.6, 0.9, 1.0], [0.0165, 0.0140, 0.0108, 0.0092, 0.0050])
    parts.append(
        tubes(
            (np.array([0.018, 0.018, 0.006]) + way)[None],
            thick[None],
            np.broadcast_to(tips, (1, JOINTS, 3)),
            sides=7,
        )
    )
    whole = together(parts)
    return Prop.plain(whole.vertices * held.size, whole.faces, whole.colour)


def _placed(prop: Prop, turn: Floats, place: Floats) -> Prop:
    faces = prop.faces if np.linalg.det(turn) > 0 else prop.faces[:, ::-1]
    return Prop.plain(prop.vertices @ turn.T + place, faces, prop.colour)


def _before(hand: Prop, skull: Skull, turn: Floats) -> Prop:
    """The hand moved away from its palm's direction until hardly any of it is deeper in the head
    than TOUCH.
    """
    vertices = hand.vertices
    for _ in range(4):
        inside = float(np.quantile(skull.depth_of(vertices), 0.94)) - TOUCH
        if inside <= 0.0:
            break
        vertices = vertices - turn[:, 2] * (1.1 * inside + 0.0005)
    return Prop.plain(vertices, hand.faces, hand.colour)


def _forearm(held: Held, turn: Floats, wrist: Floats, rng: np.random.Generator) -> Prop:
    """From the wrist down out of the picture, first skin, then a sleeve."""
    away = -turn[:, 1]
    share = np.linspace(0.0, 1.0, 7)[:, None]
    down = direction_unit(np.array([0.35 * held.side, -1.0, 0.10]))
    middle = wrist + turn[:, 1] * 0.012
    heading = direction_unit(away * (1.0 - 0.5 * share) + down * (0.25 + 0.5 * share))
    path = middle + np.concatenate([np.zeros((1, 3)), np.cumsum(heading[:-1] * 0.055, axis=0)])
    bare = float(rng.uniform(0.0, 0.5) if rng.random() < 0.6 else 1.1)
    radius = np.interp(share[:, 0], [0.0, 0.3, 1.0], [0.0215, 0.030, 0.042]) * held.size
    colour = np.where(share > bare, np.array(held.sleeve), np.array(held.skin))
    radius = radius + 0.006 * (share[:, 0] > bare)
    return tubes(path[None], radius[None], colour[None], sides=9)


def _phone(place: Floats, side: float, held: Held) -> Prop:
    up = direction_unit(np.array([0.0, 0.90, -0.42]))
    out = np.array([side, 0.0, 0.0])
    along = np.cross(out, up)
    corners = np.array(
        [[u, v, w] for u in (-0.074, 0.074) for v in (-0.036, 0.036) for w in (-0.004, 0.004)]
    )
    vertices = place + corners[:, :1] * up + corners[:, 1:2] * along + corners[:, 2:] * out
    quads = np.array(
        [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    )
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    inward = (np.cross(b - a, c - a) * (a - place)).sum(1) < 0
    faces[inward] = faces[inward][:, ::-1]
    # Each side keeps its own normals.
    return Prop.plain(
        vertices[faces.ravel()], np.arange(3 * len(faces)).reshape(-1, 3), np.array(held.thing)
    )


def _mug(place: Floats, held: Held) -> Prop:
    around = np.linspace(0.0, 2.0 * np.pi, 18, endpoint=False)
    tilt = np.array([[1.0, 0.0, 0.0], [0.0, 0.94, -0.34], [0.0, 0.34, 0.94]])
    rows = []
    for height, radius in (
        (0.045, 0.034),
        (0.048, 0.0365),
        (0.045, 0.039),
        (-0.045, 0.036),
        (-0.048, 0.030),
        (-0.048, 0.0),
    ):
        rows.append(
            np.stack(
                [radius * np.sin(around), np.full(18, height), radius * np.cos(around)], axis=1
            )
        )
    first = rows[0] * [1.0, 0.4, 1.0] * np.array([0.9, 1.0, 0.9])
    body = sheet(np.stack([first, *rows]) @ tilt.T + place, np.array(held.thing), closed=True)
    bow = np.linspace(-1.3, 1.3, 7)
    ear = np.stack(
        [held.side * -(0.030 + 0.028 * np.cos(bow)), 0.028 * np.sin(bow), 0.0 * bow], axis=1
    )
    return together(
        [
            body,
            tubes(
                (ear @ tilt.T + place)[None], np.full((1, 7), 0.005), np.array(held.thing), sides=6
            ),
        ]
    )


def _microphone(head: Floats, axis: Floats, held: Held) -> Prop:
    mesh = ball(head, np.full(3, 0.026), np.array([0.30, 0.30, 0.31]), rows=9, columns=12)
    share = np.linspace(0.0, 1.0, 5)[:, None]
    path = head + axis * (0.018 + 0.19 * share)
    radius = np.interp(share[:, 0], [0.0, 0.1, 1.0], [0.024, 0.020, 0.013])
    return together([mesh, tubes(path[None], radius[None], np.array(held.thing), sides=10)])
