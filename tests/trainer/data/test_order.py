"""The order of training views: a function of seed and step alone, that mixes as it should."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dff.face.arrays import Ints
from dff.trainer.data.order import CYCLE, EpochOrder, Item, ViewOrder, shuffle_groups
from dff.trainer.data.view_index import ViewIndex

IDENTITY = np.repeat(np.arange(7), [6, 9, 4, 5, 8, 2, 6])


def make_index(counts: list[list[int]], *, dev: tuple[int, ...] = ()) -> ViewIndex:
    """An index of shards whose identities have these numbers of views; ``dev`` are held out."""
    flat = [count for shard in counts for count in shard]
    first = np.concatenate([np.eye(1, count, dtype=bool)[0] for count in flat])
    held = np.repeat(np.isin(np.arange(len(flat)), dev), flat)
    return ViewIndex(
        np.concatenate([[0], np.cumsum([sum(shard) for shard in counts])]),
        np.packbits(first),
        np.packbits(~held),
        np.packbits(held),
        ("CC0-1.0",),
    )


def even_index(shards: int, identities: int = 4, views: int = 4) -> ViewIndex:
    return make_index([[views] * identities] * shards)


def make_order(index: ViewIndex, *more: ViewIndex, **changes: int) -> ViewOrder:
    values = {"seed": 5, "batch": 8, "views": 2, "block_views": 32} | changes
    shares = [1.0] * (1 + len(more))
    return ViewOrder([index, *more], shares, **values)


def test_groups_are_of_one_identity_and_use_a_view_once() -> None:
    groups = shuffle_groups(IDENTITY, views=4, rng=np.random.default_rng(3))
    shown = IDENTITY[groups]
    assert (shown == shown[:, :1]).all()
    flat = groups.ravel()
    once = flat[IDENTITY[flat] != 5]  # the identity of two views repeats them
    assert len(set(once.tolist())) == len(once)
    assert (IDENTITY[flat] == 5).sum() == 4


def test_an_epoch_of_one_block_shuffles_all_views_as_a_whole() -> None:
    """Also with several shards: the batches are those of one table of the epoch."""
    index = make_index([[6, 9], [4, 5, 8], [2, 6]], dev=(3,))
    order = make_order(index, block_views=1000, views=4)
    train = np.flatnonzero(~index.is_dev())
    for epoch in range(3):
        rng = np.random.default_rng([5, epoch])
        wanted = train[shuffle_groups(index.identity()[train], views=4, rng=rng)]
        steps = len(wanted) // 2
        for step in range(steps):
            items = order.items(epoch * steps + step)
            assert [i.number for i in items] == wanted[2 * step : 2 * step + 2].ravel().tolist()
            assert {i.epoch for i in items} == {epoch}


def test_an_epoch_of_several_blocks_visits_every_view_once() -> None:
    index = even_index(13)
    order = make_order(index)
    steps = len(index) // 8
    seen = Counter(i.number for step in range(steps) for i in order.items(step))
    assert seen == Counter(range(len(index)))
    again = Counter(i.number for step in range(steps, 2 * steps) for i in order.items(step))
    assert again == seen
    assert [i.number for i in order.items(0)] != [i.number for i in order.items(steps)]


def test_held_out_views_are_never_trained_on() -> None:
    index = make_index([[4, 3], [4, 7], [1, 4]], dev=(1, 2))
    order = make_order(index, block_views=8, batch=4)
    numbers = {i.number for step in range(60) for i in order.items(step)}
    assert numbers == set(np.flatnonzero(~index.is_dev()).tolist())


def test_the_views_of_a_block_lie_in_its_shards() -> None:
    index = even_index(20)
    epochs = EpochOrder(index, source=0, seed=1, views=2, block_views=48)
    assert epochs.blocks == round(20 * 16 / 48)
    for epoch in range(3):
        shards = [epochs.shards(epoch, block) for block in range(epochs.blocks)]
        assert sorted(np.concatenate(shards).tolist()) == list(range(20))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
        for block in range(epochs.blocks):
            made = epochs.block(epoch, block)
            assert set(index.shards_of(made.numbers)) == set(shards[block])
            assert set(made.groups.ravel()) <= set(made.numbers)
            in_use = epochs.shards_in_use(epoch, block)
            assert sorted(in_use) == shards[block].tolist()
            assert in_use[0] == index.shards_of(made.groups[0, :1])[0]


def test_any_step_is_found_without_those_before_it() -> None:
    """So a run resumes exactly in the middle of an epoch, and loaders need not share anything."""
    index = even_index(20)
    whole = [make_order(index).items(step) for step in range(90)]
    for step in np.random.default_rng(0).permutation(90):
        assert make_order(index).items(int(step)) == whole[step]
    assert len({item.epoch for step in whole for item in step}) > 1, "an epoch ends among them"


def test_seeds_and_epochs_give_different_orders() -> None:
    index = even_index(20)

    def numbers(seed: int, epoch: int) -> list[int]:
        order = make_order(index, seed=seed)
        first = epoch * (len(index) // 8)
        return [item.number for step in range(first, first + 5) for item in order.items(step)]

    assert numbers(1, 0) == numbers(1, 0)
    assert len({tuple(numbers(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_views_that_fill_no_group_differ_between_epochs() -> None:
    index = make_index([[5, 5], [5, 7]])
    order = make_order(index, views=4, batch=8, block_views=16)
    assert {i.number for step in range(60) for i in order.items(step)} == set(range(22))


def test_too_few_views_for_a_batch_are_refused() -> None:
    with pytest.raises(
        ValueError, match="22 views to train on, in groups of 4, do not fill one batch of 80"
    ):
        make_order(make_index([[5, 5], [5, 7]]), views=4, batch=80)


def test_an_index_takes_three_bits_a_view() -> None:
    index = even_index(1000, identities=40, views=16)
    packed = index.first.nbytes + index.train.nbytes + index.dev.nbytes
    assert packed / len(index) == pytest.approx(3 / 8, rel=0.01)


def mixed_sources(shares: list[float], *, steps: int) -> Ints:
    order = ViewOrder(
        [even_index(6), even_index(9)], shares, seed=2, batch=8, views=2, block_views=64
    )
    return np.array([item.source for step in range(steps) for item in order.items(step)[::2]])


def test_datasets_are_mixed_by_share() -> None:
    sources = mixed_sources([0.7, 0.3], steps=CYCLE // 2)
    assert (sources[:CYCLE] == 0).sum() == 700
    assert (sources[CYCLE:] == 0).sum() == 700
    runs = np.diff(np.flatnonzero(np.diff(sources) != 0))
    assert runs.max() < 30, "they take turns"
    assert (mixed_sources([7, 3], steps=100) == mixed_sources([0.7, 0.3], steps=100)).all()
    with pytest.raises(ValueError, match="a thousandth"):
        mixed_sources([1.0, 1e-5], steps=1)
    with pytest.raises(ValueError, match="positive"):
        mixed_sources([1.0, -1.0], steps=1)


def test_each_dataset_of_a_mixture_goes_through_its_own_epochs() -> None:
    """Across the end of a cycle of shares, too."""
    a, b = even_index(6), even_index(9)
    order = ViewOrder([a, b], [0.25, 0.75], seed=2, batch=8, views=2, block_views=64)
    items = [item for step in range(600) for item in order.items(step)]
    for source, index in enumerate((a, b)):
        own: list[Item] = [item for item in items if item.source == source]
        for epoch in range(len(own) // len(index)):
            part = own[epoch * len(index) : (epoch + 1) * len(index)]
            assert {item.epoch for item in part} == {epoch}
            assert Counter(item.number for item in part) == Counter(range(len(index)))
    assert order.items(550) == items[550 * 8 : 551 * 8]


def test_blocks_of_shards_mix_nearly_as_a_full_shuffle() -> None:
    """A property of whole shards, such as the kind of photo, varies little between batches."""
    index = even_index(200, identities=8, views=4)
    kind = np.random.default_rng(0).normal(size=200)

    def spread(block_views: int) -> float:
        """Standard deviation of the mean over 64 batches of 16 groups."""
        order = make_order(index, views=4, batch=64, block_views=block_views)
        steps = len(index) // 64
        shards = index.shards_of(
            np.array([[i.number for i in order.items(step)[::4]] for step in range(steps)])
        )
        return float(kind[shards].mean(1).std())

    full, blocks, none = spread(6400), spread(1600), spread(64)
    assert full == pytest.approx(1 / 4, rel=0.25), "as independent draws: 1 / sqrt(16)"
    assert blocks < 1.25 * full
    assert none > 1.6 * full, "batches of two shards"
