"""The two-sample test finds a difference where there is one, and none where there is none."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dff.face.arrays import Bytes
from dff.pipeline.inspection import realism
from dff.pipeline.inspection.realism import (
    CONFIG,
    Portrait,
    align_crop,
    mask_oval,
    match_shapes,
    reframe_photo,
    run_two_sample_test,
)
from dff.pipeline.recovery.photos import Photo
from dff.pipeline.scene.camera_sensor import sample_framing

COUNT = 120
SIDE = CONFIG.side


def picture(rng: np.random.Generator, side: int = SIDE) -> Bytes:
    """Blobs of several sizes: as rich as a photo, and each of its own."""
    out = np.zeros((side, side, 3))
    for cells in (4, 9, 20, side):
        noise = rng.normal(0.0, 60.0 / np.sqrt(cells), (cells, cells, 3))
        out += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(128.0 + out, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures() -> Bytes:
    rng = np.random.default_rng(0)
    return np.stack([picture(rng) for _ in range(COUNT)])


def halves() -> tuple[np.ndarray, list[str]]:
    return np.arange(COUNT) % 2 == 1, [f"person {i}" for i in range(COUNT)]


def portrait(pixels: Bytes, scale: float = 1.0) -> Portrait:
    rng = np.random.default_rng(3)
    side = len(pixels)
    landmarks = (0.5 + 0.25 * rng.uniform(-1, 1, (68, 2))) * side * scale
    return Portrait("someone", pixels, landmarks, (0.0, 0.0, float(side), float(side)))


def test_equal_distributions_give_chance(pictures: Bytes) -> None:
    made, people = halves()
    found = [run_two_sample_test(pictures, made, people, seed=seed) for seed in range(2)]
    assert np.mean([f.accuracy for f in found]) == pytest.approx(0.5, abs=0.08)
    assert all(f.low <= f.accuracy <= f.high and f.low < 0.56 for f in found)
    assert found[0] == run_two_sample_test(pictures, made, people, seed=0)


@pytest.mark.parametrize("change", ["smoother", "redder"])
def test_a_difference_is_found(pictures: Bytes, change: str) -> None:
    made, people = halves()
    altered = pictures.copy()
    for index in np.flatnonzero(made):
        if change == "smoother":
            altered[index] = cv2.GaussianBlur(pictures[index], (0, 0), 0.8)
        else:
            altered[index] = np.clip(pictures[index].astype(int) + np.array([25, 0, -25]), 0, 255)
    found = run_two_sample_test(altered, made, people, seed=0)
    assert found.accuracy > 0.85
    assert found.low > 0.75


def test_people_are_never_on_both_sides(pictures: Bytes) -> None:
    """Twelve people, each of one sample, with ten similar images: persons predict samples."""
    rng = np.random.default_rng(1)
    person = np.arange(COUNT) // 10
    made = person % 2 == 1
    noisy = np.clip(pictures[person] + rng.normal(0, 3, pictures.shape), 0, 255).astype(np.uint8)
    together = run_two_sample_test(noisy, made, [f"person {p}" for p in person], seed=0)
    leaking = run_two_sample_test(noisy, made, [f"person {i}" for i in range(COUNT)], seed=0)
    assert leaking.accuracy > 0.95
    assert together.accuracy < 0.75
    assert together.people == 12


def test_the_interval_covers_chance(pictures: Bytes) -> None:
    made, people = halves()
    found = run_two_sample_test(pictures, made, people, seed=5)
    assert found.high - found.low == pytest.approx(4 * 0.5 / np.sqrt(COUNT), rel=0.25)


def test_a_single_sample_is_refused(pictures: Bytes) -> None:
    with pytest.raises(ValueError, match="both samples"):
        run_two_sample_test(pictures, np.zeros(COUNT, bool), halves()[1], seed=0)


def test_crops_do_not_depend_on_the_size_of_the_image() -> None:
    rng = np.random.default_rng(2)
    large = cv2.GaussianBlur(picture(rng, 384), (0, 0), 8.0)
    small = cv2.resize(large, (192, 192), interpolation=cv2.INTER_AREA)
    crops = [
        align_crop(portrait(p), CONFIG.face_frame, rng=np.random.default_rng(4)).pixels.astype(int)
        for p in (large, small)
    ]
    assert crops[0].shape == (SIDE, SIDE, 3)
    assert np.abs(crops[0] - crops[1]).mean() < 1.0


def test_a_crop_follows_its_landmarks() -> None:
    pixels = picture(np.random.default_rng(5), 256)
    here = portrait(pixels, 0.8)
    moved = np.roll(pixels, (20, -12), (0, 1))
    there = replace(here, pixels=moved, landmarks=here.landmarks + np.array([-12, 20]))
    a, b = (
        align_crop(p, 1.0, rng=np.random.default_rng(6)).pixels.astype(int) for p in (here, there)
    )
    assert np.abs(a - b).max() <= 2


def test_a_frame_beyond_the_bounds_is_known() -> None:
    one = portrait(picture(np.random.default_rng(7), 128))
    assert align_crop(one, 1.2, rng=np.random.default_rng(0)).inside
    assert not align_crop(one, 3.0, rng=np.random.default_rng(0)).inside
    cut = replace(one, bounds=(40.0, 0.0, 128.0, 128.0))
    assert not align_crop(cut, 1.2, rng=np.random.default_rng(0)).inside


def test_an_oval_hides_all_that_lies_outside_it() -> None:
    a, b = np.zeros((2, SIDE, SIDE, 3), np.uint8), np.full((2, SIDE, SIDE, 3), 255, np.uint8)
    same = (mask_oval(a) == mask_oval(b)).all(axis=-1)
    share = np.pi * np.prod(CONFIG.oval)
    assert 1.0 - same.mean() == pytest.approx(share, abs=0.01)
    assert same[:, 0].all()
    assert same[:, :, -1].all()


def test_shapes_are_paired_once_and_only_when_near() -> None:
    rng = np.random.default_rng(8)
    real, made = rng.normal(0, 1, (60, 6)), rng.normal(0, 1, (40, 6))
    i, j = match_shapes(real, made, limit=1.0)
    assert len(set(i.tolist())) == len(i) == len(set(j.tolist())) > 5
    assert np.sqrt(((real[i] - made[j]) ** 2).sum(1) / 3).max() <= 1.0
    a, b = match_shapes(made, made[::-1], limit=1e-3)
    assert (made[a] == made[::-1][b]).all()
    assert len(a) == 40


def test_a_shape_does_not_depend_on_place_and_size() -> None:
    one = portrait(picture(np.random.default_rng(7), 128))
    other = replace(one, landmarks=one.landmarks * 2.5 + np.array([10.0, -3.0]))
    assert realism.normalise_landmarks(one) == pytest.approx(
        realism.normalise_landmarks(other), abs=1e-9
    )


def test_photos_are_framed_as_views_are_and_never_enlarged() -> None:
    rng = np.random.default_rng(9)
    photo = Photo("p", picture(rng, 400), 200 + 80 * rng.uniform(-1, 1, (68, 2)), "2d", "")
    for seed in range(8):
        one = reframe_photo(photo, "p", size=64, rng=np.random.default_rng(seed))
        wanted = sample_framing(rng=np.random.default_rng(seed)).share
        assert one is not None
        assert one.pixels.shape == (64, 64, 3)
        assert np.ptp(one.landmarks, axis=0).max() / 64 == pytest.approx(wanted, rel=0.01)
        left, top, right, bottom = one.bounds
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
    assert reframe_photo(photo, "p", size=1024, rng=rng) is None
