"""Presets train as they say, and as the weights that ship were trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dff.infra.networks import weights
from dff.presets import PRESETS, build_config
from dff.trainer.config import TrainConfig


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_trained_as_it_says(name: str) -> None:
    preset = PRESETS[name]
    config = build_config(preset, steps=None, dims=preset.config.net.dims, seed=3)
    assert config == replace(preset.config, seed=3)
    shipped = weights.load(f"dff-{name}")
    assert (config.size, config.net) == (shipped.card["config"]["size"], shipped.net.config)


def test_arguments_override_the_preset() -> None:
    preset = PRESETS["open"]
    config = build_config(preset, steps=7, dims=16, batch=8)
    assert (config.steps, config.net.dims, config.batch, config.size) == (
        7,
        16,
        8,
        preset.config.size,
    )
    assert build_config(None, steps=None, dims=32) == TrainConfig()
