"""The ONNX file answers as the network does, at any batch and size, and says where it comes
from.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dff.infra.networks import weights

onnx = pytest.importorskip("onnx", reason="optional packages of the extra onnx")


@pytest.mark.parametrize("shape", [(1, 128, 128), (3, 64, 192), (16, 128, 128)])
def test_onnxruntime_answers_as_torch(exported_net: Path, shape: tuple[int, int, int]) -> None:
    net = weights.load(weights.DEFAULT).net
    image = torch.rand(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(1))
    # Late, since it starts a thread that forked workers of the tests would lack.
    onnxruntime = pytest.importorskip("onnxruntime", reason="optional packages of the extra onnx")
    session = onnxruntime.InferenceSession(exported_net, providers=["CPUExecutionProvider"])
    descriptor, face_logit = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        wanted = net(image)
    assert np.abs(descriptor - wanted.descriptor.numpy()).max() < 1e-4
    assert np.abs(face_logit - wanted.face_logit.numpy()).max() < 1e-4


def test_the_card_travels_and_nothing_else_is_left(exported_net: Path) -> None:
    props = {p.key: p.value for p in onnx.load(exported_net).metadata_props}
    assert json.loads(props["descriptor"])["card"] == weights.load(weights.DEFAULT).card
    assert [p.name for p in exported_net.parent.iterdir()] == ["dff-open.onnx"]
