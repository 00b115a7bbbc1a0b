"""Look into a finished dataset: what it holds, what failed, how it looks, and whether it is what it says."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import jinja2
import numpy as np

from face.arrays import Bytes, Floats
from face.assets import digest, load_model
from face.errors import BadDataset
from face.morphable import MorphableModel
from face.render import backends, zbuffer
from face.render.frame import OCCLUDER, render, visible
from face.render.visibility import Visibility
from infra.dataset import Dataset, Manifest, open_dataset
from infra.shards import ViewRow, frame_of
from pipeline import ledger
from pipeline.gallery import contact_sheet, correspondence_picture, draw_landmarks
from pipeline.plan import KEY, Failure, parse_plan
from pipeline.views import project_landmarks

YAW_EDGES = np.arange(-100.0, 101.0, 10.0)
PITCH_EDGES = np.arange(-60.0, 61.0, 10.0)
EXAMPLES = 5  # failures shown of each reason
SHEETS = 8  # identities in the gallery
SAMPLE = 24  # identities whose correspondences are checked
TOLERANCE = 0.1  # px
LANDMARK_TOLERANCE = 0.01  # px: landmarks are stored in float32
HIDDEN_DEPTH = 0.004  # metres


@dataclass(frozen=True)
class Histogram:
    """Counts between edges."""

    name: str
    edges: Floats  # (N + 1,)
    counts: list[int]  # N


@dataclass(frozen=True)
class Checks:
    """What ``--verify`` found; without troubles the dataset is what it says."""

    rows: int  # re-rendered
    pairs: int  # of views whose correspondences were compared
    points: int
    worst: float  # px, the largest distance between where a point should be and where it is
    troubles: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A dataset in numbers."""

    uri: str
    manifest: Manifest
    bytes: int
    identities: int
    failures: dict[str, list[Failure]]  # by reason, the first few of each
    histograms: tuple[Histogram, ...]
    fit_error: tuple[float, float]  # median and 90th percentile over the views of photos; 0 when there are none
    checks: Checks | None

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        m = self.manifest
        out = [
            f"{self.uri}: {m.rows} views of {self.identities} identities, {self.bytes / 1e6:.1f} MB in "
            f"{len(m.shards)} shards",
            *(f"  {name}: {_counted(m.counts.get(name, {}))}" for name in ("split", "mode", "model", "licence")),
            f"  landmark error of the fits: median {self.fit_error[0]:.4f}, 90th percentile {self.fit_error[1]:.4f}",
            f"  failed: {m.failed_subjects} of {m.subjects} inputs"
            + (f" ({_counted(m.failures)})" if m.failures else ""),
        ]
        out += [f"    {f.subject}: {f.reason}: {f.detail}" for shown in self.failures.values() for f in shown]
        for histogram in self.histograms:
            spans = zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True)
            out.append(f"  {histogram.name}: " + ", ".join(f"{a:.0f}..{b:.0f}: {n}" for a, b, n in spans if n))
        if self.checks is not None:
            c = self.checks
            out.append(
                f"  verified: all hashes; {c.rows} views rendered again; {c.points} correspondences in {c.pairs} pairs "
                f"of views, at most {c.worst:.4f} px off"
            )
        return out


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def inspect_dataset(
    uri: str, *, html: Path | None = None, verify: bool = False, endpoint_url: str | None = None
) -> Inspection:
    """Count what a finished dataset holds; write a gallery to ``html``; with ``verify`` check it.

    Raises BadDataset when it is unfinished, or when ``verify`` finds it altered or wrong: the message names the
    troubles. StorageError when storage fails.
    """
    dataset = open_dataset(uri, endpoint_url=endpoint_url)
    if verify:
        dataset.verify()
        _check_model(dataset)
    yaw, pitch, errors, identities = Counter[int](), Counter[int](), list[float](), 0
    for index in range(len(dataset.shards)):
        columns = dataset.columns(index, ["identity_id", "yaw", "pitch", "fit_error", "photo_id"])
        yaw.update(np.digitize(columns["yaw"], YAW_EDGES).tolist())
        pitch.update(np.digitize(columns["pitch"], PITCH_EDGES).tolist())
        identities += len(set(columns["identity_id"]))
        errors += [e for e, photo in zip(columns["fit_error"], columns["photo_id"], strict=True) if photo]
    checks = check_sample(dataset) if verify else None
    if checks is not None and checks.troubles:
        raise BadDataset(f"{uri}: {len(checks.troubles)} views are wrong: " + "; ".join(checks.troubles[:5]))
    failures: dict[str, list[Failure]] = {}
    for record in ledger.read_all(dataset.storage):
        for failure in record.failures:
            if len(failures.setdefault(failure.reason, [])) < EXAMPLES:
                failures[failure.reason].append(failure)
    inspection = Inspection(
        uri=dataset.storage.uri,
        manifest=dataset.manifest,
        bytes=sum(shard.bytes for shard in dataset.shards),
        identities=identities,
        failures=failures,
        histograms=(_histogram("yaw", YAW_EDGES, yaw), _histogram("pitch", PITCH_EDGES, pitch)),
        fit_error=(float(np.median(errors)), float(np.percentile(errors, 90))) if errors else (0.0, 0.0),
        checks=checks,
    )
    if html is not None:
        html.write_text(page(inspection, gallery_rows(dataset)), encoding="utf-8")
    return inspection


def _check_model(dataset: Dataset) -> None:
    """Raise BadDataset when this installation has another file of the face model than the dataset was made with."""
    name = f"{dataset.storage.uri.rstrip('/')}/{KEY}"
    plan = parse_plan(dataset.storage.read(KEY), name)
    model = str(plan.options["model"])
    if plan.assets[model] != digest(model):
        raise BadDataset(f"{name}: made with another file of {model}; its geometry can't be checked here")


def _histogram(name: str, edges: Floats, bins: Counter[int]) -> Histogram:
    last = len(edges) - 1
    counts = [bins[i] for i in range(1, len(edges))]
    counts[0] += bins[0]
    counts[-1] += bins[last + 1]
    return Histogram(name, edges, counts)


def gallery_rows(dataset: Dataset, identities: int = SHEETS) -> list[list[ViewRow]]:
    """The views of some identities, taken evenly from the dataset's shards."""
    out: list[list[ViewRow]] = []
    shards = np.unique(np.linspace(0, len(dataset.shards) - 1, identities).astype(int))
    wanted = -(-identities // len(shards))
    for index in shards:
        groups = [list(g) for _, g in groupby(dataset.read_shard(int(index)), key=lambda row: row.identity_id)]
        for position in np.unique(np.linspace(0, len(groups) - 1, wanted).astype(int)) if groups else []:
            out.append(groups[position])
    return out[:identities]


@dataclass(frozen=True)
class _Sheet:
    title: str
    views: str  # data: addresses of JPEG pictures
    landmarks: str
    correspondences: str


def page(inspection: Inspection, groups: Sequence[Sequence[ViewRow]]) -> str:
    """One self-contained HTML page: numbers, histograms, and a sheet for each identity."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("pipeline"), autoescape=True)
    sheets = [_sheet(rows) for rows in groups]
    return environment.get_template("inspect.html").render(i=inspection, m=inspection.manifest, sheets=sheets)


def _sheet(rows: Sequence[ViewRow]) -> _Sheet:
    title = f"{rows[0].identity_id} · {rows[0].split} · {rows[0].licence}"
    marked = [draw_landmarks(row.pixels(), row.landmarks_2d, row.visible_2d, scale=2) for row in rows[:4]]
    a, b = _far_apart(rows)
    lines = correspondence_picture(a, b, load_model(a.model)) if a is not b else marked[0]
    return _Sheet(title, _data_uri(contact_sheet(rows)), _data_uri(np.concatenate(marked, axis=1)), _data_uri(lines))


def _far_apart(rows: Sequence[ViewRow]) -> tuple[ViewRow, ViewRow]:
    """Two views some 50 degrees of yaw apart: enough to be interesting, little enough to have much in common."""
    first = min(rows, key=lambda row: abs(row.pose[0]))
    return first, min(rows, key=lambda row: (row is first, abs(abs(row.pose[0] - first.pose[0]) - 50.0)))


def _data_uri(image: Bytes) -> str:
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def check_sample(dataset: Dataset, identities: int = SAMPLE) -> Checks:
    """Render a sample of views again and compare their correspondences and landmarks with what is stored."""
    rng = np.random.default_rng(0)
    plan = parse_plan(dataset.storage.read(KEY), KEY)
    visibility = backends.backend(plan.renderer.split()[0])
    rows = pairs = points = 0
    worst, troubles = 0.0, list[str]()
    for group in gallery_rows(dataset, identities):
        model = load_model(group[0].model)
        for row in (group[i] for i in rng.permutation(len(group))[:3]):
            rows += 1
            troubles += check_row(row, model, visibility)
        if len(group) > 1:
            first, second = (group[i] for i in rng.permutation(len(group))[:2])
            away = correspondence_errors(first, second, model)
            pairs, points = pairs + 1, points + len(away)
            worst = max(worst, float(away.max(initial=0.0)))
            if away.max(initial=0.0) > TOLERANCE:
                troubles.append(
                    f"{first.sample_id} and {second.sample_id}: a correspondence is {away.max():.2f} px off"
                )
    return Checks(rows, pairs, points, worst, tuple(troubles))


def check_row(row: ViewRow, model: MorphableModel, visibility: Visibility = zbuffer.visibility) -> list[str]:
    """What is wrong with a row: ids, landmarks and visibility against rendering its geometry again."""
    vertices = row.cam_from_head.apply(model.vertices(row.coefficients))
    frame = render(vertices, model.faces, row.camera, (row.height, row.width), visibility=visibility)
    out = []
    hidden = row.triangle_ids == OCCLUDER
    different = int((frame.triangle != row.triangle_ids)[~hidden].sum())
    if different:
        out.append(f"{row.sample_id}: {different} pixels show another triangle when rendered again")
    marks = project_landmarks(vertices, frame, row.camera, model)
    for name, again, stored in (
        ("2D", marks.contour, row.landmarks_2d),
        ("3D", marks.fixed, row.landmarks_3d),
    ):
        away = float(np.abs(again - stored).max())
        if away > LANDMARK_TOLERANCE:
            out.append(f"{row.sample_id}: {name} landmarks are {away:.2f} px off")
    # What the model itself hides is hidden; where props stand before it, more may be.
    near = cv2.dilate(hidden.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    wrong = False
    for px, again_seen, seen in (
        (row.landmarks_2d, marks.contour_seen, row.visible_2d),
        (row.landmarks_3d, marks.fixed_seen, row.visible_3d),
    ):
        x, y = np.floor(np.clip(px, 0, [row.width - 1, row.height - 1])).astype(int).T
        wrong |= bool(((again_seen != seen) & ~(again_seen & near[y, x])).any())
    if wrong:
        out.append(f"{row.sample_id}: landmarks are hidden that should be seen, or the other way round")
    return out


def correspondence_errors(a: ViewRow, b: ViewRow, model: MorphableModel) -> Floats:
    """(N,) pixels by which points of ``a`` miss their places in ``b``.

    A surface point that a pixel of ``a`` shows is projected into ``b``. Where ``b`` shows it, the pixels round that
    place show surface points whose own projections into ``a`` are known; interpolating those at the place must lead
    back to the pixel of ``a``. Compared where the four pixels show the same triangle as the point, so that
    interpolation is exact up to perspective inside one triangle.
    """
    frame_a, frame_b = frame_of(a, model), frame_of(b, model)
    vertices_a, vertices_b = (row.cam_from_head.apply(model.vertices(row.coefficients)) for row in (a, b))
    points = frame_a.points()
    rows, columns = np.nonzero(frame_a.mask)
    here = np.stack([columns, rows], axis=1) + 0.5
    cam_b = points.of(vertices_b, model.faces)
    there = b.camera.px_from_cam(cam_b)
    seen = visible(frame_b, cam_b, b.camera, HIDDEN_DEPTH)
    back = np.full((b.height, b.width, 2), np.nan)
    back[frame_b.mask] = a.camera.px_from_cam(frame_b.points().of(vertices_a, model.faces))
    corner = np.floor(there - 0.5).astype(int)
    inside = (corner >= 0).all(1) & (corner + 1 < np.array([b.width, b.height])).all(1)
    corner[~inside] = 0
    x, y = corner.T
    around = np.stack([frame_b.triangle[y + j, x + i] for j in (0, 1) for i in (0, 1)], axis=1)
    same = inside & seen & (around == points.triangle[:, None]).all(1)
    fx, fy = (there - 0.5 - corner).T[:, :, None]
    found = (back[y, x] * (1 - fx) + back[y, x + 1] * fx) * (1 - fy)
    found += (back[y + 1, x] * (1 - fx) + back[y + 1, x + 1] * fx) * fy
    return np.asarray(np.linalg.norm(found - here, axis=1)[same])
