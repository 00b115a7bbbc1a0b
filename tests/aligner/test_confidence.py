"""Confidence: more of a feature never lowers it, it is calibrated, measures have known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logit

from dff.aligner.alignment import CalibrationFeatures
from dff.aligner.confidence import DEFAULT, FACE, LANDMARK, NEAR, Calibration, surroundings
from dff.aligner.evaluation.calibration import (
    BINS,
    Case,
    Outcomes,
    Reliability,
    disturb_box,
    fit_calibration,
    make_negative,
    reliability_picture,
    trust,
)
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.observation import probe
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import CHIN_ARC, EYES, LOWER_JAW, MIRROR, MOUTH, NOSE_BOTTOM


def some_features(rng: np.random.Generator, count: int) -> CalibrationFeatures:
    return CalibrationFeatures(
        rng.normal(size=(count, len(FACE))),
        rng.normal(size=(count, 68, len(LANDMARK))),
        np.zeros(count, bool),
    )


def test_more_of_a_feature_never_lowers_confidence() -> None:
    rng = np.random.default_rng(0)
    features = some_features(rng, 5)
    face = DEFAULT.face_confidence(features)
    seen, right = DEFAULT.landmark_confidence(features)
    assert (right <= seen).all()
    for k in range(len(FACE)):
        more = CalibrationFeatures(
            features.face + 0.5 * np.eye(len(FACE))[k], features.landmarks, features.lost
        )
        assert (DEFAULT.face_confidence(more) >= face).all()
        assert all(
            (a >= b).all()
            for a, b in zip(DEFAULT.landmark_confidence(more), (seen, right), strict=True)
        )
    for k in range(len(LANDMARK)):
        more = CalibrationFeatures(
            features.face, features.landmarks + 0.5 * np.eye(len(LANDMARK))[k], features.lost
        )
        assert all(
            (a >= b).all()
            for a, b in zip(DEFAULT.landmark_confidence(more), (seen, right), strict=True)
        )


@pytest.mark.parametrize(
    ("hidden", "visible"),
    [
        ((NOSE_BOTTOM, LOWER_JAW), 0.1),
        ((NOSE_BOTTOM,), 0.9),
        ((NOSE_BOTTOM, CHIN_ARC), 0.9),
        ((LOWER_JAW,), 0.9),
        ((), 0.9),
    ],
    ids=["mask", "moustache", "hand", "collar", "nothing"],
)
def test_a_mouth_between_hidden_nose_and_jaw_is_printed(
    hidden: tuple[slice, ...], visible: float
) -> None:
    features = CalibrationFeatures(
        np.ones((1, len(FACE))), np.zeros((1, 68, len(LANDMARK))), np.zeros(1, bool)
    )
    weight = np.zeros(len(LANDMARK) + 1 + 68)
    points = weight[-68:]
    points[:] = logit(0.9)
    for some in hidden:
        points[some] = logit(0.1)
    seen, right = replace(DEFAULT, visible=weight, right=weight).landmark_confidence(features)
    np.testing.assert_allclose(seen[0, MOUTH], visible)
    np.testing.assert_allclose(right[0, MOUTH], visible)
    np.testing.assert_allclose(seen[0, EYES], 0.9)


def test_what_is_lost_is_certain_to_be_wrong() -> None:
    features = some_features(np.random.default_rng(1), 3)
    lost = CalibrationFeatures(features.face, features.landmarks, np.ones(3, bool))
    assert not DEFAULT.face_confidence(lost).any()
    assert not np.any(DEFAULT.landmark_confidence(lost))


def test_a_calibration_survives_its_file_and_refuses_others() -> None:
    table = DEFAULT.to_json()
    again = Calibration.from_json(table)
    features = some_features(np.random.default_rng(2), 4)
    np.testing.assert_allclose(
        again.face_confidence(features), DEFAULT.face_confidence(features), atol=1e-3
    )
    with pytest.raises(ValueError, match="other features"):
        Calibration.from_json({**table, "face_features": ["looks"]})
    with pytest.raises(ValueError, match="not negative"):
        Calibration.from_json({**table, "face": [-1.0] * (len(FACE) + 1)})
    with pytest.raises(ValueError, match="visible"):
        Calibration.from_json({**table, "visible": [1.0]})


def test_fitting_finds_probabilities_that_come_true() -> None:
    rng = np.random.default_rng(3)
    features = some_features(rng, 600)
    good = rng.random(600) < 1 / (1 + np.exp(-1 - 2 * features.face[:, 0]))
    seen = rng.random((600, 68)) < 1 / (1 + np.exp(-3 * features.landmarks[..., 1]))
    error = np.where(good[:, None], 0.02, 0.2) * np.ones(68)
    outcomes = Outcomes(
        ["face"] * 600,
        [str(i) for i in range(600)],
        error,
        seen,
        np.ones((600, 68), bool),
        features,
    )
    first = np.arange(600) < 300
    calibration = fit_calibration(outcomes[first])
    found = trust("held out", outcomes[~first], calibration, visibility=True)
    assert found.face.ece < 0.07  # the error of 300 faces in ten bins alone is about 0.05
    assert found.visible is not None
    assert found.visible.ece < 0.02
    assert found.visible.auroc > 0.9
    assert calibration.face[0] == pytest.approx(2.0, abs=0.6)
    for weight in (calibration.visible, calibration.right):
        offset = weight[-68:]
        assert len(np.unique(offset)) > 30
        np.testing.assert_array_equal(offset, offset[MIRROR], "the same on both sides")
    assert reliability_picture([found]).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="aligned well"):
        fit_calibration(outcomes[good])


def test_calibration_error_and_auroc_have_known_values() -> None:
    predicted = (np.arange(BINS).repeat(1000) + 0.5) / BINS
    true = np.tile(np.arange(1000) / 1000, BINS) < predicted
    assert Reliability(predicted, true).ece == pytest.approx(0.0, abs=1e-9)
    assert Reliability(np.full(10, 0.9), np.arange(10) < 4).ece == pytest.approx(0.5)
    assert Reliability(np.array([0.1, 0.2, 0.3]), np.array([False, True, True])).auroc == 1.0
    assert Reliability(np.array([0.1, 0.1]), np.array([False, True])).auroc == 0.5
    assert np.isnan(Reliability(np.array([0.5]), np.array([True])).auroc)


def test_a_probe_sees_only_what_is_near() -> None:
    descriptor = np.zeros((1, 2, 12, 12), np.float32)
    descriptor[0, 0] = 1.0
    descriptor[0, :, 5, 7] = 0.0, 1.0
    logit = np.full((1, 12, 12), -20.0, np.float32)
    logit[0, 5, 7] = 20.0
    places = np.array([[[7.5, 5.5], [8.5, 6.5], [9.5, 5.5], [2.5, 2.5], [40.0, 5.0]]])
    got = probe(descriptor, logit, places, np.tile([0.0, 1.0], (5, 1)))[0]
    np.testing.assert_allclose(got[:, 0], [1 / 9, 1 / 9, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(got[:, 1], [1 / 25, 1 / 25, 1 / 25, 0, 0], atol=1e-6)
    np.testing.assert_allclose(got[:, 2], [1, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(got[:, 3], [1, 1, 1, 0, 0], atol=1e-6)


def test_surroundings_of_a_full_plane_are_full_and_of_its_edge_half() -> None:
    x, y = np.meshgrid(np.arange(0.5, 100), np.arange(0.5, 100))
    px = np.stack([x, y], -1).reshape(1, -1, 2)
    ones = np.ones((1, px.shape[1]))
    got = surroundings(
        0.5 * ones,
        ones,
        px,
        np.array([[[50.0, 50.0], [0.0, 50.0]]]),
        np.array([100.0]),
        np.array([1.0]),
    )[0]
    np.testing.assert_allclose(got[0], [[1.0, 0.5]] * 2, atol=1e-3)
    np.testing.assert_allclose(got[1], [[0.5, 0.25]] * 2, atol=1e-2)


def test_surroundings_are_sums_over_all_pixels() -> None:
    rng = np.random.default_rng(6)
    landmarks, px = rng.uniform(0, 200, (2, 68, 2)), rng.uniform(-20, 220, (2, 150, 2))
    mask, agreement = rng.uniform(size=(2, 150)), rng.uniform(size=(2, 150))
    mask[:, -9:] = agreement[:, -9:] = 0.0
    size, pitch = np.array([180.0, 90.0]), np.array([5.0, 2.0])
    got = surroundings(agreement, mask, px, landmarks, size, pitch)
    square = ((landmarks[:, :, None] - px[:, None]) ** 2).sum(3)
    for i, reach in enumerate(NEAR):
        near = np.exp(-0.5 * square / (reach * size[:, None, None]) ** 2)
        disc = 2 * np.pi * (reach * size / pitch) ** 2
        for j, numbers in enumerate((mask, agreement)):
            want = (near @ numbers[..., None])[..., 0] / disc[:, None]
            np.testing.assert_allclose(got[:, :, i, j], want, atol=1e-5)


def test_crops_go_there_and_back() -> None:
    crops = Crops(
        np.array([[40.0, 30.0], [7.0, 9.0]]), np.array([50.0, 20.0]), np.array([0.4, -2.0]), 128
    )
    points = np.random.default_rng(4).uniform(0, 60, (2, 9, 2))
    np.testing.assert_allclose(
        crops.photo_from_crop(crops.crop_from_photo(points)), points, atol=1e-9
    )


def test_hard_negatives_show_no_upright_face_in_their_box() -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    truth = rng.uniform([100, 60], [140, 100], (68, 2))
    case = Case(
        "face", "someone", image, disturb_box(Box.around(truth), rng), truth, np.ones(68, bool)
    )
    covered = make_negative(case, "covered", rng)
    assert covered is not None
    assert covered.truth is None
    x, y = truth.mean(0).astype(int)
    assert (covered.image[y, x] != image[y, x]).any()
    np.testing.assert_array_equal(covered.image[:, :40], image[:, :40])
    turned = make_negative(case, "upside down", rng)
    assert turned is not None
    again = make_negative(turned, "upside down", rng)
    assert again is not None
    np.testing.assert_array_equal(again.image, image)
    np.testing.assert_allclose(again.truth, truth)
    np.testing.assert_allclose([again.box.x0, again.box.y1], [case.box.x0, case.box.y1])
    beside = make_negative(case, "beside", rng)
    assert beside is not None
    face = Box.around(truth)
    box = beside.box
    assert box.x0 > face.x1 or box.x1 < face.x0 or box.y0 > face.y1 or box.y1 < face.y0
