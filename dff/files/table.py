"""Faces as rows of a CSV file, with the column names of OpenFace where it has such a column.

Source of the names: Baltrusaitis et al., "OpenFace 2.0: Facial Behavior Analysis Toolkit" (2018).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.intrinsics import Intrinsics
from dff.face.model.morphable import MorphableModel

Cell = str | int | float
_POINTS = range(68)


class FaceTable:
    """Turns faces of a model into rows of ``columns``.

    Millimetres and radians as in OpenFace; its columns are x right, y down and z away from the
    camera. Rotations are those of the alignment's pose: Rx(pitch) Ry(yaw) Rz(roll).
    """

    def __init__(self, model: MorphableModel, first: Sequence[str]) -> None:
        """``first``: names of the columns that the caller fills, such as "image"."""
        self._model = model
        self.columns = [
            *first,
            *("face_id", "confidence", "success", "error"),
            *("pose_Tx", "pose_Ty", "pose_Tz", "pose_Rx", "pose_Ry", "pose_Rz"),
            *(f"{axis}_{i}" for axis in "xy" for i in _POINTS),
            *(f"{axis}_{i}" for axis in "XYZ" for i in _POINTS),
            *model.expression_names,
        ]

    def header(self) -> str:
        """The first line."""
        return _line(self.columns)

    def row(self, first: Sequence[Cell], face_id: int, face: Alignment, camera: Intrinsics) -> str:
        """The line of a face."""
        placed = camera.place_head(face.vertices, face.camera, face.cam_from_head)
        points = 1000.0 * placed.apply(face.vertices[self._model.landmarks.vertex])
        yaw, pitch, roll = np.deg2rad((face.pose.yaw, face.pose.pitch, face.pose.roll))
        values = [
            *(1000.0 * placed.translation),
            *(pitch, yaw, roll),
            *face.landmarks_2d.T.ravel(),
            *points.T.ravel(),
            *face.coefficients.expression,
        ]
        told: list[Cell] = [f"{face.face_confidence:.3f}", int(not face.failed), face.reason]
        return _line([*first, face_id, *told, *(f"{value:.4f}" for value in values)])

    def row_without_face(self, first: Sequence[Cell], error: str) -> str:
        """The line of an image without a face; ``error``: why it has none, if it was refused."""
        told: list[Cell] = [*first, "", "", 0, error]
        return _line(told + [""] * (len(self.columns) - len(told)))


def _line(cells: Sequence[Cell]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()
