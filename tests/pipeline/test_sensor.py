"""Silhouettes, sensor and backgrounds against what they must do exactly."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from face.camera import Pinhole
from face.morphable import MorphableModel
from face.render.frame import render
from face.transform import Rigid, rotation_from_angles
from pipeline import backgrounds
from pipeline.sampling import CLEAN
from pipeline.sensor import exposed, jpeg, over


def test_only_silhouettes_are_mixed(toy_model: MorphableModel) -> None:
    cam = Rigid(rotation_from_angles(20, 0, 0), np.array([0.0, 0.0, 1.0])).apply(toy_model.template)
    frame = render(cam, toy_model.faces, Pinhole(300.0, np.array([48.0, 48.0])), (96, 96))
    face, wall = np.full((96, 96, 3), 0.9, np.float32), np.full((96, 96, 3), 0.1, np.float32)
    out = over(face, frame, np.zeros((96, 96), np.float32), wall)
    inside = cv2.erode(frame.mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
    outside = ~cv2.dilate(frame.mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert (out[inside] == np.float32(0.9)).all()
    assert (out[outside] == np.float32(0.1)).all()
    edge = out[~inside & ~outside]
    assert (edge > 0.1).all()
    assert (edge < 0.9).all()
    # The covered area stays what it was: 0.8 for each pixel of the mask.
    assert (out[..., 0] - 0.1).sum() / 0.8 == pytest.approx(frame.mask.sum(), rel=0.002)
    # On either side of an edge the face counts more inside than outside.
    ring = frame.mask & ~inside
    assert out[ring].mean() > 0.5 > out[~frame.mask & ~outside].mean()


def test_what_clothes_cover_shows_the_background(toy_model: MorphableModel) -> None:
    cam = Rigid(rotation_from_angles(0, 0, 0), np.array([0.0, 0.0, 1.0])).apply(toy_model.template)
    frame = render(cam, toy_model.faces, Pinhole(300.0, np.array([48.0, 48.0])), (96, 96))
    face, wall = np.full((96, 96, 3), 0.9, np.float32), np.full((96, 96, 3), 0.1, np.float32)
    covered = np.zeros((96, 96), np.float32)
    covered[60:] = 1.0
    out = over(face, frame, covered, wall)
    assert np.allclose(out[61:], 0.1)
    assert out[48, 48].tolist() == pytest.approx([0.9] * 3)


def test_a_clean_sensor_only_rounds() -> None:
    image = np.random.default_rng(0).random((40, 50, 3)).astype(np.float32)
    assert np.abs(exposed(image, CLEAN) / 255.0 - image).max() < 0.5 / 255 + 0.5 / 1023 + 1e-6
    assert (exposed(image + 5.0, CLEAN) == 255).all()
    assert (exposed(image - 5.0, CLEAN) == 0).all()


def test_what_a_sensor_does() -> None:
    image = np.full((64, 64, 3), 0.5, np.float32)
    noisy = exposed(image, replace(CLEAN, noise=0.03, noise_seed=12_345)) / 255.0
    assert noisy.std() == pytest.approx(0.03, rel=0.05)
    assert noisy.mean() == pytest.approx(0.5, abs=0.005)
    assert (exposed(image, replace(CLEAN, noise=0.03, noise_seed=1)) != np.round(noisy * 255)).mean() > 0.8
    coloured = np.random.default_rng(1).random((64, 64, 3)).astype(np.float32)
    grey = exposed(coloured, replace(CLEAN, grey=True, noise=0.02, noise_seed=3))
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 1] == grey[..., 2]).all()
    assert exposed(coloured, replace(CLEAN, shrink=3.0)).std() < 0.6 * exposed(coloured, CLEAN).std()
    assert exposed(coloured, replace(CLEAN, blur=2.0)).std() < 0.4 * exposed(coloured, CLEAN).std()
    red = exposed(image, replace(CLEAN, gains=(1.5, 1.0, 1.0)))
    assert red[0, 0].tolist() == [191, 128, 128]


def test_jpeg_keeps_rgb_and_is_smaller_at_lower_quality() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = 200
    back = cv2.imdecode(np.frombuffer(jpeg(image, 95), np.uint8), cv2.IMREAD_COLOR)
    assert abs(int(back[16, 16, 2]) - 200) < 4
    assert back[16, 16, 0] < 4
    noise = np.random.default_rng(2).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert len(jpeg(noise, 40)) < len(jpeg(noise, 90))


@pytest.mark.parametrize("kind", backgrounds.KINDS)
def test_a_background_is_its_name_and_seed(kind: str) -> None:
    around = np.random.default_rng(3).random((64, 64, 3)).astype(np.float32)
    one = backgrounds.draw(backgrounds.Background(kind, 5), (96, 80), around=around)
    assert one.shape == (96, 80, 3)
    assert one.dtype == np.float32
    assert one.min() >= 0.0
    assert one.max() <= 1.0
    assert (one == backgrounds.draw(backgrounds.Background(kind, 5), (96, 80), around=around)).all()
    assert (one != backgrounds.draw(backgrounds.Background(kind, 6), (96, 80), around=around)).any()


def test_surroundings_show_nothing_of_the_face() -> None:
    photo = np.full((128, 128, 3), 0.2, np.float32)
    photo[..., 1] = 0.6
    face = np.zeros((128, 128), bool)
    face[30:90, 40:100] = True
    photo[face] = (1.0, 0.0, 0.0)
    around = backgrounds.surroundings_of(photo, face)
    assert around.shape == (64, 64, 3)
    assert np.abs(around - [0.2, 0.6, 0.2]).max() < 1e-3
    assert backgrounds.surroundings_of(photo, np.ones_like(face)).shape == (64, 64, 3)


def test_unknown_or_incomplete_backgrounds_are_refused() -> None:
    with pytest.raises(ValueError, match="no background"):
        backgrounds.Background("beach", 1)
    with pytest.raises(ValueError, match="surroundings"):
        backgrounds.draw(backgrounds.Background("surroundings", 1), (32, 32))
