"""Paint an appearance over a statistical albedo, texel by texel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from dff.face.arrays import Floats
from dff.face.numba_cache import CACHE
from dff.face.texture.uv_atlas import UvAtlas
from dff.pipeline.subjects.appearance import Appearance, correct_hue
from dff.pipeline.subjects.skin_regions import SkinRegions, find_skin_regions, measure_skin

Texels = NDArray[np.float32]


@dataclass(frozen=True)
class SkinConfig:
    """How painted skin looks. Colours are factors on albedo or albedo."""

    iris_radius: float = 0.0059  # metres
    eye_white: float = 0.88  # of the albedo model's, which glows under bright light
    shaved: tuple[float, float, float] = (0.97, 0.955, 0.955)  # over the cheeks
    under_skin: float = 0.6  # of the hair's colour in a beard's shadow, which looks blue-grey
    under_skin_tint: tuple[float, float, float] = (0.16, 0.17, 0.19)  # added to it
    pupil: tuple[float, float] = (0.30, 0.5)  # range, of the iris's radius
    scalp: float = 0.2  # brightness, if a model has no scalp
    mole: tuple[float, float, float] = (0.55, 0.68, 0.72)  # darkening
    mole_share: float = 0.75


SKIN = SkinConfig()


@cache
def _draw_noises(size: int) -> NDArray[np.float32]:
    """(6, size, size) of mean 0 and deviation 1, which repeat.

    They are pores, stubble, blotches, freckles, and streaks of brows and of beards.
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


def paint(
    values: Floats, appearance: Appearance, atlas: UvAtlas, config: SkinConfig = SKIN
) -> Texels:
    """(N, 3) float32 ``values`` of the covered texels with an appearance painted over them."""
    regions = find_skin_regions(atlas)
    rng = np.random.default_rng(appearance.seed)
    base = np.ascontiguousarray(values, dtype=np.float32)
    colours, levels = _mix_colours(base, appearance, atlas, config)
    thick = appearance.beard in ("full", "goatee", "moustache")
    numbers = [
        appearance.grain,
        appearance.blush,
        appearance.freckles,
        appearance.beard_share,
        1.0 if thick else 0.0,
        appearance.brow,
        appearance.brow_share,
        appearance.scalp,
        *levels,
        rng.uniform(*config.pupil),
    ]
    on_jaw = appearance.beard in ("shadow", "stubble", "full")
    grows = [on_jaw, appearance.beard != "none", appearance.beard == "goatee"]
    out = np.empty_like(base)
    _paint(
        base,
        regions.table,
        atlas.texel,
        rng.integers(0, atlas.size, 2),
        _draw_noises(atlas.size),
        colours,
        np.array(numbers, dtype=np.float32),
        np.array(grows, dtype=np.float32),
        config.iris_radius,
        config.eye_white,
        out,
    )
    _paint_moles(out, appearance, regions, config)
    return out


def _mix_colours(
    base: Texels, appearance: Appearance, atlas: UvAtlas, config: SkinConfig
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """(10, 3) colours in the order in which ``_paint`` unpacks them.

    Also the contrast of skin and hair, and the middle brightness of the scalp.
    """
    regions = find_skin_regions(atlas)
    cheek = measure_skin(base, atlas)
    bearded, forehead = (
        np.median(base[rows], axis=0) if len(rows) else cheek
        for rows in (regions.bearded, regions.forehead)
    )
    scalp = base[regions.hairy].mean(1) if len(regions.hairy) else np.full(1, config.scalp)
    shaved = cheek * np.array(config.shaved)
    hair = np.array(appearance.hair)
    under_skin = hair * config.under_skin + np.array(config.under_skin_tint)
    colours = [
        np.array(appearance.tint) * correct_hue(cheek) / np.maximum(cheek, 0.02),
        shaved,
        shaved / np.maximum(bearded, 0.02),
        np.array(appearance.lips),
        under_skin if appearance.beard == "shadow" else hair,
        hair,
        np.array(appearance.hair_on_head),
        cheek,
        np.array(appearance.iris),
        forehead,
    ]
    contrast = max(float(cheek.mean()) - float(np.percentile(scalp, 20)), 0.05)
    middle = max(float(np.median(scalp)), 0.02)
    return np.array(colours, dtype=np.float32), (contrast, middle)


def _paint_moles(
    out: Texels, appearance: Appearance, regions: SkinRegions, config: SkinConfig
) -> None:
    places = regions.places
    front = places[:, 2].mean()
    for x, y, radius in appearance.moles:
        near = (np.abs(places[:, 0] - x) < 2.0 * radius) & (np.abs(places[:, 1] - y) < 2.0 * radius)
        rows = np.flatnonzero(near & (places[:, 2] > front) & (regions.table[:, 0] > 0))
        away = np.hypot(places[rows, 0] - x, places[rows, 1] - y)
        share = config.mole_share * np.clip(2.0 - away / radius, 0.0, 1.0)[:, None]
        out[rows] *= 1.0 - share * np.array(config.mole, dtype=np.float32)


@numba.njit(cache=CACHE, nogil=True)
def _ramp(x, low, high):  # type: ignore[no-untyped-def]
    t = min(max((x - low) / (high - low), np.float32(0.0)), np.float32(1.0))
    return t * t * (np.float32(3.0) - np.float32(2.0) * t)


@numba.njit(cache=CACHE, nogil=True)
def _paint(  # type: ignore[no-untyped-def]
    values, table, texel, shift, noises, colours, numbers, where, iris_radius, eye_white, out
):
    """Fill (N, 3) ``out``. Rows of ``table`` are FIELDS, the other tables as ``paint`` makes
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
            r = from_iris / iris_radius
            share = 1.0 - _ramp(np.float32(r), np.float32(0.94), np.float32(1.08))
            level = 1.25 - 0.9 * max(r - 0.55, 0.0) ** 1.1 * 2.0
            for k in range(3):
                coloured = 0.02 if r < pupil else iris[k] * max(level, 0.45)
                c[k] = c[k] * eye_white + share * (coloured - c[k] * eye_white)
        for k in range(3):
            out[n, k] = min(max(c[k], np.float32(0.0)), np.float32(1.0))
