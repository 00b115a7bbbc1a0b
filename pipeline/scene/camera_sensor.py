"""The camera: how it frames a face, and its sensor, from light to the bytes of a JPEG.

The sensor model is blur, white balance, a tone curve, noise and compression. Lengths are metres,
frames as in ``dff.face.geometry.transform``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import Pinhole
from dff.face.geometry.transform import Rigid
from dff.face.numba_cache import CACHE
from dff.face.render.simd import LANES, look_up

GRAIN_BITS = 11  # of the number of values that grain takes: up to 3.5 standard deviations


@dataclass(frozen=True)
class FramingConfig:
    """The distribution of framings. Ranges are uniform."""

    distance: tuple[float, float] = (0.25, 4.0)  # metres, uniform in the logarithm
    off_axis: tuple[float, float] = (0.08, 0.25)  # tangents: standard deviation, limit
    share: tuple[float, float] = (0.32, 0.66)  # of the side: the larger side of the landmark box
    jitter: float = 0.05  # standard deviation of the box's centre, in sides of the image
    # Of the box, in sides of the image: a head reaches further above its landmarks than below.
    centre: tuple[float, float] = (0.5, 0.54)


@dataclass(frozen=True)
class SensorConfig:
    """The distribution of sensors. Ranges are uniform."""

    white_balance_sd: float = 0.05  # as of ``sample_tint``
    gamma_sd: float = 0.12  # of the logarithm
    contrast_sd: float = 0.10  # of the logarithm
    low_resolution: tuple[float, float] = (1.3, 3.0)  # factor of a sensor of low resolution
    low_resolution_share: float = 0.25
    sharp_blur: tuple[float, float] = (0.3, 0.7)  # px
    soft_blur: tuple[float, float] = (0.7, 2.0)  # px
    sharp_share: float = 0.7
    noise: tuple[float, float] = (1.5, 0.008)  # shape and scale of a gamma distribution
    grey_share: float = 0.08
    high_quality: tuple[int, int] = (70, 97)  # of the JPEG; the upper end is excluded
    low_quality: tuple[int, int] = (30, 70)
    high_quality_share: float = 0.75
    shoulder: tuple[float, float] = (0.55, 1.0)


@dataclass(frozen=True)
class ToneCurve:
    """How finely, and up to which light, a tone curve is tabulated."""

    steps: int = 2048
    brightest: float = 2.0  # light above which all is recorded alike


FRAMING = FramingConfig()
SENSOR = SensorConfig()
TONE_CURVE = ToneCurve()
BLUR_REACH = 2.5  # standard deviations at which a blur ends: beyond are 1.2 %


@dataclass(frozen=True)
class Framing:
    """How a camera frames a face, independent of the face."""

    distance: float  # metres from the camera to the head's origin
    off_axis: tuple[float, float]  # tangents from the optical axis to the head: x right, y down
    share: float  # of the image's side that the larger side of the landmark box takes
    centre: tuple[float, float]  # of the landmark box, in sides of the image


def sample_framing(*, rng: np.random.Generator, config: FramingConfig = FRAMING) -> Framing:
    """Draw a framing, from a wide-angle selfie to a telephoto lens."""
    distance = float(np.exp(rng.uniform(*np.log(config.distance))))
    sd, limit = config.off_axis
    off_axis = rng.normal(0.0, sd, 2).clip(-limit, limit)
    share = float(rng.uniform(*config.share))
    room = (1.0 - share) / 2.0
    x, y = rng.normal(0.0, config.jitter, 2).clip(-room, room)
    centre = (float(config.centre[0] + x), float(config.centre[1] + y))
    return Framing(distance, (float(off_axis[0]), float(off_axis[1])), share, centre)


def frame_face(
    points: Floats, rotation: Floats, framing: Framing, size: int
) -> tuple[Rigid, Pinhole]:
    """``cam_from_head`` and the camera of a square image that frames (N, 3) head ``points``.

    ``size`` is the image's side in px. Raises ValueError when a point lies behind the camera.
    """
    distance = framing.distance
    x, y = framing.off_axis
    motion = Rigid(rotation, np.array([x * distance, y * distance, distance]))
    cam = motion.apply(points.astype(np.float64))
    if cam[:, 2].min() < 0.1 * distance:
        raise ValueError(f"a face at {distance} m reaches behind the camera")
    projected = cam[:, :2] / cam[:, 2:]
    low, high = projected.min(0), projected.max(0)
    focal = framing.share * size / float((high - low).max())
    centre = np.array(framing.centre) * size - focal * (low + high) / 2.0
    return motion, Pinhole(focal, centre)


@dataclass(frozen=True)
class Sensor:
    """Parameters of a camera's image formation."""

    gains: tuple[float, float, float]  # white balance, per channel
    gamma: float  # tone curve exponent
    contrast: float  # about mid grey
    shrink: float  # 1: full resolution; 2: half of it
    blur: float  # px, standard deviation
    noise: float  # standard deviation in 0..1 at mid grey
    noise_seed: int
    grey: bool
    quality: int  # of the JPEG
    shoulder: float  # level from which brighter light is compressed; 1: cut at white


NEUTRAL_SENSOR = Sensor((1.0, 1.0, 1.0), 1.0, 1.0, 1.0, 0.0, 0.0, 0, False, 95, 1.0)
"""A sensor that changes nothing."""


def sample_tint(sd: float, *, rng: np.random.Generator) -> Floats:
    """(3,) factors on RGB about 1: a colour of lamps or an error of the white balance.

    It varies by ``sd`` (of the logarithm) from warm to cool, and a fifth of that from green to
    pink.
    """
    warm, green = rng.normal(0.0, sd), rng.normal(0.0, 0.2 * sd)
    return np.exp(warm * np.array([1.0, 0.1, -1.0]) + green * np.array([-0.5, 1.0, -0.5]))


def sample_sensor(*, rng: np.random.Generator, config: SensorConfig = SENSOR) -> Sensor:
    """Draw a sensor: mostly a good one; some are blurred, of low resolution, noisy or grey."""
    c = config
    gains = sample_tint(c.white_balance_sd, rng=rng)
    return Sensor(
        gains=(float(gains[0]), float(gains[1]), float(gains[2])),
        gamma=float(np.exp(rng.normal(0.0, c.gamma_sd))),
        contrast=float(np.exp(rng.normal(0.0, c.contrast_sd))),
        # What is right of ``if`` is drawn first.
        shrink=float(rng.uniform(*c.low_resolution))
        if rng.random() < c.low_resolution_share
        else 1.0,
        blur=float(rng.uniform(*(c.sharp_blur if rng.random() < c.sharp_share else c.soft_blur))),
        noise=float(rng.gamma(*c.noise)),
        noise_seed=int(rng.integers(2**31)),
        grey=bool(rng.random() < c.grey_share),
        quality=int(
            rng.integers(
                *(c.high_quality if rng.random() < c.high_quality_share else c.low_quality)
            )
        ),
        shoulder=float(rng.uniform(*c.shoulder)),
    )


def apply_sensor(image: Floats, sensor: Sensor) -> Bytes:
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
    _record(
        light,
        np.array(sensor.gains, dtype=np.float32),
        _tabulate_tones(sensor),
        TONE_CURVE.brightest,
        GRAIN,
        sensor.noise_seed,
        np.float32(sensor.noise),
        sensor.grey,
        out,
    )
    return out


def _tabulate_tones(sensor: Sensor) -> NDArray[np.float32]:
    """(steps,) levels 0..255 of light from 0 to the brightest.

    Above the shoulder the curve bends towards white instead of being cut there, as cameras and film
    do.
    """
    light = np.linspace(0.0, TONE_CURVE.brightest, TONE_CURVE.steps)
    room = max(1.0 - sensor.shoulder, 1e-6)
    rolled = sensor.shoulder + room * -np.expm1(-np.maximum(light - sensor.shoulder, 0.0) / room)
    tone = np.where(light < sensor.shoulder, light, np.minimum(rolled, 1.0)) ** sensor.gamma
    return np.asarray(
        255.0 * np.clip(0.5 + (tone - 0.5) * sensor.contrast, 0.0, 1.0), dtype=np.float32
    )


def linearize(values: Bytes, sensor: Sensor) -> Floats:
    """(..., 3) light that the ``sensor`` records as (..., 3) values 0..255.

    This inverts white balance and tone curve, not blur or noise. Light recorded as white or black
    is returned as the least or the most that gives this value.
    """
    light = np.interp(
        values,
        _tabulate_tones(sensor),
        np.linspace(0.0, TONE_CURVE.brightest, TONE_CURVE.steps),
    )
    return np.asarray(light / np.array(sensor.gains))


def _normal_quantiles(count: int) -> NDArray[np.float32]:
    """(count,) equally likely values of a normal distribution of variance 1, cut at the ends."""
    out = ndtri((np.arange(count) + 0.5) / count)
    return np.asarray(out / out.std(), dtype=np.float32)


GRAIN = _normal_quantiles(1 << GRAIN_BITS)
"""The values of the sensor's noise, in standard deviations."""


@numba.njit(cache=CACHE, nogil=True)
def _scramble(number):  # type: ignore[no-untyped-def]
    """A uint32 whose bits all depend on all bits of ``number``.

    Source: Wellons, "Hash Function Prospector" (2018).
    """
    number ^= number >> np.uint32(16)
    number = np.uint32(number * np.uint32(0x7FEB352D))
    number ^= number >> np.uint32(15)
    number = np.uint32(number * np.uint32(0x846CA68B))
    return np.uint32(number ^ (number >> np.uint32(16)))


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _record(light, gains, curve, brightest, grain, seed, strength, grey, out):  # type: ignore[no-untyped-def]
    """Apply tone ``curve`` and noise. The noise of an image's n-th value is a hash of n and seed.

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
    key, coarse = _scramble(np.uint32(seed)), np.uint32(32 - GRAIN_BITS)
    gain = np.empty(count, dtype=np.float32)
    for n in range(count):
        gain[n] = gains[n % 3] * last / np.float32(brightest)
    for row in range(height):
        levels, pixels = light[row].reshape(-1), out[row].reshape(-1)
        first = np.uint32(key + np.uint32(row * count))
        for n in range(count):
            places[n] = np.int32(min(max(levels[n] * gain[n] + half, half), last))
        for n in range(count):
            places[n + room] = np.int32(_scramble(np.uint32(first + np.uint32(n))) >> coarse)
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


def encode_jpeg(image: Bytes, quality: int) -> bytes:
    """The JPEG file of (H, W, 3) uint8 RGB. Raises ValueError when the image can't be encoded."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"an image of {image.shape} cannot be encoded as JPEG")
    return bytes(data)
