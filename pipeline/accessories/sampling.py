"""Samples a person's accessories: clothes, hair, glasses, hats, hands and held objects.

``Accessories`` are numbers and words, stored with the person. ``dff.pipeline.accessories.build``
makes meshes of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Floats
from dff.pipeline.accessories.config import Colour, Range, read_config
from dff.pipeline.accessories.garments import CUTS, HATS, FaceCover, Hat
from dff.pipeline.accessories.glasses import Glasses, GlassesPrior, sample_glasses
from dff.pipeline.accessories.hair import Hair
from dff.pipeline.accessories.hands import EMPTY, FULL, Hand


@dataclass(frozen=True)
class Frequency:
    """How often an accessory is seen."""

    people: float  # share of the people who have it
    views: float  # share of these people's views that show it


@dataclass(frozen=True)
class Frequencies:
    """How often each accessory is seen."""

    glasses: Frequency  # clear ones
    sunglasses: Frequency
    hat: Frequency
    # Shares of the views with an empty hand, a hand that holds something, or a face cover
    hand: float
    object: float
    cover: float


@dataclass(frozen=True)
class HairColour:
    """A colour of hair."""

    albedo: Colour
    weight_fair: float  # how frequent it is with fair skin
    weight_dark: float  # and with dark skin


@dataclass(frozen=True)
class HairPrior:
    """How hair is drawn; see ``data/hair.toml``."""

    colours: tuple[HairColour, ...]
    fair_skin: tuple[float, float]
    hue_deviation: float
    hue_weight: float
    level_deviation: float
    albedo_limits: Range
    bald_long: float
    bald_short: float
    styles: tuple[str, ...]
    odds_long: tuple[float, ...]
    odds_short: tuple[float, ...]
    curl_beta: tuple[float, float]
    volume: Range
    fringe: Range
    fringe_styles: tuple[str, ...]
    fringe_often: float
    fringe_rarely: float
    curls_volume: Range
    curls_cover: Range
    short_cover: Range
    loose_over_ears: float
    bob_length: Range
    long_length: Range
    loose_volume: Range
    tied_styles: tuple[str, ...]
    tied_length: Range
    tips_long: Range
    tips_other: Range
    part_deviation: float
    sweep_deviation: float


@dataclass(frozen=True)
class ClothesPrior:
    """How clothes are drawn; see ``data/garments.toml``."""

    palette: tuple[Colour, ...]
    colour_deviation: float
    cut_odds: tuple[float, ...]  # of CUTS
    breadth_deviation: float
    breadth_long: float
    breadth_short: float
    breadth_limits: Range


@dataclass(frozen=True)
class HatPrior:
    """How hats are drawn; see ``data/garments.toml``."""

    odds: tuple[float, ...]  # of HATS
    colour_deviation: float
    one_colour: float
    low: Range
    cap_reach: Range
    reach: Range
    tall: dict[str, Range]


@dataclass(frozen=True)
class CoverPrior:
    """How masks and cloths before the face are drawn; see ``data/garments.toml``."""

    mask_share: float
    mask_colours: tuple[Colour, ...]
    colour_deviation: float
    mask_top: Range
    cloth_top: Range
    mask_around: Range
    cloth_around: float
    mask_low: Range
    cloth_low: Range


@dataclass(frozen=True)
class HandPrior:
    """How hands are drawn; see ``data/hands.toml``."""

    thing_colour: Colour
    thing_level: Range
    coloured_mugs: float
    white_mug: float
    skin_level: Range
    lean_deviation: float
    size_mean: float
    size_deviation: float
    size_limits: Range


@dataclass(frozen=True)
class SkinPrior:
    """The skin of hands when that of the face is unknown."""

    albedo: Colour


@dataclass(frozen=True)
class AccessoryPrior:
    """Prior of the accessories of sampled people."""

    sampled: Frequencies  # of sampled people
    photo: Frequencies  # of people of photos
    hair: HairPrior
    glasses: GlassesPrior
    clothes: ClothesPrior
    hats: HatPrior
    covers: CoverPrior
    hands: HandPrior
    skin: SkinPrior


PRIOR = AccessoryPrior(
    sampled=read_config(Frequencies, "frequencies.toml", "sampled"),
    photo=read_config(Frequencies, "frequencies.toml", "photo"),
    hair=read_config(HairPrior, "hair.toml", "prior"),
    glasses=read_config(GlassesPrior, "glasses.toml", "prior"),
    clothes=read_config(ClothesPrior, "garments.toml", "clothes"),
    hats=read_config(HatPrior, "garments.toml", "hats"),
    covers=read_config(CoverPrior, "garments.toml", "covers"),
    hands=read_config(HandPrior, "hands.toml", "prior"),
    skin=read_config(SkinPrior, "frequencies.toml", "skin"),
)
"""The prior of synthesis."""


@dataclass(frozen=True)
class Accessories:
    """A person's clothes, hair and accessories, and how often its views show them."""

    clothes: Colour
    second: Colour  # of the stripes, or of what shows under an open jacket
    cut: str  # one of garments.CUTS
    breadth: float  # of the shoulders, over the average
    style: Hair | None  # None: no more than the scalp's texture shows
    glasses: Glasses | None
    hat: Hat | None
    hands: tuple[Hand, ...]  # empty ones
    things: tuple[Hand, ...]  # hands that hold something
    cover: FaceCover | None
    # Share of the views that show "glasses", "hat", and one of "hand", "object", "cover"
    shares: dict[str, float]


@dataclass(frozen=True)
class PhotoHair:
    """The hair that a photo shows."""

    style: Hair | None  # None: no more than the scalp's texture shows


def sample_accessories(
    hair: Floats,
    *,
    rng: np.random.Generator,
    clothes: Floats | None = None,
    photo_hair: PhotoHair | None = None,
    skin: Floats | None = None,
    feminine: bool | None = None,
    prior: AccessoryPrior = PRIOR,
) -> Accessories:
    """Random accessories for a person whose ``hair`` and ``skin`` have these (3,) albedos.

    ``clothes`` is the (3,) albedo of the clothes that a photo shows. Hair is that of the photo with
    ``photo_hair``; else it is drawn, and more often long for ``feminine`` faces.
    """
    palette, cloth = prior.clothes.palette, prior.clothes
    drawn = _pick(palette, rng) + rng.normal(0.0, cloth.colour_deviation, 3)
    colour = _to_colour(drawn if clothes is None else clothes)
    second = _to_colour(_pick(palette, rng) + rng.normal(0.0, cloth.colour_deviation, 3))
    long = bool(rng.random() < 0.5) if feminine is None else feminine
    flesh = _to_colour(np.array(prior.skin.albedo) if skin is None else skin)
    frequency = prior.sampled if photo_hair is None else prior.photo
    dark = bool(rng.random() < frequency.sunglasses.people)
    clear_share = frequency.glasses.people / (1.0 - frequency.sunglasses.people)
    has_glasses = dark or rng.random() < clear_share
    has_hat = bool(rng.random() < frequency.hat.people)
    # The order of the draws is part of every sampled person.
    return Accessories(
        clothes=colour,
        second=second,
        cut=str(rng.choice(CUTS, p=cloth.cut_odds)),
        breadth=_sample_breadth(cloth, long, rng),
        style=(
            sample_hair(_to_colour(hair), rng=rng, long=long, prior=prior.hair)
            if photo_hair is None
            else photo_hair.style
        ),
        glasses=sample_glasses(rng=rng, dark=dark, prior=prior.glasses) if has_glasses else None,
        hat=_sample_hat(prior.hats, palette, rng) if has_hat else None,
        hands=tuple(_sample_hand(EMPTY, flesh, colour, prior, rng) for _ in range(2)),
        things=(_sample_hand(FULL, flesh, colour, prior, rng),),
        cover=_sample_cover(prior.covers, palette, rng),
        shares={
            "glasses": frequency.glasses.views,
            "hat": frequency.hat.views,
            "hand": frequency.hand,
            "object": frequency.object,
            "cover": frequency.cover,
        },
    )


def _sample_breadth(prior: ClothesPrior, long: bool, rng: np.random.Generator) -> float:
    over = prior.breadth_long if long else prior.breadth_short
    breadth = rng.normal(1.0, prior.breadth_deviation) * over
    return float(np.clip(breadth, *prior.breadth_limits))


def sample_hair_colour(
    skin: Floats, *, rng: np.random.Generator, prior: HairPrior = PRIOR.hair
) -> Floats:
    """(3,) albedo of hair for a face of (3,) ``skin`` albedo."""
    darkest, span = prior.fair_skin
    fair = float(np.clip((skin.mean() - darkest) / span, 0.0, 1.0))
    weight = np.array([c.weight_fair * fair + c.weight_dark * (1.0 - fair) for c in prior.colours])
    chosen = int(rng.choice(len(prior.colours), p=weight / weight.sum()))
    base = np.array(prior.colours[chosen].albedo)
    hue = rng.normal(0.0, prior.hue_deviation, 3) * prior.hue_weight
    level = rng.normal(0.0, prior.level_deviation)
    return np.asarray(np.clip(base * np.exp(hue + level), *prior.albedo_limits))


def sample_hair(
    colour: Colour, *, rng: np.random.Generator, long: bool, prior: HairPrior = PRIOR.hair
) -> Hair | None:
    """A cut; None for a head that is bald or cut to the skin. ``long``: hair tends to be long."""
    if rng.random() < (prior.bald_long if long else prior.bald_short):
        return None
    style = str(rng.choice(prior.styles, p=prior.odds_long if long else prior.odds_short))
    curl = float(np.clip(rng.beta(*prior.curl_beta), 0.0, 1.0))
    volume, fringe, cover, length = float(rng.uniform(*prior.volume)), 0.0, 0.0, 0.0
    often = style in prior.fringe_styles
    if rng.random() < (prior.fringe_often if often else prior.fringe_rarely):
        fringe = float(rng.uniform(*prior.fringe))
    if style == "curls":
        volume, curl = float(rng.uniform(*prior.curls_volume)), 1.0
        cover = float(rng.uniform(*prior.curls_cover))
    if style == "short":
        cover = float(max(rng.uniform(*prior.short_cover), 0.0))
    if style in ("bob", "long"):
        cover = 1.0 if rng.random() < prior.loose_over_ears else 0.0
        length = float(rng.uniform(*(prior.bob_length if style == "bob" else prior.long_length)))
        volume = float(rng.uniform(*prior.loose_volume))
    if style in prior.tied_styles:
        length = float(rng.uniform(*prior.tied_length))
    tips = np.array(colour) * rng.uniform(
        *(prior.tips_long if style == "long" else prior.tips_other)
    )
    return Hair(
        colour=colour,
        tips=_to_colour(tips),
        volume=volume,
        part=float(np.clip(rng.normal(0.0, prior.part_deviation), -1.0, 1.0)),
        whorl=float(rng.uniform(-1.0, 1.0)),
        fringe=fringe,
        sweep=float(rng.normal(0.0, prior.sweep_deviation)),
        cover=cover,
        length=length,
        front=float(rng.random()),
        curl=curl,
        tie=style if style in prior.tied_styles else "",
        seed=_sample_seed(rng),
    )


def _sample_hat(prior: HatPrior, palette: tuple[Colour, ...], rng: np.random.Generator) -> Hat:
    kind = str(rng.choice(HATS, p=prior.odds))
    base = _pick(palette, rng) + rng.normal(0.0, prior.colour_deviation, 3)
    other = base if rng.random() < prior.one_colour else _pick(palette, rng)
    return Hat(
        kind=kind,
        colour=_to_colour(base),
        second=_to_colour(other),
        low=float(rng.uniform(*prior.low)),
        tall=float(rng.uniform(*prior.tall[kind])),
        reach=float(rng.uniform(*(prior.cap_reach if kind == "cap" else prior.reach))),
        seed=_sample_seed(rng),
    )


def _sample_hand(
    poses: tuple[str, ...],
    skin: Colour,
    clothes: Colour,
    priors: AccessoryPrior,
    rng: np.random.Generator,
) -> Hand:
    prior = priors.hands
    pose = str(rng.choice(poses))
    thing: Floats = np.array(prior.thing_colour) * rng.uniform(*prior.thing_level)
    if pose == "mug":
        coloured = rng.random() < prior.coloured_mugs
        thing = _pick(priors.clothes.palette, rng) if coloured else np.full(3, prior.white_mug)
    return Hand(
        pose=pose,
        side=1.0 if rng.random() < 0.5 else -1.0,
        skin=_to_colour(np.array(skin) * rng.uniform(*prior.skin_level)),
        sleeve=clothes,
        thing=_to_colour(thing),
        lean=float(rng.normal(0.0, prior.lean_deviation)),
        size=float(np.clip(rng.normal(prior.size_mean, prior.size_deviation), *prior.size_limits)),
        seed=_sample_seed(rng),
    )


def _sample_cover(
    prior: CoverPrior, palette: tuple[Colour, ...], rng: np.random.Generator
) -> FaceCover:
    mask = bool(rng.random() < prior.mask_share)
    tint = _pick(prior.mask_colours, rng)
    cloth = _pick(palette, rng)
    noise = rng.normal(0.0, prior.colour_deviation, 3)
    return FaceCover(
        colour=_to_colour((tint if mask else cloth) + noise),
        top=float(rng.uniform(*(prior.mask_top if mask else prior.cloth_top))),
        around=float(rng.uniform(*prior.mask_around) if mask else prior.cloth_around),
        low=float(rng.uniform(*(prior.mask_low if mask else prior.cloth_low))),
        loops=mask,
        seed=_sample_seed(rng),
    )


def _pick(colours: tuple[Colour, ...], rng: np.random.Generator) -> Floats:
    return np.array(colours[int(rng.integers(len(colours)))])


def _sample_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _to_colour(values: Floats | Colour) -> Colour:
    r, g, b = (float(v) for v in np.clip(np.asarray(values, dtype=np.float64), 0.02, 0.95))
    return r, g, b
