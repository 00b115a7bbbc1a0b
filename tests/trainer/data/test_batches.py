"""Batches: samples of a step are the same in any process, alone or composed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import astuple, fields, replace
from multiprocessing import current_process

import numpy as np
import pytest
import torch

from dff.trainer.data.batches import StepBatches, batches, collate
from dff.trainer.data.config import AUGMENT, AugmentConfig, FacelessConfig, MosaicConfig
from dff.trainer.data.crops import TrainingSurface
from dff.trainer.data.order import Item, ViewOrder
from dff.trainer.data.views import StoredView, ViewStore

NEVER = FacelessConfig(probability=0.0)


def make_steps(
    store: ViewStore,
    surface: TrainingSurface,
    *,
    seed: int = 4,
    batch: int = 4,
    views: int = 2,
    block_views: int = 1000,
    augment: AugmentConfig = AUGMENT,
    other_sizes: tuple[int, ...] = (),
    rank: int = 0,
    world: int = 1,
) -> StepBatches:
    shares = [1.0] * len(store.indexes)
    order = ViewOrder(
        store.indexes, shares, seed=seed, batch=batch, views=views, block_views=block_views
    )
    return StepBatches(
        store,
        surface,
        order,
        size=64,
        other_sizes=other_sizes,
        pixels=50,
        augment=augment,
        rank=rank,
        world=world,
    )


def test_an_item_is_reproducible(store: ViewStore, surface: TrainingSurface) -> None:
    one, two = (make_steps(store, surface) for _ in range(2))
    items = one.items(3) + one.items(4)
    for a, b in zip(one.samples(items, 64), two.samples(items[::-1], 64)[::-1], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(astuple(a), astuple(b), strict=True))


@pytest.mark.parametrize("loaders", [0, 1, 3])
def test_a_batch_holds_the_stacked_samples(
    store: ViewStore, surface: TrainingSurface, loaders: int
) -> None:
    """Also when other processes make it, and on another device."""
    steps = make_steps(store, surface, block_views=40)
    made = list(batches(steps, first=2, last=6, loaders=loaders))
    assert len(made) == 4
    for step, batch in zip(range(2, 6), made, strict=True):
        wanted = collate(steps.samples(steps.items(step), 64))
        moved = batch.to(torch.device("cpu"))
        for field in fields(batch):
            value = getattr(wanted, field.name)
            assert len(value) == 4
            assert torch.equal(getattr(batch, field.name), value)
            assert torch.equal(getattr(moved, field.name), value)
    assert all(
        part.device.type == "meta" for part in vars(made[0].to(torch.device("meta"))).values()
    )


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_share_the_batch_of_one_process(
    store: ViewStore, surface: TrainingSurface, world: int
) -> None:
    alone = make_steps(store, surface, batch=8)
    ranks = [make_steps(store, surface, batch=8, rank=r, world=world) for r in range(world)]
    for step in (0, 5):
        together = [item for rank in ranks for item in rank.items(step)]
        assert together == alone.items(step)


def test_half_of_the_steps_take_another_size(store: ViewStore, surface: TrainingSurface) -> None:
    """The same on every rank; without other sizes all steps take the one."""
    one, two = (
        make_steps(store, surface, other_sizes=(96, 32), rank=rank, world=2) for rank in (0, 1)
    )
    sizes = [one.size_of(step) for step in range(400)]
    assert sizes == [two.size_of(step) for step in range(400)]
    assert 170 < sizes.count(64) < 230
    assert 75 < sizes.count(96) < 125
    step = sizes.index(96)
    assert one[step].image.shape == (2, 96, 96, 3)
    assert one[step].face.shape == (2, 48, 48)
    assert {make_steps(store, surface).size_of(step) for step in range(20)} == {64}


def test_settings_reach_the_samples(store: ViewStore, surface: TrainingSurface) -> None:
    """Empty mosaics alone show no face; without mosaics and paint every sample shows one."""
    empty = replace(AUGMENT, mosaic=MosaicConfig(probability=1.0, empty_probability=1.0))
    assert not make_steps(store, surface, augment=empty)[0].face.any()
    whole = replace(AUGMENT, mosaic=MosaicConfig(probability=0.0), faceless=NEVER)
    assert make_steps(store, surface, augment=whole)[0].face.flatten(1).any(1).all()


def test_some_items_are_mosaics_of_training_views_of_the_block(
    store: ViewStore, surface: TrainingSurface, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    view_list = ViewStore.view_list

    def recording(self: ViewStore, numbers: Sequence[int], source: int = 0) -> list[StoredView]:
        read.append([int(number) for number in numbers])
        return view_list(self, numbers, source)

    monkeypatch.setattr(ViewStore, "view_list", recording)
    steps = make_steps(store, surface, block_views=40)
    mosaics = 0
    for epoch in range(150):
        block = steps.order.epoch(0).block(epoch, 1)
        number = int(block.groups[0, 0])
        read.clear()
        steps.samples([Item(0, epoch, 1, number)], 64)
        assert read[0] == [number]
        mosaics += len(read) > 1
        assert set(np.concatenate(read)) <= set(block.numbers.tolist())
    assert mosaics / 150 == pytest.approx(AUGMENT.mosaic.probability, abs=0.09)


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
    made = list(batches(make_steps(store, surface), first=0, last=2, loaders=1))
    assert len(made) == 2
    assert tempfile.gettempdir() == str(long)
