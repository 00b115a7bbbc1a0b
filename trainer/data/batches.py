"""From stored views to batches, in an order that the seed alone decides.

Everything random about a sample comes from (seed, epoch, number of the view), and a batch is a row
of a table that (seed, epoch) decides: so the state of a loader is the number of the step, and the
world's size changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dff.face.arrays import Ints
from dff.trainer.data.crops import TrainingSample, TrainingSurface, make_sample
from dff.trainer.data.mosaic import MOST_FACES, make_mosaic
from dff.trainer.data.view_cache import ViewStore

MOSAIC_SHARE = 0.12
"""Share of samples that show small faces or none, for the search over whole photos."""


class Batch(NamedTuple):
    """Samples stacked: a leading axis B on every field."""

    image: Tensor
    pixel: Tensor
    coordinate: Tensor
    known: Tensor
    face: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t.to(device, non_blocking=True) for t in self))


def epoch_table(identity: Ints, *, seed: int, epoch: int, batch: int, views: int) -> Ints:
    """(steps, batch) numbers of an epoch's views, 0 .. len(identity) - 1: whole groups of ``views``
    of one identity.

    A permutation that (seed, epoch) alone decides. Views that fill no group sit out, others in each
    epoch; an identity with fewer views than a group repeats them. ValueError when there are too few
    for one batch.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(identity))
    by_identity = shuffled[np.argsort(identity[shuffled], kind="stable")]
    _, start, count = np.unique(identity[by_identity], return_index=True, return_counts=True)
    groups: list[Ints] = []
    for first, n in zip(start, count, strict=True):
        own = by_identity[first : first + n]
        whole = np.resize(own, views) if n < views else own[: n - n % views]
        groups.append(whole.reshape(-1, views))
    stacked = np.concatenate(groups)
    table: Ints = stacked[rng.permutation(len(stacked))].ravel()
    steps = len(table) // batch
    if steps == 0:
        raise ValueError(
            f"{len(identity)} views in groups of {views} do not fill one batch of {batch}"
        )
    return table[: steps * batch].reshape(steps, batch)


class Crops(Dataset[TrainingSample]):
    """The training views of a store; an item is named by (epoch, view) and always the same.

    A share ``MOSAIC_SHARE`` of them are mosaics that begin with the named view.
    """

    def __init__(
        self, store: ViewStore, surface: TrainingSurface, *, size: int, pixels: int, seed: int
    ) -> None:
        self.store, self.surface, self.size, self.pixels, self.seed = (
            store,
            surface,
            size,
            pixels,
            seed,
        )
        self.numbers = np.flatnonzero(~store.is_dev)

    def __getitem__(self, item: tuple[int, int]) -> TrainingSample:
        epoch, number = item
        rng = np.random.default_rng([self.seed, epoch, number])
        if rng.random() < MOSAIC_SHARE:
            others = rng.choice(self.numbers, int(rng.integers(1, MOST_FACES)))
            views = [self.store.view(int(n)) for n in (number, *others)]
            return make_mosaic(views, self.surface, size=self.size, pixels=self.pixels, rng=rng)
        return make_sample(
            self.store.view(number), self.surface, size=self.size, pixels=self.pixels, rng=rng
        )


def list_step_items(
    numbers: Ints,
    identity: Ints,
    *,
    first: int,
    last: int,
    seed: int,
    batch: int,
    views: int,
    rank: int,
    world: int,
) -> Iterator[list[tuple[int, int]]]:
    """The (epoch, view) items of one rank's share of the steps ``first`` .. ``last - 1``.

    ``numbers`` (N,) are the views trained on, ``identity`` (N,) whose they are. Every rank gets the
    same number of steps, and the ranks' shares side by side are the batch of one process.
    """
    share = batch // world
    length = len(epoch_table(identity, seed=seed, epoch=0, batch=batch, views=views))
    epoch = -1
    table: Ints = np.empty((0, batch), dtype=np.int64)
    for step in range(first, last):
        if step // length != epoch:
            epoch = step // length
            table = epoch_table(identity, seed=seed, epoch=epoch, batch=batch, views=views)
        row = table[step % length, rank * share : (rank + 1) * share]
        yield [(epoch, int(numbers[i])) for i in row]


def collate(samples: list[TrainingSample]) -> Batch:
    return Batch(*(torch.from_numpy(np.stack(parts)) for parts in zip(*samples, strict=True)))


def batches(
    crops: Crops,
    *,
    first: int,
    last: int,
    batch: int,
    views: int,
    rank: int = 0,
    world: int = 1,
    loaders: int = 0,
) -> Iterator[Batch]:
    """One rank's batches of the steps ``first`` .. ``last - 1``, made ahead by ``loaders``
    processes.

    The processes are forks, so a caller's script needs no main guard; they touch no GPU and start
    no threads.
    """
    numbers = np.flatnonzero(~crops.store.is_dev)
    plan = list_step_items(
        numbers,
        crops.store.identity[numbers],
        first=first,
        last=last,
        seed=crops.seed,
        batch=batch,
        views=views,
        rank=rank,
        world=world,
    )
    return iter(
        DataLoader(
            crops,
            batch_sampler=plan,
            collate_fn=collate,
            num_workers=loaders,
            multiprocessing_context="fork" if loaders else None,
            prefetch_factor=4 if loaders else None,
            worker_init_fn=_one_thread if loaders else None,
        )
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
