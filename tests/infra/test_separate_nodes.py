"""The three uses on machines that share no disk: a bucket holds all that passes between them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import skimage.data
from PIL import Image

from dff.infra import weights
from dff.infra.dataset import open_dataset
from dff.infra.storage import open_storage
from dff.pipeline.synthesis import synthesize
from tests.infra.separate_nodes import Cluster, find_missing, separate_nodes
from tests.s3_proxy import Proxy, relay_to
from tests.swift_server import BUCKET, KEY, SECRET, Swift

pytestmark = [pytest.mark.ray, pytest.mark.swift, pytest.mark.timeout(600)]

DFF = str(Path(sys.executable).parent / "dff")
SHAPE = {"identities": 4, "views": 3, "size": 96, "seed": 3}
PLACE = f"s3://{BUCKET}/three"
WAIT = 400.0  # seconds


@pytest.fixture(scope="module")
def cluster(swift_server: Swift) -> Iterator[Cluster]:
    """A head and two workers, whose environment has the bucket's credentials, as a role would."""
    if missing := find_missing():
        pytest.skip(missing)
    variables = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "PYTHONWARNINGS": "ignore",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # instead of 60: a lost head is waited for
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        separate_nodes(Path(folder), workers=2, variables=variables) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def bucket(cluster: Cluster, swift_server: Swift) -> Iterator[Proxy]:
    with relay_to(swift_server.url, host=cluster.bridge) as proxy:
        yield proxy


def start(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    """``dff submit`` on a machine beside the cluster."""
    token = {name: cluster.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    return subprocess.Popen(
        [DFF, "submit", *arguments, "--address", cluster.jobs],
        env=os.environ | token | {"PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def submit(cluster: Cluster, *arguments: str) -> str:
    """The log of a command that is submitted and succeeds."""
    with start(cluster, *arguments) as process:
        out, err = process.communicate(timeout=WAIT)
        print(out)
        assert process.returncode == 0, out + err
        return out


def test_a_folder_of_one_node_is_refused_as_the_place_of_a_dataset(cluster: Cluster) -> None:
    with pytest.raises(AssertionError, match=r"this node does not see /tmp/views: give OUT as s3"):
        submit(cluster, "synthesize", "none", "/tmp/views", "--identities", "2")


def test_synthesis_training_and_service_meet_in_a_bucket(
    cluster: Cluster, bucket: Proxy, swift: Swift, tmp_path: Path
) -> None:
    endpoint = ("--endpoint-url", bucket.url)
    options = [word for name, value in SHAPE.items() for word in (f"--{name}", str(value))]
    submit(
        cluster, "synthesize", "none", f"{PLACE}/views", *options, "--shard-faces", "1", *endpoint
    )  # fmt: skip
    made = open_dataset(f"{PLACE}/views", endpoint_url=bucket.url)
    made.verify()
    synthesize(None, str(tmp_path / "home"), shard_subjects=1, **SHAPE)
    at_home = open_dataset(str(tmp_path / "home")).manifest
    assert made.manifest.fingerprint == at_home.fingerprint
    assert [s.sha256 for s in made.manifest.shards] == [s.sha256 for s in at_home.shards]

    said = submit(
        cluster, "train", f"{PLACE}/views", "--out", f"{PLACE}/dff.safetensors",
        "--storage", f"{PLACE}/runs", "--workers", "2", "--loaders", "0", "--steps", "2",
        "--batch", "8", "--dimension", "8", *endpoint,
    )  # fmt: skip
    assert f"weights: {PLACE}/dff.safetensors" in said
    trained = weights.load(f"{PLACE}/dff.safetensors", endpoint_url=bucket.url)
    assert trained.card["steps"] == 2

    photo = tmp_path / "astronaut.jpg"
    Image.fromarray(skimage.data.astronaut()).save(photo)
    with served(cluster, "--weights", f"{PLACE}/dff.safetensors", *endpoint) as url:
        (model,) = httpx.get(f"{url}/v1/models", timeout=60).raise_for_status().json()["models"]
        assert model["weights"]["dataset"] == made.manifest.fingerprint
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


def test_a_lost_node_costs_the_shards_that_it_was_making(
    cluster: Cluster, bucket: Proxy, swift: Swift, tmp_path: Path
) -> None:
    shape = ("--identities", "8", "--views", "8", "--size", "96", "--shard-faces", "1")
    arguments = ("none", f"s3://{BUCKET}/lost", *shape, "--endpoint-url", bucket.url)
    with start(cluster, "synthesize", *arguments) as process:
        until_a_shard_is_stored(bucket, "lost", process)
        cluster.nodes[-1].lose_power()
        out, err = process.communicate(timeout=WAIT)
        assert process.returncode == 0, out + err
    synthesize(None, str(tmp_path), identities=8, views=8, size=96, shard_subjects=1)
    made = open_dataset(f"s3://{BUCKET}/lost", endpoint_url=bucket.url)
    made.verify()
    assert made.manifest == open_dataset(str(tmp_path)).manifest


@contextmanager
def served(cluster: Cluster, *arguments: str) -> Iterator[str]:
    """The aligner on the cluster; the command runs on the head until it is interrupted."""
    command = [DFF, "serve", "--address", "auto", "--host", cluster.head, *arguments]
    with subprocess.Popen(
        cluster.nodes[0].command(command),
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if match := re.match(r"serving at (\S+)/ ", line):
                    yield match[1]
                    break
            else:
                raise AssertionError("".join(said))
        finally:
            process.send_signal(signal.SIGINT)
