"""The sections of the demo's report, and its overview picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.draw import draw, draw_landmarks
from dff.demo.errors import DemoError
from dff.demo.photograph import face_region, read_landmarks
from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import Box
from dff.face.io.assets import load_model
from dff.face.model.landmarks import INNER, nme_box
from dff.infra.datasets.shards import ViewRow
from dff.infra.networks import weights as weights_files
from dff.pipeline.inspection.gallery import PAPER, contact_sheet, draw_correspondences
from dff.pipeline.recovery.inverse import Recovery
from dff.report import Figure, Section, Table
from dff.trainer.evaluation.config import EVALUATION
from dff.trainer.evaluation.figures import draw_match_maps

PANELS = {
    "photo": "Photograph with annotated (red) and fitted landmarks (green)",
    "mesh": "Fitted mesh",
    "albedo": "Recovered albedo",
    "light": "Recovered light on white skin",
    "rendering": "Rendering of the recovered face",
    "residual": "Residual (grey is zero, pink is treated as occluded)",
}
QUALITY = {
    "landmark_error": ("landmark error, 68 landmarks (nme_box)", "{:.1%}"),
    "landmark_error_inner": ("landmark error, inner 51 landmarks (nme_box)", "{:.1%}"),
    "colour_error": ("mean colour error of the visible skin, of the range", "{:.1%}"),
    "occluded": ("skin that is occluded or unexplained", "{:.0%}"),
    "identity": ("identity, root mean square", "{:.2f} standard deviations"),
    "albedo": ("albedo, root mean square", "{:.2f} standard deviations"),
    "score": ("score of the fit, 0 to 1", "{:.2f}"),
}
"""What the report says of ``Recovery.quality``: a figure's name and format."""
MATCHES = {
    "match_px_mean": (f"mean error of a match, crop of {EVALUATION.crop_side} px", "{:.1f} px"),
    "match_px_median": (f"median error of a match, crop of {EVALUATION.crop_side} px", "{:.1f} px"),
    f"match_pck_{EVALUATION.pck_px}": (f"matches within {EVALUATION.pck_px} px", "{:.0%}"),
    "vote_mm_median": ("median error of a pixel's place on the face", "{:.1f} mm"),
}
"""What the report says of ``trainer.evaluation.matching.measure_matches``."""
MATCHED = [36, 45, 30, 48, 8]  # landmarks: eye corners, nose tip, a mouth corner, chin
WIDTH = 1200  # pixels of the overview
TILE, GAP = 117, 3  # pixels of a view in it, and between views
TOLERANCE = 0.5  # pixels between the landmarks of the service and of the library


def overview_section(overview: Bytes) -> Section:
    """The chain in one picture."""
    caption = "Photograph, recovered face, views, correspondences, alignment"
    return Section("Overview", "", [Figure(caption, overview, wide=True)])


def inverse_section(recovery: Recovery, panels: Mapping[str, Bytes]) -> Section:
    """Photo, mesh, albedo, light, rendering and residual."""
    return Section(
        "Inverse rendering",
        "Pose, identity, expression, albedo and light of the open head, from 68 landmarks and then "
        "from the pixels.",
        [Figure(caption, panels[name]) for name, caption in PANELS.items()],
        Table(
            ("quality", "value"),
            _describe(QUALITY, recovery.quality),
        ),
    )


def views_section(rows: Sequence[ViewRow]) -> Section:
    """Sheets of the photograph's views and of sampled faces."""
    own = [row for row in rows if row.photo_id]
    sampled = [row for row in rows if not row.photo_id]
    return Section(
        "Synthesised views",
        f"{len(rows)} views in Parquet shards: the recovered face, textured from the photograph, "
        "and faces sampled from the statistical model. Yaw up to ±95 degrees, with expressions, "
        "lights, cameras, backgrounds and camera sensors.",
        [
            Figure(
                "Views of the photograph's face with landmarks (hollow: not visible)",
                contact_sheet(own, landmarks=True),
                wide=True,
            ),
            Figure(
                "Sampled faces",
                contact_sheet(sampled[:: max(1, len(sampled) // 30)][:30]),
                wide=True,
            ),
        ],
    )


def correspondence_section(rows: Sequence[ViewRow]) -> Section:
    """Lines between two views of the photograph's face."""
    own = [row for row in rows if row.photo_id]
    picture = draw_correspondences(own[0], _find_rotated(own, 40.0), load_model())
    return Section(
        "Exact correspondence",
        "A row stores the triangle that each pixel shows; with the camera and the coefficients "
        "that gives the exact surface point. The same points in two views:",
        [Figure("Lines join the same point of the face", picture, wide=True)],
    )


def training_section(
    rows: Sequence[ViewRow], weights: Path, figures: Mapping[str, float], start: str
) -> Section:
    """Figures on held-out identities, and a heat map of matches between two views."""
    loaded = weights_files.load(weights)
    own = [row for row in rows if row.photo_id]
    first, points = _network_crop(own[0])
    second, _ = _network_crop(_find_rotated(own, 30.0))
    picture = draw_match_maps(loaded.net, loaded.anchors, first, second, points[MATCHED])
    return Section(
        "The Deep Face Feature",
        "A unit vector for each pixel. Five points of the first view, and the probability of "
        "their matches in the second (bright: likely). Trained on these views from "
        f"{start or 'scratch'}; the figures are of held-out identities.",
        [Figure("Matches of five points", picture, wide=True)],
        Table(
            ("held-out figure", "value"),
            _describe(MATCHES, figures),
        )
        if figures
        else None,
    )


def alignment_section(
    photograph: Bytes, aligner: Aligner, face: Alignment, answer: Mapping[str, Any]
) -> Section:
    """The alignment after each iteration, and its error against the annotation.

    Raises DemoError when the service's ``answer`` differs from the library's ``face``.
    """
    served = np.array(answer["faces"][0]["landmarks_2d"])
    difference = np.abs(served - face.landmarks_2d).max()
    if difference > TOLERANCE:
        raise DemoError(f"the service's landmarks are {difference:.2f} px from the library's")
    region = face_region()
    figures = []
    for number, iteration in enumerate(face.trace, start=1):
        image = photograph.copy()
        draw_landmarks(image, iteration.landmarks_2d, face.visibility)
        caption = f"Iteration {number}: residual {100 * iteration.residual:.1f} % of the face"
        figures.append(Figure(caption, image[region]))
    drawn = draw(photograph, [face], aligner.model)
    figures.append(Figure("Fitted mesh, landmarks and pose", drawn[region]))
    truth, pose = read_landmarks(), face.pose
    return Section(
        "Alignment by the served aligner",
        "Answered over HTTP by Ray Serve, with the descriptor trained above.",
        figures,
        Table(
            ("figure", "value"),
            [
                ("state", f"failed: {face.reason}" if face.failed else "accepted"),
                ("confidence", f"{face.face_confidence:.2f}"),
                ("nme_box, 68 landmarks", f"{100 * nme_box(face.landmarks_2d, truth):.2f} %"),
                (
                    "nme_box, inner 51 landmarks",
                    f"{100 * nme_box(face.landmarks_2d[INNER], truth[INNER]):.2f} %",
                ),
                ("yaw, pitch, roll", f"{pose.yaw:.1f}, {pose.pitch:.1f}, {pose.roll:.1f} degrees"),
            ],
        ),
    )


def timing_section(seconds: Mapping[str, float], request: Mapping[str, float]) -> Section:
    """Duration of each step, and milliseconds of the service's ``request``."""
    timing = ", ".join(f"{name} {value:.0f}" for name, value in request.items())
    return Section(
        "Timings",
        f"Seconds of each step on this machine ({os.cpu_count() or 1} cores). The service's own "
        f"timing of one request, in milliseconds: {timing}.",
        table=Table(("step", "seconds"), [(n, f"{value:.1f}") for n, value in seconds.items()]),
    )


def compose_overview(
    photograph: Bytes, panels: Mapping[str, Bytes], rows: Sequence[ViewRow], aligned: Bytes
) -> Bytes:
    """(H, WIDTH, 3) RGB: the chain in four lines of pictures.

    ``aligned``: the photograph with the alignment drawn on it.
    """
    own = [row for row in rows if row.photo_id]
    sampled = [row for row in rows if not row.photo_id and row.view == 1]
    region = face_region()
    chain = [
        photograph[region],
        panels["mesh"],
        panels["albedo"],
        panels["rendering"],
        aligned[region],
    ]
    top = np.hstack([np.asarray(Image.fromarray(image).resize((240, 240))) for image in chain])
    sheets = [_lay_out(some[:10]) for some in (own, sampled)]
    lines = draw_correspondences(own[0], _find_rotated(own, 40.0), load_model())
    height = WIDTH * lines.shape[0] // lines.shape[1]
    return np.vstack([top, *sheets, np.asarray(Image.fromarray(lines).resize((WIDTH, height)))])


def _lay_out(rows: Sequence[ViewRow]) -> Bytes:
    """A line of ten places for views, of which the last stay empty where there are fewer."""
    out = np.full((TILE + GAP, WIDTH, 3), PAPER, np.uint8)
    sheet = contact_sheet(rows, columns=len(rows), tile=TILE)
    out[: sheet.shape[0], : sheet.shape[1]] = sheet
    return out


def _describe(
    named: Mapping[str, tuple[str, str]], figures: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Rows of a table: the names of figures, and their values in these formats."""
    return [
        (name, form.format(figures[key]).replace("%", " %")) for key, (name, form) in named.items()
    ]


def _find_rotated(rows: Sequence[ViewRow], degrees: float) -> ViewRow:
    """The view of one face whose yaw differs from the first's by most nearly so much."""
    return min(rows[1:], key=lambda row: abs(abs(row.pose[0] - rows[0].pose[0]) - degrees))


def _network_crop(row: ViewRow, size: int = 128) -> tuple[Bytes, Floats]:
    """(size, size, 3) RGB around the view's face, and (68, 2) landmarks in the crop's pixels."""
    box = Box.around(row.landmarks_3d).square(1.4)
    image = Image.fromarray(row.pixels()).transform(
        (size, size),
        Image.Transform.EXTENT,
        (box.x0, box.y0, box.x1, box.y1),
        Image.Resampling.BILINEAR,
    )
    landmarks = (row.landmarks_3d - np.array([box.x0, box.y0])) * (size / box.width)
    return np.asarray(image), np.clip(landmarks, 0, size - 1)
