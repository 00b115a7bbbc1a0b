"""The map from descriptors to changes of expressions, and the points that it reads."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from dff.face.model.landmarks import MIRROR
from dff.face.solve.expression_correction import (
    EYE_CORNERS,
    EYE_POINTS,
    MIRRORED_EYE_POINTS,
    ExpressionCorrection,
    place_eye_points,
)

POINTS = 68 + EYE_POINTS


def some_correction(
    channels: int = 2, units: int = 4, *, hidden: tuple[int, int] = (3, 2)
) -> ExpressionCorrection:
    rng = np.random.default_rng(4)
    shapes = (
        (POINTS, channels),
        (68 * channels, hidden[0]),
        (EYE_POINTS * channels, hidden[1]),
        (sum(hidden),),
        (sum(hidden), units),
        (units, units),
        (units,),
    )
    return ExpressionCorrection(*(rng.normal(scale=0.2, size=shape) for shape in shapes))


def test_changes_are_those_of_two_hidden_layers_and_of_the_fitted_expression() -> None:
    correction, rng = some_correction(), np.random.default_rng(5)
    features, fitted = rng.normal(size=(3, POINTS * 2)), rng.normal(size=(3, 4))
    for face, found in enumerate(correction.change(features, fitted)):
        landmarks, eyes = features[face, : 68 * 2], features[face, 68 * 2 :]
        hidden = np.concatenate([landmarks @ correction.landmarks, eyes @ correction.eyes])
        hidden = np.maximum(hidden + correction.hidden_offset, 0.0)
        wanted = hidden @ correction.weight + fitted[face] @ correction.fitted + correction.offset
        np.testing.assert_allclose(found, wanted)


def test_eye_points_of_a_mirrored_photo_are_renamed() -> None:
    landmarks = np.random.default_rng(6).uniform(size=(2, 68, 2)) * 100.0
    flip = np.array([-1.0, 1.0])
    mirrored = place_eye_points(landmarks[:, MIRROR][:, EYE_CORNERS] * flip)
    expected = place_eye_points(landmarks[:, EYE_CORNERS])[:, MIRRORED_EYE_POINTS] * flip
    np.testing.assert_allclose(mirrored, expected)


def test_eye_points_lie_about_the_line_of_the_corners() -> None:
    corners = np.array([[[10.0, 50.0], [20.0, 50.0], [40.0, 50.0], [50.0, 50.0]]])
    right, left = place_eye_points(corners)[0].reshape(2, 3, 5, 2)
    np.testing.assert_allclose(right[1], [[15.0, y] for y in (54.0, 52.0, 50.0, 48.0, 46.0)])
    np.testing.assert_allclose(left - right, np.broadcast_to([30.0, 0.0], left.shape))


def test_damaged_tables_are_refused() -> None:
    correction = some_correction()
    for name, table in vars(correction).items():
        with pytest.raises(ValueError, match=rf"ExpressionCorrection with .*{name} "):
            replace(correction, **{name: table[:-1]})
        with pytest.raises(ValueError, match="not finite"):
            replace(correction, **{name: np.full_like(table, np.nan)})
        if name != "mean":
            with pytest.raises(ValueError, match=re.escape("is it damaged?")):
                replace(correction, **{name: table * 1000.0})
