"""Two real Ray nodes: commands reach them as jobs, with a token, and their work is on both."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from dff.commands.app import app
from dff.face.errors import ClusterError
from dff.infra.cluster import submit
from dff.infra.dataset import open_dataset
from dff.infra.images import read_image
from dff.pipeline.synthesis import synthesize
from tests.infra.ray_nodes import Nodes, two_nodes

pytestmark = pytest.mark.ray

SPREAD = """
import ray, sys, time
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    time.sleep(1)
    return ray.get_runtime_context().get_node_id()

print("nodes", len(set(ray.get([where.remote() for _ in range(4)]))))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # sockets live in Ray's folder, and a socket's path is at most 107 bytes: pytest's own folders
    # are too deep
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, two_nodes(Path(folder)) as nodes:
        yield nodes


@pytest.fixture
def trusted(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    for key, value in nodes.environment.items():
        monkeypatch.setenv(key, value)
    return nodes


def test_without_the_token_the_door_is_shut(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert httpx.get(f"{nodes.jobs}/api/jobs/").status_code == 401
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    with pytest.raises(ClusterError, match=nodes.jobs):
        submit(["true"], nodes.jobs)


def test_a_job_uses_both_nodes_and_its_log_is_followed(trusted: Nodes) -> None:
    lines: list[str] = []
    assert submit([sys.executable, "-c", SPREAD], trusted.jobs, on_line=lines.append) == "SUCCEEDED"
    assert "nodes 2" in lines
    assert lines[0].startswith("job ")


def test_a_dataset_made_by_a_submitted_job_is_the_one_made_at_home(
    trusted: Nodes, tmp_path: Path
) -> None:
    arguments = [
        "--identities",
        "2",
        "--views",
        "2",
        "--size",
        "64",
        "--shard-faces",
        "1",
        "--seed",
        "5",
    ]
    away, home = tmp_path / "away", tmp_path / "home"
    dff = str(Path(sys.executable).parent / "dff")
    sent = subprocess.run(
        [
            dff,
            "submit",
            "synthesize",
            "none",
            str(away),
            *arguments,
            "--workers",
            "2",
            "--address",
            trusted.jobs,
        ],
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "4 views of 2 faces" in sent.stdout
    made = open_dataset(str(away))
    made.verify()
    synthesize(None, str(home), identities=2, views=2, size=64, shard_subjects=1, seed=5)
    there, here = made.manifest, open_dataset(str(home)).manifest
    assert there.plan == here.plan
    assert [shard.sha256 for shard in there.shards] == [shard.sha256 for shard in here.shards]
    assert there.fingerprint == here.fingerprint

    listed = CliRunner().invoke(app, ["jobs", "--address", trusted.jobs])
    assert re.search(rf"SUCCEEDED .*\n .*synthesize none {away} ", listed.output), listed.output
    picture = tmp_path / "views.jpg"
    told = CliRunner().invoke(app, ["status", str(away), "--picture", str(picture)])
    assert "finished" in told.output
    assert read_image(picture).size


def test_a_running_command_is_followed_not_started_again_and_its_failure_raises(
    trusted: Nodes, tmp_path: Path
) -> None:
    code = f"import time; open({str(tmp_path / 'runs')!r}, 'a').write('x'); time.sleep(2); "
    code += "raise SystemExit('no photos')"
    argv = [sys.executable, "-c", code]
    submit(argv, trusted.jobs, wait=False)
    lines: list[str] = []
    with pytest.raises(ClusterError, match="failed"):
        submit(argv, trusted.jobs, on_line=lines.append)
    assert lines[-1] == "no photos"
    assert (tmp_path / "runs").read_text() == "x"
