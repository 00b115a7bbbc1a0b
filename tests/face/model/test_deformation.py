"""Smooth fields are samples of the stated Gaussian process, whole and by parity."""

from __future__ import annotations

import numpy as np

from dff.face.model.deformation import gaussian_kernel, smooth_fields
from dff.face.model.morphable import MorphableModel

REACH = 0.05


def every_tenth(model: MorphableModel) -> np.ndarray:
    face = np.unique(model.faces[model.find_triangles("face")])
    return np.asarray(face[::10])


def gaussian(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-0.5 * (np.linalg.norm(a[:, None] - b, axis=2) / REACH) ** 2))


def test_they_are_a_gaussian_process(open_head: MorphableModel) -> None:
    vertex = every_tenth(open_head)
    fields = smooth_fields(open_head.template, vertex, reach=REACH, count=20)
    points = open_head.template[vertex].astype(float)
    short = gaussian(points, points) - fields[:, vertex].T @ fields[:, vertex]
    assert np.abs(short).mean() < 0.02  # what the finest fields, which are left out, would add
    assert np.diag(short).min() > -1e-9


def test_the_even_and_the_odd_part_are_the_whole(open_head: MorphableModel) -> None:
    vertex = every_tenth(open_head)
    points = open_head.template[vertex].astype(float)
    whole = np.zeros((len(vertex), len(vertex)))
    for parity in (1, -1):
        fields = smooth_fields(open_head.template, vertex, reach=REACH, count=20, parity=parity)
        covariance = fields[:, vertex].T @ fields[:, vertex]
        expected = (
            gaussian(points, points) + parity * gaussian(points * [-1.0, 1.0, 1.0], points)
        ) / 2.0
        assert np.abs(expected - covariance).mean() < 0.02
        whole += covariance
        mirrored = fields[:, open_head.mirror]
        assert np.abs(fields - parity * mirrored)[:, vertex].max() < 0.05
    assert np.abs(gaussian(points, points) - whole).mean() < 0.02


def test_which_way_a_field_points_is_not_left_to_rounding() -> None:
    """The sign of an odd field, which is largest at two places, does not depend on rounding."""
    half = np.random.default_rng(0).uniform([0.01, -0.1, -0.1], [0.1, 0.1, 0.1], (150, 3))
    cloud = np.concatenate([half, half * [-1.0, 1.0, 1.0]])
    vertex = np.arange(0, 300, 3)
    for parity in (1, -1):
        fields = smooth_fields(cloud, vertex, reach=REACH, count=10, parity=parity)
        peaks = fields[:, :150][np.arange(10), np.abs(fields[:, :150]).argmax(1)]
        assert (peaks > 0).all()
        np.testing.assert_allclose(fields[:, 150:], parity * fields[:, :150], atol=1e-9)


def test_few_vertices_have_few_fields(toy_model: MorphableModel) -> None:
    vertex = np.arange(5)
    assert len(smooth_fields(toy_model.template, vertex, reach=REACH, count=20)) == 5


def test_the_kernel_of_far_points_is_zero_and_never_subnormal() -> None:
    points = np.linspace(0.0, 0.2, 2000)[:, None] * np.array([1.0, 0.0, 0.0])
    kernel = gaussian_kernel(points, points[:1], 0.005)[:, 0]
    np.testing.assert_allclose(kernel, np.exp(-0.5 * (points[:, 0] / 0.005) ** 2), atol=1e-300)
    assert kernel[-1] == 0.0
    assert kernel[kernel > 0.0].min() >= np.finfo(np.float64).tiny
