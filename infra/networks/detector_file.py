"""Files of the detector's network: safetensors of its weights, with metadata that describes them.

Nothing in the file runs when it is read. The metadata has one key, ``detector``, which is JSON:
``format``, ``config`` (of ``DetectorNetConfig``) and ``card``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from dff.face.detector_net import DetectorNet, DetectorNetConfig
from dff.face.errors import BadWeights
from dff.infra.files import replaced_file
from dff.infra.networks.tensor_file import read_tensor_file

FORMAT = "dff-detector-1"
LARGEST = 32 << 20  # bytes; the shipped file has less than one million
DETECTORS = {"open-detector": Path(__file__).parents[1] / "data" / "open-detector.safetensors"}
"""Detectors that come with the program, by name."""
DEFAULT_DETECTOR = "open-detector"
CARD_KEYS = ("model", "data_licences", "steps")
"""Keys of every card: face model of the training views, their licences, optimiser steps."""


@dataclass(frozen=True)
class DetectorWeights:
    """A trained network of the detector."""

    net: DetectorNet  # in evaluation mode, on the CPU
    card: dict[str, Any]  # provenance: at least ``CARD_KEYS``


def save_detector(path: Path | str, net: DetectorNet, card: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all. Raises ValueError when the card lacks a key."""
    missing = [key for key in CARD_KEYS if key not in card]
    if missing:
        raise ValueError(f"a detector's card must say {missing}")
    about = {"format": FORMAT, "config": asdict(net.config), "card": dict(card)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    data = save(tensors, {"detector": json.dumps(about, sort_keys=True)})
    with replaced_file(path) as temporary:
        temporary.write_bytes(data)


def load_detector(path: Path | str = DEFAULT_DETECTOR) -> DetectorWeights:
    """Read a file, or one of ``DETECTORS``. Raises BadWeights, naming it and what is wrong."""
    file = DETECTORS.get(str(path), path)
    about, arrays = read_tensor_file(file, "detector", FORMAT, kind="detector", largest=LARGEST)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        net = DetectorNet(DetectorNetConfig(**about["config"]))
        card = dict(about["card"])
        net.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadWeights(f"{path} has bad metadata or tensors: {error}") from error
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise BadWeights(f"{path} holds numbers that are not finite")
    return DetectorWeights(net.eval(), card)
