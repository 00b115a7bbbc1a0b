"""How far a synthesis job has come, read from its storage: without Ray, and while others write."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dff.face.errors import BadDataset, NotFound
from dff.infra.datasets.dataset import MANIFEST
from dff.infra.datasets.shards import ViewRow, parquet_to_rows
from dff.infra.printing import counted
from dff.infra.storage import Storage, is_missing
from dff.pipeline.job import ledger, plan as plans
from dff.pipeline.job.run import ShardCounter
from dff.pipeline.job.run_mark import read_mark


@dataclass(frozen=True)
class StatusConfig:
    """How a job's speed and its end are told from the times of its shards."""

    window: int = 64  # last shards that the rate is measured over
    # A job without a shard for that many seconds counts as running: before the first one
    patience: float = 120.0
    # afterwards, as long as the first one took so many times, within these and the ``patience``
    patience_first: float = 2.0
    patience_least: float = 20.0
    patience_shards: float = 8.0  # in mean times between two shards, if that is longer
    views: int = 60  # of the gallery


CONFIG = StatusConfig()


class State(StrEnum):
    """The progress of a job."""

    finished = "finished"
    running = "running"
    # interrupted or failed; killed, or waiting for machines: no shard for long
    stopped = "stopped"


@dataclass(frozen=True)
class DatasetStatus:
    """A running, stopped or finished dataset in numbers."""

    uri: str
    state: State
    shards: int
    shards_done: int
    subjects: int
    subjects_done: int  # in finished shards, failed ones among them
    subjects_failed: int
    rows: int
    bytes: int
    failures: dict[str, int]  # by reason
    rate: float | None  # subjects a second of the run, over its last shards; None without any
    silent: float  # seconds since the last shard, or since the start or a later resumption
    ended: bool  # whether the run itself has said that it was interrupted or failed

    @property
    def seconds_left(self) -> float | None:
        """Until a running job ends at its present rate."""
        if self.state is not State.running or not self.rate:
            return None
        return (self.subjects - self.subjects_done) / self.rate

    def lines(self) -> list[str]:
        """The status as text, one fact per line."""
        share = self.subjects_done / self.subjects
        out = [
            f"{self.uri}: {self.state}, {share:.0%}",
            f"  {self.subjects_done} of {counted(self.subjects, 'face')}, {self.shards_done} of "
            f"{counted(self.shards, 'shard')}, {counted(self.rows, 'view')}, "
            f"{self.bytes / 1e6:.1f} MB",
        ]
        reasons = ", ".join(
            f"{name} {count}" for name, count in Counter(self.failures).most_common()
        )
        failed = counted(self.subjects_failed, "face")
        out.append(f"  failed: {failed}" + (f" ({reasons})" if reasons else ""))
        if self.rate and self.state is State.running:
            per_face = self.rows / max(self.subjects_done, 1)
            out.append(f"  {self.rate * per_face:.2f} views a second")
        if (left := self.seconds_left) is not None:
            out.append(f"  {format_seconds(left)} left")
        if self.state is State.stopped:
            silence = f"no shard for {format_seconds(self.silent)}"
            why = "interrupted, or failed" if self.ended else silence
            out.append(f"  {why}: the same `dff synthesize` command completes it")
        return out


def format_seconds(seconds: float) -> str:
    """Such as "2 h 05 min", "5 min" or "40 s"."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def read_status(
    storage: Storage, *, now: float | None = None, config: StatusConfig = CONFIG
) -> DatasetStatus:
    """The status of the dataset in ``storage``; ``now``: Unix seconds, by default the clock's.

    Raises BadDataset when no job has begun there, and StorageError.
    """
    try:
        plan = plans.parse_plan(storage.read(plans.KEY), f"{storage.uri.rstrip('/')}/{plans.KEY}")
    except NotFound as error:
        missing = is_missing(storage)
        why = "there is no such folder" if missing else "no dataset has been begun here"
        raise BadDataset(f"{storage.uri}: {why}") from error
    counter, subjects_done = ShardCounter(plan), 0
    for segment in ledger.read_segments(storage, plan):
        for record in segment.records:
            counter.add(record)
            subjects_done += record.subjects
    stored = {plan.data_key(shard) for shard in counter.done.nonzero()[0].tolist()}
    times = sorted(info.modified for info in storage.list("data/") if info.key in stored)
    begun = next(info.modified for info in storage.list(plans.KEY) if info.key == plans.KEY)
    now = time.time() if now is None else now
    mark = read_mark(storage)
    resumed = begun if mark is None else mark.told
    silent = max(0.0, now - max([resumed, *times[-1:]]))
    new = [at for at in times if at >= resumed]  # the pause before these was no work
    mean_pause = _measure_pause((new if len(new) > 1 else times)[-config.window :])
    # the first shards of workers in parallel come together: their time is that since the start
    pause = _measure_pause([resumed, *new][-config.window - 1 :])
    rate = plan.shard_subjects / pause if pause > 0 else None
    patience = config.patience
    if times:  # the first one took as long as any, with the start
        first = max(config.patience_first * (times[0] - begun), config.patience_least)
        patience = max(min(first, patience), config.patience_shards * mean_pause)
    ended = mark is not None and mark.ended
    if storage.exists(MANIFEST):
        state = State.finished
    elif ended or silent > patience:
        state = State.stopped
    else:
        state = State.running
    return DatasetStatus(
        uri=storage.uri,
        state=state,
        shards=len(plan.shards),
        shards_done=int(counter.done.sum()),
        subjects=plan.subjects,
        subjects_done=subjects_done,
        subjects_failed=counter.failed_subjects,
        rows=int(counter.rows.sum()),
        bytes=int(counter.bytes.sum()),
        failures=dict(counter.failures),
        rate=rate,
        silent=silent,
        ended=ended,
    )


def _measure_pause(times: Sequence[float]) -> float:
    """Mean seconds between moments; 0 for fewer than two."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


def sample_views(storage: Storage, *, config: StatusConfig = CONFIG) -> list[ViewRow]:
    """Views of some shards, evenly from those that there are: of an unfinished dataset, too.

    Raises StorageError, and BadDataset for a shard that can't be read.
    """
    keys = [info.key for info in storage.list("data/") if info.key.endswith(".parquet")]
    chosen = keys[:: max(1, len(keys) // 6)][:6]
    rows: list[ViewRow] = []
    for key in chosen:
        shard = parquet_to_rows(storage.read(key), key)
        step = max(1, len(shard) * len(chosen) // config.views)
        rows += shard[::step]
    return rows[: config.views]
