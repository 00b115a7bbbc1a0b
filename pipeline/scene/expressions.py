"""Random expressions: movements of mouth, eyes and brows that occur together, and the gaze."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from dff.face.arrays import Floats

MOVEMENTS = Path(__file__).parent / "data" / "movements.toml"

Range = tuple[float, float]


@dataclass(frozen=True)
class ExpressionConfig:
    """The distribution of expressions beyond the movements themselves."""

    asymmetry: tuple[float, float] = (0.08, 0.2)  # of a pair: standard deviation, limit
    gaze: tuple[float, float] = (0.25, 0.7)  # activations of the eyes: standard deviation, limit
    contact_limit: float = 50.0  # degrees of a face's turn up to which the eyes meet the camera
    eye_rotation: float = 35.0  # degrees of the eyes at full activation
    most_rotated: float = 0.9  # activation
    closed_eyes: float = 0.0  # share of the expressions whose eyes are shut, or nearly


EXPRESSION = ExpressionConfig()


@dataclass(frozen=True)
class Movement:
    """A movement of one part of the face."""

    weight: float  # relative frequency
    units: Mapping[str, Range]  # of the activation of each unit


@dataclass(frozen=True)
class Movements:
    """All movements, by the part of the face and by name."""

    mouth: Mapping[str, Movement]
    eyes: Mapping[str, Movement]
    closed_eyes: Mapping[str, Movement]
    brows: Mapping[str, Movement]
    companions: Mapping[str, Mapping[str, Sequence[str]]]  # of a mouth: names for eyes and brows


@cache
def load_movements() -> Movements:
    """The movements of ``movements.toml``, where their source is stated."""
    table = tomllib.loads(MOVEMENTS.read_text())
    companions = table.pop("companions")
    parts = {
        part: MappingProxyType(
            {
                name: Movement(
                    entry["weight"],
                    {unit: (a, b) for unit, (a, b) in entry.get("units", {}).items()},
                )
                for name, entry in movements.items()
            }
        )
        for part, movements in table.items()
    }
    return Movements(**parts, companions=companions)


def canonical_unit(name: str) -> str:
    """An expression unit's name without its style.

    ``eyeBlink_L``, ``eye_blink_left`` and ``eyeBlinkLeft`` are one unit.
    """
    if name.endswith("_L"):
        name = name[:-2] + "Left"
    elif name.endswith("_R"):
        name = name[:-2] + "Right"
    return name.replace("_", "").replace("-", "").lower()


@cache
def _index_units(names: tuple[str, ...]) -> Mapping[str, int]:
    return {canonical_unit(name): i for i, name in enumerate(names)}


def _pick(
    movements: Mapping[str, Movement], allowed: Collection[str], rng: np.random.Generator
) -> str:
    """The name of a movement, drawn by weight; an empty ``allowed`` stands for all."""
    names = [name for name in movements if not allowed or name in allowed]
    weight = np.array([movements[name].weight for name in names])
    return names[int(rng.choice(len(names), p=weight / weight.sum()))]


def sample_expression(
    names: Sequence[str], *, rng: np.random.Generator, config: ExpressionConfig = EXPRESSION
) -> tuple[Floats, str]:
    """(E,) float32 activations of a model's unit ``names``; the movements as ``mouth+eyes+brows``.

    A movement moves pairs together with a small asymmetry; one-sided movements are mirrored half of
    the time. Units that the model lacks are left out.
    """
    movements = load_movements()
    mouth = _pick(movements.mouth, (), rng)
    companions = movements.companions.get(mouth, {})
    eyes = _pick(movements.eyes, companions.get("eyes", ()), rng)
    lids = movements.eyes[eyes]
    if config.closed_eyes and rng.random() < config.closed_eyes:
        eyes = _pick(movements.closed_eyes, (), rng)
        lids = movements.closed_eyes[eyes]
    brows = _pick(movements.brows, companions.get("brows", ()), rng)
    index = _index_units(tuple(names))
    activations: dict[str, float] = {}
    for movement in (movements.mouth[mouth], lids, movements.brows[brows]):
        activations |= _activate(movement, index, config, rng)
    sd, limit = config.gaze
    across, up = rng.normal(0.0, sd, 2).clip(-limit, limit)
    activations |= _look(float(across), float(up))
    out = np.zeros(len(names), dtype=np.float32)
    for unit, level in activations.items():
        if unit in index:
            out[index[unit]] = min(max(level, 0.0), 1.0)
    return out, f"{mouth}+{eyes}+{brows}"


def _activate(
    movement: Movement, known: Collection[str], config: ExpressionConfig, rng: np.random.Generator
) -> dict[str, float]:
    """Draw the activations of a movement, by canonical unit."""
    sd, limit = config.asymmetry
    out = {}
    mirrored = bool(rng.random() < 0.5)
    for unit, (low, high) in movement.units.items():
        level = float(rng.uniform(low, high))
        if mirrored:
            unit = unit.replace("Left", "#").replace("Right", "Left").replace("#", "Right")
        lean = float(np.clip(rng.normal(0.0, sd), -limit, limit))
        unit = unit.lower()
        if unit in known:
            out[unit] = level
        else:
            out[unit + "left"] = level * (1.0 + lean)
            out[unit + "right"] = level * (1.0 - lean)
    return out


def _look(across: float, up: float) -> dict[str, float]:
    """Activations of both eyes that look in one direction: to the face's left, and up."""
    level, units = abs(across), ("outleft", "inright") if across > 0 else ("inleft", "outright")
    vertical = "eyelookup" if up > 0 else "eyelookdown"
    out = {f"eyelook{unit}": level for unit in units}
    return out | {vertical + "left": abs(up), vertical + "right": abs(up)}


def look_at_camera(
    expression: Floats,
    names: Sequence[str],
    rotation: Floats,
    config: ExpressionConfig = EXPRESSION,
) -> Floats:
    """(E,) the expression with eyes that look into the camera, as far as they rotate.

    ``names`` are the model's units, ``rotation`` (3, 3) is cam_from_head. A face turned further
    away than ``config.contact_limit`` keeps its gaze.
    """
    camera = -rotation[2]  # its direction in head
    across = np.rad2deg(np.arctan2(camera[0], camera[2]))
    up = np.rad2deg(np.arcsin(np.clip(camera[1], -1.0, 1.0)))
    if abs(across) > config.contact_limit or abs(up) > config.contact_limit:
        return expression
    out = np.array(expression)
    index = _index_units(tuple(names))
    for unit, row in index.items():
        if unit.startswith("eyelook"):
            out[row] = 0.0
    full = config.eye_rotation
    for unit, level in _look(float(across) / full, float(up) / full).items():
        if unit in index:
            out[index[unit]] = min(level, config.most_rotated)
    return out
