"""Batches: their order depends on the seed alone, not on the number of workers."""

from __future__ import annotations

import tempfile
from dataclasses import astuple, fields, replace
from multiprocessing import current_process

import numpy as np
import pytest
import torch

from dff.trainer.data.batches import CropDataset, batches, collate, epoch_table, list_step_items
from dff.trainer.data.config import AUGMENT, FacelessConfig, MosaicConfig
from dff.trainer.data.crops import TrainingSurface
from dff.trainer.data.view_cache import StoredView, ViewStore

NEVER = FacelessConfig(probability=0.0)
IDENTITY = np.repeat(np.arange(7), [6, 9, 4, 5, 8, 2, 6])


def test_an_epoch_consists_of_groups_of_one_identity() -> None:
    table = epoch_table(IDENTITY, seed=3, epoch=0, batch=8, views=4)
    assert table.shape[1] == 8
    groups = IDENTITY[table.reshape(-1, 4)]
    assert (groups == groups[:, :1]).all()
    flat = table.ravel()
    twice = flat[IDENTITY[flat] != 5]  # the identity of two views repeats them
    assert len(set(twice.tolist())) == len(twice)


def test_epochs_and_seeds_give_different_orders() -> None:
    def table(seed: int, epoch: int) -> list[int]:
        return list(epoch_table(IDENTITY, seed=seed, epoch=epoch, batch=8, views=4).ravel())

    assert table(1, 0) == table(1, 0)
    assert table(1, 0) != table(1, 1)
    assert table(1, 0) != table(2, 0)
    seen = set().union(*(table(1, epoch) for epoch in range(30)))
    assert seen == set(range(len(IDENTITY))), "every view occurs in some epoch"
    with pytest.raises(ValueError, match="do not fill one batch"):
        epoch_table(IDENTITY, seed=0, epoch=0, batch=80, views=4)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_order_does_not_depend_on_the_number_of_workers(world: int) -> None:
    numbers = np.arange(len(IDENTITY)) + 100
    arguments = {"first": 3, "last": 12, "seed": 5, "batch": 8, "views": 2}
    shares = [
        list(list_step_items(numbers, IDENTITY, **arguments, rank=rank, world=world))  # type: ignore[arg-type]
        for rank in range(world)
    ]
    assert {len(share) for share in shares} == {9}, "every rank has as many steps"
    together = [[item for part in parts for item in part] for parts in zip(*shares, strict=True)]
    alone = list(list_step_items(numbers, IDENTITY, **arguments, rank=0, world=1))  # type: ignore[arg-type]
    assert together == alone
    assert len({epoch for step in alone for epoch, _ in step}) > 1, "the steps cross an epoch's end"


def test_a_resumed_order_continues_the_order() -> None:
    numbers = np.arange(len(IDENTITY))
    arguments = {"last": 15, "seed": 5, "batch": 8, "views": 4, "rank": 0, "world": 1}
    whole = list(list_step_items(numbers, IDENTITY, first=0, **arguments))  # type: ignore[arg-type]
    assert list(list_step_items(numbers, IDENTITY, first=6, **arguments)) == whole[6:]  # type: ignore[arg-type]


def test_an_item_is_reproducible(store: ViewStore, surface: TrainingSurface) -> None:
    one, two = (CropDataset(store, surface, size=64, pixels=50, seed=4) for _ in range(2))
    for number in range(8):
        samples = astuple(one[3, number]), astuple(two[3, number])
        assert all(np.array_equal(a, b) for a, b in zip(*samples, strict=True))


@pytest.mark.parametrize("loaders", [0, 1])
def test_a_batch_holds_the_stacked_samples(
    store: ViewStore, surface: TrainingSurface, loaders: int
) -> None:
    """Also when another process makes it, and on another device."""
    crops = CropDataset(store, surface, size=64, pixels=50, seed=4)
    order = {"first": 2, "last": 3, "batch": 4, "views": 2}
    (batch,) = batches(crops, **order, loaders=loaders)
    numbers = crops.numbers
    plan = list_step_items(numbers, store.identity[numbers], **order, seed=4, rank=0, world=1)
    wanted = collate([crops[item] for item in next(plan)])
    moved = batch.to(torch.device("cpu"))
    for field in fields(batch):
        value = getattr(wanted, field.name)
        assert len(value) == 4
        assert torch.equal(getattr(batch, field.name), value)
        assert torch.equal(getattr(moved, field.name), value)
    assert all(part.device.type == "meta" for part in vars(batch.to(torch.device("meta"))).values())


def test_settings_reach_the_samples(store: ViewStore, surface: TrainingSurface) -> None:
    """Empty mosaics alone show no face; without mosaics and paint every sample shows one."""
    empty = replace(AUGMENT, mosaic=MosaicConfig(probability=1.0, empty_probability=1.0))
    crops = CropDataset(store, surface, size=64, pixels=50, seed=0, augment=empty)
    assert not any(crops[0, int(number)].face.any() for number in crops.numbers[:6])
    mosaics = replace(AUGMENT, mosaic=MosaicConfig(probability=0.0), faceless=NEVER)
    crops = CropDataset(store, surface, size=64, pixels=50, seed=0, augment=mosaics)
    assert all(crops[0, int(number)].face.any() for number in crops.numbers[:6])


def test_some_items_are_mosaics_of_training_views(
    store: ViewStore, surface: TrainingSurface, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    view = ViewStore.view

    def recording_view(self: ViewStore, number: int) -> StoredView:
        read.append(number)
        return view(self, number)

    monkeypatch.setattr(ViewStore, "view", recording_view)
    crops = CropDataset(store, surface, size=64, pixels=50, seed=0)
    counts = []
    for epoch in range(150):
        before = len(read)
        crops[epoch, 0]
        counts.append(len(read) - before)
    assert np.mean(np.array(counts) > 1) == pytest.approx(AUGMENT.mosaic.probability, abs=0.09)
    assert not store.is_dev[read].any()


def test_loaders_exchange_data_below_a_long_path(
    store: ViewStore,
    surface: TrainingSurface,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their sockets have paths of at most 107 bytes, wherever temporary files lie."""
    long = tmp_path_factory.mktemp("x" * 90)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setitem(current_process()._config, "tempdir", None)  # type: ignore[attr-defined]
    crops = CropDataset(store, surface, size=64, pixels=16, seed=0)
    made = list(batches(crops, first=0, last=2, batch=8, views=4, loaders=1))
    assert len(made) == 2
    assert tempfile.gettempdir() == str(long)
