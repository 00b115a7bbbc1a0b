"""Peaks of similarity maps, and descriptors of crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dff.face.descriptor import Anchors, DescriptorNet, NetConfig
from dff.face.matching import describe_crop, find_peaks, pixel_centres, refine_peak


def test_the_peak_is_refined_between_pixels() -> None:
    y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(10) + 0.5, indexing="ij")
    hill = 1.0 - 0.02 * ((x - 6.2) ** 2 + (y - 3.5) ** 2)
    corner = 1.0 - 0.02 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    found = refine_peak(torch.stack([hill.flatten(), corner.flatten()]), 10)
    assert abs(float(found[0, 0]) - 6.2) < 0.25
    assert float(found[0, 1]) == pytest.approx(3.5, abs=1e-4)
    assert float((found[1] - 0.5).abs().max()) < 0.45, "pixels beyond the edge have no weight"


def test_peaks_lie_among_the_candidates() -> None:
    candidates = np.array([0, 9, 18])
    score = np.array([[0.1, 0.9, 0.2], [0.3, 0.2, 0.8]], dtype=np.float32)
    np.testing.assert_allclose(
        find_peaks(score, candidates, 8), pixel_centres(candidates[[1, 2]], 8), atol=0.02
    )


def test_a_mirror_image_has_the_mirrored_face_and_swapped_roots() -> None:
    torch.manual_seed(0)
    net = DescriptorNet(NetConfig(dims=8, widths=(8, 16), depths=(1, 1)))
    anchors = Anchors(np.arange(3), np.zeros((3, 3)), np.eye(3, 8, dtype=np.float32), 16.0)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    own = describe_crop(net, image, mirrored=True)
    other = describe_crop(net, np.ascontiguousarray(image[:, ::-1]), mirrored=True)
    np.testing.assert_allclose(other.face_logit, own.face_logit[:, ::-1], atol=1e-6)
    px = np.array([[2.5, 4.5], [11.2, 7.9]])
    roots = own.anchor_roots(anchors, px)
    np.testing.assert_allclose(np.linalg.norm(roots, axis=1), 1.0, atol=1e-5)
    swapped = other.anchor_roots(anchors, np.array([16.0, 0.0]) - px * [1.0, -1.0])
    np.testing.assert_allclose(swapped, np.roll(roots, 3, axis=1), atol=1e-5)
