"""A refused fit is accepted where the quick search is sure of a face, or where eyes are seen."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.centre_detector import StagedDetector
from dff.aligner.confidence import LANDMARK, SURE_FROM
from dff.aligner.config import EyeEvidenceConfig
from dff.aligner.detection import Detection, Search
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import LEFT_EYE, RIGHT_EYE
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import in_one_step
from tests.aligner.oracle import PositionCode, make_scene


class KnownSearch(StagedDetector):
    """Answers the same detections for each photo, and others that are unlikely."""

    def __init__(self, *found: Detection, unlikely: Sequence[Detection] = ()) -> None:
        self.found, self.unlikely, self.asked = [*found], [*unlikely], 0

    def find_in_steps(self, image: Any) -> Search[list[Detection]]:
        return in_one_step(self.found)

    def find_what_was_left_out(self, image: Any) -> Search[list[Detection]]:
        return in_one_step([])

    def find_unlikely(self, image: Any) -> Search[list[Detection]]:
        self.asked += 1
        return in_one_step(self.unlikely)


def with_eyes(face: Alignment, right: float, left: float) -> Alignment:
    """The same fit, to whose eyes the photo is so similar."""
    assert face.features is not None
    landmarks = face.features.landmarks.copy()
    landmarks[RIGHT_EYE, LANDMARK.index("match")] = right
    landmarks[LEFT_EYE, LANDMARK.index("match")] = left
    return replace(face, features=replace(face.features, landmarks=landmarks))


@pytest.fixture
def refused(oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode) -> Alignment:
    """A good fit without eyes, refused for its confidence of 0.4."""
    scene = make_scene(open_head, code, yaw=0.0, rng=np.random.default_rng(8), spread=0.3)
    face = oracle_aligner.align(scene.image, [scene.box])[0]
    blind = with_eyes(face, 0.0, 0.0)
    return replace(blind, face_confidence=0.4, failed=True, reason="confidence 0.40")


def test_odds_of_fit_and_detector_are_multiplied(
    oracle_aligner: Aligner, refused: Alignment
) -> None:
    reporter = oracle_aligner.reporter(oracle_aligner.fit_model)
    confirmed = reporter.confirm(refused, 0.7)
    assert (confirmed.failed, confirmed.reason) == (False, "")
    assert confirmed.face_confidence / (1 - confirmed.face_confidence) == pytest.approx(
        0.4 / 0.6 * 0.7 / 0.3
    )
    assert reporter.confirm(refused, 0.55) is refused  # 0.4 / 0.6 * 0.55 / 0.45 < 1
    accepted = replace(refused, face_confidence=0.6, failed=False, reason="")
    assert reporter.confirm(accepted, 0.7) is accepted


def test_a_detector_does_not_confirm_what_is_refused_for_another_reason(
    oracle_aligner: Aligner, refused: Alignment
) -> None:
    reporter = oracle_aligner.reporter(oracle_aligner.fit_model)
    hidden = replace(refused, visibility=np.zeros(68))
    assert reporter.confirm(hidden, 0.9) is hidden
    assert refused.features is not None
    lost = replace(refused, features=replace(refused.features, lost=np.array(True)))
    assert reporter.confirm(lost, 0.9) is lost


@pytest.mark.parametrize(
    ("shift", "score", "answered"),
    [
        (0.0, 0.7, True),
        (0.1, 0.7, True),
        (0.5, 0.7, False),  # another place
        (0.0, 0.4, False),  # the search is not sure
    ],
)
def test_the_quick_search_confirms_faces_where_it_is_sure_of_them(
    oracle_aligner: Aligner, refused: Alignment, shift: float, score: float, answered: bool
) -> None:
    box = Box.around(refused.landmarks_3d[:, :2])
    beside = Box(*(box.corners + shift * np.array([box.width, 0.0, box.width, 0.0])).tolist())
    aligner = copy(oracle_aligner)
    aligner.config = replace(aligner.config, quarter_turns=False, refit=None)
    # the fit began from a detection that says little
    aligner.detector = KnownSearch(Detection(box, 0.2), Detection(beside, score))
    aligner.align_from = lambda fitter, images, *_, **__: [refused] * len(images)  # type: ignore[method-assign, assignment]
    faces = aligner.align(np.zeros((200, 200, 3), np.uint8))
    assert len(faces) == answered
    aligner.config = replace(aligner.config, confirming_overlap=1.0 + 1e-9)
    assert aligner.align(np.zeros((200, 200, 3), np.uint8)) == []


def test_what_is_seen_in_a_turned_photo_is_not_confirmed(
    oracle_aligner: Aligner, refused: Alignment
) -> None:
    box = Box.around(refused.landmarks_3d[:, :2])
    aligner = copy(oracle_aligner)
    aligner.config = replace(aligner.config, quarter_turns=True)
    aligner.detector = KnownSearch()
    aligner._detect_turned = lambda image: in_one_step([Detection(box, 0.7)])  # type: ignore[method-assign]
    aligner.align_from = lambda *_, **__: [refused]  # type: ignore[method-assign, assignment]
    assert aligner.align(np.zeros((200, 200, 3), np.uint8)) == []


@pytest.mark.parametrize(
    ("right", "left", "accepted"),
    [(0.8, 0.6, True), (0.6, 0.8, True), (0.8, 0.46, False), (0.8, 0.2, False)],
    ids=["seen", "other way round", "hardly seen", "one eye"],
)
def test_both_eyes_speak_for_a_refused_face(
    oracle_aligner: Aligner, refused: Alignment, right: float, left: float, accepted: bool
) -> None:
    reporter, config = oracle_aligner.reporter(oracle_aligner.fit_model), EyeEvidenceConfig()
    face = with_eyes(refused, right, left)
    confirmed = reporter.confirm_by_eyes(face, config)
    assert confirmed.failed is not accepted
    if accepted:
        odds = 0.4 / 0.6 * np.exp(config.weight * (0.6 - config.least))
        assert odds / (1 + odds) > config.most
        assert confirmed.face_confidence == pytest.approx(config.most)
        more = reporter.confirm_by_eyes(face, replace(config, most=0.99))
        assert more.face_confidence == pytest.approx(odds / (1 + odds))
    else:
        assert confirmed is face


def test_eyes_never_make_a_face_sure() -> None:
    """They are alike upside down: the photo is still searched in quarter turns."""
    assert EyeEvidenceConfig().most < SURE_FROM


def test_eyes_do_not_speak_for_a_face_that_is_upside_down(
    oracle_aligner: Aligner, refused: Alignment
) -> None:
    reporter = oracle_aligner.reporter(oracle_aligner.fit_model)
    turned = refused.cam_from_head.rotation * np.array([[-1.0], [-1.0], [1.0]])
    seen = with_eyes(refused, 0.8, 0.8)
    over = replace(seen, cam_from_head=replace(seen.cam_from_head, rotation=turned))
    assert reporter.confirm_by_eyes(over, EyeEvidenceConfig()) is over
    assert not reporter.confirm_by_eyes(seen, EyeEvidenceConfig()).failed


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside an accepted face"])
@pytest.mark.parametrize(("eyes", "shown"), [(0.7, True), (0.5, False)])
def test_unlikely_faces_are_fitted_in_photos_without_a_face_and_must_show_eyes(
    oracle_aligner: Aligner, refused: Alignment, eyes: float, shown: bool, beside: bool
) -> None:
    box = Box.around(refused.landmarks_3d[:, :2])
    fitted = replace(with_eyes(refused, eyes, eyes), face_confidence=0.6, failed=False, reason="")
    aligner = copy(oracle_aligner)
    aligner.config = replace(aligner.config, quarter_turns=False, refit=None)
    first = [Detection(box, 0.9)] if beside else []
    aligner.detector = searched = KnownSearch(*first, unlikely=[Detection(box, 0.2)])
    aligner.align_from = lambda fitter, images, *_, **__: [fitted] * len(images)  # type: ignore[method-assign, assignment]
    assert len(aligner.align(np.zeros((200, 200, 3), np.uint8))) == (beside or shown)
    assert searched.asked == (not beside)


def test_impossible_evidence_is_refused() -> None:
    with pytest.raises(ValueError, match="positive weight"):
        EyeEvidenceConfig(weight=0.0)


def test_a_face_that_only_its_eyes_speak_for_is_fitted_again(
    oracle_aligner: Aligner, refused: Alignment
) -> None:
    box = Box.around(refused.landmarks_3d[:, :2])
    seen = with_eyes(refused, 0.8, 0.8)
    assert seen.features is not None
    poor = replace(seen.features, face=np.zeros_like(seen.features.face))
    aligner = copy(oracle_aligner)
    aligner.config = replace(aligner.config, quarter_turns=False)
    aligner.detector = KnownSearch(Detection(box, 0.6))
    sure = replace(refused, face_confidence=0.9, failed=False, reason="")
    first = replace(seen, features=poor)

    def align(fitter: Any, images: Sequence[Any], *_: Any, **__: Any) -> Any:
        return in_one_step([first if fitter is aligner.fitter else sure] * len(images))

    aligner._align_in_steps = align  # type: ignore[method-assign]
    (face,) = aligner.align(np.zeros((200, 200, 3), np.uint8))
    assert face.face_confidence == 0.9
    first = seen  # accepted by its fit, too
    aligner._confirm = lambda faces, detections: [  # type: ignore[method-assign]
        replace(face, face_confidence=0.6, failed=False, reason="") for face in faces
    ]
    (face,) = aligner.align(np.zeros((200, 200, 3), np.uint8))
    assert face.face_confidence == 0.6
