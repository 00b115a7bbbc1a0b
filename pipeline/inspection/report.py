"""The page that shows a dataset to people: which views to look at, and one self-contained HTML file
of them.

Views are picked while the dataset's columns go by, then their shards are read once. What is picked
does not depend on anything but the dataset.
"""

from __future__ import annotations

import base64
import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from dff.face.arrays import Bytes
from dff.face.errors import BadDataset
from dff.face.extras import require_extra
from dff.face.io.assets import load_model
from dff.infra.dataset import Dataset
from dff.infra.shards import ViewRow
from dff.pipeline.inspection.gallery import (
    TRUTHS,
    contact_sheet,
    correspondence_picture,
    draw_landmarks,
    strip,
    truth_strip,
)
from dff.pipeline.inspection.statistics import recipe_names
from dff.pipeline.subjects import subject_file as person_file

with require_extra("synthesis"):
    import jinja2

TOGETHER = (
    8  # shards whose views are picked with equal chances; further ones only for what these lack
)
RANDOM, BY_YAW, NAMED, PEOPLE, WORST, STRIPS, PAIRS = 40, 5, 10, 10, 10, 6, 3
VIEWS = 10  # of a person
YAWS = np.arange(-90, 91, 20)
TILE = 128
QUALITY = 86

Where = tuple[int, int]  # shard, row


@dataclass
class Picks:
    """The views to show, chosen among all that ``add`` is told of."""

    shards: int  # of the dataset
    rng: np.random.Generator
    _kept: dict[tuple[str, str], list[tuple[float, Where]]] = field(default_factory=dict)
    _people: dict[str, list[tuple[float, list[Where]]]] = field(default_factory=dict)
    _worst: list[tuple[float, list[Where]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turn = self.rng.permutation(self.shards) // TOGETHER

    def add(self, shard: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Consider the views of a shard by its ``census.COLUMNS``."""
        count = len(columns["identity_id"])
        luck = self._turn[shard] + self.rng.random(count)
        people: dict[str, list[int]] = {}
        for row in range(count):
            people.setdefault(columns["identity_id"][row], []).append(row)
            where = (shard, row)
            near = int(np.abs(YAWS - columns["yaw"][row]).argmin())
            named = recipe_names(json.loads(columns["recipe"][row]))
            mode = columns["mode"][row] if columns["photo_id"][row] else "sampled"
            self._keep("random", "", RANDOM, luck[row], where)
            self._keep("yaw", f"{YAWS[near]:+d}°", BY_YAW, luck[row], where)
            self._keep("mode", mode, NAMED, luck[row], where)
            self._keep("worn", named["worn"], NAMED, luck[row], where)
            self._keep("mouth", named["mouth"], NAMED, luck[row], where)
        for rows in people.values():
            places = [(shard, row) for row in rows]
            kind = "photo" if columns["photo_id"][rows[0]] else "sampled"
            kept = self._people.setdefault(kind, [])
            kept.append((float(luck[rows[0]]), places))
            self._people[kind] = heapq.nsmallest(PEOPLE, kept)
            if kind == "photo":
                self._worst.append((float(columns["fit_error"][rows[0]]), places))
                self._worst = heapq.nlargest(WORST, self._worst)

    def _keep(self, group: str, name: str, count: int, luck: float, where: Where) -> None:
        kept = self._kept.setdefault((group, name), [])
        kept.append((float(luck), where))
        if len(kept) > 4 * count:
            kept[:] = heapq.nsmallest(count, kept)

    def group(self, group: str, count: int) -> dict[str, list[Where]]:
        """Up to ``count`` views for each name of a group."""
        return {
            name: [where for _, where in heapq.nsmallest(count, kept)]
            for (of, name), kept in self._kept.items()
            if of == group
        }

    def people(self) -> list[list[Where]]:
        """All views of some people, half of them of photos where there are any."""
        photo, sampled = (self._people.get(kind, []) for kind in ("photo", "sampled"))
        half = max(PEOPLE // 2, PEOPLE - len(sampled))
        chosen = photo[:half]
        return [places for _, places in chosen + sampled[: PEOPLE - len(chosen)]]

    def worst(self) -> list[list[Where]]:
        """All views of the photos whose landmarks the fit explains worst, the worst first."""
        return [places for _, places in self._worst]


@dataclass(frozen=True)
class Picture:
    """An image in a page."""

    title: str
    source: str  # data: address


@dataclass(frozen=True)
class Section:
    """Pictures of one kind, with what they show."""

    title: str
    about: str
    pictures: tuple[Picture, ...]
    beside: bool = False  # the pictures stand beside each other


def sections_of(dataset: Dataset, picks: Picks) -> list[Section]:
    """The pictures of the picked views. Raises BadDataset when a shard was altered or an image
    can't be decoded.
    """
    yaws = {f"{yaw:+d}°": picks.group("yaw", BY_YAW).get(f"{yaw:+d}°", []) for yaw in YAWS}
    at_random = picks.group("random", RANDOM).get("", [])
    named = {group: picks.group(group, NAMED) for group in ("mode", "worn", "mouth")}
    people = [_some(places) for places in picks.people()]
    worst = [_some(places, VIEWS - 2) for places in picks.worst()]
    pairs = [places for places in people if len(places) > 1][:PAIRS]
    wanted = {*at_random, *(w for some in (*yaws.values(), *people, *worst) for w in some)}
    wanted |= {where for names in named.values() for some in names.values() for where in some}
    rows = _read(dataset, wanted)
    out = [
        Section(
            "Views at random",
            "",
            (_picture("", contact_sheet([rows[w] for w in at_random], tile=TILE)),),
        ),
        Section(
            "By yaw",
            "",
            tuple(
                _picture(name, contact_sheet([rows[w] for w in some], columns=1, tile=TILE))
                for name, some in yaws.items()
                if some
            ),
            beside=True,
        ),
        Section(
            "What each pixel knows",
            ", ".join(TRUTHS) + "; hidden landmarks are hollow",
            tuple(
                _picture(
                    rows[w].sample_id,
                    truth_strip(rows[w], load_model(rows[w].model), tile=TILE + 32),
                )
                for w in _spread(yaws, STRIPS)
            ),
        ),
        Section(
            "Surface points that two views share",
            "",
            tuple(_pair([rows[w] for w in places]) for places in pairs),
        ),
        Section(
            "People across views",
            "one person a line, from one side to the other; of a photo's person the photo comes first",
            tuple(_person([rows[w] for w in places]) for places in people),
        ),
    ]
    if worst:
        about = "one person a line: the photo, the fitted landmarks on it, its rendering, and other views"
        lines = tuple(_fit([rows[w] for w in places]) for places in worst)
        out.append(Section("Worst fits first", about, lines))
    titles = {
        "mode": "By the way a view is made",
        "worn": "By what is worn",
        "mouth": "By the mouth's movement",
    }
    for group, title in titles.items():
        lines = tuple(
            _picture(name, strip([rows[w].pixels() for w in some], tile=TILE))
            for name, some in sorted(
                named[group].items(), key=lambda item: (-len(item[1]), item[0])
            )[:24]
        )
        if len(lines) > 1:
            out.append(Section(title, "", lines))
    return out


def render(inspection: Any, sections: Sequence[Section]) -> str:
    """One self-contained HTML page: numbers, histograms and pictures."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dff.pipeline.inspection"), autoescape=True
    )
    return environment.get_template("inspect.html").render(
        i=inspection, m=inspection.manifest, sections=sections
    )


def _some(places: Sequence[Where], count: int = VIEWS) -> list[Where]:
    """The first view and others, evenly."""
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, count).astype(int))]


def _spread(yaws: Mapping[str, list[Where]], count: int) -> list[Where]:
    """Views of all yaws."""
    last = [some[-1] for some in yaws.values() if some]
    return [last[i] for i in np.unique(np.linspace(0, len(last) - 1, count).astype(int))]


def _read(dataset: Dataset, wanted: set[Where]) -> dict[Where, ViewRow]:
    out: dict[Where, ViewRow] = {}
    for shard in sorted({shard for shard, _ in wanted}):
        rows = dataset.read_shard(shard)
        out |= {(shard, row): rows[row] for at, row in wanted if at == shard}
    return out


def _photo(rows: Sequence[ViewRow]) -> Bytes | None:
    """The crop of the photo that a person comes from, from its stored assets; None for sampled
    people.
    """
    first = rows[0]
    if not first.photo_id or first.person is None:
        return None
    person = person_file.decode(first.person, load_model(first.model), name=first.identity_id)
    if person.photo_scene is None:
        raise BadDataset(f"{first.sample_id} names a photo, but its person has none")
    photo = np.asarray(
        np.clip(person.photo_scene.crop[..., :3] * 255.0 + 0.5, 0, 255), dtype=np.uint8
    )
    return np.asarray(cv2.resize(photo, (first.width, first.height), interpolation=cv2.INTER_AREA))


def _person(rows: Sequence[ViewRow]) -> Picture:
    photo = _photo(rows)
    shown = [row.pixels() for row in sorted(rows, key=lambda row: row.pose[0])]
    title = f"{rows[0].identity_id} · {rows[0].split} · {rows[0].licence}"
    images = shown if photo is None else [photo, *shown]
    return _picture(title, strip(images, tile=TILE, marked=0 if photo is None else 1))


def _fit(rows: Sequence[ViewRow]) -> Picture:
    first, photo = rows[0], _photo(rows)
    before: list[Bytes] = []
    if photo is not None and first.view == 0:
        before = [photo, draw_landmarks(photo, first.landmarks_2d, first.visible_2d, scale=2)]
    title = f"{first.identity_id}: landmark error {first.fit_error:.3f} of the face's size"
    return _picture(
        title, strip([*before, *(row.pixels() for row in rows)], tile=TILE, marked=len(before))
    )


def _pair(rows: Sequence[ViewRow]) -> Picture:
    """Two views some 50 degrees of yaw apart: enough to be interesting, little enough to have much
    in common.
    """
    a = min(rows, key=lambda row: abs(row.pose[0]))
    b = min(rows, key=lambda row: (row is a, abs(abs(row.pose[0] - a.pose[0]) - 50.0)))
    return _picture(
        f"{a.sample_id} and {b.sample_id}", correspondence_picture(a, b, load_model(a.model))
    )


def _picture(title: str, image: Bytes) -> Picture:
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return Picture(
        title, "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
    )
