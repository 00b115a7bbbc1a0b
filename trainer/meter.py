"""Figures of a training, accumulated between the steps at which they are logged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from dff.face.errors import Diverged
from dff.trainer.config import (
    TrainConfig,
)
from dff.trainer.data.batches import Batch
from dff.trainer.loss import sum_terms

Figures = Mapping[str, float]


class Meter:
    """Mutable accumulator of the loss and of the time since it was last read."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._terms: dict[str, Tensor] = {}
        self._steps = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time until now, which was not spent on steps."""
        self._began, self._waited, self._timed = time.perf_counter(), 0.0, 0

    def next_batch(self, source: Iterator[Batch]) -> Batch:
        """Take the next batch and add the time that it took."""
        began = time.perf_counter()
        out = next(source)
        self._waited += time.perf_counter() - began
        return out

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the terms of one step."""
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, torch.zeros_like(value)) + value.detach()
        self._steps += 1
        self._timed += 1

    def read(
        self,
        config: TrainConfig,
        world: int,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> dict[str, float]:
        """The means since the last reading, which then start anew.

        ``loss`` and ``loss_<term>`` of all ranks, ``images_per_second``, and ``wait_fraction``: the
        share of time spent waiting for batches. Raises Diverged for a loss that is not finite.
        """
        names = sorted(self._terms)
        values = torch.stack([self._terms[n] for n in names]) / self._steps
        if world > 1:
            torch.distributed.all_reduce(values, group=group)
            values = values / world
        means = dict(zip(names, values.cpu(), strict=True))
        loss = float(sum_terms(means, config.weights))
        if not np.isfinite(loss):
            raise Diverged(f"the loss is {loss}: lower the learning rate")
        seconds = max(time.perf_counter() - self._began, 1e-9)
        out = {
            "loss": loss,
            **{f"loss_{name}": float(value) for name, value in means.items()},
            "images_per_second": self._timed * self._batch / seconds,
            "wait_fraction": self._waited / seconds,
        }
        self._terms, self._steps = {}, 0
        self.restart_clock()
        return out
