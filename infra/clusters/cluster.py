"""Ray clusters: connect to one or start a private local one; submit commands as jobs."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dff.face.errors import BadClusterAddress, ClusterError
from dff.face.extras import require_extra
from dff.infra.clusters.capacity import (
    NodeResources,
    WorkerShape,
    count_places,
    describe_nodes,
    find_misfit,
)
from dff.infra.clusters.socket_folder import SOCKET_BYTES, find_short_folder, fits
from dff.infra.files import check_output_folder
from dff.infra.redaction import hide_secrets

with require_extra("synthesis"):
    import aiohttp
    import ray
    import requests
    from ray._common.utils import get_default_ray_temp_dir
    from ray._private.services import find_gcs_addresses
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
    from ray.exceptions import RayError
    from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
    from ray.util import placement_group_table
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_log = logging.getLogger(__name__)

# Bytes. Shards go to storage, so the object store carries only a model and small records.
OBJECT_STORE = 128 << 20
CONNECT_TIMEOUT = 10.0  # seconds until a silent address counts as unreachable
GCS_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"  # how often a node tries to reach its head
JOIN_WAIT = 15.0  # seconds until a worker that fits on no node is refused
JOB_LOST = "failed to get job supervisor"  # Ray's words for a job whose node is gone
NO_JOB_AGENT = "No available agent to submit job"  # Ray's words for a head that starts no jobs
NODE_GROUP = "ray.io/node-group"  # label of nodes that an autoscaler or operator has started
NICENESS = "RAY_worker_niceness"
"""Increment of the workers' niceness. Ray's default of 15 starves them beside other work of the
machine; ``nice dff ...`` has the same effect on demand."""
SESSION_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
"""The longest path of a socket below Ray's folder."""
PID_BYTES = 4  # of the number of a process
_CLUSTER_ERRORS = (
    RayError,
    RuntimeError,
    ValueError,
    OSError,
    requests.RequestException,
    aiohttp.ClientError,
)


@contextmanager
def connected(
    address: str | None, *, workers: int | None = None, env: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Ray for the length of a ``with`` block: the cluster at ``address``, or without one a private
    local Ray.

    ``address`` is ``host:port`` of a head node, ``ray://host:port``, or ``auto`` for the cluster
    this process runs in. A local Ray has ``workers`` CPUs (default: all of this machine) and
    workers as nice as this process; a cluster has its own. ``env`` holds environment variables for
    the processes of a local Ray. A signal to this process's group does not reach them: it would end
    Ray before this process can end its work there. What was already connected stays as it is and
    stays connected.

    Raises ClusterError when the address can't be reached or refuses us.
    """
    if ray.is_initialized():
        yield
        return
    # a job's own environment names its cluster in RAY_ADDRESS: only "auto" may listen to it
    hidden: dict[str, str | None] = {} if address == "auto" else {"RAY_ADDRESS": None}
    if address is not None and GCS_ATTEMPTS not in os.environ:
        hidden[GCS_ATTEMPTS] = (
            # of 40 seconds: by default a port where something else listens takes a quarter hour
            "1"
        )
    if address is None:
        # Ray's processes inherit these. With variables in a runtime environment each worker would
        # be two programs one after the other, a second later.
        hidden |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            NICENESS: os.environ.get(NICENESS, "0"),
            **_private_token(),
            **(env or {}),
        }
    terminate = signal.getsignal(signal.SIGTERM)
    with _environment(hidden), _session_folder(address) as folder:
        with _without_alarm():
            _start_ray(address, workers, folder)
            if threading.current_thread() is threading.main_thread() and terminate is not None:
                # Ray's own handler writes the stacks of its threads and aborts
                signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            ray.shutdown()


def _start_ray(address: str | None, workers: int | None, folder: str | None) -> None:
    """Start a local Ray with its sockets in ``folder``, or connect to the one at ``address``.

    Raises ClusterError as ``connected``.
    """
    try:
        if address is None:
            with _children_leave_group():
                ray.init(
                    address="local",
                    _temp_dir=folder,
                    num_cpus=workers,
                    object_store_memory=OBJECT_STORE,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
        else:
            if address != "auto":
                _reach(address)
                check_own_node(address)
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except ClusterError:
        raise
    except Exception as error:  # Ray raises a bare one when a node does not start in time
        where = address or "this machine"
        raise ClusterError(hide_secrets(f"no Ray at {where}: {error}")) from error


def list_nodes() -> list[NodeResources]:
    """The nodes of the connected cluster that are alive."""
    return [
        NodeResources(
            str(node["NodeManagerAddress"]),
            float(node["Resources"].get("CPU", 0)),
            float(node["Resources"].get("GPU", 0)),
            NODE_GROUP in (node.get("Labels") or {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def wait_for_room(
    shape: WorkerShape, workers: int, *, patience: float = JOIN_WAIT, pause: float = 0.5
) -> None:
    """Return as soon as the connected cluster can hold ``workers`` of this shape, or ``patience``
    seconds have passed.

    Then a warning says what is missing, as nodes may still join. Raises ClusterError when no node
    can hold even one worker, although there are nodes for workers and nothing starts others.
    """
    end = time.monotonic() + patience
    while count_places(nodes := list_nodes(), shape) < workers and time.monotonic() < end:
        time.sleep(pause)
    if misfit := find_misfit(nodes, shape):
        if any(node.cpus or node.gpus for node in nodes) and not any(n.managed for n in nodes):
            raise ClusterError(f"{misfit}; ask for less (--cpus-per-worker, --gpus-per-worker)")
        _log.warning("%s; waiting for nodes", misfit)
    elif (places := count_places(nodes, shape)) < workers:
        _log.warning(
            "there is room for %d of %d workers of %s on %s; waiting for more nodes",
            places, workers, shape, describe_nodes(nodes),
        )  # fmt: skip


def find_reserved(shape: WorkerShape) -> set[str]:
    """Ids of the connected cluster's placement groups that hold places for workers of this shape.

    Workers that are to run together get their places before their processes start, which then load
    what they need: on a busy machine for half a minute.
    """
    return {
        key
        for key, group in placement_group_table().items()
        if group["state"] == "CREATED"
        and all(
            (place.get("CPU", 0.0), place.get("GPU", 0.0)) == (shape.cpus, shape.gpus)
            for place in group["bundles"].values()
        )
    }


def describe_free_resources(shape: WorkerShape) -> str:
    """A message that says why workers of this shape wait on the connected cluster."""
    free = ray.available_resources()
    nodes = list_nodes()
    cpus, gpus = (free.get(name, 0.0) for name in ("CPU", "GPU"))
    resources = f"{cpus:g} CPUs and {gpus:g} GPUs of {describe_nodes(nodes)}"
    if cpus < shape.cpus or gpus < shape.gpus:
        return f"a worker needs {shape}; free are {resources}"
    # what is free in total may lie on several nodes, or nothing but time may be missing
    return (
        f"a worker needs {shape} on one node, and free in total are {resources}: either no single "
        "node has them free, or Ray is still giving places to the workers"
    )


def check_shared(folder: Path, option: str) -> None:
    """Raises ClusterError unless all nodes of the connected cluster see this machine's ``folder``,
    which is made; the error names the command's ``option`` that chooses another.

    Otherwise what a node writes there would be lost with it. Raises StorageError where this machine
    can't write.
    """
    check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".dff-seen-") as marker:
        apart = find_nodes_without(Path(marker.name))
    if apart:
        raise ClusterError(_tell_apart(apart, folder, option))


def check_visible(path: Path, option: str) -> None:
    """Raises ClusterError unless all nodes of the connected cluster see ``path`` to read it."""
    if apart := find_nodes_without(path):
        raise ClusterError(_tell_apart(apart, path, option))


def _tell_apart(nodes: Sequence[str], path: Path, option: str) -> str:
    return (
        f"{', '.join(nodes[:3])}{', ...' * (len(nodes) > 3)}: this node does not see {path}: "
        f"give {option} as s3://bucket/prefix, or as a folder that all nodes share"
    )


def find_nodes_without(path: Path) -> list[str]:
    """Addresses of the connected cluster's nodes that do not see a path of this machine.

    Nodes that leave meanwhile, or do not answer, are not among them.
    """

    @ray.remote(num_cpus=0)
    def sees(path: str) -> bool:
        return os.path.exists(path)

    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = {
        sees.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(str(path)): str(node["NodeManagerAddress"])
        for node in nodes
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=60.0)
    apart = set()
    for ref in answered:
        with suppress(RayError):
            if not ray.get(ref):
                apart.add(asked[ref])
    return sorted(apart)


def submit(
    argv: Sequence[str],
    address: str,
    *,
    submission_id: str | None = None,
    working_dir: Path | None = None,
    py_modules: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    wait: bool = True,
    on_line: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[str], None] = lambda bar: None,
    insecure: bool = False,
    module: str | None = None,
    cpus: float = 0,
) -> str:
    """Run a command on the head node of the cluster whose job server is ``address``
    (``http://host:8265``).

    The job's name comes from the command (``job_name``), so sending a command again while it runs
    follows the running job, and sending it after it ended starts another attempt. ``submission_id``
    overrides the name. ``working_dir`` and ``py_modules`` are folders to upload for the job and its
    workers; without them the cluster's image must hold the program. With ``module`` the command is
    the arguments of that Python module, run by the Python that runs Ray on the head: its PATH need
    not know the program. ``env`` is stored readable in
    the job's record: never put a secret there. ``on_line`` sees the job's name, then each line of
    its log, except for progress bars, which ``on_progress`` sees. ``cpus``: reserved for the
    command itself, on any node; without them it runs on the head.

    Returns the status: "SUCCEEDED", or with ``wait=False`` whatever holds right after submission.
    Interrupting a wait leaves the job running.

    Raises ClusterError when the server can't be reached or refuses, when the job fails or is
    stopped, and, unless ``insecure``, when a server beyond this machine would be used without token
    authentication: whoever reaches an unauthenticated job server runs any code on it
    (CVE-2023-48022).
    """
    _check_trust(address, insecure)
    runtime_env = _build_runtime_env(working_dir, py_modules, env)
    name = None
    try:
        client = _connect(address)
        name, running = (
            _attempt(client, job_name([module, *argv] if module else argv))
            if submission_id is None
            else (submission_id, False)
        )
        if not running:
            if module:
                argv = [_find_python(client), "-m", module, *argv]
            client.submit_job(
                entrypoint=shlex.join(argv),
                submission_id=name,
                runtime_env=runtime_env,
                entrypoint_num_cpus=cpus or None,
            )
        on_line(f"job {name} at {hide_secrets(address)}")
        if wait:
            _follow(client, name, on_line, on_progress)
        details = client.get_job_info(name)
    except _CLUSTER_ERRORS as error:
        raise _explain_server_error(address, name, error) from error
    if details.status in (JobStatus.FAILED, JobStatus.STOPPED):
        raise _explain_end(name, details)
    return str(details.status.value)


def _build_runtime_env(
    working_dir: Path | None, py_modules: Sequence[Path], env: Mapping[str, str] | None
) -> dict[str, object]:
    """What Ray sets up for a job: environment variables and uploaded folders."""
    # A bar that is redrawn ten times a second would fill the log.
    out: dict[str, object] = {"env_vars": {"TQDM_MININTERVAL": "2"} | dict(env or {})}
    if working_dir is not None:
        out["working_dir"] = str(working_dir)
    if py_modules:
        out["py_modules"] = [str(path) for path in py_modules]
    return out


def _explain_server_error(address: str, name: str | None, error: Exception) -> ClusterError:
    """The error of a job server that fails; ``name``: of the job, once it has one."""
    reason = str(error).partition("\n")[0]
    if name is None:
        why = f"the job server at {address} failed: {reason}"
    elif NO_JOB_AGENT in reason:
        why = (
            f"the head at {address} has no job agent, the process that starts jobs: just after "
            "`ray start` wait a minute; else install ray[default] there, start the head again, and "
            "look for its agent's error in /tmp/ray/session_latest/logs/dashboard_agent.log (a "
            "port in use: --dashboard-agent-listen-port)"
        )
    else:
        why = (
            f"{address} no longer answers: if its head has stopped, job {name} is gone; the same "
            f"command then starts it again and keeps what is stored ({reason})"
        )
    return ClusterError(hide_secrets(why))


def _explain_end(name: str, details: JobDetails) -> ClusterError:
    """The error of a job that failed or was stopped."""
    # Ray repeats the log in its message, which `dff submit` has shown
    reason = str(details.message or "").partition("\n")[0].partition(", last available logs")[0]
    if JOB_LOST in reason:
        return ClusterError(
            f"job {name} was lost with its node: the same command starts it again and keeps what "
            "is stored"
        )
    return ClusterError(hide_secrets(f"job {name} {details.status.lower()}: {reason}"))


@dataclass(frozen=True)
class JobSummary:
    """A job of a cluster."""

    name: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    begun: float | None  # Unix seconds
    ended: float | None
    command: str  # without secrets


def list_jobs(address: str, *, insecure: bool = False) -> list[JobSummary]:
    """The submitted jobs of the cluster whose job server is ``address``, the newest first.

    Raises ClusterError as ``submit``.
    """
    _check_trust(address, insecure)
    try:
        jobs = _connect(address).list_jobs()
    except _CLUSTER_ERRORS as error:
        raise _explain_server_error(address, None, error) from error
    found = [
        JobSummary(
            job.submission_id,
            str(job.status.value),
            job.start_time / 1000 if job.start_time else None,
            job.end_time / 1000 if job.end_time else None,
            hide_secrets(job.entrypoint),
        )
        for job in jobs
        if job.submission_id
    ]
    return sorted(found, key=lambda job: job.begun or float("inf"), reverse=True)


def _check_trust(address: str, insecure: bool) -> None:
    host = _job_server_host(address)
    if insecure or _is_loopback(host) or os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        return
    raise ClusterError(
        f"{hide_secrets(address)} is not on this machine and RAY_AUTH_MODE is not 'token': "
        "set RAY_AUTH_MODE=token and give the cluster's token in RAY_AUTH_TOKEN or "
        "RAY_AUTH_TOKEN_PATH, or allow an insecure submission explicitly"
    )


def _connect(address: str) -> JobSubmissionClient:
    _reach(address)
    # the client would silently prefer these variables to the address it is given
    with _environment({"RAY_ADDRESS": None, "RAY_API_SERVER_ADDRESS": None}):
        return JobSubmissionClient(address)


def job_name(argv: Sequence[str]) -> str:
    """The same name for the same command: ``dff-synthesize-1f3870be274f``."""
    words = [Path(argv[0]).name, *argv[1:2]]
    digest = hashlib.sha256("\0".join(argv).encode()).hexdigest()[:12]
    return "-".join(
        ["".join(c for c in word.lower() if c.isalnum()) or "job" for word in words] + [digest]
    )


def _find_python(client: JobSubmissionClient) -> str:
    """The Python that runs Ray's workers on the head node; "python" when the server hides it.

    Ray's client has no such question: the dashboard's page of the nodes asks it.
    """
    answer = client._do_request("GET", "/nodes?view=summary")
    nodes = answer.json().get("data", {}).get("summary", []) if answer.ok else []
    option = "--python_worker_command="
    for node in nodes:
        words = node.get("cmdline") or []
        commands = [word.removeprefix(option) for word in words if word.startswith(option)]
        if "--head" in words and commands:
            return shlex.split(commands[0])[0]
    return "python"


def _attempt(client: JobSubmissionClient, name: str) -> tuple[str, bool]:
    """(name of the job to follow or start, whether it runs already): a cluster never takes one name
    twice.
    """
    attempts = {
        job.submission_id: job
        for job in client.list_jobs()
        if (job.submission_id or "").startswith(name)
    }
    running = [key for key, job in attempts.items() if not job.status.is_terminal()]
    return (str(running[0]), True) if running else (f"{name}-{len(attempts) + 1}", False)


def _follow(
    client: JobSubmissionClient,
    name: str,
    on_line: Callable[[str], None],
    on_progress: Callable[[str], None],
) -> None:
    """Hand on each line of a job's log until the job ends, over dropped connections."""
    seen = 0  # characters handed on, because each new connection tells the log from its beginning
    rest = ""

    def hand_on(line: str) -> None:
        if _OF_RAY.match(line) is None:
            (on_progress if is_progress(line) else on_line)(line)

    async def tail() -> None:
        nonlocal seen, rest
        told = 0
        async for chunk in client.tail_job_logs(name):
            new = chunk[max(0, seen - told) :]
            told += len(chunk)
            seen = max(seen, told)
            lines, rest = split_log(rest + new)
            for line in lines:
                hand_on(line)

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # each connection
    while True:
        try:
            asyncio.run(tail())
        except (RuntimeError, aiohttp.ClientError) as error:
            dropped: Exception | None = error
        else:
            dropped = None
        if client.get_job_status(name).is_terminal():
            break
        time.sleep(1.0 if dropped else 0.2)
    if rest:
        hand_on(rest)


def split_log(text: str) -> tuple[list[str], str]:
    """(whole lines of a log, the rest of it): a bar that is drawn again begins a line, too."""
    *lines, rest = re.split(r"\r?\n|\r", text)
    return [line for line in lines if line], rest


def is_progress(line: str) -> bool:
    """Whether a line of a log is a progress bar of tqdm."""
    return _BAR.match(line) is not None


_OF_RAY = re.compile(r"\S+ \S+\tINFO job_manager\.py:")
"""Lines that Ray itself writes into the log of a job."""
_BAR = re.compile(r"(?:[^|%]*: *)?\s*\d{1,3}%\|[^|]*\|\s*[\d.]+[kMG]?/[\d.]+[kMG]? \[")


def _job_server_host(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadClusterAddress(
            hide_secrets(
                f"the address of a job server looks like http://host:8265, not {address!r}"
            )
        )
    return parts.hostname


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reach(address: str) -> None:
    """Fail within seconds, and by name, where Ray's own clients would try for minutes."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    if not parts.hostname or port is None:
        raise BadClusterAddress(
            hide_secrets(f"a Ray address is host:port, ray://host:port or auto, not {address!r}")
        )
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        raise ClusterError(hide_secrets(f"no Ray at {address}: {error}")) from error


def check_own_node(address: str) -> None:
    """Raises ClusterError where Ray's library would abort the process: a driver connects to a
    cluster through a node on its own machine.
    """
    if address.startswith("ray://"):  # a client needs no node
        return
    host, _, port = address.rpartition(":")
    hosts = {host, *_resolve(host)}
    for found in find_gcs_addresses():
        other, _, other_port = found.rpartition(":")
        if other_port == port and (_is_loopback(host) or hosts & {other, *_resolve(other)}):
            return
    raise ClusterError(
        f"this machine is no node of the cluster at {hide_secrets(address)}: send the command "
        f"there (`dff submit ... --address http://{host}:8265`), make this machine a node "
        f"(`ray start --address={hide_secrets(address)}`), or say --address ray://{host}:10001"
    )


def _resolve(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


@contextmanager
def _session_folder(address: str | None) -> Iterator[str | None]:
    """The folder for a local Ray's sockets and logs: None for its own choice where that will do.

    A short one, removed in the end, where the path of the folder for temporary files is too long
    for a socket, as on clusters with a scheduler. Raises ClusterError where there is none.
    """
    usual = get_default_ray_temp_dir()
    if address is not None or fits(usual, SESSION_BYTES):
        yield None
        return
    parent = find_short_folder()
    if parent is None:
        raise ClusterError(
            f"the path {usual} is too long for Ray's sockets: set RAY_TMPDIR to a folder whose "
            f"path has at most {SOCKET_BYTES - SESSION_BYTES - len('/ray')} characters"
        )
    folder = tempfile.mkdtemp(prefix="ray-", dir=parent)
    _log.warning("the path %s is too long for Ray's sockets: Ray takes %s", usual, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _private_token() -> dict[str, str | None]:
    """Variables that give a local Ray a token of its own, unless the user has chosen how Ray
    authenticates.

    Even a local Ray listens on all of the machine's addresses. Its own default would leave a token
    file in the user's home, which changes how every later ``ray`` command on the machine behaves.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


_forking = threading.local()


def _leave_group() -> None:
    """In a child before it becomes another program: begin a process group, where that is wanted."""
    pipe = getattr(_forking, "pipe", None)
    if pipe is not None:
        os.setpgid(0, 0)
        os.write(pipe, os.getpid().to_bytes(PID_BYTES))


# Ray's processes are started without a choice of the group, but by a function in the child, and
# so Python calls this there.
os.register_at_fork(after_in_child=_leave_group)


@contextmanager
def _children_leave_group() -> Iterator[None]:
    """Give each process that Ray starts from this thread a process group of its own.

    If the block fails, these groups are ended. Ray that is interrupted while it starts ends its own
    processes and not those of its raylet, two agents, which would live for another minute.
    """
    reading, _forking.pipe = os.pipe()  # by which the children tell their groups
    try:
        yield
    except BaseException:
        os.set_blocking(reading, False)
        with suppress(BlockingIOError):  # there is no child
            told = os.read(reading, 1 << 16)
            for at in range(0, len(told), PID_BYTES):
                with suppress(ProcessLookupError):
                    os.killpg(int.from_bytes(told[at : at + PID_BYTES]), signal.SIGTERM)
        raise
    finally:
        os.close(reading)
        os.close(_forking.pipe)
        _forking.pipe = None


@contextmanager
def _without_alarm() -> Iterator[None]:
    """End in peace where SIGTERM ends a block that starts Ray.

    Ray's core calls this process's handler, but sets an alarm first, which aborts the process three
    seconds later. On a busy machine Ray's processes take longer to end.
    """
    try:
        yield
    except BaseException:
        signal.alarm(0)
        raise


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables set (or with None unset) for a while; Ray's cached view of them
    follows.
    """
    before = {key: os.environ.get(key) for key in changes}
    _set_environment(changes)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
    # Ray reads the authentication mode and token once per process and has no public way to say that
    # they changed
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
