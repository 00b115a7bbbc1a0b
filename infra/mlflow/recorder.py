"""Records for an MLflow run, sent by a thread: nothing waits for MLflow, or is lost with it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dff.face.arrays import Bytes
from dff.infra.mlflow.tracking import METRIC_BATCH, Run, asked_hastily, is_refusal, make_metrics
from dff.infra.redaction import hide_secrets

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecorderConfig:
    """How long records wait for MLflow."""

    limit: int = 100_000  # records that wait at most; then the oldest are dropped
    first_wait: float = 1.0  # seconds before the second try
    longest_wait: float = 15.0  # seconds; the waits double up to it
    last_wait: float = 300.0  # seconds that ``close`` gives an MLflow that does not answer


RECORDER = RecorderConfig()


@dataclass(frozen=True)
class _Picture:
    name: str
    image: Bytes


class RunRecorder:
    """Sends metrics and pictures to a run, in order, from a thread of its own.

    While MLflow does not answer, records wait in a bounded queue, and one warning says so. What
    MLflow refuses, as for a run that was deleted, is dropped with a warning.
    """

    def __init__(self, run: Run, *, config: RecorderConfig = RECORDER) -> None:
        self._run, self._config = run, config
        self._waiting: deque[list[Any] | _Picture] = deque()
        self._changed = threading.Condition()
        self._closing_by: float | None = None  # of time.monotonic
        self._dropped = 0
        self._thread = threading.Thread(target=self._send_all, daemon=True, name="mlflow")
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record figures at a step, with the time of now."""
        self._add(make_metrics(step, values))

    def picture(self, name: str, image: Bytes) -> None:
        """Keep (H, W, 3) uint8 RGB as ``pictures/<name>``."""
        self._add(_Picture(name, image))

    def close(self) -> int:
        """Wait until all is sent, at most ``last_wait`` seconds; how many records were lost."""
        with self._changed:
            self._closing_by = time.monotonic() + self._config.last_wait
            self._changed.notify_all()
        self._thread.join()
        lost = self._dropped + len(self._waiting)
        if lost:
            _log.warning("%d records of this run did not reach %s", lost, self._where)
        return lost

    @property
    def _where(self) -> str:
        return f"MLflow at {hide_secrets(self._run.tracking_uri)}"

    def _add(self, record: list[Any] | _Picture) -> None:
        with self._changed:
            self._waiting.append(record)
            if len(self._waiting) > self._config.limit:
                self._waiting.popleft()
                self._dropped += 1
            self._changed.notify_all()

    def _send_all(self) -> None:
        wait = self._config.first_wait
        silent = False
        while (batch := self._next_batch()) is not None:
            try:
                with asked_hastily():
                    self._send(batch)
            except Exception as error:  # MLflow lets its database's and its server's errors through
                if is_refusal(error):
                    _log.warning("%s refuses a record: %s", self._where, _first_line(error))
                    self._dropped += len(batch)
                    self._forget(batch)
                    continue
                if not silent:
                    silent = True
                    _log.warning(
                        "%s does not answer; training goes on and its records wait (%s)",
                        self._where,
                        _first_line(error),
                    )
                if not self._pause(wait):
                    return
                wait = min(2 * wait, self._config.longest_wait)
                continue
            self._forget(batch)
            if silent:
                silent, wait = False, self._config.first_wait
                _log.warning("%s answers again; %d records follow", self._where, len(self._waiting))

    def _next_batch(self) -> list[list[Any] | _Picture] | None:
        """The oldest records that go into one call; None when all is sent and no more will come."""
        with self._changed:
            while not self._waiting:
                if self._closing_by is not None:
                    return None
                self._changed.wait()
            batch: list[list[Any] | _Picture] = []
            count = 0
            for record in self._waiting:
                if isinstance(record, _Picture):
                    return batch or [record]
                count += len(record)
                if batch and count > METRIC_BATCH:
                    break
                batch.append(record)
            return batch

    def _send(self, batch: list[list[Any] | _Picture]) -> None:
        if isinstance(batch[0], _Picture):
            self._run.picture(batch[0].name, batch[0].image)
        else:
            self._run.log([metric for record in batch for metric in record])  # type: ignore[union-attr]

    def _forget(self, batch: list[list[Any] | _Picture]) -> None:
        """Remove what was sent; meanwhile the oldest may have been dropped."""
        with self._changed:
            for record in batch:
                if self._waiting and self._waiting[0] is record:
                    self._waiting.popleft()

    def _pause(self, seconds: float) -> bool:
        """Wait; whether there is time for another try."""
        with self._changed:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                if self._closing_by is not None:
                    left = min(left, self._closing_by - time.monotonic())
                    if left <= 0:
                        return False
                self._changed.wait(left)
        return True


def _first_line(error: Exception) -> str:
    return hide_secrets(str(error).partition("\n")[0])
