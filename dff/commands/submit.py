"""``dff submit``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dff.face.extras import require_extra


class Submittable(StrEnum):
    """Commands that run on a cluster as a job."""

    synthesize = "synthesize"
    train = "train"


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

    The cluster must reach inputs and outputs, for example at s3://.

    [dim]Example:[/dim]

    dff submit synthesize s3://faces/raw s3://faces/views --address http://head:8265
    """
    with require_extra("synthesis" if command is Submittable.synthesize else "train"):
        from dff.infra.cluster import submit as submit_job

    status = submit_job(
        ["dff", command.value, *context.args, "--address", "auto"],
        address,
        working_dir=working_dir,
        wait=not no_wait,
        on_line=typer.echo,
        insecure=insecure,
    )
    typer.echo(status)
