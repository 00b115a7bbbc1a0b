"""What an alignment says: values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dff.aligner.confidence import Evidence
from dff.face.arrays import Floats
from dff.face.geometry.camera import Box, WeakPerspective
from dff.face.geometry.transform import Rigid
from dff.face.model.landmarks import LandmarkOffsets
from dff.face.model.morphable import Coefficients, MorphableModel


@dataclass(frozen=True)
class Pose:
    """How a head is turned, degrees and signs as in AFLW2000-3D.

    Euler angles degenerate beyond 90 degrees of yaw; the matrix does not.
    """

    yaw: float
    pitch: float
    roll: float
    matrix: Floats  # (3, 3) cam_from_head in the frame of AFLW2000-3D's frontal face


@dataclass(frozen=True)
class Iteration:
    """The state after one iteration, for people who watch."""

    landmarks_2d: Floats  # (68, 2) pixels of the photo, 3D scheme
    yaw: float  # degrees
    pitch: float
    roll: float
    # robust mean distance of the matches from the fitted face, fraction of the box; NaN: not
    # measured
    residual: float
    # mean distance the landmarks moved, fraction of the box; the first iteration's is infinite
    motion: float


@dataclass(frozen=True)
class Alignment:
    """One aligned face. Pixels are of the whole photo, with the first pixel's centre at (0.5,
    0.5).
    """

    box: Box  # where the face was looked for
    landmarks_2d: Floats  # (68, 2) pixels, 300-W scheme: the jaw points lie on the visible contour
    # (68, 3) pixels, AFLW2000-3D scheme; z in pixels towards the viewer, zero at the head's origin
    landmarks_3d: Floats
    pose: Pose
    # (68,) probability that the photo shows each of landmarks_3d: not turned away, not covered
    visibility: Floats
    # (68,) probability that it is shown and lies within 5 % of the face's box of the truth
    confidence: Floats
    face_confidence: (
        float  # probability that the landmarks err by less than 8 % of the face's box on average
    )
    failed: bool
    reason: str  # why it failed, else ""
    vertices: Floats  # (V, 3) metres in the head frame: the fitted mesh
    coefficients: Coefficients
    cam_from_head: Rigid
    # of the whole photo; alone, from the distance at which faces are usually photographed
    camera: WeakPerspective
    model: str  # name of the morphable model
    trace: tuple[Iteration, ...] = field(default=(), repr=False)
    evidence: Evidence | None = field(default=None, repr=False)  # what the confidences rest on

    @property
    def vertices_px(self) -> Floats:
        """(V, 3) the fitted mesh in pixels of the photo; z in pixels towards the viewer."""
        seen = self.cam_from_head.apply(self.vertices)
        return np.concatenate(
            [self.camera.px_from_cam(seen), -self.camera.scale * seen[:, 2:]], axis=1
        )

    def to_json(self, *, trace: bool = False, mesh: bool = False) -> dict[str, Any]:
        """Plain lists and numbers, pixels rounded to a hundredth; on demand with ``trace`` and
        ``mesh`` in pixels.
        """
        out: dict[str, Any] = {
            "box": _rounded([self.box.x0, self.box.y0, self.box.x1, self.box.y1], 2),
            "landmarks_2d": _rounded(self.landmarks_2d, 2),
            "landmarks_3d": _rounded(self.landmarks_3d, 2),
            "pose": {
                "yaw": round(self.pose.yaw, 2),
                "pitch": round(self.pose.pitch, 2),
                "roll": round(self.pose.roll, 2),
                "matrix": _rounded(self.pose.matrix, 6),
            },
            "visibility": _rounded(self.visibility, 3),
            "confidence": _rounded(self.confidence, 3),
            "face_confidence": round(self.face_confidence, 3),
            "failed": self.failed,
            "reason": self.reason,
            "model": self.model,
            "identity": _rounded(self.coefficients.identity, 4),
            "expression": _rounded(self.coefficients.expression, 4),
        }
        if trace:
            out["trace"] = [
                {
                    "landmarks_2d": _rounded(i.landmarks_2d, 2),
                    "pose": {
                        "yaw": round(i.yaw, 2),
                        "pitch": round(i.pitch, 2),
                        "roll": round(i.roll, 2),
                    },
                    "residual": round(i.residual, 5) if np.isfinite(i.residual) else None,
                    "motion": round(i.motion, 5) if np.isfinite(i.motion) else None,
                }
                for i in self.trace
            ]
        if mesh:
            out["mesh"] = _rounded(self.vertices_px, 2)
        return out


def _rounded(values: Any, digits: int) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), digits).tolist()


def landmarks_of(
    model: MorphableModel,
    landmark_offsets: LandmarkOffsets,
    vertices: Floats,
    coefficients: Coefficients,
    cam_from_head: Rigid,
    camera: WeakPerspective,
) -> tuple[Floats, Floats]:
    """The ``landmarks_2d`` and ``landmarks_3d`` of a fitted mesh, where annotators of a
    ``landmark_offsets`` put them.
    """
    seen = cam_from_head.apply(vertices)
    contour = model.landmarks.contour_vertices(camera.px_from_cam(seen), model.template)
    flat, deep = seen[contour], seen[model.landmarks.vertex]
    if not landmark_offsets.none:
        both = np.concatenate([coefficients.identity, coefficients.expression])
        flat = flat + landmark_offsets.of("2d", both) @ cam_from_head.rotation.T
        deep = deep + landmark_offsets.of("3d", both) @ cam_from_head.rotation.T
    return camera.px_from_cam(flat), np.column_stack(
        [camera.px_from_cam(deep), -camera.scale * deep[:, 2]]
    )
