"""The correction of fits: descriptors are interpolated, changes mirrored, maps learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.config import VisibilityConfig
from dff.aligner.evaluation.fit_correction import (
    FitCorrectionConfig,
    FitErrors,
    fit_correction,
    measure_fits,
)
from dff.aligner.fitting.change import (
    apply_change,
    change_between,
    mirror_change,
)
from dff.aligner.fitting.correction import LinearCorrector, sample_descriptors
from dff.aligner.fitting.correspondence import Matches
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.fit_model import FitModel, FitState, build_fit_model
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.visibility import compute_visibility
from dff.aligner.load import load_aligner
from dff.face.arrays import Floats
from dff.face.errors import BadDataset
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.landmarks import nme_box
from dff.face.solve.fit_correction import FitCorrection
from dff.face.solve.gauss_newton import FaceState
from dff.infra.datasets.dataset import open_dataset

CHANGE = np.array([0.05, 0.02, -0.06, 0.03, 0.01, -0.02])  # of the pose


def faces(fit_model: FitModel, count: int, seed: int = 3) -> FitState:
    rng = np.random.default_rng(seed)
    turns = [rotation_from_angles(*rng.uniform(-30, 30, 3)) for _ in range(count)]
    coefficients = np.zeros((count, len(fit_model.modes)))
    coefficients[:, :8] = rng.normal(size=(count, 8)) * 0.5
    centre = rng.uniform(80, 120, (count, 2))
    return FitState.of(FaceState(np.full(count, 700.0), np.stack(turns), centre, coefficients), 1.0)


def mirrored(state: FitState, fit_model: FitModel, width: float) -> FitState:
    other = np.diag([-1.0, 1.0, 1.0])
    return replace(
        state,
        rotation=other @ state.rotation @ other,
        centre=state.centre * [-1.0, 1.0] + [width, 0.0],
        coefficients=state.coefficients @ fit_model.mirrored_latents,
    )


def observe(state: FitState, descriptor: Floats) -> Observation:
    count = len(state.scale)
    crops = Crops(state.centre, np.full(count, 200.0), np.full(count, 0.3), 160)
    none = Matches.none(count, 4, 2)
    return Observation(crops, none, np.zeros((count, 4, 2)), descriptor, descriptor[:, 0])


def test_descriptors_are_interpolated_between_pixels() -> None:
    rows, columns = np.mgrid[0.5:6, 0.5:8]  # pixel centres
    grid = np.stack([columns, rows, columns + 2 * rows])[None]
    places = np.array([[[3.2, 2.7], [0.5, 0.5], [7.5, 5.5], [7.49, 0.6]]])
    found = sample_descriptors(grid, places)
    x, y = np.moveaxis(places, 2, 0)
    np.testing.assert_allclose(found, np.stack([x, y, x + 2 * y], axis=-1), atol=1e-12)
    outside = sample_descriptors(grid, np.array([[[-4.0, 2.7], [3.2, 90.0]]]))
    np.testing.assert_allclose(outside[0, :, :2], [[0.5, 2.7], [3.2, 5.5]])
    flipped = sample_descriptors(grid[..., ::-1], places * [-1.0, 1.0] + [8.0, 0.0])
    np.testing.assert_allclose(flipped, found, atol=1e-12)


def test_the_change_of_mirrored_faces_is_the_mirrored_change(oracle_aligner: Aligner) -> None:
    fit_model = oracle_aligner.fit_model
    before, after = faces(fit_model, 6), faces(fit_model, 6, seed=4)
    angle, size = np.full(6, 0.4), fit_model.face_size(before)
    change = change_between(before, after, angle, size)
    found = change_between(
        mirrored(before, fit_model, 200.0), mirrored(after, fit_model, 200.0), -angle, size
    )
    wanted = mirror_change(change, fit_model.mirrored_latents)
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_correction_moves_faces_by_the_change_of_their_descriptors(
    oracle_aligner: Aligner, mirror: bool
) -> None:
    """All descriptors are the same: the features of a face are its visible landmarks."""
    fit_model, config = oracle_aligner.fit_model, VisibilityConfig()
    state = faces(fit_model, 3)
    weight = np.zeros((68 * 2, 7))
    weight[60:62, :6] = CHANGE / 2  # landmark 30, the tip of the nose, which is seen from anywhere
    weight[60:62, 6] = 0.25
    correction = FitCorrection(np.zeros((68, 2)), weight, np.zeros(7), fit_model.modes[3:4])
    corrector = LinearCorrector(fit_model, correction, config)
    visibility = compute_visibility(fit_model, state, config)
    observation = observe(state, np.ones((3, 2, 80, 80)))
    found = corrector.correct(observation, state, visibility, mirrored=mirror)
    change = np.zeros((3, 6 + len(fit_model.modes)))
    change[:, :6], change[:, 9] = CHANGE, 0.5
    if mirror:
        change = mirror_change(change, fit_model.mirrored_latents)
    wanted = apply_change(state, change, observation.crops.angle, fit_model.face_size(state))
    np.testing.assert_allclose(found.rotation, wanted.rotation, atol=1e-6)
    np.testing.assert_allclose(found.centre, wanted.centre, atol=1e-4)
    np.testing.assert_allclose(found.coefficients, wanted.coefficients, atol=1e-4)


def known_errors(fit_model: FitModel, share: float) -> FitErrors:
    """Fits whose change is a linear function of their descriptors, and chance beside it."""
    rng = np.random.default_rng(5)
    count, modes = 400, len(fit_model.modes)
    state = faces(fit_model, count)
    seen = rng.normal(size=(count, 68, 2)).astype(np.float16)
    change = np.zeros((count, 6 + modes))
    change[:, 3] = 0.1 * (share * seen[:, 7, 1] + (1 - share) * rng.normal(size=count))
    moved = apply_change(state, change, np.zeros(count), fit_model.face_size(state))
    return FitErrors(
        seen,
        np.ones((count, 68)),
        change,
        state,
        np.zeros(count),
        np.zeros(count, bool),
        fit_model.landmarks(moved),
        np.arange(count) // 4,
    )


def test_a_linear_relation_is_learned_and_chance_is_not(oracle_aligner: Aligner) -> None:
    fit_model = oracle_aligner.fit_model
    config = FitCorrectionConfig(penalties=(0.001, 1.0), strength=0.5)
    found = fit_correction(fit_model, known_errors(fit_model, 1.0), config)
    assert found is not None
    assert found.weight[15, 3] == pytest.approx(0.1 * config.strength, rel=0.1)
    others = np.abs(np.delete(found.weight, 15, axis=0)[:, 3])
    assert others.max() < 0.01 * config.strength
    assert fit_correction(fit_model, known_errors(fit_model, 0.0), config) is None


def test_fits_of_views_are_measured_against_their_true_states() -> None:
    aligner = load_aligner("dff-open")
    config = FitCorrectionConfig(views=6, fewest=4)
    data = open_dataset(str(Path(__file__).parents[3] / "samples" / "views-200"))
    fit_model = build_fit_model(aligner.model, aligner.anchors, aligner.config.fit_model)
    done: list[int] = []
    found = measure_fits(aligner, fit_model, data, split=None, config=config, watch=done.append)
    assert done == list(range(1, 7))
    size = fit_model.face_size(found.state)
    change = np.where(
        found.mirrored[:, None],
        mirror_change(found.change, fit_model.mirrored_latents),
        found.change,
    )
    true = fit_model.landmarks(apply_change(found.state, change, found.angle, size))
    errors = [
        [nme_box(some[i], found.truth[i]) for some in (fit_model.landmarks(found.state), true)]
        for i in range(len(true))
    ]
    before, after = np.mean(errors, axis=0)
    assert after < 0.015 < before
    with pytest.raises(BadDataset, match="at least 1000 are needed"):
        measure_fits(
            aligner, fit_model, data, split=None, config=FitCorrectionConfig(), watch=done.append
        )
