"""OpenStack Swift with its S3 interface on loopback ports: a real store, with signatures, checksums
and data on disk.

It runs from a virtual environment of its own (``make s3-server``), as four processes that can be
killed.
"""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "faces"
KEY, SECRET = "test:tester", "testing"
HOME = Path(__file__).parents[1] / "build" / "swift"
KINDS = ("account", "container", "object")
STARTING = 60.0  # seconds

_RING = """
import sys
from swift.common.ring import RingBuilder
folder, *ports = sys.argv[1:]
for name, port in zip(("account", "container", "object"), ports):
    builder = RingBuilder(2, 1, 0)
    place = dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="disk", weight=1.0)
    builder.add_dev(place)
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""

_COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/devices
user = {user}
workers = 0
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_level = ERROR
conn_timeout = 10
node_timeout = 60
container_update_timeout = 60
"""

_FILTERS = {
    "catch_errors": "",
    "gatekeeper": "",
    "healthcheck": "",
    "listing_formats": "",
    "s3api": "location = us-east-1\nmax_upload_part_num = 10000",
    "tempauth": "user_test_tester = testing .admin",
    "copy": "",
    "slo": "max_manifest_segments = 10000",
    "dlo": "",
    "versioned_writes": "",
    "symlink": "",
}
_PROXY = "\n".join(
    [
        f"[pipeline:main]\npipeline = {' '.join(_FILTERS)} proxy-server",
        # ten errors would take the only node out of use for a minute
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
        "error_suppression_limit = 1000000",
        *(
            f"[filter:{name}]\nuse = egg:swift#{name}\n{options}"
            for name, options in _FILTERS.items()
        ),
    ]
)

_BACKEND = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""


@dataclass(frozen=True)
class Swift:
    """A running server."""

    url: str
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)


def installed() -> Path | None:
    """The virtual environment with Swift, or None."""
    home = Path(os.environ.get("DFF_SWIFT", HOME))
    return home if (home / "bin" / "swift-proxy-server").exists() else None


@contextmanager
def serve_swift(home: Path, folder: Path) -> Iterator[Swift]:
    """With a bucket; data lie in ``folder``. Raises AssertionError when it does not start."""
    (folder / "devices" / "disk").mkdir(parents=True)
    with ExitStack() as stack:
        ports = [_free_port(stack) for _ in range(4)]
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = tests\n"
        "[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    ring = [home / "bin" / "python", "-c", _RING, folder, *ports[1:]]
    subprocess.run([str(word) for word in ring], check=True, capture_output=True)
    for kind, port in zip(("proxy", *KINDS), ports, strict=True):
        common = _COMMON.format(port=port, folder=folder, user=getpass.getuser())
        own = _PROXY if kind == "proxy" else _BACKEND.format(kind=kind)
        (folder / f"{kind}.conf").write_text(common + own)
    server = Swift(f"http://127.0.0.1:{ports[0]}", folder)
    try:
        for kind in ("proxy", *KINDS):
            start(server, kind, home)
        _wait(server)
        yield server
    finally:
        for process in server.processes.values():
            process.kill()
            process.wait()


@contextmanager
def credentials() -> Iterator[None]:
    """Those of the server in the environment, for a while: other tests have other servers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


def start(server: Swift, kind: str, home: Path) -> None:
    """Start one of the four processes, again after it was killed."""
    command = [str(home / "bin" / f"swift-{kind}-server"), str(server.folder / f"{kind}.conf")]
    with (server.folder / "log").open("ab") as log:
        server.processes[kind] = subprocess.Popen(
            command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]}
        )


def _free_port(stack: ExitStack) -> int:
    probe = stack.enter_context(socket.socket())
    probe.bind(("127.0.0.1", 0))
    return int(probe.getsockname()[1])


def _wait(server: Swift) -> None:
    config = Config(
        s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=2
    )
    with credentials():
        client = boto3.session.Session().client("s3", endpoint_url=server.url, config=config)
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and all(
        process.poll() is None for process in server.processes.values()
    ):
        with suppress(BotoCoreError, ClientError):
            client.create_bucket(Bucket=BUCKET)
            return
        time.sleep(0.2)
    raise AssertionError(f"Swift did not start: {(server.folder / 'log').read_text()[-3000:]}")
