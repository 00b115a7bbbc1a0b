"""``dff calibrate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dff.commands.figures import echo_figures
from dff.commands.options import (
    AnonymousOption,
    DatasetArgument,
    EndpointOption,
    JsonOption,
    RequestPayerOption,
    RewriteOption,
    WeightsArgument,
    choose_destination,
)
from dff.face.extras import require_extra

if TYPE_CHECKING:
    from dff.infra.datasets.split import Split


def calibrate(
    weights: WeightsArgument,
    dataset: DatasetArgument,
    out: RewriteOption = None,
    views: Annotated[
        int,
        typer.Option(help="Views of held-out identities: half to fit, half to evaluate.", min=32),
    ] = 640,
    every_view: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Estimate match errors from all views instead of held-out ones, for a dataset "
            "that was not trained on.",
        ),
    ] = False,
    match_errors: Annotated[
        bool,
        typer.Option(
            help="Also estimate the systematic errors of matches, which the fit then models."
        ),
    ] = True,
    correction: Annotated[
        bool,
        typer.Option(
            help="Also learn the correction of fits, from 1,000 to 12,000 views. Without it, a "
            "correction in the file is kept only with --no-match-errors."
        ),
    ] = False,
    photos: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of annotated photos to evaluate on as well; repeatable."),
    ] = None,
    every: Annotated[int, typer.Option(help="Use every n-th of these photos.", min=1)] = 1,
    picture: Annotated[
        Path | None, typer.Option(help="Write the reliability diagram to this PNG.")
    ] = None,
    json_out: JsonOption = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Calibrate the confidence of an aligner with these weights, and evaluate the calibration.

    [dim]Example:[/dim]

    dff calibrate dff.safetensors data/ --photos AFLW2000/ --picture reliability.png
    """
    with require_extra("train"):
        import numpy as np
        from tqdm import tqdm

        from dff.aligner.confidence import DEFAULT
        from dff.aligner.evaluation.calibration import (
            calibrate as fit_calibration,
            reliability_picture,
        )
        from dff.aligner.evaluation.fit_correction import (
            FitCorrectionConfig,
            learn_fit_correction,
        )
        from dff.aligner.evaluation.match_errors import estimate_match_errors
        from dff.aligner.load import load_aligner
        from dff.files.outputs import check_suffix, write_json
        from dff.infra.datasets.dataset import open_dataset
        from dff.infra.files import check_output_file, write_file
        from dff.infra.networks import weights as weights_files
        from dff.infra.storage import S3Access

    check_output_file(picture)
    if picture:
        check_suffix(picture, (".png",))
    check_output_file(json_out, (".json",))
    target = choose_destination(weights, out)
    weights_files.check_destination(target, endpoint_url=endpoint_url)
    aligner = load_aligner(  # not with the calibration of the file, which is replaced
        weights, calibration=DEFAULT, endpoint_url=endpoint_url
    )
    loaded = weights_files.load(weights, endpoint_url=endpoint_url)
    data = open_dataset(
        dataset, endpoint_url=endpoint_url, access=S3Access(anonymous, request_payer)
    )
    split: Split | None = None if every_view else "dev"
    if match_errors:
        fields = estimate_match_errors(aligner, data, split=split).astype(np.float32)
        aligner = aligner.with_dense_fits(anchors=replace(aligner.anchors, error_fields=fields))
        if aligner.fit_correction is None and not correction and loaded.fit_correction:
            typer.echo("the correction of fits is removed: --correction learns it anew")
    if correction:
        with tqdm(total=FitCorrectionConfig().views, unit=" views") as bar:
            found = learn_fit_correction(
                aligner, data, split=split, watch=lambda done: bar.update(done - bar.n)
            )
        aligner = aligner.with_dense_fits(fit_correction=found)
        if found is None:
            typer.echo("no correction of fits lowers the error on held-out identities")
    if loaded.expression_correction and not aligner.expression_correction:
        typer.echo("the correction of expressions is removed: `dff fit-expressions` learns it")
    if loaded.landmark_refinement and not aligner.landmark_refinement:
        typer.echo("the refinement of landmarks is removed: `dff fit-landmark-offsets` learns it")
    calibration, sets = fit_calibration(
        aligner, data, views=views, photos=photos or (), every=every
    )
    for each in sets:
        typer.echo(each.name)
        echo_figures(each.to_json())
    if picture:
        write_file(picture, reliability_picture(sets))
    if json_out:
        write_json(json_out, {each.name: each.to_json() for each in sets})
    calibrated = replace(
        loaded,
        anchors=aligner.anchors,
        fit_correction=aligner.fit_correction,
        landmark_refinement=aligner.landmark_refinement,
        expression_correction=aligner.expression_correction,
        calibration=calibration.to_json(),
    )
    weights_files.rewrite(target, calibrated, endpoint_url=endpoint_url)
    typer.echo(f"calibrated weights: {weights_files.everywhere(target)}")
