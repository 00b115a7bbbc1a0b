"""``dff fit-expressions``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from dff.commands.options import (
    AnonymousOption,
    DatasetArgument,
    EndpointOption,
    RequestPayerOption,
    RewriteOption,
    WeightsArgument,
    choose_destination,
)
from dff.face.extras import require_extra


def fit_expressions(
    weights: WeightsArgument,
    dataset: DatasetArgument,
    out: RewriteOption = None,
    every_view: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Learn from all views instead of held-out ones, for a dataset that was not "
            "trained on.",
        ),
    ] = False,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Learn the correction of expressions from rendered views, and store it in the weights.

    It follows the last pass of a fit: closed lids close, and the other expression coefficients come
    nearer to the truth. Fit the landmark offsets again after it, since they belong to these meshes.

    [dim]Example:[/dim]

    dff synthesize none data/ --identities 2000 --views 8 --size 192 --closed-eyes-share 0.15

    dff fit-expressions dff.safetensors data/ --all
    """
    with require_extra("train"):
        from tqdm import tqdm

        from dff.aligner.evaluation.expression_correction import (
            ExpressionCorrectionConfig,
            learn_expression_correction,
        )
        from dff.aligner.load import load_aligner
        from dff.infra.datasets.dataset import open_dataset
        from dff.infra.networks import weights as weights_files
        from dff.infra.storage import S3Access

    target = choose_destination(weights, out)
    weights_files.check_destination(target, endpoint_url=endpoint_url)
    aligner = load_aligner(weights, endpoint_url=endpoint_url)
    loaded = weights_files.load(weights, endpoint_url=endpoint_url)
    data = open_dataset(
        dataset, endpoint_url=endpoint_url, access=S3Access(anonymous, request_payer)
    )
    with tqdm(total=ExpressionCorrectionConfig().views, unit=" views") as bar:
        found = learn_expression_correction(
            aligner,
            data,
            split=None if every_view else "dev",
            watch=lambda done: bar.update(done - bar.n),
        )
    typer.echo(f"errors on people of their own before: {found.before}")
    typer.echo(f"after: {found.after}")
    if found.correction is None:
        typer.echo("not all of them fall, so there is no correction of expressions")
    fitted = replace(loaded, expression_correction=found.correction)
    weights_files.rewrite(target, fitted, endpoint_url=endpoint_url)
    typer.echo(f"weights: {weights_files.everywhere(target)}")
