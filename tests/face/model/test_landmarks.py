"""The 68 landmarks: names, mirror, both jaw schemes, errors."""

from __future__ import annotations

import numpy as np
import pytest

from dff.face.geometry.transform import rotation_from_angles
from dff.face.model import landmarks as groups
from dff.face.model.landmarks import (
    INNER,
    JAW,
    JAW_ENDS,
    MIRROR,
    NAMES,
    OUTER_EYE_CORNERS,
    LandmarkTable,
    chin_to_brows,
    head_up,
    nme_box,
    nme_iod,
)
from dff.face.model.morphable import MorphableModel
from tests.face.model.contour import contour_points


def test_landmarks_are_named_by_their_place() -> None:
    assert len(NAMES) == len(set(NAMES)) == 68
    assert NAMES[8] == "chin"
    assert NAMES[30] == "nose_tip"
    assert (NAMES[36], NAMES[45]) == ("eye_right_outer", "eye_left_outer")
    assert (NAMES[48], NAMES[54]) == ("mouth_right", "mouth_left")
    assert OUTER_EYE_CORNERS == (36, 45)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("JAW", "jaw chin"),
        ("RIGHT_BROW", "brow_right"),
        ("LEFT_BROW", "brow_left"),
        ("BROWS", "brow"),
        ("NOSE", "nose nostril"),
        ("NOSE_BRIDGE", "nose_bridge nose_tip"),
        ("NOSE_BOTTOM", "nostril nose_base"),
        ("RIGHT_EYE", "eye_right"),
        ("LEFT_EYE", "eye_left"),
        ("EYES", "eye"),
        ("MOUTH", "mouth lip"),
        ("INNER_LIPS", "mouth_inner lip_upper_inner lip_lower_inner"),
        ("INNER", "brow nose nostril eye mouth lip"),
        ("BELOW_BROWS", "nose nostril eye mouth lip"),
    ],
)
def test_groups_hold_the_landmarks_of_their_name(group: str, words: str) -> None:
    expected = [name for name in NAMES if name.startswith(tuple(words.split()))]
    assert list(NAMES[getattr(groups, group)]) == expected


def test_outer_lips_are_the_mouth_without_the_inner_ones() -> None:
    outer, inner = NAMES[groups.OUTER_LIPS], NAMES[groups.INNER_LIPS]
    assert outer + inner == NAMES[groups.MOUTH]
    assert NAMES[groups.CHIN_ARC] == (*NAMES[6:8], "chin", *NAMES[9:11])
    assert NAMES[groups.LOWER_JAW] == (*NAMES[3:8], "chin", *NAMES[9:14])


def test_up_leads_from_the_chin_to_the_eyes_and_brows(open_head: MorphableModel) -> None:
    points = open_head.template[open_head.landmarks.vertex]
    for up in (head_up(points), chin_to_brows(points)):
        assert up.shape == (3,)
        assert abs(up[0]) < 0.002
        assert up[1] > 0.08


def test_mirror_is_its_own_inverse_and_keeps_the_middle() -> None:
    assert np.array_equal(MIRROR[MIRROR], np.arange(68))
    middle = [NAMES[i] for i in np.flatnonzero(np.arange(68) == MIRROR)]
    assert "chin" in middle
    assert "nose_tip" in middle
    assert not [n for n in middle if "left" in n or "right" in n]


def test_the_open_heads_landmarks_agree_with_their_names(open_head: MorphableModel) -> None:
    """Left is +x, mirrors agree, the nose tip is foremost, and the chin lowest."""
    vertex = open_head.landmarks.vertex
    at = open_head.template[vertex]
    left = np.array(["left" in n for n in NAMES])
    assert (at[left, 0] > 0).all()
    assert np.abs(at[MIRROR] * [-1, 1, 1] - at).max() < 0.004
    assert NAMES[at[:, 2].argmax()] == "nose_tip"
    assert NAMES[at[:, 1].argmin()] == "chin"
    jaw = at[JAW, 1]
    assert (np.diff(jaw[:9]) < 0).all()
    assert (np.diff(jaw[8:]) > 0).all()


@pytest.mark.parametrize("yaw", [-60.0, -30.0, 0.0, 30.0, 60.0])
def test_the_contour_is_the_outermost_of_its_candidates(
    open_head: MorphableModel, yaw: float
) -> None:
    """In the 2D scheme the far side of the jaw moves outwards to the silhouette, never inwards."""
    table = open_head.landmarks
    px = (open_head.template @ rotation_from_angles(yaw, 0.0, 0.0).T)[:, :2] * 1000.0
    chosen = table.contour_vertices(px, open_head.template)
    assert np.array_equal(chosen[INNER], table.inner)
    for j in range(17):
        assert chosen[j] in table.contour[j]
    if yaw:
        away = (
            slice(0, 6) if yaw < 0 else slice(11, 17)
        )  # the face's right is the image's left when frontal
        side = -1.0 if yaw < 0 else 1.0
        reach = side * px[chosen[away], 0]
        candidates = side * px[table.contour[away], 0]
        assert (reach >= candidates.max(1) - 8.0).all()  # millimetres: "out" is not quite sideways


def test_the_contour_turns_with_the_image(open_head: MorphableModel) -> None:
    """Rolling, moving and scaling the image chooses the same vertices."""
    table = open_head.landmarks
    px = (open_head.template @ rotation_from_angles(40.0, 10.0, 0.0).T)[:, :2] * 1000.0
    expected = table.contour_vertices(px, open_head.template)
    for degrees in (-150.0, -40.0, 20.0, 90.0):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turned = px @ np.array([[c, s], [-s, c]]) * 0.3 + [70.0, -20.0]
        assert np.array_equal(table.contour_vertices(turned, open_head.template), expected)


def test_points_on_the_contour_follow_the_face_without_jumps(open_head: MorphableModel) -> None:
    """They lie as far out as the outermost candidates, whose vertices jump as the head turns."""
    table, template = open_head.landmarks, open_head.template
    points, vertices = [], []
    for yaw in np.arange(-60.0, 60.0, 0.5):
        seen = 1000.0 * template @ rotation_from_angles(yaw, 0.0, 0.0).T  # pixels of a millimetre
        chosen = table.contour_vertices(seen[:, :2], template)
        found = contour_points(table, seen, seen[:, :2], template, tolerance=0.3)
        np.testing.assert_array_equal(found[INNER], seen[table.inner])
        side = np.sign(found[JAW_ENDS[1], 0] - found[JAW_ENDS[0], 0])
        outwards = side * np.r_[-np.ones(7), np.ones(7)]
        sides = [*range(7), *range(10, 17)]
        inwards = outwards * (seen[chosen[sides], 0] - found[sides, 0])
        assert inwards.max() < 1.0
        points.append(found[JAW])
        vertices.append(seen[chosen[JAW]])
    steps, jumps = (np.linalg.norm(np.diff(p, axis=0), axis=2).max() for p in (points, vertices))
    assert jumps > 10.0
    assert steps < 0.5 * jumps


def test_the_used_vertices_alone_give_the_same_points(open_head: MorphableModel) -> None:
    table, template = open_head.landmarks, open_head.template
    seen = 1000.0 * template @ rotation_from_angles(35.0, 10.0, -20.0).T
    used = table.used
    np.testing.assert_array_equal(
        contour_points(table.among_used, seen[used], seen[used, :2], template[used], tolerance=0.3),
        contour_points(table, seen, seen[:, :2], template, tolerance=0.3),
    )
    np.testing.assert_array_equal(used[table.among_used.vertex], table.vertex)


def test_a_table_of_the_wrong_shape() -> None:
    with pytest.raises(ValueError, match="68"):
        LandmarkTable(np.zeros(67, dtype=int), np.zeros((17, 3), dtype=int))
    with pytest.raises(ValueError, match="17"):
        LandmarkTable(np.zeros(68, dtype=int), np.zeros((16, 3), dtype=int))


def test_errors_are_divided_by_their_normalisers() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, (68, 2))
    truth[0], truth[1] = (0.0, 0.0), (100.0, 100.0)
    off = truth + np.array([3.0, 4.0])
    assert nme_box(off, truth) == pytest.approx(5.0 / 100.0)
    a, b = OUTER_EYE_CORNERS
    iod = np.linalg.norm(truth[a] - truth[b])
    assert nme_iod(off, truth) == pytest.approx(5.0 / iod)
    half = truth.copy()
    half[INNER] += [3.0, 4.0]
    assert nme_iod(half, truth, INNER) == pytest.approx(5.0 / iod)
    assert nme_iod(half, truth, JAW) == 0.0
    assert nme_box(off * 7, truth * 7) == pytest.approx(nme_box(off, truth))
