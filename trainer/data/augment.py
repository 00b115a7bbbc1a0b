"""Random camera effects and occluders, which rendered faces lack and photos have.

All functions take (S, S, 3) uint8 RGB and keep every pixel in its place, so the targets stay
exact; ``occlude`` returns the mask of the covered pixels.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from scipy.special import ndtri

from dff.face.arrays import Bools, Bytes, Floats
from dff.trainer.data import kernels
from dff.trainer.data.config import OcclusionConfig, PhotometricConfig

_QUANTILES = 1 << 12
_LEVELS = np.linspace(0.0, 1.0, 256)


def augment_photometric(
    image: Bytes, config: PhotometricConfig, *, rng: np.random.Generator
) -> Bytes:
    """Apply each camera effect with its own probability, in the order of a camera."""
    out = _adjust_colours(image, config, rng)
    if rng.random() < config.grey_probability:
        out = np.repeat(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    if rng.random() < config.blur_probability:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(*config.blur)))
    if rng.random() < config.low_resolution_probability:
        out = _reduce_resolution(out, float(rng.uniform(*config.low_resolution)))
    if rng.random() < config.noise_probability:
        out = add_noise(out, float(rng.uniform(*config.noise)), rng=rng)
    if rng.random() < config.jpeg_probability:
        low, high = config.jpeg_quality
        out = _recompress(out, int(rng.integers(low, high + 1)))
    return np.asarray(out, dtype=np.uint8)


def _adjust_colours(image: Bytes, config: PhotometricConfig, rng: np.random.Generator) -> Bytes:
    """Exposure, white balance, contrast and gamma as one table per channel; then saturation."""
    gamma = float(np.exp(rng.uniform(*config.log_gamma)))
    contrast, shift = rng.uniform(*config.contrast), rng.uniform(*config.brightness)
    gains, table = rng.uniform(*config.channel_gain, 3), np.empty((1, 256, 3), np.uint8)
    kernels.tone_table(_LEVELS**gamma, contrast, gains, shift, table)
    out = cv2.LUT(image, table)
    if rng.random() < config.saturation_probability:
        grey = cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)
        keep = float(rng.uniform(*config.saturation))
        out = cv2.addWeighted(out, keep, cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), 1.0 - keep, 0.0)
    return np.asarray(out, dtype=np.uint8)


def _reduce_resolution(image: Bytes, factor: float) -> Bytes:
    size = image.shape[0]
    small = cv2.resize(image, (max(2, round(size * factor)),) * 2, interpolation=cv2.INTER_AREA)
    return np.asarray(
        cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.uint8
    )


@cache
def _normal_quantiles() -> Floats:
    """(2^12,) float32 of a normal distribution with a deviation of 1, from -3.7 to 3.7."""
    out = ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    return (out / out.std()).astype(np.float32)


def add_noise(image: Bytes, deviation: float, *, rng: np.random.Generator) -> Bytes:
    """An image with normal noise of ``deviation`` levels of 0..255, independent at each value.

    From a table of quantiles: eight times as fast as exact normal numbers.
    """
    out = np.empty(image.shape, np.uint8)
    bits = rng.bit_generator.random_raw(-(-image.size // 4)).view(np.uint16)  # half of rng.bytes
    image = np.ascontiguousarray(image)
    kernels.add_noise(image, bits, _normal_quantiles(), np.float32(deviation), out)
    return out


def _recompress(image: Bytes, quality: int) -> Bytes:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)


def occlude(
    image: Bytes, config: OcclusionConfig, *, rng: np.random.Generator
) -> tuple[Bytes, Bools]:
    """Draw occluders over an image; also the (S, S) mask of the pixels that they cover.

    Occluders are ellipses, convex polygons and bars, in a noisy colour or textured by another part
    of the image, so that skin occludes skin too, as a hand does.
    """
    size = image.shape[0]
    out, covered = image.copy(), np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(config.count[0], config.count[1] + 1))):
        shape = _draw_shape(size, config, rng)
        cv2.copyTo(_texture_occluder(image, config, rng), shape, out)
        covered |= shape
    return out, covered.astype(bool)


def _draw_shape(size: int, config: OcclusionConfig, rng: np.random.Generator) -> Bytes:
    """(size, size) 1 within a random ellipse, convex polygon or bar, else 0."""
    shape = np.zeros((size, size), np.uint8)
    centre = rng.uniform(0.0, size, 2)
    kind = rng.integers(3)
    if kind == 0:
        x, y = map(float, centre)
        width, height = map(float, 2 * (rng.uniform(*config.ellipse, 2) * size))
        cv2.ellipse(shape, ((x, y), (width, height), float(rng.uniform(0, 180))), 1, -1)
    elif kind == 1:
        spread = rng.uniform(*config.polygon) * size
        low, high = config.polygon_corners
        corners = centre + rng.uniform(-spread, spread, (int(rng.integers(low, high + 1)), 2))
        cv2.fillConvexPoly(shape, cv2.convexHull(corners.astype(np.int32)), 1)
    else:
        angle = rng.uniform(0, np.pi)
        along = np.array([np.cos(angle), np.sin(angle)]) * size * rng.uniform(*config.bar_length)
        ends = [tuple(map(int, centre + s * along)) for s in (-1, 1)]
        cv2.line(shape, ends[0], ends[1], 1, int(rng.uniform(*config.bar_width) * size) + 1)
    return shape


def _texture_occluder(image: Bytes, config: OcclusionConfig, rng: np.random.Generator) -> Bytes:
    """(S, S, 3): the image shifted by a quarter of its side or more, or one colour with noise."""
    size = image.shape[0]
    if rng.random() < config.copy_probability:
        return np.roll(image, tuple(rng.integers(size // 4, 3 * size // 4, 2)), axis=(0, 1))
    noise = cv2.resize(
        rng.standard_normal((8, 8, 1), dtype=np.float32),
        (size, size),
        interpolation=cv2.INTER_CUBIC,
    )
    colour = rng.uniform(0.0, 255.0, 3)
    out = np.empty(image.shape, np.uint8)
    kernels.colour_noise(noise, colour, np.float32(rng.uniform(*config.texture)), out)
    return out
