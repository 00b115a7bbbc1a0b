"""``dff submit``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from dff.commands.calibrate import calibrate
from dff.commands.evaluate import evaluate
from dff.commands.job_progress import JobProgress
from dff.commands.label import label
from dff.commands.synthesize import synthesize
from dff.commands.train import train
from dff.face.extras import require_extra
from dff.infra.networks.weights_names import NAMED, REGISTERED, name_weights

INPUTS = frozenset(
    {"photos", "dataset", "folder", "model", "start", "weights", "labels", "cascade", "evaluate_on"}
)
"""Parameters of the commands that may be a path to read."""
OUTPUTS = frozenset({"out", "json_out", "pictures", "picture", "storage"})
"""Parameters that may be a path to write."""
NO_FILES = ("", "none")
"""Values of such a parameter that are not paths."""
NAME_BYTES = 4
"""Bytes of the digest in the name of a submitted run."""


class Submittable(StrEnum):
    """Commands that run on a cluster as a job."""

    synthesize = "synthesize"
    label = "label"
    train = "train"
    calibrate = "calibrate"
    evaluate = "evaluate"


COMMANDS: dict[Submittable, Callable[..., None]] = {
    Submittable.synthesize: synthesize,
    Submittable.label: label,
    Submittable.train: train,
    Submittable.calibrate: calibrate,
    Submittable.evaluate: evaluate,
}
SPREADING = (Submittable.synthesize, Submittable.train)
"""Commands that run on all nodes; the others run on one of them."""


def submit(
    context: typer.Context,
    command: Annotated[
        Submittable,
        typer.Argument(help="The command to run on the cluster, followed by its own arguments."),
    ],
    address: Annotated[str, typer.Option(help="Job server of the cluster, http://host:8265.")],
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to upload for the job, if dff is not installed on the cluster."),
    ] = None,
    cpus: Annotated[
        int,
        typer.Option(help="CPUs to reserve for a command that runs on one node.", min=1),
    ] = 1,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return as soon as the job is accepted.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a remote server without a token.")
    ] = False,
) -> None:
    """Submit a long command to a Ray cluster as a job, and follow its progress.

    Inputs and outputs must be reachable from the cluster: at s3://, or in a folder that all nodes
    share, given by its absolute path. The Python that runs Ray on the head must have dff installed.
    The same command follows a running job and starts an ended one again: a dataset is completed,
    and a training continues from its last checkpoint.

    [dim]Example:[/dim]

    dff submit synthesize s3://faces/raw s3://faces/views --address http://head:8265
    """
    with require_extra("synthesis" if command is Submittable.synthesize else "train"):
        from dff.infra.clusters.cluster import submit as submit_job

    given = check_arguments(command, context.args, uploaded=working_dir)
    with JobProgress() as progress:
        status = submit_job(
            [command.value, *context.args, *complete_arguments(command, context.args, given)],
            address,
            module="dff",
            working_dir=working_dir,
            wait=not no_wait,
            on_line=progress.show_line,
            on_progress=progress.show_bar,
            insecure=insecure,
            cpus=0 if command in SPREADING else cpus,
        )
    typer.echo(status)


def complete_arguments(
    command: Submittable, arguments: Sequence[str], given: dict[str, Any]
) -> list[str]:
    """The additional arguments of the command: the cluster, and the name of a run to continue.

    The name depends on the command, so that the same command continues the same run.
    """
    if command not in SPREADING:
        return []
    added = ["--address", "auto"]
    if command is Submittable.train and not given.get("name") and not given.get("resume"):
        from hashlib import sha256

        digest = sha256("\0".join(arguments).encode()).hexdigest()[: 2 * NAME_BYTES]
        added += ["--resume", f"{name_weights(given['out'])}-{digest}"]
    return added


def check_arguments(
    command: Submittable, arguments: Sequence[str], *, uploaded: Path | None
) -> dict[str, Any]:
    """The command's parameters as they were given, by name.

    Raises ValueError for what the command would refuse, or not find, on the cluster: a relative
    path would mean a folder of the head node, unless the file is in ``uploaded``. Passwords are
    refused, since everyone who may see the cluster's jobs may read a command.
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
    parsed = get_command(program)
    given = parsed.make_context(command.value, list(arguments)).params
    for parameter in parsed.params:
        name = str(parameter.name)
        if name not in INPUTS | OUTPUTS:
            continue
        for value in _values(given.get(name)):
            named = name == "model" and "/" not in value and not Path(value).suffix
            if named or not _is_relative(value):
                continue
            if name in INPUTS and uploaded is not None and (uploaded / value).exists():
                continue
            raise ValueError(
                f"{_show(parameter)} {value} is a relative path, which the cluster doesn't know: "
                "give s3://bucket/prefix, or the whole path of a folder that all its nodes share"
            )
    return given


def _show(parameter: Any) -> str:
    """How people write a parameter of click: ``--out`` or ``OUT``."""
    return (
        parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper()
    )


def _values(value: object) -> Iterable[str]:
    if value is None:
        return ()
    return map(str, value) if isinstance(value, list | tuple) else (str(value),)


def _is_relative(value: str) -> bool:
    """Whether a value is a relative path, and no address or name of what ships."""
    if "://" in value or value.startswith((REGISTERED, "/")):
        return False
    return value.lower() not in NO_FILES and value not in NAMED
