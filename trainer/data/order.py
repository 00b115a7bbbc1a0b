"""The order of training views: a function of (seed, epoch, step), whatever reads them.

An epoch visits the shards of a dataset in a random order, in blocks of some thousand views, and the
views of a block are shuffled as a whole. So a process needs the shards of one block at a time. The
order does not depend on the number of workers and loaders or on the cache, and any step is found
without those before it, so a run can be resumed in the middle of an epoch.

Several datasets are mixed by share: among any ``CYCLE`` consecutive groups each has its share, in a
random order, and goes on through its own epochs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Array, Integer, Ints
from dff.trainer.data.view_index import ViewIndex

CYCLE = 1000
"""Groups over which the shares of datasets are exact, to a thousandth."""

_SHARDS = 0xFFFFFFFF  # fourth word of the seed of an epoch's order of shards
_MIXTURE = 0xFFFFFFFE  # the same of the order of datasets


@dataclass(frozen=True)
class Block:
    """A block of one epoch of a dataset."""

    shards: Integer[Array, " shards"]  # ascending
    numbers: Integer[Array, " trained"]  # of all views that are trained on, ascending
    groups: Integer[Array, "groups views"]  # numbers of the views, in the order of training


@dataclass(frozen=True)
class Item:
    """A view of a batch. ``numbers`` of its block are those that it may be composed with."""

    source: int  # number of the dataset
    epoch: int  # of this dataset
    block: int
    number: int  # of the view in the dataset


class EpochOrder:
    """The blocks and groups of the epochs of one dataset."""

    def __init__(
        self, index: ViewIndex, *, source: int, seed: int, views: int, block_views: int
    ) -> None:
        self.index, self.source, self.seed, self.views = index, source, seed, views
        self._group_counts = index.group_counts(views)
        total = int(index.train_counts.sum())
        self.blocks = min(max(round(total / block_views), 1), max(index.shards, 1))
        self.groups = int(self._group_counts.sum())
        self._layouts: OrderedDict[int, tuple[list[Ints], Ints]] = OrderedDict()
        self._made: OrderedDict[tuple[int, int], Block] = OrderedDict()

    def shards(self, epoch: int, block: int) -> Ints:
        """The shards of a block, ascending."""
        return self._layout(epoch)[0][block]

    def shards_in_use(self, epoch: int, block: int) -> Ints:
        """The shards of a block that are trained on, in the order in which they are first used."""
        groups = self.block(epoch, block).groups
        shards, first = np.unique(self.index.shards_of(groups[:, 0]), return_index=True)
        return np.asarray(shards[np.argsort(first)])

    def locate(self, epoch: int, group: int) -> tuple[int, int]:
        """The block that holds an epoch's group, and the group's place in it."""
        bounds = self._layout(epoch)[1]
        block = int(np.searchsorted(bounds, group, side="right")) - 1
        return block, group - int(bounds[block])

    def block(self, epoch: int, block: int) -> Block:
        """A block. The last four are kept."""
        key = epoch, block
        if key not in self._made:
            self._made[key] = self._make(epoch, block)
            if len(self._made) > 4:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def _layout(self, epoch: int) -> tuple[list[Ints], Ints]:
        """The shards of each block, and the number of groups before each and in all."""
        if epoch not in self._layouts:
            rng = np.random.default_rng([self.seed, epoch, self.source, _SHARDS])
            shards = rng.permutation(self.index.shards)
            # Cut where the views are divided evenly, each shard whole.
            views = self.index.train_counts[shards].astype(np.float64)
            middle = np.cumsum(views) - views / 2
            of_shard = (middle * self.blocks / max(views.sum(), 1.0)).astype(np.int64)
            blocks = [np.sort(shards[of_shard == block]) for block in range(self.blocks)]
            counts = [self._group_counts[block].sum() for block in blocks]
            self._layouts[epoch] = blocks, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            if len(self._layouts) > 2:
                self._layouts.popitem(last=False)
        return self._layouts[epoch]

    def _make(self, epoch: int, block: int) -> Block:
        shards = self.shards(epoch, block)
        numbers, identity = [], []
        seen = 0
        for shard in shards:
            start, stop = (int(n) for n in self.index.starts[shard : shard + 2])
            train = np.flatnonzero(self.index.bits(self.index.train, start, stop))
            own = np.cumsum(self.index.bits(self.index.first, start, stop))
            numbers.append(start + train)
            identity.append(seen + own[train])
            seen += int(own[-1]) if len(own) else 0
        all_numbers, all_identity = (
            np.concatenate([*parts, np.zeros(0, np.int64)]).astype(np.int64)
            for parts in (numbers, identity)
        )
        rng = np.random.default_rng([self.seed, epoch, block, self.source])
        groups = shuffle_groups(all_identity, views=self.views, rng=rng)
        return Block(shards, all_numbers, all_numbers[groups])


def shuffle_groups(identity: Ints, *, views: int, rng: np.random.Generator) -> Ints:
    """(G, views) indices 0 .. len(identity) - 1 in a random order, each group of one identity.

    Views that fill no group are left out, different ones each time; an identity with fewer views
    than a group repeats them.
    """
    shuffled = rng.permutation(len(identity))
    by_identity = shuffled[np.argsort(identity[shuffled], kind="stable")]
    _, start, count = np.unique(identity[by_identity], return_index=True, return_counts=True)
    groups: list[Ints] = [np.zeros((0, views), np.int64)]
    for first, n in zip(start, count, strict=True):
        own = by_identity[first : first + n]
        whole = np.resize(own, views) if n < views else own[: n - n % views]
        groups.append(whole.reshape(-1, views))
    stacked = np.concatenate(groups)
    out: Ints = stacked[rng.permutation(len(stacked))]
    return out


class ViewOrder:
    """The batches of a run. Any process that knows the indexes and the seed finds any step."""

    def __init__(
        self,
        indexes: Sequence[ViewIndex],
        shares: Sequence[float],
        *,
        seed: int,
        batch: int,
        views: int,
        block_views: int,
    ) -> None:
        """``shares``: of the groups, by dataset; they are normalised.

        Raises ValueError when there are too few views for one batch, another number of shares than
        of datasets, or a share below a thousandth.
        """
        if len(shares) != len(indexes):
            raise ValueError(f"{len(indexes)} datasets need as many shares, got {list(shares)}")
        self.indexes = tuple(indexes)
        self.seed, self.batch, self.views = seed, batch, views
        self.per_step = batch // views
        self._epochs = [
            EpochOrder(index, source=i, seed=seed, views=views, block_views=block_views)
            for i, index in enumerate(indexes)
        ]
        self._quotas = _divide(shares)
        self._lengths = [self._length(order) for order in self._epochs]

    def _length(self, order: EpochOrder) -> int:
        """Groups in an epoch: whole batches where there is one dataset alone."""
        if len(self._epochs) > 1:
            return max(order.groups, 1)
        whole = order.groups - order.groups % self.per_step
        if whole == 0:
            raise ValueError(
                f"{int(order.index.train_counts.sum())} views to train on, in groups of "
                f"{self.views}, do not fill one batch of {self.batch}: take a smaller batch, or "
                "synthesize more views"
            )
        return whole

    def epoch(self, source: int) -> EpochOrder:
        """The epochs of a dataset."""
        return self._epochs[source]

    def items(self, step: int) -> list[Item]:
        """The views of a step, group by group."""
        first = step * self.per_step
        out = []
        for position in range(first, first + self.per_step):
            source, group = self._source_at(position)
            epoch, within = divmod(group, self._lengths[source])
            block, at = self._epochs[source].locate(epoch, within)
            numbers = self._epochs[source].block(epoch, block).groups[at]
            out += [Item(source, epoch, block, int(number)) for number in numbers]
        return out

    def _source_at(self, position: int) -> tuple[int, int]:
        """The dataset of the group at a position of the run, and its number in that dataset."""
        if len(self._epochs) == 1:
            return 0, position
        cycle, at = divmod(position, CYCLE)
        order = self._mixture(cycle)
        source = int(order[at])
        return source, cycle * self._quotas[source] + int((order[:at] == source).sum())

    def _mixture(self, cycle: int) -> Ints:
        if cycle != self._cycle[0]:
            rng = np.random.default_rng([self.seed, cycle, 0, _MIXTURE])
            each = np.repeat(np.arange(len(self._quotas)), self._quotas)
            self._cycle = cycle, rng.permutation(each)
        return self._cycle[1]

    _cycle: tuple[int, Ints] = (-1, np.zeros(0, np.int64))

    def next_block(self, item: Item) -> tuple[int, int]:
        """Epoch and block that follow an item's in its dataset."""
        order = self._epochs[item.source]
        if item.block + 1 < order.blocks:
            return item.epoch, item.block + 1
        return item.epoch + 1, 0


def _divide(shares: Sequence[float]) -> list[int]:
    """Shares as parts of CYCLE, by the largest remainders. Raises ValueError for one of no part."""
    values = np.asarray(shares, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(f"shares must be positive numbers, got {list(shares)}")
    exact = values / values.sum() * CYCLE
    parts = np.floor(exact).astype(int)
    for i in np.argsort(parts - exact, kind="stable")[: CYCLE - parts.sum()]:
        parts[i] += 1
    if (parts == 0).any():
        raise ValueError(f"a share must be a thousandth of all at least, got {list(shares)}")
    return [int(part) for part in parts]
