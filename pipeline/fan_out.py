"""Run a plan on Ray: ``pipeline.job`` with one task for each shard. Connecting is the caller's (``infra.cluster``)."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from functools import lru_cache

import ray
from ray.exceptions import RayError, RayTaskError

from face.errors import BadDataset, ShardFailed, TransientStorageError
from infra.dataset import Manifest
from infra.storage import Storage
from pipeline.job import BUDGET, drive, make_shard
from pipeline.ledger import Record
from pipeline.plan import MakeRows, Plan, ShardPlan, WorkSpec, code_version, library_versions

RETRIES = 3
MAX_CALLS = 100  # shards until a worker process is replaced: bounds what native libraries leak
AHEAD = 4  # tasks in flight for each CPU: an autoscaler only adds nodes for tasks that wait
WAIT = 30.0  # seconds until the cluster's size is looked at again


def run(
    plan: Plan,
    storage: Storage,
    work: WorkSpec,
    *,
    workers: int | None = None,
    budget: float = BUDGET,
    progress: bool = False,
) -> Manifest:
    """``job.run`` on the connected Ray cluster, at most ``workers`` shards at a time (default: as many as fit).

    Only transient storage errors and lost processes are tried again. Raises what ``job.run`` raises, and ShardFailed
    when a shard's process dies every time.
    """

    def records(shards: Iterable[ShardPlan]) -> Generator[Record]:
        return _records(shards, plan, storage, work, workers)

    return drive(plan, storage, records, budget=budget, progress=progress)


def _records(
    shards: Iterable[ShardPlan], plan: Plan, storage: Storage, work: WorkSpec, workers: int | None
) -> Generator[Record]:
    task = ray.remote(
        num_cpus=1,
        max_retries=RETRIES,
        retry_exceptions=[TransientStorageError],
        max_calls=MAX_CALLS,
        scheduling_strategy="SPREAD",
    )(_task)
    made_by = {"dff": plan.code, **plan.libraries}
    waiting = iter(shards)
    running: dict[ray.ObjectRef, ShardPlan] = {}
    try:
        while True:
            window = workers or max(AHEAD, AHEAD * int(ray.cluster_resources().get("CPU", 0)))
            while len(running) < window and (shard := next(waiting, None)) is not None:
                key = plan.data_key(shard.index)
                running[task.remote(shard, key, plan.fingerprint, made_by, storage, work)] = shard
            if not running:
                return
            ready, _ = ray.wait(list(running), timeout=WAIT)
            for ref in ready:
                yield _result(ref, running.pop(ref))
    finally:
        for ref in running:
            ray.cancel(ref, recursive=False)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=WAIT)


def _result(ref: ray.ObjectRef, shard: ShardPlan) -> Record:
    try:
        record: Record = ray.get(ref)
        return record
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        names = ", ".join(subject.id for subject in shard.subjects[:3])
        raise ShardFailed(f"shard {shard.index} ({names}, ...) was lost {RETRIES + 1} times: {error}") from error


def _task(shard: ShardPlan, key: str, plan: str, made_by: dict[str, str], storage: Storage, work: WorkSpec) -> Record:
    here = {"dff": code_version(), **library_versions()}
    if other := [f"{name} {here[name]}, not {made_by[name]}" for name in here if here[name] != made_by.get(name)]:
        raise BadDataset(f"this worker runs other code than made the plan: {'; '.join(other)}")
    return make_shard(shard, key=key, plan=plan, storage=storage, make_rows=_built(work))


@lru_cache(maxsize=1)
def _built(work: WorkSpec) -> MakeRows:
    """Once for each process: models are loaded where they are used and never travel."""
    return work.build()
