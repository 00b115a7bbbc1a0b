from __future__ import annotations

import cv2
import numpy as np
import pytest

from dff.face.arrays import Bytes
from dff.infra.datasets.near_duplicates import (
    MAX_DISTANCE,
    describe_near_duplicates,
    find_near_duplicates,
    perceptual_hash,
)


def picture(seed: int, *, side: int = 200) -> Bytes:
    """A smooth random image, as photos are: most of its energy lies in the low frequencies."""
    rng = np.random.default_rng(seed)
    image = np.zeros((side, side, 3), np.float32)
    for cells in (3, 6, 12, 24):
        noise = rng.normal(0.0, 120.0 / cells**0.5, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + 128.0, 0, 255).astype(np.uint8)


def resized(image: Bytes, factor: float) -> Bytes:
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))


def reencoded(image: Bytes, quality: int) -> Bytes:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def distance(a: Bytes, b: Bytes) -> int:
    return int(np.bitwise_count(perceptual_hash(a) ^ perceptual_hash(b)).sum())


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_within_the_distance_and_other_images_are_not(seed: int) -> None:
    image = picture(seed)
    copies = [reencoded(image, 40), resized(image, 0.5), reencoded(resized(image, 1.6), 60)]
    copies.append(np.clip(image * 0.9 + 8.0, 0, 255).astype(np.uint8))
    assert max(distance(image, copy) for copy in copies) <= MAX_DISTANCE
    assert distance(image, picture(seed + 100)) > 2 * MAX_DISTANCE


def test_groups_are_chains_whatever_the_order_of_the_names() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**64, (40, 4), dtype=np.uint64)

    def flip(value: np.ndarray, bits: np.ndarray) -> np.ndarray:
        mask = np.zeros(256, np.uint8)
        mask[bits] = 1
        return np.asarray(value ^ np.packbits(mask).view(np.uint64))

    hashes = {f"other{i}": value for i, value in enumerate(base)}
    bits = rng.permutation(256)
    hashes["b"] = flip(base[0], bits[:31])  # 31 from other0
    hashes["c"] = flip(base[0], bits[:62])  # 31 from b, 62 from other0
    hashes["d"] = flip(base[1], bits[:32])  # one bit too far
    hashes["e"] = base[2]
    wanted = [("b", "c", "other0"), ("e", "other2")]
    assert find_near_duplicates(hashes) == wanted
    assert find_near_duplicates(dict(reversed(hashes.items()))) == wanted


def test_pairs_are_those_of_comparing_all() -> None:
    """Every distance up to 40 bits, spread at random, so that no word is spared."""
    rng = np.random.default_rng(1)
    for bits in range(41):
        value = rng.integers(0, 2**64, 4, dtype=np.uint64)
        mask = np.zeros(256, np.uint8)
        mask[rng.choice(256, bits, replace=False)] = 1
        pair = {"a": value, "b": value ^ np.packbits(mask).view(np.uint64)}
        assert bool(find_near_duplicates(pair)) == (bits <= MAX_DISTANCE)


def test_none_and_one_have_no_duplicates() -> None:
    assert find_near_duplicates({}) == []
    assert find_near_duplicates({"a": perceptual_hash(picture(0))}) == []


def test_flat_images_are_near_duplicates_of_each_other() -> None:
    hashes = {str(v): perceptual_hash(np.full((50, 50, 3), v, np.uint8)) for v in (0, 90, 255)}
    assert find_near_duplicates(hashes) == [("0", "255", "90")]


def test_a_report_counts_all_and_names_the_first() -> None:
    groups = [("a", "b"), ("c", "d", "e"), ("f", "g")]
    assert describe_near_duplicates(groups, shown=2) == (
        "7 photos are near-duplicates, in 3 groups: a, b; c, d, e; and 1 more"
    )
    odd = describe_near_duplicates([("line\nbreak", "latin\udce9")])
    assert odd.endswith(r"line\nbreak, latin\udce9")
