"""The loader's order: decided by the seed alone, whatever the number of workers."""

from __future__ import annotations

import numpy as np
import pytest

from dff.trainer.data.batches import MOSAIC_SHARE, Crops, epoch_table, list_step_items
from dff.trainer.data.crops import TrainingSurface
from dff.trainer.data.view_cache import StoredView, ViewStore

IDENTITY = np.repeat(np.arange(7), [6, 9, 4, 5, 8, 2, 6])


def test_an_epoch_holds_whole_groups_of_one_identity() -> None:
    table = epoch_table(IDENTITY, seed=3, epoch=0, batch=8, views=4)
    assert table.shape[1] == 8
    groups = IDENTITY[table.reshape(-1, 4)]
    assert (groups == groups[:, :1]).all()
    flat = table.ravel()
    twice = flat[IDENTITY[flat] != 5]  # the identity of two views repeats them
    assert len(set(twice.tolist())) == len(twice)


def test_epochs_differ_and_seeds_decide() -> None:
    def table(seed: int, epoch: int) -> list[int]:
        return list(epoch_table(IDENTITY, seed=seed, epoch=epoch, batch=8, views=4).ravel())

    assert table(1, 0) == table(1, 0)
    assert table(1, 0) != table(1, 1)
    assert table(1, 0) != table(2, 0)
    seen = set().union(*(table(1, epoch) for epoch in range(30)))
    assert seen == set(range(len(IDENTITY))), "in time every view has its turn"
    with pytest.raises(ValueError, match="do not fill one batch"):
        epoch_table(IDENTITY, seed=0, epoch=0, batch=80, views=4)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_order_does_not_depend_on_the_worlds_size(world: int) -> None:
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


def test_a_resumed_order_is_the_rest_of_the_order() -> None:
    numbers = np.arange(len(IDENTITY))
    arguments = {"last": 15, "seed": 5, "batch": 8, "views": 4, "rank": 0, "world": 1}
    whole = list(list_step_items(numbers, IDENTITY, first=0, **arguments))  # type: ignore[arg-type]
    assert list(list_step_items(numbers, IDENTITY, first=6, **arguments)) == whole[6:]  # type: ignore[arg-type]


def test_an_item_is_the_same_whoever_asks(store: ViewStore, surface: TrainingSurface) -> None:
    one, two = (Crops(store, surface, size=64, pixels=50, seed=4) for _ in range(2))
    for number in range(8):
        assert all(
            np.array_equal(a, b) for a, b in zip(one[3, number], two[3, number], strict=True)
        )


def test_a_share_of_the_items_are_mosaics_of_training_views(
    store: ViewStore, surface: TrainingSurface, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    view = ViewStore.view

    def watched(self: ViewStore, number: int) -> StoredView:
        asked.append(number)
        return view(self, number)

    monkeypatch.setattr(ViewStore, "view", watched)
    crops = Crops(store, surface, size=64, pixels=50, seed=0)
    counts = []
    for epoch in range(150):
        before = len(asked)
        crops[epoch, 0]
        counts.append(len(asked) - before)
    assert np.mean(np.array(counts) > 1) == pytest.approx(MOSAIC_SHARE, abs=0.09)
    assert not store.is_dev[asked].any()
