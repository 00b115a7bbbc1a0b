"""Configurations: serialisation, and refusal of unknown names and impossible values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dff.face.descriptor import NetConfig
from dff.trainer.config import (
    LossWeights,
    TrainConfig,
    WorkerRange,
    from_dict,
    list_changes,
    to_card,
    to_dict,
)
from dff.trainer.data.config import AugmentConfig, MosaicConfig


def test_a_configuration_survives_json() -> None:
    config = TrainConfig(
        steps=7,
        net=NetConfig(dims=16),
        weights=LossWeights(views=0.5),
        augment=AugmentConfig(mosaic=MosaicConfig(zoom=(1.0, 2.0))),
    )
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict({}) == TrainConfig()
    assert from_dict({"augment": {"mosaic": {"zoom": [1.0, 2.0]}}}).augment == config.augment


def test_changes_are_listed_by_their_full_names() -> None:
    before = to_dict(TrainConfig())
    after = to_dict(TrainConfig(seed=1, augment=AugmentConfig(mosaic=MosaicConfig(most_faces=2))))
    assert list_changes(before, after) == ["augment.mosaic.most_faces 4 -> 2", "seed 0 -> 1"]
    assert list_changes(before, before) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"step": 1},
        {"net": {"width": 1}},
        {"weights": {"anchor": 1.0}},
        {"augment": {"mosaic": {"faces": 4}}},
    ],
)
def test_unknown_names_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"has no (step|width|anchor|faces)"):
        from_dict(bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"batch": 30},
        {"other_sizes": [128, 100]},
        {"other_sizes": [0]},
        {"size": 100},
        {"ema": 1.0},
        {"sigma": 0.0},
        {"eval_every": 0},
        {"seed": -1},
        {"learning_rate": float("nan")},
        {"weights": {"anchors": 0.0, "face": 0.0}},
        {"weights": {"views": -1.0}},
        {"betas": [0.9, 1.0]},
        {"max_gradient": 0.0},
        {"contrast": {"positive_distance": 0.02}},
        {"augment": {"mosaic": {"probability": 1.5}}},
        {"augment": {"photometric": {"blur": [2.0, 1.0]}}},
        {"evaluation": {"min_points": 65}},
    ],
)
def test_impossible_runs_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Config|batch|input|LossWeights"):
        from_dict(bad)


def test_a_batch_must_divide_into_identities_over_the_workers() -> None:
    config = TrainConfig(batch=32, views=4)
    for workers in (1, 2, 4, 8):
        config.check_workers(workers)
    for workers in (0, 3, 16):
        with pytest.raises(ValueError, match="does not split"):
            config.check_workers(workers)


@pytest.mark.parametrize(
    ("start", "recorded"),
    [
        ("", ""),
        ("dff-open", "dff-open"),
        ("/home/me/runs/a.safetensors", "a.safetensors"),
        ("models:/dff@best", "dff@best"),
    ],
)
def test_a_card_holds_no_folders(start: str, recorded: str) -> None:
    config = TrainConfig(start=start)
    assert to_card(config) == to_dict(config) | {"start": recorded}


@pytest.mark.parametrize(
    ("workers", "used"), [(1, 1), (2, 2), (3, 2), (5, 4), (7, 4), (8, 8), (99, 8)]
)
def test_the_batch_is_split_over_as_many_workers_as_it_can(workers: int, used: int) -> None:
    config = TrainConfig(batch=32, views=4)
    assert config.count_used_workers(workers) == used
    config.check_workers(used)


def test_a_range_of_workers_is_written_as_it_is_read() -> None:
    for text, span in (("2:8", WorkerRange(2, 8)), ("3", WorkerRange(3, 3))):
        assert WorkerRange.parse(text) == span
        assert str(span) == text
    assert WorkerRange(1, 2).is_elastic
    assert not WorkerRange(2, 2).is_elastic


@pytest.mark.parametrize("text", ["", "0", "2:", ":8", "8:2", "0:2", "a", "1:b", "-1", "2:4:8"])
def test_other_numbers_of_workers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a number or a range"):
        WorkerRange.parse(text)
