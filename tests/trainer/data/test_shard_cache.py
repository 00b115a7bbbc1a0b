"""The cache of shards: whole, checked, bounded, and safe among processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dff.face.errors import BadDataset, StorageError, TransientStorageError
from dff.face.io.assets import load_model
from dff.infra.datasets.dataset import Dataset, open_dataset
from dff.infra.datasets.shards import ViewRow
from dff.infra.storage import LocalStorage
from dff.trainer.data import shard_cache
from dff.trainer.data.shard_cache import CacheConfig, ShardCache
from tests.small_disk import enlarge, small_disk
from tests.trainer.conftest import write_dataset

SHARDS, VIEWS = 6, 12  # each shard holds two identities of six views


@dataclass(frozen=True)
class WatchedStorage(LocalStorage):
    """Notes what is read in a file, which all processes share; ``before`` may raise."""

    log: Path = Path()
    before: Callable[[int], None] = lambda number: None

    def read(self, key: str) -> bytes:
        with self.log.open("a") as file:
            file.write(f"{key}\n")
        self.before(len(self.reads()))
        return super().read(key)

    def reads(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture(scope="module")
def folder(rows: list[ViewRow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("six")
    write_dataset(path, rows, shards=SHARDS)
    return path


@pytest.fixture
def watched(folder: Path, tmp_path: Path) -> Dataset:
    dataset = open_dataset(str(folder))
    return replace(dataset, storage=WatchedStorage(folder, tmp_path / "log"))


def reads(dataset: Dataset) -> list[str]:
    assert isinstance(dataset.storage, WatchedStorage)
    return dataset.storage.reads()


def make_cache(dataset: Dataset, folder: Path, **changes: int) -> ShardCache:
    return ShardCache([dataset], load_model(), CacheConfig(folder, **changes))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.views"))


def test_views_are_those_of_the_rows(rows: list[ViewRow], watched: Dataset, tmp_path: Path) -> None:
    cache = make_cache(watched, tmp_path / "cache")
    for shard in (0, 5):
        chosen = [3, 0, 11]
        for row, view in zip(chosen, cache.views(0, shard, chosen), strict=True):
            wanted = rows[shard * VIEWS + row]
            assert view.image == wanted.image
            ids = np.where(view.triangle == 0xFFFF, -1, view.triangle.astype(int))
            np.testing.assert_array_equal(ids, wanted.triangle_ids)
            neutral = cache.model.vertices(replace(wanted.coefficients(cache.model), expression=[]))
            np.testing.assert_allclose(view.shape, neutral - cache.model.template, atol=1e-6)
            np.testing.assert_array_equal(view.expression, wanted.expression)
            np.testing.assert_array_equal(view.rotation, wanted.cam_from_head.rotation)
            np.testing.assert_array_equal(view.translation, wanted.cam_from_head.translation)
            assert type(view.camera) is type(wanted.camera)
            assert view.box.x0 == wanted.landmarks_3d[:, 0].min()
    assert len(reads(watched)) == 2, "each shard is read once"


def test_another_process_or_run_finds_the_shards(watched: Dataset, tmp_path: Path) -> None:
    first = make_cache(watched, tmp_path / "cache")
    second = make_cache(watched, tmp_path / "cache")
    for cache in (first, second, second):
        for shard in range(SHARDS):
            cache.views(0, shard, [1])
    assert len(reads(watched)) == SHARDS


def test_the_cache_stays_within_its_capacity(watched: Dataset, tmp_path: Path) -> None:
    """Views are right whatever was removed meanwhile."""
    folder = tmp_path / "cache"
    whole = make_cache(watched, tmp_path / "large")
    images = [whole.views(0, shard, range(VIEWS)) for shard in range(SHARDS)]
    capacity = int(2.5 * watched.shards.sizes.max())
    cache = make_cache(watched, folder, capacity=capacity)
    rng = random.Random(0)
    for _ in range(60):
        shard, row = rng.randrange(SHARDS), rng.randrange(VIEWS)
        assert cache.views(0, shard, [row])[0].image == images[shard][row].image
        assert size_of(folder) <= capacity
    assert len(reads(watched)) > SHARDS + 10, "shards were removed and fetched again"


def test_what_was_asked_for_longest_ago_is_removed(watched: Dataset, tmp_path: Path) -> None:
    make_cache(watched, tmp_path / "whole").fetch(0, 0)
    capacity = int(3.2 * size_of(tmp_path / "whole"))
    cache = make_cache(watched, tmp_path / "cache", capacity=capacity)
    for shard in (0, 1, 2, 0, 3):
        cache.fetch(0, shard)
        time.sleep(0.02)  # file systems keep times in coarse steps
    kept = [shard for shard in range(SHARDS) if cache.path(0, shard).exists()]
    assert kept == [0, 2, 3]


def test_an_altered_shard_is_refused_and_not_kept(folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(folder))
    copy = tmp_path / "copy"
    for shard in dataset.shards:
        (copy / shard.key).parent.mkdir(parents=True, exist_ok=True)
        data = bytearray((folder / shard.key).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / shard.key).write_bytes(data)
    altered = replace(dataset, storage=LocalStorage(copy))
    with pytest.raises(BadDataset, match=r"part-00003-of-00006\.parquet was altered: sha256"):
        make_cache(altered, tmp_path / "cache").views(0, 3, [0])
    assert size_of(tmp_path / "cache") == 0


@pytest.mark.parametrize("damage", [b"", b"short", bytes(range(256)) * 9])
def test_a_damaged_file_of_the_cache_is_fetched_again(
    watched: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    cache = make_cache(watched, tmp_path / "cache")
    cache.fetch(0, 0)
    whole = cache.path(0, 0).read_bytes()
    cache.path(0, 0).write_bytes(damage)
    cache.views(0, 0, [0])
    assert cache.path(0, 0).read_bytes() == whole
    assert "is damaged; it is fetched again" in caplog.text


def _read_at_random(cache: ShardCache, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(80):
        shard = rng.randrange(SHARDS)
        (view,) = cache.views(0, shard, [rng.randrange(VIEWS)])
        if view.image[:2] != b"\xff\xd8":
            os._exit(2)


@pytest.mark.parametrize("shards_kept", [2.5, 100.0])
def test_several_processes_share_a_cache(
    watched: Dataset, tmp_path: Path, shards_kept: float
) -> None:
    """While one removes what another reads; with room for all, each shard is fetched once."""
    capacity = int(shards_kept * watched.shards.sizes.max())
    cache = make_cache(watched, tmp_path / "cache", capacity=capacity)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_read_at_random, args=(cache, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert size_of(tmp_path / "cache") <= capacity
    if shards_kept == 100.0:
        assert sorted(reads(watched)) == [shard.key for shard in watched.shards]


def test_shards_are_fetched_ahead_in_the_background(watched: Dataset, tmp_path: Path) -> None:
    cache = make_cache(watched, tmp_path / "cache", fetchers=1)
    cache.fetch_ahead([(0, shard) for shard in (4, 1, 3)])
    deadline = time.monotonic() + 20
    while not cache.path(0, 3).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reads(watched) == [watched.shards[shard].key for shard in (4, 1, 3)]
    cache.views(0, 1, [0])
    assert len(reads(watched)) == 3


def test_a_storage_that_fails_for_a_while_is_asked_again(
    watched: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And what goes on is said; an outage without end is an error."""
    monkeypatch.setattr(shard_cache, "RETRY_WAITS", (0.01, 0.01, 0.01))

    def fail(number: int, last: int) -> None:
        if number <= last:
            raise TransientStorageError("nothing answers at http://s3")

    assert isinstance(watched.storage, WatchedStorage)
    flaky = replace(watched, storage=replace(watched.storage, before=lambda n: fail(n, 2)))
    make_cache(flaky, tmp_path / "cache").views(0, 0, [0])
    assert [record.getMessage() for record in caplog.records] == [
        "nothing answers at http://s3; trying again in 0 s"
    ] * 2
    dead = replace(watched, storage=replace(watched.storage, before=lambda n: fail(n, 999)))
    with pytest.raises(TransientStorageError, match="nothing answers"):
        make_cache(dead, tmp_path / "other").views(0, 0, [0])


def test_a_full_disk_is_named_with_the_way_out(
    watched: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"can't write to the cache .*: No space.*--cache"):
            make_cache(watched, folder).views(0, 0, [0])
    assert [path.name for path in folder.iterdir()] == ["locks"]
    make_cache(watched, folder).views(0, 0, [0])


def test_a_disk_that_is_really_full_is_named(watched: Dataset, tmp_path: Path) -> None:
    """And nothing stays on it that would be taken for a shard."""
    with small_disk(tmp_path / "disk", 64) as disk:
        cache = make_cache(watched, disk / "cache")
        with pytest.raises(StorageError, match=r"can't write to the cache .*: No space.*--cache"):
            cache.views(0, 0, [0])
        assert [path.name for path in (disk / "cache").iterdir()] == ["locks"]
        enlarge(disk, 4096)
        assert len(cache.views(0, 0, [0])) == 1


def test_a_shard_larger_than_the_cache_is_refused(watched: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not fit into the cache of 1000 bytes"):
        make_cache(watched, tmp_path / "cache", capacity=1000).views(0, 0, [0])


def test_unfinished_files_of_killed_processes_are_removed(watched: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    old, new = folder / ".a.views.1.tmp", folder / ".b.views.2.tmp"
    for path in (old, new):
        path.write_bytes(b"part")
    os.utime(old, (0, 0))
    make_cache(watched, folder).fetch(0, 0)
    assert not old.exists()
    assert new.exists(), "its writer may be at work"
