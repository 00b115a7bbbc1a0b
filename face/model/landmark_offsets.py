"""Annotation bias: what separates annotated landmarks and poses from those of a fitted face.

Annotators agree among each other, but not with any mesh, on where a brow ends or how deep the jaw
line lies, and fits miss some points in the same way in every photo. ``LandmarkOffsets`` and
``PoseCorrection`` hold what was measured of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numba
import numpy as np

from dff.face.arrays import Array, Float, Floats
from dff.face.model.landmarks import LOWER_INNER_LIP, SCHEMES, UPPER_INNER_LIP, Scheme
from dff.face.numba_cache import CACHE

# Powers of yaw and pitch in ``pose_terms``. Yaw has more, since its range is wider.
YAW_POWERS = np.array([0, 1, 0, 2, 1, 0, 3, 2, 1, 4, 3, 5, 4, 6])
PITCH_POWERS = np.array([0, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 0])
TERMS = len(YAW_POWERS)
FARTHEST = 0.1  # metres, of a landmark's offset or a term of it
UNIT = np.array([60.0, 30.0])  # degrees of yaw and pitch at which a power is one

LIP_CONTACT = 0.003
"""Metres between the inner lips' landmarks at which the lips are more likely open than touching.

Their vertices lie on the visible lips, 1.4 to 1.9 mm apart where those of ``open-head`` touch, and
fits may let the lips cross. The value with the least error on the labels of 300-W's training sets.
"""

# opposite points of the lids and, first, of the inner lips; for compiled code
UPPER_EDGES = (*range(68)[UPPER_INNER_LIP], 37, 38, 43, 44)
LOWER_EDGES = (*range(68)[LOWER_INNER_LIP], 41, 40, 47, 46)
LIPS = len(range(68)[UPPER_INNER_LIP])

MIRRORED_TERMS = np.where(YAW_POWERS % 2, -1.0, 1.0)
"""Factors from the terms of a pose to those of the mirrored pose."""


@dataclass(frozen=True)
class UprightPose:
    """Poses of B heads as the photo shows them, without their in-plane rotation."""

    upright: Float[Array, "faces 2 2"]  # rows: the face's right and down in the photo
    yaw: Float[Array, " faces"]  # degrees; positive towards the right of the upright photo
    pitch: Float[Array, " faces"]  # degrees; positive towards the bottom

    @staticmethod
    def of(rotation: Floats) -> UprightPose:
        """The poses of (B, 3, 3) ``cam_from_head``; a head seen along its own axis is upright."""
        upright = np.empty((len(rotation), 2, 2))
        yaw, pitch = np.empty((2, len(rotation)))
        find_upright(rotation, upright, yaw, pitch)
        return UprightPose(upright, yaw, pitch)


def pose_terms(pose: UprightPose, limit: Floats) -> Floats:
    """(B, TERMS) products of powers of yaw and pitch, both at most the (2,) ``limit`` in degrees.

    Beyond the poses that were measured the last known value holds: a polynomial would run away.
    """
    out = np.empty((len(pose.yaw), TERMS))
    _fill_terms(pose.yaw, pose.pitch, limit, out)
    return out


@numba.njit(cache=CACHE, nogil=True)
def find_upright(rotation, upright, yaw, pitch):  # type: ignore[no-untyped-def]
    """Fill the fields of ``UprightPose`` for (B, 3, 3) rotations."""
    for i in range(len(rotation)):
        x, y = -rotation[i, 0, 1], -rotation[i, 1, 1]
        length = np.sqrt(x * x + y * y)
        x, y = (x / length, y / length) if length > 1e-6 else (0.0, 1.0)
        upright[i, 0, 0], upright[i, 0, 1], upright[i, 1, 0], upright[i, 1, 1] = y, -x, x, y
        gaze = rotation[i, :, 2]
        sideways, downwards = y * gaze[0] - x * gaze[1], x * gaze[0] + y * gaze[1]
        yaw[i] = np.degrees(np.arctan2(sideways, -gaze[2]))
        pitch[i] = np.degrees(np.arcsin(min(max(downwards, -1.0), 1.0)))


@numba.njit(cache=CACHE, nogil=True)
def fill_moved(rotation, limit, by_pose, out):  # type: ignore[no-untyped-def]
    """Fill ``LandmarkOffsets.in_image`` of (68, TERMS, 2) offsets ``by_pose``."""
    faces = len(rotation)
    upright, angles, terms = np.empty((faces, 2, 2)), np.empty((2, faces)), np.empty((faces, TERMS))
    find_upright(rotation, upright, angles[0], angles[1])
    _fill_terms(angles[0], angles[1], limit, terms)
    for i in range(faces):
        for n in range(len(by_pose)):
            right, down = 0.0, 0.0
            for t in range(TERMS):
                right += terms[i, t] * by_pose[n, t, 0]
                down += terms[i, t] * by_pose[n, t, 1]
            for c in range(2):
                out[i, n, c] = right * upright[i, 0, c] + down * upright[i, 1, c]


@numba.njit(cache=CACHE, nogil=True)
def _fill_corrected(pose, rotation, limit, turn, out):  # type: ignore[no-untyped-def]
    """Fill ``PoseCorrection.corrected`` of B faces: poses times rotations (Rodrigues)."""
    faces = len(rotation)
    upright, angles, terms = np.empty((faces, 2, 2)), np.empty((2, faces)), np.empty((faces, TERMS))
    find_upright(rotation, upright, angles[0], angles[1])
    _fill_terms(angles[0], angles[1], limit, terms)
    for i in range(faces):
        x, y, z = 0.0, 0.0, 0.0
        for t in range(TERMS):
            x += terms[i, t] * turn[t, 0]
            y += terms[i, t] * turn[t, 1]
            z += terms[i, t] * turn[t, 2]
        square = x * x + y * y + z * z
        angle = np.sqrt(square)
        a, b = 1.0 - square / 6.0, 0.5 - square / 24.0
        if angle >= 1e-6:
            a, b = np.sin(angle) / angle, (1.0 - np.cos(angle)) / square
        cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
        for r in range(3):
            for c in range(3):
                out[i, r, c] = pose[i, r, c]
                for k in range(3):
                    twice = 0.0
                    for m in range(3):
                        twice += cross[k, m] * cross[m, c]
                    out[i, r, c] += pose[i, r, k] * (a * cross[k, c] + b * twice)


@numba.njit(cache=CACHE, nogil=True)
def _fill_terms(yaw, pitch, limit, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        y = min(max(yaw[i], -limit[0]), limit[0]) / UNIT[0]
        p = min(max(pitch[i], -limit[1]), limit[1]) / UNIT[1]
        for t in range(TERMS):
            out[i, t] = y ** YAW_POWERS[t] * p ** PITCH_POWERS[t]


@dataclass(frozen=True)
class LandmarkOffsets:
    """Offsets of annotated landmarks from the vertices of a fitted face.

    One table for each of ``SCHEMES``. ``offset`` and ``response`` are in the ``head`` frame, so
    that they turn and scale with the face. ``by_pose`` is added to both: what remains, as a
    polynomial of the pose, right and down in the photo of the upright face. Raises ValueError for
    other shapes and for numbers that are not finite.
    """

    offset: Float[Array, "2 68 3"] = field(default_factory=lambda: np.zeros((2, 68, 3)))  # metres
    # metres for each identity, then expression coefficient; none where offsets are the same for all
    response: Float[Array, "2 68 3 coefficients"] = field(
        default_factory=lambda: np.zeros((2, 68, 3, 0))
    )
    by_pose: Float[Array, "2 68 terms 2"] = field(  # metres for each of ``pose_terms``
        default_factory=lambda: np.zeros((2, 68, TERMS, 2))
    )
    pose_limit: Float[Array, "2 2"] = field(  # degrees: the largest yaw and pitch measured
        default_factory=lambda: np.full((2, 2), 90.0)
    )

    def __post_init__(self) -> None:
        if (
            self.offset.shape != (2, 68, 3)
            or self.response.shape[:3] != (2, 68, 3)
            or self.response.ndim != 4
            or self.by_pose.shape != (2, 68, TERMS, 2)
            or self.pose_limit.shape != (2, 2)
        ):
            raise ValueError(
                f"LandmarkOffsets wants (2, 68, 3), (2, 68, 3, C), (2, 68, {TERMS}, 2) and (2, 2): "
                f"{self.offset.shape}, {self.response.shape}, {self.by_pose.shape}, "
                f"{self.pose_limit.shape}"
            )
        tables = (self.offset, self.response, self.by_pose, self.pose_limit)
        if not all(np.isfinite(table).all() for table in tables):
            raise ValueError("landmark offsets hold numbers that are not finite")
        farthest = max(float(np.abs(table).max(initial=0.0)) for table in tables[:3])
        if farthest > FARTHEST:
            raise ValueError(f"landmark offsets of {farthest:.3g} m: are they damaged?")

    def in_head(self, coefficients: Floats) -> Floats:
        """(2, 68, 3) metres from vertices to landmarks, by scheme.

        (C,) ``coefficients``: identity first. What depends on the pose is not in them.
        """
        if self.response.shape[3] == 0:
            return self.offset
        flat = self.response.reshape(-1, self.response.shape[3])
        return np.asarray(self.offset + (flat @ coefficients).reshape(self.offset.shape))

    def in_image(self, scheme: Scheme, rotation: Floats) -> Floats:
        """(B, 68, 2) metres right and down in the photo that depend on the pose.

        ``rotation`` (B, 3, 3): ``cam_from_head``.
        """
        number = SCHEMES.index(scheme)
        out = np.empty((len(rotation), self.by_pose.shape[1], 2))
        fill_moved(rotation, self.pose_limit[number], self.by_pose[number], out)
        return out

    @cached_property
    def none(self) -> bool:
        """Whether all offsets are zero."""
        return not (self.offset.any() or self.response.any() or self.by_pose.any())


@dataclass(frozen=True)
class PoseCorrection:
    """Rotations from poses of fitted faces to annotated ones, as a polynomial of the pose.

    Raises ValueError for other shapes and for numbers that are not finite.
    """

    turn: Float[Array, "terms 3"] = field(  # radians, rotation vector, for each of ``pose_terms``
        default_factory=lambda: np.zeros((TERMS, 3))
    )
    pose_limit: Float[Array, " 2"] = field(  # degrees: the largest yaw and pitch measured
        default_factory=lambda: np.full(2, 90.0)
    )

    def __post_init__(self) -> None:
        if self.turn.shape != (TERMS, 3) or self.pose_limit.shape != (2,):
            raise ValueError(
                f"PoseCorrection wants ({TERMS}, 3) and (2,): "
                f"{self.turn.shape}, {self.pose_limit.shape}"
            )
        if not (np.isfinite(self.turn).all() and np.isfinite(self.pose_limit).all()):
            raise ValueError("a pose correction holds numbers that are not finite")
        if np.abs(self.turn).max(initial=0.0) > np.pi:
            raise ValueError("a pose correction turns heads by more than a half turn")

    def corrected(self, pose: Floats, rotation: Floats) -> Floats:
        """(..., 3, 3) the ``pose`` of faces as annotators give it.

        ``pose``: ``cam_from_reference``, ``rotation``: ``cam_from_head`` of the same faces.
        """
        faces, out = np.ascontiguousarray(rotation).reshape(-1, 3, 3), np.empty(rotation.shape)
        rows = out.reshape(-1, 3, 3)
        _fill_corrected(
            np.ascontiguousarray(pose).reshape(-1, 3, 3), faces, self.pose_limit, self.turn, rows
        )
        return out


def close_edges(points: Floats, rotation: Floats, scale: Floats) -> Floats:
    """(B, 68, D) pixels of landmarks, with inner lips that meet where a mouth is all but closed.

    Annotators draw lips that touch as one line, and so do lids; lids meet where they would cross.
    ``rotation`` (B, 3, 3): ``cam_from_head``; ``scale`` (B,): pixels of a metre. Wide open mouths,
    open eyes and other landmarks stay. The first two of the D coordinates are x and y; the others
    stay.
    """
    out = points.copy()
    for face in range(len(out)):
        fill_with_closed_edges(out[face], rotation[face], scale[face])
    return out


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def fill_with_closed_edges(points, rotation, scale):  # type: ignore[no-untyped-def]
    """``close_edges`` of one face, in place."""
    x, y = -rotation[0, 1], -rotation[1, 1]
    length = max(np.sqrt(x * x + y * y), 1e-6)
    x, y = x / length, y / length
    for i in range(len(UPPER_EDGES)):
        upper, lower = UPPER_EDGES[i], LOWER_EDGES[i]
        gap = (points[lower, 0] - points[upper, 0]) * x + (points[lower, 1] - points[upper, 1]) * y
        closed = max(gap, 0.0)
        if i < LIPS and gap > 0.0:
            closed = gap * (1.0 - np.exp(-((gap / (LIP_CONTACT * scale)) ** 2)))
        move = (gap - closed) / 2
        points[upper, 0] += move * x
        points[upper, 1] += move * y
        points[lower, 0] -= move * x
        points[lower, 1] -= move * y
