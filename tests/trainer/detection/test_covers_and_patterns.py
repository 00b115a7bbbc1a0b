"""Masks lie on the lower face and things in front of it; patterns are reproducible and varied."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dff.face.model.landmarks import BROWS, CHIN, EYES
from dff.face.model.morphable import MorphableModel
from dff.trainer.data.views import StoredView, ViewStore
from dff.trainer.detection import patterns
from dff.trainer.detection.config import CoverConfig, PatternConfig
from dff.trainer.detection.covers import cover_face, paint_mask
from dff.trainer.detection.patterns import draw_pattern

PLAIN_MASK = CoverConfig(
    scarf_probability=0.0,
    printed_probability=0.0,
    pleats_probability=0.0,
    straps_probability=0.0,
    patterned_share=0.0,
    own_colour_share=0.0,
    plain_share=0.0,
)


@pytest.mark.parametrize("number", range(len(patterns._KINDS)))
def test_a_pattern_depends_on_its_seed_alone(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_KINDS", patterns._KINDS[number : number + 1])
    once, again, other = (
        draw_pattern(64, PatternConfig(), rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert once.shape == (64, 64, 3)
    assert once.dtype == np.uint8
    np.testing.assert_array_equal(once, again)
    assert (once != other).mean() > 0.5


def frontal_view(store: ViewStore, vertices: np.ndarray) -> StoredView:
    """The view whose eyes are furthest apart for the height of its face."""

    def width(view: StoredView) -> float:
        points = view.vertex_px[vertices]
        return float(np.ptp(points[EYES, 0]) / np.ptp(points[:, 1]))

    return max((store.view(i) for i in range(len(store))), key=width)


def test_a_mask_covers_the_mouth_and_not_the_eyes(
    store: ViewStore, open_head: MorphableModel
) -> None:
    vertices = open_head.landmarks.vertex
    view = frontal_view(store, vertices)
    points = view.vertex_px[vertices]
    mouth = points[48:68].mean(0).astype(int)
    config = replace(PLAIN_MASK, mask_top=(0.6, 0.6))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        masked = paint_mask(view, view, vertices, config, PatternConfig(), rng=rng)
        changed = (masked.image != view.image).any(-1)
        assert changed[mouth[1], mouth[0]]
        for part in (BROWS, EYES):
            x, y = points[part].mean(0).astype(int)
            assert not changed[y, x]
        below = points[CHIN] + 0.3 * (points[CHIN] - points[EYES].mean(0))
        x, y = below.astype(int).clip(0, np.array(changed.shape[::-1]) - 1)
        assert not changed[y, x]
        np.testing.assert_array_equal(masked.triangle, view.triangle)


def test_masks_of_every_kind_change_the_image_alone(
    store: ViewStore, open_head: MorphableModel
) -> None:
    vertices = open_head.landmarks.vertex
    seen = set()
    for seed in range(20):
        view, other = store.view(seed % len(store)), store.view(0)
        rng = np.random.default_rng(seed)
        masked = paint_mask(view, other, vertices, CoverConfig(), PatternConfig(), rng=rng)
        assert masked.image.shape == view.image.shape
        assert masked.image.dtype == np.uint8
        seen.add(masked.image.tobytes())
    assert len(seen) == 20


@pytest.mark.parametrize("hand", [0.0, 1.0])
def test_what_lies_before_a_face_is_not_of_it(hand: float) -> None:
    landmarks = np.random.default_rng(0).uniform(40.0, 90.0, (68, 2))
    image, layer = np.full((128, 128, 3), 100, np.uint8), np.zeros((128, 128), np.int16)
    config = CoverConfig(hand_share=hand)
    cover_face(image, layer, landmarks, config, PatternConfig(), rng=np.random.default_rng(1))
    covered = layer == -1
    assert 0.02 < covered.mean() < 0.5
    assert (image[~covered] == 100).all()
    assert (image[covered] != 100).mean() > 0.5
