"""Hands at a face as meshes, empty or holding something: fingers, palm, forearm and sleeve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Floats
from dff.face.model.landmarks import CHIN, INDEX, MOUTH
from dff.face.model.morphable import MorphableModel
from dff.pipeline.accessories.config import Colour, read_config
from dff.pipeline.accessories.head_map import HeadMap
from dff.pipeline.accessories.meshes import AccessoryMesh, merge_meshes
from dff.pipeline.accessories.primitives import ball, normalize, sheet, tubes

EMPTY = ("cheek", "chin", "mouth", "temple", "finger")
FULL = ("phone", "mug", "microphone")


@dataclass(frozen=True)
class Finger:
    """A finger of the right hand, whose palm faces +z and whose thumb points to +x."""

    root: tuple[float, float, float]  # metres
    length: float  # metres
    radius: float  # metres
    spread: float  # radians


@dataclass(frozen=True)
class HandShape:
    """The shape of a hand; see ``data/hands.toml``."""

    joints: int  # vertices along a finger
    touch: float  # metres that fingers may press into the skin
    palm: tuple[tuple[float, float, float, float], ...]
    fingers: tuple[Finger, ...]


@dataclass(frozen=True)
class HandPose:
    """How a hand is held; directions are of a left hand, in head."""

    fingers: tuple[float, float, float]  # direction of the fingers
    palm: tuple[float, float, float]  # normal of the palm
    contact: float  # metres from the wrist to the point at the target
    curls: tuple[float, float, float, float]  # of the fingers; 1: closed
    curl_scale: float = 1.0
    thumb: float = 0.3
    follow: float = 0.0  # share of the chin's motion that the hand takes part in


@dataclass(frozen=True)
class HandPoses:
    """The poses by name."""

    table: dict[str, HandPose]


SHAPE = read_config(HandShape, "hands.toml", "shape")
POSES = read_config(HandPoses, "hands.toml", "poses").table


@dataclass(frozen=True)
class Hand:
    """A hand before the face. Raises ValueError for a pose that is in neither EMPTY nor FULL."""

    pose: str
    side: float  # 1: the left hand, -1: the right one
    skin: Colour  # albedo
    sleeve: Colour
    thing: Colour  # albedo of what it holds
    lean: float  # radians by which the pose is turned
    size: float  # of the hand, over the average
    seed: int

    def __post_init__(self) -> None:
        if self.pose not in EMPTY + FULL:
            raise ValueError(f"Hand.pose must be one of {EMPTY + FULL}, got {self.pose!r}")


def build_hand(
    held: Hand,
    head_map: HeadMap,
    model: MorphableModel,
    neutral: Floats,
    *,
    shape: HandShape = SHAPE,
) -> AccessoryMesh:
    """The mesh of a hand at a face of (V, 3) ``neutral``, and of what it holds.

    An empty hand touches the skin and does not reach into it.
    """
    pose = POSES[held.pose]
    marks = neutral[model.landmarks.vertex]
    rng = np.random.default_rng(held.seed)
    target, thing = _find_target(held, marks)
    fingers, palm = (np.array([x * held.side, y, z]) for x, y, z in (pose.fingers, pose.palm))
    curls = np.array(pose.curls) * pose.curl_scale
    empty = _build_palm_and_fingers(held, curls + rng.normal(0.0, 0.04, 4), pose.thumb, shape)
    turn = _find_hand_frame(fingers, palm, held.lean, held.side)
    grip = np.array([0.0, pose.contact, 0.016 if held.pose in FULL else 0.012]) * held.size
    hand = _place(empty, turn, np.asarray(target) - turn @ grip)
    if held.pose in EMPTY:
        hand = _push_out(hand, head_map, turn, shape.touch)
    parts = [hand, _build_forearm(held, turn, hand.vertices[0], rng)]
    if thing is not None:
        parts.append(thing)
    # A hand on the chin moves down with it; one that holds something stays.
    anchor = np.array(int(model.landmarks.vertex[CHIN]))
    return merge_meshes(parts).following(anchor, np.array(pose.follow))


def _find_target(held: Hand, marks: Floats) -> tuple[Floats, AccessoryMesh | None]:
    """The point that the hand touches, (3,) metres in head, and the mesh of what it holds."""
    s = held.side
    mouth = marks[MOUTH].mean(0)
    jaw = marks[INDEX["jaw_left_5" if s > 0 else "jaw_right_5"]]
    if held.pose == "cheek":
        return 0.6 * jaw + 0.4 * mouth, None
    if held.pose == "chin":
        return marks[CHIN], None
    if held.pose == "temple":
        return marks[INDEX["brow_left_outer" if s > 0 else "brow_right_outer"]], None
    if held.pose == "phone":
        ear = marks[INDEX["jaw_left_7" if s > 0 else "jaw_right_7"]]
        place = 0.5 * (ear + jaw) + np.array([0.017 * s, 0.004, -0.010])
        return place, _build_phone(place + np.array([-0.006 * s, 0.005, 0.0]), s, held)
    if held.pose == "mug":
        place = mouth + np.array([0.012 * s, -0.035, 0.062])
        return place + np.array([0.040 * s, 0.0, 0.018]), _build_mug(place, held)
    if held.pose == "microphone":
        place = mouth + np.array([0.012 * s, -0.030, 0.055])
        axis = normalize(np.array([0.25 * s, -0.80, 0.45]))
        handle = place + axis * 0.105 + np.array([0.014 * s, 0.0, 0.012])
        return handle, _build_microphone(place, axis, held)
    return mouth, None  # "mouth" and "finger"


def _find_hand_frame(fingers: Floats, palm: Floats, lean: float, side: float) -> Floats:
    """(3, 3) head from hand: columns along the thumb of a right hand, the fingers and the palm.

    A left hand is mirrored in x.
    """
    y = normalize(fingers)
    z = normalize(palm - (palm @ y) * y)
    c, s = np.cos(lean), np.sin(lean)
    x = np.cross(y, z)
    x, y = c * x + s * y, c * y - s * x
    return np.stack([-x if side > 0 else x, y, z], axis=1)


def _build_palm_and_fingers(
    held: Hand, curls: Floats, thumb: float, shape: HandShape
) -> AccessoryMesh:
    """Palm and fingers, metres in the hand's frame; the first vertex is on the wrist."""
    joints = shape.joints
    skin = np.array(held.skin)
    palm = np.array(shape.palm)
    path = np.stack([palm[:, 3], palm[:, 0], 0.0 * palm[:, 0]], axis=1)
    parts = [tubes(path[None], palm[None][..., [2, 1]], skin, sides=10)]
    roots = np.array([f.root for f in shape.fingers])
    lengths = np.array([f.length for f in shape.fingers])
    radii = np.array([f.radius for f in shape.fingers])
    spread = np.array([f.spread for f in shape.fingers])
    step = np.linspace(0.0, 1.0, joints)
    joint = np.interp(
        step[:-1] + 0.5 / joints,
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
    reach = np.cumsum(ahead * (lengths / (joints - 1))[:, None, None], axis=1)
    paths = roots[:, None] + np.concatenate([np.zeros((4, 1, 3)), reach], axis=1)
    thick = radii[:, None] * np.interp(
        step, [0.0, 0.3, 0.5, 0.9, 1.0], [1.05, 0.98, 1.0, 0.82, 0.45]
    )
    red = np.interp(step, [0.0, 0.35, 0.5, 0.65, 1.0], [0.0, 0.0, 0.5, 0.1, 1.0])[None, :, None]
    tips = np.clip(skin * (1.0 + red * np.array([0.06, -0.06, -0.06])), 0.0, 1.0)
    parts.append(tubes(paths, thick, np.broadcast_to(tips, (4, joints, 3)), sides=6))
    bend = thumb * np.linspace(0.0, 1.6, joints - 1)
    out = np.stack(
        [
            0.72 * np.cos(bend) - 0.2 * np.sin(bend),
            0.62 * np.ones_like(bend),
            0.30 + 0.7 * np.sin(bend),
        ],
        axis=1,
    )
    way = np.concatenate(
        [np.zeros((1, 3)), np.cumsum(normalize(out) * 0.098 / (joints - 1), axis=0)]
    )
    thick = np.interp(step, [0.0, 0.3, 0.6, 0.9, 1.0], [0.0165, 0.0140, 0.0108, 0.0092, 0.0050])
    parts.append(
        tubes(
            (np.array([0.018, 0.018, 0.006]) + way)[None],
            thick[None],
            np.broadcast_to(tips, (1, joints, 3)),
            sides=7,
        )
    )
    whole = merge_meshes(parts)
    return AccessoryMesh.plain(whole.vertices * held.size, whole.faces, whole.colour)


def _place(mesh: AccessoryMesh, turn: Floats, place: Floats) -> AccessoryMesh:
    faces = mesh.faces if np.linalg.det(turn) > 0 else mesh.faces[:, ::-1]
    return AccessoryMesh.plain(mesh.vertices @ turn.T + place, faces, mesh.colour)


def _push_out(hand: AccessoryMesh, head_map: HeadMap, turn: Floats, touch: float) -> AccessoryMesh:
    """The hand, moved against its palm's normal until 94 % of it is at most ``touch`` deep."""
    vertices = hand.vertices
    for _ in range(4):
        inside = float(np.quantile(head_map.depth_inside(vertices), 0.94)) - touch
        if inside <= 0.0:
            break
        vertices = vertices - turn[:, 2] * (1.1 * inside + 0.0005)
    return AccessoryMesh.plain(vertices, hand.faces, hand.colour)


def _build_forearm(
    held: Hand, turn: Floats, wrist: Floats, rng: np.random.Generator
) -> AccessoryMesh:
    """From the wrist down out of the image: first skin, then a sleeve."""
    away = -turn[:, 1]
    share = np.linspace(0.0, 1.0, 7)[:, None]
    down = normalize(np.array([0.35 * held.side, -1.0, 0.10]))
    middle = wrist + turn[:, 1] * 0.012
    heading = normalize(away * (1.0 - 0.5 * share) + down * (0.25 + 0.5 * share))
    path = middle + np.concatenate([np.zeros((1, 3)), np.cumsum(heading[:-1] * 0.055, axis=0)])
    bare = float(rng.uniform(0.0, 0.5) if rng.random() < 0.6 else 1.1)
    radius = np.interp(share[:, 0], [0.0, 0.3, 1.0], [0.0215, 0.030, 0.042]) * held.size
    colour = np.where(share > bare, np.array(held.sleeve), np.array(held.skin))
    radius = radius + 0.006 * (share[:, 0] > bare)
    return tubes(path[None], radius[None], colour[None], sides=9)


def _build_phone(place: Floats, side: float, held: Hand) -> AccessoryMesh:
    up = normalize(np.array([0.0, 0.90, -0.42]))
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
    return AccessoryMesh.plain(
        vertices[faces.ravel()], np.arange(3 * len(faces)).reshape(-1, 3), np.array(held.thing)
    )


def _build_mug(place: Floats, held: Hand) -> AccessoryMesh:
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
    return merge_meshes(
        [
            body,
            tubes(
                (ear @ tilt.T + place)[None], np.full((1, 7), 0.005), np.array(held.thing), sides=6
            ),
        ]
    )


def _build_microphone(head: Floats, axis: Floats, held: Hand) -> AccessoryMesh:
    mesh = ball(head, np.full(3, 0.026), np.array([0.30, 0.30, 0.31]), rows=9, columns=12)
    share = np.linspace(0.0, 1.0, 5)[:, None]
    path = head + axis * (0.018 + 0.19 * share)
    radius = np.interp(share[:, 0], [0.0, 0.1, 1.0], [0.024, 0.020, 0.013])
    return merge_meshes([mesh, tubes(path[None], radius[None], np.array(held.thing), sides=10)])
