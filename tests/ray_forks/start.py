"""Ray's workers as forks of a process that has imported their libraries.

A process of a Ray training imports torch and Ray for three seconds, and a training has eight.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from ray._private import node, ray_constants

CLIENT = Path(__file__).with_name("client.py")
STARTING = 120.0  # seconds


def start_server(path: Path, owner: int, log: Path) -> None:
    """Start a server that listens at ``path`` and ends with the process ``owner``."""
    with log.open("wb") as file:
        command = [sys.executable, "-m", "tests.ray_forks.server", str(path), str(owner)]
        server = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdout=file, stderr=file, start_new_session=True
        )
    deadline = time.monotonic() + STARTING
    while not path.exists():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@contextmanager
def forked_from(path: Path, *modules: str) -> Iterator[None]:
    """Every Ray that starts meanwhile takes its workers from the server at ``path``.

    ``modules``: of those that import Ray, the ones that workers use. The head starts neither an
    autoscaler nor what sends drivers the logs of workers: both import Ray, and nothing asks them.
    """
    whole = ray_constants.SETUP_WORKER_FILENAME
    ray_constants.SETUP_WORKER_FILENAME = str(CLIENT)
    os.environ["DFF_RAY_FORKS"] = " ".join([str(path), *modules])
    try:
        with (
            patch.object(node.Node, "start_monitor", lambda self: None),
            patch.object(node.Node, "start_log_monitor", lambda self: None),
        ):
            yield
    finally:
        ray_constants.SETUP_WORKER_FILENAME = whole
        del os.environ["DFF_RAY_FORKS"]
