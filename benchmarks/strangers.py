"""Photos of another person among those of one: how many are left out, and how many own photos.

Rendered people as in ``benchmarks.multi_image``, four photos each, with given boxes. People with a
photo whose single alignment failed are left out. Every group is four photos of one person, or three
and one of another person. The thresholds of ``MultiImageConfig`` were chosen on 60 people of the
open head with seed 21.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from benchmarks import multi_image
from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.appearance import AppearanceDescriptor
from dff.aligner.fitting.multi_image import find_strangers
from dff.aligner.load import load_aligner
from dff.aligner.threads import use_threads
from dff.face.io.assets import load_model

PHOTOS = 4  # of a person

AlignedPhotos = tuple[list[Alignment], list[AppearanceDescriptor]]


def align_person_apart(
    aligner: Aligner, person: multi_image.RenderedPerson
) -> AlignedPhotos | None:
    """The faces of a person's photos and their appearance; None where one failed."""
    images, boxes = person.images[:PHOTOS], person.boxes[:PHOTOS]
    faces = [found[0] for found in aligner.align_batch(images, [[box] for box in boxes])]
    if any(face.failed for face in faces):
        return None
    meter = aligner.appearance_meter
    return faces, [meter.measure(*one) for one in zip(images, faces, strict=True)]


def measure_shares(aligner: Aligner, people: list[AlignedPhotos]) -> dict[str, float]:
    """Shares of photos, 0 to 1."""

    def check(group: list[tuple[int, int]]) -> tuple[set[int], set[int]]:
        """Photos left out, and these with the doubtful ones."""
        faces = {i: people[p][0][k] for i, (p, k) in enumerate(group)}
        looks = {i: people[p][1][k] for i, (p, k) in enumerate(group)}
        found = find_strangers(faces, looks, aligner.config.multi_image)
        return set(found.strangers), {*found.strangers, *found.doubtful}

    count = len(people)
    own = [check([(p, k) for k in range(PHOTOS)]) for p in range(count)]
    mixed = [
        check([*((p, k) for k in range(PHOTOS - 1)), (other, PHOTOS - 1)])
        for p in range(count)
        for other in range(count)
        if other != p
    ]
    pairs = [check([(p, 0), (q, 1)]) for p in range(count) for q in range(count) if p != q]
    last = PHOTOS - 1
    shares: dict[str, float] = {}
    for i, what in enumerate(("left out", "left out or doubtful")):
        shares |= {
            f"own photos {what}, of four": float(np.mean([len(one[i]) / PHOTOS for one in own])),
            f"strangers {what}, one beside three": float(np.mean([last in m[i] for m in mixed])),
            f"own photos {what} beside a stranger": float(
                np.mean([len(m[i] - {last}) / last for m in mixed])
            ),
            f"two photos of two people {what}": float(np.mean([bool(one[i]) for one in pairs])),
        }
    return shares


def main(
    people: Annotated[int, typer.Option(min=2, help="Rendered people.")] = 48,
    seed: Annotated[int, typer.Option(help="Of the people and their photos.")] = 31,
    asset: Annotated[
        Path | None, typer.Option(help="Face model of the people; by default the open head.")
    ] = None,
) -> None:
    use_threads(1)
    cv2.setNumThreads(1)
    multi_image.VIEWS = PHOTOS
    console, aligner = Console(), load_aligner()
    model = load_model(str(asset)) if asset else load_model()
    found = [
        align_person_apart(aligner, multi_image.render_person(model, f"sitter-{number}", seed))
        for number in track(range(people), console=console)
    ]
    usable = [one for one in found if one is not None]
    console.print(f"{len(usable)} people of {model.name}, {PHOTOS} photos each")
    for name, share in measure_shares(aligner, usable).items():
        console.print(f"{name}: {share:.1%}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=__doc__)(main)
    app()
