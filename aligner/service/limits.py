"""What is served, within which limits, and how images of several requests share one call of the
aligner.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.fitting.multi_image import PersonAlignment
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel

Boxes = Sequence[Box] | None
Asked = tuple[Bytes, Boxes]
Outcome = list[Alignment] | Exception
AlignAll = Callable[[Sequence[Asked]], Awaitable[list[Outcome]]]


class FaceAligner(Protocol):
    """What is served: ``dff.aligner.align.Aligner``, or anything that answers like it. Called from
    threads.
    """

    @property
    def model(self) -> MorphableModel: ...

    @property
    def card(self) -> Mapping[str, Any]:
        """Where the weights come from and under which terms."""
        ...

    def align_batch(
        self, images: Sequence[Bytes], boxes: Sequence[Boxes] | None = None
    ) -> list[list[Alignment]]: ...

    def align_person(
        self, images: Sequence[Bytes], boxes: Sequence[Box | None] | None = None
    ) -> PersonAlignment: ...


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many are taken. Raises ValueError for what would refuse
    everything.
    """

    body: int = 16 << 20  # bytes of a photo, and of a request with one
    bodies: int = 64 << 20  # bytes of a request with several photos
    photos: int = 32  # of such a request
    pixels: int = (
        40_000_000  # of a decoded photo; several are aligned in turns that hold some more than this
    )
    pixels_together: int = (
        200_000_000  # of all photos of one person, which are held at the same time
    )
    boxes: int = 64  # of a request
    batch: int = 8  # photos of a request that are aligned at a time
    at_once: int = 1  # alignments that run at the same time; more wait. One already uses every core
    # requests whose photos are held decoded: three bytes a pixel, of several at most 2 x ``pixels``
    decoded: int = 4
    requests: int = 64  # that have arrived and wait, or are aligned; more are sent away

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise ValueError(f"Limits wants positive numbers: {self}")


LIMITS = Limits()


def align_each(aligner: FaceAligner, asked: Sequence[Asked]) -> list[Outcome]:
    """The faces of each image, or what it raised: strangers in one batch must not fail each
    other.
    """
    images, boxes = [image for image, _ in asked], [some for _, some in asked]
    try:
        return [*aligner.align_batch(images, boxes)]
    except (
        Exception
    ) as error:  # a defect of ours is met by one image's sender, and not by all who came with it
        if len(asked) == 1:
            return [error]
        return [outcome for one in asked for outcome in align_each(aligner, [one])]


def warm_up(aligner: FaceAligner) -> None:
    """One alignment of an empty picture, so that what is compiled or loaded at first use is
    there.
    """
    aligner.align_batch([np.full((256, 256, 3), 128, np.uint8)], [[Box(64, 64, 192, 192)]])
