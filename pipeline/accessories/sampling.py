"""What a head model lacks and every photo has: clothes, hair, glasses, hats, hands and things
before the face.

An ``Outfit`` is numbers and words: it is stored with the person, and
``dff.pipeline.accessories.build`` makes meshes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dff.face.arrays import Floats, Ints
from dff.face.model.morphable import MorphableModel
from dff.pipeline.accessories.garments import CUTS, Cover, Hat
from dff.pipeline.accessories.glasses import Glasses, sample_glasses
from dff.pipeline.accessories.hair import Hair
from dff.pipeline.accessories.hands import EMPTY, FULL, Held

RIM_MARGIN = 0.004  # metres above the rim's highest point that the clothes reach
SOFT = 0.003  # metres over which they end
PALETTE = (
    (0.08, 0.08, 0.09), (0.13, 0.16, 0.27), (0.85, 0.85, 0.84), (0.45, 0.45, 0.46), (0.40, 0.12, 0.13),
    (0.20, 0.33, 0.50), (0.24, 0.30, 0.22), (0.62, 0.52, 0.40), (0.30, 0.22, 0.18), (0.70, 0.60, 0.62),
)  # fmt: skip


HAIR = (  # albedo, and how usual it is on fair and on dark skin
    ((0.045, 0.040, 0.040), 2.0, 8.0), ((0.10, 0.070, 0.055), 3.0, 3.0), ((0.19, 0.125, 0.085), 3.5, 0.8),
    ((0.30, 0.200, 0.130), 2.5, 0.2), ((0.50, 0.380, 0.240), 2.0, 0.1), ((0.66, 0.550, 0.390), 1.0, 0.05),
    ((0.36, 0.160, 0.080), 0.8, 0.05), ((0.42, 0.410, 0.400), 1.0, 0.6), ((0.72, 0.710, 0.690), 0.7, 0.3),
    ((0.35, 0.100, 0.160), 0.15, 0.1),
)  # fmt: skip
WORN = {  # how often a person has each thing, and how often its views show it
    "glasses": (0.25, 0.95),
    "sunglasses": (0.05, 0.95),
    "hat": (0.11, 0.92),
}
WORN_OVER_PHOTO = {"glasses": (0.0, 0.0), "sunglasses": (0.04, 0.9), "hat": (0.05, 0.9)}
"""On a face of a photo: its glasses are in its texture, where only dark ones hide them."""

BEFORE = {"hand": 0.10, "object": 0.08, "cover": 0.04}  # share of views with one of them
BEFORE_PHOTO = {"hand": 0.07, "object": 0.05, "cover": 0.03}

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Outfit:
    """How a person is dressed and combed, and what it may hold; colours are albedo in 0..1."""

    clothes: Colour
    second: Colour  # of what is under an open jacket, or of stripes
    cut: str  # one of garments.CUTS
    breadth: float  # of the shoulders, over the average
    style: Hair | None  # None: no more than the scalp shows
    glasses: Glasses | None
    hat: Hat | None
    hands: tuple[Held, ...]
    things: tuple[Held, ...]
    cover: Cover | None
    shares: dict[
        str, float
    ]  # of the views that show "glasses", "hat", and one of "hand", "object", "cover"


@dataclass(frozen=True)
class Own:
    """What a photo says of its person's hair."""

    style: Hair | None  # None: no more than the scalp shows


def sample_outfit(
    hair: Floats,
    *,
    rng: np.random.Generator,
    clothes: Floats | None = None,
    own: Own | None = None,
    skin: Floats | None = None,
    feminine: bool | None = None,
) -> Outfit:
    """An outfit for (3,) ``hair`` and ``skin`` albedo; ``clothes`` when a photo shows their colour.

    With ``own`` it is that of a photo; without, there is hair (none for one in seven), longer for
    ``feminine`` faces.
    """
    drawn = np.array(PALETTE[int(rng.integers(len(PALETTE)))]) + rng.normal(0.0, 0.03, 3)
    colour = _colour(drawn if clothes is None else clothes)
    second = _colour(np.array(PALETTE[int(rng.integers(len(PALETTE)))]) + rng.normal(0.0, 0.03, 3))
    photo = own is not None
    longer = bool(rng.random() < 0.5) if feminine is None else feminine
    flesh = _colour(np.array([0.60, 0.45, 0.38]) if skin is None else skin)
    shares = WORN_OVER_PHOTO if photo else WORN
    dark = bool(rng.random() < shares["sunglasses"][0])
    wears = dark or rng.random() < shares["glasses"][0] / (1.0 - shares["sunglasses"][0])
    covered = bool(rng.random() < shares["hat"][0])
    views = {name: shares[name][1] for name in ("glasses", "hat")} | (
        BEFORE_PHOTO if photo else BEFORE
    )
    return Outfit(
        clothes=colour,
        second=second,
        cut=str(rng.choice(CUTS, p=[0.42, 0.16, 0.22, 0.10, 0.10])),
        breadth=float(np.clip(rng.normal(1.0, 0.08) * (0.93 if longer else 1.03), 0.8, 1.2)),
        style=sample_hair(_colour(hair), rng=rng, longer=longer) if own is None else own.style,
        glasses=sample_glasses(rng=rng, dark=dark) if wears else None,
        hat=_sample_hat(rng) if covered else None,
        hands=tuple(_sample_held(EMPTY, flesh, colour, rng) for _ in range(2)),
        things=(_sample_held(FULL, flesh, colour, rng),),
        cover=_sample_cover(rng),
        shares=views,
    )


def sample_hair_colour(skin: Floats, *, rng: np.random.Generator) -> Floats:
    """(3,) albedo of hair for a face of (3,) ``skin`` albedo."""
    fair = float(np.clip((skin.mean() - 0.30) / 0.25, 0.0, 1.0))
    weight = np.array([f * fair + d * (1.0 - fair) for _, f, d in HAIR])
    base = np.array(HAIR[int(rng.choice(len(HAIR), p=weight / weight.sum()))][0])
    return np.asarray(
        np.clip(base * np.exp(rng.normal(0.0, 0.12, 3) * 0.4 + rng.normal(0.0, 0.15)), 0.02, 0.9)
    )


def sample_hair(colour: Colour, *, rng: np.random.Generator, longer: bool) -> Hair | None:
    """A cut for one of seven in eight; None: bald, or cut to the skin."""
    if rng.random() < (0.04 if longer else 0.24):
        return None
    kinds = ("short", "curls", "bob", "long", "tail", "bun", "plaits")
    odds = (
        (0.08, 0.06, 0.20, 0.42, 0.12, 0.07, 0.05)
        if longer
        else (0.70, 0.16, 0.06, 0.04, 0.03, 0.01, 0.0)
    )
    kind = str(rng.choice(kinds, p=odds))
    curl = float(np.clip(rng.beta(0.8, 1.6), 0.0, 1.0))
    volume, fringe, cover, length = float(rng.uniform(0.007, 0.022)), 0.0, 0.0, 0.0
    if rng.random() < (0.45 if kind in ("short", "bob", "long") else 0.12):
        fringe = float(rng.uniform(0.3, 1.0))
    if kind == "curls":
        volume, curl, cover = float(rng.uniform(0.022, 0.05)), 1.0, float(rng.uniform(0.0, 0.7))
    if kind == "short":
        cover = float(max(rng.uniform(-1.0, 0.6), 0.0))
    if kind in ("bob", "long"):
        cover = 1.0 if rng.random() < 0.75 else 0.0
        length = float(rng.uniform(0.015, 0.07) if kind == "bob" else rng.uniform(0.09, 0.22))
        volume = float(rng.uniform(0.008, 0.020))
    if kind in ("tail", "plaits", "bun"):
        length = float(rng.uniform(0.02, 0.16))
    tips = np.array(colour) * (rng.uniform(1.0, 1.7) if kind == "long" else rng.uniform(0.95, 1.2))
    return Hair(
        colour=colour,
        tips=_colour(tips),
        volume=volume,
        part=float(np.clip(rng.normal(0.0, 0.5), -1.0, 1.0)),
        whorl=float(rng.uniform(-1.0, 1.0)),
        fringe=fringe,
        sweep=float(rng.normal(0.0, 0.25)),
        cover=cover,
        length=length,
        front=float(rng.random()),
        curl=curl,
        tie=kind if kind in ("tail", "bun", "plaits") else "",
        seed=int(rng.integers(2**31)),
    )


def _sample_hat(rng: np.random.Generator) -> Hat:
    kind = str(
        rng.choice(("beanie", "cap", "brim", "headscarf", "hood"), p=(0.24, 0.34, 0.14, 0.16, 0.12))
    )
    base = np.array(PALETTE[int(rng.integers(len(PALETTE)))]) + rng.normal(0.0, 0.04, 3)
    other = base if rng.random() < 0.6 else np.array(PALETTE[int(rng.integers(len(PALETTE)))])
    tall = {"beanie": (0.006, 0.030), "cap": (0.010, 0.024), "brim": (0.020, 0.040)}.get(
        kind, (0.0, 0.02)
    )
    return Hat(
        kind=kind,
        colour=_colour(base),
        second=_colour(other),
        low=float(rng.uniform(-0.06, 0.12)),
        tall=float(rng.uniform(*tall)),
        reach=float(rng.uniform(0.055, 0.080) if kind == "cap" else rng.uniform(0.045, 0.10)),
        seed=int(rng.integers(2**31)),
    )


def _sample_held(
    poses: tuple[str, ...], skin: Colour, clothes: Colour, rng: np.random.Generator
) -> Held:
    pose = str(rng.choice(poses))
    thing = np.array([0.04, 0.04, 0.045]) * rng.uniform(0.5, 3.0)
    if pose == "mug":
        thing = (
            np.array(PALETTE[int(rng.integers(len(PALETTE)))])
            if rng.random() < 0.5
            else np.full(3, 0.82)
        )
    return Held(
        pose=pose,
        side=1.0 if rng.random() < 0.5 else -1.0,
        skin=_colour(np.array(skin) * rng.uniform(0.84, 0.98)),
        sleeve=clothes,
        thing=_colour(thing),
        lean=float(rng.normal(0.0, 0.22)),
        size=float(np.clip(rng.normal(0.95, 0.06), 0.8, 1.1)),
        seed=int(rng.integers(2**31)),
    )


def _sample_cover(rng: np.random.Generator) -> Cover:
    mask = bool(rng.random() < 0.65)
    tint = np.array(
        ((0.55, 0.68, 0.78), (0.86, 0.87, 0.88), (0.07, 0.07, 0.08), (0.60, 0.62, 0.64))[
            rng.integers(4)
        ]
    )
    cloth = np.array(PALETTE[int(rng.integers(len(PALETTE)))])
    return Cover(
        colour=_colour((tint if mask else cloth) + rng.normal(0.0, 0.02, 3)),
        top=float(rng.uniform(0.45, 1.0) if mask else rng.uniform(-0.6, 0.9)),
        around=float(rng.uniform(1.0, 1.15) if mask else 3.3),
        low=float(rng.uniform(0.06, 0.16) if mask else rng.uniform(0.3, 0.5)),
        loops=mask,
        seed=int(rng.integers(2**31)),
    )


def _colour(values: Floats | Colour) -> Colour:
    r, g, b = (float(v) for v in np.clip(np.asarray(values, dtype=np.float64), 0.02, 0.95))
    return r, g, b


@dataclass(frozen=True, eq=False)
class Wardrobe:
    """Where a model wears clothes."""

    rim: Ints  # vertices of the neck's lower border; none when the model has no neck
    ears: Ints  # vertices
    slope: Floats  # (3,) rim height = slope . (1, z, x^2) on the template, plus the margin

    @staticmethod
    def of(model: MorphableModel) -> Wardrobe:
        pairs = np.sort(
            np.concatenate(
                [model.faces[:, [0, 1]], model.faces[:, [1, 2]], model.faces[:, [2, 0]]]
            ),
            axis=1,
        )
        edges, times = np.unique(pairs, axis=0, return_counts=True)
        border = np.unique(edges[times == 1])
        chin = model.template[model.landmarks.vertex[8], 1]
        rim = border[model.template[border, 1] < chin - 0.01]
        slope = np.zeros(3)
        if len(rim) >= 3:
            x, y, z = model.template[rim].astype(np.float64).T
            terms = np.stack([np.ones_like(z), z, x * x], axis=1)
            slope = np.linalg.lstsq(terms, y, rcond=None)[0]
            slope[0] += float((y - terms @ slope).max()) + RIM_MARGIN
        else:
            rim = rim[:0]
        return Wardrobe(rim, _vertices_of(model, "ears"), slope)

    def dressed(self, places: Floats) -> Floats:
        """(N,) 0..1: how much of (N, 3) points of the template the clothes cover."""
        if len(self.rim) == 0:
            return np.zeros(len(places))
        x, y, z = places.astype(np.float64).T
        top = self.slope[0] + self.slope[1] * z + self.slope[2] * x * x
        return np.asarray(np.clip((top - y) / SOFT, 0.0, 1.0))

    def collar(self, template: Floats, neutral: Floats) -> Floats:
        """(R, 3) points of the rim of a face with (V, 3) ``neutral``, raised to where its clothes
        end.
        """
        x, y, z = template[self.rim].astype(np.float64).T
        top = self.slope[0] + self.slope[1] * z + self.slope[2] * x * x
        return np.asarray(
            neutral[self.rim] + np.stack([0.0 * y, np.maximum(top - y, 0.0), 0.0 * y], axis=1)
        )


@lru_cache(maxsize=4)
def wardrobe_of(model: MorphableModel) -> Wardrobe:
    """The wardrobe of a model; the last few are kept."""
    return Wardrobe.of(model)


def _vertices_of(model: MorphableModel, region: str) -> Ints:
    if region not in model.region_names:
        return np.empty(0, dtype=np.int64)
    return np.unique(model.faces[model.triangles_of(region)])
