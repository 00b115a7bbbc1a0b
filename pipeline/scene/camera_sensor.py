"""From the light behind a lens to the bytes of a JPEG: blur, tone, noise, compression."""

from __future__ import annotations

import math

import cv2
import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dff.face.arrays import Bytes, Floats
from dff.face.render.simd import LANES, look_up
from dff.pipeline.scene.sampling import Sensor

BLUR_REACH = 2.5  # standard deviations at which a blur ends: beyond are 1.2 %
STEPS = 2048  # of a tone curve
RANGE = 2.0  # brightest light that a tone curve tells from brighter
GRAIN_BITS = 11  # of the number of values that grain takes: up to 3.5 standard deviations


def exposed(image: Floats, sensor: Sensor) -> Bytes:
    """(H, W, 3) uint8 RGB of (H, W, 3) float32 light, 1 is white, as the ``sensor`` records it."""
    height, width = image.shape[:2]
    light = np.ascontiguousarray(image, dtype=np.float32)
    if sensor.shrink > 1.0:
        small = (max(round(width / sensor.shrink), 8), max(round(height / sensor.shrink), 8))
        light = cv2.resize(cv2.resize(light, small, interpolation=cv2.INTER_AREA), (width, height))
    if sensor.blur > 0.0:
        reach = 2 * math.ceil(BLUR_REACH * sensor.blur) + 1
        light = cv2.GaussianBlur(light, (reach, reach), sensor.blur)
    out = np.empty(image.shape, dtype=np.uint8)
    gains = np.array(sensor.gains, dtype=np.float32)
    _exposed(
        light,
        gains,
        _curve(sensor),
        GRAIN,
        sensor.noise_seed,
        np.float32(sensor.noise),
        sensor.grey,
        out,
    )
    return out


def _curve(sensor: Sensor) -> NDArray[np.float32]:
    """(STEPS,) levels 0..255 of light from 0 to RANGE.

    Above the shoulder the curve bends towards white instead of being cut there, as cameras and film
    do.
    """
    light = np.linspace(0.0, RANGE, STEPS)
    room = max(1.0 - sensor.shoulder, 1e-6)
    rolled = sensor.shoulder + room * -np.expm1(-np.maximum(light - sensor.shoulder, 0.0) / room)
    tone = np.where(light < sensor.shoulder, light, np.minimum(rolled, 1.0)) ** sensor.gamma
    return np.asarray(
        255.0 * np.clip(0.5 + (tone - 0.5) * sensor.contrast, 0.0, 1.0), dtype=np.float32
    )


def unexposed(values: Bytes, sensor: Sensor) -> Floats:
    """(..., 3) light that the ``sensor`` records as (..., 3) values 0..255: its tones undone, not
    its blur or noise.

    What it recorded as white or black was so much light at least, or at most.
    """
    light = np.interp(values, _curve(sensor), np.linspace(0.0, RANGE, STEPS))
    return np.asarray(light / np.array(sensor.gains))


def _normal_quantiles(count: int) -> NDArray[np.float32]:
    """(count,) values, as likely as each other, of a normal distribution of variance 1, cut at the
    outermost.
    """
    out = ndtri((np.arange(count) + 0.5) / count)
    return np.asarray(out / out.std(), dtype=np.float32)


GRAIN = _normal_quantiles(1 << GRAIN_BITS)


@numba.njit(cache=True, nogil=True)
def _scattered(number):  # type: ignore[no-untyped-def]
    """A uint32 whose bits all depend on all bits of ``number``. Source: Wellons, "Hash Function
    Prospector" (2018).
    """
    number ^= number >> np.uint32(16)
    number = np.uint32(number * np.uint32(0x7FEB352D))
    number ^= number >> np.uint32(15)
    number = np.uint32(number * np.uint32(0x846CA68B))
    return np.uint32(number ^ (number >> np.uint32(16)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _exposed(light, gains, curve, grain, seed, strength, grey, out):  # type: ignore[no-untyped-def]
    """Tone and grain. The grain of the n-th value of an image is a hash of n and the seed: no
    state, no table of noise.

    Its standard deviation grows with the level: ``strength`` of the whole range at mid grey, half
    of that at black.
    """
    height, width, _ = light.shape
    count = 3 * width
    room = count + LANES
    places, values = np.zeros(2 * room, dtype=np.int32), np.zeros(2 * room, dtype=np.float32)
    last, half, white, zero = (
        np.float32(len(curve) - 1),
        np.float32(0.5),
        np.float32(255.0),
        np.float32(0.0),
    )
    key, coarse = _scattered(np.uint32(seed)), np.uint32(32 - GRAIN_BITS)
    gain = np.empty(count, dtype=np.float32)
    for n in range(count):
        gain[n] = gains[n % 3] * last / np.float32(RANGE)
    for row in range(height):
        levels, pixels = light[row].reshape(-1), out[row].reshape(-1)
        first = np.uint32(key + np.uint32(row * count))
        for n in range(count):
            places[n] = np.int32(min(max(levels[n] * gain[n] + half, half), last))
        for n in range(count):
            places[n + room] = np.int32(_scattered(np.uint32(first + np.uint32(n))) >> coarse)
        for n in range(0, count, LANES):
            look_up(curve, places, np.uint64(n), 0, values, np.uint64(n))
            look_up(grain, places, np.uint64(n + room), 0, values, np.uint64(n + room))
        if grey:
            for n in range(0, count, 3):
                level = (
                    np.float32(0.299) * values[n]
                    + np.float32(0.587) * values[n + 1]
                    + np.float32(0.114) * values[n + 2]
                )
                for channel in range(3):
                    values[n + channel] = level
                    values[n + channel + room] = values[n + room]
        for n in range(count):
            level = values[n] + strength * (np.float32(127.5) + values[n]) * values[n + room]
            pixels[n] = np.uint8(min(max(level, zero), white) + half)


def jpeg(image: Bytes, quality: int) -> bytes:
    """The JPEG file of (H, W, 3) uint8 RGB. Raises ValueError when the image cannot be encoded."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"an image of {image.shape} cannot be encoded as JPEG")
    return bytes(data)
