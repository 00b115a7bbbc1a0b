"""From the light behind a lens to the bytes of a JPEG: silhouettes, blur, tone, noise, compression."""

from __future__ import annotations

from functools import cache

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from face.arrays import Bytes, Floats
from face.render.frame import Frame
from pipeline.sampling import Sensor

STEPS = 1024  # of a tone curve
NOISE_SIDE = 512
CREASE = 0.006  # metres of depth between neighbouring pixels from which an inner silhouette is softened


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


@cache
def _noise() -> NDArray[np.float32]:
    """One tile of standard normal grain that all images share, each from its own corner."""
    return np.random.default_rng(9).standard_normal((NOISE_SIDE, NOISE_SIDE, 3)).astype(np.float32)


def exposed(image: Floats, sensor: Sensor) -> Bytes:
    """(H, W, 3) uint8 RGB of (H, W, 3) float32 light in 0..1, as the ``sensor`` records it."""
    height, width = image.shape[:2]
    light = np.ascontiguousarray(image, dtype=np.float32)
    if sensor.shrink > 1.0:
        small = (max(round(width / sensor.shrink), 8), max(round(height / sensor.shrink), 8))
        light = cv2.resize(cv2.resize(light, small, interpolation=cv2.INTER_AREA), (width, height))
    if sensor.blur > 0.0:
        light = cv2.GaussianBlur(light, (0, 0), sensor.blur)
    level = np.arange(STEPS) / (STEPS - 1.0)
    curves = np.stack([np.clip(level * gain, 0.0, 1.0) ** sensor.gamma for gain in sensor.gains], axis=1)
    curves = (255.0 * np.clip(0.5 + (curves - 0.5) * sensor.contrast, 0.0, 1.0)).astype(np.float32)
    top, left = divmod(sensor.noise_seed, NOISE_SIDE)
    out = np.empty(image.shape, dtype=np.uint8)
    _exposed(light, curves, _noise(), top % NOISE_SIDE, left, np.float32(sensor.noise), sensor.grey, out)
    return out


@numba.njit(cache=True, nogil=True)
def _exposed(light, curves, noise, top, left, strength, grey, out):  # type: ignore[no-untyped-def]
    height, width, _ = light.shape
    side = noise.shape[0]
    last = np.float32(len(curves) - 1)
    half, white = np.float32(0.5), np.float32(255.0)
    for row in range(height):
        grain_row = noise[(row + top) % side]
        at = left
        for column in range(width):
            red = curves[int(min(max(light[row, column, 0] * last + half, half), last)), 0]
            green = curves[int(min(max(light[row, column, 1] * last + half, half), last)), 1]
            blue = curves[int(min(max(light[row, column, 2] * last + half, half), last)), 2]
            r, g, b = grain_row[at, 0], grain_row[at, 1], grain_row[at, 2]
            if grey:
                red = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
                green, blue, g, b = red, red, r, r
            red += strength * (np.float32(127.5) + red) * r
            green += strength * (np.float32(127.5) + green) * g
            blue += strength * (np.float32(127.5) + blue) * b
            out[row, column, 0] = np.uint8(min(max(red, np.float32(0.0)), white) + half)
            out[row, column, 1] = np.uint8(min(max(green, np.float32(0.0)), white) + half)
            out[row, column, 2] = np.uint8(min(max(blue, np.float32(0.0)), white) + half)
            at += 1
            if at == side:
                at = 0


def jpeg(image: Bytes, quality: int) -> bytes:
    """The JPEG file of (H, W, 3) uint8 RGB. Raises ValueError when the image cannot be encoded."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"an image of {image.shape} cannot be encoded as JPEG")
    return bytes(data)
