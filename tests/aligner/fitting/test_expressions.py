"""The correction of expressions: read in crops, mirrored, learned; closed eyes come out closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.config import VisibilityConfig
from dff.aligner.detection import Detection
from dff.aligner.evaluation.expression_correction import (
    ExpressionCorrectionConfig,
    ExpressionReadings,
    HiddenLayerConfig,
    fit_expression_correction,
    read_expressions_of_views,
)
from dff.aligner.fitting.expressions import (
    LearnedExpressionCorrector,
    mirror_units,
    read_expressions,
)
from dff.aligner.fitting.visibility import compute_visibility
from dff.aligner.load import load_aligner
from dff.face.arrays import Bytes
from dff.face.errors import BadDataset
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from dff.face.solve.expression_correction import EYE_POINTS, ExpressionCorrection
from dff.infra.datasets.dataset import open_dataset
from tests.aligner.fitting.test_correction import faces, observe

SAMPLES = Path(__file__).parents[3] / "samples" / "views-200"
NOSE = 30  # the tip of the nose, which is seen from anywhere
POINTS = 68 + EYE_POINTS


def test_units_of_the_mirrored_face() -> None:
    names = ("eyeBlinkLeft", "jawOpen", "eyeBlinkRight", "eyeLookInLeft", "eyeLookInRight", "aLeft")
    np.testing.assert_array_equal(mirror_units(names), [2, 1, 0, 4, 3, 5])


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_correction_adds_what_the_descriptors_say(
    oracle_aligner: Aligner, *, mirrored: bool
) -> None:
    """All descriptors are the same: the features of a face are its visible landmarks."""
    fit_model, config = oracle_aligner.fit_model, VisibilityConfig()
    names = list(fit_model.model.expression_names)
    left, right = names.index("eyeBlinkLeft"), names.index("eyeBlinkRight")
    units, state = len(names), faces(oracle_aligner.fit_model, 3)
    landmarks, eyes = np.zeros((68 * 2, 1)), np.zeros((EYE_POINTS * 2, 1))
    landmarks[2 * NOSE], eyes[0] = 0.25, 0.5
    weight, fitted = np.zeros((2, units)), np.zeros((units, units))
    weight[0, left], weight[1, left] = 1.0, 1.0
    fitted[right, right] = -1.0
    correction = ExpressionCorrection(
        np.zeros((POINTS, 2)), landmarks, eyes, np.zeros(2), weight, fitted, np.zeros(units)
    )
    corrector = LearnedExpressionCorrector(fit_model, correction, config)
    visibility = compute_visibility(fit_model, state, config)
    observation = observe(state, np.ones((3, 2, 80, 80)))
    change = corrector.correct(observation, state, visibility, mirrored=mirrored)
    wanted = np.zeros((3, units))
    one, other = (right, left) if mirrored else (left, right)
    wanted[:, one], wanted[:, other] = 0.75, -read_expressions(fit_model, state)[:, other]
    np.testing.assert_allclose(change, wanted, atol=1e-6)


def known_readings(model: MorphableModel, share: float) -> ExpressionReadings:
    """Fits at rest whose jaws are open where a descriptor says so, and by chance beside it."""
    rng, count = np.random.default_rng(7), 1500
    names = list(model.expression_names)
    seen = rng.normal(scale=0.2, size=(count, POINTS, 2)).astype(np.float16)
    true = np.zeros((count, len(names)))
    told = share * seen[:, 7, 1] + (1 - share) * rng.normal(scale=0.2, size=count)
    jaw = names.index("jawOpen")
    true[:, jaw] = np.maximum(5.0 * told, 0.0)
    axes = np.broadcast_to(np.diag([1.0, -1.0, -1.0])[:2], (count, 2, 3))
    motion = 1e3 * model.expression[jaw, model.landmarks.vertex].astype(np.float64)
    return ExpressionReadings(
        seen,
        np.ones((count, POINTS)),
        np.zeros_like(true),
        true,
        np.einsum("fic,nc,f->fni", axes, motion, true[:, jaw]),
        axes,
        np.zeros(count),
        np.zeros(count, dtype=bool),
        np.arange(count) // 4,
    )


def test_what_descriptors_tell_is_learned_and_chance_is_not(open_head: MorphableModel) -> None:
    layer = HiddenLayerConfig(8, 60, 3.0, 0.01)
    config = ExpressionCorrectionConfig(eyes=layer, others=layer, batch=100, dropout=0.0)
    found = fit_expression_correction(open_head, known_readings(open_head, 1.0), config)
    assert found.correction is not None
    assert found.after.square < 0.5 * found.before.square
    assert found.after.landmarks < 0.7 * found.before.landmarks
    chance = fit_expression_correction(open_head, known_readings(open_head, 0.0), config)
    assert chance.after.square > 0.7 * chance.before.square


def test_views_are_read_against_their_true_expressions() -> None:
    dataset = open_dataset(str(SAMPLES))
    config = ExpressionCorrectionConfig(views=6, fewest=6)
    readings = read_expressions_of_views(load_aligner(), dataset, split=None, config=config)
    assert readings.seen.shape[1:] == (POINTS, 32)
    assert readings.mirrored.tolist() == [False, True] * (len(readings.mirrored) // 2)
    names = load_aligner().model.expression_names
    np.testing.assert_allclose(
        readings.true[::2], readings.true[1::2][:, mirror_units(names)], atol=1e-7
    )
    assert np.linalg.norm(readings.away, axis=2).mean() < 10.0  # mm
    with pytest.raises(BadDataset, match="200 views to learn the correction of expressions from"):
        read_expressions_of_views(
            load_aligner(), dataset, split=None, config=ExpressionCorrectionConfig()
        )


def align_alone(aligner: Aligner, image: Bytes, box: Box) -> Alignment:
    return aligner.align(image, [box])[0]


def align_as_person(aligner: Aligner, image: Bytes, box: Box) -> Alignment:
    (face,) = aligner.align_person([image], [box]).faces
    assert face is not None
    return face


def align_patiently(aligner: Aligner, image: Bytes, box: Box) -> Alignment:
    """As a rejected face is aligned again."""
    fitter = aligner.patient_fitter
    return aligner.align_from(fitter, [image], [box], fitter.begin([Detection(box)]))[0]


@pytest.mark.parametrize(
    ("preset", "align", "step"),
    [
        ("fast", align_alone, 4),
        ("balanced", align_alone, 4),
        ("fast", align_patiently, 20),
        ("fast", align_as_person, 20),
    ],
)
def test_closed_eyes_are_closed_and_open_ones_are_not(
    preset: str, align: Callable[[Aligner, Bytes, Box], Alignment], step: int
) -> None:
    """In rendered views with shut eyes and every ``step``-th other: activations, gaps of lids."""
    aligner, dataset = load_aligner(preset=preset), open_dataset(str(SAMPLES))
    names = list(aligner.model.expression_names)
    sides = {36: names.index("eyeBlinkRight"), 42: names.index("eyeBlinkLeft")}
    shut, gaps, wide = [], [], []
    rows = [row for shard in range(len(dataset.shards)) for row in dataset.read_shard(shard)]
    for number, row in enumerate(rows):
        if row.expression[[*sides.values()]].max() <= 0.8 and number % step:
            continue
        box = Box.around(row.landmarks_3d)
        alone = align_alone(aligner, row.pixels(), box)
        if alone.failed or abs(alone.pose.yaw) > 50.0:
            continue
        face = align(aligner, row.pixels(), box)
        mesh = aligner.model.vertices(face.coefficients)
        if align is not align_as_person:  # whose meshes are deformed beyond that
            np.testing.assert_allclose(face.vertices, mesh, atol=1e-5)
        for first, unit in sides.items():
            points = face.landmarks_2d[first : first + 6]
            opening = np.linalg.norm(points[[1, 2]] - points[[5, 4]], axis=1).mean()
            gap = opening / np.linalg.norm(points[0] - points[3])
            if row.expression[unit] > 0.8:
                shut.append(face.coefficients.expression[unit])
                gaps.append(gap)
            elif row.expression[unit] < 0.05:
                wide.append(gap)
    assert len(shut) >= 4
    assert np.mean(shut) > 0.45
    assert np.mean(gaps) < 0.5 * np.mean(wide)
    assert np.mean(np.array(wide) < 0.1) < 0.02
