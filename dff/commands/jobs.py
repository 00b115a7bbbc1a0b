"""``dff jobs``."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from dff.face.extras import require_extra


def jobs(
    address: Annotated[str, typer.Option(help="Job server of the cluster, http://host:8265.")],
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a remote server without a token.")
    ] = False,
) -> None:
    """List the jobs that were submitted to a Ray cluster, the newest first.

    [dim]Example:[/dim] dff jobs --address http://head:8265
    """
    with require_extra("synthesis"):
        from dff.infra.clusters.cluster import list_jobs
        from dff.pipeline.job.status import format_seconds

    found = list_jobs(address, insecure=insecure)
    if not found:
        typer.echo("no jobs")
        return
    for job in found:
        begun = f"{datetime.fromtimestamp(job.begun, UTC):%Y-%m-%d %H:%M}" if job.begun else "-"
        lasted = format_seconds((job.ended or time.time()) - job.begun) if job.begun else "-"
        typer.echo(f"{job.status:9}  {begun:16}  {lasted:>11}  {job.name}")
        typer.echo(f"           {job.command}")
