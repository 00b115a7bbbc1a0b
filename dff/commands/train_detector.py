"""``dff train-detector``."""

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


def train_detector(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps, of 8 scenes each.", min=1)] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.", min=0)] = 0,
    learning_rate: Annotated[
        float, typer.Option(help="After the warm-up; less to go on from trained weights.")
    ] = 3e-3,
    start: Annotated[
        str, typer.Option(help="Detector file to start from. Default: random weights.")
    ] = "",
    model: Annotated[
        str | None,
        typer.Option(
            help="Face model that the dataset shows: a name from `dff models`, or a model file. "
            "Default: the one that the dataset names."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint beside the output.")
    ] = False,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Train the small network of the face detector on views of a dataset.

    [dim]Example:[/dim] dff train-detector data/ --out detector.safetensors
    """
    with require_extra("train"):
        from dff.infra.datasets.dataset import open_dataset
        from dff.infra.files import check_output_file
        from dff.infra.storage import S3Access
        from dff.trainer.detection.config import DetectorTrainConfig
        from dff.trainer.detection.train import train_detector as train

    check_output_file(out, (".safetensors",))
    figures = train(
        open_dataset(dataset, endpoint_url=endpoint_url, access=S3Access(anonymous, request_payer)),
        out,
        DetectorTrainConfig(steps=steps, seed=seed, learning_rate=learning_rate, start=start),
        model=model,
        resume=resume,
        on_figures=lambda step, now: typer.echo(
            f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in now.items())
        ),
    )
    typer.echo(", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    typer.echo(f"detector: {out.resolve()}")
