"""What separates rendered faces from photos, put on at random: colour, blur, low resolution, grain,
JPEG, occluders.

All act on (S, S, 3) uint8 RGB and keep every pixel in its place, so the targets stay true;
``occlude`` says what it covered.
"""

from __future__ import annotations

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes


def augment_photometric(image: Bytes, *, rng: np.random.Generator) -> Bytes:
    """The image through another camera: each effect with its own probability, in the order of a
    real one.
    """
    out = _adjust_colours(image, rng)
    if rng.random() < 0.15:
        out = np.repeat(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    if rng.random() < 0.3:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.4, 1.6)))
    if rng.random() < 0.3:
        out = _reduce_resolution(out, float(rng.uniform(0.35, 0.8)))
    if rng.random() < 0.4:
        out = _add_grain(out, float(rng.uniform(2.0, 14.0)), rng)
    if rng.random() < 0.4:
        out = _recompress(out, int(rng.integers(20, 85)))
    return np.asarray(out, dtype=np.uint8)


def _adjust_colours(image: Bytes, rng: np.random.Generator) -> Bytes:
    """Exposure, white balance, contrast and gamma as one table per channel; then saturation."""
    level = np.linspace(0.0, 1.0, 256)
    gamma = float(np.exp(rng.uniform(-0.4, 0.4)))
    contrast, shift = rng.uniform(0.65, 1.25), rng.uniform(-0.12, 0.12)
    gains = rng.uniform(0.88, 1.12, 3)
    table = ((level**gamma)[:, None] - 0.5) * contrast * gains + 0.5 + shift
    out = cv2.LUT(image, (np.clip(table, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)[None])
    if rng.random() < 0.4:
        grey = cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)
        keep = float(rng.uniform(0.2, 1.5))
        out = cv2.addWeighted(out, keep, cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), 1.0 - keep, 0.0)
    return np.asarray(out, dtype=np.uint8)


def _reduce_resolution(image: Bytes, factor: float) -> Bytes:
    size = image.shape[0]
    small = cv2.resize(image, (max(2, round(size * factor)),) * 2, interpolation=cv2.INTER_AREA)
    return np.asarray(
        cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.uint8
    )


def _add_grain(image: Bytes, deviation: float, rng: np.random.Generator) -> Bytes:
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(deviation)
    return np.clip(image + noise, 0.0, 255.0).astype(np.uint8)


def _recompress(image: Bytes, quality: int) -> Bytes:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)


def occlude(image: Bytes, *, rng: np.random.Generator) -> tuple[Bytes, Bools]:
    """(image with one or two things before it, (S, S) which pixels they cover).

    Shapes are ellipses, convex polygons and bars; their surface is a plain colour with cloudy
    noise, or another part of the same image, so that skin over skin (a hand) happens too.
    """
    size = image.shape[0]
    out, covered = image.copy(), np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(1, 3))):
        shape = np.zeros((size, size), np.uint8)
        centre = rng.uniform(0.0, size, 2)
        kind = rng.integers(3)
        if kind == 0:
            axes = rng.uniform(0.06, 0.28, 2) * size
            where = (
                tuple(map(float, centre)),
                tuple(map(float, 2 * axes)),
                float(rng.uniform(0, 180)),
            )
            cv2.ellipse(shape, where, 1, -1)
        elif kind == 1:
            spread = rng.uniform(0.1, 0.32) * size
            corners = centre + rng.uniform(-spread, spread, (int(rng.integers(4, 9)), 2))
            cv2.fillConvexPoly(shape, cv2.convexHull(corners.astype(np.int32)), 1)
        else:
            angle = rng.uniform(0, np.pi)
            along = np.array([np.cos(angle), np.sin(angle)]) * size * rng.uniform(0.2, 1.0)
            ends = [tuple(map(int, centre + s * along)) for s in (-1, 1)]
            cv2.line(shape, ends[0], ends[1], 1, int(rng.uniform(0.03, 0.14) * size) + 1)
        surface = _surface(image, rng)
        out = np.where(shape[..., None] > 0, surface, out)
        covered |= shape
    return np.asarray(out, dtype=np.uint8), covered.astype(bool)


def _surface(image: Bytes, rng: np.random.Generator) -> Bytes:
    size = image.shape[0]
    if rng.random() < 0.4:
        return np.roll(image, tuple(rng.integers(size // 4, 3 * size // 4, 2)), axis=(0, 1))
    cloud = cv2.resize(
        rng.standard_normal((8, 8, 1), dtype=np.float32),
        (size, size),
        interpolation=cv2.INTER_CUBIC,
    )
    colour = rng.uniform(0.0, 255.0, 3)
    return np.clip(colour + cloud[..., None] * rng.uniform(0.0, 40.0), 0.0, 255.0).astype(np.uint8)
