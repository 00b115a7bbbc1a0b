"""A face that the search is sure of, but whose fit was rejected, is fitted again."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.centre_detector import StagedDetector
from dff.aligner.config import RefitConfig
from dff.aligner.detection import Detection, Search
from dff.aligner.found_faces import describe_missing_face, describe_refused
from dff.aligner.matching.matcher import Matcher
from dff.face.errors import NoFace
from dff.face.geometry.camera import Box
from dff.files.alignments import align_files
from dff.files.labels import find_landmarks
from tests.aligner.known_aligner import in_one_step, known_alignment

FACE, BESIDE = Box(40, 40, 100, 100), Box(220, 40, 280, 100)
SMALL, LARGE = Box(220, 40, 240, 60), Box(150, 40, 390, 280)


@dataclass
class Fits:
    """Fits by box: the usual ones of a confidence, and others of the patient fitter."""

    aligner: Aligner
    usual: dict[Box, float]
    patient: float
    repeated: int = 0

    def __call__(
        self, fitter: Any, images: Sequence[Any], boxes: Sequence[Box], start: Any, **_: Any
    ) -> list[Alignment]:
        again = fitter is not self.aligner.fitter
        self.repeated += again * len(boxes)
        found = [known_alignment(self.aligner.model, box) for box in boxes]
        sure = [self.patient if again else self.usual[box] for box in boxes]
        return [
            replace(face, face_confidence=one, failed=one < 0.5, reason=f"confidence {one}")
            for face, one in zip(found, sure, strict=True)
        ]


def aligner_with(
    aligner: Aligner, detected: dict[Box, float], usual: dict[Box, float], patient: float
) -> tuple[Aligner, Fits]:
    changed = copy(aligner)
    found = [Detection(box, score) for box, score in detected.items()]
    changed.detector = SimpleNamespace(find=lambda image: found)  # type: ignore[assignment]
    changed.config = replace(aligner.config, quarter_turns=False)
    fits = Fits(changed, usual, patient)
    changed._align_in_steps = lambda *args, **named: in_one_step(fits(*args, **named))  # type: ignore[method-assign]
    return changed, fits


PHOTO = np.zeros((400, 400, 3), np.uint8)


@pytest.mark.parametrize(
    ("detected", "usual", "again"),
    [
        ({FACE: 0.6}, {FACE: 0.3}, True),
        ({FACE: 0.6, BESIDE: 0.7}, {FACE: 0.3, BESIDE: 0.9}, True),
        ({FACE: 0.3}, {FACE: 0.3}, True),
        ({FACE: 0.3, BESIDE: 0.7}, {FACE: 0.3, BESIDE: 0.9}, False),  # beside another face
        ({FACE: 0.3, SMALL: 0.7}, {FACE: 0.3, SMALL: 0.9}, True),  # beside a smaller one
        ({FACE: 0.3}, {FACE: 0.08}, False),  # neither the search nor the fit is sure
        ({FACE: 0.6}, {FACE: 0.01}, False),  # nothing speaks for the fit
        ({FACE: 0.6, LARGE: 0.7}, {FACE: 0.3, LARGE: 0.9}, False),  # beside a far larger face
        ({FACE: 0.6, SMALL: 0.7}, {FACE: 0.3, SMALL: 0.9}, True),
        ({FACE: 0.6}, {FACE: 0.6}, False),  # accepted at once
    ],
    ids=[
        "alone",
        "beside",
        "likely",
        "less likely",
        "less likely, but larger",
        "unsure",
        "hopeless",
        "small",
        "large",
        "accepted",
    ],
)
def test_a_likely_face_whose_fit_was_rejected_is_fitted_again(
    oracle_aligner: Aligner, detected: dict[Box, float], usual: dict[Box, float], again: bool
) -> None:
    aligner, fits = aligner_with(oracle_aligner, detected, usual, 0.8)
    faces = aligner.align(PHOTO)
    assert fits.repeated == again * (1 + len(RefitConfig.boxes))
    others = sum(confidence >= 0.5 for confidence in usual.values())
    assert len(faces) == others + again
    assert (FACE in [face.box for face in faces]) is (again or usual[FACE] >= 0.5)


def test_a_face_that_no_start_explains_is_none(oracle_aligner: Aligner) -> None:
    aligner, fits = aligner_with(oracle_aligner, {FACE: 0.6}, {FACE: 0.3}, 0.4)
    assert aligner.align(PHOTO) == []
    assert fits.repeated > 0


class KnownSearches(StagedDetector):
    """Answers one search of a photo, then the thorough one that it left out."""

    def __init__(self, first: dict[Box, float], left_out: dict[Box, float]) -> None:
        self.first, self.left_out, self.searched = first, left_out, 0

    def find_in_steps(self, image: Any) -> Search[list[Detection]]:
        return in_one_step([Detection(box, score) for box, score in self.first.items()])

    def find_what_was_left_out(self, image: Any) -> Search[list[Detection]]:
        self.searched += 1
        return in_one_step([Detection(box, score) for box, score in self.left_out.items()])

    def find_unlikely(self, image: Any) -> Search[list[Detection]]:
        return in_one_step([])


@pytest.mark.parametrize(
    ("first", "usual", "found"),
    [
        ({BESIDE: 0.6}, {BESIDE: 0.01, FACE: 0.3}, [FACE]),  # fitted again
        ({BESIDE: 0.6}, {BESIDE: 0.01, FACE: 0.9}, [FACE]),
        # the search was sure of what is no face; another face does not change that
        ({BESIDE: 0.6, SMALL: 0.3}, {BESIDE: 0.01, SMALL: 0.9, FACE: 0.9}, [SMALL, FACE]),
        ({BESIDE: 0.6, SMALL: 0.7}, {BESIDE: 0.9, SMALL: 0.01, FACE: 0.9}, [BESIDE]),
        ({BESIDE: 0.3}, {BESIDE: 0.9, FACE: 0.9}, [BESIDE]),
        ({}, {FACE: 0.9}, []),  # the thorough search has seen nothing
    ],
    ids=["refit", "found", "refused beside another", "refused beside a sure one", "unsure", "none"],
)
def test_a_photo_is_searched_again_where_the_face_that_ended_its_search_is_none(
    oracle_aligner: Aligner, first: dict[Box, float], usual: dict[Box, float], found: list[Box]
) -> None:
    aligner, _ = aligner_with(oracle_aligner, first, usual, 0.8)
    aligner.detector = searches = KnownSearches(first, {FACE: 0.2})
    faces = aligner.align(PHOTO)
    assert {face.box for face in faces} == set(found)
    assert searches.searched == (FACE in found)


def test_turned_photos_are_not_fitted_again(oracle_aligner: Aligner) -> None:
    aligner, fits = aligner_with(oracle_aligner, {}, {FACE: 0.3}, 0.8)
    aligner.config = replace(aligner.config, quarter_turns=True)
    aligner._detect_turned = lambda image: in_one_step([Detection(FACE, 0.6)])  # type: ignore[method-assign]
    assert aligner.align(PHOTO) == []
    assert fits.repeated == 0


def test_a_photo_without_a_face_tells_what_was_refused(
    oracle_aligner: Aligner, tmp_path: Path
) -> None:
    aligner, _ = aligner_with(oracle_aligner, {FACE: 0.6, SMALL: 0.5}, {FACE: 0.1, SMALL: 0.3}, 0.2)
    why = (
        "no face found with sufficient confidence by these weights: 2 candidates refused; "
        "reason of the best: confidence 0.3"
    )
    assert describe_missing_face(aligner.align(PHOTO)) == why
    found, _ = aligner_with(oracle_aligner, {FACE: 0.6, SMALL: 0.5}, {FACE: 0.9, SMALL: 0.3}, 0.2)
    assert describe_refused(found.align(PHOTO)) == ""
    empty, _ = aligner_with(oracle_aligner, {}, {}, 0.2)
    assert describe_missing_face(empty.align(PHOTO)) == "no face found"

    photo = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(photo)
    (result,) = align_files(aligner, [photo])
    assert result.lines() == [f"{photo}: {why}"]
    with pytest.raises(NoFace, match=f"^{why}$"):
        find_landmarks(photo.read_bytes(), aligner, confidence=0.5)
    with pytest.raises(NoFace, match="in the photo with sufficient confidence by these"):
        aligner.run_to_end(Matcher(aligner).describe_largest_in_steps(PHOTO, faces=8))


def test_a_preset_may_leave_it_out(oracle_aligner: Aligner) -> None:
    aligner, fits = aligner_with(oracle_aligner, {FACE: 0.6}, {FACE: 0.3}, 0.8)
    aligner.config = replace(aligner.config, refit=None)
    assert aligner.align(PHOTO) == []
    assert fits.repeated == 0
    with pytest.raises(ValueError, match="wants a pass"):
        RefitConfig(passes=0)
