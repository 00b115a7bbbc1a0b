"""A scan finds the rows that are trained on, from a small part of a shard."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dff.face.errors import BadDataset
from dff.infra.datasets.dataset import Dataset, Manifest, Shards, data_key
from dff.infra.datasets.shard_filter import parse_filter
from dff.infra.datasets.shard_scan import TAIL, scan_shard
from dff.infra.datasets.shards import SCHEMA_VERSION, ViewRow, rows_to_parquet
from dff.infra.storage import LocalStorage
from tests.infra.rows import noise_row


@dataclass(frozen=True)
class CountingStorage(LocalStorage):
    """Keeps the number of bytes that were read."""

    read_bytes: list[int]

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        data = super().read_range(key, start, stop)
        self.read_bytes.append(len(data))
        return data


def write_shard(folder: Path, rows: list[ViewRow]) -> tuple[Dataset, list[int]]:
    data = rows_to_parquet(rows, {"plan": "test"})
    key = data_key(0, 1)
    (folder / key).parent.mkdir(parents=True)
    (folder / key).write_bytes(data)
    shards = Shards.of([len(rows)], [len(data)], [hashlib.sha256(data).hexdigest()])
    manifest = Manifest(SCHEMA_VERSION, "test", 1, 0, {}, {}, {}, shards)
    storage = CountingStorage(folder, [])
    return Dataset(storage, manifest), storage.read_bytes


@pytest.fixture(scope="module")
def rows() -> list[ViewRow]:
    """Three row groups, of yaw below 0, about 0 and above 0, with images of real size."""
    rng = np.random.default_rng(2)
    out = []
    for person in range(48):
        for view in range(8):
            row = noise_row(f"person {person}", view, rng=rng)
            yaw = (person // 16 - 1) * 60.0 + view
            out.append(
                replace(
                    row,
                    photo_id="",
                    photo_sha256="",
                    split="dev" if person % 7 == 0 else "train",
                    pose=(yaw, 0.0, 0.0),
                    licence="CC0-1.0" if person % 2 else "research",
                    image=rng.bytes(20_000),
                )
            )
    return out


@pytest.mark.parametrize("text", [None, "yaw > 50", "abs(yaw) > 50 and licence == 'CC0-1.0'"])
def test_a_scan_finds_the_rows(rows: list[ViewRow], tmp_path: Path, text: str | None) -> None:
    dataset, _ = write_shard(tmp_path, rows)
    kept = [
        text is None
        or (row.pose[0] > 50 if text == "yaw > 50" else False)
        or ("abs" in text and abs(row.pose[0]) > 50 and row.licence == "CC0-1.0")
        for row in rows
    ]
    scan = scan_shard(dataset, 0, parse_filter(text) if text else None)
    dev = np.array([row.split == "dev" for row in rows])
    np.testing.assert_array_equal(scan.train, np.array(kept) & ~dev)
    np.testing.assert_array_equal(scan.dev, np.array(kept) & dev)
    first: dict[str, int] = {}
    for number, row in enumerate(rows):
        if kept[number]:
            first.setdefault(row.identity_id, number)
    np.testing.assert_array_equal(np.flatnonzero(scan.first), list(first.values()))
    assert scan.licences == {row.licence for row, k in zip(rows, kept, strict=True) if k}


def test_a_scan_reads_little_and_skips_row_groups(rows: list[ViewRow], tmp_path: Path) -> None:
    """Statistics of Parquet exclude row groups, also by an absolute value."""
    dataset, read = write_shard(tmp_path, rows)
    scan_shard(dataset, 0)
    whole = sum(read)
    assert whole < TAIL + 0.02 * dataset.shards[0].bytes
    for text, groups in (("yaw > 50", 1), ("abs(yaw) > 50", 2), ("abs(yaw) > 500", 0)):
        read.clear()
        scan_shard(dataset, 0, parse_filter(text))
        assert sum(read) - TAIL <= (whole - TAIL) * (groups / 3 + 0.25), text
        assert len(read) <= 1 + 2 * groups, text


def test_sources_name_photos_and_groups(rows: list[ViewRow], tmp_path: Path) -> None:
    named = [
        replace(row, photo_id="a/x_1.jpg", photo_sha256="ab" * 32, recipe='{"split_group": "anna"}')
        if row.identity_id == "person 1"
        else row
        for row in rows
    ]
    scan = scan_shard(write_shard(tmp_path, named)[0], 0, sources=True)
    assert scan.train_sources[0] == {"group anna", "photo " + "ab" * 32}
    assert scan.train_sources[1] == {"group person 2"}
    assert "group person 7" in scan.dev_sources
    assert len(scan.train_sources) == len({r.identity_id for r in rows if r.split == "train"})


def test_a_shard_that_is_none_is_named(rows: list[ViewRow], tmp_path: Path) -> None:
    dataset, _ = write_shard(tmp_path, rows[:16])
    path = tmp_path / dataset.shards[0].key
    data = path.read_bytes()
    path.write_bytes(data[:-100] + bytes(100))
    with pytest.raises(BadDataset, match=r"part-00000-of-00001\.parquet can't be scanned"):
        scan_shard(dataset, 0)
    path.write_bytes(rows_to_parquet(rows[:8], {}))
    info = replace(dataset.manifest, shards=Shards.of([16], [path.stat().st_size], ["00" * 32]))
    with pytest.raises(BadDataset, match="has 8 rows, the manifest says 16"):
        scan_shard(Dataset(dataset.storage, info), 0)
