"""Real Ray nodes on this machine, each its own ``ray start``, for tests of what only a cluster
does.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

STARTING = 240.0  # seconds that a node may take on a busy machine


@dataclass(frozen=True)
class Nodes:
    """A running cluster."""

    jobs: str  # http address of its job server
    token: str
    environment: Mapping[str, str]  # what a process needs in order to talk to it


@contextmanager
def two_nodes(folder: Path) -> Iterator[Nodes]:
    """A head and a worker of one CPU each, with token authentication; always stopped."""
    token = secrets.token_hex(16)
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    scripts = Path(sys.executable).parent
    environment = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    }
    environment |= auth | {"PATH": path_without_program(), "OMP_NUM_THREADS": "1"}
    gcs, dashboard, client = _free_ports(3)
    jobs = f"http://127.0.0.1:{dashboard}"
    common = [
        "--block",
        "--num-cpus=1",
        f"--object-store-memory={80 << 20}",
        "--disable-usage-stats",
    ]
    head = [
        "--head",
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        f"--temp-dir={folder}",
        "--include-dashboard=true",
    ]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "nodes.log").open("wb") as log:
            for own in (head, [f"--address=127.0.0.1:{gcs}"]):
                command = [str(scripts / "ray"), "start", *common, *own, *_agent_ports()]
                processes.append(
                    subprocess.Popen(
                        command, env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
                if own is head:
                    # a worker gives up when it finds the head before its node is known
                    wait_for_nodes(jobs, token, 1, processes, folder / "nodes.log")
        wait_for_nodes(jobs, token, 2, processes, folder / "nodes.log")
        yield Nodes(jobs, token, auth)
    finally:
        for process in reversed(processes):
            stop_node(process)


def path_without_program() -> str:
    """The search path of commands as a head may have it: without the folder of its Ray."""
    own = Path(sys.executable).parent
    return os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != own)


def stop_node(process: subprocess.Popen[bytes]) -> None:
    """End a node and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)  # SIGTERM would drain the node for half a minute
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _agent_ports() -> list[str]:
    """Ports that are the same on every node by default, and here must differ."""
    listen, grpc, metrics = _free_ports(3)
    return [
        f"--dashboard-agent-listen-port={listen}",
        f"--dashboard-agent-grpc-port={grpc}",
        f"--metrics-export-port={metrics}",
    ]


def wait_for_nodes(
    jobs: str, token: str, count: int, processes: Sequence[subprocess.Popen[bytes]], log: Path
) -> None:
    """Return when so many nodes are alive. Raises AssertionError where they do not get there."""
    deadline = time.monotonic() + STARTING
    alive = 0
    while time.monotonic() < deadline and all(p.poll() is None for p in processes):
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            answer = httpx.get(
                f"{jobs}/nodes?view=summary",
                headers={"Authorization": f"Bearer {token}"},
                timeout=5,
            )
            states = [node["raylet"].get("state") for node in answer.json()["data"]["summary"]]
            alive = states.count("ALIVE")
            if alive == count:
                return
        time.sleep(0.2)
    raise AssertionError(f"{alive} of {count} nodes: {log.read_text()[-3000:]}")
