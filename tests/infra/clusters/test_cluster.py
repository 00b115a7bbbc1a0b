from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import ray.data
import ray.data.expressions
from ray.job_submission import JobStatus

from dff.face.errors import ClusterError
from dff.infra.clusters import cluster, socket_folder
from dff.infra.clusters.capacity import NodeResources, WorkerShape
from dff.infra.clusters.cluster import (
    check_shared,
    connected,
    describe_free_resources,
    job_name,
    submit,
    wait_for_room,
)
from dff.infra.datasets.shards import rows_to_parquet
from tests.infra.rows import noise_row
from tests.ray_forks.start import forked_from


@pytest.mark.ray
def test_a_private_local_ray_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    before = dict(os.environ)
    with connected(None, workers=1, env={"FACE_COLOUR": "green"}):
        assert ray.cluster_resources()["CPU"] == 1
        processes = psutil.Process().children(recursive=True)
        ray_processes = [process for process in processes if "ray" in " ".join(process.cmdline())]
        assert len(ray_processes) > 2
        # what ends this process's group, as `timeout` does, leaves it time to end its work on Ray
        assert os.getpgrp() not in [os.getpgid(process.pid) for process in ray_processes]
        seen = ray.get(
            ray.remote(
                lambda: {k: os.environ.get(k, "") for k in ("FACE_COLOUR", "RAY_AUTH_MODE")}
            ).remote()
        )
        assert seen == {"FACE_COLOUR": "green", "RAY_AUTH_MODE": "token"}
        assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
        with connected("never.asked:1"):  # what is connected stays
            assert ray.cluster_resources()["CPU"] == 1
        assert ray.is_initialized()
    assert not ray.is_initialized()
    after = dict(os.environ)
    assert {key: after.get(key) for key in before} == before
    assert "RAY_AUTH_TOKEN" not in after


def test_an_interrupt_while_ray_starts_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that a process of Ray has started; others of this process stay."""
    started: list[subprocess.Popen[bytes]] = []
    shell = ["sh", "-c", "sleep 60 & echo $!; wait"]

    def start() -> int:
        process = subprocess.Popen(shell, stdout=subprocess.PIPE, preexec_fn=lambda: None)
        started.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline())

    def init(**_: object) -> None:
        start()
        raise KeyboardInterrupt

    stays = start()
    monkeypatch.setattr(ray, "init", init)
    try:
        with pytest.raises(KeyboardInterrupt), connected(None, workers=1):
            pass
        own, of_ray = started
        assert of_ray.wait(10) == -signal.SIGTERM
        assert of_ray.communicate(timeout=10) == (b"", None), "its child holds the pipe no longer"
        assert own.poll() is None
        assert psutil.pid_exists(stays)
    finally:
        psutil.Process(stays).kill()
        for process in started:
            process.kill()
            process.communicate(timeout=10)


def test_a_process_that_ends_while_ray_starts_has_all_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's core would abort it by an alarm, which it sets when SIGTERM comes."""

    def init(**_: object) -> None:
        signal.alarm(60)
        raise SystemExit(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    try:
        with pytest.raises(SystemExit), connected(None, workers=1):
            pass
    finally:
        left = signal.alarm(0)
    assert left == 0


@pytest.mark.ray
def test_ray_data_reads_shards(tmp_path: Path, ray_forks: Path) -> None:
    """With columns and filters pushed down to Parquet, and images that decode."""
    rng = np.random.default_rng(0)
    rows = [noise_row(f"person {i}", view, rng=rng) for i in range(6) for view in range(4)]
    for number, part in enumerate((rows[:12], rows[12:])):
        (tmp_path / f"part-{number}.parquet").write_bytes(rows_to_parquet(part, {}))
    with forked_from(ray_forks, "ray.data"), connected(None, workers=1):
        data = ray.data.read_parquet(str(tmp_path)).select_columns(["sample_id", "view", "image"])
        found = {row["sample_id"]: row["image"]["bytes"] for row in data.iter_rows()}
        assert found == {row.sample_id: row.image for row in rows}
        held = ray.data.read_parquet(str(tmp_path)).select_columns(["sample_id", "split"])
        chosen = held.filter(expr=ray.data.expressions.col("split") == "dev")
        assert chosen.count() == sum(row.split == "dev" for row in rows)


@pytest.mark.ray
def test_a_long_path_of_temporary_files_is_no_trouble(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ray_forks: Path,
) -> None:
    """Schedulers of clusters make such folders; a socket's path has at most 107 bytes."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with forked_from(ray_forks), connected(None, workers=1):
        assert ray.get(ray.remote(lambda: 5).remote()) == 5
    (said,) = [r.getMessage() for r in caplog.records if r.name == "dff.infra.clusters.cluster"]
    folder = Path(said.rpartition("Ray takes ")[2])
    assert str(long) in said
    assert folder.is_absolute()
    assert not folder.exists()
    monkeypatch.setattr(socket_folder, "SHORT_FOLDERS", ())
    with pytest.raises(ClusterError, match="RAY_TMPDIR"), connected(None, workers=1):
        pass


def test_an_address_is_shown_without_its_password() -> None:
    for address in ("ray://u:hunter2@127.0.0.1:1", "u:hunter2@127.0.0.1"):
        with pytest.raises(ClusterError) as told, connected(address):
            pass
        assert "hunter2" not in str(told.value)
    for address in ("http://u:hunter2@127.0.0.1:1", "ftp://u:hunter2@127.0.0.1:1"):
        with pytest.raises(ClusterError) as told:
            submit(["true"], address)
        assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:1", "127.0.0.1:99999", ""]
)
def test_an_address_without_ray_is_said_by_name(address: str) -> None:
    with pytest.raises(ClusterError, match="Ray"), connected(address):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:1", "nonsense", "http://"])
def test_a_job_server_is_an_http_address(address: str) -> None:
    with pytest.raises(ClusterError, match="http://host:8265"):
        submit(["true"], address)


def test_no_submission_beyond_this_machine_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for host in ("192.0.2.1", "ray.example.org", "[2001:db8::1]"):
        with pytest.raises(ClusterError, match="RAY_AUTH_MODE=token"):
            submit(["true"], f"http://{host}:8265")
    for host in ("127.0.0.1", "localhost", "[::1]"):  # allowed, but nothing listens there
        with pytest.raises(ClusterError, match="no Ray at"):
            submit(["true"], f"http://{host}:1")


class LosingServer:
    """A job server with Redis whose head came back without the job, in the client's words."""

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, **job: Any) -> None:
        pass

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        return
        yield

    def get_job_status(self, name: str) -> JobStatus:
        return JobStatus.FAILED

    def get_job_info(self, name: str) -> SimpleNamespace:
        message = "Unexpected error occurred: failed to get job supervisor."
        return SimpleNamespace(status=JobStatus.FAILED, message=message)


def test_a_job_that_its_head_lost_is_told_to_be_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "_connect", lambda address: LosingServer())
    with pytest.raises(ClusterError, match=r"job true-\w+-1 was lost .* starts it again"):
        submit(["true"], "http://127.0.0.1:8265")


class AgentlessServer(LosingServer):
    """A job server whose head has no agent, which answers as Ray's does."""

    def submit_job(self, **job: Any) -> None:
        raise RuntimeError(
            "Request failed with status code 500: No available agent to submit job, please try "
            "again later.."
        )


def test_a_head_without_a_job_agent_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_connect", lambda address: AgentlessServer())
    with pytest.raises(ClusterError, match=r"no job agent.*install ray\[default\]") as caught:
        submit(["true"], "http://127.0.0.1:8265")
    assert "no longer answers" not in str(caught.value)


@pytest.mark.parametrize(
    ("free", "says"),
    [
        ({"CPU": 1.0}, "a worker needs 2 CPUs; free are 1 CPUs and 0 GPUs"),
        ({"CPU": 2.0}, "a worker needs 2 CPUs on one node, and free in total are 2 CPUs"),
        ({"CPU": 8.0}, "still giving places to the workers"),
    ],
)
def test_what_workers_wait_for_does_not_contradict_itself(
    monkeypatch: pytest.MonkeyPatch, free: dict[str, float], says: str
) -> None:
    monkeypatch.setattr(cluster.ray, "available_resources", lambda: free)
    monkeypatch.setattr(cluster, "list_nodes", lambda: [NodeResources("10.0.0.1", 2.0, 0.0)])
    assert says in describe_free_resources(WorkerShape(2))


def test_a_job_is_named_by_its_command() -> None:
    argv = ["/usr/bin/dff", "synthesize", "s3://faces/in", "s3://faces/out"]
    assert job_name(argv) == job_name(list(argv))
    assert job_name(argv).startswith("dff-synthesize-")
    assert job_name(argv) != job_name([*argv, "--seed", "1"])
    assert job_name(["a", "b c"]) != job_name(["a", "b", "c"])


def test_a_machine_that_is_no_node_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would abort the process and print its stack."""
    monkeypatch.setattr(cluster, "find_gcs_addresses", lambda: {"192.0.2.7:6379"})
    cluster.check_own_node("192.0.2.7:6379")
    cluster.check_own_node("127.0.0.1:6379")
    cluster.check_own_node("ray://192.0.2.9:10001")
    for address in ("192.0.2.9:6379", "192.0.2.7:6380", "127.0.0.1:6380"):
        with pytest.raises(ClusterError, match="is no node of the cluster at") as told:
            cluster.check_own_node(address)
        host = address.partition(":")[0]
        assert f"dff submit ... --address http://{host}:8265" in str(told.value)
        assert f"ray start --address={address}" in str(told.value)


HEAD = NodeResources("192.0.2.1", 0, 0)
SMALL = NodeResources("192.0.2.2", 2, 0)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([HEAD, SMALL, SMALL], None),
        ([HEAD], "no node that runs workers has joined the cluster yet"),
        ([HEAD, SMALL], "there is room for 1 of 2 workers of 2 CPUs"),
        ([NodeResources("192.0.2.2", 1, 0, managed=True)], "no node can hold a worker of 2 CPUs"),
    ],
)
def test_what_workers_wait_for_is_said(
    nodes: list[NodeResources],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cluster, "list_nodes", lambda: nodes)
    wait_for_room(WorkerShape(2), 2, patience=0.05, pause=0.01)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (said is not None)
    assert all(said in line for line in lines if said)


def test_workers_that_fit_on_no_node_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "list_nodes", lambda: [HEAD, SMALL])
    with pytest.raises(
        ClusterError, match=r"worker of 3 CPUs: .* 1 node of 2 CPUs \(192\.0\.2\.2\)"
    ):
        wait_for_room(WorkerShape(3), 1, patience=0.05, pause=0.01)


def test_a_folder_that_a_node_does_not_see_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def find(marker: Path) -> list[str]:
        seen.append(marker.exists())
        return ["10.0.0.2"] if len(seen) > 1 else []

    monkeypatch.setattr(cluster, "find_nodes_without", find)
    check_shared(tmp_path / "new" / "runs", "--storage")
    with pytest.raises(
        ClusterError, match=r"10\.0\.0\.2: this node does not see .*--storage as s3://"
    ):
        check_shared(tmp_path / "new" / "runs", "--storage")
    assert seen == [True, True]
    assert not list((tmp_path / "new" / "runs").iterdir())
