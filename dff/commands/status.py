"""``dff status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dff.commands.options import AnonymousOption, EndpointOption, RequestPayerOption
from dff.face.extras import require_extra


def status(
    dataset: Annotated[
        str, typer.Argument(help="Folder or s3://bucket/prefix of a dataset, finished or not.")
    ],
    picture: Annotated[
        Path | None, typer.Option(help="Write a contact sheet of the views so far to this JPEG.")
    ] = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Show the progress of a dataset: faces, views, failures, speed and remaining time.

    Everything is read from the storage of the dataset: the job and Ray need not be reachable.

    [dim]Example:[/dim] dff status s3://faces/views --picture views.jpg
    """
    with require_extra("synthesis"):
        import cv2

        from dff.files.outputs import check_suffix
        from dff.infra.files import check_output_file, write_file
        from dff.infra.storage import S3Access, open_storage
        from dff.pipeline.inspection.gallery import contact_sheet
        from dff.pipeline.job.status import read_status, sample_views

    check_output_file(picture)
    if picture:
        check_suffix(picture, (".jpg", ".jpeg"))
    storage = open_storage(
        dataset, endpoint_url=endpoint_url, access=S3Access(anonymous, request_payer)
    )
    for line in read_status(storage).lines():
        typer.echo(line)
    if picture:
        rows = sample_views(storage)
        if not rows:
            typer.echo("no views so far")
            return
        _, data = cv2.imencode(".jpg", contact_sheet(rows)[..., ::-1])
        write_file(picture, data.tobytes())
        typer.echo(f"views: {picture.resolve()}")
