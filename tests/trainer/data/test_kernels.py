"""Compiled loops of the training data equal their plain implementations."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import scipy.stats

from dff.face.geometry.camera import Box, Pinhole, WeakPerspective
from dff.face.geometry.transform import Rigid, rotation_from_vector
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.trainer.data import kernels
from dff.trainer.data.augment import add_noise
from dff.trainer.data.config import AUGMENT
from dff.trainer.data.crops import (
    input_from_source,
    sample_crop_placement,
    warp,
)


def test_a_layer_is_blended_as_by_numpy() -> None:
    """Over a part of an image; the rest of it stays as it is."""
    rng = np.random.default_rng(0)
    size, stride, left, top = 64, 2, 6, 20
    image = rng.integers(0, 256, (90, 90, 3)).astype(np.uint8)
    warped = rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
    ramp = np.clip(np.add.outer(np.arange(size), np.arange(size)) * 8 - 300, 0, 255)
    opacity = np.where(rng.random((size, size)) < 0.1, rng.integers(0, 256), ramp).astype(np.uint8)
    layer, front = np.full(45 * 45, 7), np.zeros(45 * 45, bool)
    alpha = opacity[..., None].astype(np.float32) / 255.0
    wanted = image.copy()
    part = wanted[top : top + size, left : left + size]
    part[:] = np.rint(part + (warped.astype(np.float32) - part) * alpha).astype(np.uint8)
    half = size // stride
    cells = alpha.reshape(half, stride, half, stride).transpose(0, 2, 1, 3)
    cells = cells.reshape(half, half, stride**2)
    wanted_layer, wanted_front = np.full((45, 45), 7), np.zeros((45, 45), bool)
    own = np.s_[top // 2 : top // 2 + half, left // 2 : left // 2 + half]
    wanted_layer[own][cells.max(-1) > np.float32(0.03)] = -1
    wanted_layer[own][cells.min(-1) > np.float32(0.97)] = 2
    wanted_front[own] = cells.mean(-1) > 0.5
    bounds = np.float32(0.03), np.float32(0.97)
    kernels.blend_layer(image, warped, opacity, left, top, 2, stride, *bounds, layer, front)
    np.testing.assert_array_equal(image, wanted)
    np.testing.assert_array_equal(layer, wanted_layer.ravel())
    np.testing.assert_array_equal(front, wanted_front.ravel())
    assert {-1, 2, 7} == set(layer.tolist())


def test_the_extent_of_a_head() -> None:
    triangle = np.full((40, 50), 0xFFFF, np.uint16)
    assert kernels.head_extent(triangle, 100) == (50, 50, 0)
    triangle[12, 9], triangle[30, 33] = 4, 99
    triangle[3, 44] = 100  # no triangle of the model
    assert kernels.head_extent(triangle, 100) == (9, 34, 12)


def test_an_opacity_fades_as_by_numpy() -> None:
    distance = np.random.default_rng(0).uniform(0, 30, (20, 30)).astype(np.float32)
    out = np.empty(distance.shape, np.uint8)
    kernels.fade(distance, np.float32(17.3), np.float32(6.1), out)
    wanted = np.clip((np.float32(17.3) - distance) / np.float32(6.1), 0.0, 1.0) * 255.0
    np.testing.assert_array_equal(out, wanted.astype(np.uint8))


def test_noise_is_added_as_by_numpy() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 20, 3)).astype(np.uint8)
    bits = rng.integers(0, 1 << 16, image.size, dtype=np.uint16)
    quantiles = np.linspace(-3, 3, 256, dtype=np.float32)
    out = np.empty_like(image)
    kernels.add_noise(image, bits, quantiles, np.float32(14.0), out)
    noise = quantiles[bits >> 8].reshape(image.shape)
    wanted = np.clip(image + noise * np.float32(14.0), 0.0, 255.0).astype(np.uint8)
    np.testing.assert_array_equal(out, wanted)


def test_noise_is_normal_and_independent() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = add_noise(grey, 20.0, rng=np.random.default_rng(0)).astype(float).reshape(-1, 3)
    noise -= 127.5  # levels are cut off, not rounded
    assert np.abs(noise.mean(0)).max() < 0.3
    np.testing.assert_allclose(np.cov(noise.T), 400.0 * np.eye(3), atol=6.0)
    assert abs(np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1]) < 0.02
    assert scipy.stats.kstest(noise[:, 0] / 20.0, "norm").statistic < 0.015
    assert np.mean(np.abs(noise) > 60.0) == pytest.approx(0.0027, abs=0.0007)


def test_a_noisy_colour_is_made_as_by_numpy() -> None:
    rng = np.random.default_rng(0)
    noise, colour = rng.standard_normal((20, 30), dtype=np.float32), rng.uniform(0, 255, 3)
    out = np.empty((20, 30, 3), np.uint8)
    kernels.colour_noise(noise, colour, np.float32(60.0), out)
    wanted = np.clip(colour + noise[..., None] * np.float32(60.0), 0.0, 255.0).astype(np.uint8)
    np.testing.assert_array_equal(out, wanted)


def test_output_pixels_are_classified_as_by_numpy() -> None:
    rng = np.random.default_rng(0)
    triangle, (anchored, skin) = rng.integers(0, 50, 400), rng.random((2, 50)) < 0.4
    candidates, face = np.empty(400, np.int64), np.empty(400, np.float32)
    count = kernels.classify(triangle, anchored, skin, candidates, face)
    np.testing.assert_array_equal(candidates[:count], np.flatnonzero(anchored[triangle]))
    np.testing.assert_array_equal(face, skin[triangle])


@pytest.mark.parametrize("pinhole", [True, False])
def test_a_face_is_projected_as_by_the_model_and_its_camera(
    open_head: MorphableModel, pinhole: bool
) -> None:
    rng = np.random.default_rng(0)
    face = Coefficients(
        rng.standard_normal(len(open_head.identity)),
        rng.uniform(0, 1, len(open_head.expression))
        * (rng.random(len(open_head.expression)) < 0.2),
    )
    pose = Rigid(rotation_from_vector(np.array([0.2, 0.5, -0.1])), np.array([0.02, 0.01, 0.7]))
    centre = np.array([80.0, 70.0])
    camera = Pinhole(300.0, centre) if pinhole else WeakPerspective(900.0, centre)
    cam = pose.apply(open_head.vertices(face))
    neutral = open_head.vertices(replace(face, expression=np.zeros(0)))
    used = np.flatnonzero(face.expression)
    px, weight = np.empty((len(cam), 2)), np.empty(len(cam))
    kernels.project_face(
        open_head.template,
        (neutral - open_head.template).astype(np.float32),
        open_head.expression.reshape(len(open_head.expression), -1),
        used,
        face.expression[used].astype(np.float32),
        pose.rotation,
        pose.translation,
        camera.focal if isinstance(camera, Pinhole) else camera.scale,
        centre,
        pinhole,
        px,
        weight,
    )
    np.testing.assert_allclose(px, camera.px_from_cam(cam), atol=1e-5)
    np.testing.assert_allclose(weight, camera.screen_weight(cam), rtol=1e-7)


def test_displaced_pixels_are_located_as_by_numpy() -> None:
    rng = np.random.default_rng(0)
    size, stride = 32, 2
    back = rng.normal(size=(2, 3)).astype(np.float32)
    linear, smooth = (rng.normal(size=s).astype(np.float32) for s in ((2, 2), (size, size, 2)))
    middle = np.arange(size) + 0.5
    pixel = np.stack(np.meshgrid(middle, middle), axis=-1)
    displacement = smooth.copy()
    kernels.displace(linear, displacement)
    np.testing.assert_allclose(
        displacement, (pixel - size / 2) @ linear.T.astype(float) + smooth, atol=1e-5
    )
    source, centres = np.empty_like(displacement), np.empty(((size // stride) ** 2, 2))
    kernels.locate_displaced(displacement, back, stride, source, centres)
    wanted = (pixel + displacement) @ back[:, :2].T.astype(float) + back[:, 2]
    np.testing.assert_allclose(source, wanted - 0.5, atol=1e-4)
    cells = wanted.reshape(size // stride, stride, size // stride, stride, 2)
    np.testing.assert_allclose(centres, cells.mean((1, 3)).reshape(-1, 2), atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_a_crop_is_low_passed_as_if_the_whole_image_were(seed: int) -> None:
    """Though only the part that it shows is filtered, also across the image's border."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (300, 260, 3)).astype(np.uint8)
    x, y = rng.uniform(-40, 200, 2)
    box, size = Box(x, y, x + 130 + 40 * seed, y + 90), 48
    matrix = input_from_source(box, size, sample_crop_placement(AUGMENT.placement, rng=rng))
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    deviation = 0.45 * float(np.sqrt(1.0 / scale**2 - 1.0))
    filtered = cv2.GaussianBlur(image, (0, 0), deviation)
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5
    for border in (cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT):
        wanted = cv2.warpAffine(
            filtered, shifted, (size, size), flags=cv2.INTER_LINEAR, borderMode=border
        )
        mode = border if border == cv2.BORDER_REPLICATE else (0, 0, 0)
        np.testing.assert_array_equal(warp(image, matrix, size, mode), wanted)
