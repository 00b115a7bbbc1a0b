"""``dff submit``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from dff.commands.synthesize import synthesize
from dff.commands.train import train
from dff.face.extras import require_extra

INPUTS = {
    "photos": "PHOTOS",
    "dataset": "DATASET",
    "model": "--model",
    "start": "--start",
    "evaluate_on": "--evaluate-on",
}
"""Parameters of both commands that may be a path to read, as people write them."""
NO_FILES = ("", "none")
"""What such a parameter may say without meaning a path."""


class Submittable(StrEnum):
    """Commands that run on a cluster as a job."""

    synthesize = "synthesize"
    train = "train"


COMMANDS: dict[Submittable, Callable[..., None]] = {
    Submittable.synthesize: synthesize,
    Submittable.train: train,
}


def submit(
    context: typer.Context,
    command: Annotated[
        Submittable,
        typer.Argument(help="The command to run on the cluster, followed by its own arguments."),
    ],
    address: Annotated[str, typer.Option(help="Job server of the cluster, http://host:8265.")],
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to upload for the job, when the cluster's image has no dff."),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return as soon as the job is accepted.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a remote server without a token.")
    ] = False,
) -> None:
    """Submit `dff synthesize` or `dff train` to a Ray cluster as a job, and follow its log.

    The cluster must reach inputs and outputs, for example at s3:// or in a folder that all nodes
    share, by its whole path. The Python that runs Ray on the head must have dff installed.

    [dim]Example:[/dim]

    dff submit synthesize s3://faces/raw s3://faces/views --address http://head:8265
    """
    with require_extra("synthesis" if command is Submittable.synthesize else "train"):
        from dff.infra.cluster import submit as submit_job

    check_arguments(command, context.args, uploaded=working_dir)
    status = submit_job(
        [command.value, *context.args, "--address", "auto"],
        address,
        module="dff",
        working_dir=working_dir,
        wait=not no_wait,
        on_line=typer.echo,
        insecure=insecure,
    )
    typer.echo(status)


def check_arguments(
    command: Submittable, arguments: Sequence[str], *, uploaded: Path | None
) -> None:
    """Raise ValueError for what the command would refuse, or not find, on the cluster.

    A relative path would mean a folder of the head node, unless the file is in ``uploaded``.
    Passwords are refused, since everyone who may see the cluster's jobs may read a command.
    """
    from dff.infra.redaction import has_secret, hide_secrets

    for argument in arguments:
        if has_secret(argument):
            raise ValueError(
                f"{hide_secrets(argument)}: a job's command can be read on the cluster, so it may "
                "hold no password: set it in the environment of the cluster's nodes"
            )
    program = typer.Typer(add_completion=False)
    program.command()(COMMANDS[command])
    given = get_command(program).make_context(command.value, list(arguments)).params
    outputs = {"out": "OUT" if command is Submittable.synthesize else "--out"}
    for name, shown in (INPUTS | outputs).items():
        for value in _values(given.get(name)):
            named = name == "model" and "/" not in value and not Path(value).suffix
            if named or not _is_relative(value):
                continue
            if name in INPUTS and uploaded is not None and (uploaded / value).exists():
                continue
            raise ValueError(
                f"{shown} {value} is a relative path, which the cluster doesn't know: give "
                "s3://bucket/prefix, or the whole path of a folder that all its nodes share"
            )


def _values(value: object) -> Iterable[str]:
    if value is None:
        return ()
    return map(str, value) if isinstance(value, list | tuple) else (str(value),)


def _is_relative(value: str) -> bool:
    """Whether a value is a relative path, and no address or name of what ships."""
    from dff.infra.weights import NAMED, REGISTERED

    if "://" in value or value.startswith((REGISTERED, "/")):
        return False
    return value.lower() not in NO_FILES and value not in NAMED
