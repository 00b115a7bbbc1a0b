"""How far a job has come is read from its storage, whatever has become of the job."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dff.face.errors import BadDataset
from dff.infra.datasets.dataset import MANIFEST
from dff.infra.storage import Storage, open_storage
from dff.pipeline.job import ledger, plan, run_mark
from dff.pipeline.job.plan import Plan
from dff.pipeline.job.run import RunConfig, claim, make_shard, run
from dff.pipeline.job.status import State, format_seconds, read_status, sample_views
from dff.pipeline.job.work import ShardPlan, ShardResult
from tests.pipeline.job.toy_work import toy_plan, toy_work

BEGIN = 1_700_000_000.0  # Unix seconds


@pytest.fixture
def half_made(tmp_path: Path) -> tuple[Plan, Storage]:
    return half_make(tmp_path, 2)


def half_make(tmp_path: Path, made: int) -> tuple[Plan, Storage]:
    """A job of 11 subjects in four shards, up to two of which are stored, ten seconds apart."""
    job = toy_plan(11)
    storage = open_storage(str(tmp_path / "out"))
    (tmp_path / "log").mkdir()
    make_rows = toy_work(tmp_path / "log", bad=1).build()
    claim(job, storage)
    os.utime(tmp_path / "out" / plan.KEY, (BEGIN, BEGIN))
    for index, shard in enumerate((0, 3)[:made]):  # the last shard is smaller
        key, work = job.data_key(shard), job.shards[shard]
        make_shard(work, key=key, plan=job.fingerprint, storage=storage, make_rows=make_rows)
        then = BEGIN + 10.0 * (index + 1)
        os.utime(tmp_path / "out" / key, (then, then))
    return job, storage


def test_a_running_job_tells_rate_failures_and_time_left(half_made: tuple[Plan, Storage]) -> None:
    _, storage = half_made
    status = read_status(storage, now=BEGIN + 25.0)
    assert (status.state, status.shards_done, status.shards) == (State.running, 2, 4)
    assert (status.subjects_done, status.subjects, status.subjects_failed) == (5, 11, 2)
    assert status.rows == 9  # three views of each subject that did not fail
    assert sum(status.failures.values()) == 2
    assert status.rate == pytest.approx(0.3), "three faces in a shard, ten seconds for each"
    assert status.seconds_left == pytest.approx(20.0)
    text = "\n".join(status.lines())
    assert "running, 45%" in text
    assert "5 of 11 faces, 2 of 4 shards, 9 views" in text
    assert "20 s left" in text
    assert len(sample_views(storage)) == 9


def test_shards_of_parallel_workers_that_come_together_took_the_time_since_the_start(
    half_made: tuple[Plan, Storage], tmp_path: Path
) -> None:
    job, storage = half_made
    for shard in (0, 3):
        os.utime(tmp_path / "out" / job.data_key(shard), (BEGIN + 20.0, BEGIN + 20.1))
    status = read_status(storage, now=BEGIN + 25.0)
    assert status.rate == pytest.approx(0.3, rel=0.01), "six faces in twenty seconds"


def test_a_killed_job_is_told_from_a_running_one(half_made: tuple[Plan, Storage]) -> None:
    _, storage = half_made
    status = read_status(storage, now=BEGIN + 20.0 + 3 * 3600)
    assert status.state is State.stopped
    assert status.seconds_left is None
    assert "no shard for 3 h 00 min" in status.lines()[-1]


@pytest.mark.parametrize(
    ("made", "silent", "state"),
    [
        (2, 79.0, State.running),  # eight times the ten seconds between two shards
        (2, 81.0, State.stopped),
        (1, 19.0, State.running),  # the only shard took ten seconds
        (1, 21.0, State.stopped),
        (0, 119.0, State.running),  # kernels may have to be compiled
        (0, 121.0, State.stopped),
    ],
)
def test_a_job_that_is_silent_for_longer_than_its_shards_take_has_stopped(
    made: int, silent: float, state: State, tmp_path: Path
) -> None:
    _, storage = half_make(tmp_path, made)
    assert read_status(storage, now=BEGIN + 10.0 * made + silent).state is state


def test_a_resumed_job_runs_before_its_first_new_shard_and_an_interrupted_one_has_stopped(
    half_made: tuple[Plan, Storage], tmp_path: Path
) -> None:
    job, storage = half_made
    assert read_status(storage).state is State.stopped, "its shards are years old"
    make_rows, seen = toy_work(tmp_path / "log", bad=1).build(), []

    def make_some(shard: ShardPlan) -> ShardResult:
        seen.append(read_status(storage))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return make_rows(shard)

    with pytest.raises(KeyboardInterrupt):
        run(job, storage, make_some, config=RunConfig(budget=0.5))
    assert [(one.state, one.shards_done) for one in seen] == [
        (State.running, 2),
        (State.running, 3),
    ]
    assert max(one.silent for one in seen) < 60.0
    stopped = read_status(storage)
    assert (stopped.state, stopped.ended) == (State.stopped, True)
    assert "interrupted, or failed: the same" in stopped.lines()[-1]
    run(job, storage, make_rows, config=RunConfig(budget=0.5))
    assert read_status(storage).state is State.finished
    assert not storage.exists(run_mark.KEY)


def test_a_resumed_job_that_is_killed_before_its_first_new_shard_has_stopped(
    half_made: tuple[Plan, Storage], tmp_path: Path
) -> None:
    _, storage = half_made
    storage.write(run_mark.KEY, b'{"state": "running"}')
    resumed = BEGIN + 3600.0
    os.utime(tmp_path / "out" / run_mark.KEY, (resumed, resumed))
    assert read_status(storage, now=resumed + 79.0).state is State.running
    killed = read_status(storage, now=resumed + 81.0)
    assert (killed.state, killed.ended) == (State.stopped, False)
    assert "no shard for 81 s" in killed.lines()[-1]


def test_a_finished_dataset_has_no_time_left(
    half_made: tuple[Plan, Storage], tmp_path: Path
) -> None:
    job, storage = half_made
    run(job, storage, toy_work(tmp_path / "log", bad=1).build(), config=RunConfig(budget=0.5))
    assert storage.exists(MANIFEST)
    status = read_status(storage)
    assert (status.state, status.shards_done, status.subjects_done) == (State.finished, 4, 11)
    assert status.seconds_left is None
    assert status.rows == sum(record.rows for record in ledger.read_all(storage))


def test_a_place_without_a_job_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="no dataset has been begun here"):
        read_status(open_storage(str(tmp_path)))


def test_a_job_that_has_only_begun(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    claim(toy_plan(), storage)
    status = read_status(storage)
    assert (status.state, status.rows, status.rate) == (State.running, 0, None)
    assert sample_views(storage) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (150, "2 min"), (3600, "1 h 00 min"), (90_000, "25 h 00 min")],
)
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
