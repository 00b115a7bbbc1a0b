"""The occlusion mask of a photo: strands, a hat's brim, dark lenses or fingers before the skin.

Occluders are found where the fitted face explains the photo's colours badly. Where faces differ
most from any model (eyes, brows, nose, mouth, and where beards grow) nothing counts as occluded,
but for dark lenses.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Array, Bools, Float, Floats
from dff.face.model.landmarks import (
    INDEX,
    LEFT_BROW,
    LEFT_EYE,
    MOUTH,
    NOSE,
    NOSE_BASE,
    RIGHT_BROW,
    RIGHT_EYE,
    head_up,
)
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import Frame, shaded
from dff.face.texture.fitted_head import FittedHead

EYE_AND_BROW = ((RIGHT_EYE, RIGHT_BROW), (LEFT_EYE, LEFT_BROW))


@dataclass(frozen=True)
class OccluderConfig:
    """How occluders are found. Pixels are those of a 256 px crop; ``eye`` is the eyes' width."""

    facing: float = -0.2  # of normals: beyond, the silhouette's error is larger than occluders
    black: float = 0.05  # of 1: added to colours before their logarithm is taken
    blur: float = 0.7  # px, of the photo
    thin_change: float = 0.30  # of brightness (log) within ``thin_width`` that skin does not show
    thin_width: int = 21  # px: strands are thinner, light and shadow are wider
    softness: float = 1.2  # px of the mask's edge
    gain: float = 1.6  # of the softened mask
    # Brightness (log, over that of the fitted face) of the skin below an eye behind a dark lens
    lens: float = -0.55
    # Margins round parts of the face where nothing counts as occluded, in ``eye``
    eye_margin: float = 0.35
    nose_margin: float = 0.2
    mouth_margin: float = 0.3
    # Where the skin below an eye is sampled, in ``eye``: across and below the eye's middle
    below_eye_across: float = 0.35
    below_eye: tuple[float, float] = (0.30, 0.55)


OCCLUDERS = OccluderConfig()


@dataclass(frozen=True)
class OcclusionMaskConfig:
    """Which skin the fit does not explain. Colour errors are mean absolute, of 1."""

    blur: float = 0.012  # standard deviation of the error's blur, as a share of the crop's side
    tau: float = 0.13  # blurred colour error from which skin counts as occluded
    # The same for lips and brows, whose colours differ more than the albedo model says.
    painted_tau: float = 0.25
    painted: tuple[str, ...] = ("lips", "brows")


OCCLUSION_MASK = OcclusionMaskConfig()


@dataclass(frozen=True)
class Occlusion:
    """Occluders in front of the skin of a photo."""

    mask: Float[Array, "S S"]  # float32 0..1
    right_lens: bool  # a dark lens hides the person's right eye
    left_lens: bool


def detect_occluders(
    head: FittedHead, albedo: Floats, config: OccluderConfig = OCCLUDERS
) -> Occlusion:
    """The occlusion of a photo, of whose fitted face (S, S, 3) ``albedo`` is rendered."""
    recovery, skin, marks = head.recovery, head.skin, head.recovery.landmarks
    facing = skin & (head.frame.normal[..., 2] < config.facing) & recovery.valid
    excess = _compare_brightness(head, albedo, facing, config)
    found = facing & (recovery.occluded | _find_thin(excess, head.unit, config))
    eye = _measure_eyes(marks)
    own = np.zeros((head.size, head.size), dtype=np.uint8)
    lenses = []
    for lids, brow in EYE_AND_BROW:
        lenses.append(_is_behind_lens(excess, facing, marks[lids], eye, config))
        points = np.concatenate([marks[lids], marks[brow]])
        around_eye = head.fill_hull(points, config.eye_margin * eye)
        if lenses[-1]:
            found |= (around_eye > 0) & skin
        else:
            own |= around_eye
    own |= head.fill_hull(marks[NOSE], config.nose_margin * eye)
    own |= head.fill_hull(marks[MOUTH], config.mouth_margin * eye)
    found &= ~(own > 0) & ~_find_bearded(head)
    return Occlusion(_soften(found, head.unit, config), *lenses)


def _compare_brightness(
    head: FittedHead, albedo: Floats, facing: Bools, config: OccluderConfig
) -> Floats:
    """(S, S) logarithm of the photo's brightness over that of the fitted face; 0 elsewhere."""
    recovery = head.recovery
    blurred = cv2.GaussianBlur(recovery.crop, (0, 0), config.blur * head.unit)
    photo = blurred.astype(np.float32) / np.float32(255.0)
    expected = np.maximum(shaded(head.frame, albedo, recovery.light), 0.0)
    ratio = np.log((photo + config.black) / (expected + config.black)).mean(axis=2)
    return np.where(facing, ratio, 0.0)


def _find_thin(excess: Floats, unit: float, config: OccluderConfig) -> Bools:
    """(S, S) where the brightness differs from its median in the neighbourhood."""
    levels = np.clip(128.0 + 128.0 * excess, 0, 255).astype(np.uint8)
    median = cv2.medianBlur(levels, 2 * round(config.thin_width * unit / 2.0) + 1)
    return np.asarray(np.abs(levels.astype(np.float32) - median) / 128.0 > config.thin_change)


def _measure_eyes(marks: Floats) -> float:
    """Pixels between the corners of an eye, the mean of both."""
    widths = [
        np.linalg.norm(marks[INDEX[f"eye_{side}_outer"]] - marks[INDEX[f"eye_{side}_inner"]])
        for side in ("right", "left")
    ]
    return float(widths[0] + widths[1]) / 2.0


def _find_bearded(head: FittedHead) -> Bools:
    """(S, S) what lies below the base of the nose, where beards grow."""
    up = head_up(head.recovery.landmarks)
    x, y = head.recovery.landmarks[NOSE_BASE]
    rows, columns = np.mgrid[: head.size, : head.size] + 0.5
    return np.asarray((columns - x) * up[0] + (rows - y) * up[1] < 0.0)


def _soften(found: Bools, unit: float, config: OccluderConfig) -> Floats:
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    grown = cv2.dilate(found.astype(np.uint8), ellipse).astype(np.float32)
    share = cv2.GaussianBlur(grown, (0, 0), config.softness * unit)
    return np.asarray(np.minimum(config.gain * share, 1.0), dtype=np.float32)


def _is_behind_lens(
    excess: Floats, facing: Bools, lids: Floats, eye: float, config: OccluderConfig
) -> bool:
    """Whether the skin right below an eye's (6, 2) lids is darker than the fitted face explains."""
    across = (lids[3] - lids[0]) / max(float(np.linalg.norm(lids[3] - lids[0])), 1e-6)
    down = np.array([-across[1], across[0]])
    reach = config.below_eye_across
    grid = np.meshgrid(np.linspace(-reach, reach, 7), np.linspace(*config.below_eye, 5))
    steps = np.stack(grid, axis=-1).reshape(-1, 2)
    at = lids.mean(0) + eye * (steps[:, :1] * across + steps[:, 1:] * down)
    x, y = np.clip(np.floor(at).astype(np.int64), 0, len(excess) - 1).T
    shown = facing[y, x]
    return bool(shown.mean() > 0.5 and np.median(excess[y, x][shown]) < config.lens)


def find_unexplained(
    frame: Frame,
    model: MorphableModel,
    error: Floats,
    seen: Bools,
    config: OcclusionMaskConfig = OCCLUSION_MASK,
) -> Bools:
    """(S, S) of the skin ``seen`` where the (S, S) mean absolute colour ``error`` is large."""
    names = [name for name in config.painted if name in model.region_names]
    painted = np.isin(model.region, [model.region_names.index(name) for name in names])
    tau = np.where(painted[frame.triangle], config.painted_tau, config.tau)
    return np.asarray(seen & (blur_within(error, seen, config.blur * len(error)) > tau))


def blur_within(values: Floats, mask: Bools, sd: float) -> Floats:
    """(H, W) Gaussian average of the values inside ``mask`` only."""
    inside = mask.astype(np.float32)
    total = cv2.GaussianBlur(
        values.astype(np.float32) * inside, (0, 0), sd, borderType=cv2.BORDER_CONSTANT
    )
    weight = cv2.GaussianBlur(inside, (0, 0), sd, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(total / np.maximum(weight, 1e-6))
