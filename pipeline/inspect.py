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
from face.assets import load_model
from infra.dataset import Dataset, Manifest, open_dataset
from infra.shards import ViewRow
from pipeline import ledger
from pipeline.gallery import contact_sheet, correspondence_picture, draw_landmarks
from pipeline.plan import Failure
from pipeline.verify import SAMPLE, Checks, check_dataset, refuse

YAW_EDGES = np.arange(-100.0, 101.0, 10.0)
PITCH_EDGES = np.arange(-60.0, 61.0, 10.0)
EXAMPLES = 5  # failures shown of each reason
SHEETS = 8  # identities in the gallery


@dataclass(frozen=True)
class Histogram:
    """Counts between edges."""

    name: str
    edges: Floats  # (N + 1,)
    counts: list[int]  # N


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
                f"  verified: all hashes; {c.same} of {c.rows} views rendered again from their rows, the same in every "
                f"byte; {c.points} correspondences in {c.pairs} pairs of views, at most {c.worst:.4f} px off"
            )
        return out


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def inspect_dataset(
    uri: str,
    *,
    html: Path | None = None,
    verify: bool = False,
    sample: int = SAMPLE,
    endpoint_url: str | None = None,
) -> Inspection:
    """Count what a finished dataset holds; write a gallery to ``html``; with ``verify`` check it: every shard against
    its hash, and ``sample`` views (0: all) rendered again from their rows.

    Raises BadDataset when it is unfinished, or when ``verify`` finds it altered or wrong: the message names the
    troubles. StorageError when storage fails.
    """
    dataset = open_dataset(uri, endpoint_url=endpoint_url)
    if verify:
        dataset.verify()
    yaw, pitch, errors, identities = Counter[int](), Counter[int](), list[float](), 0
    for index in range(len(dataset.shards)):
        columns = dataset.columns(index, ["identity_id", "yaw", "pitch", "fit_error", "photo_id"])
        yaw.update(np.digitize(columns["yaw"], YAW_EDGES).tolist())
        pitch.update(np.digitize(columns["pitch"], PITCH_EDGES).tolist())
        identities += len(set(columns["identity_id"]))
        errors += [e for e, photo in zip(columns["fit_error"], columns["photo_id"], strict=True) if photo]
    checks = check_dataset(dataset, sample) if verify else None
    if checks is not None:
        refuse(checks, dataset)
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
