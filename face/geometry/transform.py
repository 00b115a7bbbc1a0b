"""Rigid motions, named by the frames they join, and the pose angles of AFLW2000-3D.

Frames: ``head`` (x to the face's left, y up, z out of the face) and ``cam`` (x right, y down, z
forward). A transform ``b_from_a`` takes points in frame a to frame b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Array, Float, Floats

CAM_FROM_FRONTAL_HEAD = np.diag([1.0, -1.0, -1.0])
"""Rotation of a face that looks straight at the camera."""


@dataclass(frozen=True)
class Rigid:
    """A rotation followed by a translation: ``b_from_a.apply(points_in_a)``.

    Raises ValueError when the shapes are wrong or the rotation is not a rotation.
    """

    rotation: Float[Array, "3 3"]  # orthonormal, determinant one
    translation: Float[Array, " 3"]  # metres

    def __post_init__(self) -> None:
        r = np.asarray(self.rotation, dtype=np.float64)
        t = np.asarray(self.translation, dtype=np.float64)
        if r.shape != (3, 3) or t.shape != (3,):
            raise ValueError(f"Rigid wants (3, 3) and (3,), got {r.shape} and {t.shape}")
        # plain numbers: arrays of three take several times as long
        if not all(map(math.isfinite, r.ravel().tolist() + t.tolist())):
            raise ValueError("Rigid wants finite numbers")
        if not _is_rotation(*r.tolist()):
            raise ValueError("Rigid.rotation is not a rotation")
        object.__setattr__(self, "rotation", r)
        object.__setattr__(self, "translation", t)

    def apply(self, points: Floats) -> Floats:
        """Map (..., 3) points from frame a to frame b."""
        return points @ self.rotation.T + self.translation

    def inverse(self) -> Rigid:
        """``a_from_b``."""
        return Rigid(self.rotation.T, -self.rotation.T @ self.translation)

    def __matmul__(self, other: Rigid) -> Rigid:
        """``c_from_b @ b_from_a = c_from_a``."""
        return Rigid(self.rotation @ other.rotation, self.apply(other.translation))


def _is_rotation(x: list[float], y: list[float], z: list[float]) -> bool:
    """Whether three rows are orthonormal to 1e-4 and right-handed."""
    squares = _dot(x, x), _dot(y, y), _dot(z, z)
    off = [*(square - 1.0 for square in squares), _dot(x, y), _dot(y, z), _dot(z, x)]
    cross = [
        x[1] * y[2] - x[2] * y[1],
        x[2] * y[0] - x[0] * y[2],
        x[0] * y[1] - x[1] * y[0],
    ]
    return max(map(abs, off)) <= 1e-4 and _dot(cross, z) >= 0.0


def _dot(a: list[float], b: list[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def skew(v: Floats) -> Floats:
    """(..., 3) vectors to (..., 3, 3) matrices with ``skew(a) @ b = a x b``."""
    out = np.zeros((*v.shape, 3), v.dtype)
    out[..., 2, 1], out[..., 0, 2], out[..., 1, 0] = v[..., 0], v[..., 1], v[..., 2]
    out[..., 1, 2], out[..., 2, 0], out[..., 0, 1] = -v[..., 0], -v[..., 1], -v[..., 2]
    return out


def rotation_2d(angle: Floats | float) -> Floats:
    """(..., 2, 2) rotations by (...) radians: of x towards y, clockwise where y points down."""
    c, s = np.cos(angle), np.sin(angle)
    if np.ndim(angle) == 0:
        return np.array([[c, -s], [s, c]])
    out = np.empty((*np.shape(angle), 2, 2))
    out[..., 0, 0], out[..., 0, 1], out[..., 1, 0], out[..., 1, 1] = c, -s, s, c
    return out


def rotation_from_vector(v: Floats) -> Floats:
    """Rodrigues: (..., 3) axis times angle in radians to (..., 3, 3) rotations."""
    v = np.asarray(v, dtype=np.float64)
    angle = np.linalg.norm(v, axis=-1)[..., None, None]
    k = skew(v)
    small = angle < 1e-6
    safe = np.where(small, 1.0, angle)
    a = np.where(small, 1.0 - angle**2 / 6.0, np.sin(safe) / safe)
    b = np.where(small, 0.5 - angle**2 / 24.0, (1.0 - np.cos(safe)) / safe**2)
    return np.asarray(np.eye(3) + a * k + b * (k @ k))


def rotation_from_angles(yaw: float, pitch: float, roll: float) -> Floats:
    """``cam_from_head`` rotation of pose angles in degrees.

    Signs and order are those of AFLW2000-3D's ``Pose_Para``. Source: the RotationMatrix of the
    3DDFA / AFLW2000-3D release, R = Rx(pitch) Ry(yaw) Rz(roll) in a y-up camera, brought to this
    project's y-down camera.
    """
    p, y, r = np.deg2rad([pitch, yaw, roll])
    rx = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    ry = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(r), np.sin(r), 0], [-np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return np.asarray(CAM_FROM_FRONTAL_HEAD @ rx @ ry @ rz)


def angles_from_rotation(cam_from_head: Floats) -> tuple[float, float, float]:
    """(yaw, pitch, roll) in degrees of a (3, 3) ``cam_from_head`` rotation.

    The inverse of ``rotation_from_angles`` for yaw in (-90, 90); beyond it, another pitch and roll
    describe the same rotation.
    """
    x, y, z = cam_from_head.tolist()  # of CAM_FROM_FRONTAL_HEAD @ cam_from_head: x, -y, -z
    yaw = math.asin(min(max(-x[2], -1.0), 1.0))
    pitch = math.atan2(-y[2], -z[2])
    roll = math.atan2(x[1], x[0])
    return math.degrees(yaw), math.degrees(pitch), math.degrees(roll)


def geodesic_degrees(a: Floats, b: Floats) -> Floats:
    """Angle in degrees of the rotation between (..., 3, 3) rotations a and b."""
    cosine = (np.einsum("...ij,...ij->...", a, b) - 1.0) / 2.0
    return np.asarray(np.rad2deg(np.arccos(np.clip(cosine, -1.0, 1.0))))
