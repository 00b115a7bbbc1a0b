"""Landmark files of public face sets, converted to this project's pixels on reading.

iBUG ``.pts`` and the ``.mat`` of AFLW2000-3D count the first pixel's centre as 1, the reannotation
of AFLW2000-3D counts it as 0; here it is 0.5.
"""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass

import numpy as np
import scipy.io

from dff.face.arrays import Array, Float, Floats
from dff.face.errors import BadLandmarks

LANDMARK_SUFFIXES = (".pts", ".mat")  # the first that lies beside a photo counts
FROM_ONE = -0.5  # added to a coordinate that counts the first pixel's centre as 1
FROM_ZERO = 0.5

_POINTS = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class AflwLabel:
    """The label of one AFLW2000-3D image."""

    # pixels, 3D scheme; z in pixels towards the viewer, up to a constant
    landmarks: Float[Array, "68 3"]
    yaw: float  # degrees
    pitch: float
    roll: float


def parse_pts(data: bytes) -> Floats:
    """(68, 2) pixels of an iBUG ``.pts`` file, or ``BadLandmarks`` that says what is wrong."""
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadLandmarks(f"not a text file: {error}") from error
    body = _POINTS.search(text)
    if body is None:
        raise BadLandmarks("no {...} with points")
    try:
        numbers = np.array([float(word) for word in body[1].split()])
    except ValueError as error:
        raise BadLandmarks(f"not a number: {error}") from error
    if numbers.size != 136:
        raise BadLandmarks(f"{numbers.size} numbers where 68 points have 136")
    return _checked(numbers.reshape(68, 2)) + FROM_ONE


def format_pts(points: Floats) -> bytes:
    """The iBUG ``.pts`` file of (68, 2) pixels: what ``parse_pts`` reads back, to a thousandth of a
    pixel.
    """
    rows = "\n".join(f"{x:.3f} {y:.3f}" for x, y in np.asarray(points) - FROM_ONE)
    return f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n".encode()


def parse_mat(data: bytes) -> AflwLabel:
    """The label in an AFLW2000-3D ``.mat`` file, or ``BadLandmarks`` that says what is wrong."""
    # scipy raises struct, zlib, Value, Type and Memory errors for damaged files.
    try:
        content = scipy.io.loadmat(io.BytesIO(data), variable_names=["pt3d_68", "Pose_Para"])
    except Exception as error:
        raise BadLandmarks(f"not a readable .mat file: {error}") from error
    points, pose = content.get("pt3d_68"), content.get("Pose_Para")
    if points is None or np.shape(points) != (3, 68) or pose is None or np.size(pose) < 3:
        raise BadLandmarks("no pt3d_68 (3, 68) and Pose_Para in the .mat file")
    landmarks = _checked(np.asarray(points, dtype=np.float64).T)
    pitch, yaw, roll = np.rad2deg(_checked(np.asarray(pose, dtype=np.float64).ravel()[:3]))
    landmarks = landmarks + np.array([FROM_ONE, FROM_ONE, 0.0])
    return AflwLabel(landmarks, yaw=float(yaw), pitch=float(pitch), roll=float(roll))


def parse_reannotated(data: bytes) -> dict[str, Floats] | Floats:
    """The reannotation of AFLW2000-3D from a ``.npz`` or ``.npy`` file, or ``BadLandmarks``.

    An ``.npz`` gives (68, 2) pixels of each image stem. The ``.npy`` of the 3DDFA release, (N, 2 or
    3, 68), gives (N, 68, 2) pixels in the order of the images' sorted names.
    """
    try:
        content = np.load(io.BytesIO(data), allow_pickle=False)
        tables = (
            {}
            if isinstance(content, np.ndarray)
            else {name: content[name] for name in content.files}
        )
    except Exception as error:  # zipfile, zlib and numpy each have their own way to refuse
        raise BadLandmarks(f"not a readable .npz or .npy file: {error}") from error
    if isinstance(content, np.ndarray):
        if content.ndim == 3 and content.shape[1] in (2, 3) and content.shape[2] == 68:
            content = np.swapaxes(content, 1, 2)
        if content.ndim != 3 or content.shape[1] != 68 or content.shape[2] not in (2, 3):
            raise BadLandmarks(f"shape {content.shape} where (N, 2 or 3, 68) is wanted")
        return _checked(np.asarray(content[..., :2], dtype=np.float64)) + FROM_ZERO
    for name, points in tables.items():
        if points.shape != (68, 2):
            raise BadLandmarks(f"{name} has shape {points.shape}, not (68, 2)")
    return {
        name: _checked(np.asarray(points, dtype=np.float64)) + FROM_ZERO
        for name, points in tables.items()
    }


def _checked(points: Floats) -> Floats:
    if not np.isfinite(points).all():
        raise BadLandmarks("a coordinate is not finite")
    return points
