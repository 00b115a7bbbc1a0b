"""``dff demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dff.face.extras import require_extra


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the results; an earlier demo in it is replaced.")
    ] = Path("out/demo"),
    identities: Annotated[int, typer.Option(help="Sampled faces besides the photo.", min=12)] = 40,
    views: Annotated[int, typer.Option(help="Views of each face.", min=4)] = 16,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 250,
) -> None:
    """Run synthesis, training and alignment on a public-domain photo; write one HTML report.

    Inverse rendering, synthesis on a local Ray, training with Ray Train and MLflow, and the aligner
    served by Ray Serve.

    [dim]Example:[/dim] dff demo --out out/demo
    """
    with require_extra("all"):
        from dff.demo.run import run_demo
        from dff.infra.clusters.crash_report import DEMO_GONE, reported_crashes
        from dff.infra.files import check_output_folder

    check_output_folder(out)
    with reported_crashes(DEMO_GONE):
        report = run_demo(out, identities=identities, views=views, steps=steps, say=typer.echo)
    typer.echo(f"report: {report.resolve()}")
