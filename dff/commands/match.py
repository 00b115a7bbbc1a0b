"""``dff match``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from dff.commands.align import parse_box
from dff.commands.options import (
    AnonymousOption,
    EndpointOption,
    RequestPayerOption,
    WeightsOption,
)


def match(
    first: Annotated[Path, typer.Argument(help="Photo in which the points are given.")],
    second: Annotated[Path, typer.Argument(help="Photo in which they are found.")],
    points: Annotated[
        list[str] | None,
        typer.Option(help="Pixels x,y of the first photo, separated by spaces; repeatable."),
    ] = None,
    landmarks: Annotated[
        list[str] | None,
        typer.Option(help="Names of landmarks, such as nose_tip,chin; repeatable."),
    ] = None,
    vertices: Annotated[
        list[str] | None,
        typer.Option(help="Numbers of vertices of the face model, such as 12,40; repeatable."),
    ] = None,
    box_first: Annotated[
        str | None,
        typer.Option(help="Face box in the first photo: x0,y0,x1,y1. Default: the largest face."),
    ] = None,
    box_second: Annotated[
        str | None,
        typer.Option(help="Face box in the second photo. Default: the largest face."),
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the matches to this file.")
    ] = None,
    draw: Annotated[
        Path | None, typer.Option(help="Draw both photos with their points to this PNG or JPEG.")
    ] = None,
    heat_map: Annotated[
        Path | None,
        typer.Option(help="Draw the similarity of the second photo to the points: PNG or JPEG."),
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            help="Write the match of every pixel of the first photo to this .npy: (H, W, 4) with "
            "x, y, probability and visibility; NaN beside the face."
        ),
    ] = None,
    weights: WeightsOption = None,
    endpoint_url: EndpointOption = None,
    anonymous: AnonymousOption = False,
    request_payer: RequestPayerOption = False,
) -> None:
    """Find points of a face in another photo, of the same person or of someone else.

    Pixels count from the image's upper left corner; the first pixel's centre is (0.5, 0.5).

    [dim]Examples:[/dim]

    dff match a.jpg b.jpg --points 120,80

    dff match a.jpg b.jpg --landmarks nose_tip,chin --draw matches.png --heat-map heat.png

    dff match a.jpg b.jpg --dense map.npy
    """
    from dff.files.matches import match_files
    from dff.files.outputs import check_not_inputs
    from dff.infra.files import check_output_file
    from dff.infra.printing import printable
    from dff.infra.storage import S3Access

    check_output_file(json_out, (".json",))
    for path in (draw, heat_map, dense):
        check_output_file(path)
    check_not_inputs([first, second], [json_out, draw, heat_map, dense])
    clicked = [parse_point(text) for option in points or [] for text in option.split()]
    names = [name for option in landmarks or [] for name in re.split(r"[,\s]+", option) if name]
    numbers = [
        parse_vertex(text)
        for option in vertices or []
        for text in re.split(r"[,\s]+", option)
        if text
    ]
    if not (clicked or names or numbers or dense):
        raise typer.BadParameter("give --points, --landmarks or --vertices, or --dense")
    if (json_out or draw or heat_map) and not (clicked or names or numbers):
        raise typer.BadParameter("--json, --draw and --heat-map are of points: give some")
    lines = match_files(
        first,
        second,
        weights=weights,
        endpoint_url=endpoint_url,
        access=S3Access(anonymous, request_payer),
        points=clicked,
        landmarks=names,
        vertices=numbers,
        box_first=parse_box(box_first, "--box-first") if box_first else None,
        box_second=parse_box(box_second, "--box-second") if box_second else None,
        json_out=json_out,
        draw=draw,
        heat_map=heat_map,
        dense=dense,
    )
    for line in lines:
        typer.echo(printable(line))


def parse_point(text: str) -> tuple[float, float]:
    """(x, y) from "x,y". Raises BadParameter."""
    parts = text.strip("()[];").split(",")
    try:
        x, y = map(float, parts)
    except ValueError:
        raise typer.BadParameter(f"--points takes x,y in pixels, got {text!r}") from None
    return x, y


def parse_vertex(text: str) -> int:
    """A vertex number. Raises BadParameter."""
    if not text.isdecimal():
        raise typer.BadParameter(f"--vertices takes whole numbers, got {text!r}")
    return int(text)
