"""Descriptor matching: an oracle errs by less than a pixel, random descriptors by chance."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from dff.face.arrays import Bytes, Floats
from dff.face.descriptor import STRIDE, Anchors, DescriptorNet, NetConfig, image_batch
from dff.face.model.morphable import MorphableModel
from dff.face.tta import TtaNetwork, TtaTransform
from dff.infra.datasets.shards import ViewRow
from dff.trainer.evaluation.baselines import (
    make_anchor_descriptor,
    make_daisy_descriptor,
    make_network_descriptor,
    make_patch_descriptor,
    make_sift_descriptor,
)
from dff.trainer.evaluation.config import MATCHING, MatchingConfig
from dff.trainer.evaluation.figures import draw_view_pairs
from dff.trainer.evaluation.matching import Describe, compare_descriptors, match_points
from dff.trainer.evaluation.pairs import ViewPair, sample_view_pairs

SIZE = 64
HALF = SIZE // STRIDE
PIXEL = MATCHING.crop_side / HALF  # of the output, at a crop of crop_side


@pytest.fixture(scope="module")
def pairs(rows: list[ViewRow], open_head: MorphableModel) -> list[ViewPair]:
    return sample_view_pairs(rows, open_head, count=3, size=SIZE, rng=np.random.default_rng(0))


def oracle(pair: ViewPair) -> Describe:
    """A point's true position in the second crop as a point of a sphere; for this pair only."""
    first = pair.images[0].tobytes()

    def describe(image: Bytes, px: Floats) -> Floats:
        flat = (pair.second if image.tobytes() == first else px / STRIDE) / HALF / 2.0
        return np.concatenate(
            [flat, np.sqrt(1.0 - (flat**2).sum(-1, keepdims=True))], axis=-1
        ).astype(np.float32)

    return describe


def test_pairs_have_points_on_the_face(pairs: list[ViewPair]) -> None:
    assert {(pair.same, MATCHING.find_yaw_bin(pair.yaw)) for pair in pairs} >= {
        (s, b) for s in (True, False) for b in (0, 1)
    }
    for pair in pairs:
        assert pair.images.shape == (2, SIZE, SIZE, 3)
        assert 8 <= len(pair.first) == len(pair.second) <= MATCHING.points
        assert ((pair.second >= 0.0) & (pair.second < HALF)).all()
        column, row = np.floor(pair.second).astype(int).T
        near = cKDTree(np.argwhere(pair.face.reshape(HALF, HALF)))
        assert (near.query(np.stack([row, column], axis=1))[0] <= np.sqrt(2)).all(), (
            "points are on the face"
        )
        assert 0.4 * HALF < pair.box < HALF / 1.5 + 1e-6, "a crop is 1.5 boxes wide"


def test_a_view_is_matched_with_itself(rows: list[ViewRow], open_head: MorphableModel) -> None:
    """Two rows of the same pixels: the matches are the points themselves."""
    held = rows[0]
    twins = [held, replace(held, sample_id=f"{held.identity_id}/0099", view=99)]
    (pair,) = [
        p
        for p in sample_view_pairs(
            twins, open_head, count=1, size=SIZE, rng=np.random.default_rng(0)
        )
        if p.same
    ]
    np.testing.assert_allclose(pair.second, pair.first, atol=0.02)
    for describe in (
        make_patch_descriptor(16),
        make_sift_descriptor(24.0),
        make_daisy_descriptor(8),
    ):
        assert np.linalg.norm(match_points(pair, describe) - pair.first, axis=1).max() < 1.0


def test_an_oracle_errs_by_less_than_a_pixel(pairs: list[ViewPair]) -> None:
    for pair in pairs:
        (row,) = compare_descriptors([pair], {"oracle": oracle(pair)}).rows
        assert row.px_median < 0.75 * PIXEL
        assert row.points == len(pair.first)


def test_random_descriptors_err_by_chance(pairs: list[ViewPair]) -> None:
    rng = np.random.default_rng(3)
    noise = compare_descriptors(
        pairs, {"noise": lambda image, px: rng.standard_normal((len(px), 8)).astype(np.float32)}
    )
    column, row = np.arange(HALF * HALF) % HALF, np.arange(HALF * HALF) // HALF
    chance = np.concatenate(
        [
            np.linalg.norm(
                np.stack([column, row], 1)[pair.face][None] + 0.5 - pair.second[:, None], axis=2
            ).mean(1)
            for pair in pairs
        ]
    ).mean()
    found = np.average([r.px_mean for r in noise.rows], weights=[r.points for r in noise.rows])
    assert found == pytest.approx(chance * PIXEL, rel=0.12)


@pytest.mark.parametrize(
    "describe", [make_patch_descriptor(8), make_sift_descriptor(12.0), make_daisy_descriptor(8)]
)
def test_descriptors_are_equivariant_to_translation(describe: Describe) -> None:
    """The image moved by four pixels has the same vectors four pixels further on."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    image = cv2.resize(noise, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    px = np.random.default_rng(1).uniform(24.0, 36.0, (20, 2))
    moved = np.roll(image, (4, 4), axis=(0, 1))
    own, there, here = describe(image, px), describe(moved, px + 4.0), describe(moved, px)
    np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1.0, atol=1e-3)
    assert ((own * there).sum(1) > 0.99).all()
    assert np.median((own * here).sum(1)) < 0.9


def test_anchor_descriptors_are_roots_of_the_anchor_probabilities() -> None:
    """Also with test-time augmentation of two equal transforms, and mirrored."""
    torch.manual_seed(0)
    net = DescriptorNet(NetConfig(dims=8, widths=(8, 16), depths=(1, 1)))
    vectors = np.eye(8, dtype=np.float32)[:3]
    anchors = Anchors(np.arange(3), np.zeros((3, 3)), vectors, 16.0)
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    px = (np.random.default_rng(1).integers(2, SIZE // STRIDE - 2, (10, 2)) + 0.5) * STRIDE
    raw = make_network_descriptor(net)(image, px)
    np.testing.assert_allclose(np.linalg.norm(raw, axis=1), 1.0, atol=1e-5)
    odds = np.exp(16.0 * raw @ vectors.T)
    wanted = np.sqrt(odds / odds.sum(1, keepdims=True))
    np.testing.assert_allclose(make_anchor_descriptor(net, anchors)(image, px), wanted, atol=1e-4)
    twice = TtaNetwork(net, [TtaTransform(), TtaTransform()], multiple=net.config.multiple)
    np.testing.assert_allclose(make_anchor_descriptor(twice, anchors)(image, px), wanted, atol=1e-4)
    mirrored = make_anchor_descriptor(net, anchors, mirrored=True)(image, px)
    back = make_anchor_descriptor(net, anchors, mirrored=True)(
        image[:, ::-1].copy(), [SIZE, 0] - px * [1, -1]
    )
    np.testing.assert_allclose(np.linalg.norm(mirrored, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(mirrored[:, :3] * np.sqrt(2.0), wanted, atol=1e-4)
    # The halves of the plain and of the mirrored crop are swapped.
    np.testing.assert_allclose(back, np.roll(mirrored, 3, axis=1), atol=1e-5)
    centre = np.array([[2.5, 4.5]]) * STRIDE
    with torch.no_grad():
        pixel = net(image_batch(torch.from_numpy(image[None]))).descriptor[0, :, 4, 2].numpy()
    np.testing.assert_allclose(make_network_descriptor(net)(image, centre)[0], pixel, atol=1e-5)


def test_yaw_bins_cover_all_differences() -> None:
    wanted = {0.0: 0, 29.9: 0, 30.0: 1, -45.0: 1, 60.0: 2, 89.9: 2, 90.0: 3, 180.0: 3}
    assert {degrees: MATCHING.find_yaw_bin(degrees) for degrees in wanted} == wanted
    assert MATCHING.yaw_bins == ("0-30", "30-60", "60-90", "> 90")
    assert [low for low, _ in MATCHING.yaw_ranges] == list(MATCHING.yaw_edges)


def test_thresholds_apply_to_the_first_method(pairs: list[ViewPair]) -> None:
    """The cells add up to all pairs; ratios are those of the rows."""
    report = compare_descriptors(
        pairs, {"sift": make_sift_descriptor(24.0)}, {"patches": make_patch_descriptor(16)}
    )
    for method in ("sift", "patches"):
        assert sum(row.pairs for row in report.rows if row.method == method) == len(pairs)
        assert sum(row.points for row in report.rows if row.method == method) == sum(
            len(p.first) for p in pairs
        )
    assert all(list(row.pck) == sorted(row.pck) for row in report.rows)
    row = {(r.method, r.identity, r.yaw): r for r in report.rows}
    thresholds = {got.name: got for got in report.thresholds()}
    assert (
        thresholds["same identity, yaw 0-30: PCK 5 %"].measured
        == row["sift", "same", "0-30"].pck[-1]
    )
    ratio = row["patches", "same", "0-30"].px_mean / row["sift", "same", "0-30"].px_mean
    got = thresholds["same identity, yaw 0-30: mean error of patches over it"]
    assert got.measured == pytest.approx(ratio)
    assert got.met == (ratio >= 3.0)


def test_correct_matches_are_drawn_green(pairs: list[ViewPair]) -> None:
    pair = pairs[0]
    picture = draw_view_pairs([pair], {"oracle": oracle(pair)})
    red, green, blue = (picture[..., i].astype(int) for i in range(3))
    assert ((green > 180) & (red < 90) & (blue < 90)).sum() > 100
    wrong = replace(pair, second=np.roll(pair.second, 1, axis=0))
    lost = draw_view_pairs([wrong], {"oracle": oracle(pair)}).astype(int)
    assert ((lost[..., 0] > 180) & (lost[..., 1] < 90)).sum() > 100


def test_the_protocol_decides_pairs_and_figures(
    rows: list[ViewRow], open_head: MorphableModel
) -> None:
    config = MatchingConfig(points=10, yaw_edges=(0.0, 20.0), pck=(50.0, 200.0), wanted_pck={})
    pairs = sample_view_pairs(
        rows, open_head, count=2, size=SIZE, rng=np.random.default_rng(0), config=config
    )
    assert {len(pair.first) for pair in pairs} == {10}
    patches = {"patches": make_patch_descriptor(16)}
    report = compare_descriptors(pairs, patches, config=config)
    assert {row.yaw for row in report.rows} == {"0-20", "> 20"}
    assert all(row.pck[1] == 100.0 for row in report.rows)
    assert {threshold.name for threshold in report.thresholds()} == {
        "yaw 0-20: different over same identity",
        "yaw > 20: different over same identity",
    }
    assert "PCK 200 %" in report.lines()[0]
