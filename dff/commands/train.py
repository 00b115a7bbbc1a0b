"""``dff train``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dff.commands.figures import echo_figures
from dff.commands.options import (
    AddressOption,
    AnonymousOption,
    EndpointOption,
    RequestPayerOption,
    TrackingOption,
    parse_bytes,
    split_share,
)
from dff.face.errors import BadPlace
from dff.face.extras import require_extra

if TYPE_CHECKING:
    from dff.trainer.destination import Destination


class Precision(StrEnum):
    """The precision of the network's activations in training."""

    fp32 = "fp32"
    bf16 = "bf16"


def choose_loaders(gpu: bool, workers: int) -> int:
    """Loader processes of a worker: one beside a CPU, this machine's share beside a GPU."""
    return min(max((os.cpu_count() or 1) // max(workers, 1) - 1, 1), 8) if gpu else 1


def train(
    dataset: Annotated[
        list[str],
        typer.Argument(
            help="Folder or s3://bucket/prefix of a finished dataset; several are mixed by their "
            "shares: A:0.7 B:0.3."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="The weights file to write, also s3://bucket/key. models:/NAME or "
            "models:/NAME@ALIAS only registers the weights in MLflow."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Face model that the dataset shows: a name from `dff models`, or a model file. "
            "Default: the one that the dataset names."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="open or research: make the dataset at DATASET and train on it with the settings "
            "of the shipped weights."
        ),
    ] = None,
    photos: Annotated[
        str | None,
        typer.Option(help="With --preset research: photos with .pts files beside them."),
    ] = None,
    evaluate_on: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of annotated photos to evaluate the weights on at the end; repeatable."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps. Default: the preset's, or 4000.", min=1)
    ] = None,
    workers: Annotated[
        str,
        typer.Option(
            metavar="N|LEAST:MOST",
            help="Ray Train workers. With a range: as many as the cluster has room for, while "
            "nodes come and go. 0: train in this process, without Ray.",
        ),
    ] = "1",
    gpu: Annotated[bool, typer.Option("--gpu", help="Train on GPUs.")] = False,
    cpus_per_worker: Annotated[
        int | None,
        typer.Option(
            help="CPUs that a worker reserves. Default: on a cluster, 1 and 1 for each loader; on "
            "this machine, an equal share.",
            min=1,
        ),
    ] = None,
    gpus_per_worker: Annotated[
        int, typer.Option(help="With --gpu: GPUs that a worker reserves.", min=1)
    ] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            help="s3://bucket/prefix or a folder that all nodes share, for checkpoints in a folder "
            "with the name of the run. Default: the folder runs beside OUT."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Continue the run of this name from its last checkpoint, or start it.",
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            help="Weights to start from: a file, s3://bucket/key, or a name from `dff models`."
        ),
    ] = "",
    name: Annotated[
        str | None,
        typer.Option(help="The new run's name. Default: OUT's with a random ending."),
    ] = None,
    address: AddressOption = None,
    batch: Annotated[int, typer.Option(help="Images in a step, over all workers.", min=1)] = 32,
    learning_rate: Annotated[
        float, typer.Option(help="Peak of the learning rate.", min=0.0)
    ] = 3e-3,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="PX[,PX...]",
            help="Side of the training images. If several are given, half of the steps use one of "
            "the sides after the first, so that the network also suits smaller crops. Default: "
            "128, or the preset's.",
        ),
    ] = None,
    dimension: Annotated[int, typer.Option(help="Length of a descriptor.", min=2)] = 32,
    seed: Annotated[int, typer.Option(help="The same seed draws the same batches.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder on a local disk of each worker for shards of the dataset. Default: in the "
            "temporary folder."
        ),
    ] = None,
    cache_bytes: Annotated[
        int | None,
        typer.Option(
            parser=parse_bytes,
            metavar="SIZE",
            help="Size limit of the cache, such as 20GB. Default: 20GB, or half of the free space "
            "if that is less.",
        ),
    ] = None,
    where: Annotated[
        str,
        typer.Option(
            help='Train only on views whose columns match, such as "abs(yaw) > 45 and licence == '
            "'CC0-1.0'\"."
        ),
    ] = "",
    loaders: Annotated[
        int | None,
        typer.Option(
            help="Processes of each worker that prepare batches. Default: 1, with --gpu up to 8.",
            min=0,
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Number format of the activations. Default: fp32, with --gpu bf16."),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the network, which takes a minute. Default: with --gpu.",
        ),
    ] = None,
    block_views: Annotated[
        int, typer.Option(help="Approximate number of views that are shuffled together.", min=1)
    ] = 65536,
    tracking: TrackingOption = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Train the Deep Face Feature on a dataset, on CPUs or GPUs, tracked by MLflow.

    Without --tracking the run is logged where MLFLOW_TRACKING_URI says, else to runs/mlflow.db in
    the current folder. Only this process connects to MLflow: workers need no access to it. --resume
    continues an interrupted run.

    [dim]Examples:[/dim]

    dff train data/ --out weights/dff.safetensors --steps 4000 --workers 2

    dff train s3://faces/views --out s3://faces/dff.safetensors --storage s3://faces/runs
    --address auto --workers 8 --gpu --resume first

    dff train sampled/:0.7 photos/:0.3 --where "abs(yaw) > 20" --out dff.safetensors

    dff train data-open/ --preset open --out dff-open.safetensors --evaluate-on AFLW2000/
    """
    with require_extra("train"):
        from dff.face.io.assets import load_model
        from dff.files.training import train_here
        from dff.infra.datasets.dataset import open_dataset
        from dff.infra.datasets.shard_filter import parse_filter
        from dff.infra.networks.weights import find_weights
        from dff.infra.networks.weights_names import BUCKET, REGISTERED, name_weights
        from dff.infra.storage import S3Access
        from dff.presets import build_config, find_preset, make_dataset
        from dff.trainer.config import WorkerRange
        from dff.trainer.data.datasets import load_common_model
        from dff.trainer.data.shard_cache import choose_cache
        from dff.trainer.destination import check_run_name, resolve_destination
        from dff.trainer.train import check_gpus, check_views

    span = None if workers == "0" else WorkerRange.parse(workers)
    most = span.most if span else 1
    if where:
        parse_filter(where)
    places, shares = zip(*map(split_share, dataset), strict=True)
    if preset and len(places) > 1:
        raise typer.BadParameter("--preset makes one dataset: name one")
    if name and resume:
        raise typer.BadParameter("--resume names the run to continue: leave out --name")
    if photos and not preset:
        raise typer.BadParameter("--photos goes with --preset research")
    if gpus_per_worker > 1 and not gpu:
        raise typer.BadParameter("--gpus-per-worker goes with --gpu")
    run_name = resume or name or f"{name_weights(out)}-{secrets.token_hex(3)}"
    storage = storage or _place_checkpoints(out)
    to = resolve_destination(out, endpoint_url=endpoint_url)
    check_run_name(run_name)
    on_cluster = "://" in storage or address is not None
    if span is None:
        _check_without_ray(out, to, on_cluster, with_ray=bool(tracking or cpus_per_worker))
    named = tracking or os.environ.get("MLFLOW_TRACKING_URI")
    if to.file is None and not named and on_cluster:
        raise BadPlace(
            f"--out {out} keeps the weights in MLflow alone, so a training on a cluster must say "
            "where that is: add --tracking http://host:5000"
        )
    if gpu and address is None:
        check_gpus(span.least if span else 1)
    for photos_folder in evaluate_on or []:
        if not photos_folder.is_dir():
            raise typer.BadParameter(f"--evaluate-on {photos_folder}: there is no such folder")
    recipe = find_preset(preset) if preset else None
    config = build_config(
        recipe,
        steps=steps,
        dims=dimension,
        sizes=_read_sizes(size) if size else (),
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        start=start,
        block_views=block_views,
        where=where,
        shares=shares,
        loaders=choose_loaders(gpu, most) if loaders is None else loaders,
        mixed=gpu if precision is None else precision is Precision.bf16,
        compiled=gpu if compiled is None else compiled,
    )
    if start and address is None and not start.startswith((BUCKET, REGISTERED)):
        find_weights(start)
    if span and not span.is_elastic:
        config.check_workers(span.most)
    access = S3Access(anonymous, request_payer)
    if recipe:
        make_dataset(
            recipe,
            places[0],
            photos=photos,
            workers=most,
            address=address,
            endpoint_url=endpoint_url,
            access=access,
        )
    opened = [open_dataset(p, endpoint_url=endpoint_url, access=access) for p in places]
    if address is None:  # before Ray is started
        check_views(
            opened, load_common_model(opened, model), config, choose_cache(cache, cache_bytes)
        )
    if evaluate_on:  # at the end the aligner finds the model by its name
        load_model(load_common_model(opened, model).name)
    typer.echo(f"run {run_name}, checkpoints in {storage}; continue it with --resume {run_name}")
    if span is None:
        figures = train_here(
            opened,
            Path(out),
            config=config,
            model=model,
            work=Path(storage) / run_name,
            resume=resume is not None,
            gpu=gpu,
            cache=choose_cache(cache, cache_bytes),
            endpoint_url=endpoint_url,
        )
    else:
        with require_extra("train"):
            from dff.infra.clusters.crash_report import CLUSTER_GONE, reported_crashes
            from dff.infra.mlflow.tracking import default_uri
            from dff.infra.redaction import hide_secrets
            from dff.trainer.launch import train_on_ray

        tracking = tracking or default_uri()
        typer.echo(f"MLflow: {hide_secrets(tracking)}")
        with reported_crashes(CLUSTER_GONE):
            launched = train_on_ray(
                places,
                out,
                config=config,
                model=model,
                name=run_name,
                storage=storage,
                workers=span,
                gpu=gpu,
                cpus_per_worker=cpus_per_worker,
                gpus_per_worker=gpus_per_worker,
                address=address,
                endpoint_url=endpoint_url,
                access=access,
                tracking_uri=tracking,
                resume=resume is not None,
                progress=True,
                cache=cache,
                cache_bytes=cache_bytes,
            )
        figures, out = launched.dev, launched.weights
        typer.echo(f"MLflow run {launched.run_id}, registered as version {launched.version}")
    echo_figures({figure: f"{value:.3f}" for figure, value in figures.items()})
    if evaluate_on:
        _evaluate(out, evaluate_on, tracking=tracking, endpoint_url=endpoint_url)
    elsewhere = "://" in out or out.startswith(REGISTERED)
    typer.echo(f"weights: {out if elsewhere else Path(out).resolve()}")


def _place_checkpoints(out: str) -> str:
    """The folder ``runs`` beside OUT. Raises typer.BadParameter for an OUT that has no folder."""
    from dff.infra.networks.weights_names import REGISTERED

    if "://" in out:
        raise typer.BadParameter(
            f"--out {out} leaves no folder for checkpoints: add --storage s3://bucket/prefix"
        )
    return "runs" if out.startswith(REGISTERED) else str(Path(out).parent / "runs")


def _check_without_ray(out: str, to: Destination, on_cluster: bool, *, with_ray: bool) -> None:
    """Refuse what needs Ray or MLflow, for ``--workers 0``.

    ``with_ray``: whether options of Ray or MLflow are given. Raises typer.BadParameter, and
    BadPlace where OUT is to be registered.
    """
    if on_cluster:
        raise typer.BadParameter("--workers 0 trains in this process, with checkpoints in a folder")
    if with_ray:
        raise typer.BadParameter(
            "--workers 0 trains without Ray and MLflow: take --workers 1, or leave out --tracking "
            "and --cpus-per-worker"
        )
    if to.file is None:
        raise BadPlace(
            f"--workers 0 trains without MLflow, so it can't register {out}: take --workers 1, or "
            "name a file"
        )


def _evaluate(
    out: str, folders: Sequence[Path], *, tracking: str | None, endpoint_url: str | None
) -> None:
    """Print the figures of the trained weights on ``folders`` of annotated photos."""
    from dff.infra.mlflow.tracking import registered_weights
    from dff.infra.networks.weights_names import REGISTERED
    from dff.presets import evaluate_weights

    registered = out.startswith(REGISTERED)
    weights = registered_weights(out, tracking_uri=tracking) if registered else out
    for folder, summary in evaluate_weights(weights, folders, endpoint_url=endpoint_url).items():
        typer.echo(folder)
        echo_figures(summary)


def _read_sizes(text: str) -> tuple[int, ...]:
    """Sides of images in px. Raises typer.BadParameter for anything else."""
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--size {text} must be numbers such as 160 or 160,128") from error
