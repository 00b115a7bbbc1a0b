"""Skin that nobody has yet: beard, brows, lips, freckles, moles, irises and grain over a
statistical albedo.

All of it is painted into the texture. Where a thing grows is decided on the model's template, in
metres from its landmarks, once for each model; what it looks like is a ``Appearance``, drawn for each
person.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from dff.face.arrays import Bools, Floats, Ints
from dff.pipeline.recovery.uv_atlas import UvAtlas

Colour = tuple[float, float, float]
Texels = NDArray[np.float32]

BEARDS = ("none", "shadow", "stubble", "moustache", "goatee", "full")
IRISES = (  # albedo, and how usual it is on fair and on dark skin
    ((0.20, 0.115, 0.060), 3.0, 8.0), ((0.11, 0.065, 0.040), 2.0, 6.0), ((0.30, 0.220, 0.100), 1.6, 0.3),
    ((0.33, 0.400, 0.480), 2.0, 0.05), ((0.30, 0.380, 0.300), 1.0, 0.05), ((0.42, 0.440, 0.460), 0.7, 0.05),
)  # fmt: skip
EYE_WHITE = 0.88  # of the albedo model's, which glows under bright light
IRIS = 0.0059  # metres, radius
BROW = (0.0022, 0.0052)  # metres, half the thickness of brows


@dataclass(frozen=True)
class Appearance:
    """What is painted on a face; colours are albedo in 0..1, shares 0..1."""

    tint: Colour  # by which all skin is multiplied
    beard: str  # one of BEARDS
    beard_share: float  # how much of the skin it hides
    hair: Colour  # of beard and brows
    brow: float  # metres, half their thickness
    brow_share: float
    scalp: float  # how much of the scalp's skin hair hides
    hair_on_head: Colour
    lips: Colour  # multiplied
    blush: float
    freckles: float
    moles: tuple[tuple[float, float, float], ...]  # x, y in metres of the template, radius
    iris: Colour
    grain: float
    seed: int


def sample_appearance(
    skin: Floats, hair: Floats, *, rng: np.random.Generator, feminine: bool, hairy: bool
) -> Appearance:
    """A look for (3,) ``skin`` and ``hair`` albedo; ``hairy``: there is hair on the head."""
    fair = float(np.clip((skin.mean() - 0.30) / 0.25, 0.0, 1.0))
    odds = (0.93, 0.07, 0.0, 0.0, 0.0, 0.0) if feminine else (0.26, 0.24, 0.18, 0.06, 0.10, 0.16)
    beard = str(rng.choice(BEARDS, p=odds))
    low, high = {
        "none": (0.0, 0.0), "shadow": (0.05, 0.18), "stubble": (0.2, 0.5), "moustache": (0.6, 0.9),
        "goatee": (0.5, 0.9), "full": (0.6, 0.92),
    }[beard]  # fmt: skip
    dark = np.array(hair) * (0.85 if hair.mean() < 0.45 else rng.uniform(0.4, 1.0))
    weight = np.array([f * fair + d * (1.0 - fair) for _, f, d in IRISES])
    iris = np.array(IRISES[int(rng.choice(len(IRISES), p=weight / weight.sum()))][0])
    made_up = feminine and rng.random() < 0.45
    lips = (
        np.array([1.0, 1.0, 1.0])
        * rng.uniform(0.94, 1.04)
        * [1.0, rng.uniform(0.90, 1.02), rng.uniform(0.92, 1.02)]
    )
    if made_up:
        lips = lips * [rng.uniform(0.85, 1.15), rng.uniform(0.45, 0.85), rng.uniform(0.5, 0.9)]
    count = int(rng.poisson(1.2))
    moles = tuple(
        (
            float(rng.uniform(-0.06, 0.06)),
            float(rng.uniform(-0.06, 0.08)),
            float(rng.uniform(0.0005, 0.0015)),
        )
        for _ in range(count)
    )
    thick = rng.uniform(*BROW) * (0.85 if feminine else 1.1)
    return Appearance(
        tint=_colour(np.exp(rng.normal(0.0, 0.05) + rng.normal(0.0, 0.018, 3))),
        beard=beard,
        beard_share=float(rng.uniform(low, high)),
        hair=_colour(dark),
        brow=float(np.clip(thick, *BROW)),
        brow_share=float(rng.uniform(0.35, 0.9)),
        scalp=float(rng.uniform(0.75, 1.0) if hairy else rng.choice([0.0, 0.10, 0.25, 0.5])),
        hair_on_head=_colour(hair),
        lips=_colour(lips),
        blush=float(rng.uniform(0.0, 0.10) * (1.6 if made_up else 1.0)),
        freckles=float(rng.uniform(0.2, 0.9) if rng.random() < 0.05 + 0.17 * fair else 0.0),
        moles=moles,
        iris=_colour(iris * np.exp(rng.normal(0.0, 0.12))),
        grain=float(rng.uniform(0.015, 0.045)),
        seed=int(rng.integers(2**31)),
    )


def _colour(values: Floats) -> Colour:
    r, g, b = (float(v) for v in np.clip(values, 0.01, 1.5))
    return r, g, b


FIELDS = (
    "skin",
    "jaw",
    "lip",
    "chin",
    "lips",
    "scalp",
    "crown",
    "blush",
    "freckled",
    "brow",
    "outer",
    "iris",
)
"""What is known of a texel: weights in 0..1 (jaw: beard of cheeks, jaw and throat; lip: moustache;
chin: goatee; crown: how thick cropped hair stands on the scalp, thinner towards its edge); metres
from the middle line of the nearer brow (far away: 1), and 0..1 along it from inside out; metres
from an iris's centre (1: not the front of an eye)."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where things grow, for each of the (N,) covered texels of an atlas."""

    places: Texels  # (N, 3) metres, template
    cheeks: Ints  # texels of skin that shows neither hair, beard nor red
    forehead: Ints  # texels of skin below the hairline
    bearded: Ints  # texels where a beard is thick
    hairy: Ints  # some texels of the scalp
    table: Texels  # (N, len(FIELDS)) by the names of FIELDS


_places: dict[int, tuple[UvAtlas, Places]] = {}


def places_of(atlas: UvAtlas) -> Places:
    """The places of an atlas; the last few are kept."""
    if id(atlas) not in _places:
        while len(_places) >= 4:
            _places.pop(next(iter(_places)))
        _places[id(atlas)] = (atlas, _find(atlas))  # holds the atlas, so the id stays its own
    return _places[id(atlas)][1]


def _step(x: Floats, low: float, high: float) -> Floats:
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def _find(atlas: UvAtlas) -> Places:
    model = atlas.model
    p = atlas.points.of(model.template.astype(np.float64), model.faces)
    marks = model.template[model.landmarks.vertex].astype(np.float64)
    x, y, _ = p.T
    side = np.abs(x)

    def within(*names: str) -> Floats:
        member = np.zeros(len(model.template))
        for name in names:
            member[atlas.mask_region(name)] = 1.0
        return atlas.points.of(member[:, None], model.faces)[:, 0]

    region = np.array(model.region_names)[model.region][atlas.points.triangle]
    skin = np.isin(region, ["face", "neck", "scalp", "ears", "brows", "lips"])
    lips = np.where(np.isin(region, ["lips"]), within("lips"), 0.0)
    corner, nose, eye = marks[54], marks[33], marks[45]
    breadth = float(corner[0])
    # The upper line of a beard runs from the corner of the mouth to the front of the ear.
    ear = marks[15]
    along = np.clip((side - 0.9 * breadth) / (ear[0] - 0.9 * breadth), 0.0, 1.0)
    line = corner[1] + 0.004 + (ear[1] + 0.012 - corner[1]) * along**1.5
    low = marks[8, 1] - 0.022
    jaw = _step(line - y, -0.008, 0.022) * _step(y, low - 0.010, low + 0.014)
    behind = _step(p[:, 2], ear[2] - 0.022, ear[2] - 0.008)
    jaw = jaw * behind * np.isin(region, ["face", "neck"])
    upper = marks[51, 1]
    lip = (
        _step(nose[1] - 0.0005 - 0.0075 * (side / breadth) ** 2 - y, 0.0, 0.005)
        * _step(y - corner[1], -0.008, -0.002)
        * _step(1.35 * breadth - side, 0.0, 0.013)
        * _step(p[:, 2], corner[2] - 0.006, corner[2])
        * (region == "face")
    )
    chin = (
        jaw * _step(1.05 * breadth - side, 0.0, 0.008) * _step(marks[57, 1] + 0.016 - y, 0.0, 0.006)
    )
    beside = _step(0.012 - np.abs(side - breadth * 1.06), 0.004, 0.008) * _step(
        upper + 0.01 - y, 0.0, 0.008
    )
    chin = np.maximum(chin, 0.8 * jaw * beside)
    bald = np.clip(1.0 - lips, 0.0, 1.0)
    blush = np.exp(-(((side - 0.95 * eye[0]) / 0.016) ** 2) - ((y - nose[1] - 0.006) / 0.014) ** 2)
    blush = (blush + 0.6 * np.exp(-(((p - marks[30]) / 0.011) ** 2).sum(1))) * (region == "face")
    blush = blush * _step(p[:, 2], ear[2] + 0.01, eye[2])
    freckled = np.exp(-(((y - nose[1] - 0.012) / 0.020) ** 2)) * _step(
        p[:, 2], ear[2] + 0.01, eye[2] + 0.005
    )
    cheeks = (
        (region == "face")
        & (side > 0.4 * eye[0])
        & (side < 1.2 * eye[0])
        & (y < eye[1] - 0.018)
        & (y > nose[1])
    )
    high = (region == "face") & (side < eye[0]) & (y > marks[17:27, 1].max() + 0.014)
    crown = np.zeros(len(model.template))
    crown[atlas.mask_region("scalp")] = 1.0
    for _ in range(2):
        crown = atlas.smoother.solve(crown)
    hairline = atlas.points.of(crown[:, None], model.faces)[:, 0]  # 0.5 at the edge of the scalp
    around = _step(hairline, 0.02, 0.20) * np.isin(region, ["face", "ears"])
    distance, outer = _to_brows(p, marks, np.isin(region, ["face", "brows"]))
    fields = {
        "skin": skin,
        "jaw": jaw * bald,
        "lip": lip * bald,
        "chin": chin * bald,
        "lips": lips,
        "scalp": np.where(region == "scalp", within("scalp"), around),
        "crown": _step(hairline, 0.5, 0.97) * (region == "scalp"),
        "blush": blush,
        "freckled": freckled * (region == "face"),
        "brow": distance,
        "outer": outer,
        "iris": _to_iris(p, region == "eyes"),
    }
    return Places(
        places=p.astype(np.float32),
        cheeks=np.flatnonzero(cheeks)[::3],
        forehead=np.flatnonzero(high)[::3],
        bearded=np.flatnonzero(np.maximum(jaw, lip) * bald > 0.5)[::7],
        hairy=np.flatnonzero(fields["scalp"] > 0.9)[::11],
        table=np.ascontiguousarray(
            np.stack([fields[name] for name in FIELDS], axis=1), dtype=np.float32
        ),
    )


def _to_brows(p: Floats, marks: Floats, allowed: Bools) -> tuple[Floats, Floats]:
    """Metres from the brows' middle lines, and 0..1 along them from inside out."""
    best, outer = np.full(len(p), 1.0), np.zeros(len(p))
    near = allowed & (p[:, 1] > marks[36:48, 1].max()) & (p[:, 1] < marks[17:27, 1].max() + 0.02)
    rows = np.flatnonzero(near)
    for order in (range(21, 16, -1), range(22, 27)):
        line = marks[list(order)] + np.array([0.0, 0.0015, 0.0])
        for part, (a, b) in enumerate(pairwise(line)):
            way = b - a
            t = np.clip(((p[rows] - a) @ way) / (way @ way), 0.0, 1.0)
            away = np.linalg.norm(p[rows] - a - t[:, None] * way, axis=1)
            closer = away < best[rows]
            best[rows[closer]] = away[closer]
            outer[rows[closer]] = (part + t[closer]) / 4.0
    return best, outer


def _to_iris(p: Floats, eyes: Bools) -> Floats:
    out = np.full(len(p), 1.0)
    for side in (p[:, 0] > 0, p[:, 0] <= 0):
        own = np.flatnonzero(eyes & side)
        if len(own) == 0:
            continue
        centre = (p[own].max(0) + p[own].min(0)) / 2.0
        front = own[p[own, 2] > centre[2]]
        out[front] = np.hypot(p[front, 0] - centre[0], p[front, 1] - centre[1])
    return out


@cache
def _noises(size: int) -> NDArray[np.float32]:
    """(6, size, size): pores, stubble, blotches, freckles, streaks of brows and of beards; mean 0,
    deviation 1.
    """
    rng = np.random.default_rng(17)
    unit = size / 512.0
    layers = []
    for blur in ((0.6, 0.6), (0.8, 0.7), (9.0, 9.0), (1.2, 1.2), (1.6, 0.5), (2.2, 0.7)):
        layer = gaussian_filter(
            rng.standard_normal((size, size)), (blur[0] * unit, blur[1] * unit), mode="wrap"
        )
        layers.append((layer - layer.mean()) / layer.std())
    return np.asarray(layers, dtype=np.float32)


def measure_skin(values: Floats, atlas: UvAtlas) -> Floats:
    """(3,) the middle colour of the cheeks in (N, 3) colours of the covered texels."""
    cheeks = places_of(atlas).cheeks
    return np.asarray(
        np.median(values[cheeks] if len(cheeks) else values, axis=0), dtype=np.float64
    )


def correct_hue(cheek: Floats) -> Floats:
    """(3,) the colour of skin nearest to ``cheek`` of a hue that skin has; its brightness stays."""
    red_green = np.clip(cheek[0] / max(cheek[1], 0.02), 1.18, 1.62)
    green_blue = np.clip(cheek[1] / max(cheek[2], 0.02), 1.06, 1.48)
    hue = np.array([red_green, 1.0, 1.0 / green_blue])
    return np.asarray(hue * cheek.sum() / hue.sum())


def paint(values: Floats, appearance: Appearance, atlas: UvAtlas) -> Texels:
    """(N, 3) float32 colours of the covered texels: (N, 3) ``values`` with a look painted over
    them.
    """
    at = places_of(atlas)
    rng = np.random.default_rng(appearance.seed)
    base = np.ascontiguousarray(values, dtype=np.float32)
    cheek = measure_skin(base, atlas)
    usual = np.median(base[at.bearded], axis=0) if len(at.bearded) else cheek
    scalp = base[at.hairy].mean(1) if len(at.hairy) else np.full(1, 0.2)
    dark = float(np.percentile(scalp, 20))
    shaved = cheek * np.array([0.97, 0.955, 0.955])
    forehead = np.median(base[at.forehead], axis=0) if len(at.forehead) else cheek
    # Rows of colours, in the order in which ``_paint`` unpacks them.
    hair = np.array(appearance.hair)
    under_skin = hair * 0.6 + np.array([0.16, 0.17, 0.19])  # it looks blue-grey
    colours = [
        np.array(appearance.tint) * correct_hue(cheek) / np.maximum(cheek, 0.02), shaved, shaved / np.maximum(usual, 0.02),
        np.array(appearance.lips), under_skin if appearance.beard == "shadow" else hair, hair, np.array(appearance.hair_on_head), cheek,
        np.array(appearance.iris), forehead,
    ]  # fmt: skip
    thick = appearance.beard in ("full", "goatee", "moustache")
    numbers = [
        appearance.grain, appearance.blush, appearance.freckles, appearance.beard_share, 1.0 if thick else 0.0, appearance.brow, appearance.brow_share,
        appearance.scalp, max(float(cheek.mean()) - dark, 0.05), max(float(np.median(scalp)), 0.02),
        rng.uniform(0.30, 0.5),
    ]  # fmt: skip
    on_jaw = appearance.beard in ("shadow", "stubble", "full")
    where = np.array(
        [on_jaw, appearance.beard != "none", appearance.beard == "goatee"], dtype=np.float32
    )
    out = np.empty_like(base)
    _paint(
        base,
        at.table,
        atlas.texel,
        rng.integers(0, atlas.size, 2),
        _noises(atlas.size),
        np.array(colours, dtype=np.float32),
        np.array(numbers, dtype=np.float32),
        where,
        out,
    )
    _spots(out, appearance, at)
    return out


def _spots(out: Texels, appearance: Appearance, at: Places) -> None:
    front = at.places[:, 2].mean()
    for x, y, radius in appearance.moles:
        near = (np.abs(at.places[:, 0] - x) < 2.0 * radius) & (
            np.abs(at.places[:, 1] - y) < 2.0 * radius
        )
        rows = np.flatnonzero(near & (at.places[:, 2] > front) & (at.table[:, 0] > 0))
        away = np.hypot(at.places[rows, 0] - x, at.places[rows, 1] - y)
        share = 0.75 * np.clip(2.0 - away / radius, 0.0, 1.0)[:, None]
        out[rows] *= 1.0 - share * np.array([0.55, 0.68, 0.72], dtype=np.float32)


@numba.njit(cache=True, nogil=True)
def _ramp(x, low, high):  # type: ignore[no-untyped-def]
    t = min(max((x - low) / (high - low), np.float32(0.0)), np.float32(1.0))
    return t * t * (np.float32(3.0) - np.float32(2.0) * t)


@numba.njit(cache=True, nogil=True)
def _paint(values, table, texel, shift, noises, colours, numbers, where, out):  # type: ignore[no-untyped-def]
    """Fill (N, 3) ``out``; rows of ``table`` as FIELDS, the other tables as ``paint`` makes
    them.
    """
    size = noises.shape[1]
    tint, shaved, shaving, lips, beard, brows, hair, cheek, iris, forehead = colours
    grain, blush, freckles, beard_share, thick, brow, brow_share, scalp, contrast, middle, pupil = (
        numbers
    )
    c = np.empty(3, dtype=np.float32)
    for n in range(len(values)):
        (
            skin,
            jaw,
            lip,
            chin,
            on_lips,
            on_scalp,
            crown,
            on_blush,
            freckled,
            from_brow,
            along,
            from_iris,
        ) = table[n]
        y, x = (texel[n] // size + shift[0]) % size, (texel[n] % size + shift[1]) % size
        pores, stubble, blotches = noises[0, y, x], noises[1, y, x], noises[2, y, x]
        for k in range(3):
            c[k] = values[n, k]
        own = (c[0] + c[1] + c[2]) / np.float32(3.0)
        # The albedo model's own beard shadow goes, whatever beard comes.
        grown = max(jaw, lip)
        if grown > 0.01:
            for k in range(3):
                c[k] += grown * (0.3 * shaved[k] + 0.7 * c[k] * shaving[k] - c[k])
        if skin > 0:
            gain = 1.0 + grain * pores + 0.012 * blotches
            red = blush * on_blush + 0.012 * blotches
            dots = min(max(noises[3, y, x] - 1.15, 0.0), 1.0) * freckled * freckles
            c[0] *= tint[0] * gain * (1.0 + 0.5 * red) * (1.0 - 0.30 * dots)
            c[1] *= tint[1] * gain * (1.0 - red) * (1.0 - 0.45 * dots)
            c[2] *= tint[2] * gain * (1.0 - red) * (1.0 - 0.55 * dots)
        if on_lips > 0.01:
            for k in range(3):
                c[k] *= 1.0 + on_lips * (lips[k] - 1.0)
        grows = max(max(where[0] * jaw, where[1] * lip), where[2] * chin)
        if grows > 0.01:
            # A thick beard shows strands, a thin one the single hairs.
            hairs = noises[5, y, x] if thick > 0 else stubble
            share = min(
                max(beard_share * grows * (1.0 + (0.12 if thick > 0 else 0.35) * hairs), 0.0), 0.95
            )
            if thick > 0:
                share *= _ramp(np.float32(grows + 0.16 * hairs), np.float32(0.12), np.float32(0.95))
            for k in range(3):
                c[k] += share * (beard[k] * (1.0 + 0.25 * hairs) - c[k])
        if from_brow < 0.016:
            taper = 0.8 + 1.333 * min(along, 0.15)
            if along > 0.15:
                taper = 1.0 - 0.333 * (along - 0.15)
            if along > 0.6:
                taper = 0.85 - 1.25 * (along - 0.6)
            streak = noises[4, y, x]
            edge = from_brow / (brow * taper) + 0.22 * streak
            share = brow_share * (1.0 - _ramp(np.float32(edge), np.float32(0.55), np.float32(1.25)))
            share = min(max(share * (1.0 + 0.25 * streak), 0.0), 0.95)
            for k in range(3):
                c[k] += share * (brows[k] - c[k])
        if on_scalp > 0:
            hairy = min(max((cheek[0] + cheek[1] + cheek[2]) / 3.0 - own, 0.0) / contrast, 1.0)
            strand = min(max(own / middle, 0.6), 1.6)
            cropped = hairy * min(scalp * crown * (1.0 + 0.35 * stubble), 1.0)
            bare = max(
                1.0 - 5.0 * hairy, 0.0
            )  # what is darker than skin there is the albedo model's own hair
            for k in range(3):
                under = forehead[k] * tint[k] * (1.0 + grain * pores)
                shown = under + cropped * (hair[k] * strand - under) + bare * (c[k] - under)
                c[k] += on_scalp * (shown - c[k])
        if from_iris < 1.0:
            r = from_iris / IRIS
            share = 1.0 - _ramp(np.float32(r), np.float32(0.94), np.float32(1.08))
            level = 1.25 - 0.9 * max(r - 0.55, 0.0) ** 1.1 * 2.0
            for k in range(3):
                coloured = 0.02 if r < pupil else iris[k] * max(level, 0.45)
                c[k] = c[k] * EYE_WHITE + share * (coloured - c[k] * EYE_WHITE)
        for k in range(3):
            out[n, k] = min(max(c[k], np.float32(0.0)), np.float32(1.0))
