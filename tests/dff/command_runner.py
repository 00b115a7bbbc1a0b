"""Run the command as a process of its own that need not import the libraries again.

Children are forked from one server, which has imported what commands use and has run nothing else.
A command therefore starts in milliseconds instead of seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

PRELOADED = (
    "dff.commands.app",
    "dff.aligner.align",
    "dff.infra.mlflow.tracking",
    "dff.pipeline.synthesis",
    "dff.pipeline.inspection.inspect",
    "dff.trainer.train",
)
TIMEOUT = 120.0  # seconds


def run_command(*arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``dff ARGUMENTS`` in this folder and environment.

    Raises TimeoutError, and ends the command, when it takes longer than ``TIMEOUT``.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = _server().Process(
            target=_run, args=(arguments, os.getcwd(), dict(os.environ), out, err)
        )
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"dff {' '.join(arguments)} takes longer than {TIMEOUT} s")
        return process.exitcode, out.read_text(), err.read_text()


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _run(
    arguments: tuple[str, ...], folder: str, environment: dict[str, str], out: Path, err: Path
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        number = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(number, stream.fileno())
        os.close(number)
    sys.argv = ["dff", *arguments]
    runpy.run_module("dff", run_name="__main__")
