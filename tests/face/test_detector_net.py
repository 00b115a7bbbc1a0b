"""The detector's network answers cells that decode to known boxes; its fused twin computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dff.face.descriptor import image_batch
from dff.face.detector_net import (
    DETECTOR_CHANNELS,
    DETECTOR_STRIDE,
    UNIT,
    DetectorNet,
    DetectorNetConfig,
    decode_cells,
)
from dff.face.fused_network import FusedDetectorNet

SMALL = DetectorNetConfig(widths=(8, 16, 24), depths=(1, 1, 1), groups=4)


def random_net(config: DetectorNetConfig) -> DetectorNet:
    torch.manual_seed(3)
    net = DetectorNet(config).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def test_known_cells_are_decoded_to_their_boxes() -> None:
    answer = np.zeros((6, 8, DETECTOR_CHANNELS), np.float32)
    answer[..., 0] = -5.0
    rows = np.eye(3)[:2].ravel()
    answer[2, 5] = [3.0, 0.25, -0.5, np.log(40 / UNIT), np.log(60 / UNIT), *rows]
    answer[2, 6, 0] = 2.0  # beside a surer cell
    answer[5, 0] = [0.5, 0.0, 0.0, 0.0, 0.0, *rows]
    cells = decode_cells(answer, least=0.0)
    np.testing.assert_allclose(cells.logit, [3.0, 0.5])
    x, y = DETECTOR_STRIDE * (5.5 + 0.25), DETECTOR_STRIDE * (2.5 - 0.5)
    np.testing.assert_allclose(cells.box[0], [x - 20, y - 30, x + 20, y + 30], rtol=1e-6)
    np.testing.assert_allclose(cells.box[1], [4 - 16, 44 - 16, 4 + 16, 44 + 16])
    np.testing.assert_array_equal(cells.rows[0], np.eye(3)[:2])
    assert len(decode_cells(answer, least=4.0).logit) == 0


@pytest.mark.parametrize("shape", [(32, 48), (64, 32), (16, 16)], ids=str)
def test_the_fused_network_computes_the_same(shape: tuple[int, int]) -> None:
    net = random_net(SMALL)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    with torch.inference_mode():
        want = net(image_batch(torch.from_numpy(image)[None]))[0].permute(1, 2, 0).numpy()
    got = FusedDetectorNet(net)(image)
    assert got.shape == (shape[0] // 8, shape[1] // 8, DETECTOR_CHANNELS)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_images_and_sizes_that_do_not_fit_are_refused() -> None:
    net = random_net(SMALL)
    with pytest.raises(ValueError, match="multiples of 16"):
        net(torch.zeros(1, 3, 32, 30))
    with pytest.raises(ValueError, match="multiples of 16"):
        FusedDetectorNet(net)(np.zeros((30, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="as many widths"):
        DetectorNetConfig(widths=(8, 16), depths=(1,))
    with pytest.raises(ValueError, match="multiples of 8 groups"):
        DetectorNetConfig(widths=(8, 20), depths=(1, 1))
