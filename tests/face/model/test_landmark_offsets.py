"""Offsets by pose turn with the photo, mirror with the face and stop where nothing was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dff.face.arrays import Floats
from dff.face.geometry.transform import (
    angles_from_rotation,
    geodesic_degrees,
    rotation_from_angles,
    rotation_from_vector,
)
from dff.face.model.landmark_offsets import (
    LIP_CONTACT,
    LIPS,
    LOWER_EDGES,
    MIRRORED_TERMS,
    TERMS,
    UPPER_EDGES,
    LandmarkOffsets,
    PoseCorrection,
    UprightPose,
    close_edges,
    pose_terms,
)
from dff.face.model.landmarks import LOWER_INNER_LIP, MIRROR, SCHEMES, UPPER_INNER_LIP

FLIP = np.array([-1.0, 1.0])


def symmetric_offsets(rng: np.random.Generator) -> LandmarkOffsets:
    """Offsets by pose of about 3 mm, the same on both sides of the face."""
    table = rng.normal(size=(2, 68, TERMS, 2)) * 0.003
    other = table[:, MIRROR] * MIRRORED_TERMS[:, None] * FLIP
    return LandmarkOffsets(by_pose=(table + other) / 2, pose_limit=np.full((2, 2), 70.0))


def mirrored(rotation: Floats) -> Floats:
    """``cam_from_head`` of the mirrored photo."""
    flip = np.diag([-1.0, 1.0, 1.0])
    return np.asarray(flip @ rotation @ flip)


@pytest.mark.parametrize(("yaw", "pitch", "roll"), [(0, 0, 0), (40, -15, 0), (-65, 20, 30)])
def test_upright_pose_is_that_of_the_head_without_roll(
    yaw: float, pitch: float, roll: float
) -> None:
    turned = rotation_from_angles(yaw, pitch, 0.0)
    in_plane = rotation_from_vector(np.array([0.0, 0.0, np.deg2rad(roll)])) @ turned
    plain, rolled = UprightPose.of(turned[None]), UprightPose.of(in_plane[None])
    np.testing.assert_allclose(rolled.yaw, plain.yaw, atol=1e-9)
    np.testing.assert_allclose(rolled.pitch, plain.pitch, atol=1e-9)
    assert abs(plain.yaw[0]) == pytest.approx(abs(yaw), abs=6.0)
    upright = rolled.upright[0]
    np.testing.assert_allclose(upright @ upright.T, np.eye(2), atol=1e-12)
    head_up = upright @ in_plane[:2, 1]
    assert head_up[0] == pytest.approx(0.0, abs=1e-12)
    assert head_up[1] < 0.0  # up in the photo


def test_offsets_turn_with_the_photo() -> None:
    offsets = symmetric_offsets(np.random.default_rng(0))
    turned = rotation_from_angles(35.0, 10.0, 0.0)
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for scheme in SCHEMES:
        plain, rolled = offsets.in_image(scheme, np.stack([turned, quarter @ turned]))
        np.testing.assert_allclose(rolled, plain @ quarter[:2, :2].T, atol=1e-12)


def test_offsets_of_a_mirrored_face_are_mirrored() -> None:
    offsets = symmetric_offsets(np.random.default_rng(1))
    turned = rotation_from_angles(50.0, -12.0, 20.0)
    for scheme in SCHEMES:
        plain, other = offsets.in_image(scheme, np.stack([turned, mirrored(turned)]))
        assert np.abs(plain).max() > 0.001
        np.testing.assert_allclose(other, plain[MIRROR] * FLIP, atol=1e-12)


def test_offsets_stay_as_they_are_beyond_the_measured_poses() -> None:
    offsets = symmetric_offsets(np.random.default_rng(2))
    at, beyond = (rotation_from_angles(yaw, 0.0, 0.0) for yaw in (70.0, 88.0))
    near, far = offsets.in_image("3d", np.stack([at, beyond]))
    np.testing.assert_allclose(far, near, atol=1e-12)
    wider = replace(offsets, pose_limit=np.full((2, 2), 90.0))
    assert np.abs(wider.in_image("3d", beyond[None])[0] - far).max() > 1e-4


def test_a_head_seen_along_its_axis_has_finite_offsets() -> None:
    from_above = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    offsets = symmetric_offsets(np.random.default_rng(3))
    assert np.isfinite(offsets.in_image("3d", from_above[None])).all()


def test_the_first_term_is_a_constant_turn_in_the_head() -> None:
    turn = np.zeros((TERMS, 3))
    turn[0] = np.deg2rad([3.0, 0.0, 0.0])
    correction = PoseCorrection(turn)
    for yaw in (0.0, 40.0):
        rotation = rotation_from_angles(yaw, 5.0, 3.0)
        corrected = correction.corrected(rotation, rotation)
        assert geodesic_degrees(corrected, rotation) == pytest.approx(3.0, abs=1e-6)
        np.testing.assert_allclose(corrected, rotation @ rotation_from_vector(turn[0]), atol=1e-12)
    nothing = PoseCorrection().corrected(rotation, rotation)
    assert angles_from_rotation(nothing) == pytest.approx(angles_from_rotation(rotation))


def test_terms_of_frontal_heads_are_the_constant_alone() -> None:
    frontal = UprightPose.of(rotation_from_angles(0.0, 0.0, 0.0)[None])
    np.testing.assert_allclose(
        pose_terms(frontal, np.array([90.0, 90.0]))[0], np.eye(TERMS)[0], atol=1e-12
    )


def test_tables_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="LandmarkOffsets wants"):
        LandmarkOffsets(by_pose=np.zeros((2, 68, TERMS + 1, 2)))
    with pytest.raises(ValueError, match="PoseCorrection wants"):
        PoseCorrection(np.zeros((3, TERMS)))
    with pytest.raises(ValueError, match="finite"):
        PoseCorrection(np.full((TERMS, 3), np.inf))


@pytest.mark.parametrize("roll", [0.0, 75.0, 180.0])
@pytest.mark.parametrize(
    ("gap", "closed"),
    [(-0.5, 0.0), (0.0, 0.0), (0.3, 0.03), (0.6, 0.18), (1.0, 0.63), (3.0, 3.0), (9.0, 9.0)],
)
def test_lips_that_all_but_touch_are_one_line(gap: float, closed: float, roll: float) -> None:
    """Gaps are fractions of ``LIP_CONTACT``."""
    rotation, scale = rotation_from_angles(0.0, 0.0, roll), 2000.0
    down = -rotation[:2, 1]
    unit = LIP_CONTACT * scale
    points = np.random.default_rng(3).normal(size=(68, 3)) * 50.0
    points[LOWER_INNER_LIP, :2] = points[UPPER_INNER_LIP, :2] + gap * unit * down
    found = close_edges(points[None], rotation[None], np.array([scale]))[0]
    for given, answered, share in ((points, points, gap), (points, found, closed)):
        across = (answered[LOWER_INNER_LIP] - answered[UPPER_INNER_LIP])[:, :2]
        np.testing.assert_allclose(across, share * unit * np.tile(down, (3, 1)), atol=0.01 * unit)
        np.testing.assert_allclose(answered.mean(0), given.mean(0), atol=1e-9)
    others = np.setdiff1d(np.arange(68), [61, 62, 63, 65, 66, 67, *UPPER_EDGES, *LOWER_EDGES])
    np.testing.assert_array_equal(found[others], points[others])
    np.testing.assert_array_equal(found[:, 2], points[:, 2])


@pytest.mark.parametrize(("gap", "closed"), [(-2.0, 0.0), (0.0, 0.0), (0.5, 0.5), (8.0, 8.0)])
def test_lids_meet_where_they_would_cross(gap: float, closed: float) -> None:
    """Gaps are in pixels, downwards."""
    rotation = rotation_from_angles(0.0, 0.0, 0.0)
    points = np.random.default_rng(3).normal(size=(68, 2)) * 50.0
    upper, lower = list(UPPER_EDGES[LIPS:]), list(LOWER_EDGES[LIPS:])
    points[lower] = points[upper] + [0.0, gap]
    found = close_edges(points[None], rotation[None], np.array([2000.0]))[0]
    np.testing.assert_allclose(found[lower] - found[upper], np.tile([0.0, closed], (4, 1)))
    np.testing.assert_allclose(found[lower] + found[upper], points[lower] + points[upper])
