"""Real Ray nodes: commands reach them as jobs, with a token, and a bucket holds what they share.

Where this machine can make them, the nodes are three machines that share no disk: a head without
CPUs and two workers. Elsewhere they are two nodes on this machine.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil
import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

from dff.commands.app import app
from dff.face.errors import ClusterError
from dff.infra.clusters import cluster
from dff.infra.datasets.dataset import Dataset, Manifest, open_dataset
from dff.infra.networks import weights
from dff.infra.photos.images import read_image
from dff.infra.storage import open_storage
from dff.pipeline.synthesis import synthesize
from tests.infra.clusters.ray_nodes import Nodes, two_nodes
from tests.infra.clusters.separate_nodes import Cluster, find_missing, separate_nodes
from tests.s3_proxy import Proxy, relay_to
from tests.swift_server import BUCKET, KEY, SECRET, Swift, credentials, installed

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

DFF = str(Path(sys.executable).parent / "dff")
SHAPE = {"identities": 4, "views": 3, "size": 96, "seed": 3}
PLACE = f"s3://{BUCKET}/three"
WAIT = 400.0  # seconds

SPREAD = """
import ray, sys, time
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    time.sleep(1)
    return ray.get_runtime_context().get_node_id()

print("nodes", len(set(ray.get([where.remote() for _ in range(4)]))))
"""

COUNTING = """
import sys, time
with open("/tmp/dff-{name}", "a") as file:
    file.write("x")
time.sleep(2)
print("runs", open("/tmp/dff-{name}").read())
raise SystemExit("no photos")
"""


@pytest.fixture(scope="module")
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes | Cluster]:
    """Three machines whose environment has the bucket's credentials, as a role would, or two nodes
    of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="ray-") as name:  # pytest's folders are too deep
        folder = Path(name)
        if installed() is None or find_missing():
            with two_nodes(folder) as nodes:
                yield nodes
            return
        request.getfixturevalue("swift_server")
        variables = {
            "DFF_RAY_FORKS": str(request.getfixturevalue("ray_forks")),
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "PYTHONWARNINGS": "ignore",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "300",  # that nodes wait for a lost head
        }
        with separate_nodes(folder, workers=2, variables=variables) as separate:
            yield separate


@pytest.fixture
def trusted(nodes: Nodes | Cluster, monkeypatch: pytest.MonkeyPatch) -> Nodes | Cluster:
    """The nodes, with their token in the environment."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, nodes.environment[name])
    return nodes


@pytest.fixture(scope="module")
def machines(nodes: Nodes | Cluster) -> Cluster:
    """The nodes, which share no disk."""
    if not isinstance(nodes, Cluster):
        pytest.skip(find_missing() or "needs OpenStack Swift (make s3-server)")
    return nodes


@pytest.fixture(scope="module")
def bucket(machines: Cluster, swift_server: Swift) -> Iterator[Proxy]:
    with relay_to(swift_server.url, host=machines.bridge) as proxy:
        yield proxy


def start(nodes: Nodes | Cluster, *arguments: str) -> subprocess.Popen[str]:
    """``dff submit`` on a machine beside the cluster."""
    token = {name: nodes.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    return subprocess.Popen(
        [DFF, "submit", *arguments, "--address", nodes.jobs],
        env=os.environ | token | {"PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def submit(nodes: Nodes | Cluster, *arguments: str) -> str:
    """The log of a command that is submitted and succeeds."""
    with start(nodes, *arguments) as process:
        out, err = process.communicate(timeout=WAIT)
        print(out)
        assert process.returncode == 0, out + err
        return out


def test_without_the_token_the_door_is_shut(
    nodes: Nodes | Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert httpx.get(f"{nodes.jobs}/api/jobs/").status_code == 401
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    with pytest.raises(ClusterError, match=nodes.jobs):
        cluster.submit(["true"], nodes.jobs)


def test_a_job_uses_both_nodes_and_its_log_is_followed(trusted: Nodes | Cluster) -> None:
    lines: list[str] = []
    command = [sys.executable, "-c", SPREAD]
    assert cluster.submit(command, trusted.jobs, on_line=lines.append) == "SUCCEEDED"
    assert "nodes 2" in lines
    assert lines[0].startswith("job ")


def test_a_running_command_is_followed_not_started_again_and_its_failure_raises(
    trusted: Nodes | Cluster, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", COUNTING.format(name=f"{os.getpid()}-{time.time_ns()}")]
    cluster.submit(command, trusted.jobs, wait=False)
    lines: list[str] = []
    with pytest.raises(ClusterError, match="failed"):
        cluster.submit(command, trusted.jobs, on_line=lines.append)
    assert lines[-2:] == ["runs x", "no photos"]


def test_a_folder_of_one_node_is_refused_as_the_place_of_a_dataset(machines: Cluster) -> None:
    with pytest.raises(AssertionError, match=r"this node does not see /tmp/views: give OUT as s3"):
        submit(machines, "synthesize", "none", "/tmp/views", "--identities", "2")


@dataclass(frozen=True)
class Submitted:
    """A dataset that a submitted job made, and what the job said."""

    dataset: Dataset
    said: str
    storage_options: tuple[str, ...]  # of commands that read it


@pytest.fixture(scope="module")
def submitted(
    nodes: Nodes | Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Submitted]:
    """In the bucket, or in a folder where the nodes are of this machine."""
    options = [word for name, value in SHAPE.items() for word in (f"--{name}", str(value))]
    options += ["--shard-faces", "1"]
    if not isinstance(nodes, Cluster):
        away = str(tmp_path_factory.mktemp("away"))
        said = submit(nodes, "synthesize", "none", away, *options, "--workers", "2")
        yield Submitted(open_dataset(away), said, ())
        return
    url = request.getfixturevalue("bucket").url
    endpoint = ("--endpoint-url", url)
    with credentials():
        said = submit(nodes, "synthesize", "none", f"{PLACE}/views", *options, *endpoint)
        yield Submitted(open_dataset(f"{PLACE}/views", endpoint_url=url), said, endpoint)


def test_a_dataset_made_by_a_submitted_job_is_the_one_made_at_home(
    trusted: Nodes | Cluster, submitted: Submitted, tmp_path: Path
) -> None:
    assert "12 views of 4 faces" in submitted.said
    submitted.dataset.verify()
    synthesize(None, str(tmp_path), shard_subjects=1, **SHAPE)
    there, here = submitted.dataset.manifest, open_dataset(str(tmp_path)).manifest
    assert there.plan == here.plan
    assert [shard.sha256 for shard in there.shards] == [shard.sha256 for shard in here.shards]
    assert there.fingerprint == here.fingerprint

    uri = submitted.dataset.storage.uri.rstrip("/")
    listed = CliRunner().invoke(app, ["jobs", "--address", trusted.jobs])
    assert re.search(rf"SUCCEEDED .*\n .*synthesize none {uri} ", listed.output), listed.output
    picture = tmp_path / "views.jpg"
    status = ["status", uri, "--picture", str(picture), *submitted.storage_options]
    assert "finished" in CliRunner().invoke(app, status).output
    assert read_image(picture).size


def test_synthesis_training_and_service_meet_in_a_bucket(
    machines: Cluster,
    bucket: Proxy,
    submitted: Submitted,
    swift: Swift,
    mlflow_database: Path,
    tmp_path: Path,
) -> None:
    endpoint = submitted.storage_options
    with mlflow_database.open("rb") as database:  # making one takes seconds
        copying = ["sh", "-c", "mkdir -p runs && cat > runs/mlflow.db"]
        subprocess.run(machines.nodes[0].command(copying), stdin=database, check=True)
    said = submit(
        machines, "train", f"{PLACE}/views", "--out", f"{PLACE}/dff.safetensors",
        "--storage", f"{PLACE}/runs", "--workers", "2", "--loaders", "0", "--steps", "2",
        "--batch", "8", "--dimension", "8", *endpoint,
    )  # fmt: skip
    assert f"weights: {PLACE}/dff.safetensors" in said
    trained = weights.load(f"{PLACE}/dff.safetensors", endpoint_url=bucket.url)
    assert trained.card["steps"] == 2

    photo = tmp_path / "astronaut.jpg"
    Image.fromarray(skimage.data.astronaut()).save(photo)
    with served(machines, "--weights", f"{PLACE}/dff.safetensors", *endpoint) as url:
        (model,) = httpx.get(f"{url}/v1/models", timeout=60).raise_for_status().json()["models"]
        assert model["weights"]["dataset"] == submitted.dataset.manifest.fingerprint
        assert model["weights"]["steps"] == 2
        answer = ask(f"{url}/v1/align", photo.read_bytes())
        assert answer.json()["image"] == {"width": 512, "height": 512}
        assert len(answer.json()["faces"][0]["landmarks_2d"]) == 68


def ask(url: str, photo: bytes) -> httpx.Response:
    """The answer to a photo; a busy machine refuses some for a while."""
    deadline = time.monotonic() + WAIT
    while True:
        answer = httpx.post(
            url,
            files={"image": photo},
            data={"boxes": "[[160, 60, 300, 220]]"},
            timeout=120,
        )
        if answer.status_code != 503 or time.monotonic() > deadline:
            return answer.raise_for_status()
        time.sleep(1)


def until_a_shard_is_stored(bucket: Proxy, key: str, process: subprocess.Popen[str]) -> None:
    stored = open_storage(f"s3://{BUCKET}/{key}", endpoint_url=bucket.url)
    deadline = time.monotonic() + WAIT
    while not stored.list("data/"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


MANY = {"identities": 8, "views": 3, "size": 96}
MANY_ARGUMENTS = [word for name, value in MANY.items() for word in (f"--{name}", str(value))]
MANY_ARGUMENTS += ["--shard-faces", "1"]


@pytest.fixture(scope="module")
def made_at_home(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The dataset ``MANY``, made by this process."""
    folder = tmp_path_factory.mktemp("home")
    synthesize(None, str(folder), shard_subjects=1, **MANY)
    return open_dataset(str(folder)).manifest


@pytest.fixture
def gate(bucket: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is not set, writes to the bucket wait."""
    gate = threading.Event()
    gate.set()

    def wait(number: int, method: str) -> str:
        if method == "PUT":
            gate.wait(WAIT)
        return ""

    monkeypatch.setattr(bucket, "choose", wait)
    yield gate
    gate.set()


def test_a_node_whose_raylet_is_killed_costs_the_shards_that_it_was_making(
    machines: Cluster,
    bucket: Proxy,
    swift: Swift,
    gate: threading.Event,
    made_at_home: Manifest,
) -> None:
    """Late among these tests, since it takes a node away."""
    place = f"s3://{BUCKET}/lost"
    command = ("synthesize", "none", place, *MANY_ARGUMENTS, "--endpoint-url", bucket.url)
    with start(machines, *command) as process:
        until_a_shard_is_stored(bucket, "lost", process)
        gate.clear()
        machines.nodes[-1].kill_raylet()
        gate.set()
        out, err = process.communicate(timeout=WAIT)
        assert process.returncode == 0, out + err
    made = open_dataset(place, endpoint_url=bucket.url)
    made.verify()
    assert made.manifest == made_at_home


@contextmanager
def driver(
    machines: Cluster, *arguments: str, variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[str]]:
    """A command on the first worker, which runs on the cluster."""
    with subprocess.Popen(
        machines.nodes[1].command([DFF, *arguments, "--address", f"{machines.head}:6379"]),
        env={**machines.environment, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def test_a_job_goes_on_when_its_head_is_killed_and_comes_back(
    machines: Cluster,
    bucket: Proxy,
    swift: Swift,
    gate: threading.Event,
    made_at_home: Manifest,
) -> None:
    if not machines.has_redis:
        pytest.skip("needs redis-server, which keeps the state of the cluster")
    place = f"s3://{BUCKET}/back"
    command = ("synthesize", "none", place, *MANY_ARGUMENTS, "--endpoint-url", bucket.url)
    with driver(machines, *command) as job:
        until_a_shard_is_stored(bucket, "back", job)
        gate.clear()
        machines.nodes[0].lose_power()
        machines.restart_head()
        gate.set()
        _, err = job.communicate(timeout=WAIT)
        assert job.returncode == 0, err
    made = open_dataset(place, endpoint_url=bucket.url)
    made.verify()
    assert made.manifest == made_at_home


def test_a_job_whose_head_is_gone_says_so_and_the_same_command_completes_it(
    machines: Cluster,
    bucket: Proxy,
    swift: Swift,
    gate: threading.Event,
    made_at_home: Manifest,
) -> None:
    """Last of these tests, since no cluster is left. Ray's core aborts the driver."""
    place = f"s3://{BUCKET}/gone"
    command = ("synthesize", "none", place, *MANY_ARGUMENTS, "--endpoint-url", bucket.url)
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # of the driver, in seconds
    with driver(machines, *command, variables=patience) as job:
        until_a_shard_is_stored(bucket, "gone", job)
        gate.clear()
        machines.nodes[0].lose_power()
        _, err = job.communicate(timeout=WAIT)
        assert job.returncode != 0
    (said,) = (line for line in err.splitlines() if line.startswith("dff: "))
    assert "its cluster is gone" in said
    assert "the same command continues" in said
    assert not re.search(r"SIGABRT|StackTrace|core_worker", err), err
    machines.nodes[1].lose_power()
    gate.set()
    synthesize(None, place, endpoint_url=bucket.url, shard_subjects=1, **MANY)
    made = open_dataset(place, endpoint_url=bucket.url)
    made.verify()
    assert made.manifest == made_at_home


@contextmanager
def served(machines: Cluster, *arguments: str) -> Iterator[str]:
    """The aligner on the cluster; the command runs on the head until it is interrupted.

    Its proxy on another node could not listen at the head's address and would start for ever.
    """
    command = [DFF, "serve", "--address", "auto", "--host", "0.0.0.0", *arguments]
    with subprocess.Popen(
        machines.nodes[0].command(command),
        env=machines.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if match := re.match(r"serving at http://\S+:(\d+)/ ", line):
                    yield f"http://{machines.head}:{match[1]}"
                    break
            else:
                raise AssertionError("".join(said))
        finally:
            for child in psutil.Process(process.pid).children():
                child.send_signal(signal.SIGINT)
