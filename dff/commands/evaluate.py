"""``dff evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dff.aligner.preset import AlignPreset
from dff.commands.figures import echo_figures
from dff.commands.options import (
    AnonymousOption,
    CascadeOption,
    EndpointOption,
    JsonOption,
    Method,
    MethodOption,
    PresetOption,
    RequestPayerOption,
    TrackingOption,
    WeightsOption,
    load_aligner_for,
)
from dff.face.extras import require_extra
from dff.infra.networks.weights_names import REGISTERED

if TYPE_CHECKING:
    from dff.aligner.align import Aligner
    from dff.aligner.evaluation.benchmarks import Disturbance, Report
    from dff.infra.datasets.split import Split
    from dff.infra.storage import S3Access


class Benchmark(StrEnum):
    """Which benchmark an evaluation follows."""

    aflw2000 = "aflw2000-3d"
    w300 = "300w"
    aflw21 = "aflw21"
    matching = "matching"


class BoxSource(StrEnum):
    """Where an evaluation's boxes come from."""

    landmarks = "landmarks"
    detector = "detector"


def evaluate(
    protocol: Annotated[
        Benchmark,
        typer.Argument(
            help="aflw2000-3d: photos with .mat files, NME by yaw, pose. 300w: photos with .pts "
            "files. aflw21: crops of AFLW, visible points only. matching: descriptor matches "
            "between views of a dataset, or photos with .mat files."
        ),
    ],
    folder: Annotated[
        str, typer.Argument(help="Folder of photos with their annotation files, or a dataset.")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="Other 68-point labels: .npz by file name, or .npy.")
    ] = None,
    box: Annotated[BoxSource, typer.Option(help="Source of the face boxes.")] = BoxSource.landmarks,
    all_photos: Annotated[
        bool,
        typer.Option("--all", help="300w, matching: all photos or views, not only held-out ones."),
    ] = False,
    robust: Annotated[
        bool, typer.Option("--robustness", help="Evaluate with shifted and scaled boxes, too.")
    ] = False,
    without_offsets: Annotated[
        bool,
        typer.Option(
            "--without-offsets",
            help="Evaluate the fitted mesh, without landmark offsets and pose correction; aflw21: "
            "without the bias of the landmark set.",
        ),
    ] = False,
    json_out: JsonOption = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for the error curve (CED) and the largest errors.")
    ] = None,
    pairs: Annotated[
        int, typer.Option(help="matching: pairs of views for each row of the table.", min=1)
    ] = 10,
    model: Annotated[
        str | None,
        typer.Option(
            help="matching: face model of the views, a name from `dff models` or a model file. "
            "Default: the one that the dataset names."
        ),
    ] = None,
    tracking: TrackingOption = None,
    method: MethodOption = Method.dense,
    cascade: CascadeOption = None,
    weights: WeightsOption = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
    preset: PresetOption = AlignPreset.balanced,
) -> None:
    """Evaluate the aligner on annotated photos, or the descriptor on pairs of views.

    [dim]Examples:[/dim]

    dff evaluate aflw2000-3d AFLW2000/ --labels reannotated.npz --json figures.json --pictures out/

    dff evaluate 300w helen/testset --all

    dff evaluate aflw21 AFLW/

    dff evaluate matching data/ --pairs 20
    """
    if protocol is Benchmark.aflw21 and (robust or pictures or tracking):
        raise typer.BadParameter("aflw21 prints figures and writes --json: leave out the others")
    if labels and protocol not in (Benchmark.aflw2000, Benchmark.matching):
        raise typer.BadParameter(f"{protocol.value} reads the labels of its folder, not --labels")
    if box is BoxSource.detector and protocol not in (Benchmark.aflw2000, Benchmark.w300):
        raise typer.BadParameter(f"{protocol.value} has boxes of its own, not --box detector")
    if all_photos and protocol not in (Benchmark.w300, Benchmark.matching):
        raise typer.BadParameter(f"{protocol.value} evaluates all photos, without --all")
    if robust and (protocol is Benchmark.matching or box is not BoxSource.landmarks):
        raise typer.BadParameter(
            "--robustness moves the boxes of landmarks: it goes with --box landmarks"
        )
    _check_outputs(json_out, pictures, tracking)
    from dff.infra.storage import S3Access

    access = S3Access(anonymous, request_payer)
    if protocol is Benchmark.matching:
        _evaluate_matching(
            folder,
            weights,
            model=model,
            pairs=pairs,
            split=None if all_photos else "dev",
            labels=labels,
            json_out=json_out,
            pictures=pictures,
            endpoint_url=endpoint_url,
            access=access,
        )
        return
    with require_extra("train"):
        from dff.aligner.evaluation.benchmarks import Disturbance, curve_picture, worst_picture
        from dff.files.outputs import write_json
        from dff.infra.files import write_file

    found = weights
    if weights and weights.startswith(REGISTERED) and tracking:
        from dff.infra.mlflow.tracking import registered_weights

        found = str(registered_weights(weights, tracking_uri=tracking))
    aligner = load_aligner_for(found, method, cascade, preset, endpoint_url, access)
    if without_offsets:
        aligner = aligner.without_annotation_bias()
    if protocol is Benchmark.aflw21:
        _evaluate_visible_points(folder, aligner, json_out, as_marked=not without_offsets)
        return

    def measure(disturbance: Disturbance) -> Report:
        return _measure(protocol, folder, aligner, labels, box, all_photos, disturbance)

    report = measure(Disturbance())
    typer.echo(report.protocol)
    echo_figures(report.summary)
    if robust:
        _echo_robustness(report, measure)
    if json_out:
        write_json(json_out, report.to_json())
    if not pictures and not tracking:
        return
    drawn = {"ced.png": curve_picture(report), "worst.jpg": worst_picture(report)}
    if pictures:
        for name, data in drawn.items():
            write_file(pictures / name, data)
        typer.echo(f"pictures: {pictures.resolve()}")
    if tracking:
        params = {
            "protocol": report.protocol,
            "folder": folder,
            "labels": labels,
            "box": box.value,
            "weights": weights or "default",
            "preset": preset.value,
        }
        _track(tracking, params, report.summary, drawn)
        if weights and weights.startswith(REGISTERED):
            _note_evaluation(tracking, weights, report)


def _check_outputs(json_out: Path | None, pictures: Path | None, tracking_uri: str | None) -> None:
    """Raises StorageError when the results could not be kept: an evaluation takes long."""
    with require_extra("train"):
        from dff.infra.files import check_output_file, check_output_folder

    check_output_file(json_out, (".json",))
    check_output_folder(pictures)
    if tracking_uri:
        from dff.infra.mlflow.tracking import check_server

        check_server(tracking_uri)


def _measure(
    protocol: Benchmark,
    folder: str,
    aligner: Aligner,
    labels: Path | None,
    box: BoxSource,
    all_photos: bool,
    disturbance: Disturbance,
) -> Report:
    from dff.aligner.evaluation.benchmarks import evaluate_300w, evaluate_aflw2000

    if protocol is Benchmark.aflw2000:
        return evaluate_aflw2000(
            folder, aligner, labels=labels, box=box.value, disturbance=disturbance
        )
    return evaluate_300w(
        folder,
        aligner,
        box=box.value,
        split="all" if all_photos else "dev",
        disturbance=disturbance,
    )


def _evaluate_visible_points(
    folder: str, aligner: Aligner, json_out: Path | None, *, as_marked: bool
) -> None:
    from dff.aligner.evaluation.visible_points import evaluate_visible_points
    from dff.files.outputs import write_json

    report = evaluate_visible_points(folder, aligner, as_marked=as_marked)
    typer.echo(report.protocol)
    echo_figures(report.summary)
    if json_out:
        write_json(json_out, report.to_json())


def _echo_robustness(report: Report, measure: Callable[[Disturbance], Report]) -> None:
    from dff.aligner.evaluation.benchmarks import Disturbance, robustness

    errors = robustness(measure)
    typer.echo(f"  {report.error} with other boxes:")
    for disturbance, error in errors.items():
        change = error - errors[Disturbance()]
        shown = "no face found" if isnan(error) else f"{error:.3f} ({change:+.3f})"
        typer.echo(f"    {disturbance!s:22} {shown}")


def _track(
    uri: str, params: Mapping[str, Any], figures: Mapping[str, Any], pictures: Mapping[str, bytes]
) -> None:
    """Log a run of its own in the experiment "dff-evaluation"."""
    from dff.infra.mlflow import tracking
    from dff.infra.redaction import hide_secrets

    name = f"{params['weights']} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    run = tracking.start(uri, experiment="dff-evaluation", name=name, params=params)
    numbers = {
        k: float(v) for k, v in tracking.flattened(figures).items() if isinstance(v, int | float)
    }
    run.metrics(0, numbers)
    for picture, data in pictures.items():
        run.picture_file(picture, data)
    run.finish()
    typer.echo(f"logged to {hide_secrets(uri)}: run {name!r} of dff-evaluation")


def _note_evaluation(uri: str, address: str, report: Report) -> None:
    """Keep the main error with the registered version, for `dff models promote`."""
    from dff.infra.mlflow import tracking

    error = report.summary.get(report.error, {}).get("mean")
    tracking.note_evaluation(address, report.protocol, f"{report.error} {error}", tracking_uri=uri)
    typer.echo(f"noted with {address}: {report.error} {error}")


def _evaluate_matching(
    source: str,
    weights: str | None,
    *,
    model: str | None,
    pairs: int,
    split: Split | None,
    labels: Path | None,
    json_out: Path | None,
    pictures: Path | None,
    endpoint_url: str | None,
    access: S3Access,
) -> None:
    with require_extra("train"):
        from dff.files.matching import draw_matched_pairs, encode_matching, evaluate_matching
        from dff.infra.files import write_file

    report, examples = evaluate_matching(
        source,
        weights,
        model=model,
        count=pairs,
        split=split,
        labels=labels,
        endpoint_url=endpoint_url,
        access=access,
    )
    for line in report.lines():
        typer.echo(line)
    if json_out:
        write_file(json_out, encode_matching(report))
    if pictures:
        drawn = draw_matched_pairs(examples, weights, endpoint_url=endpoint_url, access=access)
        write_file(pictures / "matching.jpg", drawn)
        typer.echo(f"pictures: {pictures.resolve()}")
