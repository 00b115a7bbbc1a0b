"""Mouths that are open wider than their prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dff.aligner.config import AlignConfig, FitModelConfig, MouthConfig
from dff.aligner.fitting.correspondence import Matches
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.fit_model import FitModel, FitState, build_fit_model
from dff.aligner.fitting.mouth import find_lagging_mouths, measure_lag
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.steps import refine
from dff.aligner.fitting.visibility import compute_visibility
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.landmarks import LOWER_LIP_POINTS, MOUTH, UPPER_LIP
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.solve.gauss_newton import FaceState
from tests.aligner.oracle import PositionCode, oracle_anchors

CONFIG = AlignConfig()


@pytest.fixture(scope="module")
def fit_model(open_head: MorphableModel) -> FitModel:
    anchors = oracle_anchors(open_head, PositionCode.of(open_head), 400)
    return build_fit_model(open_head, anchors, FitModelConfig())


def make_state(
    fit_model: FitModel, jaw: float, *, roll: float = 10.0, smile: float = 0.0
) -> FitState:
    model = fit_model.model
    expression = np.zeros(len(model.expression_names), np.float32)
    expression[model.expression_names.index("jawOpen")] = jaw
    for side in ("mouthSmileLeft", "mouthSmileRight"):
        expression[model.expression_names.index(side)] = smile
    shape = Coefficients(np.zeros(len(model.identity), np.float32), expression)
    rotation = rotation_from_angles(10.0, 5.0, roll)[None]
    latent = fit_model.latent(shape)[None]
    face = FaceState(np.array([900.0]), rotation, np.full((1, 2), 160.0), latent)
    return FitState.of(face, CONFIG.inverse_depth)


def observe(fit_model: FitModel, state: FitState) -> Observation:
    """Every anchor is matched where it is."""
    px = fit_model.anchors(state)
    count = px.shape[1]
    crops = Crops(np.full((1, 2), 160.0), np.full(1, 320.0), np.zeros(1), 320)
    matches = replace(
        Matches.none(1, count, 1),
        mask=np.ones((1, count)),
        anchor=np.arange(count, dtype=np.int32)[None, :, None],
        probability=np.full((1, count, 1), 0.9, np.float32),
    )
    return Observation(crops, matches, px, np.zeros((1, 0, 80, 80)), np.zeros((1, 80, 80)))


def test_the_lag_is_how_far_below_the_fit_the_lower_lip_is_matched(fit_model: FitModel) -> None:
    closed, opened = make_state(fit_model, 0.0), make_state(fit_model, 0.8)
    for state in (closed, opened):
        lag, weight = measure_lag(fit_model, observe(fit_model, state), state)
        assert lag == pytest.approx(0.0, abs=1e-6)
        assert weight > 3.0
    lag, _ = measure_lag(fit_model, observe(fit_model, opened), closed)
    points = [fit_model.landmarks(state)[0, list(LOWER_LIP_POINTS)] for state in (closed, opened)]
    moved = np.linalg.norm(np.subtract(*points), axis=1).mean() / fit_model.face_size(closed)
    assert lag == pytest.approx(moved, rel=0.25)
    back, _ = measure_lag(fit_model, observe(fit_model, closed), opened)
    assert back == pytest.approx(-lag, rel=0.1)


@pytest.mark.parametrize("roll", [0.0, 90.0, 180.0])
def test_only_lips_that_are_matched_below_lag(fit_model: FitModel, roll: float) -> None:
    closed, opened = (make_state(fit_model, jaw, roll=roll) for jaw in (0.0, 0.8))
    for seen, state, rows in ((opened, closed, [0]), (closed, opened, []), (opened, opened, [])):
        found = find_lagging_mouths(fit_model, observe(fit_model, seen), state, MouthConfig())
        assert found.tolist() == rows


def test_a_wide_open_mouth_is_reached_from_a_closed_one(fit_model: FitModel) -> None:
    closed, opened = make_state(fit_model, 0.0), make_state(fit_model, 1.0)
    visibility = compute_visibility(fit_model, closed, CONFIG.visibility)
    observation = observe(fit_model, opened)
    truth = fit_model.landmarks(opened)[0]

    def errors(config: AlignConfig) -> np.ndarray:
        found = refine(fit_model, config, observation, closed, visibility)
        away = np.linalg.norm(fit_model.landmarks(found)[0] - truth, axis=1)
        return np.asarray(away / fit_model.face_size(opened))

    lip = list(LOWER_LIP_POINTS)
    before, after = errors(replace(CONFIG, mouth=MouthConfig(lag=np.inf))), errors(CONFIG)
    assert before[lip].mean() > 0.05
    assert after[lip].mean() < 0.02
    assert after[UPPER_LIP] < 0.02


def test_matches_of_the_lips_count_more(fit_model: FitModel) -> None:
    config = fit_model.config
    model = fit_model.model
    plain = replace(fit_model, config=replace(config, lip_weight=1.0))
    ratio = fit_model.anchor_weight / plain.anchor_weight
    place = model.template[fit_model.anchor_vertex]
    away = np.linalg.norm(place[:, None] - model.template[model.landmarks.vertex[MOUTH]], axis=2)
    assert ratio.max() == pytest.approx(config.lip_weight, abs=0.05)
    assert ratio[away.argmin(0)].min() > 1.3
    assert ratio[away.min(1) > 0.04].max() == 1.0


def test_a_smile_is_followed_further_than_other_matches_alone_would(fit_model: FitModel) -> None:
    rest, smile = make_state(fit_model, 0.0), make_state(fit_model, 0.0, smile=0.8)
    seen = observe(fit_model, smile)
    config = replace(CONFIG, solver=replace(CONFIG.solver, observations=30.0))  # a strong prior
    visibility = compute_visibility(fit_model, rest, config.visibility)
    truth = fit_model.landmarks(smile)[0, MOUTH]

    def error(weight: float) -> float:
        weighted = replace(fit_model, config=replace(fit_model.config, lip_weight=weight))
        found = refine(weighted, config, seen, rest, visibility)
        return float(np.linalg.norm(weighted.landmarks(found)[0, MOUTH] - truth, axis=1).mean())

    assert error(fit_model.config.lip_weight) < 0.95 * error(1.0)


def test_a_model_without_a_jaw_has_no_lagging_mouths(
    fit_model: FitModel, open_head: MorphableModel
) -> None:
    names = tuple(f"unit{i}" for i in range(len(open_head.expression_names)))
    other = replace(fit_model, model=replace(open_head, expression_names=names))
    closed, opened = make_state(fit_model, 0.0), make_state(fit_model, 1.0)
    found = find_lagging_mouths(other, observe(fit_model, opened), closed, MouthConfig())
    assert len(found) == 0
