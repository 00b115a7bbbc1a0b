"""Other starts for faces whose boxes are given, and whose fit from an upright face failed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.detection import Detection, same_face
from dff.aligner.fitting.change import turns_about_z
from dff.aligner.fitting.fit_model import FitModel
from dff.face.geometry.camera import Box
from dff.face.solve.gauss_newton import FaceState


def start_in_middle(box: Box, share: float) -> Detection:
    """A start in the middle of a box, ``share`` times as wide and as high."""
    half = share / 2 * np.array([box.width, box.height])
    middle = Box(*(box.centre - half).tolist(), *(box.centre + half).tolist())
    return Detection(middle, given=True)


def start_turned(
    fit_model: FitModel, box: Box, degrees: Sequence[float], inverse_depth: float
) -> list[Detection]:
    """The mean face in a box, turned in the image plane about its middle by each angle."""
    upright = fit_model.state_in_boxes([box], inverse_depth)
    turns = turns_about_z(np.radians(degrees))
    away = upright.centre[0] - box.centre
    return [
        Detection(
            box,
            given=True,
            pose=FaceState(
                upright.scale,
                turn @ upright.rotation,
                (box.centre + turn[:2, :2] @ away)[None],
                upright.coefficients,
            ),
        )
        for turn in turns
    ]


def find_surest(faces: Sequence[Alignment], box: Box) -> Alignment | None:
    """The surest of the faces that did not fail and are that of the box; None: there is none."""
    there = [
        face
        for face in faces
        if not face.failed and same_face(Box.around(face.landmarks_3d[:, :2]), box)
    ]
    return max(there, key=lambda face: face.face_confidence, default=None)
