"""Run a plan on Ray: ``dff.pipeline.job.run`` with one task for each shard. Connecting is the
caller's (``dff.infra.cluster``).

A task is a shard: it renders, writes and records it, and hands back a kilobyte. The driver, not
Ray, tries again what was lost, because it can say what was tried again and why.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable
from functools import lru_cache

from dff.face.errors import BadDataset, ShardFailed, TransientStorageError
from dff.face.extras import require_extra
from dff.infra.dataset import Manifest
from dff.infra.storage import Storage
from dff.pipeline.job.ledger import Record
from dff.pipeline.job.plan import (
    MakeRows,
    Plan,
    ShardPlan,
    WorkSpec,
    code_version,
    library_versions,
)
from dff.pipeline.job.run import BUDGET, RETRY_WAITS, Again, drive, make_shard

with require_extra("synthesis"):
    import ray
    from ray.exceptions import RayError, RayTaskError

RETRIES = len(RETRY_WAITS)
MAX_CALLS = 100  # shards until a worker process is replaced: bounds what native libraries leak
# bytes that Ray sets aside for a task, so that a node is never overfilled: twice what one was seen
# to use
MEMORY = 1.5e9
AHEAD = 4  # tasks in flight for each CPU: an autoscaler only adds nodes for tasks that wait
WAIT = 30.0  # seconds until the cluster's size is looked at again
PATIENCE = (
    3.0  # times the longest shard so far, with CPUs idle, until a shard that still runs gets a twin
)
STARTING = 30.0  # seconds that a new process may take to load its models: no straggler before
STOPPING = 5.0  # seconds to end for tasks that nobody waits for, until their processes are killed


def run(
    plan: Plan,
    storage: Storage,
    work: WorkSpec,
    *,
    workers: int | None = None,
    budget: float = BUDGET,
    progress: bool = False,
) -> Manifest:
    """``job.run`` on the connected Ray cluster, at most ``workers`` shards at a time (default: as
    many as fit).

    Only transient storage errors and lost processes are tried again. A shard that still runs long
    after all others are done is begun once more, and the first that is done counts. Raises what
    ``job.run`` raises, and ShardFailed when a shard's process dies every time.
    """

    def records(shards: Iterable[ShardPlan], again: Again) -> Generator[Record]:
        return _Fleet(plan, storage, work, workers).records(iter(shards), again)

    return drive(plan, storage, records, budget=budget, progress=progress)


class _Fleet:
    """The tasks of a job that are under way."""

    def __init__(self, plan: Plan, storage: Storage, work: WorkSpec, workers: int | None) -> None:
        self._task = ray.remote(
            num_cpus=1,
            memory=_memory(),
            max_retries=0,
            max_calls=MAX_CALLS,
            scheduling_strategy="SPREAD",
        )(_task)
        self._arguments = (plan.fingerprint, {"dff": plan.code, **plan.libraries}, storage, work)
        self._plan, self._workers = plan, workers
        self._running: dict[ray.ObjectRef, ShardPlan] = {}
        self._tried: Counter[int] = Counter()  # by shard, of those that were lost
        self._longest = 0.0  # seconds of a shard
        self._idle_since: float | None = None

    def records(self, shards: Iterable[ShardPlan], again: Again) -> Generator[Record]:
        waiting = iter(shards)
        try:
            while True:
                cpus = int(ray.cluster_resources().get("CPU", 0))
                window = self._workers or AHEAD * max(cpus, 1)
                while len(self._running) < window and (shard := next(waiting, None)) is not None:
                    self._begin(shard)
                if not self._running:
                    return
                self._send_twins(min(self._workers or cpus, cpus), again)
                for ref in self._ready():
                    if (shard := self._running.pop(ref, None)) is not None and (
                        record := self._result(ref, shard, again)
                    ):
                        self._end(
                            [
                                ref
                                for ref, twin in self._running.items()
                                if twin.index == shard.index
                            ]
                        )
                        yield record
        finally:
            self._end(list(self._running))

    def _begin(self, shard: ShardPlan, wait: float = 0.0) -> None:
        ref = self._task.remote(shard, self._plan.data_key(shard.index), wait, *self._arguments)
        self._running[ref] = shard

    def _ready(self) -> list[ray.ObjectRef]:
        """Wait for one, then take all that are ready: asking for each of thousands costs
        milliseconds.
        """
        refs = list(self._running)
        timeout = WAIT if self._idle_since is None else min(WAIT, self._patience)
        if not ray.wait(refs, timeout=timeout)[0]:
            return []
        ready: list[ray.ObjectRef] = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        return ready

    def _result(self, ref: ray.ObjectRef, shard: ShardPlan, again: Again) -> Record | None:
        """The record of a task that ended, or None when its shard is under way once more."""
        try:
            record, seconds = ray.get(ref)
        except RayTaskError as error:
            if not isinstance(error.cause, TransientStorageError):
                raise error.cause from None
            if self._tried[shard.index] == RETRIES:
                raise error.cause from None
            lost: Exception = error.cause
        except RayError as error:
            if self._tried[shard.index] == RETRIES:
                names = ", ".join(subject.id for subject in shard.subjects[:3])
                message = (
                    f"shard {shard.index} ({names}, ...) was lost {RETRIES + 1} times: {error}"
                )
                raise ShardFailed(message) from error
            lost = error
        else:
            self._longest = max(self._longest, seconds)
            made: Record = record
            return made
        self._tried[shard.index] += 1
        again(shard, type(lost).__name__)
        self._begin(shard, RETRY_WAITS[self._tried[shard.index] - 1])
        return None

    @property
    def _patience(self) -> float:
        return max(PATIENCE * self._longest, STARTING)

    def _send_twins(self, cpus: int, again: Again) -> None:
        """Begin once more what still runs although CPUs have been idle for long."""
        if len(self._running) >= cpus:
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since < self._patience:
            return
        copies = Counter(shard.index for shard in self._running.values())
        for shard in list(self._running.values()):
            if copies[shard.index] == 1 and len(self._running) < cpus:
                again(shard, "Straggler")
                self._begin(shard)

    def _end(self, refs: list[ray.ObjectRef]) -> None:
        """Stop tasks that nobody waits for, and see them stopped: a late record would outlive its
        segment.
        """
        for ref in refs:
            self._running.pop(ref, None)
            ray.cancel(ref, recursive=False)
        if refs:
            _, alive = ray.wait(refs, num_returns=len(refs), timeout=STOPPING)
            for ref in alive:
                ray.cancel(ref, force=True, recursive=False)
            if alive:
                ray.wait(alive, num_returns=len(alive), timeout=STOPPING)


def _memory() -> int:
    """Bytes to set aside for a task: no more than the largest node has, or no task would ever
    begin.
    """
    nodes = [
        node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
    ]
    return int(min(MEMORY, max((node.get("memory", 0.0) for node in nodes), default=MEMORY)))


def _task(
    shard: ShardPlan,
    key: str,
    wait: float,
    plan: str,
    made_by: dict[str, str],
    storage: Storage,
    work: WorkSpec,
) -> tuple[Record, float]:
    """A shard's record, and the seconds that it took."""
    here = {"dff": code_version(), **library_versions()}
    if other := [
        f"{name} {here[name]}, not {made_by[name]}"
        for name in here
        if here[name] != made_by.get(name)
    ]:
        raise BadDataset(f"this worker runs other code than made the plan: {'; '.join(other)}")
    time.sleep(wait)
    make_rows, start = _built(work), time.monotonic()
    record = make_shard(shard, key=key, plan=plan, storage=storage, make_rows=make_rows)
    return record, time.monotonic() - start


@lru_cache(maxsize=1)
def _built(work: WorkSpec) -> MakeRows:
    """Once for each process: models are loaded where they are used and never travel."""
    return work.build()
