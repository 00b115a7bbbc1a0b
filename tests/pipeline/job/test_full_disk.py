"""A synthesis whose output is full stops; the same command completes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dff.face.errors import StorageError
from dff.infra.datasets.dataset import open_dataset
from dff.pipeline.synthesis import synthesize
from tests.small_disk import enlarge, small_disk


def test_a_full_disk_costs_the_shard_that_did_not_fit(tmp_path: Path) -> None:
    shape = {"identities": 3, "views": 2, "size": 64, "shard_subjects": 1}
    home = tmp_path / "home"
    synthesize(None, str(home), **shape)
    largest = max(path.stat().st_size for path in home.rglob("*.parquet"))
    with small_disk(tmp_path / "disk", int(1.6 * largest / 1024)) as disk:
        with pytest.raises(StorageError, match=f"can.t write {disk}.*: the disk is full"):
            synthesize(None, str(disk), **shape)
        enlarge(disk, 16 * largest // 1024)
        synthesize(None, str(disk), **shape)
        open_dataset(str(disk)).verify()
        assert open_dataset(str(disk)).manifest == open_dataset(str(home)).manifest
