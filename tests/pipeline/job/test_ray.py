from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from dff.face.errors import BadDataset, BudgetExceeded, ShardFailed
from dff.infra.clusters.cluster import connected
from dff.infra.datasets.dataset import Manifest, open_dataset
from dff.infra.storage import Storage, open_storage
from dff.pipeline.job import ray as fan_out, run as job
from dff.pipeline.job.plan import Plan
from dff.pipeline.job.ray import SchedulerConfig
from dff.pipeline.job.run import RunConfig
from tests.pipeline.job.test_run import objects, tell, until
from tests.pipeline.job.toy_work import made, most_at_once, toy_plan, toy_work
from tests.ray_forks.start import forked_from
from tests.s3_server import BUCKET, FaultyS3

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster(s3: FaultyS3, ray_forks: Path) -> Iterator[None]:
    """Ray with two CPUs, started after the S3 server: workers inherit its credentials."""
    with forked_from(ray_forks), connected(None, workers=2):
        yield


# No half minute of waiting for what a test has broken for good.
HURRIED = RunConfig(retry_waits=(0.0, 0.1))
DEFAULTS = SchedulerConfig()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return toy_plan(16, shard_subjects=2)


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every object of the job as it is without Ray."""
    place = tmp_path_factory.mktemp("whole")
    storage = open_storage(str(place / "out"))
    job.run(plan, storage, toy_work(place).build())
    return objects(storage)


def run(
    plan: Plan,
    out: Storage,
    log: Path,
    workers: int | None = None,
    scheduling: SchedulerConfig = DEFAULTS,
    **faults: str | int | float,
) -> Manifest:
    work = toy_work(log, **faults)
    return fan_out.run(plan, out, work, workers=workers, config=HURRIED, scheduling=scheduling)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_makes_the_same_bytes_and_no_more_at_once(
    cluster: None, plan: Plan, whole: dict[str, bytes], out: Storage, log: Path, workers: int
) -> None:
    run(plan, out, log, workers, together=workers)
    assert objects(out) == whole
    assert most_at_once(log) == workers
    assert made(log) == dict.fromkeys(range(8), 1)
    built = [path.name.split("-")[1] for path in log.glob("built-*")]
    assert len(built) == len(set(built)) <= workers + 1  # models are loaded once for each process


def test_a_bucket_gets_the_same_bytes(
    cluster: None, plan: Plan, whole: dict[str, bytes], log: Path, s3: FaultyS3
) -> None:
    bucket = open_storage(f"s3://{BUCKET}/fan-out", endpoint_url=s3.url)
    run(plan, bucket, log)
    assert objects(bucket) == whole
    open_dataset(bucket.uri, endpoint_url=s3.url).verify()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("transient once", "TransientStorageError"),
        ("crash once", "WorkerCrashedError"),
        ("hang once", "Straggler"),
    ],
)
def test_temporary_failures_are_retried_and_reported(
    cluster: None,
    plan: Plan,
    whole: dict[str, bytes],
    out: Storage,
    log: Path,
    fault: str,
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    scheduling = SchedulerConfig(straggler_minimum=3.0 if reason == "Straggler" else 30.0)
    work = toy_work(log, fault=fault, shard=5)
    fan_out.run(plan, out, work, config=HURRIED, scheduling=scheduling, progress=True)
    assert objects(out) == whole
    assert made(log)[5] == 2
    said = capfd.readouterr().err
    assert f"shard 5 is started again: {reason}" in said
    assert f"{reason}=1" in said


@pytest.mark.parametrize("share", [0.6, 10.0])
def test_a_node_is_not_filled_beyond_its_memory(
    cluster: None, plan: Plan, whole: dict[str, bytes], out: Storage, log: Path, share: float
) -> None:
    """Two CPUs, memory for one task; and a task that would never fit runs alone."""
    memory = share * ray.cluster_resources()["memory"]
    run(plan, out, log, scheduling=SchedulerConfig(memory=memory), seconds=0.05)
    assert objects(out) == whole
    assert most_at_once(log) == 1


def test_permanent_errors_are_not_retried(
    cluster: None, plan: Plan, out: Storage, log: Path
) -> None:
    with pytest.raises(ZeroDivisionError, match="a mistake of ours"):
        run(plan, out, log, fault="wrong", shard=2)
    assert made(log)[2] == 1


def test_a_shard_that_kills_every_worker_is_named_and_the_job_can_go_on(
    cluster: None, plan: Plan, whole: dict[str, bytes], out: Storage, log: Path
) -> None:
    with pytest.raises(
        ShardFailed, match=r"shard 3 \(afw/ünï 6_1, afw/ünï 7_1, ...\) was lost 3 times"
    ):
        run(plan, out, log, fault="crash", shard=3)
    assert made(log)[3] == 3
    run(plan, out, log)
    assert objects(out) == whole


def test_a_job_beyond_its_budget_leaves_nothing_running(
    cluster: None, plan: Plan, out: Storage, log: Path
) -> None:
    with pytest.raises(BudgetExceeded, match=r"BadFit 4"):
        run(plan, out, log, 1, bad=1)
    assert len(made(log)) in (4, 5)  # one more may have been under way
    assert len(list(log.glob("begin-*"))) - len(list(log.glob("end-*"))) <= 1


def test_a_worker_with_other_code_refuses(
    cluster: None, plan: Plan, out: Storage, log: Path
) -> None:
    with pytest.raises(
        BadDataset, match=r"this worker runs other code.*: dff 0\.1\.0\+.*, not 0\.0\.9$"
    ):
        run(replace(plan, code="0.0.9"), out, log)
    assert made(log) == {}


_RUN = """
import sys
from pathlib import Path
from dff.infra.clusters.cluster import connected
from dff.infra.storage import open_storage
from dff.pipeline.job import ray as fan_out
from dff.pipeline.job.plan import parse_plan
from tests.pipeline.job.toy_work import toy_work
from tests.ray_forks.start import forked_from
plan = parse_plan(sys.stdin.buffer.read(), "stdin")
with forked_from(Path(sys.argv[3])), connected(None, workers=2):
    fan_out.run(plan, open_storage(sys.argv[1]), toy_work(sys.argv[2], seconds=0.3))
"""


def test_a_killed_driver_is_completed_with_the_same_bytes(
    plan: Plan, whole: dict[str, bytes], out: Storage, log: Path, ray_forks: Path
) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, out.uri, str(log), str(ray_forks)],
        cwd=root,
        stdin=subprocess.PIPE,
    ) as driver:
        tell(driver, plan)
        until(lambda: len(out.list("ledger/")) >= 2)
        os.kill(driver.pid, signal.SIGKILL)
    kept = {int(info.key[12:17]) for info in out.list("ledger/")}
    before = made(log)
    assert 2 <= len(kept) < 8
    assert not out.exists("MANIFEST.json")
    job.run(plan, out, toy_work(log).build())
    assert objects(out) == whole
    assert all(made(log)[shard] == before[shard] for shard in kept)
