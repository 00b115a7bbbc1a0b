"""Backgrounds of views: random patterns, and the surroundings of the person's own photo.

Images are (H, W, 3) float32 RGB in 0..1. Patterns are drawn at low resolution and enlarged: a
background is mostly out of focus, and so it costs far less than the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Bytes, Floats
from dff.face.geometry.transform import rotation_2d

KINDS = ("gradient", "clouds", "shapes", "texture", "surroundings")
PATTERNS = KINDS[:4]


@dataclass(frozen=True)
class BackgroundConfig:
    """The distribution of backgrounds. Ranges are uniform."""

    surroundings_share: float = 0.5  # of a photo's views: its own surroundings
    # Brightness: a beta distribution, scaled and shifted. Most backgrounds are rather dark.
    brightness: tuple[float, float] = (1.1, 1.6)
    brightness_scale: tuple[float, float] = (0.92, 0.03)
    # Colours (log): nearly grey, warm more often than cool, hardly ever vividly green or violet.
    warmth: float = 0.05  # mean
    warmth_sd: float = 0.10
    vivid_warmth_sd: float = 0.22
    vivid_share: float = 0.15
    green_sd: float = 0.035
    # Patterns
    side: int = 128  # px, before they are enlarged
    octaves: tuple[int, ...] = (3, 6, 12, 24)  # cells of the layers of clouds along a side
    octave_gain: float = 0.6  # strength of a layer over that of the coarser one
    shapes: tuple[int, int] = (3, 14)  # their number; the upper end is excluded
    shape_radius: tuple[int, int] = (4, 56)  # px; the upper end is excluded
    shape_margin: int = 16  # px that a shape's centre may lie outside
    shape_blur: tuple[float, float] = (0.4, 5.0)  # px
    grain_cells: int = 20  # least number along a side
    grain_strength: tuple[float, float] = (0.05, 0.02)  # mean, standard deviation
    # The photo's surroundings
    zoom: tuple[float, float] = (0.8, 2.2)
    rotation_sd: float = 12.0  # degrees
    shift_sd: float = 0.15  # of the image's side
    blur: tuple[float, float] = (0.0, 4.0)  # px
    least_blur: float = 0.3  # px: less is none


BACKGROUND = BackgroundConfig()


@dataclass(frozen=True)
class Background:
    """A background by name and seed: enough to draw it again. Raises ValueError for other names."""

    kind: str  # one of KINDS
    seed: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no background {self.kind!r}; there are {KINDS}")


def sample_background(
    *, rng: np.random.Generator, surroundings: bool, config: BackgroundConfig = BACKGROUND
) -> Background:
    """Draw a background. ``surroundings``: whether the person has a photo that offers them."""
    seed = int(rng.integers(2**31))
    if surroundings and rng.random() < config.surroundings_share:
        return Background("surroundings", seed)
    return Background(PATTERNS[int(rng.integers(len(PATTERNS)))], seed)


def draw_background(
    background: Background,
    size: tuple[int, int],
    *,
    surroundings: Floats | None = None,
    config: BackgroundConfig = BACKGROUND,
) -> Floats:
    """(height, width, 3) float32 RGB in 0..1, for ``size`` (height, width).

    ``surroundings`` (R, R, 3) of the person's photo. Raises ValueError when they are asked for and
    not given.
    """
    rng = np.random.default_rng(background.seed)
    if background.kind == "surroundings":
        if surroundings is None:
            raise ValueError("a background of surroundings needs the photo's surroundings")
        drawn = _transform_surroundings(surroundings, size, config, rng)
    else:
        pattern = {
            "gradient": _draw_gradient,
            "clouds": _draw_clouds,
            "shapes": _draw_shapes,
            "texture": _draw_texture,
        }[background.kind]
        drawn = pattern(config, rng)
    clipped = np.clip(drawn, np.float32(0.0), np.float32(1.0))
    if clipped.shape[:2] == size:
        return clipped
    return np.asarray(cv2.resize(clipped, size[::-1]))


def _sample_colour(config: BackgroundConfig, rng: np.random.Generator) -> Floats:
    """(3,) a muted colour."""
    scale, least = config.brightness_scale
    level = rng.beta(*config.brightness) * scale + least
    warmth_sd = config.vivid_warmth_sd if rng.random() < config.vivid_share else config.warmth_sd
    warm, green = rng.normal(config.warmth, warmth_sd), rng.normal(0.0, config.green_sd)
    hue = np.exp(warm * np.array([1.0, 0.1, -1.0]) + green * np.array([-0.5, 1.0, -0.5]))
    return np.asarray(np.clip(level * hue, 0.0, 1.0), dtype=np.float32)


def _sample_corners(config: BackgroundConfig, rng: np.random.Generator) -> Floats:
    """(2, 2, 3) colours of an image's corners."""
    return np.stack([_sample_colour(config, rng) for _ in range(4)]).reshape(2, 2, 3)


def _draw_gradient(config: BackgroundConfig, rng: np.random.Generator) -> Floats:
    corners = _sample_corners(config, rng)
    return _enlarge(cv2.resize(corners, (9, 9), interpolation=cv2.INTER_LINEAR), config.side // 2)


def _draw_clouds(config: BackgroundConfig, rng: np.random.Generator) -> Floats:
    """Two colours mixed by noise of several scales."""
    one, other = _sample_colour(config, rng), _sample_colour(config, rng)
    coarse = config.side // 4
    mix = np.zeros((coarse, coarse), dtype=np.float32)
    for octave, cells in enumerate(config.octaves):
        layer = _enlarge(rng.standard_normal((cells, cells), dtype=np.float32), coarse)
        mix += layer * np.float32(config.octave_gain**octave)
    share = 0.5 + 0.5 * np.tanh(_enlarge(mix, config.side // 2))[..., None]
    return np.asarray(other + share * (one - other))


def _draw_shapes(config: BackgroundConfig, rng: np.random.Generator) -> Floats:
    """Ellipses and rectangles, out of focus."""
    corners = _sample_corners(config, rng)
    canvas = (255.0 * cv2.resize(corners, (config.side, config.side))).astype(np.uint8)
    for _ in range(int(rng.integers(*config.shapes))):
        _draw_shape(canvas, config, rng)
    blur = float(rng.uniform(*config.shape_blur))
    return cv2.GaussianBlur(canvas, (0, 0), blur).astype(np.float32) * np.float32(1.0 / 255.0)


def _draw_shape(canvas: Bytes, config: BackgroundConfig, rng: np.random.Generator) -> None:
    colour = tuple(int(255.0 * c) for c in _sample_colour(config, rng))
    margin = config.shape_margin
    x, y = (int(v) for v in rng.integers(-margin, config.side + margin, 2))
    a, b = (int(v) for v in rng.integers(*config.shape_radius, 2))
    if rng.random() < 0.5:
        angle = float(rng.uniform(0.0, 180.0))
        cv2.ellipse(canvas, (x, y), (a, b), angle, 0.0, 360.0, colour, -1, cv2.LINE_AA)
        return
    rectangle = ((float(x), float(y)), (2.0 * a, 2.0 * b), float(rng.uniform(0.0, 90.0)))
    corners = cv2.boxPoints(rectangle).astype(np.int32)
    cv2.fillConvexPoly(canvas, corners, colour, cv2.LINE_AA)


def _draw_texture(config: BackgroundConfig, rng: np.random.Generator) -> Floats:
    """Fine grain of any scale and direction over clouds: foliage, cloth, walls, hair."""
    side = (config.side, config.side)
    rows, columns = (int(v) for v in rng.integers(config.grain_cells, config.side, 2))
    grain = rng.standard_normal((rows, columns), dtype=np.float32)
    tint = rng.normal(*config.grain_strength, 3).astype(np.float32)
    clouds = cv2.resize(_draw_clouds(config, rng), side, interpolation=cv2.INTER_LINEAR)
    return np.asarray(
        clouds + cv2.resize(grain, side, interpolation=cv2.INTER_LINEAR)[..., None] * tint
    )


def _enlarge(field: Floats, side: int) -> Floats:
    """A coarse field on ``side`` x ``side``, by cubic interpolation."""
    return np.asarray(cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC))


def _transform_surroundings(
    surroundings: Floats, size: tuple[int, int], config: BackgroundConfig, rng: np.random.Generator
) -> Floats:
    """A mirrored, rotated and enlarged part of the photo's surroundings, more or less blurred."""
    h, w = surroundings.shape[:2]
    scale = size[0] / h * float(rng.uniform(*config.zoom))
    angle = np.deg2rad(rng.normal(0.0, config.rotation_sd))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    turn = scale * (rotation_2d(angle) * [flip, 1.0])
    shift = (
        np.array(size[::-1]) / 2.0
        + rng.normal(0.0, config.shift_sd, 2) * size[0]
        - turn @ np.array([w / 2.0, h / 2.0])
    )
    warp = np.concatenate([turn, shift[:, None]], axis=1)
    out = cv2.warpAffine(
        surroundings, warp, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    blur = float(rng.uniform(*config.blur))
    return np.asarray(cv2.GaussianBlur(out, (0, 0), blur) if blur > config.least_blur else out)
