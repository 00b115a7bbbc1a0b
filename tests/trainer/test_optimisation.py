"""The schedule, the moving average and the checkpoint file that both trainings use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dff.trainer.config import TrainConfig
from dff.trainer.optimisation import (
    compute_learning_rate,
    move_average,
    read_checkpoint,
    write_checkpoint,
)


def test_the_learning_rate_rises_and_falls() -> None:
    config = replace(TrainConfig(), learning_rate=2.0, final_rate=0.01, warmup=10, steps=110)
    rates = [compute_learning_rate(step, config) for step in range(111)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(0.01 * 2 + 0.99 * 2 * 0.5)
    assert rates[110] == pytest.approx(0.02)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_average_forgets_its_start_first_and_keeps_the_decay_later() -> None:
    average, weights = torch.zeros(2), torch.tensor([1.0, 2.0])
    move_average([average], [weights], 0, 0.99)
    assert average.tolist() == pytest.approx([0.9, 1.8])
    average.zero_()
    move_average([average], [weights], 10_000, 0.99)
    assert average.tolist() == pytest.approx([0.01, 0.02])


def test_a_checkpoint_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run" / "state.pt"
    write_checkpoint(path, {"step": 3, "net": {"w": torch.arange(4.0)}})
    content = read_checkpoint(path)
    assert content["step"] == 3
    assert torch.equal(content["net"]["w"], torch.arange(4.0))
    assert [each.name for each in path.parent.iterdir()] == ["state.pt"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"state\.pt cannot be read as a checkpoint"):
        read_checkpoint(path)
