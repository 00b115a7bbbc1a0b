"""Faces of given boxes whose fit from an upright face failed or is doubtful."""

from dataclasses import replace

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment, CalibrationFeatures
from dff.aligner.confidence import FACE, LANDMARK
from dff.aligner.config import AlignConfig, TurnedStartsConfig
from dff.aligner.detection import Detection
from dff.aligner.face_request import FaceRequest, Steps
from dff.aligner.fitting.change import turns_about_z
from dff.aligner.fitting.fit_model import FitState
from dff.aligner.load import load_aligner
from dff.aligner.second_attempts import (
    OtherStarts,
    find_surest,
    start_in_middle,
    start_turned,
)
from dff.aligner.service.routes.pages import FILES as PAGE_FILES
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import Rigid
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


def upright_fit(
    model: MorphableModel, box: Box, confidence: float, *, lost: bool = False
) -> Alignment:
    """An upright fit in a box, which failed below a confidence of a half."""
    features = np.zeros(len(FACE)), np.zeros((68, len(LANDMARK))), np.array(lost)
    return replace(
        known_alignment(model, box),
        face_confidence=confidence,
        failed=confidence < 0.5,
        features=CalibrationFeatures(*features),
    )


def test_only_fits_in_doubt_have_other_starts(shipped: Aligner, open_head: MorphableModel) -> None:
    box, config, turns = Box(10.0, 10.0, 110.0, 110.0), shipped.config, TurnedStartsConfig()

    def others(face: Alignment, config: AlignConfig = config) -> OtherStarts | None:
        return OtherStarts.of(face, box, shipped.fit_model, config)

    failed = others(upright_fit(open_head, box, 0.2))
    assert failed is not None
    assert failed.starts[0].box == start_in_middle(box, config.second_attempt).box
    assert len(failed.starts) == 1 + len(turns.slight) + len(turns.degrees)
    lost = others(upright_fit(open_head, box, 0.0, lost=True))
    assert lost is not None
    assert len(lost.starts) == len(turns.degrees)  # neither in the middle, nor nearly upright
    assert others(upright_fit(open_head, box, 0.76)) is None
    upright_only = shipped.without_turned_starts().config
    middle = others(upright_fit(open_head, box, 0.2), upright_only)
    assert middle is not None
    assert len(middle.starts) == 1
    assert others(upright_fit(open_head, box, 0.6), upright_only) is None
    with pytest.raises(ValueError, match="wants a turn"):
        TurnedStartsConfig(degrees=())


@pytest.mark.parametrize("roll", [0.0, 50.0, -120.0])
def test_the_other_start_of_a_doubtful_fit_is_half_a_turn_away(
    shipped: Aligner, open_head: MorphableModel, roll: float
) -> None:
    box = Box(10.0, 10.0, 110.0, 110.0)
    upright = upright_fit(open_head, box, 0.7)
    turned = turns_about_z(np.radians([roll]))[0] @ upright.cam_from_head.rotation
    face = replace(upright, cam_from_head=Rigid(turned, upright.cam_from_head.translation))
    other = OtherStarts.of(face, box, shipped.fit_model, shipped.config)
    assert other is not None
    (start,) = other.starts
    assert start.pose is not None
    np.testing.assert_allclose(start.pose.rotation[0, :2, 1], -turned[:2, 1], atol=1e-9)
    assert other.choose([0.29]) == []
    assert other.choose([0.31]) == [start]


def test_starts_are_fitted_that_are_about_as_sure_as_the_surest() -> None:
    starts = [Detection(Box(0.0, 0.0, 9.0, 9.0 + i)) for i in range(4)]
    other = OtherStarts(starts, least=0.02, least_share=0.1)
    assert other.choose([0.0, 0.5, 0.06, 0.04]) == starts[1:3]
    assert other.choose([0.0, 0.03, 0.01, 0.0]) == starts[1:2]
    assert other.choose([0.01, 0.01, 0.01, 0.0]) == []


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


def run_steps(
    aligner: Aligner, steps: Steps[list[list[Alignment]]]
) -> tuple[list[Alignment], list[FaceRequest], int]:
    """The faces of the only image of ``steps``, what they asked for, and the number of pauses."""
    requests, pauses, answer = list[FaceRequest](), 0, None
    while True:
        try:
            request = steps.send(answer)
        except StopIteration as end:
            (found,) = end.value
            return found, requests, pauses
        answer = None
        if request is None:
            pauses += 1
        else:
            requests.append(request)
            (answer,) = aligner.align_requests([request])


def test_boxes_without_a_face_are_looked_at_in_steps(
    shipped: Aligner, photo: tuple[Bytes, Alignment]
) -> None:
    """So that a request of many such boxes does not hold others, nor takes much longer."""
    image, _ = photo
    plain = np.full_like(image, 128)
    boxes = [Box(10.0 * i, 10.0, 10.0 * i + 60.0, 70.0) for i in range(5)]
    steps = shipped.align_in_steps([plain], [boxes], faces=4)
    found, requests, pauses = run_steps(shipped, steps)
    asked = [(len(request.detections), request.left) for request in requests]
    assert all(face.failed for face in found)
    assert [face.box for face in found] == boxes
    assert asked == [(4, 1), (1, 0)]  # upright only: no other start promises a face
    assert pauses >= len(boxes) * len(TurnedStartsConfig().degrees)  # one for each small crop


def test_promising_starts_are_fitted_in_steps(
    shipped: Aligner, photo: tuple[Bytes, Alignment]
) -> None:
    image, face = photo
    upside_down = np.ascontiguousarray(np.rot90(image, 2))
    points = [image.shape[1], image.shape[0]] - face.landmarks_3d[:, :2]
    steps = shipped.align_in_steps([upside_down], [[Box.around(points)] * 3], faces=2)
    found, requests, _ = run_steps(shipped, steps)
    asked = [len(request.detections) for request in requests]
    assert max(asked) <= 2
    assert sum(asked) > 3
    assert all(nme_box(one.landmarks_3d[:, :2], points) < 0.03 for one in found)


def test_a_surer_turned_fit_replaces_a_doubtful_upright_one(
    shipped: Aligner, photo: tuple[Bytes, Alignment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upright fit on an upside-down face, which the aligner would trust."""
    image, face = photo
    upside_down = np.ascontiguousarray(np.rot90(image, 2))
    points = [image.shape[1], image.shape[0]] - face.landmarks_3d[:, :2]
    box, align = Box.around(points), shipped.align_requests

    def trusting(requests: list[FaceRequest]) -> list[list[Alignment]]:
        """Trusts upright fits as far as ``confidence``."""
        return [
            [
                one
                if start.pose is not None
                else replace(one, failed=False, reason="", face_confidence=confidence)
                for start, one in zip(request.detections, some, strict=True)
            ]
            for request, some in zip(requests, align(requests), strict=True)
        ]

    monkeypatch.setattr(shipped, "align_requests", trusting)
    confidence = 0.9
    (kept,) = shipped.align(upside_down, [box])
    assert nme_box(kept.landmarks_3d[:, :2], points) > 0.2
    confidence = 0.7
    (mended,) = shipped.align(upside_down, [box])
    assert nme_box(mended.landmarks_3d[:, :2], points) < 0.03
    assert (mended.box, mended.face_confidence > 0.9) == (box, True)
