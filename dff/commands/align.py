"""``dff align``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from dff.aligner.preset import AlignPreset
from dff.commands.options import (
    AnonymousOption,
    CascadeOption,
    EndpointOption,
    Method,
    MethodOption,
    PresetOption,
    RequestPayerOption,
    WeightsOption,
    load_aligner_for,
)
from dff.face.geometry.camera import Box

if TYPE_CHECKING:
    from dff.aligner.align import Aligner
    from dff.files.alignments import ImageOutputs, ImageResult

    LoadAligner = Callable[[], Aligner]


def align(
    images: Annotated[
        list[Path],
        typer.Argument(help="Images, folders of images (with subfolders), or one video."),
    ],
    box: Annotated[
        str | None, typer.Option(help="The face's box in one image: x0,y0,x1,y1 in pixels.")
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the boxes of each image, as {name: \\[\\[x0, y0, x1, y1], ...]}; "
            "the name is the path of the image or the end of it."
        ),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write the alignments to this file: one line for each image, or frame of a video, "
            "if it ends in .jsonl.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="With --json FILE.jsonl: keep its content, align the other images."
        ),
    ] = False,
    draw: Annotated[
        Path | None,
        typer.Option(
            help="Draw landmarks, mesh and axes to this PNG, JPEG or folder; for a video, to this "
            "MP4, MOV, MKV, WebM or folder."
        ),
    ] = None,
    mesh: Annotated[
        Path | None,
        typer.Option(
            help="Write the textured mesh of each image's first face to this GLB, OBJ or folder; "
            "for a video, the animated mesh of the longest track to this GLB."
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="Write one row for each face, and each image without one, to this CSV file.",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Write a mask to this PNG or folder: 255 is skin of a face, 128 head."),
    ] = None,
    crops: Annotated[
        Path | None,
        typer.Option(help="Write an upright crop of each face to this folder."),
    ] = None,
    crop_size: Annotated[
        int | None,
        typer.Option(
            min=16, max=4096, help="With --crops: side of a crop in pixels. Default: 256."
        ),
    ] = None,
    focal: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="Focal length of the camera in pixels. Default: from EXIF, or assumed.",
        ),
    ] = None,
    landmarks: Annotated[
        str | None,
        typer.Option(
            help="With --json: additional output, separated by commas: the landmark sets 5, "
            "wflw98, dense478 and aflw21; irises; blendshapes (with MediaPipe's names)."
        ),
    ] = None,
    same_person: Annotated[
        bool,
        typer.Option("--same-person", help="Multi-image fitting: all images show one person."),
    ] = False,
    smooth: Annotated[bool, typer.Option(help="Smooth the landmarks of a video in time.")] = True,
    method: MethodOption = Method.dense,
    cascade: CascadeOption = None,
    weights: WeightsOption = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
    preset: PresetOption = AlignPreset.balanced,
    server: Annotated[
        str | None,
        typer.Option(
            help="Address of a `dff serve`, such as http://faces.example.org:8000, which aligns "
            "the images instead of this machine."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", envvar="DFF_API_KEY", help="With --server: API key."),
    ] = None,
) -> None:
    """Align faces in images or a video: landmarks, pose and 3D shape.

    Pixels count from the image's upper left corner; the first pixel's centre is (0.5, 0.5).

    Images that are missing or cannot be read, or whose box lies outside of them, are named, and the
    others are aligned. Images without a face are named too, but are no errors. Exit status: 0 if
    every image was read, 1 if an image was refused or the command failed, 2 for arguments that no
    machine could run.

    [dim]Examples:[/dim]

    dff align photo.jpg --draw drawn.png --mesh face.glb

    dff align folder/ --json alignments.jsonl --draw drawn/

    dff align --same-person front.jpg left.jpg right.jpg --mesh face.glb --draw drawn/

    dff align film.mp4 --json faces.jsonl --draw drawn.mp4
    """
    from dff.files.images import find_images
    from dff.files.outputs import check_not_inputs
    from dff.files.video_io import is_video
    from dff.infra.files import check_output_file, check_output_folder
    from dff.infra.photos.image_listing import describe_passed_over

    check_output_file(json_out, (".json", ".jsonl"))
    check_output_file(table, (".csv",))
    for drawing in (draw, mesh, mask, crops):
        check_output_folder(drawing.parent if drawing else None)
    video = any(map(is_video, images))
    if method is Method.cascade and (same_person or video):
        raise typer.BadParameter("a video and --same-person need --method dense")
    if video and (len(images) > 1 or box or boxes or same_person or resume or mask or crops):
        raise typer.BadParameter("a video comes alone, without boxes, --mask, --crops and --resume")
    own_choice = weights or cascade or method is not Method.dense
    if server and (video or same_person or own_choice or preset is not AlignPreset.balanced):
        raise typer.BadParameter("--server aligns images, by its own weights, method and preset")
    if same_person and (box or resume or table or mask or crops or focal or landmarks):
        raise typer.BadParameter("--same-person goes with --boxes, --json, --draw and --mesh only")
    if server and not _is_web_address(server):
        raise typer.BadParameter(f"--server is an address http://HOST:PORT, not {server}")
    if focal and not isfinite(focal):
        raise typer.BadParameter("--focal is a number of pixels")
    if crop_size is not None and not crops:
        raise typer.BadParameter("--crop-size goes with --crops")
    if landmarks and not json_out:
        raise typer.BadParameter("--landmarks goes with --json")
    extras = _check_extras(landmarks)
    corners = parse_box(box) if box else None
    from dff.infra.storage import S3Access

    access = S3Access(anonymous, request_payer)
    load = partial(load_aligner_for, weights, method, cascade, preset, endpoint_url, access)
    if video:
        _align_video(
            load,
            images[0],
            smooth=smooth,
            json_out=json_out,
            draw=draw,
            mesh=mesh,
            table=table,
            focal=focal,
            extras=extras,
        )
        return
    listing = find_images(images, without=[path for path in (draw, mesh, mask, crops) if path])
    files = list(listing.images)
    if listing.passed_over:
        typer.secho(describe_passed_over(listing.passed_over), fg=typer.colors.YELLOW, err=True)
    check_not_inputs([*files, boxes], [json_out, mesh, table])
    if same_person:
        _align_person(load, files, boxes=boxes, json_out=json_out, draw=draw, mesh=mesh)
        return
    if box and len(files) > 1:
        raise typer.BadParameter("--box takes one image; use --boxes for several")
    given = {files[0]: [corners]} if corners else _read_boxes(boxes, files)
    _align_images(
        load,
        files,
        _Places(json_out, table, draw, mesh, mask, crops, crop_size),
        server=(server, key) if server else None,
        boxes=given,
        resume=resume,
        focal=focal,
        extras=extras,
    )


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number up to 65535
        return False


def _check_extras(landmarks: str | None) -> tuple[str, ...]:
    """The names of --landmarks. Raises BadParameter."""
    from dff.aligner.face_description import check_extras, parse_extras

    try:
        extras = parse_extras(landmarks)
        check_extras(extras)
    except ValueError as error:
        raise typer.BadParameter(f"--landmarks: {error}") from error
    return extras


def _align_video(
    load: LoadAligner,
    video: Path,
    *,
    smooth: bool,
    json_out: Path | None,
    draw: Path | None,
    mesh: Path | None,
    table: Path | None,
    focal: float | None,
    extras: tuple[str, ...],
) -> None:
    from dff.files.outputs import assign_outputs, check_not_inputs, check_suffix
    from dff.files.video_io import DRAWINGS, open_video

    if mesh:
        check_suffix(mesh, (".glb",))
    check_not_inputs([video], [json_out, mesh, table])
    drawing = assign_outputs(draw, [video], DRAWINGS)[video] if draw else None
    if json_out and drawing and json_out.resolve() == drawing.resolve():
        raise typer.BadParameter(f"--json and --draw both name {draw}")
    with open_video(video):  # what can't be read is refused before the weights are loaded
        pass
    from dff.files.video import align_video_file

    typer.echo(
        align_video_file(
            load(),
            video,
            smooth=smooth,
            json_out=json_out,
            drawing=drawing,
            mesh=mesh,
            table=table,
            focal=focal,
            extras=extras,
        )
    )


def _align_person(
    load: LoadAligner,
    files: list[Path],
    *,
    boxes: Path | None,
    json_out: Path | None,
    draw: Path | None,
    mesh: Path | None,
) -> None:
    from dff.aligner.mesh_file import MESHES
    from dff.files.alignments import DRAWINGS, align_person_files
    from dff.files.images import unique_names
    from dff.files.outputs import assign_outputs, check_not_inputs, check_suffix, write_json
    from dff.infra.printing import printable

    if mesh:
        check_suffix(mesh, MESHES)
    drawings = assign_outputs(draw, files, DRAWINGS) if draw else {}
    for drawn in ([*drawings.values()], [draw]):
        check_not_inputs((), [json_out, mesh, *drawn])
    given = _read_boxes(boxes, files)
    aligner = load()
    person, lines, unread = align_person_files(
        aligner, files, boxes=given, drawings=drawings, mesh=mesh
    )
    typer.echo("\n".join(map(printable, lines)))
    if json_out:
        write_json(json_out, person.to_json(unique_names(files)))
    if unread:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Places:
    """The files and folders that the options name for the results of images."""

    json: Path | None
    table: Path | None
    draw: Path | None
    mesh: Path | None
    mask: Path | None
    crops: Path | None
    crop_size: int | None  # pixels


def _align_images(
    load: LoadAligner,
    files: list[Path],
    places: _Places,
    *,
    server: tuple[str, str | None] | None,
    boxes: Mapping[Path, Sequence[Box]],
    resume: bool,
    focal: float | None,
    extras: tuple[str, ...],
) -> None:
    """``server``: address and API key. Exits with status 1 when an image was refused."""
    from dff.aligner.face_description import FaceDescriber
    from dff.files.alignments import (
        AlignmentWriter,
        ImageCounts,
        align_files,
        align_files_on_server,
        read_finished,
    )
    from dff.files.images import unique_names
    from dff.infra.printing import counted, printable

    names = dict(zip(files, unique_names(files), strict=True))
    outputs = _assign_outputs(places, files)
    finished: set[str] = set()
    if resume:
        if not outputs.json_lines:
            raise typer.BadParameter("--resume goes with --json FILE.jsonl")
        finished = read_finished(outputs.json_lines)
    todo = [path for path in files if names[path] not in finished]
    progress = len(files) > 1
    if server:
        from dff.client import Client

        client = Client(server[0], key=server[1], deadline=60.0)
        model = client.model
        results = align_files_on_server(client, todo, boxes=boxes, focal=focal, progress=progress)
    else:
        aligner = load()
        model = aligner.model
        results = align_files(aligner, todo, boxes=boxes, focal=focal, progress=progress)
    writer = AlignmentWriter(FaceDescriber(model, extras), names, outputs)
    if not resume:
        writer.begin()
    counts = ImageCounts()
    for result in results:
        counts.add(result)
        writer.write(result)
        _print_result(result, whole=not (outputs.json or outputs.table))
    writer.finish()
    written = [place for place in (outputs.json, outputs.table) if place]
    if written:
        kept = f"; {counted(len(files) - len(todo), 'image')} there already" if resume else ""
        typer.echo(printable(f"{counts.describe(written)}{kept}"))
    elif counts.refused and len(files) > 1:
        typer.echo(counts.describe(), err=True)
    if counts.refused:
        raise typer.Exit(1)


def _assign_outputs(places: _Places, files: list[Path]) -> ImageOutputs:
    """The outputs of each file. Raises BadParameter where two would be written to one place."""
    from dff.aligner.mesh_file import MESHES
    from dff.files.alignments import CROP_SIZE, DRAWINGS, PICTURES, ImageOutputs
    from dff.files.outputs import assign_outputs, check_not_inputs

    drawings, meshes, masks, crops = (
        assign_outputs(place, files, suffixes) if place else {}
        for place, suffixes in (
            (places.draw, DRAWINGS),
            (places.mesh, MESHES),
            (places.mask, PICTURES),
            (places.crops, PICTURES),
        )
    )
    made = [*drawings.values(), *meshes.values(), *masks.values()]
    check_not_inputs((), [places.json, places.table, *made])
    for folder in (places.draw, places.mesh, places.mask, places.crops):
        check_not_inputs((), [places.json, places.table, folder])
    return ImageOutputs(
        places.json,
        places.table,
        drawings,
        meshes,
        masks,
        crops,
        places.crop_size or CROP_SIZE,
    )


def _print_result(result: ImageResult, *, whole: bool) -> None:
    """The faces of an image where ``whole``, else only what is missing or doubtful."""
    from tqdm import tqdm

    from dff.infra.printing import printable

    if result.error:
        tqdm.write(printable(f"{result.path}: {result.error}"), file=sys.stderr)
    elif whole:
        tqdm.write("\n".join(map(printable, result.lines())))
    elif not result.faces:
        tqdm.write(printable(result.lines()[0]), file=sys.stderr)
    if result.warning:
        tqdm.write(printable(f"{result.path}: {result.warning}"), file=sys.stderr)


def _read_boxes(file: Path | None, images: list[Path]) -> Mapping[Path, Sequence[Box]]:
    """The boxes of ``--boxes`` by image; names that match none are told."""
    from dff.files.alignments import assign_boxes, read_boxes
    from dff.infra.printing import counted, printable

    if file is None:
        return {}
    boxes, unmatched = assign_boxes(read_boxes(file), images)
    if unmatched:
        typer.secho(
            printable(
                f"{file}: {counted(len(unmatched), 'name')} without an image among "
                f"{counted(len(images), 'image')}: "
                f"{', '.join(unmatched[:5])}{' and others' if len(unmatched) > 5 else ''}"
            ),
            fg=typer.colors.YELLOW,
            err=True,
        )
    return boxes


def parse_box(text: str, option: str = "--box") -> Box:
    """The box "x0,y0,x1,y1" of an option. Raises BadParameter."""
    corners = text.split(",")
    if len(corners) != 4:
        raise typer.BadParameter(f"{option} takes four numbers x0,y0,x1,y1, got {text!r}")
    try:
        return Box(*map(float, corners))
    except ValueError as error:
        raise typer.BadParameter(
            f"{option} takes x0,y0,x1,y1 with x0 < x1 and y0 < y1: {error}"
        ) from error
