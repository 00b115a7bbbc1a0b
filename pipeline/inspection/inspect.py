"""Inspect a finished dataset: its statistics, its failures, a gallery, and its verification."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from dff.face.io.assets import load_model
from dff.infra.datasets.dataset import Dataset, Manifest, open_dataset
from dff.infra.files import write_file
from dff.infra.printing import counted
from dff.infra.storage import WITH_CREDENTIALS, S3Access
from dff.pipeline.inspection import report
from dff.pipeline.inspection.statistics import (
    COLUMNS,
    DatasetStatistics,
    Histogram,
    NameCounts,
    measure_skin_tone,
)
from dff.pipeline.inspection.verify import SAMPLE, Checks, check_dataset, raise_for_differences
from dff.pipeline.job import ledger
from dff.pipeline.job.work import Failure


@dataclass(frozen=True)
class InspectConfig:
    """How much of a dataset an inspection shows and measures."""

    examples: int = 5  # failures shown of each reason
    skin_shards: int = 16  # from which skin tones are measured
    skin_people: int = 256


CONFIG = InspectConfig()


@dataclass(frozen=True)
class Inspection:
    """A dataset in numbers."""

    uri: str
    manifest: Manifest
    bytes: int
    identities: int
    failures: dict[str, list[Failure]]  # by reason, the first few of each
    histograms: tuple[Histogram, ...]
    name_counts: tuple[NameCounts, ...]
    # Median and 90th percentile over the views of photos, in face sizes; None without any
    fit_error: tuple[float, float] | None
    checks: Checks | None

    def lines(self) -> list[str]:
        """The inspection as text, one fact per line."""
        m = self.manifest
        out = [
            f"{self.uri}: {counted(m.rows, 'view')} of "
            f"{counted(self.identities, 'identity', 'identities')}, "
            f"{self.bytes / 1e6:.1f} MB in {counted(len(m.shards), 'shard')}",
            *(
                f"  {name}: {_counted(m.counts.get(name, {}))}"
                for name in ("split", "model", "licence")
            ),
            f"  failed: {m.failed_subjects} of {counted(m.subjects, 'input')}"
            + (f" ({_counted(m.failures)})" if m.failures else ""),
        ]
        if self.fit_error is not None:
            median, most = self.fit_error
            out.append(
                f"  landmark error of the photos' fits: median {median:.4f}, "
                f"90th percentile {most:.4f}"
            )
        out += [
            f"    {f.reason}: {f.describe()}" for shown in self.failures.values() for f in shown
        ]
        for histogram in self.histograms:
            spans = ", ".join(f"{span}: {n}" for span, n in histogram.spans() if n)
            out.append(f"  {histogram.name} ({histogram.unit}): {spans}")
        out += [
            f"  {counts.name}: {', '.join(f'{key} {n}' for key, n in counts.top())}"
            for counts in self.name_counts
            if counts.name != "licence"
        ]
        if self.checks is not None:
            c = self.checks
            out.append(
                f"  verified: all hashes; {c.same} of {c.rows} views rendered again from their "
                f"rows, the same in every byte; {c.points} correspondences in {c.pairs} pairs of "
                f"views, at most {c.worst:.4f} px off"
            )
        return out


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(
        f"{name} {count}"
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def inspect_dataset(
    uri: str,
    *,
    html: Path | None = None,
    verify: bool = False,
    sample: int = SAMPLE,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
    config: InspectConfig = CONFIG,
) -> Inspection:
    """Collect the statistics of a finished dataset, and write a gallery to ``html``.

    ``verify`` compares every shard with its hash and renders ``sample`` views (0: all) again from
    their rows. Raises BadDataset when the dataset is unfinished, altered or wrong; the message
    names what is wrong. Raises StorageError when storage fails.
    """
    dataset = open_dataset(uri, endpoint_url=endpoint_url, access=access)
    if verify:
        dataset.verify()
    statistics, selection = (
        DatasetStatistics(),
        report.SampleSelection(len(dataset.shards), np.random.default_rng(0)),
    )
    for index in range(len(dataset.shards)):
        columns = dataset.columns(index, COLUMNS)
        statistics.add(columns)
        if html is not None:
            selection.add(index, columns)
    if html is not None:
        statistics.add_skin(_measure_skin_tones(dataset, config))
    errors = statistics.fit_errors
    checks = check_dataset(dataset, sample) if verify else None
    if checks is not None:
        raise_for_differences(checks, dataset)
    failures: dict[str, list[Failure]] = {}
    for record in ledger.read_all(dataset.storage):
        for failure in record.failures:
            if len(failures.setdefault(failure.reason, [])) < config.examples:
                failures[failure.reason].append(failure)
    inspection = Inspection(
        uri=dataset.storage.uri,
        manifest=dataset.manifest,
        bytes=sum(shard.bytes for shard in dataset.shards),
        identities=statistics.identities,
        failures=failures,
        histograms=statistics.histograms,
        name_counts=statistics.name_counts,
        fit_error=(float(np.median(errors)), float(np.percentile(errors, 90))) if errors else None,
        checks=checks,
    )
    if html is not None:
        page = report.render_page(inspection, report.build_sections(dataset, selection))
        write_file(html, page.encode())
    return inspection


def _measure_skin_tones(dataset: Dataset, config: InspectConfig) -> list[float]:
    """The skin tones of some identities, evenly from the shards, each from its first view."""
    shards = np.unique(np.linspace(0, len(dataset.shards) - 1, config.skin_shards).astype(int))
    tones = []
    for index in shards:
        groups = groupby(dataset.read_shard(int(index)), key=lambda row: row.identity_id)
        for _, views in islice(groups, config.skin_people // len(shards) + 1):
            found = (measure_skin_tone(row, load_model(row.model)) for row in views)
            tones.append(next((tone for tone in found if np.isfinite(tone)), np.nan))
    return tones
