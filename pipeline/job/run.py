"""Run a plan: make each shard once, record it, and when all are there say so in a manifest.

The order of effects carries the promises: the shard under a key that no one overwrites, then its
record, a segment of the ledger once all its records are there, and after all segments the manifest.
Killed between any two of them, the next run continues and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

import numpy as np
from tqdm import tqdm

from dff.face.errors import BadDataset, BudgetExceeded, Conflict, TransientStorageError
from dff.infra.dataset import MANIFEST, Manifest, Shards
from dff.infra.shards import rows_to_parquet
from dff.infra.storage import Storage
from dff.pipeline.job import ledger
from dff.pipeline.job import plan as plans
from dff.pipeline.job.ledger import Record
from dff.pipeline.job.plan import Failure, MakeRows, Plan, ShardPlan, ShardResult

BUDGET = 0.2
"""Share of the inputs that may fail before a job gives up: beyond it the inputs or the code are at
fault.
"""

RETRY_WAITS = (
    1.0,
    5.0,
    25.0,
)  # seconds before a shard is tried again: storage failed, or its process was lost

Again = Callable[[ShardPlan, str], None]
"""What hears that a shard is begun once more, and why."""

MakeRecords = Callable[[Iterable[ShardPlan], Again], Generator[Record]]


def run(
    plan: Plan,
    storage: Storage,
    make_rows: MakeRows,
    *,
    budget: float = BUDGET,
    progress: bool = False,
) -> Manifest:
    """Make the plan's dataset in ``storage``, in this process, or complete what an earlier run
    left.

    Raises BadDataset when the storage holds another plan's dataset or a shard of other bytes,
    BudgetExceeded when more than ``budget`` of the inputs fail, StorageError. What was made before
    stays and need not be made again.
    """

    def record(shard: ShardPlan) -> Record:
        key = plan.data_key(shard.index)
        return make_shard(
            shard, key=key, plan=plan.fingerprint, storage=storage, make_rows=make_rows
        )

    def records(shards: Iterable[ShardPlan], again: Again) -> Generator[Record]:
        for shard in shards:
            yield _patiently(record, shard, again)

    return drive(plan, storage, records, budget=budget, progress=progress)


def _patiently(make: Callable[[ShardPlan], Record], shard: ShardPlan, again: Again) -> Record:
    """Try again, a few times, what storage failed for now."""
    for wait in RETRY_WAITS:
        try:
            return make(shard)
        except TransientStorageError as error:
            again(shard, type(error).__name__)
            time.sleep(wait)
    return make(shard)


def make_shard(
    shard: ShardPlan, *, key: str, plan: str, storage: Storage, make_rows: MakeRows
) -> Record:
    """Make, store and record one shard; ``plan`` is the plan's fingerprint. Raises BadDataset and
    StorageError.
    """
    result = make_rows(shard)
    _check_complete(shard, result)
    data = rows_to_parquet(result.rows, {"plan": plan})
    try:
        storage.write(key, data, if_absent=True)
    except Conflict as error:
        raise BadDataset(
            f"{error}: it was left by a run with other library versions or altered since; delete it or choose another "
            "place for the dataset"
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
            name: dict(Counter(str(getattr(row, name)) for row in result.rows))
            for name in ("split", "mode", "model", "licence")
        },
    )
    ledger.write(storage, record)
    return record


def _check_complete(shard: ShardPlan, result: ShardResult) -> None:
    """No input may vanish: each has rows or a failure, and nothing else is there."""
    asked = {subject.id for subject in shard.subjects}
    answered = {row.identity_id for row in result.rows} | {
        failure.subject for failure in result.failures
    }
    assert asked == answered, (
        f"shard {shard.index}: {sorted(asked ^ answered)[:3]} asked or answered, not both"
    )


class Tally:
    """What a driver keeps of the records: 49 bytes for each shard, never the rows or every
    failure.
    """

    def __init__(self, plan: Plan) -> None:
        count = len(plan.shards)
        self.plan = plan
        self.done = np.zeros(count, bool)
        self.rows, self.bytes = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.sha256 = np.zeros((count, 32), np.uint8)
        self.failed_subjects = 0
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, Failure] = {}  # the first of each reason
        self.counts: dict[str, dict[str, int]] = {}

    def add(self, record: Record) -> None:
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
        """The shards without a record, now."""
        return map(self.plan.shards.__getitem__, np.flatnonzero(~self.done).tolist())

    def manifest(self) -> Manifest:
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
    plan: Plan, storage: Storage, make: MakeRecords, *, budget: float, progress: bool
) -> Manifest:
    """``run`` over any way to make shards: ``make`` yields a record whenever one of the shards it
    is given is done.
    """
    start(plan, storage)
    tally, book = Tally(plan), ledger.Book(storage, plan)
    begun_again: Counter[str] = Counter()
    # Faces, not shards: a small job has few shards, and its bar should move.
    with tqdm(total=plan.subjects, unit="face", disable=not progress, mininterval=1.0) as bar:

        def watch(record: Record) -> None:
            tally.add(record)
            bar.update(record.subjects)
            if progress:
                bar.set_postfix({"failed": tally.failed_subjects, **begun_again}, refresh=False)
            _check_budget(plan, tally, budget)

        def again(shard: ShardPlan, reason: str) -> None:
            begun_again[reason] += 1
            if progress:
                bar.write(f"shard {shard.index} is begun again: {reason}", file=sys.stderr)

        for segment in ledger.segments(storage, plan):
            for record in segment.records:
                if not segment.closed:
                    book.add(record)
                watch(record)
        # Closed at once, so that nothing still works for a job that has given up.
        with closing(make(tally.missing(), again)) as made:
            for record in made:
                book.add(record)
                watch(record)
    book.tidy()
    manifest = tally.manifest()
    storage.write(MANIFEST, manifest.to_json(), if_absent=True)
    return manifest


def start(plan: Plan, storage: Storage) -> None:
    """Claim the storage for the plan. Raises BadDataset naming the differences when another plan
    has it.
    """
    try:
        storage.write(plans.KEY, plan.to_json(), if_absent=True)
    except Conflict as error:
        old = plans.parse_plan(storage.read(plans.KEY), f"{storage.uri.rstrip('/')}/{plans.KEY}")
        raise BadDataset(
            f"{storage.uri} holds a dataset of another plan ({'; '.join(plans.differences(old, plan))}); repeat that "
            "command to complete it, or choose another place"
        ) from error


def _check_budget(plan: Plan, tally: Tally, budget: float) -> None:
    if tally.failed_subjects <= budget * plan.subjects:
        return
    reasons = "; ".join(
        f"{reason} {count} (first: {tally.examples[reason].subject}: {tally.examples[reason].detail})"
        for reason, count in tally.failures.most_common()
    )
    raise BudgetExceeded(
        f"{tally.failed_subjects} of {plan.subjects} inputs failed, more than the budget of {budget:.0%}: {reasons}. "
        "What is done stays; the same command with a larger budget continues"
    )
