"""Faces of given boxes whose fit from an upright face failed."""

from dataclasses import replace

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.face_request import FaceRequest
from dff.aligner.fitting.fit_model import FitState
from dff.aligner.load import load_aligner
from dff.aligner.second_attempts import find_surest, start_in_middle, start_turned
from dff.aligner.service.routes.pages import FILES as PAGE_FILES
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import nme_box
from dff.face.model.morphable import MorphableModel
from dff.infra.photos.images import read_image
from tests.aligner.known_aligner import known_alignment


@pytest.fixture(scope="module")
def shipped() -> Aligner:
    return load_aligner()


@pytest.fixture(scope="module")
def photo(shipped: Aligner) -> tuple[Bytes, Alignment]:
    """The page's sample photo and its face."""
    image = read_image(PAGE_FILES["sample.jpg"])
    (face,) = shipped.align(image)
    return image, face


def test_a_turned_start_is_the_upright_one_turned_about_the_middle_of_its_box(
    shipped: Aligner,
) -> None:
    fit_model, box, depth = shipped.fit_model, Box(30.0, 40.0, 90.0, 140.0), 1.0
    upright = fit_model.landmarks(fit_model.state_in_boxes([box], depth))[0] - box.centre
    none, quarter, half = start_turned(fit_model, box, (0.0, 90.0, 180.0), depth)
    for start, turn in ((none, [[1, 0], [0, 1]]), (quarter, [[0, -1], [1, 0]]), (half, -np.eye(2))):
        assert start.pose is not None
        assert (start.box, start.given) == (box, True)
        placed = fit_model.landmarks(FitState.of(start.pose, depth))[0] - box.centre
        np.testing.assert_allclose(placed, upright @ np.transpose(turn), atol=1e-9)


def test_a_start_in_the_middle_is_a_share_of_its_box() -> None:
    assert start_in_middle(Box(0.0, 0.0, 100.0, 40.0), 0.5).box == Box(25.0, 10.0, 75.0, 30.0)


def test_the_surest_face_of_a_box_is_found(open_head: MorphableModel) -> None:
    box = Box(10.0, 10.0, 110.0, 110.0)
    there, beside = (
        known_alignment(open_head, place) for place in (box, Box(210.0, 10.0, 310.0, 110.0))
    )
    faces = [
        replace(there, face_confidence=0.6),
        replace(there, face_confidence=0.8),
        replace(there, face_confidence=0.9, failed=True, reason="unsure"),
        replace(beside, face_confidence=0.95),
    ]
    assert find_surest(faces, box) is faces[1]
    assert find_surest(faces[2:], box) is None


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_face_on_its_side_is_aligned_in_its_box(
    shipped: Aligner, photo: tuple[Bytes, Alignment], quarters: int
) -> None:
    image, face = photo
    turned = np.ascontiguousarray(np.rot90(image, quarters))
    # in pixels from the middle of the photo: np.rot90 turns against the clock, and y points down
    x, y = (face.landmarks_3d[:, :2] - [image.shape[1] / 2, image.shape[0] / 2]).T
    for _ in range(quarters):
        x, y = y, -x
    truth = np.column_stack([x + turned.shape[1] / 2, y + turned.shape[0] / 2])
    (found,) = shipped.align(turned, [Box.around(truth)])
    assert not found.failed
    assert found.box == Box.around(truth)
    assert nme_box(found.landmarks_3d[:, :2], truth) < 0.03
    if quarters == 2:  # a face on its side may be found from an upright start, too
        (upright,) = shipped.without_turned_starts().align(turned, [Box.around(truth)])
        assert upright.failed, "the turned starts are not needed, so this test shows nothing"


def test_turned_starts_are_asked_for_in_steps(
    shipped: Aligner, photo: tuple[Bytes, Alignment]
) -> None:
    """So that a request of many boxes without a face does not hold others."""
    image, _ = photo
    plain = np.full_like(image, 128)
    boxes = [Box(10.0 * i, 10.0, 10.0 * i + 60.0, 70.0) for i in range(5)]
    steps = shipped.align_in_steps([plain], [boxes], faces=4)
    asked, answer = [], None
    while True:
        try:
            request = steps.send(answer)
        except StopIteration as end:
            (found,) = end.value
            break
        assert isinstance(request, FaceRequest)
        asked.append((len(request.detections), request.left))
        answer = shipped.align_requests([request])[0]
    assert all(face.failed for face in found)
    assert [face.box for face in found] == boxes
    assert max(count for count, _ in asked) <= 4
    assert sum(count for count, _ in asked) == len(boxes) * (2 + len(shipped.config.turned_starts))
    assert min(left for _, left in asked) == 0
