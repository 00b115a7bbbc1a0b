"""``dff train-cascade``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dff.commands.options import (
    AnonymousOption,
    DatasetArgument,
    EndpointOption,
    RequestPayerOption,
    WeightsOption,
)
from dff.face.extras import require_extra


def train_cascade(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    features: Annotated[
        Literal["dff", "sift"], typer.Option(help="Features that the regressors read.")
    ] = "dff",
    views: Annotated[
        int, typer.Option(help="Training views, of identities that are not held out.", min=32)
    ] = 4000,
    held_out: Annotated[
        int, typer.Option(help="Views of held-out identities that choose the penalty.", min=8)
    ] = 400,
    stages: Annotated[int, typer.Option(help="Regressors in the cascade.", min=1)] = 3,
    calibrate: Annotated[
        int, typer.Option(help="Held-out views for the calibration; 0: no calibration.", min=0)
    ] = 320,
    weights: WeightsOption = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Train the paper's cascade of linear regressors, for `dff align --method cascade`.

    [dim]Example:[/dim] dff train-cascade data/ --features dff --out cascade.safetensors
    """
    with require_extra("train"):
        from dff.aligner.cascade.io import save_cascade
        from dff.aligner.cascade.training import Recipe, train_cascade as train
        from dff.aligner.load import load_aligner
        from dff.infra.datasets.dataset import open_dataset
        from dff.infra.files import check_output_file
        from dff.infra.storage import S3Access

    check_output_file(out, (".safetensors",))
    recipe = Recipe(
        kind=features, views=views, held_out=held_out, stages=stages, calibration=calibrate
    )
    cascade = train(
        load_aligner(weights, endpoint_url=endpoint_url),
        open_dataset(dataset, endpoint_url=endpoint_url, access=S3Access(anonymous, request_payer)),
        recipe,
        watch=lambda at: typer.echo(
            f"  stage {at.stage + 1}: nme_box {100 * at.held_out:.2f} % on held-out identities, "
            f"{100 * at.learned:.2f} % in cross-validation"
        ),
    )
    save_cascade(out, cascade)
    typer.echo(f"cascade: {out.resolve()}")
