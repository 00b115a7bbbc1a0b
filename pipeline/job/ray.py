"""Run a plan on Ray: ``dff.pipeline.job.run`` with one task for each shard.

The caller connects to the cluster (``dff.infra.clusters.cluster``). A task renders, stores and
records a shard, and returns a kilobyte. The driver, not Ray, retries lost tasks, because it can
report which shard is retried and why.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import lru_cache

from dff.face.errors import BadDataset, ShardFailed, TransientStorageError
from dff.face.extras import require_extra
from dff.infra.datasets.dataset import Manifest
from dff.infra.storage import Storage
from dff.pipeline.job.ledger import Record
from dff.pipeline.job.plan import Plan
from dff.pipeline.job.run import DEFAULT, OnRetry, RunConfig, drive, make_shard
from dff.pipeline.job.versions import code_version, library_versions
from dff.pipeline.job.work import MakeRows, ShardPlan, WorkSpec

with require_extra("synthesis"):
    import ray
    from ray.exceptions import RayError, RayTaskError


@dataclass(frozen=True)
class SchedulerConfig:
    """How tasks are sent to the cluster. Nothing here changes the bytes of the result."""

    # Shards until a worker process is replaced, which bounds what native libraries leak.
    max_calls: int = 100
    # Bytes that Ray reserves for a task, so that no node is overfilled: twice a measured maximum.
    memory: float = 1.5e9
    # Tasks in flight per CPU: an autoscaler adds nodes only for tasks that wait.
    window_per_cpu: int = 4
    # Seconds after which the size of the cluster is read again.
    poll: float = 30.0
    # Once CPUs have been idle for this many times the duration of the longest shard so far, a shard
    # that still runs is a straggler: a speculative task starts it once more.
    straggler_ratio: float = 3.0
    # The same in seconds, at least: a new process first loads its models.
    straggler_minimum: float = 30.0
    # Seconds to wait for the end of cancelled tasks.
    cancel_wait: float = 10.0


def run(
    plan: Plan,
    storage: Storage,
    work: WorkSpec,
    *,
    workers: int | None = None,
    config: RunConfig = DEFAULT,
    scheduling: SchedulerConfig = SchedulerConfig(),
    progress: bool = False,
) -> Manifest:
    """``job.run`` on the connected Ray cluster, with at most ``workers`` shards at a time.

    None for ``workers`` takes as many as fit. Only temporary storage errors and lost processes are
    retried. A straggler gets a speculative task, and the first of both that finishes counts. Raises
    what ``job.run`` raises, and ShardFailed when the process of a shard is lost in every attempt.
    """

    def make_records(shards: Iterable[ShardPlan], on_retry: OnRetry) -> Generator[Record]:
        scheduler = _Scheduler(plan, storage, work, workers, config.retry_waits, scheduling)
        return scheduler.run(iter(shards), on_retry)

    return drive(plan, storage, make_records, config=config, progress=progress)


class _Scheduler:
    """Keeps a window of a job's shards in flight on the cluster."""

    def __init__(
        self,
        plan: Plan,
        storage: Storage,
        work: WorkSpec,
        workers: int | None,
        retry_waits: tuple[float, ...],
        config: SchedulerConfig,
    ) -> None:
        self._task = ray.remote(
            num_cpus=1,
            memory=_find_task_memory(config.memory),
            max_retries=0,
            max_calls=config.max_calls,
            scheduling_strategy="SPREAD",
        )(_run_task)
        self._arguments = (plan.fingerprint, {"dff": plan.code, **plan.libraries}, storage, work)
        self._plan, self._workers = plan, workers
        self._retry_waits, self._config = retry_waits, config
        self._running: dict[ray.ObjectRef, ShardPlan] = {}
        self._retried: Counter[int] = Counter()  # lost attempts by shard
        self._longest = 0.0  # seconds of the longest shard so far
        self._idle_since: float | None = None

    def run(self, shards: Iterable[ShardPlan], on_retry: OnRetry) -> Generator[Record]:
        """The record of each shard as it is finished. Cancels all tasks when it is closed."""
        waiting = iter(shards)
        try:
            while True:
                cpus = int(ray.cluster_resources().get("CPU", 0))
                window = self._workers or self._config.window_per_cpu * max(cpus, 1)
                while len(self._running) < window and (shard := next(waiting, None)) is not None:
                    self._start(shard)
                if not self._running:
                    return
                self._start_speculative(min(self._workers or cpus, cpus), on_retry)
                for ref in self._wait():
                    # Another task of the same shard, ready as well, may have been cancelled here.
                    if (shard := self._running.pop(ref, None)) is None:
                        continue
                    if (record := self._take_result(ref, shard, on_retry)) is not None:
                        others = [r for r, s in self._running.items() if s.index == shard.index]
                        self._cancel(others)
                        yield record
        finally:
            self._cancel(list(self._running))

    def _start(self, shard: ShardPlan, wait: float = 0.0) -> None:
        ref = self._task.remote(shard, self._plan.data_key(shard.index), wait, *self._arguments)
        self._running[ref] = shard

    def _wait(self) -> list[ray.ObjectRef]:
        """Wait for one task, then return all that are ready."""
        refs = list(self._running)
        timeout = self._config.poll
        if self._idle_since is not None:
            timeout = min(timeout, self._straggler_seconds)
        if not ray.wait(refs, timeout=timeout)[0]:
            return []
        # One call for all: a call for each of thousands of tasks costs milliseconds.
        ready: list[ray.ObjectRef] = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        return ready

    def _take_result(
        self, ref: ray.ObjectRef, shard: ShardPlan, on_retry: OnRetry
    ) -> Record | None:
        """The record of a task that ended; None when its shard is started again."""
        attempt = self._retried[shard.index]
        retries = len(self._retry_waits)
        try:
            record, seconds = ray.get(ref)
        except RayTaskError as error:
            if not isinstance(error.cause, TransientStorageError) or attempt == retries:
                raise error.cause from None
            lost: Exception = error.cause
        except RayError as error:
            if attempt == retries:
                names = ", ".join(subject.id for subject in shard.subjects[:3])
                message = f"shard {shard.index} ({names}, ...) was lost {retries + 1} times: "
                raise ShardFailed(f"{message}{error}") from error
            lost = error
        else:
            self._longest = max(self._longest, seconds)
            made: Record = record
            return made
        self._retried[shard.index] += 1
        on_retry(shard, type(lost).__name__)
        self._start(shard, self._retry_waits[attempt])
        return None

    @property
    def _straggler_seconds(self) -> float:
        """Seconds of idle CPUs after which the shards that still run are stragglers."""
        config = self._config
        return max(config.straggler_ratio * self._longest, config.straggler_minimum)

    def _start_speculative(self, cpus: int, on_retry: OnRetry) -> None:
        """Start stragglers once more on idle CPUs."""
        if len(self._running) >= cpus:
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since < self._straggler_seconds:
            return
        tasks = Counter(shard.index for shard in self._running.values())
        for shard in list(self._running.values()):
            if tasks[shard.index] == 1 and len(self._running) < cpus:
                on_retry(shard, "Straggler")
                self._start(shard)

    def _cancel(self, refs: list[ray.ObjectRef]) -> None:
        """Cancel tasks and wait for their end, lest one writes a record after its segment.

        Their processes are killed: one that was interrupted while it imported a library would fail
        in all later tasks.
        """
        for ref in refs:
            self._running.pop(ref, None)
            ray.cancel(ref, force=True, recursive=False)
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=self._config.cancel_wait)


def _find_task_memory(wanted: float) -> int:
    """Bytes to reserve for a task: at most what the largest node has, or no task would start."""
    nodes = [
        node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
    ]
    return int(min(wanted, max((node.get("memory", 0.0) for node in nodes), default=wanted)))


def _run_task(
    shard: ShardPlan,
    key: str,
    wait: float,
    plan: str,
    made_by: dict[str, str],
    storage: Storage,
    work: WorkSpec,
) -> tuple[Record, float]:
    """The record of a shard, and the seconds that it took."""
    here = {"dff": code_version(), **library_versions()}
    if other := [
        f"{name} {here[name]}, not {made_by[name]}"
        for name in here
        if here[name] != made_by.get(name)
    ]:
        raise BadDataset(f"this worker runs other code than made the plan: {'; '.join(other)}")
    time.sleep(wait)
    make_rows, kept, start = _build(work), _keep(storage), time.monotonic()
    record = make_shard(shard, key=key, plan=plan, storage=kept, make_rows=make_rows)
    return record, time.monotonic() - start


@lru_cache(maxsize=1)
def _build(work: WorkSpec) -> MakeRows:
    """Build the work once per process: models are loaded where they are used, and never sent."""
    return work.build()


@lru_cache(maxsize=1)
def _keep(storage: Storage) -> Storage:
    """The first of equal storages: each task brings a copy, and a new client for S3 takes a tenth
    of a second.
    """
    return storage
