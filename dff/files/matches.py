"""Match points between two image files, and write what was found."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.load import load_aligner
from dff.aligner.matching.draw import draw_heat_map, draw_point_matches
from dff.aligner.matching.matcher import Matcher
from dff.aligner.matching.result import PointMatches
from dff.aligner.threads import use_threads
from dff.face.arrays import Bytes
from dff.face.errors import BadPhoto, NoFace
from dff.face.geometry.camera import Box
from dff.files.outputs import check_suffix, write_json
from dff.infra.files import write_file
from dff.infra.photos.images import read_image
from dff.infra.storage import WITH_CREDENTIALS, S3Access

DRAWINGS = (".png", ".jpg", ".jpeg")


def match_files(
    first: Path,
    second: Path,
    *,
    weights: str | None,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
    points: Sequence[tuple[float, float]],
    landmarks: Sequence[str],
    vertices: Sequence[int],
    box_first: Box | None,
    box_second: Box | None,
    json_out: Path | None,
    draw: Path | None,
    heat_map: Path | None,
    dense: Path | None,
) -> list[str]:
    """Match points of ``first`` in ``second``, write the named files, and return a report.

    Raises BadPhoto and NoFace with the name of the photo, ValueError as ``Matcher.match``.
    """
    for drawing in (draw, heat_map):
        if drawing:
            check_suffix(drawing, DRAWINGS)
    if dense:
        check_suffix(dense, (".npy",))
    image_a, image_b = read_image(first), read_image(second)
    choices: dict[str, str] = {}  # by photo, which the dense map and the points share

    def note_choice(photo: str, faces: Sequence[Alignment]) -> None:
        path, option = {
            "the first photo": (first, "--box-first"),
            "the second photo": (second, "--box-second"),
        }[photo]
        choices[photo] = describe_choice(path, faces, option)

    use_threads(1)  # as for ``dff align``: more gain nothing, and spin on a busy machine
    aligner = load_aligner(weights, endpoint_url=endpoint_url, access=access)
    matcher = Matcher(aligner, on_choice=note_choice)
    lines: list[str] = []
    try:
        if points or landmarks or vertices:
            matches = matcher.match(
                image_a,
                list(points),
                image_b,
                landmarks=landmarks,
                vertices=vertices,
                box_a=box_first,
                box_b=box_second,
            )
            lines += describe_matches(matches)
            if json_out:
                write_json(json_out, matches.to_json())
            if draw:
                write_file(draw, _encode(draw, draw_point_matches(image_a, image_b, matches)))
            if heat_map:
                write_file(heat_map, _encode(heat_map, draw_heat_map(image_b, matches)))
        if dense:
            table = matcher.match_every_pixel(image_a, image_b, box_a=box_first, box_b=box_second)
            buffer = io.BytesIO()
            np.save(buffer, table)
            write_file(dense, buffer.getvalue())
            lines.append(f"{np.isfinite(table[..., 0]).sum()} pixels of the face in {dense}")
    except (NoFace, BadPhoto) as error:
        raise type(error)(f"{first} and {second}: {error}") from error
    return lines + list(choices.values())


def describe_choice(path: Path, faces: Sequence[Alignment], option: str) -> str:
    """A line about the first of several faces of a photo, which was taken."""
    x, y = faces[0].landmarks_3d[:, :2].mean(0)
    return (
        f"{path}: {len(faces)} faces found; the largest, at {x:.0f},{y:.0f}, was taken "
        f"({option} chooses another)"
    )


def describe_matches(matches: PointMatches) -> list[str]:
    """A line of text for each point, with the number that it has in drawings."""
    lines = []
    for i, (name, status) in enumerate(zip(matches.names, matches.status, strict=True)):
        if status == "not on a face":
            found = "not on a face"
        else:
            x, y = matches.px[i]
            hidden = "" if status == "visible" else ", not visible"
            found = f"{x:.1f},{y:.1f} (probability {matches.probability[i]:.2f}{hidden})"
        lines.append(f"{i + 1}. {name}: {found}")
    return lines


def _encode(path: Path, picture: Bytes) -> bytes:
    good, data = cv2.imencode(path.suffix.lower(), picture[..., ::-1])
    assert good
    return bytes(data)
