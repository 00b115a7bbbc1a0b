"""A detector's file gives back its network and card, and bad files are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dff.face.detector_net import DetectorNet, DetectorNetConfig
from dff.face.errors import BadWeights
from dff.infra.networks.detector_file import load_detector, save_detector

SMALL = DetectorNetConfig(widths=(8, 16), depths=(1, 1))
CARD = {"model": "m", "data_licences": ["CC0-1.0"], "steps": 3}


def test_a_network_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    net = DetectorNet(SMALL)
    save_detector(tmp_path / "a.safetensors", net, CARD)
    save_detector(tmp_path / "b.safetensors", net, CARD)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = load_detector(tmp_path / "a.safetensors")
    assert loaded.card == CARD
    assert not loaded.net.training
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.net(image), net.eval()(image))


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(BadWeights, match=r"there is no detector .*x\.safetensors"):
        load_detector(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(BadWeights, match="cannot be read as a detector"):
        load_detector(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(BadWeights, match="has format 'none'"):
        load_detector(path)
    net = DetectorNet(SMALL)
    with torch.no_grad():
        net.head.bias[0] = torch.nan
    save_detector(path, net, CARD)
    with pytest.raises(BadWeights, match="not finite"):
        load_detector(path)
    with pytest.raises(ValueError, match="card must say"):
        save_detector(path, net, {"model": "m"})
