"""Nine spherical harmonics: known answers and laws."""

from __future__ import annotations

import numpy as np
import pytest

from dff.face.geometry.lighting import ambient, basis, shade


def directions(n: int) -> np.ndarray:
    """(n, 3) unit vectors spread evenly over the sphere (Fibonacci)."""
    k = np.arange(n) + 0.5
    z, turn = 1.0 - 2.0 * k / n, np.pi * (1.0 + np.sqrt(5.0)) * k
    r = np.sqrt(1.0 - z * z)
    return np.stack([r * np.cos(turn), r * np.sin(turn), z], axis=1)


def test_the_basis_is_orthonormal() -> None:
    values = basis(directions(20000))
    gram = values.T @ values * (4.0 * np.pi / len(values))
    assert np.abs(gram - np.eye(9)).max() < 1e-3


def test_the_basis_has_its_published_constants() -> None:
    """The constants of Ramamoorthi and Hanrahan along the axes."""
    expected = [0.282095, 0.0, 0.488603, 0.0, 0.0, 0.0, 0.630784, 0.0, 0.0]
    assert np.allclose(basis(np.array([0.0, 0.0, 1.0])), expected)
    assert np.allclose(basis(np.array([0.0, 1.0, 0.0]))[[1, 8]], [0.488603, -0.546274])
    assert np.allclose(basis(np.array([1.0, 0.0, 0.0]))[[3, 8]], [0.488603, 0.546274])


def test_ambient_light_is_the_same_everywhere() -> None:
    assert np.allclose(shade(directions(50), ambient(0.7)), 0.7)


def test_shading_is_linear_until_it_is_dark() -> None:
    rng = np.random.default_rng(0)
    normals = directions(200)
    a, b = ambient() + 0.1 * rng.normal(size=(2, 9, 3))
    assert np.allclose(shade(normals, a + 2 * b), shade(normals, a) + 2 * shade(normals, b))
    assert shade(normals, -a).max() == 0.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_light_from_one_side_lights_that_side(axis: int) -> None:
    """The first nine coefficients of a clamped cosine approximate its shading."""
    toward = np.eye(3)[axis]
    normals = directions(4000)
    cosine = np.maximum(normals @ toward, 0.0)
    light = basis(normals).T @ cosine * (4.0 * np.pi / len(normals))
    shading = basis(normals) @ light
    assert np.abs(shading - cosine).max() < 0.1  # order 2 holds 99 % of the energy (the source)
    assert normals[shading.argmax()] @ toward > 0.99
