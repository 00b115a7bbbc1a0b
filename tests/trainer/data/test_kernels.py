"""Compiled loops of the training data equal their plain implementations, bit by bit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dff.face.geometry.camera import Box
from dff.trainer.data import kernels
from dff.trainer.data.config import AUGMENT
from dff.trainer.data.crops import (
    input_from_source,
    sample_crop_placement,
    warp,
)


def test_a_layer_is_blended_as_by_numpy() -> None:
    rng = np.random.default_rng(0)
    size, stride = 64, 2
    image, warped = rng.integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    ramp = np.clip(np.add.outer(np.arange(size), np.arange(size)) * 8 - 300, 0, 255)
    opacity = np.where(rng.random((size, size)) < 0.1, rng.integers(0, 256), ramp).astype(np.uint8)
    layer, front = np.full((size // stride) ** 2, 7), np.empty((size // stride) ** 2, bool)
    alpha = opacity[..., None].astype(np.float32) / 255.0
    wanted = np.rint(image + (warped.astype(np.float32) - image) * alpha).astype(np.uint8)
    half = size // stride
    cells = alpha.reshape(half, stride, half, stride).transpose(0, 2, 1, 3).reshape(-1, stride**2)
    wanted_layer = layer.copy()
    wanted_layer[cells.max(1) > np.float32(0.03)] = -1
    wanted_layer[cells.min(1) > np.float32(0.97)] = 2
    kernels.blend_layer(
        image, warped, opacity, 2, stride, np.float32(0.03), np.float32(0.97), layer, front
    )
    np.testing.assert_array_equal(image, wanted)
    np.testing.assert_array_equal(layer, wanted_layer)
    np.testing.assert_array_equal(front, cells.mean(1) > 0.5)
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
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    out = np.empty_like(image)
    kernels.add_noise(image, noise, np.float32(14.0), out)
    wanted = np.clip(image + noise * np.float32(14.0), 0.0, 255.0).astype(np.uint8)
    np.testing.assert_array_equal(out, wanted)


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


def test_cells_are_averaged_as_by_numpy() -> None:
    values = np.random.default_rng(0).normal(size=(12, 12, 2)).astype(np.float32)
    out = np.empty((36, 2))
    kernels.average_cells(values, 2, out)
    wanted = values.reshape(6, 2, 6, 2, 2).mean((1, 3), dtype=np.float64).reshape(-1, 2)
    np.testing.assert_array_equal(out, wanted)
