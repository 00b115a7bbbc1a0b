"""The ``dff`` command line: the list of its commands, and how errors are reported."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from dff.commands.align import align
from dff.commands.calibrate import calibrate
from dff.commands.demo import demo
from dff.commands.evaluate import evaluate
from dff.commands.export import export
from dff.commands.fit_expressions import fit_expressions
from dff.commands.fit_landmark_offsets import fit_landmark_offsets
from dff.commands.inspect import inspect
from dff.commands.jobs import jobs
from dff.commands.label import label
from dff.commands.match import match
from dff.commands.models import models
from dff.commands.serve import serve
from dff.commands.status import status
from dff.commands.submit import submit
from dff.commands.synthesize import synthesize
from dff.commands.train import train
from dff.commands.train_cascade import train_cascade
from dff.commands.train_detector import train_detector
from dff.exit_status import INTERRUPTED, TERMINATED
from dff.face.errors import DffError, ServiceError
from dff.face.private_folder import set_missing_temporary_folder
from dff.infra.files import check_local
from dff.infra.printing import escape_unprintable_output, printable
from dff.infra.redaction import HidingFormatter, hide_secrets

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=(
        "Deep Face Feature: from face photos to a served 3D face aligner.\n\n"
        "Align faces with the weights that ship ([bold]align[/bold], [bold]serve[/bold]), or "
        "synthesize a dataset, train on it and evaluate the result.\n\n"
        "Start with: dff demo"
    ),
)
PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Use": (demo, align, match, serve, export),
    "Data": (label, synthesize, status, inspect),
    "Training and evaluation": (
        train,
        train_cascade,
        train_detector,
        calibrate,
        fit_expressions,
        fit_landmark_offsets,
        evaluate,
    ),
}


def with_local_files(command: Callable[..., None]) -> Callable[..., None]:
    """The command, whose files are on this machine: it refuses an address in place of a path."""

    @wraps(command)
    def run(**arguments: object) -> None:
        for value in arguments.values():
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, Path):
                    check_local(each)
        command(**arguments)

    return run


for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(with_local_files(command))
app.add_typer(models, name="models", rich_help_panel="Use")
app.command(
    rich_help_panel="Clusters",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(with_local_files(submit))
app.command(rich_help_panel="Clusters")(jobs)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dff {version('deep-face-feature')}")
        raise typer.Exit


@app.callback()
def options(
    version_asked: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Run the command; an expected error is one line on standard error, and so is a signal.

    The exit status is 2 for a ValueError, a mistake in the arguments, ``TERMINATED`` after SIGTERM,
    and 1 for other errors.
    """
    escape_unprintable_output()
    set_missing_temporary_folder()
    logging.basicConfig(level=logging.WARNING)
    for name in ("dff.face.numba_cache", "dff.infra.files"):
        logging.getLogger(name).setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(HidingFormatter("%(levelname)s %(name)s: %(message)s"))
    terminated = threading.Event()

    def terminate(number: int, frame: object) -> None:
        """End what is in work as an error would, so that nothing of it is left."""
        terminated.set()
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        app(prog_name="dff")
    except (SystemExit, DffError, ValueError, OSError, MemoryError) as error:
        # While Ray starts it exits by itself; within its calls the exit becomes another one.
        by_ray = isinstance(error, SystemExit) and error.code == signal.SIGTERM
        if terminated.is_set() or by_ray:
            typer.secho("dff: stopped by SIGTERM", fg="red", err=True)
            end(TERMINATED)
        if isinstance(error, SystemExit):
            if error.code == INTERRUPTED:
                typer.secho("dff: interrupted", fg="red", err=True)
                end(INTERRUPTED)
            raise
        typer.secho(hide_secrets(f"dff: {describe_error(error)}"), fg="red", err=True)
        raise SystemExit(2 if isinstance(error, ValueError) else 1) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def end(status: int) -> NoReturn:
    """End the process after a signal.

    Where Ray is loaded, without the end of the interpreter: threads of Ray that a signal met while
    it started run on, and abort or crash the process meanwhile.
    """
    if "ray" in sys.modules:
        atexit._run_exitfuncs()  # Ray ends its processes there
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status) from None


def describe_error(error: Exception) -> str:
    """An expected error in words, on one line.

    A DffError is named by its class, as in the guide; a ValueError is a mistake of the user, and
    an OSError names its file.
    """
    match error:
        case ServiceError() if error.status == 401:
            text = f"{error.class_name}: {error} Give it by --key or DFF_API_KEY."
        case DffError():
            text = f"{error.class_name}: {error}"
        case MemoryError():
            text = f"not enough memory: {error}" if str(error) else "not enough memory"
        case OSError() if error.strerror:
            names = [str(name) for name in (error.filename, error.filename2) if name is not None]
            text = ": ".join([" and ".join(names), error.strerror] if names else [error.strerror])
        case _:
            text = str(error) or type(error).__name__
    return printable(" ".join(line.strip() for line in text.splitlines() if line.strip()))
