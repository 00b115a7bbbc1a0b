"""Changes of pose and shape in the axes of a crop, which linear maps of descriptors predict."""

from __future__ import annotations

import numba
import numpy as np
from scipy.spatial.transform import Rotation

from dff.aligner.fitting import kernels
from dff.aligner.fitting.fit_model import FitState
from dff.face.arrays import Floats
from dff.face.numba_cache import CACHE
from dff.face.solve.gauss_newton import POSE

HEAD_MIRROR = np.array([1.0, 1.0, -1.0, -1.0, -1.0, 1.0])
"""Factors of log scale, rotation vector and motion that mirror a change of pose left to right."""


def change_between(before: FitState, after: FitState, angle: Floats, face_size: Floats) -> Floats:
    """(B, 6 + P) the change from one state to another, which ``apply_change`` applies.

    In the axes of crops turned by (B,) ``angle``: log scale, rotation vector on the left, motion of
    the centre as a fraction of the face size, latent coefficients.
    """
    turn = turns_about_z(-angle)
    rotation = (
        turn @ (after.rotation @ np.swapaxes(before.rotation, 1, 2)) @ np.swapaxes(turn, 1, 2)
    )
    motion = (
        np.einsum("bij,bj->bi", turn[:, :2, :2], after.centre - before.centre) / face_size[:, None]
    )
    return np.concatenate(
        [
            np.log(after.scale / before.scale)[:, None],
            Rotation.from_matrix(rotation).as_rotvec(),
            motion,
            after.coefficients - before.coefficients,
        ],
        axis=1,
    )


def apply_change(state: FitState, change: Floats, angle: Floats, face_size: Floats) -> FitState:
    """The state after a (B, 6 + P) ``change_between``; unchanged where that is implausible."""
    out, steps = state.copied(), np.array(change, np.float64, order="C")
    _move(steps, angle, face_size, out.scale, out.rotation, out.centre, out.coefficients)
    return out


def in_photo(change: Floats, angle: Floats, face_size: Floats) -> Floats:
    """(B, 6 + P) a ``change_between`` as a Gauss-Newton step: axes of the photo, motion in pixels.

    (B,) ``angle`` of the crops, radians, and ``face_size``, pixels.
    """
    steps = np.array(change, np.float64, order="C")
    _turn_steps(steps, angle, face_size)
    return steps


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _move(steps, angle, face_size, scale, rotation, centre, coefficients):  # type: ignore[no-untyped-def]
    """Move the states by (B, 6 + P) ``steps`` in the axes of the crops, which are overwritten."""
    _turn_steps(steps, angle, face_size)
    for i in range(len(steps)):
        kernels.move_by(steps[i], face_size[i], i, scale, rotation, centre, coefficients)


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _turn_steps(steps, angle, face_size):  # type: ignore[no-untyped-def]
    """Turn (B, 6 + P) ``steps`` from the axes of the crops to those of the photos, in pixels."""
    for i in range(len(steps)):
        step, c, s = steps[i], np.cos(angle[i]), np.sin(angle[i])
        for at, unit in ((1, 1.0), (4, face_size[i])):
            x, y = step[at], step[at + 1]
            step[at], step[at + 1] = (c * x - s * y) * unit, (s * x + c * y) * unit


def mirror_change(change: Floats, mirrored_latents: Floats) -> Floats:
    """(B, 6 + P) the change of the mirrored faces in the mirrored crops.

    (P, P) ``mirrored_latents``: those of the fit model.
    """
    pose, latent = change[:, :POSE], change[:, POSE:]
    return np.concatenate([pose * HEAD_MIRROR, latent @ mirrored_latents], axis=1)


def turns_about_z(angle: Floats) -> Floats:
    """(B, 3, 3) rotations about the z axis, (B,) radians."""
    out = np.zeros((len(angle), 3, 3))
    out[:, 0, 0] = out[:, 1, 1] = np.cos(angle)
    out[:, 1, 0] = np.sin(angle)
    out[:, 0, 1] = -out[:, 1, 0]
    out[:, 2, 2] = 1.0
    return out
