"""Workers of pytest-xdist as forks of a process that has imported all tests."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def start_server(tests: Sequence[str]) -> str:
    """The command that takes the place of ``python`` for workers that run ``tests``.

    Where the server fails, its messages are shown and workers start as usual.
    """
    path = Path(tempfile.mkdtemp(prefix="dff-tests-")) / "socket"  # closed to other users
    ready, signal = os.pipe()
    command = [sys.executable, "-m", "tests.worker_forks.server", str(path), str(os.getpid())]
    with tempfile.TemporaryFile() as log:
        subprocess.Popen(
            [*command, str(signal), *tests],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[signal],
            env=os.environ | {name: os.environ.get(name, "1") for name in THREADS},
        )
        os.close(signal)
        if not os.read(ready, 1):
            log.seek(0)
            said = log.read().decode(errors="replace")
            shutil.rmtree(path.parent)
            print(f"each worker imports the tests itself, since this failed: {said}")
        os.close(ready)
    return shlex.join([sys.executable, str(Path(__file__).with_name("client.py")), str(path)])
