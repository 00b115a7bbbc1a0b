"""``dff synthesize``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dff.commands.options import (
    AddressOption,
    AnonymousOption,
    EndpointOption,
    RequestPayerOption,
    TrackingOption,
)
from dff.face.extras import require_extra

if TYPE_CHECKING:
    from dff.infra.datasets.dataset import Manifest
    from dff.infra.storage import Storage


def synthesize(
    photos: Annotated[
        str,
        typer.Argument(
            help="Folder or s3://bucket/prefix of images with .pts or .mat files beside them (see "
            "`dff label`), or 'none'."
        ),
    ],
    out: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix of the dataset.")],
    views: Annotated[int, typer.Option(help="Views of each face.", min=1)] = 20,
    identities: Annotated[
        int, typer.Option(help="Faces sampled from the model, without a photo.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(help="Side of a view in pixels.", min=32, max=2048)] = 256,
    workers: Annotated[int, typer.Option(help="Shards made in parallel.", min=1)] = 1,
    address: AddressOption = None,
    photo_licence: Annotated[
        str,
        typer.Option(
            help="Licence of the photos, an SPDX name or LicenseRef-...: written into every row."
        ),
    ] = "LicenseRef-photo",
    renderer: Annotated[
        str,
        typer.Option(
            help="Backend that finds the triangle of each pixel: zbuffer (numba) or pyrender "
            "(OpenGL)."
        ),
    ] = "zbuffer",
    model: Annotated[
        str, typer.Option(help="Face model: a name from `dff models`, or a model file.")
    ] = "open-head",
    shard_faces: Annotated[
        int | None,
        typer.Option(
            help="Faces per shard; one task makes one shard. Default: by job size.", min=1
        ),
    ] = None,
    profile_share: Annotated[
        float,
        typer.Option(
            help="Share of a photo's views made by 3D face profiling (the photo itself, rotated); "
            "the others are rendered.",
            min=0.0,
            max=1.0,
        ),
    ] = 0.35,
    deformation_share: Annotated[
        float,
        typer.Option(
            help="Share of the sampled faces with a residual deformation outside the span of the "
            "model's identity modes.",
            min=0.0,
            max=1.0,
        ),
    ] = 0.0,
    closed_eyes_share: Annotated[
        float,
        typer.Option(
            help="Share of the rendered views with eyes that are shut, or nearly, beside those "
            "that blink: to learn the correction of expressions (`dff fit-expressions`).",
            min=0.0,
            max=1.0,
        ),
    ] = 0.0,
    failure_budget: Annotated[
        float, typer.Option(help="Share of the inputs that may fail.", min=0.0, max=1.0)
    ] = 0.2,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
    tracking: TrackingOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print size and duration of the job, and exit.")
    ] = False,
) -> None:
    """Synthesize a dataset of views with exact dense correspondence from photos and sampled faces.

    Run the same command again to complete an interrupted job: finished shards are kept.

    Exit status: 0 if the dataset is complete, although inputs within --failure-budget may have
    failed, which are named; 1 if more inputs or the command failed; 2 for arguments that no
    machine could run.

    [dim]Examples:[/dim]

    dff synthesize photos/ data/ --views 20 --workers 2

    dff synthesize s3://faces/raw s3://faces/views --address auto --identities 1000

    dff synthesize none data/ --identities 100 --dry-run
    """
    with require_extra("synthesis"):
        from dff.infra.clusters.crash_report import CLUSTER_GONE, reported_crashes
        from dff.infra.printing import counted
        from dff.infra.storage import S3Access, open_storage
        from dff.pipeline import synthesis
        from dff.pipeline.job.run import RunConfig

    if tracking:
        with require_extra("train"):
            from dff.infra.mlflow.tracking import check_server

        check_server(tracking)
    began = time.monotonic()
    on_ray = address is not None or workers > 1
    with reported_crashes(CLUSTER_GONE) if on_ray and not dry_run else nullcontext():
        summary = synthesis.synthesize(
            None if photos.lower() == "none" else photos,
            out,
            views=views,
            identities=identities,
            seed=seed,
            size=size,
            workers=workers,
            address=address,
            endpoint_url=endpoint_url,
            access=S3Access(anonymous, request_payer),
            photo_terms=photo_licence,
            renderer=renderer,
            model=model,
            profile_share=profile_share,
            deformed=deformation_share,
            closed_eyes=closed_eyes_share,
            config=RunConfig(budget=failure_budget),
            shard_subjects=shard_faces,
            dry_run=dry_run,
            progress=True,
            watch=lambda plan, cost: typer.echo(
                "\n".join([f"plan {plan.fingerprint[:12]}", *cost.lines(workers)])
            ),
        )
    manifest = summary.manifest
    if manifest is None:
        typer.echo("dry run: nothing was made")
        synthesis.check_labels(summary.estimate, summary.plan, failure_budget)
        return
    if tracking:
        params = {
            "photos": photos,
            "out": out,
            "views": views,
            "identities": identities,
            "seed": seed,
            "size": size,
            "renderer": renderer,
            "model": model,
        }
        storage = open_storage(out, endpoint_url=endpoint_url)
        _track(tracking, params, manifest, storage, time.monotonic() - began)
    typer.echo(
        f"{counted(manifest.rows, 'view')} of "
        f"{counted(manifest.subjects - manifest.failed_subjects, 'face')} in {out}"
    )
    if manifest.failures:
        failed = ", ".join(f"{n} {reason}" for reason, n in sorted(manifest.failures.items()))
        typer.echo(f"failed: {failed}; list them with: dff inspect {out}")


def _track(
    uri: str, params: Mapping[str, Any], manifest: Manifest, storage: Storage, seconds: float
) -> None:
    """Log a run of the experiment "dff-synthesis": figures, failures by reason, a contact sheet.

    A dataset that is completed by several commands is one run; its seconds are those of the last.
    """
    from dff.infra.mlflow import tracking
    from dff.infra.redaction import hide_secrets
    from dff.pipeline.inspection.gallery import contact_sheet
    from dff.pipeline.job.status import sample_views

    name = f"plan-{manifest.plan[:12]}"
    run = tracking.start(
        uri,
        experiment="dff-synthesis",
        name=name,
        params=params,
        resume=True,
        may_change=params,
        begun=time.time() - seconds,
    )
    run.metrics(
        0,
        {
            "rows": manifest.rows,
            "faces": manifest.subjects - manifest.failed_subjects,
            "failed_faces": manifest.failed_subjects,
            "seconds": seconds,
            **{f"failed/{reason}": count for reason, count in manifest.failures.items()},
        },
    )
    if rows := sample_views(storage):
        run.picture("views.png", contact_sheet(rows))
    run.finish()
    typer.echo(f"logged to {hide_secrets(uri)}: run {name!r} of dff-synthesis")
