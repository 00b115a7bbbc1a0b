"""Faces at known places, sizes and turns are found there; what only looks like skin is not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment, CalibrationFeatures
from dff.aligner.centre_detector import StagedDetector
from dff.aligner.config import DetectorConfig
from dff.aligner.detection import (
    Detection,
    Search,
    distinct,
    overlap,
    same_face,
    search_to_end,
)
from dff.aligner.detector import (
    DescriptorDetector,
    FacePixels,
    build_levels,
    level_sizes,
    tiles,
    unexplained,
)
from dff.aligner.load import load_aligner
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import geodesic_degrees
from dff.face.model.morphable import MorphableModel
from dff.face.solve.gauss_newton import FaceState
from dff.infra.photos.images import decode
from dff.infra.photos.landmark_files import parse_mat, parse_pts
from tests.aligner.known_aligner import in_one_step, known_alignment
from tests.aligner.oracle import PositionCode, Scene, make_scene


def corners(box: Box) -> np.ndarray:
    return np.array([box.x0, box.y0, box.x1, box.y1])


def moved(box: Box, x: float, y: float) -> Box:
    return Box(box.x0 + x, box.y0 + y, box.x1 + x, box.y1 + y)


@pytest.fixture(scope="module")
def shipped() -> Aligner:
    return load_aligner()


def scene_of(
    model: MorphableModel,
    code: PositionCode,
    *,
    face: float,
    yaw: float,
    roll: float = 0.0,
    seed: int = 0,
) -> Scene:
    """A coded scene whose frontal landmark box would be about ``face`` pixels."""
    rng = np.random.default_rng(seed)
    return make_scene(model, code, yaw=yaw, roll=roll, rng=rng, size=round(face / 0.37), spread=0.4)


def test_overlap_is_intersection_over_union() -> None:
    a = np.array([0.0, 0.0, 2.0, 2.0])
    assert overlap(a, a) == pytest.approx(1.0)
    assert overlap(a, a + 1.0) == pytest.approx(1.0 / 7.0)
    assert overlap(a, a + 5.0) == 0.0


def test_one_face_is_seen_once_and_the_surest_first() -> None:
    large, within, beside = Box(0, 0, 100, 100), Box(50, 50, 90, 90), Box(95, 0, 190, 100)
    seen = [
        Detection(within, 0.2),
        Detection(beside, 0.5),
        Detection(large, 0.4),
        Detection(moved(beside, 9, 9), 0.3),
    ]
    assert [s.score for s in distinct(seen)] == [0.5, 0.4]
    assert same_face(large, within)
    assert not same_face(large, beside)


@pytest.mark.parametrize(
    ("width", "height"), [(450, 450), (40, 30), (1600, 900), (16, 16), (20, 900)]
)
def test_levels_shrink_the_photo_and_say_by_how_much(width: int, height: int) -> None:
    search = DetectorConfig()
    image = np.zeros((height, width, 3), np.uint8)
    found = search_to_end(build_levels(image, search, 32))
    sides = [max(level.shape[:2]) for level, _ in found]
    finest = min(max(width, height, min(2 * max(width, height), search.enlarged)), search.longest)
    assert abs(sides[0] - finest) <= 16
    assert all(side % 32 == 0 for side in sides)
    assert all(1.5 < a / b < 2.7 for a, b in pairwise(sides))
    for level, scale in found:
        np.testing.assert_allclose(scale * level.shape[1::-1], [width, height])


@pytest.mark.parametrize("shape", [(60, 80, 3), (16, 16, 3), (20, 900, 3)])
def test_nothing_is_found_in_an_empty_picture(
    shipped: Aligner, shape: tuple[int, int, int]
) -> None:
    """Of what the search proposes at most one, unlikely, and no face comes of it."""
    for grey in (0, 127, 255):
        image = np.full(shape, grey, np.uint8)
        proposed = shipped.detector.find(image)
        assert len(proposed) <= 1
        assert all(detection.score < 0.1 for detection in proposed)
        assert shipped.align(image) == []


@pytest.mark.parametrize("face", [24.0, 48.0, 96.0, 190.0])
def test_faces_of_every_size_and_yaw_are_found_where_they_are(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode, face: float
) -> None:
    for seed, yaw in enumerate((0.0, -40.0, 80.0)):
        scene = scene_of(open_head, code, face=face, yaw=yaw, seed=seed)
        found = oracle_aligner.detector.find(scene.image)
        assert len(found) == 1
        assert overlap(corners(found[0].box), corners(scene.box)) > 0.65
        assert found[0].pose is not None
        assert geodesic_degrees(found[0].pose.rotation[0], scene.rotation) < 20


@pytest.mark.parametrize("roll", [-60.0, -30.0, 30.0, 60.0])
def test_faces_turned_in_the_image_are_found_and_their_turn_known(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode, roll: float
) -> None:
    scene = scene_of(open_head, code, face=70.0, yaw=20.0, roll=roll)
    (found,) = oracle_aligner.detector.find(scene.image)
    assert overlap(corners(found.box), corners(scene.box)) > 0.65
    assert found.pose is not None
    assert geodesic_degrees(found.pose.rotation[0], scene.rotation) < 15


def test_two_faces_at_known_places_are_both_found_and_nothing_else(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    near = scene_of(open_head, code, face=110.0, yaw=-20.0, seed=1)
    far = scene_of(open_head, code, face=45.0, yaw=50.0, seed=2)
    photo = np.zeros((360, 520, 3), np.uint8)
    photo[20 : 20 + len(near.image), 10 : 10 + len(near.image)] = near.image
    photo[200 : 200 + len(far.image), 370 : 370 + len(far.image)] = far.image
    truth = [moved(near.box, 10, 20), moved(far.box, 370, 200)]
    for boxes in (
        [detection.box for detection in oracle_aligner.detector.find(photo)],
        [Box.around(face.landmarks_3d[:, :2]) for face in oracle_aligner.align(photo)],
    ):
        assert len(boxes) == 2
        for box in truth:
            assert max(overlap(corners(box), corners(other)) for other in boxes) > 0.65


def test_skin_without_a_faces_order_is_rejected(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    """The same pixels in shuffled tiles: as much mask, each match as sure, and no pose that they
    agree on.
    """
    scene = scene_of(open_head, code, face=110.0, yaw=0.0)
    side = len(scene.image) // 16 * 16
    rng = np.random.default_rng(0)
    tiles = (
        scene.image[:side, :side]
        .reshape(side // 16, 16, side // 16, 16, 3)
        .swapaxes(1, 2)
        .reshape(-1, 16, 16, 3)
    )
    shuffled = rng.permutation(tiles).reshape(side // 16, side // 16, 16, 16, 3).swapaxes(1, 2)
    assert len(oracle_aligner.detector.find(scene.image)) == 1
    scores = [
        found.score for found in oracle_aligner.detector.find(shuffled.reshape(side, side, 3))
    ]
    assert max(scores, default=0.0) < 0.3 * oracle_aligner.detector.find(scene.image)[0].score
    assert oracle_aligner.align(np.ascontiguousarray(shuffled.reshape(side, side, 3))) == []


def photos(shared: Path) -> list[tuple[Bytes, Box]]:
    """Photos of the development sets with their landmark boxes, every fourth of them in half
    profile or beyond.
    """
    out = []
    for path in sorted((shared / "data" / "photos" / "lfpw-train").glob("*.jpg"))[:9]:
        box = Box.around(parse_pts(path.with_suffix(".pts").read_bytes()))
        out.append((decode(path.read_bytes(), upright=False), box))
    for path in sorted((shared / "data" / "aflw2000-3d-sample").glob("*.jpg")):
        label = parse_mat(path.with_suffix(".mat").read_bytes())
        if 50 < abs(label.yaw) < 90 and len(out) < 12:
            out.append(
                (decode(path.read_bytes(), upright=False), Box.around(label.landmarks[:, :2]))
            )
    return out


def test_faces_of_photos_are_found_where_the_landmarks_are(shared: Path, shipped: Aligner) -> None:
    """All but one at once, and that one where the first search is found to show no face."""
    detector = shipped.detector
    assert isinstance(detector, StagedDetector)
    meetings, in_the_end = [], []
    for image, truth in photos(shared):
        first = [overlap(corners(one.box), corners(truth)) for one in detector.find(image)]
        left_out = search_to_end(detector.find_what_was_left_out(image))
        later = [overlap(corners(one.box), corners(truth)) for one in left_out]
        meetings.append(max(first, default=0.0))
        in_the_end.append(max([*first, *later], default=0.0))
    assert len(meetings) == 12
    assert sum(meeting > 0.4 for meeting in meetings) >= 11, meetings
    assert np.median(meetings) > 0.75
    assert min(in_the_end) > 0.4


def test_small_faces_are_looked_for_where_nothing_was_found(shared: Path, shipped: Aligner) -> None:
    """Faces in a grey picture of 320 px: of 40 px most are seen, of 32 px fewer without the second
    look.
    """
    once = DescriptorDetector(
        shipped.net, shipped.anchors, shipped.fit_model, config=DetectorConfig(second_search=1)
    )
    seen = {("once", 40): 0, ("again", 40): 0, ("once", 32): 0, ("again", 32): 0}
    for (image, truth), side in product(photos(shared), (40, 32)):
        scale = side / truth.size
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[
            :320, :320
        ]
        picture = np.full((320, 320, 3), 128, np.uint8)
        picture[: small.shape[0], : small.shape[1]] = small
        for name, detector in (("once", once), ("again", shipped.detector)):
            found = detector.find(picture)
            near = max(
                (overlap(corners(one.box), corners(truth) * scale) for one in found), default=0.0
            )
            seen[name, side] += near > 0.4
    assert seen["again", 40] >= 10, "of 12 photos"
    assert seen["again", 32] >= 8
    assert seen["again", 32] > seen["once", 32]


def test_what_no_face_explains_is_looked_at_again() -> None:
    face = Detection(Box(100, 100, 200, 200))
    grid = np.stack(np.meshgrid(np.arange(1.0, 20.0, 2.0), np.arange(1.0, 20.0, 2.0)), -1).reshape(
        -1, 2
    )
    explained = grid * 7 + 80  # ears, neck and hair as well
    small = grid + np.array([300, 30])
    assert unexplained(FacePixels(explained, 4.0), [face], (400, 400, 3), DetectorConfig()) is None
    assert (
        unexplained(FacePixels(np.zeros((0, 2)), 4.0), [face], (400, 400, 3), DetectorConfig())
        is None
    )
    assert (
        unexplained(
            FacePixels(np.concatenate([explained, small[:10]]), 4.0),
            [face],
            (400, 400, 3),
            DetectorConfig(),
        )
        is None
    )
    part = unexplained(
        FacePixels(np.concatenate([explained, small]), 4.0), [face], (400, 330, 3), DetectorConfig()
    )
    margin = DetectorConfig().margin
    assert part == (slice(31 - margin, 49 + margin), slice(301 - margin, 330))


def test_a_small_face_is_detected_beside_a_large_one(shared: Path, shipped: Aligner) -> None:
    """Faces of 110 and 17 px in one picture."""
    once = DescriptorDetector(
        shipped.net, shipped.anchors, shipped.fit_model, config=DetectorConfig(second_search=1)
    )
    some = photos(shared)[:6]
    seen: dict[str, list[bool]] = {"once": [], "again": []}
    for (large, large_box), (small, small_box) in pairwise([*some, some[0]]):
        picture = np.full((300, 400, 3), 110, np.uint8)
        boxes = []
        for image, box, size, corner, side in (
            (large, large_box, 110.0, (0, 0), 300),
            (small, small_box, 17.0, (310, 100), 60),
        ):
            scale = size / box.size
            shift = np.array([side / 2, side / 2]) - scale * box.centre
            matrix = np.column_stack([np.eye(2) * scale, shift + 0.5 * scale - 0.5])
            soft = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
            x, y = corner
            picture[y : y + side, x : x + side] = cv2.warpAffine(
                soft, matrix, (side, side), borderValue=(110,) * 3
            )
            boxes.append(np.array([x, y, x, y]) + np.tile(shift, 2) + scale * corners(box))
        for name, detector in (("once", once), ("again", shipped.detector)):
            found = [corners(one.box) for one in detector.find(picture)]
            assert max(overlap(box, boxes[0]) for box in found) > 0.4
            seen[name].append(max(overlap(box, boxes[1]) for box in found) > 0.4)
    assert sum(seen["again"]) >= 3, seen
    assert sum(seen["again"]) > sum(seen["once"]), seen


def test_boxes_scale_with_the_photo(shared: Path, shipped: Aligner) -> None:
    image, _ = photos(shared)[3]
    large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    small_box, large_box = shipped.detector.find(image)[0].box, shipped.detector.find(large)[0].box
    assert overlap(corners(small_box) * 2, corners(large_box)) > 0.65


def test_threads_may_share_a_detector(shared: Path, shipped: Aligner) -> None:
    images = [image for image, _ in photos(shared)[:2]]
    alone = [shipped.detector.find(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(shipped.detector.find, images))
    assert [[s.box for s in some] for some in together] == [[s.box for s in some] for some in alone]


def test_a_search_of_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="ratio"):
        DetectorConfig(ratio=1.0)


@pytest.mark.parametrize("shape", [(900, 2048, 3), (4000, 6000, 3), (1024, 1024, 3), (30, 5000, 3)])
def test_tiles_cover_a_photo_and_overlap(shape: tuple[int, int, int]) -> None:
    config = DetectorConfig()
    parts = tiles(shape, config)
    for axis in (0, 1):
        along = sorted({(part[axis].start, part[axis].stop) for part in parts})
        assert along[0][0] == 0
        assert along[-1][1] == shape[axis]
        assert all(stop - start <= config.tile for start, stop in along)
        assert all(a[1] - b[0] >= config.tile_overlap for a, b in pairwise(along))


def test_small_faces_of_a_large_photo_are_found(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    """Faces of 36 pixels, also where tiles meet; shrunk with the photo they would be 7."""
    scene = scene_of(open_head, code, face=36.0, yaw=20.0)
    photo = np.zeros((1500, 5200, 3), np.uint8)
    side, truth = len(scene.image), []
    for x, y in ((60, 40), (840, 700), (1200, 1000), (5050, 1350)):
        photo[y : y + side, x : x + side] = scene.image
        truth.append(moved(scene.box, x, y))
    found = oracle_aligner.detector.find(photo)
    assert len(found) == len(truth)
    for box in truth:
        assert max(overlap(corners(box), corners(one.box)) for one in found) > 0.65
    quick = oracle_aligner.with_quick_search()
    assert len(quick.detector.find(photo)) < len(truth)
    assert "from 5200 to 1024 pixels" in quick.describe_search(photo)
    assert not oracle_aligner.describe_search(photo)
    assert not quick.describe_search(photo[:1100, :1100])
    assert not quick.config.quarter_turns
    assert oracle_aligner.config.quarter_turns


def test_a_large_photo_without_a_face_is_searched_in_short_steps(shipped: Aligner) -> None:
    """A part of a level at a time: a server answers other photos between them."""
    photo = np.full((6000, 6000, 3), 128, np.uint8)
    detector = shipped.with_quick_search().detector
    assert isinstance(detector, StagedDetector)
    assert detector.find(photo) == []  # all kernels are loaded
    before, seconds = time.thread_time(), []
    for _ in detector.find_in_steps(photo):
        before, began = time.thread_time(), before
        seconds.append(before - began)
    assert len(seconds) > 40, "neither the photo is shrunk nor a network run in several steps"
    assert max(seconds) < 0.3 * sum(seconds), seconds


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_face_in_a_turned_photo_is_found_where_it_is(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode, turns: int
) -> None:
    scene = scene_of(open_head, code, face=70.0, yaw=25.0)
    photo = np.zeros((300, 420, 3), np.uint8)
    side = len(scene.image)
    photo[40 : 40 + side, 150 : 150 + side] = scene.image
    turned = np.ascontiguousarray(np.rot90(photo, -turns))
    marks = np.add(scene.landmarks, [150.0, 40.0])
    for turn in range(turns):  # the same quarter turns, clockwise, of the true landmarks
        marks = np.column_stack([photo.shape[turn % 2] - marks[:, 1], marks[:, 0]])

    class UprightFaces:
        """Detects no face that is turned by more than 45 degrees, as the shipped network."""

        def find(self, image: Bytes) -> list[Detection]:
            found = oracle_aligner.detector.find(image)
            return [one for one in found if one.pose is not None and _is_upright(one.pose)]

    def aligner(*, quarter_turns: bool) -> Aligner:
        return Aligner(
            oracle_aligner.net,
            oracle_aligner.anchors,
            open_head,
            detector=UprightFaces(),
            config=replace(oracle_aligner.config, quarter_turns=quarter_turns),
        )

    assert aligner(quarter_turns=False).align(turned) == []
    (face,) = aligner(quarter_turns=True).align(turned)
    off = np.linalg.norm(face.landmarks_3d[:, :2] - marks, axis=1).mean()
    assert off < 0.06 * Box.around(marks).size


def test_a_photo_with_an_unsure_face_is_searched_in_quarter_turns(
    oracle_aligner: Aligner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sure_face = known_alignment(oracle_aligner.model, Box(20, 20, 60, 60))
    faces = {"right": replace(sure_face, face_confidence=0.95, failed=False)}
    aligner = copy(oracle_aligner)
    turned: list[int] = []

    def search_turned(image: Bytes) -> Search[list[Detection]]:
        turned.append(image.shape[0])
        return in_one_step([Detection(Box(20, 20, 60, 60), 0.5)])

    def align_faces(images, faces_of, given, step):  # type: ignore[no-untyped-def]
        out: list[list[tuple[Detection, Alignment]]] = [[] for _ in images]
        for i, detection in faces_of:
            face = faces["upright" if detection.score == 1.0 else "right"]
            out[i].append((detection, face))
            yield
        return out

    monkeypatch.setattr(aligner, "_detect_turned", search_turned)
    monkeypatch.setattr(aligner, "_align_faces", align_faces)
    monkeypatch.setattr(
        aligner, "_detect", lambda *_: in_one_step([Detection(Box(20, 20, 60, 60))])
    )
    for confidence, searched in ((0.64, True), (0.8, False)):
        turned.clear()
        faces["upright"] = replace(sure_face, face_confidence=confidence, failed=False)
        (face,) = aligner.align(np.zeros((90, 90, 3), np.uint8))
        assert bool(turned) == searched
        assert face.face_confidence == (0.95 if searched else confidence)
    turned.clear()
    faces["upright"] = replace(sure_face, face_confidence=0.64, failed=False)
    aligner.align(np.zeros((90, 90, 3), np.uint8), [Box(20, 20, 60, 60)])
    assert turned == []


def _is_upright(pose: FaceState) -> bool:
    return float(pose.rotation[0, 1, 1]) < -0.7


def test_what_shows_no_landmark_or_looks_away_is_no_face(oracle_aligner: Aligner) -> None:
    features = CalibrationFeatures(np.zeros(5), np.zeros((68, 9)), np.asarray(False))
    facing, away, seen = np.diag([1.0, -1.0, -1.0]), np.eye(3), np.ones(68)
    reporter = oracle_aligner.reporter(oracle_aligner.fit_model)
    assert reporter.explain_rejection(features, 0.9, seen, facing) == ""
    assert "0 of 68" in reporter.explain_rejection(features, 0.9, 0.1 * seen, facing)
    assert "turned away" in reporter.explain_rejection(features, 0.9, seen, away)
    assert "confidence 0.40" in reporter.explain_rejection(features, 0.4, seen, facing)


@pytest.mark.parametrize(("likely", "left_out"), [(0.2, True), (1.1, False)])
def test_the_finest_level_is_left_out_where_sharp_and_likely_faces_explain_the_next(
    shared: Path, shipped: Aligner, likely: float, left_out: bool
) -> None:
    """The photos of 450 px show one large face each, in which no finer level is needed."""
    config = DetectorConfig(all_levels=False, likely=likely)
    quick = DescriptorDetector(shipped.net, shipped.anchors, shipped.fit_model, config=config)
    finest = 0
    for image, truth in photos(shared)[:4]:
        (width, height), *_ = level_sizes(image.shape, config, 32)
        with patch.object(quick, "_search_level", wraps=quick._search_level) as search:
            found = quick.find(image)
        assert max(overlap(corners(one.box), corners(truth)) for one in found) > 0.4
        shapes = [call.args[0].shape for call in search.call_args_list]
        finest += (height, width, 3) in shapes
    assert (finest < 4) is left_out
