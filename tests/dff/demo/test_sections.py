"""The overview picture of the demo."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dff.demo import sections
from dff.demo.sections import TILE, WIDTH, compose_overview
from dff.face.model.morphable import MorphableModel
from dff.pipeline.inspection.gallery import PAPER
from tests.infra.rows import toy_view


def test_fewer_than_ten_views_are_not_stretched(
    toy_model: MorphableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = [toy_view(toy_model, "own", view, rng=rng)[0] for view in range(4)]
    own = [replace(row, photo_id="own.jpg") for row in rows]
    sampled = toy_view(toy_model, "other", 1, rng=rng)[0]
    lines = np.zeros((30, 60, 3), np.uint8)
    monkeypatch.setattr(sections, "draw_correspondences", lambda *_: lines)
    photograph = np.zeros((900, 700, 3), np.uint8)
    panels = {name: photograph[:9, :9] for name in ("mesh", "albedo", "rendering")}
    overview = compose_overview(photograph, panels, [*own, sampled], photograph)
    assert overview.shape == (240 + 2 * 120 + WIDTH // 2, WIDTH, 3)
    views = overview[240 : 240 + TILE]
    for i, row in enumerate(own):
        expected = cv2.resize(row.pixels(), (TILE, TILE), interpolation=cv2.INTER_CUBIC)
        at = i * WIDTH // 10
        np.testing.assert_array_equal(views[:, at : at + TILE], expected)
    assert (views[:, len(own) * WIDTH // 10 :] == PAPER).all()
    assert (overview[360 : 360 + TILE, TILE:] == PAPER).all()
