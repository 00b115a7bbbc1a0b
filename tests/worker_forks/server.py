"""The server that forks pytest-xdist's workers: ``python -m tests.worker_forks.server SOCKET OWNER
READY TESTS...``.

A worker imports all tests and their libraries, which takes seven seconds, and ten after a change.
Here one process does so, and its forks are the workers.
"""

from __future__ import annotations

import gc
import os
import random
import selectors
import shutil
import signal
import socket
import sys
import types
from pathlib import Path

import pytest

TASKS = Path("/proc/self/task")
JEMALLOC = "jemalloc_bg_thd"  # pyarrow's, which knows of forks


def main(path: str, owner: int, ready: int, tests: list[str]) -> None:
    """Fork a worker for each connection, until the process ``owner`` ends.

    A byte is written to the file ``ready`` when connections are accepted.
    """
    os.environ["PYTEST_XDIST_WORKER"] = "none"  # it has as many threads as a worker
    pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *tests])
    del os.environ["PYTEST_XDIST_WORKER"]
    tasks = {path.parent.name: path.read_text().strip() for path in TASKS.glob("*/comm")}
    del tasks[str(os.getpid())]
    if lost := [name for name in tasks.values() if name != JEMALLOC]:
        sys.exit(f"imports have started threads, which a fork would lack: {lost}")
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    os.write(ready, b"+")
    os.close(ready)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = os.getpid()
    try:
        _serve(listener, owner)
    finally:
        if os.getpid() == server:
            shutil.rmtree(os.path.dirname(path))


def _serve(listener: socket.socket, owner: int) -> None:
    """Return when ``owner`` ends, and in each worker when it has run."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        end = selector.register(os.pidfd_open(owner), selectors.EVENT_READ)
        while end not in {key for key, _ in selector.select()}:
            connection, _ = listener.accept()
            _, files, _, _ = socket.recv_fds(connection, 1, 3)
            if os.fork() == 0:
                listener.close()
                _become_worker(connection, files)
                return
            for file in files:
                os.close(file)
            connection.close()


def _become_worker(connection: socket.socket, files: list[int]) -> None:
    """Run what execnet gives to ``python -c``; the client ends when ``connection`` is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    random.seed()  # which chooses ports, for example
    connection.sendall(b"+")
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__dict__["connection"] = connection  # open as long as this process
    sys.argv = ["-c"]
    exec("import sys;exec(eval(sys.stdin.readline()))", module.__dict__)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
