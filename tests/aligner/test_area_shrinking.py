"""Photos are shrunk to the pixels that OpenCV gives, in short steps."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from dff.aligner.area_shrinking import (
    CHUNK,
    STEP,
    resize_in_steps,
    shrink_by_area,
    shrink_in_steps,
)
from dff.aligner.detection import search_to_end
from dff.face.arrays import Bytes

SIZES = [  # height, width, and those of what is made of it
    (450, 450, 288, 288),
    (301, 407, 300, 406),
    (CHUNK + 1, 301, 20, 200),
    (CHUNK, 90, 31, 7),
    (CHUNK - 1, 90, 17, 41),
    (7 * CHUNK - 3, 500, 1, 1),
    (999, 40, 333, 13),  # whole rows only
    (40, 999, 13, 333),  # whole columns only
    (640, 480, 160, 120),  # blocks of whole pixels
    (640, 480, 80, 160),
    (3001, 2003, 767, 512),
]


def textured(height: int, width: int) -> Bytes:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width", "down", "across"), SIZES)
def test_the_pixels_are_those_of_opencv(height: int, width: int, down: int, across: int) -> None:
    image = textured(height, width)
    part = textured(height + 5, width + 9)[2:-3, 4:-5]  # whose rows lie apart in memory
    for one in (image, part):
        expected = cv2.resize(one, (across, down), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(shrink_by_area(one, (across, down)), expected)


def test_sizes_of_all_kinds_give_the_pixels_of_opencv() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        height, width = rng.integers(CHUNK, 300, 2).tolist()
        size = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
        image = textured(height, width)
        expected = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(shrink_by_area(image, size), expected)


@pytest.mark.parametrize("side", [1024, 1500])
def test_a_step_reads_few_pixels_of_a_large_photo(side: int) -> None:
    """6000 pixels are a multiple of the second side, but not of the first."""
    image = textured(600, 600).repeat(10, 0).repeat(10, 1)
    shrunk, pauses = collect(shrink_in_steps(image, (side, side)))
    assert pauses + 1 >= image.shape[0] * image.shape[1] / STEP
    expected = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(shrunk, expected)


def test_small_photos_take_one_step() -> None:
    _, pauses = collect(shrink_in_steps(textured(1500, 1300), (700, 800)))
    assert pauses == 0


def test_photos_near_the_size_are_interpolated_and_those_of_it_kept() -> None:
    image = textured(200, 100)
    assert search_to_end(resize_in_steps(image, (100, 200))) is image
    for size, method in (((80, 160), cv2.INTER_LINEAR), ((70, 140), cv2.INTER_AREA)):
        found = search_to_end(resize_in_steps(image, size))
        np.testing.assert_array_equal(found, cv2.resize(image, size, interpolation=method))


def collect(steps: Iterator[None]) -> tuple[Bytes, int]:
    """What a call in steps returns, and how often it pauses."""
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, pauses
        pauses += 1
