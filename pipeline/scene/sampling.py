"""What a synthesised view may look like: identities, expressions, poses, cameras, lights and
sensors, drawn at random.

Every function takes the caller's generator; nothing here has state. Angles are degrees, lengths
metres, frames as in ``dff.face.geometry.transform``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from dff.face.arrays import Floats
from dff.face.geometry import lighting
from dff.face.geometry.camera import Pinhole
from dff.face.geometry.transform import (
    Rigid,
    angles_from_rotation,
    rotation_from_angles,
    rotation_from_vector,
)

MAX_YAW = 95.0
"""Degrees: how far to each side a view may look."""

EYE_CONTACT = 50.0  # degrees that a face turns away and still looks into the camera
EYE_TURN = 35.0  # degrees that the eyes turn at full activation

Range = tuple[float, float]

MOUTHS: Mapping[str, tuple[float, Mapping[str, Range]]] = {
    "rest": (3.0, {}),
    "parted": (1.5, {"jawOpen": (0.03, 0.15), "mouthLowerDown": (0.0, 0.2)}),
    "smile": (
        3.0,
        {"mouthSmile": (0.25, 0.9), "cheekSquint": (0.0, 0.5), "mouthDimple": (0.0, 0.3)},
    ),
    "grin": (
        2.5,
        {
            "mouthSmile": (0.5, 1.0),
            "mouthUpperUp": (0.15, 0.5),
            "mouthLowerDown": (0.1, 0.5),
            "jawOpen": (0.0, 0.15),
            "cheekSquint": (0.2, 0.8),
        },
    ),
    "laugh": (
        1.5,
        {
            "mouthSmile": (0.5, 1.0),
            "jawOpen": (0.2, 0.55),
            "mouthUpperUp": (0.1, 0.4),
            "cheekSquint": (0.3, 0.9),
        },
    ),
    "speech_open": (
        2.0,
        {"jawOpen": (0.1, 0.45), "mouthLowerDown": (0.0, 0.5), "mouthUpperUp": (0.0, 0.3)},
    ),
    "speech_round": (
        1.5,
        {"jawOpen": (0.05, 0.3), "mouthFunnel": (0.2, 0.7), "mouthPucker": (0.0, 0.4)},
    ),
    "speech_wide": (
        1.0,
        {"mouthStretch": (0.2, 0.7), "jawOpen": (0.03, 0.25), "mouthLowerDown": (0.1, 0.5)},
    ),
    "pucker": (1.0, {"mouthPucker": (0.4, 1.0), "mouthFunnel": (0.0, 0.2)}),
    "press": (
        0.8,
        {"mouthPress": (0.3, 0.9), "mouthRollLower": (0.1, 0.5), "mouthRollUpper": (0.1, 0.5)},
    ),
    "frown": (1.0, {"mouthFrown": (0.3, 1.0), "mouthShrugLower": (0.1, 0.6)}),
    "disgust": (
        0.6,
        {"noseSneer": (0.4, 1.0), "mouthUpperUp": (0.2, 0.6), "mouthFrown": (0.0, 0.4)},
    ),
    "gape": (0.8, {"jawOpen": (0.5, 0.95)}),
    "aside": (0.6, {"mouthLeft": (0.2, 0.8)}),
    "smirk": (
        0.8,
        {
            "mouthSmileLeft": (0.3, 0.9),
            "mouthDimpleLeft": (0.0, 0.4),
            "cheekSquintLeft": (0.0, 0.4),
        },
    ),
    "chew": (0.4, {"jawLeft": (0.2, 0.8), "jawOpen": (0.05, 0.25), "mouthPress": (0.0, 0.3)}),
    "tongue": (0.25, {"tongueOut": (0.4, 1.0), "jawOpen": (0.15, 0.4)}),
    "shout": (0.5, {"jawOpen": (0.4, 0.8), "mouthStretch": (0.2, 0.6), "mouthUpperUp": (0.1, 0.5)}),
    "puff": (0.4, {"cheekPuff": (0.4, 1.0), "mouthPress": (0.1, 0.4)}),
}
"""Movements of the lower face that occur together: weight, then the range of each unit's
activation.
"""

EYES: Mapping[str, tuple[float, Mapping[str, Range]]] = {
    "open": (5.0, {}),
    "squint": (1.5, {"eyeSquint": (0.2, 0.8)}),
    "blink": (0.7, {"eyeBlink": (0.8, 1.0)}),
    "half": (0.8, {"eyeBlink": (0.15, 0.6)}),
    "wide": (0.8, {"eyeWide": (0.3, 1.0)}),
    "wink": (0.3, {"eyeBlinkLeft": (0.8, 1.0), "eyeSquintRight": (0.0, 0.3)}),
}

BROWS: Mapping[str, tuple[float, Mapping[str, Range]]] = {
    "rest": (4.0, {}),
    "raised": (1.5, {"browInnerUp": (0.2, 0.9), "browOuterUp": (0.2, 0.9)}),
    "worried": (0.8, {"browInnerUp": (0.4, 1.0)}),
    "lowered": (1.5, {"browDown": (0.2, 0.9)}),
    "one_up": (0.3, {"browOuterUpLeft": (0.4, 1.0)}),
}

COMPANIONS: Mapping[str, Mapping[str, Sequence[str]]] = {
    # What the upper face does is not independent of the mouth: laughing squeezes the eyes, gaping
    # widens them.
    "laugh": {"eyes": ("squint", "half", "open"), "brows": ("rest", "raised")},
    "grin": {"eyes": ("open", "squint"), "brows": ("rest", "raised")},
    "gape": {"eyes": ("wide", "open"), "brows": ("raised", "worried")},
    "shout": {"eyes": ("squint", "wide", "open", "blink"), "brows": ("lowered", "raised")},
    "smirk": {"eyes": ("open", "half", "wink"), "brows": ("rest", "one_up")},
    "frown": {"eyes": ("open", "half", "squint"), "brows": ("lowered", "worried", "rest")},
    "disgust": {"eyes": ("squint",), "brows": ("lowered",)},
}


def canonical_unit(name: str) -> str:
    """An expression unit's name without style: ``eyeBlink_L``, ``eye_blink_left``, ``eyeBlinkLeft``
    are one unit.
    """
    plain = (
        name[:-2] + "Left"
        if name.endswith("_L")
        else name[:-2] + "Right"
        if name.endswith("_R")
        else name
    )
    return plain.replace("_", "").replace("-", "").lower()


@cache
def _rows(names: tuple[str, ...]) -> Mapping[str, int]:
    return {canonical_unit(n): i for i, n in enumerate(names)}


def _pick(
    table: Mapping[str, tuple[float, Mapping[str, Range]]],
    only: Sequence[str],
    rng: np.random.Generator,
) -> str:
    names = [n for n in table if not only or n in only]
    weight = np.array([table[n][0] for n in names])
    return names[int(rng.choice(len(names), p=weight / weight.sum()))]


def sample_expression(names: Sequence[str], *, rng: np.random.Generator) -> tuple[Floats, str]:
    """(E,) float32 activations for a model's unit ``names``, and the drawn movements as
    ``mouth+eyes+brows``.

    A movement moves pairs together with a small asymmetry; one-sided movements are mirrored half of
    the time. Units that the model lacks are left out.
    """
    rows = _rows(tuple(names))
    mouth = _pick(MOUTHS, (), rng)
    companions = COMPANIONS.get(mouth, {})
    eyes = _pick(EYES, companions.get("eyes", ()), rng)
    brows = _pick(BROWS, companions.get("brows", ()), rng)
    activations: dict[str, float] = {}
    for table, movement in ((MOUTHS, mouth), (EYES, eyes), (BROWS, brows)):
        mirrored = bool(rng.random() < 0.5)
        for unit, (low, high) in table[movement][1].items():
            level = float(rng.uniform(low, high))
            if mirrored:
                unit = unit.replace("Left", "#").replace("Right", "Left").replace("#", "Right")
            lean = float(np.clip(rng.normal(0.0, 0.08), -0.2, 0.2))
            if unit.lower() in rows:
                activations[unit.lower()] = level
            else:
                activations[unit.lower() + "left"] = level * (1.0 + lean)
                activations[unit.lower() + "right"] = level * (1.0 - lean)
    across, up = rng.normal(0.0, 0.25, 2).clip(-0.7, 0.7)
    activations |= _gaze(float(across), float(up))
    out = np.zeros(len(names), dtype=np.float32)
    for unit, level in activations.items():
        if unit in rows:
            out[rows[unit]] = min(max(level, 0.0), 1.0)
    return out, f"{mouth}+{eyes}+{brows}"


def _gaze(across: float, up: float) -> dict[str, float]:
    """Activations of both eyes that look the same way: to the face's left, and up."""
    level, units = abs(across), ("outleft", "inright") if across > 0 else ("inleft", "outright")
    vertical = "eyelookup" if up > 0 else "eyelookdown"
    out = {f"eyelook{unit}": level for unit in units}
    return out | {vertical + "left": abs(up), vertical + "right": abs(up)}


def looking_at_camera(expression: Floats, names: Sequence[str], rotation: Floats) -> Floats:
    """(E,) the expression with eyes that look into the camera, as far as they turn. ``rotation``:
    cam_from_head.

    A face turned further away than EYE_CONTACT keeps its gaze.
    """
    towards = -rotation[2]  # the camera's direction in head
    across, up = (
        np.rad2deg(np.arctan2(towards[0], towards[2])),
        np.rad2deg(np.arcsin(np.clip(towards[1], -1.0, 1.0))),
    )
    if abs(across) > EYE_CONTACT or abs(up) > EYE_CONTACT:
        return expression
    out = np.array(expression)
    rows = {canonical_unit(n): i for i, n in enumerate(names)}
    for unit, row in rows.items():
        if unit.startswith("eyelook"):
            out[row] = 0.0
    for unit, level in _gaze(float(across) / EYE_TURN, float(up) / EYE_TURN).items():
        if unit in rows:
            out[rows[unit]] = min(level, 0.9)
    return out


def sample_coefficients(count: int, *, rng: np.random.Generator, limit: float = 2.5) -> Floats:
    """(count,) float32 coefficients in standard deviations, normal but redrawn beyond ``limit``."""
    out = rng.standard_normal(count)
    while (far := np.abs(out) > limit).any():
        out[far] = rng.standard_normal(int(far.sum()))
    return out.astype(np.float32)


def sample_rotation(*, rng: np.random.Generator) -> Floats:
    """(3, 3) ``cam_from_head`` with yaw uniform in +-95 degrees.

    Besides yaw and pitch the camera turns about its own axis: in the angles of AFLW2000-3D alone,
    nodding in profile would not exist (yaw of 90 degrees locks pitch to roll).
    """
    yaw = rng.uniform(-MAX_YAW, MAX_YAW)
    pitch = float(np.clip(rng.normal(0.0, 12.0), -40.0, 40.0))
    turn = float(np.clip(rng.normal(0.0, 10.0), -40.0, 40.0))
    in_plane = rotation_from_vector(np.array([0.0, 0.0, np.deg2rad(turn)]))
    return np.asarray(in_plane @ rotation_from_angles(yaw, pitch, 0.0))


def pose_angles(cam_from_head: Floats) -> tuple[float, float, float]:
    """(yaw, pitch, roll) degrees of a (3, 3) rotation, also beyond a profile.

    Two triples name each rotation; this is the one of the smaller pitch and roll, so that yaw of 95
    stays 95.
    """
    yaw, pitch, roll = angles_from_rotation(cam_from_head)
    other = (
        (180.0 - yaw if yaw >= 0 else -180.0 - yaw),
        pitch - np.copysign(180.0, pitch),
        roll - np.copysign(180.0, roll),
    )
    if abs(other[1]) + abs(other[2]) < abs(pitch) + abs(roll):
        return float(other[0]), float(other[1]), float(other[2])
    return yaw, pitch, roll


@dataclass(frozen=True)
class Framing:
    """How a camera frames a face, independent of the face."""

    distance: float  # metres from the camera to the head's origin
    off_axis: tuple[
        float, float
    ]  # tangent of the angles from the optical axis to the head: x right, y down
    share: float  # of the image's side that the larger side of the landmark box takes
    centre: tuple[float, float]  # where the landmark box's centre falls, in sides of the image


def sample_framing(*, rng: np.random.Generator) -> Framing:
    """From a wide selfie to a telephoto lens; the landmark box takes 0.32 to 0.66 of the image's
    side.
    """
    distance = float(np.exp(rng.uniform(np.log(0.25), np.log(4.0))))
    off_axis = rng.normal(0.0, 0.08, 2).clip(-0.25, 0.25)
    share = float(rng.uniform(0.32, 0.66))
    room = (1.0 - share) / 2.0
    jitter = rng.normal(0.0, 0.05, 2).clip(-room, room)
    # The head reaches further above the landmarks than below them.
    return Framing(
        distance,
        (float(off_axis[0]), float(off_axis[1])),
        share,
        (float(0.5 + jitter[0]), float(0.54 + jitter[1])),
    )


def frame_face(
    points: Floats, rotation: Floats, framing: Framing, size: int
) -> tuple[Rigid, Pinhole]:
    """``cam_from_head`` and the camera of a ``size`` px square image that frames (N, 3) head
    ``points`` as asked.
    """
    distance = framing.distance
    x, y = framing.off_axis
    motion = Rigid(rotation, np.array([x * distance, y * distance, distance]))
    cam = motion.apply(points.astype(np.float64))
    if cam[:, 2].min() < 0.1 * distance:
        raise ValueError(f"a face at {distance} m reaches behind the camera")
    seen = cam[:, :2] / cam[:, 2:]
    low, high = seen.min(0), seen.max(0)
    focal = framing.share * size / float((high - low).max())
    centre = np.array(framing.centre) * size - focal * (low + high) / 2.0
    return motion, Pinhole(focal, centre)


# Ramamoorthi and Hanrahan 2001: the clamped cosine in spherical harmonics of order 0, 1, 2.
_COSINE = np.array([np.pi] + [2.0 * np.pi / 3.0] * 3 + [np.pi / 4.0] * 5)


def lobe(direction: Floats) -> Floats:
    """(9,) light of a distant lamp in the unit (3,) ``direction`` (from the face, cam frame) that
    shades by ``max(normal . direction, 0)``, to second order.
    """
    return np.asarray(_COSINE * lighting.basis(direction))


_FACING = np.array(
    [
        [np.sin(a) * np.cos(e), np.sin(e), -np.cos(a) * np.cos(e)]
        for a in np.linspace(-1.2, 1.2, 9)
        for e in (-0.6, 0, 0.6)
    ]
)

EVENNESS = (0.6, 0.35)
"""Lights recovered from photos: median of brightest minus darkest over mean, and spread of its
logarithm.
"""

INDOORS = np.array([1.06, 1.0, 0.93])
"""Cameras keep some of the warmth of lamps and low sun: faces in photos are redder than a perfect
white balance is.
"""

EXPOSURE = (0.62, 1.25)
"""Mean shading: photos are exposed for faces, whose skin is brighter than most of what surrounds
it.
"""

_FRONT = len(_FACING) // 2  # the normal that looks straight into the camera


def warmth(spread: float, *, rng: np.random.Generator) -> Floats:
    """(3,) factors on RGB about 1: lamps and white balances are warm or cool by ``spread``, hardly
    green or pink.
    """
    warm, green = rng.normal(0.0, spread), rng.normal(0.0, 0.2 * spread)
    return np.exp(warm * np.array([1.0, 0.1, -1.0]) + green * np.array([-0.5, 1.0, -0.5]))


def sample_light(*, rng: np.random.Generator) -> Floats:
    """(9, 3) float32 light in cam: ambient and one to three coloured lamps, mostly from above and
    before the face.

    One in eight is hard: a single lamp and hardly any ambient light; one in twelve mixes lamps of
    different colours. The others are as uneven as lights recovered from photos (``EVENNESS``).
    Exposure is normalised: normals that face the camera are shaded by 0.62 to 1.25 on average.
    """
    kind = rng.random()
    hard, coloured = kind < 0.12, kind > 0.92
    tint = warmth(0.06, rng=rng) * INDOORS
    around, lamps = (
        (rng.uniform(0.06, 0.2), 1) if hard else (rng.uniform(0.25, 0.9), int(rng.integers(1, 4)))
    )
    light = np.outer(lighting.ambient(float(around))[:, 0], tint)
    for _ in range(lamps):
        azimuth = np.deg2rad(rng.normal(0.0, 65.0))
        height = np.deg2rad(np.clip(rng.normal(25.0, 30.0), -50.0, 85.0))
        direction = np.array(
            [np.sin(azimuth) * np.cos(height), -np.sin(height), -np.cos(azimuth) * np.cos(height)],
        )
        strength = float(rng.uniform(0.6, 1.2) if hard else rng.gamma(2.0, 0.3))
        colour = warmth(0.30 if coloured else 0.08, rng=rng) * strength
        light += np.outer(lobe(direction), colour * INDOORS)
    if not hard:
        most = float(np.exp(rng.normal(np.log(EVENNESS[0]), EVENNESS[1])))
        grey = lighting.shade(_FACING, light).mean(axis=1)
        missing = float(np.ptp(grey)) / most - float(grey.mean())
        if missing > 0:
            light += np.outer(lighting.ambient(missing)[:, 0], tint)
    shade = lighting.shade(_FACING, light).mean(axis=1)
    # Nobody keeps a picture whose subject is black: what faces the camera squarely is a third of
    # the mean at least.
    level = max(
        float(rng.uniform(*EXPOSURE)) / float(shade.mean()), 0.33 / max(float(shade[_FRONT]), 0.05)
    )
    return np.asarray(light * level, dtype=np.float32)


@dataclass(frozen=True)
class Sensor:
    """What a camera does to the light that reaches it."""

    gains: tuple[float, float, float]  # white balance, per channel
    gamma: float  # tone curve exponent
    contrast: float  # about mid grey
    shrink: float  # 1: sharp; 2: seen at half the resolution
    blur: float  # px, standard deviation
    noise: float  # standard deviation in 0..1 at mid grey
    noise_seed: int
    grey: bool
    quality: int  # of the JPEG
    shoulder: float  # level from which brighter light is compressed; 1: cut at white


def sample_sensor(*, rng: np.random.Generator) -> Sensor:
    """Mostly a good camera; now and then blurred, small, noisy, grey or heavily compressed."""
    gains = warmth(0.05, rng=rng)
    return Sensor(
        gains=(float(gains[0]), float(gains[1]), float(gains[2])),
        gamma=float(np.exp(rng.normal(0.0, 0.12))),
        contrast=float(np.exp(rng.normal(0.0, 0.10))),
        shrink=float(rng.uniform(1.3, 3.0)) if rng.random() < 0.25 else 1.0,
        blur=float(rng.uniform(0.3, 0.7) if rng.random() < 0.7 else rng.uniform(0.7, 2.0)),
        noise=float(rng.gamma(1.5, 0.008)),
        noise_seed=int(rng.integers(2**31)),
        grey=bool(rng.random() < 0.08),
        quality=int(rng.integers(70, 97) if rng.random() < 0.75 else rng.integers(30, 70)),
        shoulder=float(rng.uniform(0.55, 1.0)),
    )


CLEAN = Sensor((1.0, 1.0, 1.0), 1.0, 1.0, 1.0, 0.0, 0.0, 0, False, 95, 1.0)
"""A camera that changes nothing; for the view that repeats the photo."""
