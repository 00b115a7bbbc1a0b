"""Appearance of sampled people beyond the statistical albedo: beard, brows, lips, freckles,
irises.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dff.face.arrays import Floats
from dff.pipeline.accessories.config import Colour, Range, read_config

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class IrisColour:
    """A colour of the iris."""

    albedo: Colour
    weight_fair: float  # how frequent it is with fair skin
    weight_dark: float  # and with dark skin


@dataclass(frozen=True)
class AppearancePrior:
    """The distribution of appearances; see ``data/appearance.toml``."""

    fair_skin: tuple[float, float]
    beards: tuple[str, ...]
    beard_odds_feminine: tuple[float, ...]
    beard_odds_masculine: tuple[float, ...]
    beard_share: dict[str, Range]
    fair_hair: float
    beard_shade: float
    beard_shade_fair: Range
    irises: tuple[IrisColour, ...]
    iris_deviation: float
    make_up_share: float
    lip_level: Range
    lip_green: Range
    lip_blue: Range
    lipstick_red: Range
    lipstick_green: Range
    lipstick_blue: Range
    moles: float
    mole_x: Range
    mole_y: Range
    mole_radius: Range
    brow: Range
    brow_feminine: float
    brow_masculine: float
    brow_share: Range
    tint_deviation: float
    tint_channel_deviation: float
    scalp_hairy: Range
    scalp_bald: tuple[float, ...]
    blush: Range
    blush_make_up: float
    freckles: Range
    freckles_share: float
    freckles_share_fair: float
    grain: Range


@dataclass(frozen=True)
class SkinHue:
    """Ranges of the ratios of channels in skin; see ``data/appearance.toml``."""

    red_green: Range
    green_blue: Range


PRIOR = read_config(AppearancePrior, str(DATA / "appearance.toml"), "appearance")
HUE = read_config(SkinHue, str(DATA / "appearance.toml"), "skin_hue")


@dataclass(frozen=True)
class Appearance:
    """Appearance that is painted on a face; colours are albedo in 0..1, shares 0..1."""

    tint: Colour  # by which all skin is multiplied
    beard: str  # one of ``AppearancePrior.beards``
    beard_share: float  # of the skin that it hides
    hair: Colour  # of beard and brows
    brow: float  # metres, half their thickness
    brow_share: float
    scalp: float  # share of the scalp's skin that hair hides
    hair_on_head: Colour
    lips: Colour  # by which lips are multiplied
    blush: float
    freckles: float
    moles: tuple[tuple[float, float, float], ...]  # x, y in metres of the template, radius
    iris: Colour
    grain: float
    seed: int


def sample_appearance(
    skin: Floats,
    hair: Floats,
    *,
    rng: np.random.Generator,
    feminine: bool,
    hairy: bool,
    prior: AppearancePrior = PRIOR,
) -> Appearance:
    """An appearance for (3,) ``skin`` and ``hair`` albedo; ``hairy``: there is hair on the head."""
    darkest, span = prior.fair_skin
    fair = float(np.clip((skin.mean() - darkest) / span, 0.0, 1.0))
    odds = prior.beard_odds_feminine if feminine else prior.beard_odds_masculine
    beard = str(rng.choice(prior.beards, p=odds))
    light = hair.mean() >= prior.fair_hair
    shade = rng.uniform(*prior.beard_shade_fair) if light else prior.beard_shade
    iris = _sample_iris(fair, prior, rng)
    made_up = feminine and rng.random() < prior.make_up_share
    lips = _sample_lips(made_up, prior, rng)
    moles = _sample_moles(prior, rng)
    brow = rng.uniform(*prior.brow) * (prior.brow_feminine if feminine else prior.brow_masculine)
    # The order of the draws is part of every sampled person.
    return Appearance(
        tint=_sample_tint(prior, rng),
        beard=beard,
        beard_share=float(rng.uniform(*prior.beard_share[beard])),
        hair=_to_colour(np.array(hair) * shade),
        brow=float(np.clip(brow, *prior.brow)),
        brow_share=float(rng.uniform(*prior.brow_share)),
        scalp=float(rng.uniform(*prior.scalp_hairy) if hairy else rng.choice(prior.scalp_bald)),
        hair_on_head=_to_colour(hair),
        lips=_to_colour(lips),
        blush=float(rng.uniform(*prior.blush) * (prior.blush_make_up if made_up else 1.0)),
        freckles=_sample_freckles(fair, prior, rng),
        moles=moles,
        iris=_to_colour(iris * np.exp(rng.normal(0.0, prior.iris_deviation))),
        grain=float(rng.uniform(*prior.grain)),
        seed=int(rng.integers(2**31)),
    )


def _sample_tint(prior: AppearancePrior, rng: np.random.Generator) -> Colour:
    level = rng.normal(0.0, prior.tint_deviation)
    return _to_colour(np.exp(level + rng.normal(0.0, prior.tint_channel_deviation, 3)))


def _sample_iris(fair: float, prior: AppearancePrior, rng: np.random.Generator) -> Floats:
    weights = [c.weight_fair * fair + c.weight_dark * (1.0 - fair) for c in prior.irises]
    weight = np.array(weights)
    return np.array(prior.irises[int(rng.choice(len(weight), p=weight / weight.sum()))].albedo)


def _sample_lips(made_up: bool, prior: AppearancePrior, rng: np.random.Generator) -> Floats:
    level = np.array([1.0, 1.0, 1.0]) * rng.uniform(*prior.lip_level)
    lips = level * [1.0, rng.uniform(*prior.lip_green), rng.uniform(*prior.lip_blue)]
    if not made_up:
        return np.asarray(lips)
    lipstick = (prior.lipstick_red, prior.lipstick_green, prior.lipstick_blue)
    return np.asarray(lips * [rng.uniform(*limits) for limits in lipstick])


def _sample_moles(
    prior: AppearancePrior, rng: np.random.Generator
) -> tuple[tuple[float, float, float], ...]:
    count = int(rng.poisson(prior.moles))
    return tuple(
        (
            float(rng.uniform(*prior.mole_x)),
            float(rng.uniform(*prior.mole_y)),
            float(rng.uniform(*prior.mole_radius)),
        )
        for _ in range(count)
    )


def _sample_freckles(fair: float, prior: AppearancePrior, rng: np.random.Generator) -> float:
    share = prior.freckles_share + prior.freckles_share_fair * fair
    return float(rng.uniform(*prior.freckles)) if rng.random() < share else 0.0


def _to_colour(values: Floats) -> Colour:
    r, g, b = (float(v) for v in np.clip(values, 0.01, 1.5))
    return r, g, b


def correct_hue(cheek: Floats, hue: SkinHue = HUE) -> Floats:
    """(3,) the colour of skin nearest to ``cheek`` of a hue that skin has; its brightness stays."""
    red_green = np.clip(cheek[0] / max(cheek[1], 0.02), *hue.red_green)
    green_blue = np.clip(cheek[1] / max(cheek[2], 0.02), *hue.green_blue)
    ratios = np.array([red_green, 1.0, 1.0 / green_blue])
    return np.asarray(ratios * cheek.sum() / ratios.sum())
