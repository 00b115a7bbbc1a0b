"""What stands behind a face: drawn patterns, and what the photo itself shows around its face.

Images are (H, W, 3) float32 RGB in 0..1. Fields are drawn coarse and enlarged: a background is
mostly out of focus, and this keeps its cost far below that of the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Bools, Floats

SIDE = 128  # px of what is drawn, before it is enlarged
KINDS = ("gradient", "clouds", "shapes", "texture", "surroundings")


@dataclass(frozen=True)
class Background:
    """A background by name and seed: enough to draw it again."""

    kind: str  # one of KINDS
    seed: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no background {self.kind!r}; there are {KINDS}")


def sample_background(*, rng: np.random.Generator, surroundings: bool) -> Background:
    """Any kind, ``surroundings`` half of the time where the subject's photo offers them."""
    seed = int(rng.integers(2**31))
    if surroundings and rng.random() < 0.5:
        return Background("surroundings", seed)
    return Background(KINDS[int(rng.integers(4))], seed)


def surroundings_of(photo: Floats, face: Bools) -> Floats:
    """The (H, W, 3) photo with its (H, W) face painted over by what lies around it, coarse to fine.

    Half the resolution of the photo: it is only ever shown out of focus.
    """
    small = cv2.resize(photo.astype(np.float32), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    reach = cv2.dilate(face.astype(np.uint8), np.ones((9, 9), np.uint8))
    away = 1.0 - cv2.resize(
        reach.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_AREA
    )
    away = np.where(away > 0.99, 1.0, 0.0).astype(np.float32)
    if not away.any():
        return np.full_like(small, small.mean(axis=(0, 1)))
    levels = [(small * away[..., None], away)]
    while min(levels[-1][1].shape) > 2:
        colour, weight = levels[-1]
        levels.append((cv2.pyrDown(colour), cv2.pyrDown(weight)))
    colour, weight = levels[-1]
    filled = colour / np.maximum(weight, 1e-6)[..., None]
    for colour, weight in reversed(levels[:-1]):
        up = cv2.pyrUp(filled, dstsize=colour.shape[1::-1])
        filled = colour + up * (1.0 - np.minimum(weight, 1.0))[..., None]
    return np.asarray(np.clip(filled, 0.0, 1.0), dtype=np.float32)


def _colour(rng: np.random.Generator) -> Floats:
    """(3,) a muted colour: most of what stands behind people is nearly grey and rather dark, warm
    more often than cool.

    Colours between warm and cool are common, green and violet ones hardly ever vivid.
    """
    level = rng.beta(1.1, 1.6) * 0.92 + 0.03
    warm, green = rng.normal(0.05, 0.22 if rng.random() < 0.15 else 0.10), rng.normal(0.0, 0.035)
    hue = np.exp(warm * np.array([1.0, 0.1, -1.0]) + green * np.array([-0.5, 1.0, -0.5]))
    return np.asarray(np.clip(level * hue, 0.0, 1.0), dtype=np.float32)


def _gradient(rng: np.random.Generator) -> Floats:
    corners = np.stack([_colour(rng) for _ in range(4)]).reshape(2, 2, 3)
    return _smooth(cv2.resize(corners, (9, 9), interpolation=cv2.INTER_LINEAR), 64)


def _clouds(rng: np.random.Generator) -> Floats:
    mid, other = _colour(rng), _colour(rng)
    mix = np.zeros((32, 32), dtype=np.float32)
    for octave, cells in enumerate((3, 6, 12, 24)):
        mix += _smooth(rng.standard_normal((cells, cells), dtype=np.float32), 32) * np.float32(
            0.6**octave
        )
    share = 0.5 + 0.5 * np.tanh(_smooth(mix, 64))[..., None]
    return np.asarray(other + share * (mid - other))


def _shapes(rng: np.random.Generator) -> Floats:
    side = SIDE
    corners = np.stack([_colour(rng) for _ in range(4)]).reshape(2, 2, 3)
    canvas = (255.0 * cv2.resize(corners, (side, side))).astype(np.uint8)
    for _ in range(int(rng.integers(3, 14))):
        colour = tuple(int(255.0 * c) for c in _colour(rng))
        x, y = (int(v) for v in rng.integers(-16, side + 16, 2))
        a, b = (int(v) for v in rng.integers(4, 56, 2))
        if rng.random() < 0.5:
            cv2.ellipse(
                canvas,
                (x, y),
                (a, b),
                float(rng.uniform(0.0, 180.0)),
                0.0,
                360.0,
                colour,
                -1,
                cv2.LINE_AA,
            )
        else:
            outline = cv2.boxPoints(
                ((float(x), float(y)), (2.0 * a, 2.0 * b), float(rng.uniform(0.0, 90.0)))
            )
            cv2.fillConvexPoly(canvas, outline.astype(np.int32), colour, cv2.LINE_AA)
    focus = float(rng.uniform(0.4, 5.0))
    return cv2.GaussianBlur(canvas, (0, 0), focus).astype(np.float32) * np.float32(1.0 / 255.0)


def _texture(rng: np.random.Generator) -> Floats:
    """Fine grain of any scale and direction over clouds: foliage, cloth, walls, hair."""
    cells = rng.integers(20, SIDE, 2)
    grain = rng.standard_normal((int(cells[0]), int(cells[1])), dtype=np.float32)
    tint = rng.normal(0.05, 0.02, 3).astype(np.float32)
    wall = cv2.resize(_clouds(rng), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return np.asarray(
        wall + cv2.resize(grain, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)[..., None] * tint
    )


def _smooth(field: Floats, side: int) -> Floats:
    """A coarse field on ``side`` x ``side``, by cubic weights: dear, but only coarse fields need
    them.
    """
    return np.asarray(cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC))


def _surroundings(around: Floats, size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """A mirrored, turned and enlarged part of the photo's surroundings, more or less out of
    focus.
    """
    h, w = around.shape[:2]
    scale = size[0] / h * float(rng.uniform(0.8, 2.2))
    angle = np.deg2rad(rng.normal(0.0, 12.0))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    turn = scale * np.array(
        [[flip * np.cos(angle), -np.sin(angle)], [flip * np.sin(angle), np.cos(angle)]]
    )
    shift = (
        np.array(size[::-1]) / 2.0
        + rng.normal(0.0, 0.15, 2) * size[0]
        - turn @ np.array([w / 2.0, h / 2.0])
    )
    warp = np.concatenate([turn, shift[:, None]], axis=1)
    out = cv2.warpAffine(
        around, warp, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    focus = float(rng.uniform(0.0, 4.0))
    return np.asarray(cv2.GaussianBlur(out, (0, 0), focus) if focus > 0.3 else out)


def draw(background: Background, size: tuple[int, int], *, around: Floats | None = None) -> Floats:
    """(height, width, 3) float32 RGB in 0..1; ``around`` is the photo's ``surroundings_of``.

    Raises ValueError when the surroundings are asked for and not given.
    """
    rng = np.random.default_rng(background.seed)
    if background.kind == "surroundings":
        if around is None:
            raise ValueError("a background of surroundings needs the photo's surroundings")
        coarse = _surroundings(around, size, rng)
    else:
        coarse = {"gradient": _gradient, "clouds": _clouds, "shapes": _shapes, "texture": _texture}[
            background.kind
        ](rng)
    within = np.clip(coarse, np.float32(0.0), np.float32(1.0))
    return within if within.shape[:2] == size else np.asarray(cv2.resize(within, size[::-1]))
