"""The ``dff`` command: arguments in, words and exit status out. What it does lies in the rooms."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from tqdm import tqdm

from dff.face.errors import DffError
from dff.face.geometry.camera import Box

if TYPE_CHECKING:
    from dff.aligner.align import Aligner

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=(
        "Deep Face Feature: from face photos to a served 3D face aligner.\n\n"
        "[bold]Three uses[/bold]: synthesize a dataset, train on it, align faces.\n\n"
        "Start with: dff demo"
    ),
)

Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint-url",
        envvar="AWS_ENDPOINT_URL",
        help="Address of an S3 server that is not AWS's own.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: host:port of its head, ray://host:port, or auto. Default: this machine."
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        help="Weights: a .safetensors file, a shipped name (see `dff models`), or models:/NAME@ALIAS "
        "of MLflow (MLFLOW_TRACKING_URI). Default: the weights that ship with dff.",
    ),
]


class Method(StrEnum):
    """How a face is aligned."""

    votes = "votes"
    cascade = "cascade"


MethodOption = Annotated[
    Method,
    typer.Option(
        help="votes: all pixels vote for points of the face model. cascade: linear regressors, as the paper."
    ),
]
CascadeOption = Annotated[
    Path | None,
    typer.Option(
        help="Cascade of `dff train-cascade`. Default: the one that ships with the weights."
    ),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dff {version('deep-face-feature')}")
        raise typer.Exit


@app.callback()
def options(
    version_asked: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """What the command takes before any of its commands."""


def main() -> None:
    """Run the command; an expected error is one line on standard error and status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except (DffError, ValueError, OSError) as error:
        typer.secho(f"dff: {type(error).__name__}: {error}", fg="red", err=True)
        raise SystemExit(1) from None


@app.command()
def demo(
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for everything that the demo makes; an earlier demo there is replaced."
        ),
    ] = Path("out/demo"),
    identities: Annotated[
        int, typer.Option(help="Sampled faces beside the photograph.", min=1)
    ] = 40,
    views: Annotated[int, typer.Option(help="Views of each face.", min=2)] = 16,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 250,
) -> None:
    """The whole chain on a public-domain photograph; ends with one HTML report.

    Inverse rendering, synthesis on a local Ray, training with Ray Train and MLflow, the aligner
    served by Ray Serve.

    [dim]Example:[/dim] dff demo --out out/demo
    """
    from dff.demo import run_demo

    report = run_demo(out, identities=identities, views=views, steps=steps, say=typer.echo)
    typer.echo(f"Report: {report.resolve()}")


@app.command()
def label(
    photos: Annotated[
        str, typer.Argument(help="Folder or s3://bucket/prefix of images, in folders of any depth.")
    ],
    confidence: Annotated[
        float,
        typer.Option(
            help="How sure of a face the aligner must be for its landmarks to be written.",
            min=0,
            max=1,
        ),
    ] = 0.8,
    workers: Annotated[
        int,
        typer.Option(
            help="Photos at a time: some are read and decoded while others are aligned.", min=1
        ),
    ] = 1,
    weights: WeightsOption = None,
    endpoint_url: Endpoint = None,
) -> None:
    """Give photos without landmarks a .pts file beside each, so that `dff synthesize` can use them.

    The largest face of each photo counts. Photos that have a .pts or .mat are left alone: run the
    command again to complete a stopped one.

    [dim]Examples:[/dim]

    dff label photos/

    dff label s3://faces/raw --confidence 0.9 --workers 4
    """
    import torch

    from dff.aligner.align import load_aligner
    from dff.infra.storage import open_storage
    from dff.label_files import label_photos

    written = 0
    left: list[str] = []
    storage = open_storage(photos, endpoint_url=endpoint_url)
    torch.set_num_threads(
        max(1, torch.get_num_threads() // workers)
    )  # of one alignment: the workers share the cores
    aligner = load_aligner(weights)
    for one in label_photos(
        storage, aligner, confidence=confidence, workers=workers, progress=True
    ):
        written += not one.reason
        if one.reason:
            left.append(one.key)
            tqdm.write(f"{one.key}: {one.reason}")
    typer.echo(
        f"landmarks of {written} photos written in {storage.uri}; {len(left)} photos have none still"
    )


@app.command()
def synthesize(
    photos: Annotated[
        str,
        typer.Argument(
            help="Folder or s3://bucket/prefix of images with .pts or .mat beside them (see `dff label`), or 'none'."
        ),
    ],
    out: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix of the dataset.")],
    views: Annotated[int, typer.Option(help="Views of each face.", min=1)] = 20,
    identities: Annotated[
        int, typer.Option(help="Faces sampled from the model, without a photo.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same bytes.")] = 0,
    size: Annotated[int, typer.Option(help="Pixels of a view's side.", min=32, max=2048)] = 256,
    workers: Annotated[int, typer.Option(help="Shards made at a time.", min=1)] = 1,
    address: Address = None,
    terms: Annotated[
        str,
        typer.Option(
            help="Licence of the photos, an SPDX name or LicenseRef-...: written into every row."
        ),
    ] = "LicenseRef-photo",
    renderer: Annotated[
        str,
        typer.Option(
            help="zbuffer (numba) or pyrender (OpenGL): what decides which triangle a pixel shows."
        ),
    ] = "zbuffer",
    model: Annotated[
        str,
        typer.Option(
            help="Face model: a name from `dff models`, or a file of a model that you supply."
        ),
    ] = "open-head",
    shard_faces: Annotated[
        int | None,
        typer.Option(
            help="Faces in a shard, which one task makes. Default: by the job's size.", min=1
        ),
    ] = None,
    profile_share: Annotated[
        float,
        typer.Option(
            help="Share of a photo's views that show the photo itself, turned; the others are rendered anew.",
            min=0.0,
            max=1.0,
        ),
    ] = 0.35,
    deformed: Annotated[
        float,
        typer.Option(
            help="Share of the sampled faces that are also deformed smoothly, beyond what the model's identities form.",
            min=0.0,
            max=1.0,
        ),
    ] = 0.0,
    budget: Annotated[
        float, typer.Option(help="Share of the inputs that may fail.", min=0.0, max=1.0)
    ] = 0.2,
    endpoint_url: Endpoint = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made, and stop.")
    ] = False,
) -> None:
    """Turn photos into a dataset of views with exact dense correspondence.

    Run the same command again to complete an interrupted job: what is done is kept.

    [dim]Examples:[/dim]

    dff synthesize photos/ data/ --views 20 --workers 2

    dff synthesize s3://faces/raw s3://faces/views --address auto --identities 1000

    dff synthesize none data/ --identities 100 --dry-run
    """
    from dff.pipeline import synthesis
    from dff.pipeline.job.run import RunConfig

    made = synthesis.synthesize(
        None if photos.lower() == "none" else photos,
        out,
        views=views,
        identities=identities,
        seed=seed,
        size=size,
        workers=workers,
        address=address,
        endpoint_url=endpoint_url,
        photo_terms=terms,
        renderer=renderer,
        model=model,
        profile_share=profile_share,
        deformed=deformed,
        config=RunConfig(budget=budget),
        shard_subjects=shard_faces,
        dry_run=dry_run,
        progress=True,
        watch=lambda plan, cost: typer.echo(
            "\n".join([f"plan {plan.fingerprint[:12]}", *cost.lines(workers)])
        ),
    )
    if made.manifest is None:
        typer.echo("dry run: nothing was made")
        return
    failed = ", ".join(f"{n} {reason}" for reason, n in sorted(made.manifest.failures.items()))
    typer.echo(
        f"{made.manifest.rows} views of {made.manifest.subjects - made.manifest.failed_subjects} faces in {out}"
    )
    if failed:
        typer.echo(f"failed: {failed}; see them with: dff inspect {out}")


@app.command()
def inspect(
    dataset: Annotated[
        str, typer.Argument(help="Folder or s3://bucket/prefix of a finished dataset.")
    ],
    html: Annotated[Path | None, typer.Option(help="Write a gallery to this HTML file.")] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Re-read every shard against its hash and render views again."
        ),
    ] = False,
    sample: Annotated[
        int,
        typer.Option(
            help="With --verify: views to render again and compare, at random; 0 is every view.",
            min=0,
        ),
    ] = 100,
    endpoint_url: Endpoint = None,
) -> None:
    """What a dataset holds: counts, licences, failures by reason, a gallery.

    [dim]Example:[/dim] dff inspect data/ --html gallery.html --verify --sample 0
    """
    from dff.pipeline.inspection.inspect import inspect_dataset

    for line in inspect_dataset(
        dataset, html=html, verify=verify, sample=sample, endpoint_url=endpoint_url
    ).lines():
        typer.echo(line)
    if html:
        typer.echo(f"gallery: {html.resolve()}")


@app.command()
def train(
    dataset: Annotated[
        str, typer.Argument(help="Folder or s3://bucket/prefix of a finished dataset.")
    ],
    out: Annotated[Path, typer.Option(help="The weights file to write.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="open or research: make the dataset of the shipped weights at DATASET first, train as they."
        ),
    ] = None,
    photos: Annotated[
        str | None, typer.Option(help="With --preset research: the photos, with .pts beside them.")
    ] = None,
    judge: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of annotated photos to evaluate the weights on at the end; may be repeated."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps. Default: the preset's, or 4000.", min=1)
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Ray Train workers; 0 trains in this process without Ray.", min=0)
    ] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU for each worker.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    start: Annotated[
        str, typer.Option(help="Weights to start from: a file, or a name from `dff models`.")
    ] = "",
    name: Annotated[
        str | None, typer.Option(help="The run's name. Default: OUT without its suffix.")
    ] = None,
    address: Address = None,
    batch: Annotated[int, typer.Option(help="Images in a step, over all workers.", min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 3e-3,
    dimension: Annotated[int, typer.Option(help="Length of a descriptor.", min=2)] = 32,
    seed: Annotated[int, typer.Option(help="The same seed sees the same batches.")] = 0,
    tracking: Annotated[
        str | None, typer.Option(help="MLflow tracking URI. Default: mlflow.db beside OUT.")
    ] = None,
    endpoint_url: Endpoint = None,
) -> None:
    """Train the Deep Face Feature on a dataset, on CPUs or GPUs, with MLflow.

    [dim]Examples:[/dim]

    dff train data/ --out weights/dff.safetensors --steps 4000 --workers 2

    dff train s3://faces/views --out dff.safetensors --address auto --workers 8 --gpu --resume

    dff train data-open/ --preset open --out dff-open.safetensors --judge AFLW2000/
    """
    from dff.face.io.assets import load_model
    from dff.infra.dataset import open_dataset
    from dff.presets import judge as judged
    from dff.presets import make_dataset, preset_of, training_of
    from dff.trainer.train import Figures, Watch
    from dff.trainer.train import train as train_here

    recipe = preset_of(preset) if preset else None
    config = training_of(
        recipe,
        steps=steps,
        dims=dimension,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        start=start,
    )
    if recipe:
        make_dataset(
            recipe,
            dataset,
            photos=photos,
            workers=max(workers, 1),
            address=address,
            endpoint_url=endpoint_url,
        )
    if address is None:
        open_dataset(
            dataset, endpoint_url=endpoint_url
        )  # a bad one is said here, not by workers that try again
    if workers == 0:
        with tqdm(total=config.steps, unit="step") as bar:

            def on_step(step: int, figures: Figures) -> None:
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{figures['loss']:.3f}")

            dev = train_here(
                open_dataset(dataset, endpoint_url=endpoint_url),
                out,
                config=config,
                model=load_model(),
                resume=resume,
                device="cuda" if gpu else "cpu",
                watch=Watch(step=on_step),
            ).dev
    else:
        from dff.trainer.launch import fit

        done = fit(
            dataset,
            out,
            config=config,
            name=name or out.stem,
            storage=out.parent / "runs",
            workers=workers,
            gpu=gpu,
            address=address,
            endpoint_url=endpoint_url,
            tracking_uri=tracking,
            resume=resume,
            progress=True,
        )
        dev = done.dev
        typer.echo(f"MLflow run {done.run_id}, registered as version {done.version}")
    for figure, value in dev.items():
        typer.echo(f"  {figure}: {value:.3f}")
    for folder, summary in judged(out, judge or []).items():
        typer.echo(folder)
        for line in _figures(summary):
            typer.echo(line)
    typer.echo(f"weights: {out.resolve()}")


@app.command()
def align(
    images: Annotated[list[Path], typer.Argument(help="Images, folders of images, or one video.")],
    box: Annotated[
        str | None, typer.Option(help="Where the face is in one image: x0,y0,x1,y1.")
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="JSON file of boxes x0, y0, x1, y1 by image file name.")
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write the alignments to this file; one line an image if it ends in .jsonl, of a video a frame.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="With --json FILE.jsonl: keep what it holds, and align the other images.",
        ),
    ] = False,
    draw: Annotated[
        Path | None,
        typer.Option(
            help="Draw landmarks, mesh and axes to this PNG or JPEG, into this folder, or (a video) this MP4."
        ),
    ] = None,
    mesh: Annotated[
        Path | None,
        typer.Option(
            help="Write the mesh of each image's first face to this GLB, or into this folder."
        ),
    ] = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together", help="The images show one person: one identity for all of them."
        ),
    ] = False,
    smooth: Annotated[
        bool, typer.Option(help="Smooth a video's faces: at rest they stand still.")
    ] = True,
    method: MethodOption = Method.votes,
    cascade: CascadeOption = None,
    weights: WeightsOption = None,
) -> None:
    """Landmarks, pose and 3D shape of the faces in images.

    Pixels count from the image's corner: the centre of the first pixel is (0.5, 0.5).

    [dim]Examples:[/dim]

    dff align photo.jpg --draw drawn.png --mesh face.glb

    dff align folder/ --json alignments.jsonl --draw drawn/

    dff align --together front.jpg left.jpg right.jpg --mesh face.glb

    dff align film.mp4 --json faces.jsonl --draw drawn.mp4
    """
    from dff.align_files import (
        DRAWINGS,
        MESHES,
        SUFFIXES,
        Aligned,
        align_files,
        align_person,
        append_file,
        drawn,
        image_files,
        json_line,
        kept_lines,
        names_of,
        outputs,
        passed_over,
        read_boxes,
        spare,
        to_json,
        write_file,
        write_json,
    )
    from dff.aligner.mesh_file import glb
    from dff.video_files import align_video_file, is_video

    if method is not Method.votes and (together or is_video(images[0])):
        raise typer.BadParameter("a video and --together want --method votes")
    if any(is_video(image) for image in images):
        if len(images) > 1 or box or boxes or mesh or together or resume:
            raise typer.BadParameter("a video comes alone, with --json, --draw and --smooth only")
        spare(images, [json_out, draw])
        aligner = _aligner(weights, method, cascade)
        typer.echo(align_video_file(aligner, images[0], smooth=smooth, lines=json_out, drawn=draw))
        return
    files = image_files(images)
    spare([*files, boxes], [json_out, mesh])
    if together:
        if box or draw or resume:
            raise typer.BadParameter("--together goes with --boxes, --json and --mesh")
        places = read_boxes(boxes) if boxes else {}
        aligner = _aligner(weights, method, cascade)
        found, told = align_person(aligner, files, boxes=places)
        for line in told:
            typer.echo(line)
        if json_out:
            write_json(json_out, found.to_json(names_of(files)))
        if mesh:
            write_file(mesh, glb(found, aligner.model))
        return
    several = len(files) > 1
    if box and several:
        raise typer.BadParameter("--box takes one image; use --boxes for several")
    given = read_boxes(boxes) if boxes else {}
    if box:
        given = {files[0].name: [_box(box)]}
    pictures = outputs(draw, files, DRAWINGS) if draw else {}
    meshes = outputs(mesh, files, MESHES) if mesh else {}
    names = dict(zip(files, names_of(files), strict=True))
    lines = json_out if json_out and json_out.suffix == ".jsonl" else None
    if resume and not lines:
        raise typer.BadParameter("--resume goes with --json FILE.jsonl")
    done = kept_lines(lines) if lines and resume else set()
    if lines and not resume:
        write_file(lines, b"")
    for path in passed_over(images):
        typer.secho(
            f"{path}: passed over, only {', '.join(sorted(SUFFIXES))} are read",
            fg="yellow",
            err=True,
        )
    aligner = _aligner(weights, method, cascade)
    results: list[Aligned] = []
    faces, bad, todo = 0, 0, [path for path in files if names[path] not in done]
    for result in align_files(aligner, todo, boxes=given, progress=several):
        faces, bad = faces + len(result.faces), bad + bool(result.error)
        if result.error:
            tqdm.write(f"{result.path}: {result.error}", file=sys.stderr)
        if result.path in pictures and result.image is not None:
            place = pictures[result.path]
            write_file(place, drawn(result.image, result.faces, aligner.model, place.suffix))
        if result.path in meshes and result.faces:
            write_file(meshes[result.path], glb(result.faces[0], aligner.model))
        if lines:
            append_file(lines, json_line(names[result.path], result).encode())
        elif json_out:
            results.append(replace(result, image=None))
        else:
            for line in result.lines():
                tqdm.write(line)
    if json_out:
        if not lines:
            write_json(json_out, to_json(results))
        kept = f"; {len(files) - len(todo)} images were there already" if resume else ""
        typer.echo(f"{faces} faces of {len(todo)} images in {json_out}{kept}")
    if todo and bad == len(todo):
        raise typer.Exit(1)


class Protocol(StrEnum):
    """Which benchmark an evaluation follows."""

    aflw2000 = "aflw2000-3d"
    w300 = "300w"
    matching = "matching"


class BoxSource(StrEnum):
    """Where an evaluation's boxes come from."""

    landmarks = "landmarks"
    detector = "detector"


@app.command()
def evaluate(
    protocol: Annotated[
        Protocol,
        typer.Argument(
            help="aflw2000-3d: .mat, yaw bins, pose. 300w: .pts. matching: views of a dataset, or .mat."
        ),
    ],
    folder: Annotated[
        str, typer.Argument(help="Folder of the images with their annotation files, or a dataset.")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="Other 68-point labels: .npz by file name, or .npy.")
    ] = None,
    box: Annotated[
        BoxSource, typer.Option(help="Where the boxes come from.")
    ] = BoxSource.landmarks,
    every: Annotated[
        bool, typer.Option("--all", help="Also what is not held out (300w, matching).")
    ] = False,
    robust: Annotated[
        bool, typer.Option("--robustness", help="Also the error with boxes shifted and scaled.")
    ] = False,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for the CED curve and the worst cases.")
    ] = None,
    pairs: Annotated[
        int, typer.Option(help="matching: pairs of views for each cell of the table.", min=1)
    ] = 10,
    model: Annotated[
        str, typer.Option(help="matching: face model that the views show, a name or a file.")
    ] = "open-head",
    tracking: Annotated[
        str | None, typer.Option(help="MLflow tracking URI to log figures and pictures to.")
    ] = None,
    method: MethodOption = Method.votes,
    cascade: CascadeOption = None,
    weights: WeightsOption = None,
) -> None:
    """Accuracy of the aligner on annotated photos, or of the descriptor on views of a dataset.

    [dim]Examples:[/dim]

    dff evaluate aflw2000-3d AFLW2000/ --labels reannotated.npz --json figures.json --pictures out/

    dff evaluate 300w helen/testset --all

    dff evaluate matching data/ --pairs 20
    """
    if robust and (protocol is Protocol.matching or box is not BoxSource.landmarks):
        raise typer.BadParameter(
            "--robustness moves the boxes of landmarks: it goes with --box landmarks"
        )
    if protocol is Protocol.matching:
        _evaluate_matching(folder, weights, model, pairs, every, labels, json_out, pictures)
        return
    from dff.align_files import write_file, write_json
    from dff.aligner.evaluation.benchmarks import (
        Disturbance,
        Report,
        curve_picture,
        evaluate_300w,
        evaluate_aflw2000,
        robustness,
        worst_picture,
    )

    aligner = _aligner(weights, method, cascade)

    def measured(moved: Disturbance) -> Report:
        if protocol is Protocol.aflw2000:
            return evaluate_aflw2000(
                str(folder), aligner, labels=labels, box=box.value, disturbance=moved
            )
        split: Literal["all", "dev"] = "all" if every else "dev"
        return evaluate_300w(str(folder), aligner, box=box.value, split=split, disturbance=moved)

    report = measured(Disturbance())
    typer.echo(report.protocol)
    for line in _figures(report.summary):
        typer.echo(line)
    if robust:
        errors = robustness(measured)
        typer.echo(f"  {report.error} with other boxes:")
        for moved, error in errors.items():
            told = (
                "no face found"
                if isnan(error)
                else f"{error:.3f} ({error - errors[Disturbance()]:+.3f})"
            )
            typer.echo(f"    {moved!s:22} {told}")
    if json_out:
        write_json(json_out, report.to_json())
    if pictures or tracking:
        drawn = {"ced.png": curve_picture(report), "worst.jpg": worst_picture(report)}
        if pictures:
            for name, data in drawn.items():
                write_file(pictures / name, data)
            typer.echo(f"pictures: {pictures.resolve()}")
        if tracking:
            asked = {
                "protocol": report.protocol,
                "folder": folder,
                "labels": labels,
                "box": box.value,
            }
            _track_evaluation(
                tracking, {**asked, "weights": weights or "default"}, report.summary, drawn
            )


def _track_evaluation(
    uri: str, asked: Mapping[str, Any], figures: Mapping[str, Any], pictures: Mapping[str, bytes]
) -> None:
    """A run of its own in the experiment "dff-evaluation"."""
    from dff.infra import tracking

    name = f"{asked['weights']} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    run = tracking.start(uri, experiment="dff-evaluation", name=name, params=asked)
    numbers = {
        k: float(v) for k, v in tracking.flattened(figures).items() if isinstance(v, int | float)
    }
    run.metrics(0, numbers)
    for picture, data in pictures.items():
        run.picture_file(picture, data)
    run.finish()
    typer.echo(f"logged to {uri}: run {name!r} of dff-evaluation")


def _evaluate_matching(
    dataset: str,
    weights: str | None,
    model: str,
    pairs: int,
    every: bool,
    labels: Path | None,
    json_out: Path | None,
    pictures: Path | None,
) -> None:
    from dff.align_files import write_file
    from dff.matching_files import evaluate_matching, matching_picture, to_json

    report, shown = evaluate_matching(
        dataset, weights, model=model, count=pairs, every=every, labels=labels
    )
    for line in report.lines():
        typer.echo(line)
    if json_out:
        write_file(json_out, to_json(report))
    if pictures:
        write_file(pictures / "matching.jpg", matching_picture(shown, weights))
        typer.echo(f"pictures: {pictures.resolve()}")


@app.command()
def train_cascade(
    dataset: Annotated[
        str, typer.Argument(help="Folder or s3://bucket/prefix of a finished dataset.")
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    features: Annotated[
        Literal["dff", "sift"], typer.Option(help="What the regressors read.")
    ] = "dff",
    views: Annotated[
        int, typer.Option(help="Views of training identities to learn from.", min=32)
    ] = 4000,
    held_out: Annotated[
        int, typer.Option(help="Views of held-out identities that choose the penalty.", min=8)
    ] = 400,
    stages: Annotated[int, typer.Option(help="Regressors in a row.", min=1)] = 3,
    calibrate: Annotated[
        int, typer.Option(help="Held-out views that calibrate its confidence; 0: none.", min=0)
    ] = 320,
    weights: WeightsOption = None,
    endpoint_url: Endpoint = None,
) -> None:
    """Learn the paper's cascade of linear regressors for `dff align --method cascade`.

    [dim]Example:[/dim] dff train-cascade data/ --features dff --out cascade.safetensors
    """
    from dff.aligner.align import load_aligner
    from dff.aligner.cascade.model import save_cascade
    from dff.aligner.cascade.training import Recipe
    from dff.aligner.cascade.training import train_cascade as train
    from dff.infra.dataset import open_dataset

    recipe = Recipe(
        kind=features, views=views, held_out=held_out, stages=stages, calibration=calibrate
    )
    found = train(
        load_aligner(weights),
        open_dataset(dataset, endpoint_url=endpoint_url),
        recipe,
        watch=lambda at: typer.echo(
            f"  stage {at.stage + 1}: nme_box {100 * at.held_out:.2f} % on held-out identities, "
            f"{100 * at.learned:.2f} % on others' maps"
        ),
    )
    save_cascade(out, found)
    typer.echo(f"cascade: {out.resolve()}")


@app.command()
def calibrate(
    weights: Annotated[str, typer.Argument(help="Weights: a .safetensors file or a shipped name.")],
    dataset: Annotated[
        str, typer.Argument(help="Folder or s3://bucket/prefix of a finished dataset.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The weights file to write. Default: WEIGHTS itself.")
    ] = None,
    views: Annotated[
        int, typer.Option(help="Views of held-out identities; half fit, half judge.", min=32)
    ] = 640,
    photos: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of annotated photos to judge on as well; may be repeated."),
    ] = None,
    every: Annotated[int, typer.Option(help="Of these photos, take one in so many.", min=1)] = 1,
    picture: Annotated[
        Path | None, typer.Option(help="Write the reliability diagram to this PNG.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
    endpoint_url: Endpoint = None,
) -> None:
    """Make an aligner's confidence with these weights mean what it says, and measure how far it
    does.

    [dim]Example:[/dim] dff calibrate dff.safetensors data/ --photos AFLW2000/ --picture
    reliability.png
    """
    from dff.align_files import write_file, write_json
    from dff.aligner.align import load_aligner
    from dff.aligner.confidence import DEFAULT
    from dff.aligner.evaluation.calibration import calibrate as calibrated
    from dff.aligner.evaluation.calibration import reliability_picture
    from dff.infra import weights as weights_files
    from dff.infra.dataset import open_dataset

    aligner = load_aligner(weights, calibration=DEFAULT)  # whatever the file says, it is replaced
    data = open_dataset(dataset, endpoint_url=endpoint_url)
    calibration, sets = calibrated(aligner, data, views=views, photos=photos or (), every=every)
    for one in sets:
        typer.echo(one.name)
        for line in _figures(one.to_json()):
            typer.echo(line)
    if picture:
        write_file(picture, reliability_picture(sets))
    if json_out:
        write_json(json_out, {one.name: one.to_json() for one in sets})
    loaded = weights_files.load(weights)
    path = out or weights_files.NAMED.get(weights, Path(weights))
    weights_files.rewrite(path, replace(loaded, calibration=calibration.to_json()))
    typer.echo(f"calibrated weights: {path.resolve()}")


@app.command()
def landmarks(
    weights: Annotated[str, typer.Argument(help="Weights: a .safetensors file or a shipped name.")],
    photos: Annotated[
        list[Path],
        typer.Argument(help="Folders of photos with .pts files; their dev photos judge."),
    ],
    source: Annotated[
        str,
        typer.Option(help="Whose labels these are, for people: it is written into the weights."),
    ],
    by_shape: Annotated[
        bool,
        typer.Option(
            "--by-shape",
            help="Also how landmarks move with a face's shape: learned from the photos.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The weights file to write. Default: WEIGHTS itself.")
    ] = None,
) -> None:
    """Measure where annotators put the landmarks on faces as an aligner fits them, and answer there
    from now on.

    [dim]Example:[/dim] dff landmarks dff.safetensors 300W/train --source "labels of 300-W's
    training parts"
    """
    from dff.aligner.align import load_aligner
    from dff.aligner.evaluation.benchmarks import evaluate_300w
    from dff.aligner.evaluation.landmark_offsets import measure_landmark_offsets
    from dff.face.errors import BadLandmarks
    from dff.face.model.landmarks import LandmarkOffsets
    from dff.infra import weights as weights_files

    loaded = weights_files.load(weights)
    landmark_offsets = measure_landmark_offsets(load_aligner(weights), photos, by_shape=by_shape)
    for folder in photos:
        try:
            reports = [
                evaluate_300w(str(folder), load_aligner(weights, landmark_offsets=one))
                for one in (LandmarkOffsets(), landmark_offsets)
            ]
        except BadLandmarks:
            typer.echo(f"{folder.name}: no dev photos that judge")
            continue
        for error in ("nme_iod_51", "nme_iod_68"):
            before, after = (report.summary[error]["mean"] for report in reports)
            typer.echo(
                f"{folder.name}, dev photos: {error} {before} on the vertices, {after} as measured"
            )
    path = out or weights_files.NAMED.get(weights, Path(weights))
    weights_files.rewrite(
        path, replace(loaded, landmark_offsets=landmark_offsets, landmark_offsets_source=source)
    )
    typer.echo(f"weights: {path.resolve()}")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    replicas: Annotated[int, typer.Option(help="Copies of the aligner.", min=1)] = 1,
    address: Address = None,
    weights: WeightsOption = None,
) -> None:
    """Serve the aligner: a page at /, the API at /v1/align, its description at /docs.

    [dim]Example:[/dim] dff serve --port 8000, then: curl -F image=@photo.jpg
    http://127.0.0.1:8000/v1/align
    """
    from dff.aligner.service.ray_serve import serve_aligner

    serve_aligner(
        weights,
        host=host,
        port=port,
        replicas=replicas,
        address=address,
        on_ready=lambda url: typer.echo(f"serving at {url}/ (stop with Ctrl-C)"),
    )


class Submitted(StrEnum):
    """What can be sent to a cluster."""

    synthesize = "synthesize"
    train = "train"


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    command: Annotated[
        Submitted, typer.Argument(help="The command to run on the cluster, with its own arguments.")
    ],
    address: Annotated[str, typer.Option(help="Job server of the cluster, http://host:8265.")],
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to upload for the job, when the cluster's image has no dff."),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return as soon as the job is accepted.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a remote server without token.")
    ] = False,
) -> None:
    """Send `dff synthesize` or `dff train` to a Ray cluster as a job, and follow its log.

    Inputs and outputs must be places that the cluster reaches, such as s3://.

    [dim]Example:[/dim] dff submit synthesize s3://faces/raw s3://faces/views --views 20 --address
    http://head:8265
    """
    from dff.infra.cluster import submit as submit_job

    argv = ["dff", command.value, *context.args, "--address", "auto"]
    status = submit_job(
        argv,
        address,
        working_dir=working_dir,
        wait=not no_wait,
        on_line=typer.echo,
        insecure=insecure,
    )
    typer.echo(status)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The .onnx file to write.")],
    weights: WeightsOption = None,
) -> None:
    """The descriptor network as an ONNX file, for programs without torch (pip install
    'deep-face-feature\\[onnx]').

    [dim]Example:[/dim] dff export dff-open.onnx
    """
    from dff.infra import onnx_file
    from dff.infra import weights as weights_files

    onnx_file.export(weights_files.load(weights or weights_files.DEFAULT), out)
    typer.echo(
        f"{out.resolve()}: image (B, 3, H, W) 0..1 to descriptor and face_logit at half the size"
    )


@app.command()
def models() -> None:
    """The face models and weights at hand: licence, size, what is available.

    [dim]Example:[/dim] dff models
    """
    from dff.catalogue import catalogue

    rows = [("name", "kind", "licence", "size", "what"), *catalogue()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        typer.echo(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]])
        )


def _aligner(weights: str | None, method: Method, cascade: Path | None) -> Aligner:
    """The aligner that fits by this method."""
    if method is Method.votes:
        from dff.aligner.align import load_aligner

        if cascade:
            raise typer.BadParameter("--cascade wants --method cascade")
        return load_aligner(weights)
    from dff.aligner.cascade.model import load_cascade_aligner

    return load_cascade_aligner(weights, cascade)


def _figures(summary: Mapping[str, object]) -> list[str]:
    """A summary's figures, one line each."""
    lines = []
    for name, value in summary.items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        )
        lines.append(f"  {name}: {shown}")
    return lines


def _box(text: str) -> Box:
    parts = text.split(",")
    if len(parts) != 4:
        raise typer.BadParameter(f"--box wants four numbers x0,y0,x1,y1, got {text!r}")
    try:
        return Box(*map(float, parts))
    except ValueError as error:
        raise typer.BadParameter(
            f"--box wants x0,y0,x1,y1 with x0 < x1 and y0 < y1: {error}"
        ) from error


if __name__ == "__main__":
    main()
