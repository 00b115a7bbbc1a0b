"""Sensor and backgrounds against what they must do exactly."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.stats import norm

from dff.face.arrays import Floats
from dff.pipeline.recovery.inpainting import inpaint
from dff.pipeline.scene import backgrounds
from dff.pipeline.scene.camera_sensor import GRAIN, NEUTRAL_SENSOR, apply_sensor, encode_jpeg


def test_a_clean_sensor_only_rounds() -> None:
    image = np.random.default_rng(0).random((40, 50, 3)).astype(np.float32)
    assert (
        np.abs(apply_sensor(image, NEUTRAL_SENSOR) / 255.0 - image).max()
        < 0.5 / 255 + 0.5 / 1023 + 1e-6
    )
    assert (apply_sensor(image + 5.0, NEUTRAL_SENSOR) == 255).all()
    assert (apply_sensor(image - 5.0, NEUTRAL_SENSOR) == 0).all()


def test_each_step_of_the_sensor_changes_the_image_as_described() -> None:
    image = np.full((64, 64, 3), 0.5, np.float32)
    noisy = apply_sensor(image, replace(NEUTRAL_SENSOR, noise=0.03, noise_seed=12_345)) / 255.0
    assert noisy.std() == pytest.approx(0.03, rel=0.05)
    assert noisy.mean() == pytest.approx(0.5, abs=0.005)
    assert (
        apply_sensor(image, replace(NEUTRAL_SENSOR, noise=0.03, noise_seed=1))
        != np.round(noisy * 255)
    ).mean() > 0.8
    coloured = np.random.default_rng(1).random((64, 64, 3)).astype(np.float32)
    grey = apply_sensor(coloured, replace(NEUTRAL_SENSOR, grey=True, noise=0.02, noise_seed=3))
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 1] == grey[..., 2]).all()
    assert (
        apply_sensor(coloured, replace(NEUTRAL_SENSOR, shrink=3.0)).std()
        < 0.6 * apply_sensor(coloured, NEUTRAL_SENSOR).std()
    )
    assert (
        apply_sensor(coloured, replace(NEUTRAL_SENSOR, blur=2.0)).std()
        < 0.4 * apply_sensor(coloured, NEUTRAL_SENSOR).std()
    )
    red = apply_sensor(image, replace(NEUTRAL_SENSOR, gains=(1.5, 1.0, 1.0)))
    assert red[0, 0].tolist() == [191, 128, 128]


def grain_of(seed: int, noise: float = 0.05) -> Floats:
    """(200, 300, 3) the grain of a mid-grey picture, in standard deviations."""
    sensor = replace(
        NEUTRAL_SENSOR, noise=noise, noise_seed=seed, contrast=0.01
    )  # every light is mid grey
    picture = np.full((200, 300, 3), 0.5, np.float32)
    return np.asarray((apply_sensor(picture, sensor).astype(float) - 127.5) / (255.0 * noise))


def test_grain_is_normal_and_white() -> None:
    """Moments, tails and quantiles of a normal distribution; nothing alike between neighbours,
    channels and seeds.
    """
    one = grain_of(1)
    many = np.concatenate([grain_of(seed).ravel() for seed in range(2, 6)])
    assert abs(many.mean()) < 0.005
    assert many.std() == pytest.approx(1.0, abs=0.01)
    assert abs((many**3).mean()) < 0.02
    assert (many**4).mean() == pytest.approx(3.0, abs=0.06)
    for levels in (13, 26, 38):  # whole levels are where rounding parts its values
        share = 2.0 * norm.sf(levels / (255.0 * 0.05))
        assert (np.abs(many) > levels / (255.0 * 0.05)).mean() == pytest.approx(share, rel=0.1)
    for other in (one[:, 1:], one[1:], one[:, 7:], one[64:]):
        here = one[: other.shape[0], : other.shape[1]]
        assert abs(np.corrcoef(here.ravel(), other.ravel())[0, 1]) < 0.012
    red, green, blue = one.reshape(-1, 3).T
    assert np.abs(np.corrcoef([red, green, blue]) - np.eye(3)).max() < 0.015
    for seed in (2, 3, 2**31 - 1):
        assert abs(np.corrcoef(one.ravel(), grain_of(seed).ravel())[0, 1]) < 0.012
    # No stripes: the means of rows and columns are as small as those of independent numbers.
    assert one.mean(axis=(1, 2)).std() == pytest.approx(1.0 / np.sqrt(900), rel=0.2)
    assert one.mean(axis=(0, 2)).std() == pytest.approx(1.0 / np.sqrt(600), rel=0.2)
    assert len(GRAIN) == 2048
    assert GRAIN.std() == pytest.approx(1.0, abs=1e-6)


def test_grain_is_determined_by_the_seed_and_grows_with_light() -> None:
    assert np.array_equal(grain_of(7), grain_of(7))
    # Known answers: the same on every machine.
    first = apply_sensor(
        np.full((2, 2, 3), 0.5, np.float32), replace(NEUTRAL_SENSOR, noise=0.1, noise_seed=7)
    )
    assert first.ravel().tolist() == [116, 129, 158, 107, 154, 120, 125, 121, 154, 126, 74, 157]
    dark, bright = (
        apply_sensor(
            np.full((64, 64, 3), level, np.float32),
            replace(NEUTRAL_SENSOR, noise=0.02, noise_seed=3),
        )
        .astype(float)
        .std()
        for level in (0.3, 0.6)
    )
    assert bright / dark == pytest.approx(1.1 / 0.8, rel=0.05)


def test_a_blur_keeps_the_light() -> None:
    """A point of light is spread as by a Gaussian, and none of it is lost."""
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1.0
    for sigma in (0.4, 1.0, 2.0):
        spread = apply_sensor(point, replace(NEUTRAL_SENSOR, blur=sigma)) / 255.0
        expected = cv2.GaussianBlur(point, (31, 31), sigma)
        assert np.abs(spread - expected).max() < 0.02 + 1.0 / 255


def test_jpeg_keeps_rgb_and_is_smaller_at_lower_quality() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = 200
    back = cv2.imdecode(np.frombuffer(encode_jpeg(image, 95), np.uint8), cv2.IMREAD_COLOR)
    assert abs(int(back[16, 16, 2]) - 200) < 4
    assert back[16, 16, 0] < 4
    noise = np.random.default_rng(2).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert len(encode_jpeg(noise, 40)) < len(encode_jpeg(noise, 90))


@pytest.mark.parametrize("kind", backgrounds.KINDS)
def test_a_background_is_determined_by_its_name_and_seed(kind: str) -> None:
    around = np.random.default_rng(3).random((64, 64, 3)).astype(np.float32)
    one = backgrounds.draw_background(
        backgrounds.Background(kind, 5), (96, 80), surroundings=around
    )
    assert one.shape == (96, 80, 3)
    assert one.dtype == np.float32
    assert one.min() >= 0.0
    assert one.max() <= 1.0
    assert (
        one
        == backgrounds.draw_background(
            backgrounds.Background(kind, 5), (96, 80), surroundings=around
        )
    ).all()
    assert (
        one
        != backgrounds.draw_background(
            backgrounds.Background(kind, 6), (96, 80), surroundings=around
        )
    ).any()


def test_surroundings_show_nothing_of_the_face() -> None:
    photo = np.full((128, 128, 3), 0.2, np.float32)
    photo[..., 1] = 0.6
    face = np.zeros((128, 128), bool)
    face[30:90, 40:100] = True
    photo[face] = (1.0, 0.0, 0.0)
    around = inpaint(photo, face)
    assert around.shape == (64, 64, 3)
    assert np.abs(around - [0.2, 0.6, 0.2]).max() < 1e-3
    assert inpaint(photo, np.ones_like(face)).shape == (64, 64, 3)


def test_unknown_or_incomplete_backgrounds_are_refused() -> None:
    with pytest.raises(ValueError, match="no background"):
        backgrounds.Background("beach", 1)
    with pytest.raises(ValueError, match="surroundings"):
        backgrounds.draw_background(backgrounds.Background("surroundings", 1), (32, 32))
