"""Common parts of both trainings: learning-rate schedule, moving average, checkpoint file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dff.infra.files import replaced_file


class Schedule(Protocol):
    """The part of a configuration that decides the learning rate of each step."""

    @property
    def learning_rate(self) -> float:
        """Learning rate after the warm-up."""

    @property
    def final_rate(self) -> float:
        """Learning rate of the last step, relative to ``learning_rate``."""

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate rises."""

    @property
    def steps(self) -> int:
        """All steps."""


def compute_learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then half a cosine down to ``final_rate`` times the peak."""
    peak, final, warmup = schedule.learning_rate, schedule.final_rate, schedule.warmup
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(schedule.steps - warmup, 1)
    return float(peak * (final + (1.0 - final) * 0.5 * (1.0 + np.cos(np.pi * min(done, 1.0)))))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set that of all groups of parameters."""
    for group in optimiser.param_groups:
        group["lr"] = rate


@torch.no_grad()
def move_average(
    average: Iterable[Tensor], current: Iterable[Tensor], step: int, decay: float
) -> None:
    """Update the moving average of the weights, with a decay that grows over the first steps.

    ``torch.optim.swa_utils.AveragedModel`` copies the weights at its first update and keeps the
    decay constant, which would change the averages, and so the shipped weights.
    """
    keep = min(decay, (1.0 + step) / (10.0 + step))
    torch._foreach_lerp_(list(average), list(current), 1.0 - keep)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; the file that it replaces stays until the new one is complete."""
    with replaced_file(path) as temporary, open(temporary, "wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint. Raises ValueError for a damaged file."""
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    return content
