"""Batches of training samples, in an order that depends on the seed alone.

The random choices of a sample come from (seed, epoch, number of the view), the views of a step and
its size from (seed, step) (``dff.trainer.data.order``). So the state of a loader is the number of
the step, and the numbers of workers and loaders do not change the batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dff.face.arrays import Float, Integer, UInt8
from dff.infra.clusters.socket_folder import shorten_socket_paths
from dff.trainer.data.config import AUGMENT, AugmentConfig
from dff.trainer.data.crops import TrainingSample, TrainingSurface, make_sample
from dff.trainer.data.mosaic import make_mosaic
from dff.trainer.data.order import Item, ViewOrder
from dff.trainer.data.views import StoredView, ViewStore

_SIZES = 0xFFFFFFFD  # third word of the seed of a step's size


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


class StepBatches(Dataset[Batch]):
    """One rank's batches of training samples, indexed by step and always the same.

    Some samples are mosaics that begin with a view of the batch (``MosaicConfig.probability``);
    the views beside it are of the same block. In a loader process, the shards of a block that
    begins, and then those of the next, are fetched ahead, divided among the loaders.
    """

    def __init__(
        self,
        store: ViewStore,
        surface: TrainingSurface,
        order: ViewOrder,
        *,
        size: int,
        pixels: int,
        other_sizes: tuple[int, ...] = (),
        augment: AugmentConfig = AUGMENT,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """``size``: px of a sample; ``pixels``: number of pixels that each is trained on.

        Half of the steps, at random, take one of ``other_sizes`` instead, if there are any.
        """
        self.store, self.surface, self.order = store, surface, order
        self.size, self.other_sizes = size, other_sizes
        self.pixels, self.augment = pixels, augment
        self.rank, self.world = rank, world
        self._ahead: set[tuple[int, int, int]] = set()  # blocks whose shards are being fetched

    def __getitem__(self, step: int) -> Batch:
        items = self.items(step)
        self._fetch_ahead(items)
        return collate(self.samples(items, self.size_of(step)))

    def size_of(self, step: int) -> int:
        """Side of a step's images, px."""
        rng = np.random.default_rng([self.order.seed, step, _SIZES])
        if not self.other_sizes or rng.random() < 0.5:
            return self.size
        return int(rng.choice(self.other_sizes))

    def items(self, step: int) -> list[Item]:
        """The rank's share of a step; the shares of all ranks are the batch of one process."""
        share = self.order.batch // self.world
        return self.order.items(step)[self.rank * share : (self.rank + 1) * share]

    def samples(self, items: Sequence[Item], size: int) -> list[TrainingSample]:
        """The samples of some items, ``size`` px wide.

        Each depends on its item, the size and the seed alone.
        """
        views: dict[Item, StoredView] = {}
        for source in sorted({item.source for item in items}):
            own = [item for item in items if item.source == source]
            read = self.store.view_list([item.number for item in own], source)
            views |= dict(zip(own, read, strict=True))
        return [self._make(item, views[item], size) for item in items]

    def _make(self, item: Item, view: StoredView, size: int) -> TrainingSample:
        rng = np.random.default_rng([self.order.seed, item.epoch, item.number, item.source])
        mosaic = self.augment.mosaic
        if rng.random() < mosaic.probability:
            block = self.order.epoch(item.source).block(item.epoch, item.block)
            others = rng.choice(block.numbers, int(rng.integers(1, mosaic.most_faces)))
            return make_mosaic(
                [view, *self.store.view_list(others.tolist(), item.source)],
                self.surface,
                size=size,
                pixels=self.pixels,
                rng=rng,
                config=self.augment,
            )
        return make_sample(
            view, self.surface, size=size, pixels=self.pixels, rng=rng, config=self.augment
        )

    def _fetch_ahead(self, items: Sequence[Item]) -> None:
        loader = get_worker_info()
        if loader is None:
            return
        blocks = dict.fromkeys((item.source, item.epoch, item.block) for item in items)
        following = dict.fromkeys((i.source, *self.order.next_block(i)) for i in items)
        for source, epoch, block in [*blocks, *following]:
            if (source, epoch, block) not in self._ahead:
                self._ahead.add((source, epoch, block))
                shards = self.order.epoch(source).shards_in_use(epoch, block)
                mine = shards[loader.id :: loader.num_workers]
                self.store.cache.fetch_ahead([(source, int(shard)) for shard in mine])


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
    steps: StepBatches, *, first: int, last: int, loaders: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """Iterate over the batches of the steps ``first`` .. ``last - 1``.

    ``loaders``: processes that prepare batches in advance; 0 prepares them in this one. They are
    forked, so that a caller's script needs no main guard; they use no GPU and start no threads but
    those that fetch shards. ``pin_memory``: in memory that a GPU reads without a copy.
    """
    if loaders:
        shorten_socket_paths()
    return iter(
        DataLoader(
            steps,
            batch_size=None,
            sampler=range(first, last),
            num_workers=loaders,
            multiprocessing_context="fork" if loaders else None,
            prefetch_factor=4 if loaders else None,
            worker_init_fn=_limit_threads if loaders else None,
            pin_memory=pin_memory,
        )
    )


def _limit_threads(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
