"""``dff fit-landmark-offsets``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dff.commands.options import RewriteOption, WeightsArgument
from dff.face.extras import require_extra


def fit_landmark_offsets(
    weights: WeightsArgument,
    photos: Annotated[
        list[Path],
        typer.Argument(help="Folders of photos with .pts files; held-out photos evaluate."),
    ],
    source: Annotated[
        str, typer.Option(help="Whose annotations these are, in words: stored in the weights.")
    ],
    by_shape: Annotated[
        bool,
        typer.Option("--by-shape", help="Let the offsets depend on the shape of the face."),
    ] = False,
    out: RewriteOption = None,
) -> None:
    """Fit landmark offsets, the annotators' bias from the model's landmarks, and store them.

    The aligner then answers landmarks where these annotators put them.

    [dim]Example:[/dim]

    dff fit-landmark-offsets dff.safetensors 300W/train --source "300-W, training parts"
    """
    with require_extra("train"):
        from dff.aligner.align import load_aligner
        from dff.aligner.evaluation.benchmarks import evaluate_300w
        from dff.aligner.evaluation.landmark_offsets import measure_landmark_offsets
        from dff.face.errors import BadLandmarks
        from dff.face.model.landmarks import LandmarkOffsets
        from dff.infra import weights as weights_files

    target = out or str(weights_files.NAMED.get(weights, weights))
    weights_files.check_destination(target)
    offsets = measure_landmark_offsets(load_aligner(weights), photos, by_shape=by_shape)
    for folder in photos:
        try:
            before, after = (
                evaluate_300w(str(folder), load_aligner(weights, landmark_offsets=each)).summary
                for each in (LandmarkOffsets(), offsets)
            )
        except BadLandmarks:
            typer.echo(f"{folder.name}: no held-out photos to evaluate on")
            continue
        for error in ("nme_iod_51", "nme_iod_68"):
            typer.echo(
                f"{folder.name}, held-out photos: {error} {before[error]['mean']} without offsets, "
                f"{after[error]['mean']} with them"
            )
    fitted = replace(
        weights_files.load(weights), landmark_offsets=offsets, landmark_offsets_source=source
    )
    weights_files.rewrite(target, fitted)
    typer.echo(f"weights: {weights_files.everywhere(target)}")
