"""A scan of a shard: which of its rows are trained on, read from a few small columns alone.

Only the needed byte ranges are fetched, some 10 kB of a shard of 20 MB, so that a dataset of a
million views is scanned in seconds. The ranges have no hash in the manifest; pages have checksums,
and what is trained on is fetched and hashed as a whole later.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from dff.face.arrays import Array, Bool
from dff.face.errors import BadDataset
from dff.face.extras import require_extra
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.shard_filter import RowFilter
from dff.infra.datasets.split import default_group
from dff.infra.storage import Storage

with require_extra("train"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as pads

TAIL = 1 << 17  # bytes at a shard's end that are fetched at once: the footer and often more


@dataclass(frozen=True)
class ShardScan:
    """The rows of a shard. A row that a filter excludes is neither ``train`` nor ``dev``."""

    first: Bool[Array, " rows"]  # the first row of its identity that the filter leaves
    train: Bool[Array, " rows"]
    dev: Bool[Array, " rows"]
    licences: frozenset[str]  # of the rows that the filter leaves
    # Names of photos and of split groups; empty unless asked for
    train_sources: tuple[frozenset[str], ...]  # of each identity that is trained on, in order
    dev_sources: frozenset[str]  # of all held-out identities


class _Ranges(io.RawIOBase):
    """A shard as a file, of which only the ranges that are read are fetched."""

    def __init__(self, storage: Storage, key: str, size: int) -> None:
        self._storage, self._key, self._size, self._at = storage, key, size, 0
        self._tail_start = max(size - TAIL, 0)
        self._tail = storage.read_range(key, self._tail_start, size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        stop = self._size if count < 0 else min(self._at + count, self._size)
        start, self._at = self._at, stop
        if start >= self._tail_start:
            return self._tail[start - self._tail_start : stop - self._tail_start]
        return self._storage.read_range(self._key, start, stop)


def allow_scans(count: int) -> None:
    """Let ``count`` shards be scanned at the same time: Arrow has eight threads for reading."""
    pa.set_io_thread_count(max(pa.io_thread_count(), count))


def scan_shard(
    dataset: Dataset, index: int, row_filter: RowFilter | None = None, *, sources: bool = False
) -> ShardScan:
    """Scan a shard of a dataset; with ``sources`` also the photos and groups of its identities.

    The filter is pushed down: row groups whose statistics exclude a match are not read. Raises
    BadDataset for a shard that is damaged or has another number of rows than the manifest says.
    """
    shard = dataset.shards[index]
    name = dataset.shard_name(index)
    columns: dict[str, Any] = {n: pc.field(n) for n in ("identity_id", "split", "licence")}
    if sources:
        columns |= {n: pc.field(n) for n in ("photo_id", "photo_sha256", "recipe")}
    columns["matches"] = row_filter.expression if row_filter else pc.scalar(True)
    try:
        ranges = _Ranges(dataset.storage, shard.key, shard.bytes)
        fragment = pads.ParquetFileFormat().make_fragment(pa.PythonFile(ranges, mode="r"))
        groups = [
            fragment.metadata.row_group(i).num_rows for i in range(fragment.metadata.num_row_groups)
        ]
        if sum(groups) != shard.rows:
            raise BadDataset(f"{name} has {sum(groups)} rows, the manifest says {shard.rows}")
        starts = np.concatenate([[0], np.cumsum(groups)]).astype(int)
        parts = fragment.split_by_row_group(row_filter.expression if row_filter else None)
        tables = [
            (starts[part.row_groups[0].id], part.to_table(columns=columns, use_threads=False))
            for part in parts
        ]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise BadDataset(f"{name} can't be scanned: {error}") from error
    return _collect(tables, shard.rows, sources)


def _collect(tables: list[tuple[int, Any]], rows: int, sources: bool) -> ShardScan:
    first, train, dev = (np.zeros(rows, dtype=bool) for _ in range(3))
    licences: set[str] = set()
    train_sources: list[frozenset[str]] = []
    dev_sources: set[str] = set()
    for start, table in tables:
        kept = np.flatnonzero(table["matches"].to_numpy())
        if not len(kept):
            continue
        table = table.take(pa.array(kept))
        identity = table["identity_id"].to_pylist()
        is_dev = pc.equal(table["split"], "dev").to_numpy()
        begins = np.array([a != b for a, b in zip(identity, [None, *identity], strict=False)])
        first[start + kept] = begins
        train[start + kept], dev[start + kept] = ~is_dev, is_dev
        licences.update(pc.unique(table["licence"]).to_pylist())
        if sources:
            for at in np.flatnonzero(begins):
                names = _name_sources({n: table[n][int(at)].as_py() for n in table.column_names})
                if is_dev[at]:
                    dev_sources |= names
                else:
                    train_sources.append(names)
    return ShardScan(
        first, train, dev, frozenset(licences), tuple(train_sources), frozenset(dev_sources)
    )


def _name_sources(row: dict[str, Any]) -> frozenset[str]:
    """Names that put two identities on one side of the split: photo, group of photos."""
    try:
        group = json.loads(row["recipe"]).get("split_group")
    except ValueError:
        group = None
    names = {f"group {group or default_group(row['photo_id'] or row['identity_id'])}"}
    if row["photo_sha256"]:
        names.add(f"photo {row['photo_sha256']}")
    return frozenset(names)
