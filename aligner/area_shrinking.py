"""Photos shrunk by averages over areas: several times as fast as OpenCV does it, and in steps."""

from __future__ import annotations

import cv2
import numba
import numpy as np

from dff.aligner.detection import Search, search_to_end
from dff.face.arrays import Array, Bytes, Float, Int
from dff.face.numba_cache import CACHE

STEP = 10_000_000  # pixels of the photo that a step reads at most: a hundredth of a second
CHUNK = 32  # rows of the photo that are averaged side by side, in registers
# fraction of a pixel below which a pixel at the end of an area counts as none of it, as in OpenCV
LEAST_PART = 1e-3
NEAR_ONE = 0.75  # scale from which on pixels are interpolated rather than averaged


def shrink_by_area(image: Bytes, size: tuple[int, int]) -> Bytes:
    """(H, W, 3) uint8 pixels, of which each is the mean of an area of the image.

    ``size``: width and height, neither larger than the image's. The pixels are those of
    ``cv2.resize`` with ``INTER_AREA``, by the same sums in the same order; in very large
    images one value in some 50,000 is rounded to the next level.
    """
    return search_to_end(shrink_in_steps(image, size))


def resize_in_steps(image: Bytes, size: tuple[int, int]) -> Search[Bytes]:
    """An (H, W, 3) uint8 image at this width and height; itself where it has them.

    Near scale one averages over areas are slow, and little better than interpolation.
    """
    if size == image.shape[1::-1]:
        return image
    if max(size) / max(image.shape[:2]) < NEAR_ONE:
        shrunk = yield from shrink_in_steps(image, size)
        return shrunk
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))


def shrink_in_steps(image: Bytes, size: tuple[int, int]) -> Search[Bytes]:
    """``shrink_by_area`` in steps, each of which reads at most ``STEP`` pixels."""
    (height, width), (across, down) = image.shape[:2], size
    if width % across == 0 and height % down == 0:  # OpenCV is fast at averages of whole blocks
        shrunk = yield from _average_blocks(image, size)
        return shrunk
    if height < CHUNK or across > width or down > height:
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    columns, rows = _divide(width, across), _divide(height, down)
    out, sums = np.empty((down, across, 3), np.uint8), np.empty(3 * across, np.float32)
    turned = np.empty((3 * width, CHUNK), np.uint8)
    averaged = np.empty((CHUNK, 3 * across), np.float32)
    done = read = 0
    while done < height:
        if read + CHUNK * width > STEP:
            yield
            read = 0
        top = min(done, height - CHUNK)
        cv2.transpose(image[top : top + CHUNK].reshape(CHUNK, -1), turned)
        _average_chunk(turned, top, done, columns, rows, averaged, sums, out)
        done, read = top + CHUNK, read + CHUNK * width
    return out


def _average_blocks(image: Bytes, size: tuple[int, int]) -> Search[Bytes]:
    """``shrink_in_steps`` where each area is a block of whole pixels."""
    (height, width), (across, down) = image.shape[:2], size
    block = height // down
    step = max(STEP // (block * width), 1)  # rows of blocks
    parts = list[Bytes]()
    for top in range(0, down, step):
        if parts:
            yield
        part = image[top * block : (top + step) * block]
        some = across, len(part) // block
        parts.append(cv2.resize(part, some, interpolation=cv2.INTER_AREA))
    return np.concatenate(parts) if len(parts) > 1 else np.asarray(parts[0])


def _divide(
    length: int, count: int
) -> tuple[Int[Array, " areas"], Int[Array, " ends"], Float[Array, " parts"]]:
    """``count`` equal areas along a side: the first pixel of each, and the weights of its pixels.

    The weights of area ``i`` are those from ``ends[i]`` to ``ends[i + 1]``.
    """
    scale = length / count
    begin = np.arange(count) * scale
    end, area = begin + scale, np.minimum(scale, length - begin)
    last = np.minimum(np.floor(end).astype(int), length - 1)
    first = np.minimum(np.ceil(begin).astype(int), last)
    before, behind = first - begin > LEAST_PART, end - last > LEAST_PART
    counts = before.astype(int) + (last - first) + behind
    ends = np.concatenate([[0], np.cumsum(counts)])
    weight = np.repeat((1.0 / area).astype(np.float32), counts)
    weight[ends[:-1][before]] = ((first - begin) / area)[before]
    part = np.minimum(np.minimum(end - last, 1.0), area) / area
    weight[ends[1:][behind] - 1] = part[behind]
    return first - before, ends, weight


@numba.njit(cache=CACHE, nogil=True)
def _average_chunk(turned, top, done, columns, rows, averaged, sums, out):  # type: ignore[no-untyped-def]
    """Add the rows of a chunk, those from ``done`` on, to the areas that they are of.

    ``turned``: the chunk that begins in row ``top``, its rows and columns exchanged. ``sums``: of
    the area that the chunk before began and this one goes on with.
    """
    _average_along_rows(turned.reshape(-1), *columns, averaged)
    first, ends, weight = rows
    area = max(np.searchsorted(first, done, side="right") - 1, 0)
    while area > 0 and first[area - 1] + ends[area] - ends[area - 1] > done:
        area -= 1
    while area < len(first) and first[area] < top + CHUNK:
        for part in range(ends[area], ends[area + 1]):
            row = first[area] + part - ends[area]
            if done <= row < top + CHUNK:
                line = averaged[row - top]
                if part == ends[area]:
                    for t in range(len(sums)):
                        sums[t] = weight[part] * line[t]
                else:
                    for t in range(len(sums)):
                        sums[t] += weight[part] * line[t]
                if part + 1 == ends[area + 1]:
                    _round(sums, out[area].reshape(-1))
        area += 1


@numba.njit(cache=CACHE, nogil=True)
def _average_along_rows(turned, first, ends, weight, averaged):  # type: ignore[no-untyped-def]
    """Average each row of a chunk over areas; ``turned`` holds the chunk column by column."""
    sums, n = np.empty(3 * CHUNK, np.float32), np.uint64(3 * CHUNK)
    out, line = averaged.reshape(-1), np.uint64(averaged.shape[1])
    for area in range(len(first)):
        at = np.uint64(first[area]) * n
        sums[:] = 0.0
        for part in range(ends[area], ends[area + 1]):
            share = weight[part]
            for t in range(n):
                sums[t] += np.float32(turned[at + t]) * share
            at += n
        to = np.uint64(3 * area)
        for row in range(np.uint64(CHUNK)):
            out[to] = sums[row]
            out[to + np.uint64(1)] = sums[row + np.uint64(CHUNK)]
            out[to + np.uint64(2)] = sums[row + np.uint64(2 * CHUNK)]
            to += line


@numba.njit(cache=CACHE, nogil=True)
def _round(values, out):  # type: ignore[no-untyped-def]
    """Write means as levels."""
    for t in range(len(values)):
        out[t] = np.uint8(np.rint(min(max(values[t], np.float32(0.0)), np.float32(255.0))))
