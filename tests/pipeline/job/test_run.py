from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from dff.face.errors import BadDataset, BudgetExceeded
from dff.infra.datasets.dataset import Manifest, open_dataset
from dff.infra.datasets.shards import make_sample_id, parquet_to_rows
from dff.infra.storage import Storage, open_storage
from dff.pipeline.job import ledger, run as job
from dff.pipeline.job.plan import Plan
from dff.pipeline.job.run import RunConfig
from dff.pipeline.job.work import ShardPlan, ShardResult
from tests.pipeline.job.toy_work import VIEWS, made, toy_plan, toy_work
from tests.s3_server import BUCKET, FaultyS3, refuse

_fresh = count()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return toy_plan()


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every object of a job that ran through undisturbed."""
    place = tmp_path_factory.mktemp("whole")
    storage = open_storage(str(place / "out"))
    run(plan, storage, place)
    return objects(storage)


def run(
    plan: Plan,
    storage: Storage,
    log: Path,
    budget: float = RunConfig.budget,
    **faults: str | int | float,
) -> Manifest:
    return job.run(plan, storage, toy_work(log, **faults).build(), config=RunConfig(budget=budget))


def objects(storage: Storage) -> dict[str, bytes]:
    return {info.key: storage.read(info.key) for info in storage.list()}


def test_a_finished_dataset_has_every_view_of_every_input(
    plan: Plan, out: Storage, log: Path
) -> None:
    manifest = run(plan, out, log)
    dataset = open_dataset(out.uri)
    assert dataset.manifest == manifest
    dataset.verify()
    rows = [row for i in range(len(dataset.shards)) for row in dataset.read_shard(i)]
    wanted = [
        make_sample_id(s.id, v)
        for shard in plan.shards
        for s in shard.subjects
        for v in range(VIEWS)
    ]
    assert [row.sample_id for row in rows] == wanted
    assert manifest.rows == len(wanted) == 36
    assert manifest.counts["mode"] == {"rerender": 36}
    assert manifest.counts["licence"] == {"CC0-1.0": 36}
    assert sum(manifest.counts["split"].values()) == 36
    assert (manifest.subjects, manifest.failed_subjects, manifest.failures) == (12, 0, {})
    assert dataset.columns(1, ["view"]) == {"view": [0, 1, 2] * 3}
    assert sorted(objects(out)) == sorted(
        ["MANIFEST.json", "plan.json"]
        + [f"data/part-0000{i}-of-00004.parquet" for i in range(4)]
        + ["ledger/segment-00000.jsonl"]
    )


def test_two_runs_make_the_same_bytes_in_a_folder_and_a_bucket(
    plan: Plan, whole: dict[str, bytes], out: Storage, log: Path, s3: FaultyS3
) -> None:
    run(plan, out, log)
    assert objects(out) == whole
    bucket = open_storage(f"s3://{BUCKET}/job/{next(_fresh)}", endpoint_url=s3.url)
    run(plan, bucket, log)
    assert objects(bucket) == whole
    open_dataset(bucket.uri, endpoint_url=s3.url).verify()


def test_a_finished_job_is_not_made_again(
    plan: Plan, whole: dict[str, bytes], out: Storage, log: Path
) -> None:
    run(plan, out, log)
    run(plan, out, log)
    assert made(log) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert objects(out) == whole


_RUN = """
import sys
from pathlib import Path
from dff.infra.storage import open_storage
from dff.pipeline.job import run as job
from dff.pipeline.job.plan import parse_plan
from tests.pipeline.job.toy_work import toy_work
plan = parse_plan(sys.stdin.buffer.read(), "stdin")
job.run(plan, open_storage(sys.argv[1]), toy_work(Path(sys.argv[2]), seconds=0.2).build())
"""


@pytest.mark.parametrize("records", [0, 2])
def test_a_killed_job_is_completed_with_the_same_bytes(
    plan: Plan, whole: dict[str, bytes], out: Storage, log: Path, records: int
) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, out.uri, str(log)], cwd=root, stdin=subprocess.PIPE
    ) as child:
        tell(child, plan)
        until(lambda: len(out.list("ledger/")) >= records and len(made(log)) > records)
        os.kill(child.pid, signal.SIGKILL)
    kept = len(out.list("ledger/"))
    assert records <= kept < 4
    with pytest.raises(
        BadDataset, match=r"not a finished dataset.*run the command that makes it again"
    ):
        open_dataset(out.uri)
    run(plan, out, log)
    assert objects(out) == whole
    again = made(log)
    assert all(again[shard] == 1 for shard in range(kept))
    assert again[kept] in (1, 2)  # the one that the kill interrupted


def tell(child: subprocess.Popen[bytes], plan: Plan) -> None:
    """Hand a plan to a process that reads it from its input."""
    assert child.stdin is not None
    child.stdin.write(plan.to_json())
    child.stdin.close()


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    "lost", ["ledger/segment-00000.jsonl", "data/part-00001-of-00004.parquet", "MANIFEST.json"]
)
def test_lost_objects_are_made_again(
    plan: Plan, whole: dict[str, bytes], out: Storage, log: Path, lost: str
) -> None:
    run(plan, out, log)
    out.delete(lost)
    run(plan, out, log)
    assert objects(out) == whole


def test_a_leftover_of_other_bytes_is_refused_by_name(
    plan: Plan, whole: dict[str, bytes], out: Storage, log: Path
) -> None:
    key = plan.data_key(1)
    out.write(key, b"something else")
    with pytest.raises(
        BadDataset, match=rf"{key} already holds other bytes.*delete it or choose another"
    ):
        run(plan, out, log)
    assert out.read(key) == b"something else"
    out.delete(key)
    run(plan, out, log)
    assert objects(out) == whole


def test_another_plan_is_refused(plan: Plan, out: Storage, log: Path) -> None:
    run(plan, out, log)
    before = objects(out)
    with pytest.raises(BadDataset, match=r"another plan \(seed: 7, now 8; views: 3, now 5\)"):
        run(toy_plan(seed=8, views=5), out, log)
    assert objects(out) == before


def test_a_ledger_of_another_plan_is_refused(plan: Plan, out: Storage, log: Path) -> None:
    other = open_storage(out.uri + "-other")
    run(toy_plan(seed=8), other, log)
    records = other.read("ledger/segment-00000.jsonl")
    out.write("ledger/segment-00000.jsonl", records)
    with pytest.raises(
        BadDataset, match=r"ledger/segment-00000.jsonl has a record of another plan"
    ):
        run(plan, out, log)
    out.write("ledger/segment-00000.jsonl", b"{}")
    with pytest.raises(BadDataset, match=r"ledger/segment-00000.jsonl is not a ledger object"):
        run(plan, out, log)
    out.delete("ledger/segment-00000.jsonl")
    out.write("ledger/part-00003.json", records.splitlines()[0])
    with pytest.raises(BadDataset, match=r"ledger/part-00003.json holds records of other shards"):
        run(plan, out, log)


def test_failures_are_counted_kept_and_named(plan: Plan, out: Storage, log: Path) -> None:
    manifest = run(plan, out, log, bad=1, budget=0.34)
    assert (manifest.failed_subjects, manifest.failures, manifest.rows) == (4, {"BadFit": 4}, 24)
    failures = [failure for record in ledger.read_all(out) for failure in record.failures]
    assert [failure.subject for failure in failures] == [
        shard.subjects[0].id for shard in plan.shards
    ]
    assert failures[0].detail == "no fit"
    open_dataset(out.uri).verify()


def test_a_job_beyond_its_budget_stops_keeps_what_is_done_and_can_go_on(
    plan: Plan, out: Storage, log: Path
) -> None:
    with pytest.raises(
        BudgetExceeded,
        match=r"3 of 12 inputs failed, more than the budget of 20%: BadFit 3 \(first: afw",
    ):
        run(plan, out, log, bad=1)
    assert made(log) == {0: 1, 1: 1, 2: 1}
    assert len(out.list("ledger/")) == 3
    with pytest.raises(BudgetExceeded):  # at once: it is known from the ledger
        run(plan, out, log, bad=1)
    assert made(log) == {0: 1, 1: 1, 2: 1}
    run(plan, out, log, bad=1, budget=0.5)
    assert made(log) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_a_shard_without_any_row_is_part_of_the_dataset(
    plan: Plan, out: Storage, log: Path
) -> None:
    assert run(plan, out, log, bad=3, budget=1.0).rows == 0
    open_dataset(out.uri).verify()


def test_no_input_may_vanish(plan: Plan, out: Storage, log: Path) -> None:
    make_rows = toy_work(log).build()

    def forgetful(shard: ShardPlan) -> ShardResult:
        return replace(made_rows := make_rows(shard), rows=made_rows.rows[VIEWS:])

    with pytest.raises(AssertionError, match="shard 0"):
        job.run(plan, out, forgetful)
    assert out.list("ledger/") == []


def test_the_bar_counts_faces_and_failures(
    plan: Plan, out: Storage, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(budget=0.5)
    job.run(plan, out, toy_work(log, bad=1).build(), config=config, progress=True)
    last = capfd.readouterr().err.split("\r")[-1]
    assert "12/12" in last
    assert "failed=4" in last
    run(plan, out, log, budget=0.5)
    assert capfd.readouterr().err == ""


def test_the_size_of_a_record_does_not_depend_on_its_rows(log: Path, tmp_path: Path) -> None:
    """The record that a driver receives does not grow with the shard."""
    sizes = []
    for views in (1, 40):
        place = open_storage(str(tmp_path / str(views)))
        run(toy_plan(2, shard_subjects=2, views=views), place, log, views=views)
        (record,) = ledger.read_all(place)
        sizes.append(len(pickle.dumps(record)))
        assert record.rows == 2 * views
    assert max(sizes) < 1500
    assert sizes[1] - sizes[0] < 20


def test_a_shard_on_s3_is_committed_over_lost_answers(
    plan: Plan, whole: dict[str, bytes], s3: FaultyS3, log: Path
) -> None:
    bucket = open_storage(f"s3://{BUCKET}/job/{next(_fresh)}", endpoint_url=s3.url)
    s3.faults += [("PUT", refuse("409 Conflict", "ConditionalRequestConflict"))]
    s3.faults += [("PUT", refuse("503 Slow Down", "SlowDown"))]
    run(plan, bucket, log)
    assert s3.faults == []
    assert objects(bucket) == whole
    assert len(parquet_to_rows(bucket.read(plan.data_key(0)))) == 9
