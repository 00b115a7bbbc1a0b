"""Stored views with their dense ground truth, and the store that reads them by number.

A view is decoded when it is used. Barycentric weights are computed for the pixels that are asked
for alone (``dff.trainer.data.kernels``), from the projected vertices of its face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Array, Bools, Float, Floats, Integer, Ints, UInt8
from dff.face.errors import BadDataset
from dff.face.geometry.camera import Box, Pinhole
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.shard_filter import RowFilter
from dff.infra.datasets.view_file import EncodedView, count_shape_bytes
from dff.trainer.data import kernels
from dff.trainer.data.order import ViewOrder
from dff.trainer.data.shard_cache import CacheConfig, ShardCache
from dff.trainer.data.view_index import ViewIndex, build_indexes


@dataclass(frozen=True)
class StoredView:
    """One view with its dense ground truth."""

    image: UInt8[Array, "height width 3"]  # RGB
    # Row of the model's faces; numbers beyond the last face are background and occluders
    triangle: Integer[Array, "height width"]
    vertex_px: Float[Array, "vertices 2"]  # projected vertices, px
    vertex_weight: Float[Array, " vertices"]  # the camera's ``screen_weight``
    box: Box  # of the 68 landmarks, px
    name: str = "a view"  # for messages


class ViewStore:
    """The views of one dataset or several, by dataset and number, through the cache on disk."""

    def __init__(
        self, cache: ShardCache, indexes: Sequence[ViewIndex], model: MorphableModel
    ) -> None:
        self.cache, self.indexes, self.model = cache, tuple(indexes), model

    def separate(self) -> ViewStore:
        """A store of the same views for another thread: one store serves one thread."""
        cache = ShardCache(self.cache.datasets, self.cache.model, self.cache.config)
        return ViewStore(cache, self.indexes, self.model)

    def __len__(self) -> int:
        """Number of views that are trained on or held out."""
        return sum(index.used for index in self.indexes)

    @property
    def licences(self) -> tuple[str, ...]:
        """The licences of the rows, sorted."""
        return tuple(sorted({name for index in self.indexes for name in index.licences}))

    @property
    def identity(self) -> Ints:
        """(N,) index of the identity that each view of the first dataset shows."""
        return self.indexes[0].identity()

    @property
    def is_dev(self) -> Bools:
        """(N,) whether a view of the first dataset belongs to the validation split."""
        return self.indexes[0].is_dev()

    def check_cache(self, order: ViewOrder) -> None:
        """Raises ValueError when the cache can't hold a block and the one fetched ahead."""
        needed = 0
        for source, dataset in enumerate(self.cache.datasets):
            epochs = order.epoch(source)
            people = self.indexes[source].identity_counts()
            sizes = dataset.shards.sizes + people * count_shape_bytes(len(self.model.template))
            blocks = [sizes[epochs.shards(0, b)].sum() for b in range(epochs.blocks)]
            needed += int(sum(sorted(blocks)[-2:]))
        if needed > self.cache.config.capacity:
            raise ValueError(
                f"the cache of {self.cache.config.capacity / 1e9:.3g} GB can't hold two blocks of "
                f"shards, {needed / 1e9:.3g} GB: give it more (--cache-bytes), or shuffle fewer "
                "views together (--block-views)"
            )

    def held_out(self, shards: int) -> tuple[Ints, Ints]:
        """Numbers of held-out views of the first dataset, and the identities that they show.

        Of at most ``shards`` shards, evenly spaced among those that have such views.
        """
        index = self.indexes[0]
        numbers = np.flatnonzero(index.is_dev())
        identity = index.identity()[numbers]
        having = np.unique(index.shards_of(numbers))
        if len(having) > shards:
            chosen = having[np.linspace(0, len(having) - 1, shards).round().astype(int)]
            kept = np.isin(index.shards_of(numbers), chosen)
            numbers, identity = numbers[kept], identity[kept]
        return numbers, identity

    def view(self, number: int, source: int = 0) -> StoredView:
        """Decode a view of the dataset number ``source``.

        Raises BadDataset when it is damaged, or of another model or another version of it.
        """
        return self.view_list([number], source)[0]

    def view_list(self, numbers: Sequence[int], source: int = 0) -> list[StoredView]:
        """Decode some views of a dataset, with one look at each shard. Raises as ``view``."""
        index = self.indexes[source]
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for place, number in enumerate(numbers):
            shard, row = index.shard_of(int(number))
            by_shard.setdefault(shard, []).append((place, row))
        out: dict[int, StoredView] = {}
        for shard, wanted in by_shard.items():
            encoded = self.cache.views(source, shard, [row for _, row in wanted])
            name = self.cache.datasets[source].shard_name(shard)
            for (place, row), view in zip(wanted, encoded, strict=True):
                out[place] = self._decode(view, f"row {row} of {name}")
        return [out[place] for place in range(len(numbers))]

    def _decode(self, view: EncodedView, name: str) -> StoredView:
        image = cv2.imdecode(np.frombuffer(view.image, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None or image.shape != (view.height, view.width, 3):
            raise BadDataset(f"the image of {name} is not a JPEG of {view.width} x {view.height}")
        if len(view.expression) > len(self.model.expression):
            raise BadDataset(f"{name} was made with another version of {self.model.name}")
        px, weight = self._project(view)
        return StoredView(
            image=np.asarray(image, dtype=np.uint8),
            triangle=view.triangle,
            vertex_px=px,
            vertex_weight=weight,
            box=view.box,
            name=name,
        )

    def _project(self, view: EncodedView) -> tuple[Floats, Floats]:
        """(V, 2) px and (V,) screen weights of the vertices of a view."""
        used = np.flatnonzero(view.expression)
        camera, count = view.camera, len(self.model.template)
        px, weight = np.empty((count, 2)), np.empty(count)
        basis = self.model.expression
        kernels.project_face(
            self.model.template,
            view.shape,
            basis.reshape(len(basis), -1),
            used,
            view.expression[used].astype(basis.dtype),
            np.ascontiguousarray(view.rotation),
            np.ascontiguousarray(view.translation),
            camera.focal if isinstance(camera, Pinhole) else camera.scale,
            camera.centre,
            isinstance(camera, Pinhole),
            px,
            weight,
        )
        return px, weight


def open_views(
    datasets: Sequence[Dataset],
    model: MorphableModel,
    cache: CacheConfig,
    row_filter: RowFilter | None = None,
) -> ViewStore:
    """Open the views of datasets that are trained on together.

    Their shards are scanned once; the index is kept in the cache's folder. Raises BadDataset for
    shards that can't be scanned, or when there is no view to train on.
    """
    shards = ShardCache(datasets, model, cache)
    indexes = build_indexes(datasets, folder=cache.folder, row_filter=row_filter)
    return ViewStore(shards, indexes, model)
