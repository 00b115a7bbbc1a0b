"""From the light behind a lens to the bytes of a JPEG: silhouettes, blur, tone, noise, compression."""

from __future__ import annotations

import cv2
import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from face.arrays import Bytes, Floats
from face.render.frame import Frame
from face.render.lanes import LANES, look_up
from pipeline.sampling import Sensor

CREASE = 0.006  # metres of depth between neighbouring pixels from which an inner silhouette is softened
STEPS = 2048  # of a tone curve
RANGE = 2.0  # brightest light that a tone curve tells from brighter
GRAIN_BITS = 11  # of the number of values that grain takes: up to 3.5 standard deviations


def over(colour: Floats, frame: Frame, covered: Floats, background: Floats) -> NDArray[np.float32]:
    """(H, W, 3) float32: the face's (H, W, 3) ``colour`` over a ``background``, its silhouettes anti-aliased.

    Where the face is ``covered`` ((H, W), 0..1: by clothes) it shows what is drawn behind it.

    The coverage of a pixel is that of its 3 x 3 neighbourhood under a binomial kernel, so that it reaches half a pixel
    to both sides of the exact edge. Silhouettes inside the face (the nose before the cheek) are softened alike.
    """
    out = np.array(background, dtype=np.float32, order="C")
    _over(
        np.ascontiguousarray(colour, dtype=np.float32),
        frame.triangle,
        frame.depth,
        np.ascontiguousarray(covered, dtype=np.float32),
        np.float32(CREASE),
        out,
    )
    return out


@numba.njit(cache=True, nogil=True)
def _over(colour, ids, depth, covered, crease, out):  # type: ignore[no-untyped-def]
    """Lay the face over ``out``, which holds the background."""
    height, width = ids.shape
    top, bottom, first, last = height, -1, width, -1
    for row in range(height):
        for column in range(width):
            if ids[row, column] >= 0:
                top, bottom = min(top, row), max(bottom, row)
                first, last = min(first, column), max(last, column)
    if bottom < 0:
        return
    top, bottom = max(top - 1, 0), min(bottom + 1, height - 1)
    first, last = max(first - 1, 0), min(last + 1, width - 1)
    edge = np.zeros((height, width), dtype=np.bool_)
    for row in range(top, bottom + 1):
        for column in range(first, last + 1):
            here, inside = depth[row, column], ids[row, column] >= 0
            for way in range(4):  # right, and the three below: each pair of neighbours is compared once
                r = row if way == 0 else row + 1
                c = column + 1 if way == 0 else column + way - 2
                if r > bottom or c < first or c > last:
                    continue
                if (ids[r, c] >= 0) != inside or (inside and abs(depth[r, c] - here) > crease):
                    edge[row, column] = True
                    edge[r, c] = True
    for row in range(top, bottom + 1):
        for column in range(first, last + 1):
            if not edge[row, column]:
                if ids[row, column] >= 0:
                    hidden = covered[row, column]
                    for k in range(3):
                        own = colour[row, column, k]
                        out[row, column, k] = own + hidden * (out[row, column, k] - own)
                continue
            total, shown = np.float32(0.0), np.float32(0.0)
            red, green, blue = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for r in range(max(row - 1, 0), min(row + 2, height)):
                for c in range(max(column - 1, 0), min(column + 2, width)):
                    weight = np.float32((2 - abs(r - row)) * (2 - abs(c - column)))
                    total += weight
                    if ids[r, c] >= 0:
                        weight *= np.float32(1.0) - covered[r, c]
                        shown += weight
                        red += weight * colour[r, c, 0]
                        green += weight * colour[r, c, 1]
                        blue += weight * colour[r, c, 2]
            rest = (total - shown) / total
            out[row, column, 0] = red / total + rest * out[row, column, 0]
            out[row, column, 1] = green / total + rest * out[row, column, 1]
            out[row, column, 2] = blue / total + rest * out[row, column, 2]


def exposed(image: Floats, sensor: Sensor) -> Bytes:
    """(H, W, 3) uint8 RGB of (H, W, 3) float32 light, 1 is white, as the ``sensor`` records it."""
    height, width = image.shape[:2]
    light = np.ascontiguousarray(image, dtype=np.float32)
    if sensor.shrink > 1.0:
        small = (max(round(width / sensor.shrink), 8), max(round(height / sensor.shrink), 8))
        light = cv2.resize(cv2.resize(light, small, interpolation=cv2.INTER_AREA), (width, height))
    if sensor.blur > 0.0:
        light = cv2.GaussianBlur(light, (0, 0), sensor.blur)
    out = np.empty(image.shape, dtype=np.uint8)
    gains = np.array(sensor.gains, dtype=np.float32)
    _exposed(light, gains, _curve(sensor), GRAIN, sensor.noise_seed, np.float32(sensor.noise), sensor.grey, out)
    return out


def _curve(sensor: Sensor) -> NDArray[np.float32]:
    """(STEPS,) levels 0..255 of light from 0 to RANGE.

    Above the shoulder the curve bends towards white instead of being cut there, as cameras and film do.
    """
    light = np.linspace(0.0, RANGE, STEPS)
    room = max(1.0 - sensor.shoulder, 1e-6)
    rolled = sensor.shoulder + room * -np.expm1(-np.maximum(light - sensor.shoulder, 0.0) / room)
    tone = np.where(light < sensor.shoulder, light, np.minimum(rolled, 1.0)) ** sensor.gamma
    return np.asarray(255.0 * np.clip(0.5 + (tone - 0.5) * sensor.contrast, 0.0, 1.0), dtype=np.float32)


def unexposed(values: Bytes, sensor: Sensor) -> Floats:
    """(..., 3) light that the ``sensor`` records as (..., 3) values 0..255: its tones undone, not its blur or noise.

    What it recorded as white or black was so much light at least, or at most.
    """
    light = np.interp(values, _curve(sensor), np.linspace(0.0, RANGE, STEPS))
    return np.asarray(light / np.array(sensor.gains))


def _normal_quantiles(count: int) -> NDArray[np.float32]:
    """(count,) values, as likely as each other, of a normal distribution of variance 1, cut at the outermost."""
    out = ndtri((np.arange(count) + 0.5) / count)
    return np.asarray(out / out.std(), dtype=np.float32)


GRAIN = _normal_quantiles(1 << GRAIN_BITS)


@numba.njit(cache=True, nogil=True)
def _scattered(number):  # type: ignore[no-untyped-def]
    """A uint32 whose bits all depend on all bits of ``number``. Source: Wellons, "Hash Function Prospector" (2018)."""
    number ^= number >> np.uint32(16)
    number = np.uint32(number * np.uint32(0x7FEB352D))
    number ^= number >> np.uint32(15)
    number = np.uint32(number * np.uint32(0x846CA68B))
    return np.uint32(number ^ (number >> np.uint32(16)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _exposed(light, gains, curve, grain, seed, strength, grey, out):  # type: ignore[no-untyped-def]
    """Tone and grain. The grain of the n-th value of an image is a hash of n and the seed: no state, no table of noise.

    Its standard deviation grows with the level: ``strength`` of the whole range at mid grey, half of that at black.
    """
    height, width, _ = light.shape
    count = 3 * width
    room = count + LANES
    places, values = np.zeros(2 * room, dtype=np.int32), np.zeros(2 * room, dtype=np.float32)
    last, half, white, zero = np.float32(len(curve) - 1), np.float32(0.5), np.float32(255.0), np.float32(0.0)
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
