"""Pairs of photos: the points are the inner landmarks that both photos show."""

from __future__ import annotations

import numpy as np
import pytest

from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.morphable import MorphableModel
from dff.trainer.evaluation.matching import Describe, compare_descriptors
from dff.trainer.evaluation.pairs import LabelledPhoto, ViewPair, sample_photo_pairs

SIZE = 64


def photo(model: MorphableModel, yaw: float, rng: np.random.Generator) -> LabelledPhoto:
    """An image of noise, labelled with the template's landmarks at a yaw."""
    pose = (yaw, 0.0, 0.0)
    points = model.template[model.landmarks.vertex] @ rotation_from_angles(*pose).T
    camera = WeakPerspective(800.0, np.array([100.0, 90.0]))
    return LabelledPhoto(
        rng.integers(0, 256, (200, 200, 3), dtype=np.uint8), camera.px_from_cam(points), pose
    )


@pytest.fixture(scope="module")
def pairs(open_head: MorphableModel) -> list[ViewPair]:
    rng = np.random.default_rng(0)
    photos = [photo(open_head, yaw, rng) for yaw in (-80.0, -40.0, 0.0, 10.0, 50.0)]
    return sample_photo_pairs(photos, open_head, count=3, size=SIZE, rng=np.random.default_rng(0))


def test_points_are_landmarks_that_both_photos_show(pairs: list[ViewPair]) -> None:
    few, many = max(pairs, key=lambda p: p.yaw), min(pairs, key=lambda p: p.yaw)
    assert many.yaw == 10.0
    assert len(many.first) > 40, "all inner landmarks of frontal faces but those within the lips"
    assert few.yaw > 50.0
    assert len(few.first) < 35, "faces turned apart share few landmarks"
    for pair in pairs:
        assert not pair.same
        assert ((pair.first > 0) & (pair.first < SIZE / 2)).all()
        column, row = np.floor(pair.second).astype(int).T
        assert pair.face.reshape(SIZE // 2, -1)[row, column].all(), "the true pixel is a candidate"
        assert 0.1 < pair.face.mean() < 0.7


def test_an_oracle_matches_photos_within_a_pixel(pairs: list[ViewPair]) -> None:
    for pair in pairs:
        first = pair.images[0].tobytes()

        def oracle(image: Bytes, px: Floats, pair: ViewPair = pair, first: bytes = first) -> Floats:
            flat = (pair.second if image.tobytes() == first else px / 2) / SIZE
            return np.concatenate(
                [flat, np.sqrt(1.0 - (flat**2).sum(-1, keepdims=True))], axis=-1
            ).astype(np.float32)

        describe: Describe = oracle
        (row,) = compare_descriptors([pair], {"oracle": describe}).rows
        assert row.px_median < 0.75 * 256 / (SIZE / 2)
