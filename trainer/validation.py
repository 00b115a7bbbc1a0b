"""Validation of the averaged weights on held-out pairs, beside the training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from dff.trainer.config import (
    TrainConfig,
)
from dff.trainer.data.crops import TrainingSurface
from dff.trainer.data.views import ViewStore
from dff.trainer.evaluation.matching import measure_matches
from dff.trainer.evaluation.pairs import DevPair, sample_dev_pairs
from dff.trainer.meter import Figures
from dff.trainer.state import TrainingState


class Validation:
    """Measures copies of the averaged weights on held-out pairs, in a thread of its own.

    Training goes on meanwhile; it waits only for a validation that is unfinished when the next is
    due. The thread has a store of its own, since a store serves one thread.
    """

    def __init__(
        self,
        store: ViewStore,
        surface: TrainingSurface,
        config: TrainConfig,
        report: Callable[[TrainingState, Figures], object],
    ) -> None:
        """``report``: takes each state that was measured, with its figures, in the thread."""
        self.dev: dict[str, float] = {}  # last figures
        self._store, self._surface, self._config = store, surface, config
        self._report = report
        self._pairs: list[DevPair] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="validation")
        self._running: Future[None] | None = None

    def __enter__(self) -> Validation:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def start(self, state: TrainingState) -> None:
        """Begin to measure the state's average as it is now."""
        self.wait()
        then = replace(state, average=copy.deepcopy(state.average))
        self._running = self._thread.submit(self._run, then)

    def wait(self) -> None:
        """Return when nothing is measured. Raises what a validation raised."""
        if self._running is not None:
            self._running.result()

    def measure(self, state: TrainingState) -> dict[str, float]:
        """The validation figures of a state's average."""
        config = self._config
        if not self._pairs:  # not before the first step: the shards that hold them must be fetched
            self._pairs = sample_dev_pairs(
                self._store.separate(),
                self._surface,
                count=config.dev_pairs,
                size=config.size,
                config=config.evaluation,
            )
        average = state.average
        return measure_matches(
            average.net,
            average.class_vectors(),
            average.anchor_coordinate,
            config.scale,
            self._pairs,
            config.evaluation,
        )

    def _run(self, state: TrainingState) -> None:
        self.dev = self.measure(state)
        self._report(state, self.dev)
