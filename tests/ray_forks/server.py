"""The server that forks Ray's workers: ``python -m tests.ray_forks.server SOCKET OWNER``.

A process of a Ray training imports torch and Ray for three seconds, and a training has eight. Here
one process imports the libraries, and a fork of it for each job imports Ray, whose forks become the
job's workers. Neither runs anything else.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import selectors
import shlex
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from tests.ray_forks.client import send

WITHOUT_RAY = (
    "jsonschema",
    "pandas",
    "pyarrow.fs",
    "pydantic",
    "dff.aligner.align",
    "dff.pipeline.synthesis",
    "dff.trainer.data.views",
    "dff.trainer.train",
)


IDS = 2000
"""Random ids of Ray that are passed over between two forks.

Otherwise they would draw the same ids, and two objects of one id end a worker.
"""


def main(path: str, owner: int) -> None:
    """Hand each connection to the fork of its job, until the process ``owner`` ends."""
    _load(WITHOUT_RAY)
    assert "ray" not in sys.modules
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)
    jobs: dict[str, socket.socket] = {}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        end = selector.register(os.pidfd_open(owner), selectors.EVENT_READ)
        while end not in {key for key, _ in selector.select()}:
            connection, _ = listener.accept()
            wanted, _ = _receive(connection)
            client = _peer(connection)
            stat = Path(f"/proc/{client}/stat").read_text()
            raylet = int(stat.rpartition(")")[2].split()[1])  # its parent
            name = json.dumps([raylet, wanted])
            if name not in jobs:
                job, modules = wanted
                jobs[name], there = socket.socketpair()
                if os.fork() == 0:
                    os.environ.update(job)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    watch = os.pidfd_open(raylet)
                    _enter_namespaces(client)
                    _load(["ray._private.node", *modules])
                    _serve_job(there, watch)
                    os._exit(0)
                there.close()
            try:
                send(jobs[name], "", [connection.fileno()])
            except OSError:  # whose clients become workers themselves
                del jobs[name]
            connection.close()
    os.unlink(path)


def _serve_job(source: socket.socket, raylet: int) -> None:
    """Fork a worker for each connection, until the process of a pidfd ends."""
    selector = selectors.DefaultSelector()
    selector.register(source, selectors.EVENT_READ)
    end = selector.register(raylet, selectors.EVENT_READ)
    workers: dict[int, tuple[int, socket.socket]] = {}  # process and connection, by pidfd
    unique_id = import_module("ray._raylet").UniqueID
    while True:
        for key, _ in selector.select():
            if key == end:
                return
            if key.fileobj is source:
                _, (file,) = _receive(source)
                connection = socket.socket(fileno=file)
                order, files = _receive(connection)
                for _ in range(IDS):
                    unique_id.from_random()
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    source.close()
                    connection.close()
                    _become_worker(order, files)
                with suppress(OSError):
                    connection.send(b"+")
                for file in files:
                    os.close(file)
                watch = os.pidfd_open(pid)
                workers[watch] = pid, connection
                selector.register(watch, selectors.EVENT_READ, watch)
                selector.register(connection, selectors.EVENT_READ, watch)
            elif key.data in workers:  # the worker or its client has ended
                pid, connection = workers.pop(key.data)
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                with suppress(OSError):
                    connection.send(b"%d" % (os.waitstatus_to_exitcode(status) % 256))
                selector.unregister(key.data)
                selector.unregister(connection)
                os.close(key.data)
                connection.close()


def _load(modules: Sequence[str]) -> None:
    gc.disable()
    for name in modules:
        import_module(name)
    gc.enable()
    gc.freeze()


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    header, files, _, _ = socket.recv_fds(connection, 8, 3)
    if not header:
        return None, files
    data = b""
    while len(data) < int.from_bytes(header, "big"):
        data += connection.recv(int.from_bytes(header, "big") - len(data))
    return json.loads(data), files


def _become_worker(order: Any, files: list[int]) -> NoReturn:
    """Run Ray's ``setup_worker.py`` as Python would."""
    arguments, environment, folder, niceness = order
    os.setpgid(0, 0)  # Ray kills a worker's whole group
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.nice(niceness - os.nice(0))
    raylet = import_module("ray._raylet")
    raylet.Config.initialize("")  # from the environment
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    os.execvp = _run_worker  # type: ignore[assignment]
    code = 1
    try:
        _run(Path(find_spec("ray").origin).parent / "_private/workers/setup_worker.py", arguments)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _peer(connection: socket.socket) -> int:
    """Id of the process at the other end, as this one's namespace has it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return struct.unpack("3i", credentials)[0]


def _enter_namespaces(pid: int) -> None:
    """Take part in another process' network, disk and processes; the last holds for children."""
    there = {kind: f"/proc/{pid}/ns/{kind}" for kind in ("pid", "net", "mnt")}
    other = [
        path
        for kind, path in there.items()
        if os.readlink(path) != os.readlink(f"/proc/self/ns/{kind}")
    ]
    for number in [os.open(path, os.O_RDONLY) for path in other]:
        if ctypes.CDLL(None, use_errno=True).setns(number, 0):
            raise OSError(ctypes.get_errno(), f"can't enter the namespaces of {pid}")
        os.close(number)


def _run_worker(file: str, args: list[str]) -> None:
    """What ``setup_worker.py`` gives to bash: ``exec python default_worker.py ...``."""
    _exec, _python, script, *arguments = shlex.split(args[-1])
    _run(Path(script), arguments)


def _run(script: Path, arguments: list[str]) -> None:
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
