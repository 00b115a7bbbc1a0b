"""``dff fit-landmark-offsets``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dff.commands.options import (
    AnonymousOption,
    EndpointOption,
    RequestPayerOption,
    RewriteOption,
    WeightsArgument,
    choose_destination,
)
from dff.face.extras import require_extra

if TYPE_CHECKING:
    from dff.aligner.align import Aligner
    from dff.aligner.evaluation.benchmarks import Row


def fit_landmark_offsets(
    weights: WeightsArgument,
    photos: Annotated[
        list[Path],
        typer.Argument(help="Folders of photos with .pts files; held-out ones test the offsets."),
    ],
    source: Annotated[
        str, typer.Option(help="Description of the annotations, stored in the weights.")
    ],
    by_shape: Annotated[
        bool,
        typer.Option("--by-shape", help="Let the offsets depend on the shape of the face."),
    ] = False,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="Also train a map from the descriptors at the landmarks to the annotated ones. "
            "The terms of the photos then hold for the weights: give them by --photo-licence.",
        ),
    ] = False,
    photo_licence: Annotated[
        str | None,
        typer.Option(
            help="With --refine: licence of the photos, an SPDX name or LicenseRef-..., written "
            "into the weights."
        ),
    ] = None,
    poses: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of photos with .mat files, such as AFLW2000-3D, for offsets and a pose "
            "correction that depend on the pose; repeatable, each time with --pose-labels."
        ),
    ] = None,
    pose_labels: Annotated[
        list[Path] | None,
        typer.Option(help="68-point labels of the photos of --poses: .npz by file name, or .npy."),
    ] = None,
    out: RewriteOption = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Fit landmark offsets (the annotation bias) and store them in the weights.

    The aligner then returns landmarks where these annotators place them. With --poses it also
    corrects the head pose towards the labels, and with --refine it moves the landmarks by what the
    photo shows there.

    [dim]Example:[/dim]

    dff fit-landmark-offsets dff.safetensors 300W/train --source "300-W, training parts"

    dff fit-landmark-offsets dff.safetensors 300W/train --poses AFLW2000/ \\
        --pose-labels reannotated.npz --source "300-W, training parts; AFLW2000-3D"
    """
    poses, pose_labels = poses or [], pose_labels or []
    if len(poses) != len(pose_labels):
        raise typer.BadParameter(
            f"{len(poses)} folders of --poses with {len(pose_labels)} files of --pose-labels"
        )
    if refine != bool(photo_licence):
        raise typer.BadParameter("--refine and --photo-licence go together")
    if not source.strip():
        raise typer.BadParameter("--source is empty")
    for file in pose_labels:
        if not file.is_file():
            raise typer.BadParameter(f"--pose-labels: there is no file {file}")
    with require_extra("train"):
        import numpy as np
        from tqdm import tqdm

        from dff.aligner.evaluation.landmark_offsets import (
            OffsetConfig,
            align_labelled_poses,
            align_training_photos,
            cross_validate,
            fit_bias_by_pose,
            fit_landmark_offsets as fit_offsets,
        )
        from dff.aligner.evaluation.landmark_refinement import learn_landmark_refinement
        from dff.aligner.load import load_aligner
        from dff.face.model.landmark_offsets import LandmarkOffsets
        from dff.infra.networks import weights as weights_files
        from dff.infra.storage import S3Access

    target = choose_destination(weights, out)
    weights_files.check_destination(target, endpoint_url=endpoint_url)
    access = S3Access(anonymous, request_payer)
    load = partial(load_aligner, weights, endpoint_url=endpoint_url, access=access)
    aligner = load()
    faces, labels = align_training_photos(aligner, photos)
    offsets = fit_offsets(aligner, faces, labels, by_shape=by_shape)
    refinement = None
    if refine:
        with tqdm(total=len(faces), unit=" photos") as bar:
            refinement = learn_landmark_refinement(
                aligner, photos, offsets, watch=lambda done: bar.update(done - bar.n)
            )
        if refinement is None:
            typer.echo("no refinement lowers the error on photos that it was not trained on")
    biases = {"without offsets": load(landmark_offsets=LandmarkOffsets())}
    biases["with them"] = load(landmark_offsets=offsets)
    if refinement is not None:
        biases["refined"] = load(landmark_offsets=offsets, landmark_refinement=refinement)
    _compare(biases, photos)
    loaded = weights_files.load(weights, endpoint_url=endpoint_url, access=access)
    if loaded.landmark_refinement and refinement is None:
        typer.echo("the refinement of landmarks is removed: --refine learns it anew")
    if loaded.pose_correction and not poses:
        typer.echo("offsets by pose and the pose correction are removed: --poses fits them anew")
    if refinement is not None and photo_licence:
        loaded = weights_files.add_licence(loaded, photo_licence)
    fitted = replace(
        loaded,
        landmark_offsets_source=source,
        landmark_refinement=refinement,
        mean_identity=np.mean([face.coefficients.identity for face in faces], axis=0),
    )
    if poses:
        config, rows = OffsetConfig(), align_labelled_poses(aligner, poses, pose_labels)
        bias = fit_bias_by_pose(rows, aligner.model, offsets, config)
        fitted = replace(fitted, landmark_offsets=bias.landmarks, pose_correction=bias.pose)
        judged = cross_validate(rows, aligner.model, offsets, config)
        _echo_poses("without offsets", rows)
        _echo_poses("cross-validated", judged)
    else:
        fitted = replace(fitted, landmark_offsets=offsets, pose_correction=None)
    weights_files.rewrite(target, fitted, endpoint_url=endpoint_url)
    typer.echo(f"weights: {weights_files.everywhere(target)}")


def _compare(aligners: Mapping[str, Aligner], folders: Sequence[Path]) -> None:
    """Print the errors of ``aligners``, by name, on the held-out photos of each folder."""
    from dff.aligner.evaluation.benchmarks import evaluate_300w, list_300w
    from dff.infra.storage import open_storage

    for folder in folders:
        if not list_300w(open_storage(str(folder)), "dev"):
            typer.echo(f"{folder.name}: none of its photos is held out, so none tests the offsets")
            continue
        found = {name: evaluate_300w(str(folder), one).summary for name, one in aligners.items()}
        for error in ("nme_iod_51", "nme_iod_68"):
            figures = [f"{summary[error]['mean']} {name}" for name, summary in found.items()]
            typer.echo(f"{folder.name}, held-out photos: {error} {', '.join(figures)}")


def _echo_poses(name: str, rows: Sequence[Row]) -> None:
    """Print the errors of the photos of ``--poses`` by yaw."""
    from dff.aligner.evaluation.benchmarks import summarize_rows

    summary = summarize_rows(rows, "nme_box")
    typer.echo(f"{len(rows)} photos of --poses, {name}:")
    for figure in ("nme_box_by_yaw", "geodesic_by_yaw"):
        typer.echo(f"  {figure}: {summary[figure]}")
