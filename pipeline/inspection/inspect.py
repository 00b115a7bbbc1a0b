"""Look into a finished dataset: what it holds, what failed, how it looks, and whether it is what it
says.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from dff.face.io.assets import load_model
from dff.infra.dataset import Dataset, Manifest, open_dataset
from dff.pipeline.inspection import report as pages
from dff.pipeline.inspection.statistics import COLUMNS, Census, Histogram, Tally, skin_tone
from dff.pipeline.inspection.verify import SAMPLE, Checks, check_dataset, refuse
from dff.pipeline.job import ledger
from dff.pipeline.job.work import Failure

EXAMPLES = 5  # failures shown of each reason
SKIN_SHARDS, SKIN_PEOPLE = 16, 256  # whose skin tones are measured for the gallery


@dataclass(frozen=True)
class Inspection:
    """A dataset in numbers."""

    uri: str
    manifest: Manifest
    bytes: int
    identities: int
    failures: dict[str, list[Failure]]  # by reason, the first few of each
    histograms: tuple[Histogram, ...]
    tallies: tuple[Tally, ...]
    fit_error: (
        tuple[float, float] | None
    )  # median and 90th percentile over the views of photos; None without any
    checks: Checks | None

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        m = self.manifest
        out = [
            f"{self.uri}: {m.rows} views of {self.identities} identities, {self.bytes / 1e6:.1f} MB in "
            f"{len(m.shards)} shards",
            *(
                f"  {name}: {_counted(m.counts.get(name, {}))}"
                for name in ("split", "model", "licence")
            ),
            f"  failed: {m.failed_subjects} of {m.subjects} inputs"
            + (f" ({_counted(m.failures)})" if m.failures else ""),
        ]
        if self.fit_error is not None:
            median, most = self.fit_error
            out.append(
                f"  landmark error of the photos' fits: median {median:.4f}, 90th percentile {most:.4f}"
            )
        out += [
            f"    {f.subject}: {f.reason}: {f.detail}"
            for shown in self.failures.values()
            for f in shown
        ]
        for histogram in self.histograms:
            spans = ", ".join(f"{span}: {n}" for span, n in histogram.spans() if n)
            out.append(f"  {histogram.name} ({histogram.unit}): {spans}")
        out += [
            f"  {tally.name}: {', '.join(f'{key} {n}' for key, n in tally.top())}"
            for tally in self.tallies
            if tally.name != "licence"
        ]
        if self.checks is not None:
            c = self.checks
            out.append(
                f"  verified: all hashes; {c.same} of {c.rows} views rendered again from their rows, the same in every "
                f"byte; {c.points} correspondences in {c.pairs} pairs of views, at most {c.worst:.4f} px off"
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
) -> Inspection:
    """Count what a finished dataset holds; write a gallery to ``html``; with ``verify`` check it:
    every shard against its hash, and ``sample`` views (0: all) rendered again from their rows.

    Raises BadDataset when it is unfinished, or when ``verify`` finds it altered or wrong: the
    message names the troubles. StorageError when storage fails.
    """
    dataset = open_dataset(uri, endpoint_url=endpoint_url)
    if verify:
        dataset.verify()
    census, picks = Census(), pages.Picks(len(dataset.shards), np.random.default_rng(0))
    for index in range(len(dataset.shards)):
        columns = dataset.columns(index, COLUMNS)
        census.add(columns)
        if html is not None:
            picks.add(index, columns)
    if html is not None:
        census.add_skin(_skin_tones(dataset))
    errors = census.fit_errors
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
        identities=census.identities,
        failures=failures,
        histograms=census.histograms,
        tallies=census.tallies,
        fit_error=(float(np.median(errors)), float(np.percentile(errors, 90))) if errors else None,
        checks=checks,
    )
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(
            pages.render(inspection, pages.sections_of(dataset, picks)), encoding="utf-8"
        )
    return inspection


def _skin_tones(dataset: Dataset) -> list[float]:
    """Of some identities, taken evenly from the dataset's shards: of each the first view that shows
    any.
    """
    shards = np.unique(np.linspace(0, len(dataset.shards) - 1, SKIN_SHARDS).astype(int))
    tones = []
    for index in shards:
        groups = groupby(dataset.read_shard(int(index)), key=lambda row: row.identity_id)
        for _, views in islice(groups, SKIN_PEOPLE // len(shards) + 1):
            found = (skin_tone(row, load_model(row.model)) for row in views)
            tones.append(next((tone for tone in found if np.isfinite(tone)), np.nan))
    return tones
