"""Systematic match errors: their fields are recovered, and move anchors but not the face."""

from __future__ import annotations

import numpy as np
import pytest

from dff.aligner.config import FitModelConfig
from dff.aligner.evaluation.match_errors import (
    MatchErrorConfig,
    MatchErrors,
    find_error_fields,
)
from dff.aligner.fitting.fit_model import add_match_errors, build_fit_model
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.morphable import MorphableModel
from tests.aligner.oracle import PositionCode, oracle_anchors

CONFIG = MatchErrorConfig(fields=2, noise=0.001, dependent=1.0, ridge=0.1, steps=25)


def test_the_fields_of_known_errors_are_recovered() -> None:
    """Errors of two fields, seen in the image plane of turned heads, each at some anchors only."""
    rng = np.random.default_rng(3)
    views, anchors = 160, 30
    fields = rng.normal(size=(anchors, 3, 2)) * [0.006, 0.003]
    rows = np.stack([rotation_from_angles(yaw, 0, 0)[:2] for yaw in rng.uniform(-80, 80, views)])
    share = rng.normal(size=(views, 2))
    away = np.einsum("vij,ajk,vk->vai", rows, fields, share)
    away += rng.normal(size=away.shape) * 0.0005
    count = (rng.random((views, anchors)) < 0.6).astype(np.float64)
    found = find_error_fields(MatchErrors(away * count[..., None], count, rows), CONFIG)
    # A factor analysis determines the fields up to a rotation among them: compare covariances.
    wanted = np.einsum("ajk,bmk->ajbm", fields, fields).reshape(anchors * 3, -1)
    got = np.einsum("ajk,bmk->ajbm", found, found).reshape(anchors * 3, -1)
    assert np.linalg.norm(got - wanted) < 0.35 * np.linalg.norm(wanted)


def test_match_errors_move_anchors_but_not_the_face(
    open_head: MorphableModel, code: PositionCode
) -> None:
    anchors = oracle_anchors(open_head, code, count=50)
    plain = build_fit_model(open_head, anchors, FitModelConfig(modes=4), both_sides=True)
    fields = np.random.default_rng(1).normal(size=(50, 3, 2)).astype(np.float32) * 0.003
    found = add_match_errors(plain, fields)
    assert found.modes.shape == (8, plain.modes.shape[1])  # two more for each side
    assert not found.modes[4:].any()
    assert not found.mesh_basis[4:].any()
    assert found.moving_modes == plain.moving_modes == 4
    assert not found.landmark_basis[..., 4:].any()
    np.testing.assert_array_equal(found.anchor_basis[..., :4], plain.anchor_basis)
    np.testing.assert_array_equal(found.anchor_basis[:50, :, 4:6], fields)
    np.testing.assert_allclose(
        found.anchor_basis[50:, :, 6:], fields * np.array([-1.0, 1.0, 1.0])[:, None]
    )
    assert not found.anchor_basis[:50, :, 6:].any()
    assert not found.anchor_basis[50:, :, 4:6].any()
    alone = add_match_errors(plain, fields, pooled=False)
    assert alone.modes.shape == (6, plain.modes.shape[1])  # of one observation at a time
    np.testing.assert_array_equal(alone.anchor_basis[:50], found.anchor_basis[:50, :, :6])
    np.testing.assert_array_equal(alone.anchor_basis[50:, :, 4:], found.anchor_basis[50:, :, 6:])


def test_weights_without_match_errors_fit_as_before(
    open_head: MorphableModel, code: PositionCode
) -> None:
    anchors = oracle_anchors(open_head, code, count=50)
    fit_model = build_fit_model(open_head, anchors, FitModelConfig(modes=4))
    assert add_match_errors(fit_model, anchors.error_fields) is fit_model
    with pytest.raises(ValueError, match="positive counts"):
        MatchErrorConfig(fields=0)
