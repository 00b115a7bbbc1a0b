"""Real Ray nodes that share no disk, address or process: each in namespaces of its own.

As root only. A bridge of this machine connects them, as a switch would; this machine itself is on
it, but no node of the cluster. A Ray driver takes the address of its node from the command lines of
the machine's processes, so nodes that saw each other's would take each other's addresses.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.infra.clusters.ray_nodes import path_without_program, stop_node, wait_for_nodes

PROGRAM = Path(__file__).parents[3]
_OWN_DISK = """
set -e
trap 'exit 1' INT TERM
mount --make-rprivate /
mount -t proc proc /proc
mount -o remount,bind,ro /
mount -t tmpfs -o size=1g none /dev/shm
mkdir /dev/shm/program
mount --bind "$1" /dev/shm/program
mount -o remount,bind,rw /dev/shm/program
mount -t tmpfs -o size=1g none /tmp
mkdir -p "$1"
mount -n --move /dev/shm/program "$1"
rmdir /dev/shm/program
shift
mkdir /tmp/home
cd /tmp/home
for attempt in 1 2 3 4; do "$@" && break; done
"""
"""Runs a command where only /tmp and /dev/shm can be written, and both are the node's own.

Except for the folder of the program, the first argument, where compiled kernels are kept; it may
lie below /tmp. On a
busy machine a node may not start in the half minute that Ray gives it: it is started again.
"""


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    name: str  # of its network namespace
    address: str
    process: subprocess.Popen[bytes]  # ``ray start --block``

    def command(self, arguments: Sequence[str]) -> list[str]:
        """What runs ``arguments`` on this node."""
        enter = ["nsenter", "--net", "--mount", f"--target={self.process.pid}"]
        enter += [f"--pid=/proc/{self.process.pid}/ns/pid_for_children"]
        return [*enter, "env", "-C", "/tmp/home", *arguments]

    def lose_power(self) -> None:
        """Kill everything that runs on this node."""
        _kill_all(self.name)
        self.process.wait()

    def kill_raylet(self) -> None:
        """Kill Ray's daemon alone; ``ray start`` then ends the node."""
        for pid in _list_processes(self.name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.name() == "raylet":
                    process.kill()


@dataclass(frozen=True)
class Cluster:
    """A head without CPUs and its workers."""

    bridge: str  # this machine's address, as the nodes see it
    token: str
    environment: Mapping[str, str]  # of a process on a node, or of one that talks to the cluster
    nodes: list[Node]  # the head is the first
    start_node: Callable[[int, int], Node]  # by number; returns when so many nodes are alive
    has_redis: bool  # whether the head keeps the state of the cluster in a Redis beside it

    @property
    def head(self) -> str:
        return self.nodes[0].address

    @property
    def jobs(self) -> str:
        """Address of the job server."""
        return f"http://{self.head}:8265"

    def restart_head(self) -> None:
        """Start the head again after it lost its power: an empty machine of the same address."""
        alive = [node for node in self.nodes[1:] if node.process.poll() is None]
        self.nodes[0] = self.start_node(0, len(alive) + 1)


def find_missing() -> str:
    """What this machine lacks for such nodes, or nothing."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    lacking = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if lacking:
        return f"needs {', '.join(lacking)} for network namespaces"
    python = Path(sys.prefix)
    if Path("/tmp") in python.parents and PROGRAM not in python.parents:
        return "needs a Python outside of /tmp, of which each node has its own"
    probe = f"dff-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return "may not make network namespaces" if made.returncode else ""


@contextmanager
def separate_nodes(
    folder: Path, *, workers: int, variables: Mapping[str, str]
) -> Iterator[Cluster]:
    """A head and workers of one CPU each, with token authentication; always stopped.

    ``folder``: for the log of Ray's processes. ``variables``: environment of every node, as an
    image or a role would give it.
    """
    token = secrets.token_hex(16)
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    dropped = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "AWS_ENDPOINT_URL")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    environment |= auth | {"HOME": "/tmp/home", "TMPDIR": "/tmp", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = path_without_program()
    environment |= variables
    nodes: list[Node] = []
    log = folder / "nodes.log"
    with ExitStack() as stack:
        network = stack.enter_context(_network(workers + 1))
        state = _keep_state(network.bridge, folder, stack)
        places = list(network.nodes.items())
        head = places[0][1]

        def start(number: int, alive: int) -> Node:
            name, address = places[number]
            own = (
                [
                    "--head",
                    "--port=6379",
                    "--num-cpus=0",
                    f"--dashboard-host={address}",
                    "--no-monitor",
                ]
                if number == 0
                else [f"--address={head}:6379", "--num-cpus=1"]
            )
            program = PROGRAM / "tests" / "ray_forks" / "node.py"
            ray = [sys.executable, str(program), "start", "--block", *own]
            ray += [f"--node-ip-address={address}", f"--object-store-memory={80 << 20}"]
            ray += ["--include-log-monitor=false"]  # it sends drivers what workers print
            isolate = ["ip", "netns", "exec", name]
            isolate += ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
            with log.open("ab") as out:
                process = subprocess.Popen(
                    [*isolate, "sh", "-c", _OWN_DISK, "sh", str(PROGRAM), *ray],
                    env=environment | (state if number == 0 else {}),
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            stack.callback(stop_node, process)
            wait_for_nodes(f"http://{head}:8265", token, alive, [process], log)
            return Node(name, address, process)

        # One after another: each gives up when it takes half a minute to start.
        for number in range(len(places)):
            nodes.append(start(number, number + 1))
        yield Cluster(network.bridge, token, environment, nodes, start, bool(state))


def _keep_state(address: str, folder: Path, stack: ExitStack) -> dict[str, str]:
    """Variables of a head that keeps its state in a Redis at ``address``; none without Redis."""
    program = shutil.which("redis-server")
    if program is None:
        return {}
    command = [program, "--bind", address, "--protected-mode", "no", "--dir", str(folder)]
    process = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return {"RAY_REDIS_ADDRESS": f"{address}:6379"}


@dataclass(frozen=True)
class _Network:
    bridge: str  # address of this machine
    nodes: Mapping[str, str]  # address by name of the namespace


@contextmanager
def _network(count: int) -> Iterator[_Network]:
    """Namespaces, each with a cable to a bridge."""
    tag = f"{os.getpid():x}"  # an interface's name has at most 15 characters
    prefix = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    bridge = f"dff{tag}"
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("address", "add", f"{prefix}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        nodes = {}
        for number in range(count):
            name, cable = f"dff-{tag}-{number}", f"d{tag}n{number}"
            _ip("netns", "add", name)
            stack.callback(_remove_namespace, name)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", cable, "master", bridge, "up")
            nodes[name] = f"{prefix}.{number + 2}"
            _ip("-n", name, "address", "add", f"{nodes[name]}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "route", "add", "default", "via", f"{prefix}.1")
        yield _Network(f"{prefix}.1", nodes)


def _remove_namespace(name: str) -> None:
    """With whatever still runs in it: a node that was killed leaves its children."""
    _kill_all(name)
    _ip("netns", "del", name)


def _list_processes(name: str) -> list[int]:
    """Ids of the processes in a network namespace."""
    found = subprocess.run(
        ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def _kill_all(name: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = _list_processes(name)
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
