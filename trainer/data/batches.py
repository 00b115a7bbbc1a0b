"""Batches of training samples, in an order that depends on the seed alone.

The random choices of a sample come from (seed, epoch, number of the view), and a batch is a row of
a table that (seed, epoch) determines. So the state of a loader is the number of the step, and the
number of workers does not change the batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dff.face.arrays import Float, Integer, Ints, UInt8
from dff.infra.socket_folder import shorten_socket_paths
from dff.trainer.data.config import AUGMENT, AugmentConfig
from dff.trainer.data.crops import TrainingSample, TrainingSurface, make_sample
from dff.trainer.data.mosaic import make_mosaic
from dff.trainer.data.view_cache import ViewStore


@dataclass(frozen=True)
class Batch:
    """Stacked training samples."""

    image: UInt8[Tensor, "batch side side 3"]  # RGB
    pixel: Integer[Tensor, "batch points"]  # output pixels, counted row by row
    coordinate: Float[Tensor, "batch points 6"]  # surface coordinates, metres
    known: Float[Tensor, "batch points"]  # 1; 0 where the coordinates are unknown
    face: Float[Tensor, "batch half half"]  # 1 where an output pixel shows the face, else 0

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            image=self.image.to(device, non_blocking=True),
            pixel=self.pixel.to(device, non_blocking=True),
            coordinate=self.coordinate.to(device, non_blocking=True),
            known=self.known.to(device, non_blocking=True),
            face=self.face.to(device, non_blocking=True),
        )


def epoch_table(identity: Ints, *, seed: int, epoch: int, batch: int, views: int) -> Ints:
    """(steps, batch) numbers of an epoch's views, 0 .. len(identity) - 1.

    Each batch consists of groups of ``views`` views of one identity. Their order depends on (seed,
    epoch) alone. Views that fill no group are left out, different ones in each epoch; an identity
    with fewer views than a group repeats them. Raises ValueError when there are too few views for
    one batch.
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


class CropDataset(Dataset[TrainingSample]):
    """Training samples of a store. An item is indexed by (epoch, view) and always the same.

    Some items are mosaics that begin with the indexed view (``MosaicConfig.probability``).
    """

    def __init__(
        self,
        store: ViewStore,
        surface: TrainingSurface,
        *,
        size: int,
        pixels: int,
        seed: int,
        augment: AugmentConfig = AUGMENT,
    ) -> None:
        """``size``: px of a sample; ``pixels``: number of pixels that each is trained on."""
        self.store, self.surface = store, surface
        self.size, self.pixels, self.seed, self.augment = size, pixels, seed, augment
        self.numbers = np.flatnonzero(~store.is_dev)

    def __getitem__(self, item: tuple[int, int]) -> TrainingSample:
        epoch, number = item
        rng = np.random.default_rng([self.seed, epoch, number])
        mosaic = self.augment.mosaic
        if rng.random() < mosaic.probability:
            others = rng.choice(self.numbers, int(rng.integers(1, mosaic.most_faces)))
            views = [self.store.view(int(n)) for n in (number, *others)]
            return make_mosaic(
                views,
                self.surface,
                size=self.size,
                pixels=self.pixels,
                rng=rng,
                config=self.augment,
            )
        return make_sample(
            self.store.view(number),
            self.surface,
            size=self.size,
            pixels=self.pixels,
            rng=rng,
            config=self.augment,
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
    """The (epoch, view) items of one rank in the steps ``first`` .. ``last - 1``.

    ``numbers``: (N,) views that are trained on; ``identity``: (N,) identities that they show. Every
    rank gets the same number of steps; the items of all ranks are the batch of one process.
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
    """Stack samples into a batch."""
    return Batch(
        image=torch.from_numpy(np.stack([sample.image for sample in samples])),
        pixel=torch.from_numpy(np.stack([sample.pixel for sample in samples])),
        coordinate=torch.from_numpy(np.stack([sample.coordinate for sample in samples])),
        known=torch.from_numpy(np.stack([sample.known for sample in samples])),
        face=torch.from_numpy(np.stack([sample.face for sample in samples])),
    )


def batches(
    crops: CropDataset,
    *,
    first: int,
    last: int,
    batch: int,
    views: int,
    rank: int = 0,
    world: int = 1,
    loaders: int = 0,
) -> Iterator[Batch]:
    """Iterate over one rank's batches of the steps ``first`` .. ``last - 1``.

    ``loaders``: processes that prepare batches in advance; 0 prepares them in this one. They are
    forked, so that a caller's script needs no main guard; they use no GPU and start no threads.
    """
    if loaders:
        shorten_socket_paths()
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
            worker_init_fn=_limit_threads if loaders else None,
        )
    )


def _limit_threads(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
