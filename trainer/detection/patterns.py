"""Face-free images with the structures that a detector of faces mistakes for them.

Cloth, writing, leaves, petals, windows, hair: whatever has spots, rings and bars of a face's size.
All images are (size, size, 3) uint8 RGB, drawn from random numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from dff.face.arrays import Bytes, Floats
from dff.trainer.detection.config import PatternConfig

_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789&?!%@"


def draw_pattern(size: int, config: PatternConfig, *, rng: np.random.Generator) -> Bytes:
    """A pattern of a random kind, scale and rotation, more or less evenly lit."""
    draw = _KINDS[int(rng.integers(len(_KINDS)))]
    image = draw(size, config, rng)
    if rng.random() < config.turned_probability:
        zoom = float(np.exp(rng.uniform(*np.log(config.zoom))))
        turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(0.0, 360.0), zoom)
        image = cv2.warpAffine(image, turn, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    if rng.random() < config.bent_probability:
        image = _bend(image, config, rng)
    if rng.random() < config.shaded_probability:
        shade = _noise(size, (2, 4), rng)[..., None] * np.float32(rng.uniform(*config.shade))
        image = np.clip(image.astype(np.float32) * np.exp(shade), 0, 255).astype(np.uint8)
    return np.asarray(image, dtype=np.uint8)


def sample_colour(config: PatternConfig, *, rng: np.random.Generator) -> Floats:
    """(3,) RGB levels: of skin, grey, or any."""
    kind = rng.random()
    if kind < config.skin_share:
        light = rng.uniform(0.2, 1.0)
        return np.asarray(np.array([235.0, 185.0, 160.0]) * light ** np.array([1.0, 1.2, 1.4]))
    if kind < config.skin_share + config.grey_share:
        return np.asarray(rng.uniform(5.0, 250.0) + rng.normal(0.0, 6.0, 3))
    colour = rng.uniform(0.0, 255.0, 3)
    return np.asarray(colour.mean() + rng.uniform() * (colour - colour.mean()))


def _noise(size: int, cells: tuple[int, int], rng: np.random.Generator) -> Floats:
    """(size, size) float32 smooth noise of unit deviation; ``cells``: range of their numbers."""
    rows, columns = (int(n) for n in rng.integers(cells[0], cells[1] + 1, 2))
    field = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC))


def _mix(share: Floats, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    """(S, S, 3) two colours by (S, S) shares."""
    one, other = (sample_colour(config, rng=rng).astype(np.float32) for _ in range(2))
    share = share.astype(np.float32, copy=False)[..., None]
    return np.clip(one + share * (other - one), 0, 255).astype(np.uint8)


def _bend(image: Bytes, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    size = image.shape[0]
    strength = np.float32(rng.uniform(*config.bend) * size)
    grid = np.indices((size, size), dtype=np.float32)
    x, y = (grid[axis] + strength * _noise(size, (3, 6), rng) for axis in (1, 0))
    return np.asarray(
        cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101), np.uint8
    )


def _fractal(size: int, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    """Noise whose strength falls with the frequency, as that of photos does."""
    fall, total = rng.uniform(*config.octave_gain), np.zeros((size, size, 3), np.float32)
    common = rng.uniform(0.3, 1.0)  # share of the noise that all channels have
    for octave in range(6):
        cells = min(3 * 2**octave, size)
        grey = _noise(size, (cells, cells), rng)[..., None]
        hue = np.stack([_noise(size, (cells, cells), rng) for _ in range(3)], -1)
        total += np.float32(fall**octave) * (
            np.float32(common) * grey + np.float32(1 - common) * hue
        )
    total *= np.float32(rng.uniform(*config.contrast))
    total += sample_colour(config, rng=rng).astype(np.float32)
    return np.clip(total, 0, 255).astype(np.uint8)


def _blotches(size: int, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    """Noise in a few flat colours: rock, bark, foliage, camouflage."""
    field = _noise(size, (6, 14), rng) + np.float32(0.6) * _noise(size, (14, 40), rng)
    count = int(rng.integers(2, 6))
    level = np.digitize(field, np.sort(rng.normal(0.0, 0.8, count - 1)))
    palette = np.stack([sample_colour(config, rng=rng) for _ in range(count)])
    return np.clip(palette[level], 0, 255).astype(np.uint8)


def _weave(size: int, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    """Stripes, checks, plaid, knits."""
    y, x = np.indices((size, size), dtype=np.float32) * np.float32(2 * np.pi)
    waves = [
        np.sin(along / np.float32(rng.uniform(*config.period)) + rng.uniform(0, 6.3))
        for along in (x, y)
    ]
    kind = int(rng.integers(4))
    field = (waves[0], waves[0] * waves[1], waves[0] + waves[1], np.maximum(*waves))[kind]
    sharpness = np.float32(np.exp(rng.uniform(-0.5, 2.5)))
    return _mix(0.5 + 0.5 * np.tanh(sharpness * field), config, rng)


def _bricks(size: int, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    """Rows of rectangles with frames: bricks, windows, shelves, tiles."""
    frame, fill, inner = (sample_colour(config, rng=rng) for _ in range(3))
    image = np.empty((size, size, 3), np.uint8)
    image[:] = np.clip(frame, 0, 255)
    width, height = rng.uniform(*config.period, 2) * 1.5
    gap, staggered = rng.uniform(1.0, 0.3 * min(width, height) + 1.0), rng.random() < 0.5
    spread, crossed = rng.uniform(0.0, 40.0), rng.random() < 0.4
    for row in range(int(size / height) + 2):
        for column in range(-1, int(size / width) + 2):
            x = (column + 0.5 * (staggered and row % 2)) * width
            low = int(x), int(row * height)
            high = int(x + width - gap), int((row + 1) * height - gap)
            colour = np.clip(fill + rng.normal(0.0, spread), 0, 255).tolist()
            cv2.rectangle(image, low, high, colour, -1)
            if crossed:
                middle = (low[0] + high[0]) // 2, (low[1] + high[1]) // 2
                tone = np.clip(inner, 0, 255).tolist()
                cv2.line(image, (middle[0], low[1]), (middle[0], high[1]), tone, 1)
                cv2.line(image, (low[0], middle[1]), (high[0], middle[1]), tone, 1)
    return image


def _writing(size: int, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    image = _mix(0.5 + np.float32(0.2) * _noise(size, (2, 4), rng), config, rng)
    y, font = 0.0, _FONTS[int(rng.integers(len(_FONTS)))]
    scale = float(np.exp(rng.uniform(*np.log(config.letter))))
    colour = np.clip(sample_colour(config, rng=rng), 0, 255).tolist()
    while y < size + 20:
        line = "".join(rng.choice(list(_LETTERS + "    "), 16))
        y += 30 * scale * rng.uniform(0.9, 1.3)
        place = int(rng.uniform(-0.4, 0.2) * size), int(y)
        cv2.putText(image, line, place, font, scale, colour, int(rng.integers(1, 4)), cv2.LINE_AA)
    return image


def _petals(size: int, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    """Rings and spirals about centres: flowers, wheels, ears, shells, knots."""
    y, x = np.indices((size, size), dtype=np.float32)
    image = _mix(0.5 + np.float32(0.3) * _noise(size, (2, 6), rng), config, rng)
    for _ in range(int(rng.integers(1, 6))):
        centre, radius = rng.uniform(0, size, 2), float(np.exp(rng.uniform(np.log(8), np.log(70))))
        dx, dy = (
            x - np.float32(centre[0]),
            (y - np.float32(centre[1])) * np.float32(rng.uniform(0.6, 1.6)),
        )
        far = np.hypot(dx, dy) + np.float32(0.12 * radius) * _noise(size, (6, 16), rng)
        wave = np.float32(rng.uniform(2.0, 9.0)) * far / np.float32(radius) * 2
        wave += np.float32(rng.integers(0, 7)) * np.arctan2(dy, dx)
        inside = (far < radius)[..., None]
        ring = _mix(
            0.5 + 0.5 * np.tanh(np.float32(rng.uniform(0.5, 3.0)) * np.sin(wave)), config, rng
        )
        image = np.where(inside, ring, image)
    return image


def _leaves(size: int, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    """Many ellipses over each other, lit from one side."""
    image = _mix(0.5 + np.float32(0.3) * _noise(size, (2, 6), rng), config, rng)
    colour, length = sample_colour(config, rng=rng), float(np.exp(rng.uniform(1.2, 3.4)))
    slim, spread = rng.uniform(0.2, 1.0), rng.uniform(10.0, 60.0)
    for x, y, angle in rng.uniform(0.0, 1.0, (int(rng.integers(20, 140)), 3)):
        place = int(x * size), int(y * size)
        axes = max(int(length * rng.uniform(0.6, 1.4)), 1), max(int(slim * length), 1)
        tone = np.clip(colour + rng.normal(0.0, spread) + rng.normal(0.0, 8.0, 3), 0, 255)
        cv2.ellipse(image, place, axes, 360.0 * angle, 0, 360, tone.tolist(), -1, cv2.LINE_AA)
        cv2.ellipse(
            image, place, axes, 360.0 * angle, 0, 180, (0.6 * tone).tolist(), 1, cv2.LINE_AA
        )
    return image


def _strands(size: int, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    """Hair, fur, grass, folds: noise that is long in one direction."""
    long, fine = int(rng.integers(1, 6)), int(rng.integers(size // 8 + 1, size + 1))
    field = rng.standard_normal((long, fine), dtype=np.float32)
    streaks = cv2.resize(field, (size, size), interpolation=cv2.INTER_LINEAR)
    image = _mix(0.5 + np.float32(rng.uniform(0.1, 0.5)) * streaks, config, rng)
    return _bend(image, config, rng)


def _things(size: int, config: PatternConfig, rng: np.random.Generator) -> Bytes:
    """Discs, rings, boxes, bars and arcs: buttons, lamps, signs, handles."""
    image = _mix(0.5 + np.float32(0.3) * _noise(size, (2, 8), rng), config, rng)
    for _ in range(int(rng.integers(4, 30))):
        x, y = (int(v) for v in rng.uniform(0, size, 2))
        radius = int(np.exp(rng.uniform(np.log(2), np.log(30))))
        colour = np.clip(sample_colour(config, rng=rng), 0, 255).tolist()
        thick = -1 if rng.random() < 0.5 else int(rng.integers(1, 5))
        kind = int(rng.integers(4))
        if kind == 0:
            cv2.circle(image, (x, y), radius, colour, thick, cv2.LINE_AA)
        elif kind == 1:
            other = x + int(rng.integers(-30, 31)), y + int(rng.integers(-30, 31))
            cv2.rectangle(image, (x, y), other, colour, thick)
        elif kind == 2:
            other = x + int(rng.integers(-60, 61)), y + int(rng.integers(-60, 61))
            cv2.line(image, (x, y), other, colour, abs(thick) + 1, cv2.LINE_AA)
        else:
            axes, start = (radius + 1, int(rng.integers(1, radius + 2))), rng.uniform(0, 360)
            end = start + rng.uniform(60, 300)
            cv2.ellipse(image, (x, y), axes, rng.uniform(0, 180), start, end, colour, 2)
    return image


_KINDS: tuple[Callable[[int, PatternConfig, np.random.Generator], Bytes], ...] = (
    _fractal,
    _blotches,
    _weave,
    _bricks,
    _writing,
    _petals,
    _leaves,
    _strands,
    _things,
)
