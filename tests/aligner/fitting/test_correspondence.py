from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from dff.aligner.fitting.correspondence import (
    Matches,
    _best,
    choose_pixels,
    match_chosen_pixels,
    match_pixels,
    soft_correspondence,
)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    v = rng.normal(size=shape)
    return (v / np.linalg.norm(v, axis=-1, keepdims=True)).astype(np.float32)


def test_match_is_softmax_over_the_most_similar_anchors() -> None:
    rng = np.random.default_rng(3)
    descriptor, anchors = unit(rng, 2, 6, 5, 8), unit(rng, 40, 8)
    logit = rng.normal(size=(2, 6, 5)).astype(np.float32) * 3
    found = match_pixels(
        np.moveaxis(descriptor, 3, 1),
        logit,
        anchors,
        stride=2,
        pixels=30,
        candidates=4,
        sharpness=10.0,
        no_match_cosine=0.2,
    )
    for face in range(2):
        n = int((logit[face] > 0).sum())
        columns, rows = (found.grid[face, :n].astype(int) // 2).T
        assert len({*zip(rows, columns, strict=True)}) == n
        assert (logit[face, rows, columns] > 0).all()
        assert (found.mask[face, n:] == 0).all()
        assert np.allclose(
            found.mask[face, :n], 1 / (1 + np.exp(-logit[face, rows, columns])), atol=1e-6
        )
        assert np.allclose(found.grid[face, :n], np.stack([columns * 2 + 1, rows * 2 + 1], axis=-1))
        for i in range(n):
            cosine = anchors @ descriptor[face, rows[i], columns[i]]
            best = np.argsort(-cosine)[:4]
            weight = np.exp(10.0 * cosine[best])
            assert (found.anchor[face, i] == best).all()
            wanted = weight / (weight.sum() + np.exp(2.0))
            assert np.allclose(found.probability[face, i], wanted, atol=1e-5)


@pytest.mark.parametrize("pixels", [10, 30])
def test_chosen_pixels_are_matched_as_among_all(pixels: int) -> None:
    rng = np.random.default_rng(4)
    descriptor, anchors = unit(rng, 1, 6, 5, 8), unit(rng, 12, 8)
    logit = rng.normal(size=(1, 6, 5)).astype(np.float32) * 3
    settings: dict[str, Any] = {
        "stride": 2,
        "pixels": pixels,
        "candidates": 4,
        "sharpness": 10.0,
        "no_match_cosine": 0.2,
        "place": rng.normal(size=(12, 3)).astype(np.float32),
        "candidate_radius": 1.0,
    }
    want = match_pixels(np.moveaxis(descriptor, 3, 1), logit, anchors, **settings)
    chosen = choose_pixels(logit[0], pixels)
    some = descriptor.reshape(-1, 8)[chosen]
    got = match_chosen_pixels(chosen, some, logit[0], anchors, **settings)
    for field in fields(want):
        np.testing.assert_array_equal(getattr(got, field.name), getattr(want, field.name))


def test_too_many_pixels_are_thinned_evenly() -> None:
    rng = np.random.default_rng(3)
    descriptor, anchors = unit(rng, 1, 20, 20, 8), unit(rng, 12, 8)
    logit = np.full((1, 20, 20), 4.0, np.float32)
    found = match_pixels(
        np.moveaxis(descriptor, 3, 1),
        logit,
        anchors,
        stride=2,
        pixels=100,
        candidates=2,
        sharpness=10.0,
        no_match_cosine=0.2,
    )
    assert (found.mask > 0).all()
    assert np.isclose(found.pitch[0], 4.0)  # a quarter of the pixels: twice the distance
    halves = found.grid[0, ::2], found.grid[0, 1::2]  # of which each is pooled with another's
    for pixels in (found.grid[0], *halves):
        assert np.abs(pixels.mean(0) - 20).max() < 1.5
        quarters = np.histogram2d(*pixels.T, bins=2, range=[[0, 40]] * 2)[0] / len(pixels)
        assert np.abs(quarters - 0.25).max() < 0.05


def test_a_border_that_moves_by_one_pixel_moves_one_pixel() -> None:
    """Else rounding errors would change all pixels that a fit is made from."""
    rng = np.random.default_rng(4)
    descriptor, anchors = unit(rng, 1, 30, 30, 8), unit(rng, 12, 8)
    logit = np.full((1, 30, 30), -4.0, np.float32)
    logit[0, 3:27, 5:25] = 4.0

    def chosen() -> list[set[tuple[float, float]]]:
        found = match_pixels(
            np.moveaxis(descriptor, 3, 1),
            logit,
            anchors,
            stride=2,
            pixels=100,
            candidates=2,
            sharpness=10.0,
            no_match_cosine=0.2,
        )
        return [{(x, y) for x, y in found.grid[0, half::2]} for half in (0, 1)]

    before = chosen()
    for row, column in ((2, 7), (3, 5), (14, 25), (26, 24)):
        kept = logit[0, row, column]
        logit[0, row, column] = -kept
        assert all(len(a - b) <= 1 for a, b in zip(before, chosen(), strict=True))
        logit[0, row, column] = kept


def some_matches(rng: np.random.Generator) -> tuple[Matches, np.ndarray, np.ndarray, np.ndarray]:
    b, n, k, a = 2, 15, 3, 9
    probability = rng.dirichlet(np.ones(k + 1), size=(b, n))[..., :k].astype(np.float32)
    anchor = rng.integers(0, a, (b, n, k)).astype(np.int32)
    mask = rng.uniform(0.5, 1.0, (b, n))
    mask[:, -3:] = 0
    matches = Matches(np.zeros((b, n, 2)), mask, anchor, probability, np.ones(b))
    return (
        matches,
        rng.uniform(0, 20, (b, n, 2)),
        rng.uniform(0, 20, (b, a, 2)),
        rng.uniform(0.2, 1.0, (b, a)),
    )


def test_soft_correspondences_are_the_gated_mean_of_the_anchors() -> None:
    rng = np.random.default_rng(4)
    matches, px, predicted, visible = some_matches(rng)
    mean = rng.normal(size=(9, 3)).astype(np.float32)
    basis = rng.normal(size=(9, 3, 5)).astype(np.float32)
    gate = np.array([6.0, np.inf])
    got_mean, got_basis, got_weight = soft_correspondence(
        matches, px, predicted, gate, visible, mean, basis
    )
    for face in range(2):
        for i in range(15):
            anchors = matches.anchor[face, i]
            square = ((px[face, i] - predicted[face, anchors]) ** 2).sum(1)
            share = (
                matches.probability[face, i]
                * np.exp(-0.5 * square / gate[face] ** 2)
                * visible[face, anchors]
            )
            if matches.mask[face, i] == 0:
                assert got_weight[face, i] == 0
                continue
            assert np.isclose(got_weight[face, i], matches.mask[face, i] * share.sum(), rtol=1e-2)
            share = share / share.sum()
            assert np.allclose(got_mean[face, i], share @ mean[anchors], atol=2e-2)
            assert np.allclose(
                got_basis[face, i], np.einsum("k,kcp->cp", share, basis[anchors]), atol=2e-2
            )


@pytest.mark.parametrize("anchors", [3, 6, 50, 64, 400, 801])
def test_the_most_similar_anchors_are_those_of_a_stable_sort(anchors: int) -> None:
    rng = np.random.default_rng(anchors)
    similarity = rng.uniform(-1, 1, (40, anchors)).astype(np.float32)
    similarity[:20] = np.round(similarity[:20], 1)  # many are equal
    keep = min(6, anchors)
    found = np.zeros((40, keep), np.int32)
    probability = np.zeros((40, keep), np.float32)
    _best(similarity, 16.0, 0.4, found, probability)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :keep]
    np.testing.assert_array_equal(found, order)
    likely = np.exp(16.0 * np.take_along_axis(similarity, order, 1).astype(np.float64))
    expected = likely / (likely.sum(1, keepdims=True) + np.exp(16.0 * 0.4))
    np.testing.assert_allclose(probability, expected, rtol=1e-4)
