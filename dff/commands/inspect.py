"""``dff inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dff.commands.options import (
    AnonymousOption,
    DatasetArgument,
    EndpointOption,
    RequestPayerOption,
)
from dff.face.extras import require_extra


def inspect(
    dataset: DatasetArgument,
    html: Annotated[Path | None, typer.Option(help="Write a gallery to this HTML file.")] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Check the hash of every shard, and render views again to compare."
        ),
    ] = False,
    sample: Annotated[
        int,
        typer.Option(
            help="With --verify: random views to render again and compare; 0 for all.", min=0
        ),
    ] = 100,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Summarise a dataset: counts, licences, failures by reason, a gallery.

    [dim]Example:[/dim] dff inspect data/ --html gallery.html --verify --sample 0
    """
    with require_extra("synthesis"):
        from dff.infra.files import check_output_file
        from dff.infra.storage import S3Access
        from dff.pipeline.inspection.inspect import inspect_dataset

    check_output_file(html, (".html", ".htm"))
    summary = inspect_dataset(
        dataset,
        html=html,
        verify=verify,
        sample=sample,
        endpoint_url=endpoint_url,
        access=S3Access(anonymous, request_payer),
    )
    for line in summary.lines():
        typer.echo(line)
    if html:
        typer.echo(f"gallery: {html.resolve()}")
