"""The score of a recovered face: its value for known features, and for wrong landmarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality import CORRUPTIONS, auroc, fit_weights
from dff.face.errors import BadFit
from dff.face.io.assets import load_albedo
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import MorphableModel
from dff.pipeline.recovery.inverse import NO_LIMITS, FitLimits, invert
from dff.pipeline.recovery.quality import (
    FEATURES,
    LIMIT,
    SHIPPED,
    ScoreWeights,
    measure_features,
    score_fit,
)
from tests.pipeline.recovery.test_inverse import made


@pytest.fixture(scope="module")
def albedo() -> AlbedoModel:
    return load_albedo()


def test_an_average_photo_has_features_of_zero() -> None:
    usual = {name: feature.usual for name, feature in FEATURES.items()}
    np.testing.assert_allclose(measure_features(usual), 0.0)
    more = {name: feature.usual + feature.unit for name, feature in FEATURES.items()}
    np.testing.assert_allclose(measure_features(more), 1.0)
    far = {name: feature.usual - 100 * feature.unit for name, feature in FEATURES.items()}
    np.testing.assert_allclose(measure_features(far), -LIMIT)
    lost = usual | {"structure": np.nan}
    assert np.isnan(score_fit(measure_features(lost)))  # which no limit accepts


def test_the_score_is_a_logistic_function() -> None:
    weights = ScoreWeights(np.array([1.0, -2.0]), 0.5)
    assert score_fit(np.array([0.0, 0.0]), weights) == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert score_fit(np.array([2.0, 1.25]), weights) == pytest.approx(0.5)
    assert score_fit(np.zeros(len(FEATURES))) > 0.9
    assert len(SHIPPED.features) == len(FEATURES)


def test_the_area_is_the_chance_that_the_good_score_higher() -> None:
    assert auroc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    assert auroc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 0.0
    assert auroc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auroc(np.array([1.0, 3.0]), np.array([2.0])) == 0.5


def test_weights_of_a_known_boundary_come_back() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 3))
    chance = 1 / (1 + np.exp(-(features @ [1.5, 0.0, -1.0])))
    good = (rng.random(4000) < chance).astype(float)
    found = fit_weights(features, good)
    np.testing.assert_allclose(found.features, [1.5, 0.0, -1.0], atol=0.2)
    assert found.bias == pytest.approx(0.0, abs=0.2)


def test_each_corruption_is_far_from_the_truth(
    open_head: MorphableModel, albedo: AlbedoModel
) -> None:
    a, b = (made(open_head, albedo, yaw, seed).photo for yaw, seed in ((0.0, 31), (30.0, 32)))
    size = np.sqrt(np.prod(np.ptp(a.landmarks, axis=0)))
    for name, corrupt in CORRUPTIONS.items():
        wrong = corrupt(a.landmarks, b, np.random.default_rng(0))
        assert wrong.shape == (68, 2)
        assert np.linalg.norm(wrong - a.landmarks, axis=1).max() > 0.08 * size, name


def test_a_known_face_scores_high_and_wrong_landmarks_low(
    open_head: MorphableModel, albedo: AlbedoModel
) -> None:
    photo, other = (
        made(open_head, albedo, yaw, seed).photo for yaw, seed in ((5.0, 33), (-30.0, 34))
    )
    good = invert(photo, model=open_head, albedo=albedo).quality["score"]
    assert good > 0.9
    for name in ("shifted", "scattered"):
        wrong = CORRUPTIONS[name](photo.landmarks, other, np.random.default_rng(3))
        try:
            bad = invert(
                replace(photo, landmarks=wrong), model=open_head, albedo=albedo, limits=NO_LIMITS
            )
        except BadFit:
            continue  # no fit at all: refused before it has a score
        assert bad.quality["score"] < 0.5
        only_score = replace(NO_LIMITS, score=FitLimits().score)
        if bad.quality["score"] < FitLimits().score:
            with pytest.raises(BadFit, match="score"):
                invert(
                    replace(photo, landmarks=wrong),
                    model=open_head,
                    albedo=albedo,
                    limits=only_score,
                )
