"""What tells whether photos show one person."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dff.aligner.appearance import AppearanceMeter
from dff.aligner.person_appearance import (
    PersonAppearanceMeter,
    PersonStatistics,
    load_person_statistics,
    remove_light,
)
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import known_alignment


def test_directed_light_is_no_part_of_a_person() -> None:
    rng = np.random.default_rng(0)
    skin = 0.1 * rng.normal(size=400)
    normals = rng.normal(size=(400, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    weight = rng.uniform(0.1, 1.0, 400)
    left, right = (
        remove_light(skin + 4.0 + normals @ light, normals, weight)
        for light in ((0.9, 0.2, -0.5), (-0.9, 0.1, -0.8))
    )
    np.testing.assert_allclose(left, right, atol=1e-4)
    assert np.corrcoef(left, skin)[0, 1] > 0.98


def test_the_shipped_statistics_are_of_the_open_head(
    open_head: MorphableModel, toy_model: MorphableModel
) -> None:
    points = len(AppearanceMeter(open_head).points)
    shipped = load_person_statistics(open_head, points)
    assert shipped.brightness.shape == (points,)
    assert shipped.whitening.shape[0] == len(open_head.identity)
    assert np.linalg.matrix_rank(shipped.whitening) == shipped.whitening.shape[1]
    assert np.abs(shipped.brightness).max() > 0.1
    other = load_person_statistics(toy_model, 40)
    np.testing.assert_array_equal(other.brightness, np.zeros(40))
    np.testing.assert_array_equal(other.whitening, np.eye(len(toy_model.identity)))


def test_people_differ_by_what_neither_photos_nor_people_share(toy_model: MorphableModel) -> None:
    meter = AppearanceMeter(toy_model)
    points, identities = len(meter.points), len(toy_model.identity)
    rng = np.random.default_rng(1)
    identity, shared = rng.normal(size=(2, identities))
    neutral = known_alignment(toy_model, Box(10, 10, 70, 70))
    coefficients = replace(toy_model.neutral(), identity=identity)
    face = replace(neutral, coefficients=coefficients)
    image = rng.integers(0, 255, (80, 80, 3)).astype(np.uint8)

    def measure(mean: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
        statistics = PersonStatistics(np.full(points, mean), scale * np.eye(identities))
        seen = PersonAppearanceMeter(meter, shared, statistics).measure(image, face)
        return seen.identity, seen.brightness

    own, texture = measure(0.0, 1.0)
    scaled, above = measure(0.25, 3.0)
    np.testing.assert_allclose(own, identity - shared)
    np.testing.assert_allclose(scaled, 3.0 * own)
    np.testing.assert_allclose(above, texture - 0.25)
