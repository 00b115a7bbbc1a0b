"""The index: which views are trained on, with a filter and with several datasets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dff.face.errors import BadDataset
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.shard_filter import parse_filter
from dff.infra.datasets.shards import ViewRow, make_sample_id
from dff.trainer.data import view_index
from dff.trainer.data.order import ViewOrder
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.data.view_index import build_indexes
from dff.trainer.data.views import ViewStore, open_views
from tests.trainer.conftest import write_dataset


def test_the_index_says_what_the_rows_say(rows: list[ViewRow], dataset: Dataset) -> None:
    (index,) = build_indexes([dataset], folder=None)
    assert len(index) == index.used == len(rows)
    np.testing.assert_array_equal(index.is_dev(), [row.split == "dev" for row in rows])
    names = list(dict.fromkeys(row.identity_id for row in rows))
    np.testing.assert_array_equal(index.identity(), [names.index(r.identity_id) for r in rows])
    assert index.licences == tuple(sorted({row.licence for row in rows}))
    half = dataset.shards[0].rows
    assert [index.shard_of(n) for n in (0, half - 1, half)] == [(0, 0), (0, half - 1), (1, 0)]
    train = np.array([row.split == "train" for row in rows])
    np.testing.assert_array_equal(index.train_counts, [train[:half].sum(), train[half:].sum()])
    np.testing.assert_array_equal(index.group_counts(4), index.train_counts // 6)
    np.testing.assert_array_equal(index.group_counts(7), index.train_counts // 6)
    np.testing.assert_array_equal(index.group_counts(3), index.train_counts // 3)


def test_a_filter_leaves_the_matching_views(rows: list[ViewRow], dataset: Dataset) -> None:
    (index,) = build_indexes([dataset], folder=None, row_filter=parse_filter("abs(yaw) > 25"))
    matches = np.array([abs(row.pose[0]) > 25 for row in rows])
    dev = np.array([row.split == "dev" for row in rows])
    np.testing.assert_array_equal(index.is_dev(), matches & dev)
    assert index.used == matches.sum() < len(index) == len(rows)
    order = ViewOrder([index], [1.0], seed=0, batch=4, views=2, block_views=100)
    seen = {item.number for step in range(150) for item in order.items(step)}
    assert seen == set(np.flatnonzero(matches & ~dev).tolist())
    for number in seen:
        assert abs(rows[number].pose[0]) > 25
    with pytest.raises(BadDataset, match=r"has no views to train on that 'yaw > 400' leaves"):
        build_indexes([dataset], folder=None, row_filter=parse_filter("yaw > 400"))


def test_an_index_is_kept_for_the_next_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each filter; a damaged one is made anew."""
    yaw = parse_filter("yaw > 0")
    made = build_indexes([dataset], folder=tmp_path)
    (filtered,) = build_indexes([dataset], folder=tmp_path, row_filter=yaw)
    scan: Callable[..., object] = view_index.scan_shard
    monkeypatch.setattr(view_index, "scan_shard", lambda *a, **k: pytest.fail("scanned again"))
    (again,) = build_indexes([dataset], folder=tmp_path)
    np.testing.assert_array_equal(again.is_dev(), made[0].is_dev())
    assert again.licences == made[0].licences
    (also,) = build_indexes([dataset], folder=tmp_path, row_filter=yaw)
    np.testing.assert_array_equal(also.train, filtered.train)
    assert (also.train != again.train).any()
    monkeypatch.setattr(view_index, "scan_shard", scan)
    for path in tmp_path.glob("index-*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    (anew,) = build_indexes([dataset], folder=tmp_path)
    np.testing.assert_array_equal(anew.train, again.train)


def rename(row: ViewRow, name: str, **changes: object) -> ViewRow:
    return replace(
        row,
        identity_id=name,
        sample_id=make_sample_id(name, row.view),
        **changes,  # type: ignore[arg-type]
    )


def test_a_photo_or_person_never_lies_on_both_sides_of_datasets(
    rows: list[ViewRow], open_head: MorphableModel, tmp_path: Path
) -> None:
    """A copy of a photo under another name, and a person known in one dataset alone."""
    train = [row for row in rows if row.split == "train"][:24]  # four identities
    photo, other = "ab" * 32, "cd" * 32
    first = [
        rename(train[0], "a", photo_sha256=photo, photo_id="a", split="dev"),
        rename(train[6], "b", photo_id="b", split="dev", recipe='{"split_group": "anna"}'),
        *train[12:18],
    ]
    second = [
        *[rename(row, "copy", photo_sha256=photo, photo_id="copy") for row in train[:6]],
        *[rename(r, "ann", photo_id="n", recipe='{"split_group": "anna"}') for r in train[6:12]],
        *[rename(row, "c", photo_sha256=other, photo_id="c") for row in train[18:24]],
    ]
    datasets = [
        write_dataset(tmp_path / "a", first),
        write_dataset(tmp_path / "b", second),
    ]
    alone, mixed = (build_indexes(some, folder=None) for some in (datasets[1:], datasets))
    assert alone[0].train_counts.sum() == 18
    assert mixed[1].train_counts.sum() == 6, "only the third identity is left"
    assert mixed[0].train_counts.sum() == 6
    left = np.flatnonzero(mixed[1].bits(mixed[1].train, 0, len(second)))
    assert {second[number].identity_id for number in left} == {"c"}


def test_validation_views_come_from_a_few_shards(
    rows: list[ViewRow], open_head: MorphableModel, tmp_path: Path
) -> None:
    """However many the dataset has; from all of them when it has few."""
    held = [replace(row, split="dev") if row.view % 2 else row for row in rows]
    dataset = write_dataset(tmp_path / "data", held, shards=12)
    store: ViewStore = open_views([dataset], open_head, CacheConfig(tmp_path / "cache"))
    numbers, identity = store.held_out(100)
    np.testing.assert_array_equal(numbers, np.flatnonzero(store.is_dev))
    np.testing.assert_array_equal(identity, store.identity[numbers])
    few, _ = store.held_out(3)
    assert sorted(set(store.indexes[0].shards_of(few).tolist())) == [0, 6, 11]


def test_a_cache_too_small_for_two_blocks_is_refused(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    capacity = int(dataset.shards.sizes.max() * 1.5)
    store = open_views([dataset], open_head, CacheConfig(tmp_path, capacity))
    order = ViewOrder(store.indexes, [1.0], seed=0, batch=4, views=2, block_views=8)
    with pytest.raises(ValueError, match=r"can't hold two blocks of shards.*--cache-bytes"):
        store.check_cache(order)
