"""Rigid motions and pose angles: laws, and the signs of AFLW2000-3D on its own annotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat
from scipy.spatial.transform import Rotation

from dff.face.geometry.transform import (
    CAM_FROM_FRONTAL_HEAD,
    Rigid,
    angles_from_rotation,
    geodesic_degrees,
    rotation_2d,
    rotation_from_angles,
    rotation_from_vector,
    skew,
)
from dff.face.model.landmarks import MIRROR, NAMES


def random_rigid(rng: np.random.Generator) -> Rigid:
    return Rigid(rotation_from_vector(rng.normal(size=3)), rng.normal(size=3))


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3)])
def test_laws_of_motions(shape: tuple[int, ...]) -> None:
    """Inverse and composition are those of maps."""
    rng = np.random.default_rng(0)
    a, b, c = (random_rigid(rng) for _ in range(3))
    points = rng.normal(size=shape)
    assert np.allclose(a.inverse().apply(a.apply(points)), points)
    assert np.allclose(a.inverse().inverse().apply(points), a.apply(points))
    assert np.allclose((a @ b).apply(points), a.apply(b.apply(points)))
    assert np.allclose(((a @ b) @ c).apply(points), (a @ (b @ c)).apply(points))
    assert np.allclose((a @ b).inverse().apply(points), (b.inverse() @ a.inverse()).apply(points))


def test_invalid_rigid_motions_are_refused() -> None:
    for rotation in (
        np.eye(3) * 1.01,
        np.diag([1.0, 1.0, -1.0]),
        np.full((3, 3), np.nan),
        np.eye(2),
    ):
        with pytest.raises(ValueError, match="Rigid"):
            Rigid(rotation, np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        Rigid(np.eye(3), np.array([0.0, np.inf, 0.0]))


def test_rotation_vectors_are_those_of_scipy() -> None:
    """Also for angles near zero, where Rodrigues' formula divides by it, and near half a turn."""
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(60, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.concatenate([10.0 ** np.linspace(-12, 0, 30), np.linspace(1, np.pi, 30)])
    vectors = axes * angles[:, None]
    ours = rotation_from_vector(vectors)
    assert np.abs(ours - Rotation.from_rotvec(vectors).as_matrix()).max() < 1e-12
    assert np.array_equal(rotation_from_vector(np.zeros(3)), np.eye(3))
    a, b = rng.normal(size=(2, 7, 3))
    assert np.allclose((skew(a) @ b[..., None])[..., 0], np.cross(a, b))


def test_angles_come_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        angles = rng.uniform([-89, -170, -170], [89, 170, 170])
        assert np.allclose(angles_from_rotation(rotation_from_angles(*angles)), angles, atol=1e-6)
    for yaw in (-120.0, 95.0):  # beyond a quarter turn another name, the same rotation
        rotation = rotation_from_angles(yaw, 10.0, 20.0)
        assert np.allclose(rotation_from_angles(*angles_from_rotation(rotation)), rotation)


def test_signs_of_the_angles() -> None:
    """No angles: the face looks at the camera. Yaw: positive turns the nose to the image's left.

    Pitch: positive lifts the nose. Roll: positive tips the top of the head to the image's right.
    """
    nose, top = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    assert np.allclose(rotation_from_angles(0, 0, 0), CAM_FROM_FRONTAL_HEAD)
    assert np.allclose(CAM_FROM_FRONTAL_HEAD @ nose, [0, 0, -1])
    s = np.sin(np.deg2rad(30.0))
    assert np.allclose((rotation_from_angles(30, 0, 0) @ nose)[0], -s)
    assert np.allclose((rotation_from_angles(0, 30, 0) @ nose)[1], -s)
    assert np.allclose((rotation_from_angles(0, 0, 30) @ top)[0], s)


def test_the_geodesic_distance_is_the_angle_between_rotations() -> None:
    rng = np.random.default_rng(0)
    a, b = (Rotation.random(20, random_state=rng).as_matrix() for _ in range(2))
    expected = np.rad2deg((Rotation.from_matrix(a).inv() * Rotation.from_matrix(b)).magnitude())
    assert np.allclose(geodesic_degrees(a, b), expected)
    assert np.allclose(geodesic_degrees(a, a), 0.0, atol=1e-5)


def test_pose_of_aflw2000(shared: Path) -> None:
    """Inverting ``Pose_Para`` makes the annotated 3D landmarks upright and frontal at any yaw.

    The canonical faces that come out must be alike: the rotation left between each and their mean
    is small (its median is the annotation's own noise of about a degree), and the face's left, up
    and front point along x, y, z.
    """
    canonical, angles = [], []
    for path in sorted((shared / "data" / "aflw2000-3d-sample").glob("*.mat")):
        annotation = loadmat(path)
        pitch, yaw, roll = np.rad2deg(annotation["Pose_Para"][0, :3])
        in_cam = annotation["pt3d_68"].T * [1.0, 1.0, -1.0]  # its z points to the viewer
        in_head = Rigid(rotation_from_angles(yaw, pitch, roll), np.zeros(3)).inverse().apply(in_cam)
        in_head -= in_head.mean(0)
        canonical.append(in_head / np.sqrt((in_head**2).sum(1).mean()))
        angles.append((yaw, pitch, roll))
    faces = np.array(canonical)
    assert len(faces) > 80
    assert np.abs(angles).max(0).min() > 45  # the sample turns in all three
    mean = faces.mean(0)
    left = np.array(["left" in name for name in NAMES])
    across = (faces[:, left] - faces[:, MIRROR[left]]).sum(1)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    assert np.rad2deg(np.arccos(across[:, 0])).max() < 4.0
    assert mean[NAMES.index("nose_tip"), 2] == mean[:, 2].max()
    assert mean[NAMES.index("chin"), 1] == mean[:, 1].min()
    turns = []
    for face in faces:
        u, _, vt = np.linalg.svd(mean.T @ face)
        turns.append(
            geodesic_degrees(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt, np.eye(3))
        )
    assert np.median(turns) < 1.5
    assert np.max(turns) < 8.0


def test_plane_rotations_turn_x_towards_y() -> None:
    np.testing.assert_allclose(rotation_2d(np.pi / 2) @ [1.0, 0.0], [0.0, 1.0], atol=1e-15)
    angles = np.array([0.3, -1.2])
    both = rotation_2d(angles)
    assert both.shape == (2, 2, 2)
    for angle, matrix in zip(angles.tolist(), both, strict=True):
        np.testing.assert_array_equal(matrix, rotation_2d(angle))
