"""Agreement of a rig's cameras as two people's faces give it: ``python -m benchmarks.rig``.

Sixteen cameras around a chair see one person after another, each with an expression of the instant.
From the fitted poses of one person's photos follow the rotations between the cameras. They are the
same for all who sit there, so the angle between those of two people is an error of the
poses, whatever the shape of the face. Photos are rendered, as the synthesis engine draws them, of
people of ICT-FaceKit (skipped where the file is absent) and of the open head. Boxes are given.

"alone": each photo by ``Aligner.align``; "together": all photos of a person by
``Aligner.align_person``. Median over pairs of cameras and pairs of people, in degrees, and the
median error of the same rotations against the true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.multi_image import ICT, RenderedPerson
from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.load import load_aligner
from dff.aligner.threads import use_threads
from dff.face.arrays import Floats
from dff.face.geometry.transform import geodesic_degrees, rotation_from_angles
from dff.face.io.assets import load_albedo, load_model
from dff.face.model.morphable import MorphableModel
from dff.infra.photos.images import decode
from dff.pipeline.job.work import derive_seed
from dff.pipeline.scene.camera_sensor import Framing, frame_face
from dff.pipeline.scene.sampling import draw_scene
from dff.pipeline.scene.views import render_scene
from dff.pipeline.subjects.build import sample_person

SIZE = 256  # px
FRAMING = Framing(distance=1.2, off_axis=(0.0, 0.0), share=0.5, centre=(0.5, 0.54))
CAMERAS = tuple(
    rotation_from_angles(yaw, pitch, 0.0)
    for yaw, pitch in product((-75.0, -45.0, -15.0, 0.0, 15.0, 30.0, 45.0, 75.0), (-12.0, 15.0))
)
"""(3, 3) rotations of the cameras from a head that looks to the middle of the rig."""
TURN = 8.0  # degrees, standard deviation of the angles by which a person looks elsewhere


@dataclass(frozen=True)
class Sitter:
    """A person in the photos of all cameras, with the true rotations cam_from_head."""

    photos: RenderedPerson
    rotations: Floats  # (C, 3, 3)


def render_sitter(model: MorphableModel, name: str, seed: int) -> Sitter:
    rng = np.random.default_rng(derive_seed(seed, name))
    person = sample_person(
        name, model=model, albedo=load_albedo(model=model), texture_size=512, rng=rng
    )
    frontal = rotation_from_angles(0.0, 0.0, 0.0)
    turned = frontal.T @ rotation_from_angles(*rng.normal(0.0, TURN, 3))
    expression = draw_scene(person, 1, model=model, rng=rng, size=SIZE).expression
    images, landmarks, rotations = [], [], []
    for camera in CAMERAS:
        rotation = camera @ turned
        scene = draw_scene(person, 1, model=model, rng=rng, size=SIZE)
        pose, lens = frame_face(person.landmarks(expression, model), rotation, FRAMING, SIZE)
        scene = replace(scene, expression=expression, cam_from_head=pose, camera=lens)
        shot = render_scene(person, scene, model=model, size=SIZE)
        images.append(decode(shot.image))
        landmarks.append(shot.landmarks.fixed)
        rotations.append(rotation)
    return Sitter(RenderedPerson(person.neutral, images, landmarks), np.array(rotations))


def between(rotations: Floats) -> Floats:
    """(P, 3, 3) rotations between the cameras of each pair, of (C, 3, 3) cam_from_head."""
    return np.array([rotations[i] @ rotations[j].T for i, j in PAIRS])


PAIRS = tuple(combinations(range(len(CAMERAS)), 2))


def fitted(faces: Sequence[Alignment | None]) -> Floats:
    """(C, 3, 3) rotations cam_from_head; NaN where there is no face, or it failed."""
    missing = np.full((3, 3), np.nan)
    return np.array(
        [missing if face is None or face.failed else face.cam_from_head.rotation for face in faces]
    )


def measured(
    aligner: Aligner, model: MorphableModel, people: int, seed: int, console: Console
) -> dict[str, tuple[float, float, float]]:
    """By method: disagreement and error in degrees, and the share of photos with a pose."""
    found: dict[str, list[Floats]] = {"alone": [], "together": []}
    true: list[Floats] = []
    for number in track(range(people), model.name, console=console, transient=True):
        sitter = render_sitter(model, f"sitter-{number}", seed)
        images, boxes = sitter.photos.images, sitter.photos.boxes
        alone = aligner.align_batch(images, [[box] for box in boxes])
        found["alone"].append(fitted([faces[0] for faces in alone]))
        found["together"].append(fitted(aligner.align_person(images, boxes).faces))
        true.append(between(sitter.rotations))
    out = {}
    for name, rotations in found.items():
        pairs = [between(one) for one in rotations]
        apart = [geodesic_degrees(a, b) for a, b in combinations(pairs, 2)]
        wrong = [geodesic_degrees(a, b) for a, b in zip(pairs, true, strict=True)]
        posed = np.isfinite(np.array(rotations)[:, :, 0, 0]).mean()
        out[name] = float(np.nanmedian(apart)), float(np.nanmedian(wrong)), float(posed)
    return out


def main(
    asset: Annotated[
        Path, typer.Option(help="ICT-FaceKit, whose people are the other model's; absent: skipped.")
    ] = ICT,
    people: Annotated[int, typer.Option(min=2, help="Of each model.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the people and their photos.")] = 977,
    weights: Annotated[str, typer.Option(help="Weights, a file or a shipped name.")] = "dff-open",
) -> None:
    use_threads(1)
    cv2.setNumThreads(1)
    console = Console()
    aligner = load_aligner(weights)
    table = Table("people of", "photos", "two people disagree", "error", "photos with a pose")
    for model in [*([load_model(str(asset))] if asset.is_file() else []), load_model()]:
        rows = measured(aligner, model, people, seed, console)
        for name, (apart, wrong, posed) in rows.items():
            table.add_row(model.name, name, f"{apart:.1f}°", f"{wrong:.1f}°", f"{posed:.0%}")
    console.print(table)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=__doc__)(main)
    app()
