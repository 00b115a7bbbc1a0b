"""The aligner as the service sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dff.aligner.alignment import Alignment, PersonAlignment
from dff.aligner.face_request import FaceRequest, Steps
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from dff.infra.photos.images import read_image

SAMPLE = Path(__file__).parent / "page" / "sample.jpg"  # of the page for people

Boxes = Sequence[Box] | None  # None: the faces are detected
Photo = tuple[Bytes, Boxes]  # (H, W, 3) uint8 RGB, and boxes in its pixels
Outcome = list[Alignment] | Exception


class FaceAligner(Protocol):
    """The served aligner: ``dff.aligner.align.Aligner``, or any object with its interface.

    It is called from threads.
    """

    @property
    def model(self) -> MorphableModel: ...

    @property
    def card(self) -> Mapping[str, Any]:
        """Where the weights come from and under which terms."""
        ...

    def prepare(self) -> None:
        """Build what is otherwise built when it is first used."""
        ...

    def describe_search(self, image: Bytes) -> str:
        """What a search for faces leaves out of an image, for people; "" for nothing."""
        ...

    def align_batch(
        self, images: Sequence[Bytes], boxes: Sequence[Boxes] | None = None
    ) -> list[list[Alignment]]: ...

    def align_in_steps(
        self,
        images: Sequence[Bytes],
        boxes: Sequence[Boxes] | None = None,
        *,
        faces: int,
    ) -> Steps[list[list[Alignment]]]:
        """``align_batch`` that asks for ``faces`` faces at a time, and yields between searches."""
        ...

    def align_requests(self, requests: Sequence[FaceRequest]) -> list[list[Alignment]]: ...

    def align_person_in_steps(
        self,
        images: Sequence[Bytes],
        boxes: Sequence[Box | None] | None = None,
        *,
        faces: int,
    ) -> Steps[PersonAlignment]:
        """One person in several photos, in steps as those of ``align_in_steps``."""
        ...


def warm_up(aligner: FaceAligner) -> None:
    """Align photos, so that what is compiled or loaded on first use is there for the next one.

    One shows a face, which is found as in a request: without it, the search for faces or the fit
    would compile their kernels for the first client, which takes half a minute.
    """
    aligner.prepare()
    # is shrunk for the search, and too large for one step of the network
    wide = np.full((640, 1536, 3), 128, np.uint8)
    aligner.align_batch([read_image(SAMPLE), wide])
