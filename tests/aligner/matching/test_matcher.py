"""Matching with a network that is right (see ``oracle``): what remains is the search."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.detection import search_to_end
from dff.aligner.matching.draw import draw_heat_map, draw_point_matches, spread_heat
from dff.aligner.matching.matcher import DescribedFace, Found, Matcher, Query
from dff.aligner.matching.result import PointMatches
from dff.face.arrays import Floats
from dff.face.errors import BadPhoto, NoFace
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import EYES, INDEX, NOSE
from dff.face.model.morphable import MorphableModel
from tests.aligner.oracle import PositionCode, Scene, make_scene

CORNER = (3.0, 3.0)


@pytest.fixture(scope="module")
def scenes(open_head: MorphableModel, code: PositionCode) -> list[Scene]:
    """Three people, ahead, turned by 35 degrees, and nearly in profile."""
    rng = np.random.default_rng(11)
    turns = ((0.0, 0.0), (35.0, 15.0), (-75.0, 0.0))
    return [make_scene(open_head, code, yaw=yaw, roll=roll, rng=rng) for yaw, roll in turns]


@pytest.fixture(scope="module")
def matcher(oracle_aligner: Aligner) -> Matcher:
    return Matcher(oracle_aligner.without_annotation_bias())


@pytest.fixture(scope="module")
def found(matcher: Matcher, scenes: list[Scene]) -> PointMatches:
    """Landmarks of eyes and nose by their pixels, a corner, two by name and one by vertex."""
    first, second, _ = scenes
    points = [*first.landmarks[EYES].tolist(), *first.landmarks[NOSE].tolist(), CORNER]
    vertex = int(matcher.aligner.model.landmarks.vertex[INDEX["nose_tip"]])
    return matcher.match(
        first.image,
        points,
        second.image,
        landmarks=["nose_tip", "eye_left_inner"],
        vertices=[vertex],
        box_a=first.box,
        box_b=second.box,
    )


def test_points_are_found_in_another_person(found: PointMatches, scenes: list[Scene]) -> None:
    truth = np.concatenate([scenes[1].landmarks[EYES], scenes[1].landmarks[NOSE]])
    error = np.linalg.norm(found.px[: len(truth)] - truth, axis=1) / scenes[1].box.size
    assert np.median(error) < 0.015
    assert (error < 0.05).mean() > 0.9
    assert found.visible[: len(truth)].mean() > 0.9  # one corner of an eye is at the contour
    assert np.median(found.probability[: len(truth)]) > 0.8


def test_points_off_the_face_are_not_found(found: PointMatches) -> None:
    corner = found.names.index("3,3")
    assert found.status[corner] == "not on a face"
    assert np.isnan(found.px[corner]).all()
    assert found.probability[corner] == 0.0
    row = found.to_json()["points"][corner]
    assert (row["x"], row["y"], row["visible"]) == (None, None, False)


def test_landmarks_and_vertices_are_points_too(found: PointMatches, scenes: list[Scene]) -> None:
    tip, inner, vertex = found.px[-3:]
    np.testing.assert_array_equal(tip, vertex)
    for px, name in ((tip, "nose_tip"), (inner, "eye_left_inner")):
        truth = scenes[1].landmarks[INDEX[name]]
        assert np.linalg.norm(px - truth) < 0.03 * scenes[1].box.size
    assert found.names[-3:][:2] == ("nose_tip", "eye_left_inner")


def test_a_photo_matches_itself(matcher: Matcher, scenes: list[Scene]) -> None:
    first = scenes[0]
    points = first.landmarks[NOSE]
    same = matcher.match(first.image, points, first.image, box_a=first.box, box_b=first.box)
    assert np.linalg.norm(same.px - points, axis=1).max() < 0.02 * first.box.size
    assert same.visible.all()


def test_points_that_the_second_photo_hides_are_not_visible(
    matcher: Matcher, scenes: list[Scene]
) -> None:
    """In profile the far eye is hidden, and the near one is not."""
    first, _, profile = scenes
    names = ["eye_right_outer", "eye_left_outer"]
    seen = matcher.match(
        first.image,
        [first.landmarks[INDEX[name]] for name in names],
        profile.image,
        landmarks=names,
        box_a=first.box,
        box_b=profile.box,
    )
    near = int(np.argmax(seen.visibility[:2]))
    assert seen.visible.tolist() == [near == 0, near == 1] * 2
    assert np.ptp(seen.visibility[:2]) > 0.8
    far = profile.landmarks[INDEX[names[1 - near]]]
    assert np.linalg.norm(seen.px[1 - near] - far) < 0.08 * profile.box.size, "the fit has it there"


@pytest.fixture(scope="module")
def dense(matcher: Matcher, scenes: list[Scene]) -> Floats:
    """The dense map of the first two photos."""
    first, second, _ = scenes
    return matcher.match_every_pixel(first.image, second.image, box_a=first.box, box_b=second.box)


def test_a_dense_map_has_the_matches_of_its_pixels(
    dense: Floats, scenes: list[Scene], found: PointMatches
) -> None:
    first, second, _ = scenes
    assert dense.shape == (*first.image.shape[:2], 4)
    assert dense.dtype == np.float32
    column, row = np.floor(found.source[-3:]).astype(int).T
    apart = np.linalg.norm(dense[row, column, :2] - found.px[-3:], axis=1)
    assert apart.max() < 0.03 * second.box.size
    assert np.isnan(dense[2, 2]).all()
    finite = np.isfinite(dense[..., 0])
    shown = first.image.min(2) > 0
    assert not (finite & ~shown).sum() > 0.02 * finite.sum(), "only pixels of the face have matches"


def test_no_step_of_a_dense_map_does_much(
    matcher: Matcher, scenes: list[Scene], dense: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step describes one photo or searches one batch of points; the map is the same."""
    first, second, _ = scenes
    described, searched = [0], [0]
    describe, search = Matcher.describe, Matcher.search

    def count_describe(self: Matcher, *arguments: Any) -> DescribedFace:
        described[-1] += 1
        return describe(self, *arguments)

    def count_search(self: Matcher, query: Query, face: DescribedFace) -> Found:
        searched[-1] += len(query.roots)
        return search(self, query, face)

    monkeypatch.setattr(Matcher, "describe", count_describe)
    monkeypatch.setattr(Matcher, "search", count_search)
    boxes = first.box, second.box
    steps = matcher.match_every_pixel_in_steps(first.image, second.image, boxes, faces=2)
    made = answer = None
    while made is None:
        try:
            request = steps.send(answer)
        except StopIteration as end:
            made = end.value
        else:
            answer = request and matcher.aligner.align_requests([request])[0]
            described.append(0)
            searched.append(0)
    assert max(described) == 1
    assert max(searched) <= matcher.config.dense_batch < sum(searched)
    assert max(a * b for a, b in zip(described, searched, strict=True)) == 0
    np.testing.assert_array_equal(made, dense)


def test_heat_is_highest_at_the_match(found: PointMatches, scenes: list[Scene]) -> None:
    heat = spread_heat(found.heat[-3], found.crop, scenes[1].image.shape[:2])
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert np.hypot(column + 0.5 - found.px[-3, 0], row + 0.5 - found.px[-3, 1]) < 8
    drawn = draw_heat_map(scenes[1].image, found, slice(-3, -2)).astype(int)
    warm = drawn[..., 0] - drawn[..., 2]
    assert warm[row, column] > 60
    assert warm[5, 5] == 0


def test_matches_are_drawn(found: PointMatches, scenes: list[Scene]) -> None:
    drawn = draw_point_matches(scenes[0].image, scenes[1].image, found)
    assert drawn.shape[0] == 900
    assert drawn.dtype == np.uint8
    half = drawn.shape[1] // 2
    red = (np.abs(drawn.astype(int) - [230, 60, 60]).max(2) < 12).sum(0)
    assert red[:half].sum() > 100, "the first point is marked in the first photo"
    assert red[half:].sum() > 100, "and in the second"


def test_a_single_point_off_the_face_is_drawn(matcher: Matcher, scenes: list[Scene]) -> None:
    first, second = scenes[0].image, scenes[1].image
    drawn = draw_point_matches(first, second, matcher.match(first, [CORNER], second))
    assert drawn.shape[0] == 900


def test_a_face_beyond_the_border_is_as_large_as_its_part_within_the_photo(
    matcher: Matcher, scenes: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, box = scenes[0].image, scenes[0].box
    (whole,) = matcher.aligner.align(image, [box])
    points = whole.landmarks_3d.copy()
    points[:, :2] *= 1.2
    inside = replace(whole, landmarks_3d=points)  # 1.2 times as large
    points = points.copy()
    points[:, 0] += image.shape[1] - points[:, 0].mean()
    cut_off = replace(whole, landmarks_3d=points)  # half of it is beyond the right border

    def chosen(*faces: Alignment) -> Alignment:
        def find(*_: object, **__: object) -> Generator[None, None, list[list[Alignment]]]:
            return [list(faces)]
            yield

        monkeypatch.setattr(Aligner, "align_in_steps", find)
        return search_to_end(matcher.describe_largest_in_steps(image, faces=8)).alignment

    assert chosen(whole, inside) is inside
    assert chosen(cut_off, whole) is whole


def test_what_cannot_be_matched_is_named(matcher: Matcher, scenes: list[Scene]) -> None:
    image = scenes[0].image
    for points, how, says in (
        ([(400.0, 5.0)], {}, r"\(400, 5\) lies outside the first photo of 320 x 320"),
        ([(np.nan, 5.0)], {}, "finite"),
        ([(1.0, 2.0, 3.0)], {}, r"\(x, y\)"),
        ([], {}, "nothing to match"),
        ([], {"landmarks": ["nose"]}, "no landmark 'nose'"),
        ([], {"vertices": [10**6]}, "no vertex 1000000"),
    ):
        with pytest.raises(ValueError, match=says):
            matcher.match(image, points, image, **how)
    black = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(NoFace, match="second photo"):
        matcher.match(image, [CORNER], black, box_a=scenes[0].box)
    with pytest.raises(NoFace, match="first photo in its box"):
        matcher.match(black, [CORNER], image, box_a=Box(10, 10, 50, 50))
    with pytest.raises(BadPhoto):
        matcher.match(image[..., 0], [CORNER], image)
