"""An aligner whose answers are known: the neutral face of a model, as wide as the box it is
given.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar, cast

import numpy as np

from dff.aligner.alignment import Alignment, Iteration, PersonAlignment, Pose
from dff.aligner.detection import Search
from dff.aligner.face_request import FaceRequest, Steps
from dff.aligner.service.face_aligner import Boxes
from dff.face.arrays import Bytes
from dff.face.errors import NoFace
from dff.face.geometry.camera import Box, NearPerspective
from dff.face.geometry.transform import Rigid
from dff.face.model.morphable import MorphableModel

FRONTAL = np.diag([1.0, -1.0, -1.0])  # cam_from_head of a head that looks into the camera
WIDE = 2000  # pixels: of wider images a search is said to leave something out

T = TypeVar("T")


def in_one_step(found: T) -> Search[T]:
    """A search, or another call in steps, that returns what is known."""
    return found
    yield  # makes this function a generator


class KnownAligner:
    """Finds one face, in the middle half of any image that is not black."""

    def __init__(self, model: MorphableModel, *, seconds: float = 0.0) -> None:
        self.model = model
        self.card = {"steps": 7}
        self.seconds = seconds
        self.seen: list[Bytes] = []

    def align(self, image: Bytes, boxes: Boxes = None) -> list[Alignment]:
        time.sleep(self.seconds)
        self.seen.append(image)
        height, width = image.shape[:2]
        if boxes is None:
            boxes = (
                [Box(width / 4, height / 4, 3 * width / 4, 3 * height / 4)] if image.any() else []
            )
        return [known_alignment(self.model, box) for box in boxes]

    def prepare(self) -> None:
        """Nothing."""

    def describe_search(self, image: Bytes) -> str:
        return f"wider than {WIDE} pixels" if image.shape[1] > WIDE else ""

    def align_batch(
        self, images: Sequence[Bytes], boxes: Sequence[Boxes] | None = None
    ) -> list[list[Alignment]]:
        asked = boxes or [None] * len(images)
        return [self.align(image, some) for image, some in zip(images, asked, strict=True)]

    def align_in_steps(
        self,
        images: Sequence[Bytes],
        boxes: Sequence[Boxes] | None = None,
        *,
        faces: int,
    ) -> Steps[list[list[Alignment]]]:
        yield None
        return self.align_batch(images, boxes)

    def align_requests(self, requests: Sequence[FaceRequest]) -> list[list[Alignment]]:
        return [
            [known_alignment(self.model, found.box) for found in request.detections]
            for request in requests
        ]

    def align_person(
        self, images: Sequence[Bytes], boxes: Sequence[Box | None] | None = None
    ) -> PersonAlignment:
        steps = self.align_person_in_steps(images, boxes, faces=1)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return cast(PersonAlignment, end.value)

    def align_person_in_steps(
        self,
        images: Sequence[Bytes],
        boxes: Sequence[Box | None] | None = None,
        *,
        faces: int,
    ) -> Steps[PersonAlignment]:
        """The largest face of each image, all of one identity: its number is the number of
        faces.
        """
        yield None
        asked = [None if box is None else [box] for box in boxes or [None] * len(images)]
        found = {i: some[0] for i, some in enumerate(self.align_batch(images, asked)) if some}
        if not found:
            raise NoFace("no image shows a face")
        coefficients = self.model.neutral()
        coefficients.identity[:] = len(found)
        vertices = self.model.vertices(coefficients)
        neutral = {
            i: replace(face, coefficients=coefficients, vertices=vertices)
            for i, face in found.items()
        }
        left_out = {i: "no face found" for i in range(len(images)) if i not in found}
        return PersonAlignment.of(self.model, len(images), neutral, left_out, {})


def known_alignment(model: MorphableModel, box: Box) -> Alignment:
    """The neutral frontal face whose landmarks' width is the box's, with the head's origin at the
    box's centre.
    """
    points = model.template[model.landmarks.vertex]
    scale = box.width / float(np.ptp(points[:, 0]))
    camera = NearPerspective(scale, box.centre)
    pose = Rigid(FRONTAL, np.zeros(3))
    landmarks = camera.px_from_cam(pose.apply(points))
    return Alignment(
        box=box,
        landmarks_2d=landmarks,
        landmarks_3d=np.concatenate([landmarks, scale * points[:, 2:]], axis=1),
        pose=Pose(0.0, 0.0, 0.0, FRONTAL),
        visibility=np.ones(68),
        confidence=np.linspace(0.2, 1.0, 68),
        face_confidence=0.9,
        failed=False,
        reason="",
        vertices=model.template,
        coefficients=model.neutral(),
        cam_from_head=pose,
        camera=camera,
        model=model.name,
        trace=(
            Iteration(landmarks + 8.0, 20.0, -5.0, 3.0, 0.08, np.inf),
            Iteration(landmarks, 0.0, 0.0, 0.0, 0.02, 0.05),
        ),
    )
