"""The report on a dataset: a selection of its views in one self-contained HTML file.

Views are selected from the dataset's columns, then their shards are read once. The selection
depends on the dataset alone.
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
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.shards import ViewRow
from dff.pipeline.inspection.gallery import (
    TRUTHS,
    contact_sheet,
    draw_correspondences,
    mark_landmarks,
    strip,
    truth_strip,
)
from dff.pipeline.inspection.statistics import describe_recipe
from dff.pipeline.subjects.subject_file import decode_person

with require_extra("synthesis"):
    import jinja2

YAWS = np.arange(-90, 91, 20)  # degrees; a view belongs to the nearest


@dataclass(frozen=True)
class ReportConfig:
    """How many views a report shows, and how large they are."""

    # Shards from which views are selected with equal probability; later shards only add views of
    # groups that these do not fill
    shards: int = 8
    random: int = 40  # views
    by_yaw: int = 5  # views of a yaw
    named: int = 10  # views of a mode, of accessories or of a movement
    people: int = 10
    worst: int = 10  # people with the largest fit errors
    truths: int = 6  # views whose ground truth is shown
    pairs: int = 3  # pairs of views with correspondences
    views: int = 10  # of a person
    lines: int = 24  # of a section by mode, accessories or movement
    tile: int = 128  # px
    quality: int = 86  # of the JPEG


CONFIG = ReportConfig()

GROUPS = {
    "mode": "By mode",
    "accessories": "By accessories",
    "mouth": "By movement of the mouth",
}
"""Groups of views that have a section of their own, and its title."""

Where = tuple[int, int]  # shard, row


@dataclass
class SampleSelection:
    """Selects the views to show among all that ``add`` is given."""

    shards: int  # of the dataset
    rng: np.random.Generator
    config: ReportConfig = CONFIG
    _kept: dict[tuple[str, str], list[tuple[float, Where]]] = field(default_factory=dict)
    _people: dict[str, list[tuple[float, list[Where]]]] = field(default_factory=dict)
    _worst: list[tuple[float, list[Where]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turn = self.rng.permutation(self.shards) // self.config.shards

    def add(self, shard: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Consider the views of a shard by its ``statistics.COLUMNS``."""
        config = self.config
        count = len(columns["identity_id"])
        luck = self._turn[shard] + self.rng.random(count)
        people: dict[str, list[int]] = {}
        for row in range(count):
            people.setdefault(columns["identity_id"][row], []).append(row)
            where = (shard, row)
            near = int(np.abs(YAWS - columns["yaw"][row]).argmin())
            named = describe_recipe(json.loads(columns["recipe"][row]))
            mode = columns["mode"][row] if columns["photo_id"][row] else "sampled"
            self._keep("random", "", config.random, luck[row], where)
            self._keep("yaw", f"{YAWS[near]:+d}°", config.by_yaw, luck[row], where)
            self._keep("mode", mode, config.named, luck[row], where)
            self._keep("accessories", named["accessories"], config.named, luck[row], where)
            self._keep("mouth", named["mouth"], config.named, luck[row], where)
        for rows in people.values():
            places = [(shard, row) for row in rows]
            kind = "photo" if columns["photo_id"][rows[0]] else "sampled"
            kept = self._people.setdefault(kind, [])
            kept.append((float(luck[rows[0]]), places))
            self._people[kind] = heapq.nsmallest(config.people, kept)
            if kind == "photo":
                self._worst.append((float(columns["fit_error"][rows[0]]), places))
                self._worst = heapq.nlargest(config.worst, self._worst)

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
        count = self.config.people
        half = max(count // 2, count - len(sampled))
        chosen = photo[:half]
        return [places for _, places in chosen + sampled[: count - len(chosen)]]

    def worst(self) -> list[list[Where]]:
        """All views of the photos with the largest fit errors, the largest first."""
        return [places for _, places in self._worst]


@dataclass(frozen=True)
class PageImage:
    """An image in a page."""

    title: str
    source: str  # data: address


@dataclass(frozen=True)
class GallerySection:
    """Images of one kind, with an explanation."""

    title: str
    about: str
    pictures: tuple[PageImage, ...]
    beside: bool = False  # the images are shown beside each other


def build_sections(dataset: Dataset, selection: SampleSelection) -> list[GallerySection]:
    """The sections of the selected views.

    Raises BadDataset when a shard was altered or an image can't be decoded.
    """
    config = selection.config
    by_yaw_name = selection.group("yaw", config.by_yaw)
    yaws = {name: by_yaw_name.get(name, []) for name in (f"{yaw:+d}°" for yaw in YAWS)}
    at_random = selection.group("random", config.random).get("", [])
    named = {group: selection.group(group, config.named) for group in GROUPS}
    people = [_spread_over(places, config.views) for places in selection.people()]
    worst = [_spread_over(places, config.views - 2) for places in selection.worst()]
    pairs = [places for places in people if len(places) > 1][: config.pairs]
    wanted = {*at_random, *(w for some in (*yaws.values(), *people, *worst) for w in some)}
    wanted |= {where for names in named.values() for some in names.values() for where in some}
    rows = _read(dataset, wanted)
    quality = config.quality

    def get_rows(places: Sequence[Where]) -> list[ViewRow]:
        return [rows[where] for where in places]

    def show_sheet(title: str, places: Sequence[Where], columns: int = 10) -> PageImage:
        sheet = contact_sheet(get_rows(places), columns=columns, tile=config.tile)
        return _encode(title, sheet, quality)

    def show_truth(row: ViewRow) -> PageImage:
        image = truth_strip(row, load_model(row.model), tile=config.tile + 32)
        return _encode(row.sample_id, image, quality)

    by_yaw = tuple(show_sheet(name, some, 1) for name, some in yaws.items() if some)
    truths = get_rows(_spread_over_yaws(yaws, config.truths))
    out = [
        GallerySection("Views at random", "", (show_sheet("", at_random),)),
        GallerySection("By yaw", "", by_yaw, beside=True),
        GallerySection(
            "Ground truth of each pixel",
            ", ".join(TRUTHS) + "; hidden landmarks are hollow",
            tuple(map(show_truth, truths)),
        ),
        GallerySection(
            "Surface points that two views share",
            "",
            tuple(_show_pair(get_rows(places), config) for places in pairs),
        ),
        GallerySection(
            "People across views",
            "one person per line, by yaw; people of photos begin with the photo",
            tuple(_show_person(get_rows(places), config) for places in people),
        ),
    ]
    if worst:
        about = "one person per line: the photo, the fitted landmarks on it, and its views"
        lines = tuple(_show_fit(get_rows(places), config) for places in worst)
        out.append(GallerySection("Worst fits first", about, lines))
    for group, title in GROUPS.items():
        by_size = sorted(named[group].items(), key=lambda item: (-len(item[1]), item[0]))
        lines = tuple(
            _encode(
                name, strip([row.pixels() for row in get_rows(some)], tile=config.tile), quality
            )
            for name, some in by_size[: config.lines]
        )
        if len(lines) > 1:
            out.append(GallerySection(title, "", lines))
    return out


def render_page(inspection: Any, sections: Sequence[GallerySection]) -> str:
    """One self-contained HTML page of figures, histograms and images."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dff.pipeline.inspection"), autoescape=True
    )
    return environment.get_template("inspect.html").render(
        i=inspection, m=inspection.manifest, sections=sections
    )


def _spread_over(places: Sequence[Where], count: int) -> list[Where]:
    """The first view and others, at even distances."""
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, count).astype(int))]


def _spread_over_yaws(yaws: Mapping[str, list[Where]], count: int) -> list[Where]:
    """Views of all yaws."""
    last = [some[-1] for some in yaws.values() if some]
    return [last[i] for i in np.unique(np.linspace(0, len(last) - 1, count).astype(int))]


def _read(dataset: Dataset, wanted: set[Where]) -> dict[Where, ViewRow]:
    out: dict[Where, ViewRow] = {}
    for shard in sorted({shard for shard, _ in wanted}):
        rows = dataset.read_shard(shard)
        out |= {(shard, row): rows[row] for at, row in wanted if at == shard}
    return out


def _decode_photo(rows: Sequence[ViewRow]) -> Bytes | None:
    """The photo's crop as stored with the person; None for sampled people."""
    first = rows[0]
    if not first.photo_id or first.person is None:
        return None
    person = decode_person(first.person, load_model(first.model), name=first.identity_id)
    if person.photo_scene is None:
        raise BadDataset(f"{first.sample_id} names a photo, but its person has none")
    photo = np.asarray(
        np.clip(person.photo_scene.crop[..., :3] * 255.0 + 0.5, 0, 255), dtype=np.uint8
    )
    return np.asarray(cv2.resize(photo, (first.width, first.height), interpolation=cv2.INTER_AREA))


def _show_person(rows: Sequence[ViewRow], config: ReportConfig) -> PageImage:
    photo = _decode_photo(rows)
    shown = [row.pixels() for row in sorted(rows, key=lambda row: row.pose[0])]
    title = f"{rows[0].identity_id} · {rows[0].split} · {rows[0].licence}"
    images = shown if photo is None else [photo, *shown]
    image = strip(images, tile=config.tile, marked=0 if photo is None else 1)
    return _encode(title, image, config.quality)


def _show_fit(rows: Sequence[ViewRow], config: ReportConfig) -> PageImage:
    first, photo = rows[0], _decode_photo(rows)
    before: list[Bytes] = []
    if photo is not None and first.view == 0:
        before = [photo, mark_landmarks(photo, first.landmarks_2d, first.visible_2d, scale=2)]
    title = f"{first.identity_id}: landmark error {first.fit_error:.3f} of the face's size"
    shown = [*before, *(row.pixels() for row in rows)]
    image = strip(shown, tile=config.tile, marked=len(before))
    return _encode(title, image, config.quality)


def _show_pair(rows: Sequence[ViewRow], config: ReportConfig) -> PageImage:
    """Two views about 50 degrees of yaw apart, which still share much of the face."""
    a = min(rows, key=lambda row: abs(row.pose[0]))
    b = min(rows, key=lambda row: (row is a, abs(abs(row.pose[0] - a.pose[0]) - 50.0)))
    image = draw_correspondences(a, b, load_model(a.model))
    return _encode(f"{a.sample_id} and {b.sample_id}", image, config.quality)


def _encode(title: str, image: Bytes, quality: int) -> PageImage:
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return PageImage(
        title, "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
    )
