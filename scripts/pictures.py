"""Make the pictures of the documentation: alignment.jpg, overview.jpg and sampled.jpg.

    python scripts/pictures.py [docs]

The only photo in them is in the public domain (scikit-image's astronaut: Eileen Collins, NASA).
All other people are sampled from the face model. The script takes some seconds on one core.
"""

from __future__ import annotations

import json
import tempfile
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from dff.aligner.align import Aligner
from dff.aligner.draw import draw
from dff.aligner.load import load_aligner
from dff.demo.photograph import LICENCE, write_photograph
from dff.demo.run import SEED
from dff.demo.sections import compose_overview
from dff.face.arrays import Bytes
from dff.face.io.assets import load_albedo, load_model
from dff.infra.datasets.shards import ViewRow
from dff.infra.storage import LocalStorage
from dff.pipeline.inspection.gallery import contact_sheet
from dff.pipeline.inspection.recovery_panel import draw_recovery
from dff.pipeline.job.work import Subject
from dff.pipeline.recovery.inverse import invert
from dff.pipeline.recovery.photos import list_photos, read_photo
from dff.pipeline.subjects.subject_file import store_person
from dff.pipeline.synthesis import Options, build_person, render_views

SAMPLED, COLUMNS, TILE = 40, 10, 140
ACROSS = (5.0, 28.0, 51.0, 74.0)  # degrees of yaw of a sampled person's images, approximately
VIEWS = 60  # of the photo's person, from which the overview chooses
BLUR, NOISE, WRITTEN = (
    0.7,
    0.02,
    70,
)  # of sensors: below, and at this JPEG quality or above, a view is sharp
BEFORE = ("hand", "object", "cover")  # accessories that hide the face
QUALITY = 88
PORTRAIT, ENLARGED = (128, 0, 328, 240), 2  # the part of the photo in alignment.jpg, and its scale


def main(
    folder: Annotated[Path, typer.Argument(help="Where the pictures go.")] = Path("docs"),
) -> None:
    """Make all three pictures."""
    model, albedo, options = load_model(), load_albedo(), Options(views=10, photo_terms=LICENCE)
    people = []
    for number in range(SAMPLED):
        subject = Subject(f"sampled-{number:06d}", None)
        person = store_person(
            build_person(subject, storage=None, seed=SEED, options=options), model
        )
        people.append(
            render_views(person, model=model, seed=SEED, views=options.views, size=options.size)
        )
    shown = [_near(rows, ACROSS[i % len(ACROSS)]) for i, rows in enumerate(people)]
    sheet = contact_sheet(shown, columns=COLUMNS, tile=TILE)
    Image.fromarray(sheet).save(folder / "sampled.jpg", quality=QUALITY)

    with tempfile.TemporaryDirectory() as place:
        photograph = write_photograph(Path(place) / "photos")
        storage = LocalStorage(Path(place) / "photos")
        (photo,) = list_photos(storage)
        recovery = invert(read_photo(storage, photo), model=model, albedo=albedo)
        person = store_person(
            build_person(Subject(photo.id, photo), storage=storage, seed=SEED, options=options),
            model,
        )
    own = _mixed(render_views(person, model=model, seed=SEED, views=VIEWS, size=options.size))
    aligner = load_aligner()
    alignment = _alignment(photograph, aligner)
    Image.fromarray(alignment).save(folder / "alignment.jpg", quality=QUALITY)
    aligned = draw(photograph, aligner.align(photograph), aligner.model)
    panels = draw_recovery(recovery, model=model, albedo=albedo)
    others = [row for rows in people for row in _sharp(rows)]
    overview = compose_overview(photograph, panels, own + others, aligned)
    Image.fromarray(overview).save(folder / "overview.jpg", quality=QUALITY)


def _alignment(photo: Bytes, aligner: Aligner) -> Bytes:
    """Place side by side: the photo, its landmarks, and the fitted mesh with the pose axes."""
    part = Image.fromarray(photo).crop(PORTRAIT)
    portrait = np.asarray(part.resize((ENLARGED * part.width, ENLARGED * part.height)))
    faces = aligner.align(portrait)
    landmarks = draw(portrait, faces, aligner.model, mesh=False, axes=False)
    return np.hstack([portrait, landmarks, draw(portrait, faces, aligner.model)])


def _sharp(rows: list[ViewRow]) -> list[ViewRow]:
    """The views in colour that a good camera took."""
    out = []
    for row in rows:
        sensor = json.loads(row.recipe)["sensor"]
        good = sensor["blur"] < BLUR and sensor["shrink"] == 1.0 and sensor["noise"] < NOISE
        if good and not sensor["grey"] and sensor["quality"] >= WRITTEN:
            out.append(row)
    return out


def _mixed(rows: list[ViewRow]) -> list[ViewRow]:
    """The photo's own view, then alternately re-rendered views and rotated photos."""
    first, *others = rows
    free = [
        row
        for row in _sharp(others)
        if not any(n.startswith(BEFORE) for n in json.loads(row.recipe)["worn"])
    ]
    modes = [[row for row in free if row.mode == mode] for mode in ("rerender", "profile")]
    return [first, *chain.from_iterable(zip(*modes, strict=False))]


def _near(rows: list[ViewRow], yaw: float) -> ViewRow:
    """The sharp view of a person whose yaw is nearest to ``yaw``."""
    return min(_sharp(rows) or rows, key=lambda row: abs(abs(row.pose[0]) - yaw))


if __name__ == "__main__":
    typer.run(main)
