"""Run a plan: make each shard once, record it, and when all are there say so in a manifest.

The order of effects carries the promises: the shard under a key that no one overwrites, then its record, and after all
records the manifest. Killed between any two of them, the next run continues and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version

from tqdm import tqdm

from face.errors import BadDataset, BudgetExceeded, Conflict
from infra.dataset import MANIFEST, Manifest, ShardInfo
from infra.shards import SCHEMA_VERSION, rows_to_parquet
from infra.storage import Storage
from pipeline import ledger
from pipeline import plan as plans
from pipeline.ledger import Record
from pipeline.plan import Failure, MakeRows, Plan, ShardPlan, ShardResult

BUDGET = 0.2
"""Share of the inputs that may fail before a job gives up: beyond it the inputs or the code are at fault."""

LIBRARIES = ("numpy", "numba", "opencv-python-headless", "pillow", "pyarrow", "scipy")

MakeRecords = Callable[[Sequence[ShardPlan]], Generator[Record]]


def run(
    plan: Plan, storage: Storage, make_rows: MakeRows, *, budget: float = BUDGET, progress: bool = False
) -> Manifest:
    """Make the plan's dataset in ``storage``, in this process, or complete what an earlier run left.

    Raises BadDataset when the storage holds another plan's dataset or a shard of other bytes, BudgetExceeded when more
    than ``budget`` of the inputs fail, StorageError. What was made before stays and need not be made again.
    """

    def records(shards: Sequence[ShardPlan]) -> Generator[Record]:
        for shard in shards:
            yield make_shard(
                shard, key=plan.data_key(shard.index), plan=plan.fingerprint, storage=storage, make_rows=make_rows
            )

    return drive(plan, storage, records, budget=budget, progress=progress)


def make_shard(shard: ShardPlan, *, key: str, plan: str, storage: Storage, make_rows: MakeRows) -> Record:
    """Make, store and record one shard; ``plan`` is the plan's fingerprint. Raises BadDataset and StorageError."""
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
        key=key,
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
        versions={name: version(name) for name in LIBRARIES},
    )
    ledger.write(storage, record)
    return record


def _check_complete(shard: ShardPlan, result: ShardResult) -> None:
    """No input may vanish: each has rows or a failure, and nothing else is there."""
    asked = {subject.id for subject in shard.subjects}
    answered = {row.identity_id for row in result.rows} | {failure.subject for failure in result.failures}
    assert asked == answered, f"shard {shard.index}: {sorted(asked ^ answered)[:3]} asked or answered, not both"


@dataclass
class Tally:
    """What a driver keeps of the records: a few numbers for each shard, never the rows or every failure."""

    shards: dict[int, ShardInfo] = field(default_factory=dict)
    failed_subjects: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Failure] = field(default_factory=dict)  # the first of each reason
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    versions: dict[str, set[str]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        self.shards[record.shard] = ShardInfo(record.key, record.rows, record.bytes, record.sha256)
        self.failed_subjects += record.failed_subjects
        self.failures.update(failure.reason for failure in record.failures)
        for failure in record.failures:
            self.examples.setdefault(failure.reason, failure)
        for name, count in record.counts.items():
            self.counts.setdefault(name, Counter()).update(count)
        for name, used in record.versions.items():
            self.versions.setdefault(name, set()).add(used)

    def manifest(self, plan: Plan) -> Manifest:
        return Manifest(
            schema_version=SCHEMA_VERSION,
            plan=plan.fingerprint,
            shards=tuple(self.shards[shard.index] for shard in plan.shards),
            subjects=plan.subjects,
            failed_subjects=self.failed_subjects,
            failures=dict(self.failures),
            counts={name: dict(count) for name, count in self.counts.items()},
            versions={name: sorted(used) for name, used in self.versions.items()},
        )


def drive(plan: Plan, storage: Storage, make: MakeRecords, *, budget: float, progress: bool) -> Manifest:
    """``run`` over any way to make shards: ``make`` yields a record whenever one of the shards it is given is done."""
    start(plan, storage)
    tally = Tally()
    # Faces, not shards: a small job has few shards, and its bar should move.
    with tqdm(total=plan.subjects, unit="face", disable=not progress, mininterval=1.0) as bar:

        def watch(records: Iterable[Record]) -> None:
            for record in records:
                tally.add(record)
                bar.update(record.subjects)
                bar.set_postfix(failed=tally.failed_subjects, refresh=False)
                _check_budget(plan, tally, budget)

        watch(ledger.done(storage, plan))
        # Closed at once, so that nothing still works for a job that has given up.
        with closing(make([shard for shard in plan.shards if shard.index not in tally.shards])) as made:
            watch(made)
    manifest = tally.manifest(plan)
    storage.write(MANIFEST, manifest.to_json(), if_absent=True)
    return manifest


def start(plan: Plan, storage: Storage) -> None:
    """Claim the storage for the plan. Raises BadDataset naming the differences when another plan has it."""
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
