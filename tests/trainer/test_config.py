"""Configurations: unknown names and impossible runs are refused, plain values come back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dff.face.descriptor import NetConfig
from dff.trainer.config import LossWeights, TrainConfig, from_dict, to_card, to_dict


def test_plain_values_come_back_through_json() -> None:
    config = TrainConfig(steps=7, net=NetConfig(dims=16), weights=LossWeights(views=0.5))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict({}) == TrainConfig()


@pytest.mark.parametrize("bad", [{"step": 1}, {"net": {"width": 1}}, {"weights": {"anchor": 1.0}}])
def test_unknown_names_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"has no (step|width|anchor)"):
        from_dict(bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"batch": 30},
        {"size": 100},
        {"ema": 1.0},
        {"sigma": 0.0},
        {"eval_every": 0},
        {"seed": -1},
        {"learning_rate": float("nan")},
        {"weights": {"anchors": 0.0, "face": 0.0}},
        {"weights": {"views": -1.0}},
    ],
)
def test_impossible_runs_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"TrainConfig|batch|input|LossWeights"):
        from_dict(bad)


def test_a_batch_must_split_over_the_workers() -> None:
    config = TrainConfig(batch=32, views=4)
    for workers in (1, 2, 4, 8):
        config.check_workers(workers)
    for workers in (0, 3, 16):
        with pytest.raises(ValueError, match="does not split"):
            config.check_workers(workers)


@pytest.mark.parametrize(
    ("start", "told"),
    [
        ("", ""),
        ("dff-open", "dff-open"),
        ("/home/me/runs/a.safetensors", "a.safetensors"),
        ("models:/dff@best", "dff@best"),
    ],
)
def test_a_card_tells_no_folders(start: str, told: str) -> None:
    config = TrainConfig(start=start)
    assert to_card(config) == to_dict(config) | {"start": told}
