"""Test-time augmentation: outputs on the grid of one pass, and their mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dff.face.descriptor import STRIDE, DescriptorNet, Features, NetConfig
from dff.face.tta import TtaNetwork, TtaTransform, resampled

SIDE = 64


def smooth_image(rows: int = 1) -> Tensor:
    """(rows, 3, SIDE, SIDE) waves of some 40 pixels, 0..1."""
    at = torch.arange(SIDE) + 0.5
    y, x = torch.meshgrid(at, at, indexing="ij")
    waves = [torch.sin(x / 6.1 + k) * torch.cos(y / 8.3 - 2 * k) for k in range(3 * rows)]
    return 0.5 + 0.4 * torch.stack(waves).reshape(rows, 3, SIDE, SIDE)


class Reader:
    """Returns the colour of each pixel as a unit vector, and its brightness; records ``sides``."""

    def __init__(self) -> None:
        self.sides: list[tuple[int, ...]] = []

    def __call__(self, image: Tensor) -> Features:
        self.sides.append(tuple(image.shape[2:]))
        mean = torch.nn.functional.avg_pool2d(image, STRIDE)
        return Features(torch.nn.functional.normalize(mean, dim=1), mean.sum(1))


def test_rotation_is_clockwise_about_the_centre() -> None:
    image = torch.zeros(1, 1, SIDE, SIDE)
    image[0, 0, 8:16, 24:40] = 1.0  # above the middle
    turned = resampled(image, (SIDE, SIDE), 90.0)[0, 0]
    expected = torch.zeros(SIDE, SIDE)
    expected[24:40, SIDE - 16 : SIDE - 8] = 1.0  # to its right
    torch.testing.assert_close(turned, expected, atol=1e-3, rtol=0.0)


def test_rotation_keeps_shapes_in_an_oblong_image() -> None:
    """A right-angle rotation and its inverse keep the pixels that stay in an oblong image."""
    image = torch.zeros(1, 1, 32, 64)
    image[0, 0, 10:14, 28:36] = 1.0
    turned = resampled(image, (32, 64), 90.0)
    assert float(turned.sum()) == pytest.approx(32.0, abs=0.1)
    torch.testing.assert_close(resampled(turned, (32, 64), -90.0), image, atol=1e-3, rtol=0.0)


@pytest.mark.parametrize(
    "transform",
    [TtaTransform(0.75), TtaTransform(1.25), TtaTransform(1.0, 20.0), TtaTransform(0.75, -35.0)],
)
def test_every_transform_is_undone(transform: TtaTransform) -> None:
    """Every transform is undone, up to the sharpness of a smaller image."""
    image = smooth_image(2)
    reader = Reader()
    plain, seen = reader(image), TtaNetwork(reader, [transform], multiple=16)(image)
    expected = round(SIDE * transform.scale)
    assert reader.sides == [(SIDE, SIDE), (expected, expected)]
    inner = slice(6, -6)  # a rotated crop does not cover the corners
    for a, b in zip(plain, seen, strict=True):
        assert float((a - b)[..., inner, inner].abs().mean()) < 0.02
        assert float((a - torch.rot90(b, 2, (-2, -1)))[..., inner, inner].abs().mean()) > 0.1


def test_passes_are_averaged_at_the_pixels_that_they_cover() -> None:
    image = smooth_image()
    reader = Reader()
    turned = TtaNetwork(reader, [TtaTransform(turn=45.0)], multiple=16)(image)
    both = TtaNetwork(reader, [TtaTransform(), TtaTransform(turn=45.0)], multiple=16)(image)
    plain = reader(image)
    assert float(turned.face_logit[0, 0, 0]) == 0.0  # beyond the corner
    torch.testing.assert_close(both.face_logit[0, 0, 0], plain.face_logit[0, 0, 0])
    torch.testing.assert_close(both.descriptor[0, :, 0, 0], plain.descriptor[0, :, 0, 0])
    middle = (slice(None), slice(12, 20), slice(12, 20))
    mean = (plain.face_logit + turned.face_logit) / 2
    torch.testing.assert_close(both.face_logit[middle], mean[middle])


def test_log_odds_of_the_mean_are_the_mean_of_log_odds() -> None:
    torch.manual_seed(0)
    net = DescriptorNet(NetConfig(dims=8, widths=(8, 16), depths=(1, 1))).eval()
    image = smooth_image()
    anchors = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    transforms = [TtaTransform(), TtaTransform(0.75, 10.0)]
    with torch.no_grad():
        each = [
            TtaNetwork(net, [transform], multiple=net.config.multiple)(image)
            for transform in transforms
        ]
        both = TtaNetwork(net, transforms, multiple=net.config.multiple)(image)
    odds = [
        16.0 * torch.einsum("bdhw,ad->bahw", seen.descriptor, anchors) for seen in (*each, both)
    ]
    middle = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(odds[2][middle], ((odds[0] + odds[1]) / 2)[middle])
    assert float((odds[0] - odds[1]).abs().max()) > 0.1
    assert bool((both.descriptor.norm(dim=1) <= 1.0 + 1e-5).all())
    np.testing.assert_allclose(both.descriptor.shape, (1, 8, SIDE // STRIDE, SIDE // STRIDE))


def test_an_empty_list_of_transforms_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one transform"):
        TtaNetwork(Reader(), [], multiple=16)
