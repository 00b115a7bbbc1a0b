from __future__ import annotations

import numba
import numpy as np
import pytest

from dff.face.geometry.interpolation import (
    bilinear,
    bilinear_cell,
    bilinear_with_gradient,
    smoothstep,
)


def test_bilinear_samples_and_their_gradient() -> None:
    rng = np.random.default_rng(1)
    image = rng.uniform(size=(12, 15, 3))
    centres = np.stack(np.meshgrid(np.arange(15) + 0.5, np.arange(12) + 0.5), axis=-1).reshape(
        -1, 2
    )
    values, _ = bilinear_with_gradient(image, centres)
    np.testing.assert_allclose(values.reshape(12, 15, 3), image, atol=2e-3)
    inside = np.floor(rng.uniform(1, 11, (50, 2))) + 0.5 + rng.uniform(0.1, 0.9, (50, 2))
    _, gradient = bilinear_with_gradient(image, inside)
    for axis in range(2):
        step = np.eye(2)[axis] * 0.02
        after, before = (bilinear_with_gradient(image, inside + s)[0] for s in (step, -step))
        np.testing.assert_allclose(gradient[..., axis], (after - before) / 0.04, atol=1e-4)


def test_bilinear_samples_are_the_image_at_pixel_centres_and_its_border_beyond() -> None:
    image = np.random.default_rng(2).uniform(size=(4, 5, 2))
    x, y = np.meshgrid(np.arange(5) + 0.5, np.arange(4) + 0.5)
    found = bilinear(image, np.stack([x, y], axis=-1).reshape(-1, 2))
    np.testing.assert_array_equal(found.reshape(4, 5, 2), image)
    beyond = bilinear(image, np.array([[-3.0, 0.5], [99.0, 99.0]]))
    np.testing.assert_array_equal(beyond, image[[0, 3], [0, 4]])


def test_both_samplers_agree_inside_the_image() -> None:
    rng = np.random.default_rng(3)
    image, px = rng.uniform(size=(9, 8, 3)), rng.uniform(0.5, 7.4, (100, 2))
    both = bilinear(image, px), bilinear_with_gradient(image, px)[0]
    np.testing.assert_allclose(*both, atol=1e-6)


@numba.njit
def _sample(image, x, y):  # type: ignore[no-untyped-def]
    rows, columns = image.shape
    left, top, fx, fy = bilinear_cell(x - 0.5, y - 0.5, columns, rows)
    right, bottom = min(left + 1, columns - 1), min(top + 1, rows - 1)
    upper = image[top, left] * (1 - fx) + image[top, right] * fx
    lower = image[bottom, left] * (1 - fx) + image[bottom, right] * fx
    return upper * (1 - fy) + lower * fy


@pytest.mark.parametrize("shape", [(6, 7), (1, 7), (6, 1), (1, 1)])
def test_the_cell_of_compiled_code_gives_the_same_samples(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    image, px = rng.uniform(size=shape), rng.uniform(-2, 9, (200, 2))
    expected = bilinear(image[..., None], px)[:, 0]
    assert [_sample(image, x, y) for x, y in px.tolist()] == expected.tolist()


def test_smoothstep_rises_from_zero_to_one_flat_at_both_ends() -> None:
    values = smoothstep(np.array([-9.0, 2.0, 3.0, 4.0, 9.0]), 2.0, 4.0)
    np.testing.assert_array_equal(values, [0.0, 0.0, 0.5, 1.0, 1.0])
    assert smoothstep(np.array(2.001), 2.0, 4.0) < 1e-6
    falling = smoothstep(np.array([0.0, 1.0]), 1.0, 0.0)
    np.testing.assert_array_equal(falling, [1.0, 0.0])
