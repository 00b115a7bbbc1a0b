"""Random rotations of the head, and their angles. Angles are degrees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Floats
from dff.face.geometry.transform import (
    angles_from_rotation,
    rotation_from_angles,
    rotation_from_vector,
)


@dataclass(frozen=True)
class PoseConfig:
    """The distribution of poses, in degrees."""

    max_yaw: float = 95.0  # to each side, uniform
    pitch_sd: float = 12.0
    turn_sd: float = 10.0  # of the camera about its own axis
    limit: float = 40.0  # of pitch and turn


POSE = PoseConfig()


def sample_rotation(*, rng: np.random.Generator, config: PoseConfig = POSE) -> Floats:
    """(3, 3) ``cam_from_head`` with uniform yaw.

    Besides yaw and pitch the camera turns about its own axis: with the angles of AFLW2000-3D alone
    there would be no nodding in profile, where yaw of 90 degrees locks pitch to roll.
    """
    yaw = rng.uniform(-config.max_yaw, config.max_yaw)
    pitch = float(np.clip(rng.normal(0.0, config.pitch_sd), -config.limit, config.limit))
    turn = float(np.clip(rng.normal(0.0, config.turn_sd), -config.limit, config.limit))
    return np.asarray(rotate_in_plane(turn) @ rotation_from_angles(yaw, pitch, 0.0))


def rotate_in_plane(degrees: float) -> Floats:
    """(3, 3) rotation about the camera's optical axis."""
    return rotation_from_vector(np.array([0.0, 0.0, np.deg2rad(degrees)]))


def pose_angles(cam_from_head: Floats) -> tuple[float, float, float]:
    """(yaw, pitch, roll) degrees of a (3, 3) rotation, also beyond a profile.

    Two triples describe each rotation; this is the one of the smaller pitch and roll, so that a yaw
    of 95 degrees stays 95.
    """
    yaw, pitch, roll = angles_from_rotation(cam_from_head)
    other = (
        (180.0 - yaw if yaw >= 0 else -180.0 - yaw),
        pitch - np.copysign(180.0, pitch),
        roll - np.copysign(180.0, roll),
    )
    if abs(other[1]) + abs(other[2]) < abs(pitch) + abs(roll):
        return float(other[0]), float(other[1]), float(other[2])
    return yaw, pitch, roll
