"""Shape from several photos of one person: error against the number of photos.

    python -m benchmarks.together [--asset ../shared/models/ict-facekit-light/ict_facekit_light.npz] [--people 8]

People with hair, glasses, hands and clothes, each with ten views of all poses, expressions, lights and sensors as the
synthesis engine draws them: people of ICT-FaceKit (skipped where the file is absent), and people sampled from the open
head whose seeds no training job used. Their boxes are given; views whose alignment alone failed are left out for every
number of photos alike.

Error: mean distance (mm) of the true face at rest (face, lips, brows within 85 mm of the nose tip) from the found one,
scaled by the distance of the outer eye corners and laid onto it rigidly, as in ``benchmarks.cross_model``. Groups of
photos are disjoint, so the error "of one photo" is the mean over all single ones. "alone": the aligner as it aligns one
photo; "mean face": what no photo at all would give.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from aligner.align import Aligner, load_aligner
from aligner.alignment import Alignment
from benchmarks.cross_model import Ruler
from face.arrays import Bytes, Floats
from face.assets import load_albedo, load_model
from face.camera import Box
from face.errors import NoFace
from face.morphable import Coefficients, MorphableModel
from infra.images import decode
from pipeline.persons import sampled_person
from pipeline.plan import seed_of
from pipeline.views import draw_scene, photographed

SIZE = 256  # px
VIEWS = 10
COUNTS = (1, 2, 5, 10)
ICT = Path("../shared/models/ict-facekit-light/ict_facekit_light.npz")
WANTED = 0.2  # by which the error with five photos is less than with one


@dataclass(frozen=True)
class Sitter:
    """A person, and photos."""

    neutral: Floats  # (V, 3) metres, the true face at rest
    images: list[Bytes]
    boxes: list[Box]


def sitter(model: MorphableModel, name: str, seed: int) -> Sitter:
    albedo = load_albedo(model=model)
    rng = np.random.default_rng(seed_of(seed, name))
    person = sampled_person(name, model=model, albedo=albedo, texture_size=512, rng=rng)
    images, boxes = [], []
    for view in range(VIEWS):
        rng = np.random.default_rng(seed_of(seed, f"{name}/{view}"))
        scene = draw_scene(person, view, model=model, rng=rng, size=SIZE)
        shot = photographed(person, scene, model=model, size=SIZE)
        images.append(decode(shot.image))
        boxes.append(Box.around(shot.landmarks.fixed))
    return Sitter(person.neutral, images, boxes)


def at_rest(model: MorphableModel, face: Alignment) -> Floats:
    return model.vertices(Coefficients(face.coefficients.identity, np.zeros(len(model.expression))))


def errors_of(aligner: Aligner, ruler: Ruler, one: Sitter) -> dict[str, list[tuple[float, float]]]:
    """Errors in mm (to the surface, of corresponding points) by way of finding the shape."""
    alone = [faces[0] for faces in aligner.align_batch(one.images, [[box] for box in one.boxes])]
    usable = [i for i, face in enumerate(alone) if not face.failed]
    out = {
        "mean face": [ruler.surface_mm(one.neutral, aligner.model.template.astype(np.float64))],
        "alone": [ruler.surface_mm(one.neutral, at_rest(aligner.model, alone[i])) for i in usable],
    }
    for count in COUNTS:
        groups = [usable[i : i + count] for i in range(0, len(usable) - count + 1, count)]
        if count == VIEWS:
            groups = [usable]
        errors = out[str(count)] = []
        for group in groups:
            try:
                found = aligner.align_together([one.images[i] for i in group], [one.boxes[i] for i in group])
            except NoFace:
                continue
            errors.append(ruler.surface_mm(one.neutral, found.vertices))
    return out


def measured(
    aligner: Aligner, truth: MorphableModel, people: int, seed: int, console: Console
) -> dict[str, tuple[float, float]]:
    """The mean over people of their mean errors."""
    ruler = Ruler.of(truth, aligner.model)
    found: dict[str, list[Floats]] = {}
    for number in track(range(people), truth.name, console=console, transient=True):
        for name, errors in errors_of(aligner, ruler, sitter(truth, f"sitter-{number}", seed)).items():
            if errors:
                found.setdefault(name, []).append(np.mean(errors, axis=0))
    return {name: tuple(np.mean(rows, axis=0)) for name, rows in found.items()}


def main(asset: Path = ICT, people: int = 8, seed: int = 977, weights: str | None = None) -> None:
    console = Console()
    aligner = load_aligner(weights)
    truths = [load_model()]
    if asset.is_file():
        truths.insert(0, load_model(str(asset)))
    else:
        console.print(f"people of another model: skipped, no file {asset}")
    for truth in truths:
        started = time.process_time()
        errors = measured(aligner, truth, people, seed, console)
        table = Table(
            "", "to the surface, mm", "corresponding, mm", "less than one photo", title=f"people of {truth.name}"
        )
        for name, (surface, corresponding) in errors.items():
            label = {"1": "1 photo"}.get(name, f"{name} photos" if name.isdigit() else name)
            less = 1 - np.array([surface, corresponding]) / errors["1"]
            table.add_row(label, f"{surface:.3f}", f"{corresponding:.3f}", f"{less[0]:.1%}, {less[1]:.1%}")
        console.print(table)
        gain = 1 - errors["5"][0] / errors["1"][0]
        console.print(
            f"five photos err {gain:.1%} less than one (wanted: {WANTED:.0%}); "
            f"{people} people x {VIEWS} views, {time.process_time() - started:.0f} s of processor time"
        )


if __name__ == "__main__":
    typer.run(main)
