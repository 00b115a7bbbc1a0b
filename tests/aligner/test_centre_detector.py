"""Cells become boxes and poses in the photo; the thorough search runs where the quick is unsure."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.centre_detector import CentreDetector, StagedDetector
from dff.aligner.config import CentreDetectorConfig, DetectorConfig
from dff.aligner.detection import Detection, Search, search_to_end
from dff.face.arrays import Bytes, Floats
from dff.face.detector_net import DETECTOR_CHANNELS, DETECTOR_STRIDE, UNIT
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import rotation_from_angles
from dff.face.solve.gauss_newton import project
from tests.aligner.known_aligner import in_one_step

FACE = 40.0  # pixels at which a marker is seen as a face
THRESHOLDS = CentreDetectorConfig(sure=0.5, least=0.4, least_large=0.25, unsharp_score=0.49)
ROTATION = rotation_from_angles(30.0, 10.0, -20.0)


class MarkerNet:
    """Sees a face of ``FACE`` px in every cell whose mean red exceeds its green by far.

    Its probability is that share of the full range; pixels without red are no face.
    """

    config = SimpleNamespace(multiple=32)

    def __call__(self, image: Bytes) -> Floats:
        rows, columns = (side // DETECTOR_STRIDE for side in image.shape[:2])
        cells = image.reshape(rows, DETECTOR_STRIDE, columns, DETECTOR_STRIDE, 3).mean((1, 3))
        likely = np.clip((cells[..., 0] - cells[..., 1]) / 255.0, 0.001, 0.999)
        out = np.zeros((rows, columns, DETECTOR_CHANNELS), np.float32)
        out[..., 0] = np.log(likely / (1.0 - likely))
        out[..., 3:5] = np.log(FACE / UNIT)
        out[..., 5:] = 0.9 * ROTATION[:2].ravel()  # the network's rows are not quite unit vectors
        return out


def quick_detector(aligner: Aligner, **settings: Any) -> CentreDetector:
    config = replace(THRESHOLDS, **settings)
    return CentreDetector(MarkerNet(), aligner.fit_model, config)  # type: ignore[arg-type]


def photo_with(*markers: tuple[int, int, float], height: int = 320, width: int = 448) -> Bytes:
    """A photo with squares of 8 px: column, row, probability."""
    photo = np.zeros((height, width, 3), np.uint8)
    for x, y, probability in markers:
        photo[y : y + 8, x : x + 8, 0] = round(255 * probability)
    return photo


def test_a_cell_becomes_a_box_and_a_pose_in_the_photo(oracle_aligner: Aligner) -> None:
    detector = quick_detector(oracle_aligner)
    (found,) = detector.find(photo_with((96, 160, 0.9)))
    assert found.score == pytest.approx(0.9, abs=0.01)
    assert found.box.size == pytest.approx(FACE)
    np.testing.assert_allclose(found.box.centre, [100, 164])
    assert found.pose is not None
    np.testing.assert_allclose(found.pose.rotation[0], ROTATION, atol=1e-6)
    landmarks = project(found.pose, oracle_aligner.fit_model.landmark_mean[None])[0]
    box = Box.around(landmarks)
    assert box.size == pytest.approx(FACE)
    np.testing.assert_allclose(box.centre, found.box.centre, atol=1e-6)


@pytest.mark.parametrize("longest", [448, 640])
def test_boxes_are_those_of_a_photo_of_any_size(oracle_aligner: Aligner, longest: int) -> None:
    """A photo of 900 px, searched at 448 or 640: the marker is seen as large as the level is."""
    photo = np.kron(photo_with((96, 160, 0.95)), np.ones((2, 2, 1), np.uint8))[:, :896]
    detector = quick_detector(oracle_aligner, longest=longest, coarsest=longest)
    found = detector.find(photo)
    scale = 896 / longest
    assert found
    assert found[0].box.size == pytest.approx(FACE * scale, rel=0.02)
    np.testing.assert_allclose(found[0].box.centre, [200, 328], atol=8 * scale)


def test_one_face_is_found_once_and_the_surest_first(oracle_aligner: Aligner) -> None:
    detector = quick_detector(oracle_aligner, coarsest=448)
    found = detector.find(photo_with((96, 160, 0.6), (112, 160, 0.4), (304, 80, 0.8)))
    assert [round(one.score, 1) for one in found] == [0.8, 0.6]
    assert detector.find(photo_with((96, 160, 0.2))) == []


def test_the_finest_level_may_be_left_out_where_the_others_are_sure(
    oracle_aligner: Aligner,
) -> None:
    detector = quick_detector(oracle_aligner, all_levels=False)
    searched: list[int] = []
    net = detector.net
    detector.net = lambda level: searched.append(level.shape[1]) or net(level)  # type: ignore[assignment, func-returns-value]
    large = np.kron(photo_with((96, 80, 0.9), height=160, width=224), np.ones((2, 2, 1), np.uint8))
    (found,) = detector.find(large.astype(np.uint8))
    assert found.box.size == pytest.approx(2 * FACE)
    assert 448 not in searched
    small = photo_with((304, 80, 0.9))  # a quarter of a cell of the next level
    for photo, count in ((small, 1), (np.zeros_like(small), 0)):
        searched.clear()
        assert len(detector.find(photo)) == count
        assert 448 in searched
    # A face too small to be sure of needs the finest level, too.
    detector.config = replace(detector.config, sharp=FACE + 1)
    searched.clear()
    assert detector.find(large.astype(np.uint8))[0].score == detector.config.unsharp_score
    assert 448 in searched


class Thorough:
    """Records what it is asked to search, and finds one box in all of it."""

    def __init__(self) -> None:
        self.config = DetectorConfig()
        self.score = 0.3
        self.searched: list[tuple[int, ...]] = []

    def find_in_steps(self, image: Bytes) -> Search[list[Detection]]:
        self.searched.append(image.shape[:2])
        return in_one_step([Detection(Box(300, 200, 340, 240), self.score)])

    def find_on_level(self, level: Bytes, pixels: int) -> list[Detection]:
        self.searched.append(level.shape[:2])
        height, width = level.shape[:2]
        return [Detection(Box(width / 2 - 20, height / 2 - 20, width / 2 + 20, height / 2 + 20))]


def staged(aligner: Aligner) -> tuple[StagedDetector, Thorough]:
    thorough = Thorough()
    quick = quick_detector(aligner, coarsest=448)
    return StagedDetector(quick, thorough), thorough  # type: ignore[arg-type]


def test_a_sure_face_needs_no_thorough_search(oracle_aligner: Aligner) -> None:
    detector, thorough = staged(oracle_aligner)
    photo = photo_with((96, 160, 0.9))
    (found,) = detector.find(photo)
    assert found.score > 0.85
    assert thorough.searched == []
    assert len(search_to_end(detector.find_what_was_left_out(photo))) == 1
    assert thorough.searched == [photo.shape[:2]]


def test_what_the_thorough_search_barely_sees_must_be_seen_by_both(oracle_aligner: Aligner) -> None:
    detector, thorough = staged(oracle_aligner)
    thorough.score = 0.1
    assert detector.find(photo_with()) == []
    assert detector.find(photo_with((96, 160, 0.4))) == []  # seen elsewhere
    (found,) = detector.find(photo_with((312, 216, 0.45)))
    assert found.score == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("score", "probability", "answered"),
    [(0.35, 0.0, True), (0.2, 0.0, False), (0.2, 0.9, True), (0.1, 0.9, False)],
    ids=["sure", "alone", "seen by both", "hardly seen"],
)
def test_what_the_thorough_search_is_unsure_of_in_tiles_the_quick_one_must_see_there(
    oracle_aligner: Aligner, score: float, probability: float, answered: bool
) -> None:
    detector, thorough = staged(oracle_aligner)
    thorough.config, thorough.score = DetectorConfig(longest=256, untiled=400), score
    photo = photo_with(height=320, width=448)
    photo[200:240, 300:340, 0] = round(255 * probability)
    detector.quick.config = replace(detector.quick.config, longest=64, coarsest=64)
    detector.quick.find_in_steps = lambda image: in_one_step([])  # type: ignore[method-assign]
    assert (len(detector.find(photo)) == 1) is answered


def test_an_unsure_photo_is_searched_thoroughly(oracle_aligner: Aligner) -> None:
    detector, thorough = staged(oracle_aligner)
    for photo in (photo_with(), photo_with((96, 160, 0.4))):
        thorough.searched.clear()
        (found,) = detector.find(photo)
        assert found.score == pytest.approx(0.3)
        assert thorough.searched == [photo.shape[:2]]
        assert search_to_end(detector.find_what_was_left_out(photo)) == []
    large = photo_with((96, 160, 0.9))
    thorough.config = DetectorConfig(longest=256, untiled=400)  # searches this photo in tiles
    thorough.searched.clear()
    assert len(detector.find(large)) == 2
    assert thorough.searched == [large.shape[:2]]


def test_an_unsure_face_beside_a_sure_one_is_verified_where_it_is(oracle_aligner: Aligner) -> None:
    detector, thorough = staged(oracle_aligner)
    found = detector.find(photo_with((96, 160, 0.9), (304, 80, 0.4)))
    assert len(thorough.searched) == 1
    assert thorough.searched[0][0] <= 1.2 * 3 * FACE
    assert len(found) == 2
    other = min(found, key=lambda one: one.box.y0)
    np.testing.assert_allclose(other.box.centre, [308, 84], atol=2)


def test_where_many_faces_are_sure_more_unsure_ones_are_verified(oracle_aligner: Aligner) -> None:
    detector, thorough = staged(oracle_aligner)
    unsure = [(x, 16, 0.45) for x in (16, 96, 176, 256, 336, 400)]
    for sure in (1, 3):
        thorough.searched.clear()
        detector.find(photo_with(*unsure, *[(48 + 120 * i, 240, 0.9) for i in range(sure)]))
        assert len(thorough.searched) == detector.config.verified + sure - 1


def test_of_unsure_faces_alike_the_largest_are_verified(oracle_aligner: Aligner) -> None:
    detector, thorough = staged(oracle_aligner)
    sizes = (30.0, 80.0, 20.0, 60.0, 10.0)
    found = [Detection(Box(0, 0, 60, 60), 0.9)]
    found += [Detection(Box(100, 60 * i, 100 + s, 60 * i + s), 0.45) for i, s in enumerate(sizes)]
    detector.config = replace(detector.config, large=9.0)
    detector.quick = SimpleNamespace(find_in_steps=lambda image: in_one_step(found))  # type: ignore[assignment]
    again = detector.find(np.zeros((400, 400, 3), np.uint8))
    rows = sorted(int(one.box.centre[1] // 60) for one in again if one.box.x0 > 60)
    assert len(thorough.searched) == 3
    assert rows == [0, 1, 3]


def test_a_sure_part_of_a_face_hides_no_sure_face(oracle_aligner: Aligner) -> None:
    """Their fits tell which of them is the face; where one is unsure, the other is."""
    photo = photo_with((96, 160, 0.9))
    photo[152:176, 88:112, 0] = 230  # which the next level sees as a face of twice the size
    for sure, sizes in ((0.5, {FACE, 2 * FACE}), (0.95, {FACE})):
        found = quick_detector(oracle_aligner, sure=sure, least=0.4).find(photo)
        assert {round(one.box.size) for one in found} == sizes
    detector, _ = staged(oracle_aligner)
    detector.quick = quick_detector(oracle_aligner)
    assert {round(one.box.size) for one in detector.find(photo)} == {FACE, 2 * FACE}


def test_an_unsure_face_that_overlaps_a_sure_one_is_left_out(oracle_aligner: Aligner) -> None:
    detector, thorough = staged(oracle_aligner)
    both = photo_with((96, 160, 0.9), (120, 160, 0.45))
    assert len(detector.quick.find(both)) == 2
    assert len(detector.find(both)) == 1
    assert thorough.searched == []
    detector.config = replace(detector.config, overlapping=0.3)
    assert detector.find(both)
    assert len(thorough.searched) == 1


@pytest.mark.parametrize(("least", "searched"), [(0.4, 1), (0.5, 0)])
def test_a_less_likely_face_is_seen_but_not_verified(
    oracle_aligner: Aligner, least: float, searched: int
) -> None:
    detector, thorough = staged(oracle_aligner)
    detector.config = replace(detector.config, verified_least=least, large=1.2)
    photo = photo_with((96, 160, 0.9), (304, 160, 0.45))
    assert len(detector.quick.find(photo)) == 2
    detector.find(photo)
    assert len(thorough.searched) == searched


def test_a_face_as_large_as_the_sure_ones_is_looked_for_though_unlikely(
    oracle_aligner: Aligner,
) -> None:
    photo = photo_with((96, 160, 0.9), (304, 80, 0.3))
    found = quick_detector(oracle_aligner, coarsest=448).find(photo)
    assert [round(one.score, 1) for one in found] == [0.9, 0.3]
    larger_only = quick_detector(oracle_aligner, coarsest=448, large=1.2)
    assert [round(one.score, 1) for one in larger_only.find(photo)] == [0.9]
    assert quick_detector(oracle_aligner).find(photo_with((304, 80, 0.3))) == []

    detector, thorough = staged(oracle_aligner)
    unsure = [(x, 16, 0.45) for x in (16, 96, 176, 256)]
    photo = photo_with((96, 160, 0.9), (304, 160, 0.3), *unsure)
    found = detector.find(photo)
    assert len(thorough.searched) == detector.config.verified + 1
    assert any(abs(one.box.centre - (308, 164)).max() <= 2 for one in found)


@pytest.mark.parametrize("probability", [0.3, 0.45])
def test_the_likeliest_face_as_large_as_the_sure_ones_is_kept_where_it_would_be_shrunk(
    oracle_aligner: Aligner, probability: float
) -> None:
    detector, thorough = staged(oracle_aligner)
    thorough.find_on_level = lambda level, pixels: []  # type: ignore[method-assign]
    photo = photo_with((96, 160, 0.9), (304, 160, probability), (304, 16, 0.27))
    assert [one.score for one in detector.find(photo)] == [pytest.approx(0.9, abs=0.01)]
    detector.config = replace(detector.config, verified_size=FACE / 2)
    found = detector.find(photo)
    assert [one.score for one in found] == [
        pytest.approx(0.9, abs=0.01),
        pytest.approx(probability, abs=0.01),
    ]
    np.testing.assert_allclose(found[1].box.centre, [308, 164], atol=2)
    detector.config = replace(detector.config, large=1.2)
    assert len(detector.find(photo)) == 1


def test_where_no_face_is_sure_the_unsure_ones_may_be_verified_first(
    oracle_aligner: Aligner,
) -> None:
    detector, thorough = staged(oracle_aligner)
    detector.config = replace(detector.config, verified=0, verified_alone=1)
    (found,) = detector.find(photo_with((304, 80, 0.4)))
    np.testing.assert_allclose(found.box.centre, [308, 84], atol=2)
    assert len(thorough.searched) == 1  # not the whole photo
    assert thorough.searched[0][0] <= 1.2 * 3 * FACE
    thorough.find_on_level = lambda level, pixels: []  # type: ignore[method-assign]
    photo = photo_with((304, 80, 0.4))
    assert len(detector.find(photo)) == 1
    assert thorough.searched[-1] == photo.shape[:2]


class GrowingNet(MarkerNet):
    """Sees larger faces farther down in the photo, and so unlikely ones may be larger."""

    def __call__(self, image: Bytes) -> Floats:
        out = super().__call__(image)
        out[..., 3:5] += np.linspace(0.0, 1.0, out.shape[0])[:, None, None]
        return out


def test_the_largest_unsure_faces_are_found_however_unlikely(oracle_aligner: Aligner) -> None:
    detector, thorough = staged(oracle_aligner)
    detector.quick.net = GrowingNet()  # type: ignore[assignment]
    photo = photo_with((96, 40, 0.9), (304, 40, 0.35), (96, 264, 0.28), (304, 264, 0.3))
    detector.config = replace(detector.config, unlikely=2)
    found = search_to_end(detector.find_unlikely(photo))
    assert sorted(one.score for one in found) == pytest.approx([0.28, 0.3], abs=0.01)
    detector.config = replace(detector.config, unlikely=9)
    found = search_to_end(detector.find_unlikely(photo))
    assert [one.score for one in found][2:] == pytest.approx([0.35], abs=0.01)
    assert thorough.searched == []


def test_a_face_that_all_levels_show_small_is_never_sure(oracle_aligner: Aligner) -> None:
    detector = quick_detector(oracle_aligner, coarsest=448, sharp=FACE + 1)
    (found,) = detector.find(photo_with((96, 160, 0.9)))
    assert found.score == pytest.approx(THRESHOLDS.unsharp_score)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"longest": 0}, "positive sizes"),
        ({"least": 0.6}, "rising probabilities"),
        ({"least_large": 0.5}, "rising"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CentreDetectorConfig(), **wrong)  # type: ignore[arg-type]
