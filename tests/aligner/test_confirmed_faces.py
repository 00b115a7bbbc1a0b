"""A refused fit is accepted where the quick search is sure of a face in the same place."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.centre_detector import StagedDetector
from dff.aligner.detection import Detection, Search
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import in_one_step
from tests.aligner.oracle import PositionCode, make_scene


class KnownSearch(StagedDetector):
    """Answers the same detections for each photo."""

    def __init__(self, *found: Detection) -> None:
        self.found = [*found]

    def find_in_steps(self, image: Any) -> Search[list[Detection]]:
        return in_one_step(self.found)

    def find_what_was_left_out(self, image: Any) -> Search[list[Detection]]:
        return in_one_step([])


@pytest.fixture
def refused(oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode) -> Alignment:
    """A good fit, refused for its confidence of 0.4."""
    scene = make_scene(open_head, code, yaw=0.0, rng=np.random.default_rng(8), spread=0.3)
    face = oracle_aligner.align(scene.image, [scene.box])[0]
    return replace(face, face_confidence=0.4, failed=True, reason="confidence 0.40")


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
    aligner._align = lambda fitter, images, *_, **__: [refused] * len(images)  # type: ignore[method-assign, assignment]
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
    aligner._align = lambda *_, **__: [refused]  # type: ignore[method-assign, assignment]
    assert aligner.align(np.zeros((200, 200, 3), np.uint8)) == []
