"""Fits of rendered views, whose truth is known, from which corrections are learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from dff.aligner.detection import Detection, search_to_end
from dff.aligner.evaluation.calibration import disturb_box
from dff.aligner.fitting.fitters import DenseFitter
from dff.aligner.fitting.loop import last_fit
from dff.face.errors import BadDataset
from dff.face.geometry.camera import Box
from dff.infra.datasets.dataset import Dataset, spread_views
from dff.infra.datasets.shards import ViewRow
from dff.infra.datasets.split import Split


def fit_views(
    fitter: DenseFitter,
    dataset: Dataset,
    *,
    most: int,
    fewest: int,
    split: Split | None,
    purpose: str,
    watch: Callable[[int], object],
) -> Iterator[tuple[ViewRow, int]]:
    """Each view when it is fitted, from a box with the errors of a detector, and whom it shows.

    People are numbered. At most ``most`` views of a ``split``; None: of both.
    ``watch`` is told the number of views after each. Raises BadDataset, which names the
    ``purpose``, when there are fewer than ``fewest``.
    """
    rows = spread_views(dataset, most, split=split)
    if len(rows) < fewest:
        raise BadDataset(
            f"{dataset.storage.uri} has {len(rows)} views to learn {purpose} from; at least "
            f"{fewest} are needed"
        )
    rng = np.random.default_rng(0)
    people: dict[str, int] = {}
    for number, row in enumerate(rows):
        box = disturb_box(Box.around(row.landmarks_3d.astype(np.float64)), rng)
        search_to_end(last_fit(fitter, [row.pixels()], fitter.begin([Detection(box)])))
        yield row, people.setdefault(row.identity_id, len(people))
        watch(number + 1)
