"""Which views of a dataset are trained on: three bits a view, so that it fits any dataset.

The index comes from a scan of a few columns of every shard (``dff.infra.datasets.shard_scan``),
some milliseconds a shard, and is kept beside the cached shards for the next run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from dff.face.arrays import Array, Bools, Integer, Ints, UInt8
from dff.face.errors import BadDataset
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.shard_filter import RowFilter
from dff.infra.datasets.shard_scan import ShardScan, allow_scans, scan_shard
from dff.infra.files import replaced_file

SCANNERS = 32  # threads; a scan waits for the storage
AT_A_TIME = 1024  # shards queued
_FORMAT = 1


@dataclass(frozen=True)
class ViewIndex:
    """The views of one dataset, numbered in its order. Bits are packed as by ``np.packbits``."""

    starts: Integer[Array, " bounds"]  # number of each shard's first view, then of all views
    first: UInt8[Array, " bytes"]  # the view is the first of its identity that a filter leaves
    train: UInt8[Array, " bytes"]
    dev: UInt8[Array, " bytes"]
    licences: tuple[str, ...]  # of the views that the filter leaves, sorted

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def used(self) -> int:
        """Number of views that are trained on or held out."""
        return int(np.bitwise_count(self.train).sum() + np.bitwise_count(self.dev).sum())

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.starts) - 1

    def bits(self, packed: UInt8[Array, " bytes"], start: int, stop: int) -> Bools:
        """(stop - start,) the bits of a range of views."""
        low = start // 8
        out = np.unpackbits(packed[low : -(-stop // 8)])
        return out[start - 8 * low : stop - 8 * low].astype(bool)

    def is_dev(self) -> Bools:
        """(N,) whether a view is held out; one byte a view."""
        return self.bits(self.dev, 0, len(self))

    def identity(self) -> Ints:
        """(N,) number of the identity of each view, in the dataset's order; eight bytes a view."""
        return np.cumsum(self.bits(self.first, 0, len(self))) - 1

    def shard_of(self, number: int) -> tuple[int, int]:
        """The shard that holds a view, and the view's row in it."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return shard, number - int(self.starts[shard])

    def shards_of(self, numbers: Ints) -> Ints:
        """(N,) the shard that holds each of (N,) views."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    @cached_property
    def train_counts(self) -> Ints:
        """(shards,) number of views that are trained on."""
        return _count_by_shard(self.bits(self.train, 0, len(self)), self.starts)

    def identity_counts(self) -> Ints:
        """(shards,) number of identities."""
        return _count_by_shard(self.bits(self.first, 0, len(self)), self.starts)

    def group_counts(self, views: int) -> Ints:
        """(shards,) groups of ``views`` views of one identity that a shard gives.

        An identity with fewer views gives one group; views that fill no group are left out.
        """
        train = self.bits(self.train, 0, len(self))
        counts = np.bincount(self.identity()[train])
        groups = np.where(counts < views, counts > 0, counts // views)
        of_first = np.zeros(len(self), np.int64)
        of_first[np.flatnonzero(self.bits(self.first, 0, len(self)))[: len(groups)]] = groups
        return _count_by_shard(of_first, self.starts)


def _count_by_shard(values: Ints | Bools, starts: Ints) -> Ints:
    total = np.concatenate([[0], np.cumsum(values)])
    return total[starts[1:]] - total[starts[:-1]]


def build_indexes(
    datasets: Sequence[Dataset],
    *,
    folder: Path | None,
    row_filter: RowFilter | None = None,
    scanners: int = SCANNERS,
) -> tuple[ViewIndex, ...]:
    """The indexes of datasets that are trained on together.

    With several datasets, an identity is left out of training when its photo or its split group is
    held out in any of them: a copy of a photo or another photo of a person never lies on both
    sides. ``folder``: where indexes are kept for the next run. Raises BadDataset for shards that
    can't be scanned, and when no view is left to train on.
    """
    sources = len(datasets) > 1
    kept = _index_path(folder, datasets, row_filter) if folder else None
    if kept and (found := _load(kept, len(datasets))):
        return found
    scans = [list(_scan(dataset, row_filter, sources, scanners)) for dataset in datasets]
    held = frozenset[str]().union(*(scan.dev_sources for shards in scans for scan in shards))
    indexes = tuple(
        _pack([_without(scan, held) if sources else scan for scan in shards]) for shards in scans
    )
    for dataset, index in zip(datasets, indexes, strict=True):
        if not index.train.any():
            reason = f" that {row_filter.text!r} leaves" if row_filter else ""
            raise BadDataset(f"{dataset.storage.uri} has no views to train on{reason}")
    if kept:
        _save(kept, indexes)
    return indexes


def _scan(
    dataset: Dataset, row_filter: RowFilter | None, sources: bool, scanners: int
) -> Iterator[ShardScan]:
    allow_scans(scanners)
    with ThreadPoolExecutor(scanners) as pool:
        for start in range(0, len(dataset.shards), AT_A_TIME):
            some = range(start, min(start + AT_A_TIME, len(dataset.shards)))
            yield from pool.map(
                lambda shard: scan_shard(dataset, shard, row_filter, sources=sources), some
            )


def _without(scan: ShardScan, held: frozenset[str]) -> ShardScan:
    """The scan without the training views of identities that are held out elsewhere."""
    train = scan.train.copy()
    begins = np.flatnonzero(scan.first)
    ends = np.append(begins[1:], len(train))
    trained = scan.train[begins]
    for start, stop, names in zip(begins[trained], ends[trained], scan.train_sources, strict=True):
        if names & held:
            train[start:stop] = False
    return replace(scan, train=train)


def _pack(scans: Sequence[ShardScan]) -> ViewIndex:
    rows = [len(scan.train) for scan in scans]
    first, train, dev = (
        np.packbits(np.concatenate([getattr(scan, name) for scan in scans] or [np.zeros(0, bool)]))
        for name in ("first", "train", "dev")
    )
    licences = frozenset[str]().union(*(scan.licences for scan in scans))
    return ViewIndex(
        np.concatenate([[0], np.cumsum(rows)]).astype(np.int64),
        first,
        train,
        dev,
        tuple(sorted(licences)),
    )


def _index_path(folder: Path, datasets: Sequence[Dataset], row_filter: RowFilter | None) -> Path:
    named = [d.manifest.fingerprint for d in datasets] + [row_filter.text if row_filter else ""]
    digest = hashlib.sha256("\n".join([str(_FORMAT), *named]).encode()).hexdigest()
    return folder / f"index-{digest[:32]}.npz"


def _save(path: Path, indexes: Sequence[ViewIndex]) -> None:
    arrays = {
        f"{number}-{name}": np.asarray(value)
        for number, index in enumerate(indexes)
        for name, value in vars(index).items()
        if name in ViewIndex.__dataclass_fields__
    }
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _load(path: Path, count: int) -> tuple[ViewIndex, ...] | None:
    """The kept indexes; None where there are none or the file is damaged."""
    try:
        with path.open("rb") as data, np.load(data) as file:
            return tuple(
                ViewIndex(
                    starts=file[f"{number}-starts"],
                    first=file[f"{number}-first"],
                    train=file[f"{number}-train"],
                    dev=file[f"{number}-dev"],
                    licences=tuple(map(str, file[f"{number}-licences"])),
                )
                for number in range(count)
            )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
