"""The hair style of a photo's person, estimated from hair above the brows and beside the neck.

A photo shows one side of a head of hair; the estimated style has its colour, thickness and length,
and other poses can show it from behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Array, Bool, Bools, Float, Floats, Ints
from dff.face.model.landmarks import BELOW_BROWS, JAW_ENDS, head_up
from dff.face.texture.fitted_head import FittedHead
from dff.pipeline.accessories.hair import Hair


@dataclass(frozen=True)
class LengthConfig:
    """How far hair falls, looked for row by row down the head. Lengths are metres."""

    depth: float = 0.22  # below the ears, down to which hair is looked for
    step: float = 0.008  # between rows
    breadth: float = 0.13  # to each side
    column: float = 0.004  # between places in a row
    beside: tuple[float, float] = (0.002, 0.045)  # from jaw and neck, between which hair hangs
    neck: float = 0.045  # half the breadth of the head where a row shows none of it
    share: float = 0.35  # of the places beside the neck that show hair
    ears: float = 0.035  # from the first row down to the ears' lower end
    least: float = 0.055  # below the first row, above which hair is no longer than the ears
    most: float = 0.20  # below the ears


LENGTH = LengthConfig()


@dataclass(frozen=True)
class HairEstimationConfig:
    """How hair is found in a photo, and which style it gives.

    Lengths are metres, heights shares of a face: 0 at the chin, 1 at the eyes. Differences of
    colours are distances in CIE Lab, with less weight on the brightness.
    """

    reach: float = 0.06  # from the head's silhouette, within which hair is looked for
    few: int = 150  # px of a 256 px crop below which nothing is known
    above: float = 1.25  # height from which there is hair on the head
    forehead: float = 1.22  # height from which skin is forehead
    blur: float = 1.5  # px of a 256 px crop
    middle: float = 130.0  # of 255: brightness to which skin is brought before colours are compared
    gains: tuple[float, float] = (0.5, 5.0)  # range of that change
    brightness_weight: float = 0.75  # light changes it more than colours
    unlike_skin: float = 16.0  # difference from skin above which a pixel is not skin
    like_hair: float = 26.0  # difference from hair below which a pixel is hair
    distinct: float = 15.0  # difference of hair from the background that separates them
    bald: float = 0.45  # share of the scalp that shows hair below which there is no style
    cropped: float = 0.0025  # thickness below which hair is no more than the scalp's colour
    thickness: tuple[float, float] = (0.006, 0.045)  # range
    length: LengthConfig = LENGTH


HAIR_ESTIMATION = HairEstimationConfig()


@dataclass(frozen=True)
class HairEstimate:
    """Hair as estimated from a photo. Lengths are metres, shares 0..1."""

    share: float  # of the visible scalp that shows hair
    thickness: float  # from the head's silhouette to that of the hair, above the ears
    length: float  # below the ears
    fringe: float  # share of the forehead that it covers
    cover: float  # share of the ears


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Where a photo may show hair."""

    head: FittedHead
    lab: Float[Array, "S S 3"]  # weighted CIE Lab
    person: Bool[Array, "S S"]  # the person, within the photo
    background: Bool[Array, "S S"]  # near the head
    scalp: Bool[Array, "S S"]
    above: Bool[Array, "S S"]  # scalp, and the person around it above the brows


def estimate_hair(
    head: FittedHead, matte: Floats, config: HairEstimationConfig = HAIR_ESTIMATION
) -> HairEstimate | None:
    """The hair in the photo of a fitted head, with the person's (S, S) ``matte`` 0..1.

    None where the photo shows too little.
    """
    least = config.few * head.unit**2
    skin = head.skin & (head.fill_hull(head.recovery.landmarks[BELOW_BROWS]) > 0)
    if skin.sum() < least:
        return None
    pixels = _find_pixels(head, matte, _compare_colours(head, skin, config), config)
    if pixels.above.sum() < least:
        return None
    lab, above = pixels.lab, pixels.above
    flesh = np.median(lab[skin], axis=0)
    from_skin = np.linalg.norm(lab - flesh, axis=2)
    unlike = from_skin > config.unlike_skin
    share = float(unlike[above].mean())
    if not (above & unlike).any():
        return HairEstimate(share, 0.0, 0.0, 0.0, 0.0)
    colour = np.median(lab[above & unlike], axis=0)
    from_hair = np.linalg.norm(lab - colour, axis=2)
    hair = unlike & (from_hair < config.like_hair) & (from_hair < from_skin)
    forehead, ears = _find_forehead(pixels, config), _find_ears(head)
    distinct = _is_distinct(pixels, colour, config)
    return HairEstimate(
        share=share,
        thickness=_measure_thickness(pixels, config),
        length=_measure_length(head, hair & pixels.person, config.length) if distinct else 0.0,
        fringe=float(hair[forehead].mean()) if forehead.sum() > least else 0.0,
        cover=float(hair[ears].mean()) if ears.sum() > 0.1 * least else 0.0,
    )


def _compare_colours(head: FittedHead, skin: Bools, config: HairEstimationConfig) -> Floats:
    """(S, S, 3) float32 weighted CIE Lab of the photo, whose ``skin`` is of middle brightness.

    Colours of dark photos and of dark skin would otherwise lie too close together.
    """
    smooth = cv2.GaussianBlur(head.recovery.crop, (0, 0), config.blur * head.size / 256.0)
    brightness = max(float(np.median(smooth[skin].mean(1))), 1.0)
    gain = np.clip(config.middle / brightness, *config.gains)
    bright = np.minimum(smooth * np.float32(gain / 255.0), np.float32(1.0))
    lab = cv2.cvtColor(bright, cv2.COLOR_RGB2LAB)
    lab[..., 0] *= config.brightness_weight
    return np.asarray(lab)


def _find_pixels(
    head: FittedHead, matte: Floats, lab: Floats, config: HairEstimationConfig
) -> _Pixels:
    valid = head.recovery.valid
    person = (matte > 0.6) & valid
    scalp = head.mask_region("scalp") & ~head.mask_region("face")
    around = ~head.frame.mask & (head.outside < config.reach)
    return _Pixels(
        head=head,
        lab=lab,
        person=person,
        background=(matte < 0.1) & valid & (head.outside < 2.0 * config.reach),
        scalp=scalp,
        above=person & (head.height > config.above) & (around | scalp),
    )


def _is_distinct(pixels: _Pixels, colour: Floats, config: HairEstimationConfig) -> bool:
    """Whether hair of (3,) ``colour`` differs from what lies behind it."""
    if not pixels.background.any():
        return True
    behind = np.median(pixels.lab[pixels.background], axis=0)
    return float(np.linalg.norm(behind - colour)) > config.distinct


def _measure_thickness(pixels: _Pixels, config: HairEstimationConfig) -> float:
    """Metres: the area of the person around the head over the length of its silhouette."""
    head = pixels.head
    mask, above = head.frame.mask, head.height > config.above
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    silhouette = int((grown & ~mask & above & head.recovery.valid).sum())
    around = pixels.person & ~mask & (head.outside < config.reach) & above
    return float(around.sum()) / max(silhouette, 1) * head.pixel


def _find_forehead(pixels: _Pixels, config: HairEstimationConfig) -> Bools:
    head = pixels.head
    facing = head.frame.normal[..., 2] < -0.3
    return np.asarray(head.skin & (head.height > config.forehead) & facing & ~pixels.scalp)


def _find_ears(head: FittedHead) -> Bools:
    return np.asarray(head.mask_region("ears") & (head.frame.normal[..., 2] < -0.1))


def _measure_length(head: FittedHead, hair: Bools, config: LengthConfig) -> float:
    """Metres below the ears down to which there is hair on one side of the neck at least."""
    columns = np.arange(-config.breadth, config.breadth, config.column)
    x, y, inside = _place_rows(head, columns, config)
    on_head = head.frame.mask[y, x] & inside
    on_hair = hair[y, x] & inside & head.recovery.valid[y, x]
    reach = 0.0
    for side in (columns < 0, columns > 0):
        last = 0
        for row in range(len(x)):
            own = on_head[row] & side
            edge = np.abs(columns[own]).max() if own.any() else config.neck
            near, far = edge + config.beside[0], edge + config.beside[1]
            beside = side & inside[row] & (np.abs(columns) > near) & (np.abs(columns) < far)
            if beside.sum() < 3 or on_hair[row][beside].mean() < config.share:
                if row - last > 2:
                    break
                continue
            last = row
        reach = max(reach, last * config.step)
    return float(np.clip(reach - config.ears, 0.0, config.most)) if reach > config.least else 0.0


def _place_rows(
    head: FittedHead, columns: Floats, config: LengthConfig
) -> tuple[Ints, Ints, Bools]:
    """Pixels (rows, columns) x and y, and whether they lie in the crop.

    Rows go down the head, columns across it, from the middle between the ears.
    """
    marks = head.recovery.landmarks
    up = head_up(marks)
    upward = up / float(np.linalg.norm(up))
    across = np.array([-upward[1], upward[0]])
    down = np.arange(int(config.depth / config.step)) * config.step
    steps = -down[:, None, None] * upward + columns[None, :, None] * across
    at = marks[list(JAW_ENDS)].mean(0) + steps / head.pixel
    x, y = np.floor(at).astype(np.int64).transpose(2, 0, 1)
    inside = (x >= 0) & (y >= 0) & (x < head.size) & (y < head.size)
    return np.clip(x, 0, head.size - 1), np.clip(y, 0, head.size - 1), inside


def has_style(seen: HairEstimate, config: HairEstimationConfig = HAIR_ESTIMATION) -> bool:
    """Whether there is more hair than the scalp's colour shows."""
    thick = seen.thickness > config.cropped or seen.length > 0.0
    return seen.share > config.bald and thick


def sample_hair_like(
    seen: HairEstimate | None,
    colour: Floats,
    *,
    rng: np.random.Generator,
    config: HairEstimationConfig = HAIR_ESTIMATION,
) -> Hair | None:
    """A hair style like the estimated one, of (3,) albedo ``colour``.

    What a photo does not show is drawn. None when the scalp's colour shows the hair well enough, or
    nothing is known of it.
    """
    if seen is None:
        return None
    red, green, blue = (float(v) for v in np.clip(colour, 0.02, 0.95))
    part, whorl = rng.normal(0.0, 0.5), rng.uniform(-1, 1)
    sweep, curl = rng.normal(0.0, 0.25), rng.beta(0.8, 1.6)
    front, seed = rng.random(), int(rng.integers(2**31))
    if not has_style(seen, config):
        return None
    covered = float(np.clip(1.3 * seen.cover - 0.3, 0.0, 0.8))
    return Hair(
        colour=(red, green, blue),
        tips=(min(1.15 * red, 0.95), min(1.15 * green, 0.95), min(1.15 * blue, 0.95)),
        volume=float(np.clip(seen.thickness, *config.thickness)),
        part=float(np.clip(part, -1.0, 1.0)),
        whorl=float(whorl),
        fringe=float(np.clip(1.2 * seen.fringe, 0.0, 0.9)) if seen.fringe > 0.3 else 0.0,
        sweep=float(sweep),
        cover=1.0 if seen.length > 0.03 else covered,
        length=seen.length,
        front=float(front),
        curl=float(curl),
        tie="",
        seed=seed,
    )
