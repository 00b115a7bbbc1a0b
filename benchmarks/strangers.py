"""Photos of several people given as photos of one: what is left out, called doubtful, or mixed.

Rendered people as in ``benchmarks.multi_image``, four photos each, with given boxes; people with a
photo whose single alignment failed are left out. With ``--photos``, photos of 300-W instead, in
which faces are searched: strangers are the held-out photos, and photos of one person those of
``SAME_PEOPLE``. An answer is mixed if it keeps photos of two people, and silent if it names none
of the photos that it keeps as doubtful. The thresholds of ``MultiImageConfig`` were chosen on
people of both models with seeds 201 and 202, and on training photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
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
from dff.aligner.evaluation.benchmarks import list_300w
from dff.aligner.fitting.multi_image import find_strangers
from dff.aligner.load import load_aligner
from dff.aligner.person_appearance import PersonAppearanceMeter
from dff.aligner.threads import use_threads
from dff.face.arrays import Bytes
from dff.face.io.assets import load_model
from dff.infra.photos.images import decode
from dff.infra.storage import open_storage

PHOTOS = 4  # of a person
GROUPS = 1000  # random groups of a kind
SETS = ("afw", "lfpw-train", "helen-train")
SAME_PEOPLE = (
    ("10405146_1", "10405299_1", "10405424_1", "10406776_1", "10407038_1"),
    ("13601258_1", "13601448_1"),
    ("18467619_1", "18467629_1"),
    ("118736828_1", "118737215_1"),
    ("151905797_1", "151906456_1"),
    ("154598717_1", "154598718_1"),
    ("166874039_1", "166874696_1"),
    ("167671232_1", "167671301_1", "167671345_1"),
    ("213033315_1", "213033657_1", "213034581_1", "213034733_1"),
    ("218904413_1", "218904494_1"),
    ("1033312112_1", "1033312288_1"),
    ("1440499238_1", "1440500396_1", "1440501186_1"),
    ("2065218949_1", "2065219235_1"),
    ("2203694817_1", "2203695965_1", "2203696399_2", "2204494382_1", "2204495618_2"),
    ("2203693721_2", "2204494382_2", "2204495618_1"),
)
"""Photos of Helen that show one person, among those with near numbers; judged by eye."""


@dataclass(frozen=True)
class SeenFace:
    """A face aligned alone."""

    person: str
    alignment: Alignment
    appearance: AppearanceDescriptor


@dataclass(frozen=True)
class Outcome:
    """What the check of a group of photos leads to."""

    kept: tuple[SeenFace, ...]
    doubtful: int  # of the kept

    @property
    def mixed(self) -> bool:
        return len({face.person for face in self.kept}) > 1

    @property
    def silent(self) -> bool:
        return not self.doubtful


def align_person_apart(
    aligner: Aligner, person: multi_image.RenderedPerson
) -> list[Alignment] | None:
    """The faces of a person's photos; None where one failed."""
    images, boxes = person.images[:PHOTOS], person.boxes[:PHOTOS]
    faces = [found[0] for found in aligner.align_batch(images, [[box] for box in boxes])]
    return None if any(face.failed for face in faces) else faces


def see(
    meter: PersonAppearanceMeter, person: str, images: Sequence[Bytes], faces: Sequence[Alignment]
) -> list[SeenFace]:
    return [
        SeenFace(person, face, meter.measure(image, face))
        for image, face in zip(images, faces, strict=True)
    ]


def check(aligner: Aligner, group: Sequence[SeenFace]) -> Outcome:
    found = find_strangers(
        {i: face.alignment for i, face in enumerate(group)},
        {i: face.appearance for i, face in enumerate(group)},
        aligner.config.multi_image,
    )
    kept = [face for i, face in enumerate(group) if i not in found.strangers]
    return Outcome(tuple(kept), len(found.doubtful))


def describe(
    aligner: Aligner,
    people: Sequence[Sequence[SeenFace]],
    strangers: Sequence[Sequence[SeenFace]],
    *,
    rng: np.random.Generator,
) -> list[str]:
    """Lines of figures. ``people``: the photos of each; ``strangers``: those of other people."""
    lines = []
    for count in range(2, PHOTOS + 1):
        groups = [group for photos in people for group in combinations(photos, count)]
        found = [check(aligner, group) for group in groups]
        out = np.mean([1 - len(one.kept) / count for one in found])
        doubt = np.mean([not one.silent for one in found])
        every = np.mean([one.doubtful == len(one.kept) > 1 for one in found])
        lines.append(
            f"{count} photos of one person: {out:.1%} of the photos left out; {doubt:.1%} of "
            f"{len(found)} answers with a doubt, {every:.1%} in doubt as a whole"
        )
    for count in range(2, PHOTOS + 1):
        mixed = []
        for _ in range(GROUPS):
            chosen = rng.choice(len(strangers), count, replace=False)
            some = [strangers[i] for i in chosen]
            mixed.append([photos[int(rng.integers(len(photos)))] for photos in some])
        lines.append(f"{count} strangers: {_describe_mixed(aligner, mixed)}")
    for count in range(2, PHOTOS):
        own = [photos for photos in people if len(photos) >= count]
        mixed = []
        for _ in range(GROUPS):
            photos = own[rng.integers(len(own))]
            others = [some for some in strangers if some[0].person != photos[0].person]
            one = others[rng.integers(len(others))]
            kept = [photos[i] for i in rng.choice(len(photos), count, replace=False)]
            mixed.append([*kept, one[int(rng.integers(len(one)))]])
        lines.append(
            f"a stranger beside {count} photos of one person: {_describe_mixed(aligner, mixed)}"
        )
    return lines


def _describe_mixed(aligner: Aligner, groups: Sequence[Sequence[SeenFace]]) -> str:
    found = [check(aligner, group) for group in groups]
    mixed = np.mean([one.mixed for one in found])
    silent = np.mean([one.mixed and one.silent for one in found])
    return f"{mixed:.1%} of the answers mix people, {silent:.1%} without a doubt"


def see_photos(aligner: Aligner, folder: Path) -> tuple[list[list[SeenFace]], list[list[SeenFace]]]:
    """The photos of ``SAME_PEOPLE``, and one of each held-out photo's person."""
    known = {stem: number for number, stems in enumerate(SAME_PEOPLE) for stem in stems}
    people: list[list[SeenFace]] = [[] for _ in SAME_PEOPLE]
    strangers = []
    for name in SETS:
        storage = open_storage(str(folder / name))
        held_out = {sample.name for sample in list_300w(storage, "dev")}
        for sample in list_300w(storage, "all"):
            number = known.get(sample.name)
            if number is None and sample.name not in held_out:
                continue
            image = decode(storage.read(sample.image_key))
            faces = aligner.align(image)
            if not faces or faces[0].failed:
                continue
            person = sample.name if number is None else f"person {number}"
            seen = see(aligner.person_meter, person, [image], faces[:1])
            if number is None:
                strangers.append(seen)
            else:
                people[number] += seen
    return people, strangers


def see_rendered(
    aligner: Aligner, asset: Path | None, people: int, seed: int, console: Console
) -> list[list[SeenFace]]:
    model = load_model(str(asset)) if asset else load_model()
    # rendered people do not share what fits to photos share
    shared = np.zeros(len(aligner.model.identity))
    known = aligner.person_meter
    meter = PersonAppearanceMeter(known.meter, shared, known.statistics)
    found = []
    for number in track(range(people), console=console):
        name = f"sitter-{number}"
        person = multi_image.render_person(model, name, seed, views=PHOTOS)
        if faces := align_person_apart(aligner, person):
            found.append(see(meter, name, person.images, faces))
    console.print(f"{len(found)} people of {model.name}, {PHOTOS} photos each")
    return found


def main(
    people: Annotated[int, typer.Option(min=2, help="Rendered people.")] = 48,
    seed: Annotated[int, typer.Option(help="Of the people and their photos.")] = 31,
    asset: Annotated[
        Path | None, typer.Option(help="Face model of the people; by default the open head.")
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(help=f"Folder with {', '.join(SETS)} of 300-W, instead of rendered people."),
    ] = None,
) -> None:
    use_threads(1)
    cv2.setNumThreads(1)
    console, aligner = Console(), load_aligner()
    if photos:
        own, strangers = see_photos(aligner, photos)
        console.print(f"{len(own)} people of Helen; {len(strangers)} other photos")
    else:
        own = strangers = see_rendered(aligner, asset, people, seed, console)
    for line in describe(aligner, own, strangers, rng=np.random.default_rng(seed)):
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=__doc__)(main)
    app()
