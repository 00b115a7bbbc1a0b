"""Run a plan: make each shard once, record it, and write a manifest when all shards exist.

The order of the writes makes a job resumable. A shard is stored under a key that is never
overwritten, then its record, then the segment of the ledger once it has all its records, and after
all segments the manifest. A run that is killed between any two of them is completed by the next
one, with the same bytes.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from dff.face.errors import BadDataset, BudgetExceeded, Conflict, TransientStorageError
from dff.infra.datasets.dataset import MANIFEST, Manifest, Shards
from dff.infra.datasets.shards import rows_to_parquet
from dff.infra.storage import Storage
from dff.infra.storage.patient import PatientStorage
from dff.pipeline.job import ledger, plan as plans, run_mark
from dff.pipeline.job.ledger import Record
from dff.pipeline.job.plan import Plan
from dff.pipeline.job.work import Failure, MakeRows, ShardPlan, ShardResult

COUNTED = ("split", "mode", "model", "licence")
"""Columns whose values are counted in a shard's record and in the manifest."""


@dataclass(frozen=True)
class RunConfig:
    """When a job retries and when it gives up. Nothing here changes the bytes of its result."""

    # Share of the subjects that may fail. More means that the inputs or the code are at fault.
    budget: float = 0.2
    # Seconds before each further attempt at a shard whose storage or process failed.
    retry_waits: tuple[float, ...] = (1.0, 5.0, 25.0)


DEFAULT = RunConfig()


OnRetry = Callable[[ShardPlan, str], None]
"""Called when a shard is started again, with the reason."""

MakeRecords = Callable[[Iterable[ShardPlan], OnRetry], Generator[Record]]


def run(
    plan: Plan,
    storage: Storage,
    make_rows: MakeRows,
    *,
    config: RunConfig = DEFAULT,
    progress: bool = False,
) -> Manifest:
    """Make the plan's dataset in ``storage``, in this process, or complete an interrupted run.

    Raises BadDataset when the storage holds the dataset of another plan or a shard of other bytes,
    BudgetExceeded when more than ``config.budget`` of the subjects fail, and StorageError. Finished
    shards stay and are not made again.
    """

    def make_record(shard: ShardPlan) -> Record:
        key = plan.data_key(shard.index)
        return make_shard(
            shard, key=key, plan=plan.fingerprint, storage=storage, make_rows=make_rows
        )

    def make_records(shards: Iterable[ShardPlan], on_retry: OnRetry) -> Generator[Record]:
        for shard in shards:
            yield _retry(make_record, shard, config.retry_waits, on_retry)

    return drive(plan, storage, make_records, config=config, progress=progress)


def _retry(
    make: Callable[[ShardPlan], Record],
    shard: ShardPlan,
    waits: Iterable[float],
    on_retry: OnRetry,
) -> Record:
    """Make a shard, and again after each of ``waits`` seconds, while storage fails temporarily."""
    for wait in waits:
        try:
            return make(shard)
        except TransientStorageError as error:
            on_retry(shard, type(error).__name__)
            time.sleep(wait)
    return make(shard)


def make_shard(
    shard: ShardPlan, *, key: str, plan: str, storage: Storage, make_rows: MakeRows
) -> Record:
    """Make, store and record one shard; ``plan`` is the plan's fingerprint.

    Raises BadDataset when another shard is stored under ``key``, and StorageError.
    """
    result = make_rows(shard)
    _check_complete(shard, result)
    data = rows_to_parquet(result.rows, {"plan": plan})
    try:
        storage.write(key, data, if_absent=True)
    except Conflict as error:
        raise BadDataset(
            f"{error}: it was left by a run with other library versions or altered since; "
            "delete it or choose another place for the dataset"
        ) from error
    with_rows = {row.identity_id for row in result.rows}
    record = Record(
        shard=shard.index,
        plan=plan,
        rows=len(result.rows),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        subjects=len(shard.subjects),
        failed_subjects=len({subject.id for subject in shard.subjects} - with_rows),
        failures=tuple(result.failures),
        counts={
            name: dict(Counter(str(getattr(row, name)) for row in result.rows)) for name in COUNTED
        },
    )
    ledger.write_record(storage, record)
    return record


def _check_complete(shard: ShardPlan, result: ShardResult) -> None:
    """Each subject of the shard has rows or a failure, and no other subject has."""
    asked = {subject.id for subject in shard.subjects}
    answered = {row.identity_id for row in result.rows}
    answered |= {failure.subject for failure in result.failures}
    assert asked == answered, (
        f"shard {shard.index}: subjects either planned or made, not both: "
        f"{sorted(asked ^ answered)[:3]}"
    )


class ShardCounter:
    """Sums over the records of a job, in 49 bytes per shard: it keeps no rows or failures."""

    def __init__(self, plan: Plan) -> None:
        count = len(plan.shards)
        self.plan = plan
        self.done = np.zeros(count, bool)
        self.rows, self.bytes = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.sha256 = np.zeros((count, 32), np.uint8)
        self.failed_subjects = 0
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, Failure] = {}  # the first failure of each reason
        self.counts: dict[str, dict[str, int]] = {}

    def add(self, record: Record) -> None:
        """Count the record of a finished shard."""
        self.done[record.shard] = True
        self.rows[record.shard], self.bytes[record.shard] = record.rows, record.bytes
        self.sha256[record.shard] = np.frombuffer(bytes.fromhex(record.sha256), np.uint8)
        self.failed_subjects += record.failed_subjects
        for failure in record.failures:
            self.failures[failure.reason] += 1
            self.examples.setdefault(failure.reason, failure)
        for name, rows in record.counts.items():
            total = self.counts.setdefault(name, {})
            for value, count in rows.items():
                total[value] = total.get(value, 0) + count

    def missing(self) -> Iterator[ShardPlan]:
        """The shards that have no record at the time of the call."""
        return map(self.plan.shards.__getitem__, np.flatnonzero(~self.done).tolist())

    def build_manifest(self) -> Manifest:
        """The manifest of the dataset, once no shard is missing."""
        return Manifest(
            schema_version=self.plan.schema_version,
            plan=self.plan.fingerprint,
            shards=Shards(self.rows, self.bytes, self.sha256),
            subjects=self.plan.subjects,
            failed_subjects=self.failed_subjects,
            failures=dict(self.failures),
            counts=self.counts,
            libraries=self.plan.libraries,
        )


def drive(
    plan: Plan, storage: Storage, make: MakeRecords, *, config: RunConfig, progress: bool
) -> Manifest:
    """``run`` for any way of making shards: ``make`` yields a record when a shard is finished.

    While the storage fails temporarily, what the driver asks of it waits as the shards do.
    """
    storage = PatientStorage(storage, config.retry_waits)
    claim(plan, storage)
    counter, segments = ShardCounter(plan), ledger.SegmentWriter(storage, plan)
    retries: Counter[str] = Counter()
    # The bar counts subjects, since a small job has only a few shards.
    with tqdm(total=plan.subjects, unit=" faces", disable=not progress, mininterval=1.0) as bar:

        def count(record: Record) -> None:
            counter.add(record)
            bar.update(record.subjects)
            if progress:
                bar.set_postfix({"failed": counter.failed_subjects, **retries}, refresh=False)
            _check_budget(plan, counter, config.budget)

        def on_retry(shard: ShardPlan, reason: str) -> None:
            retries[reason] += 1
            if progress:
                bar.write(f"shard {shard.index} is started again: {reason}", file=sys.stderr)

        for segment in ledger.read_segments(storage, plan):
            for record in segment.records:
                if not segment.closed:
                    segments.add(record)
                count(record)
        if not counter.done.all():
            # Closed at once, so that no task keeps running for a job that has given up.
            with (
                run_mark.marked(storage),
                closing(make(counter.missing(), on_retry)) as records,
            ):
                for record in records:
                    segments.add(record)
                    count(record)
    segments.delete_leftovers()
    manifest = counter.build_manifest()
    storage.write(MANIFEST, manifest.to_json(), if_absent=True)
    run_mark.remove_mark(storage)
    return manifest


def claim(plan: Plan, storage: Storage) -> None:
    """Store the plan, which reserves the storage for it.

    Raises BadDataset, which names the differences, when the storage holds another plan.
    """
    try:
        storage.write(plans.KEY, plan.to_json(), if_absent=True)
    except Conflict as error:
        old = plans.parse_plan(storage.read(plans.KEY), f"{storage.uri.rstrip('/')}/{plans.KEY}")
        changed = "; ".join(plans.list_differences(old, plan))
        raise BadDataset(
            f"{storage.uri} holds a dataset of another plan ({changed}); repeat that command to "
            "complete it, or choose another place"
        ) from error


def _check_budget(plan: Plan, counter: ShardCounter, budget: float) -> None:
    if counter.failed_subjects <= budget * plan.subjects:
        return
    reasons = []
    for reason, count in counter.failures.most_common():
        reasons.append(f"{reason} {count} (first: {counter.examples[reason].describe()})")
    raise BudgetExceeded(
        f"{counter.failed_subjects} of {plan.subjects} inputs failed, more than the budget of "
        f"{budget:.0%}: {'; '.join(reasons)}. What is done stays; the same command with a larger "
        "budget continues"
    )
