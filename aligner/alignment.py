"""The result of an alignment: values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from dff.face.arrays import Array, Bool, Bools, Float, Floats, Ints
from dff.face.geometry.camera import Box, NearPerspective
from dff.face.geometry.transform import Rigid, angles_from_rotation
from dff.face.model.morphable import Coefficients, MorphableModel


@dataclass(frozen=True)
class Pose:
    """How a head is turned, degrees and signs as in AFLW2000-3D.

    Euler angles degenerate beyond 90 degrees of yaw; the matrix does not.
    """

    yaw: float
    pitch: float
    roll: float
    matrix: Float[Array, "3 3"]  # cam_from_head in the frame of AFLW2000-3D's frontal face

    @staticmethod
    def of(matrix: Floats) -> Pose:
        """The pose of this (3, 3) ``matrix``."""
        return Pose(*angles_from_rotation(matrix), matrix)


@dataclass(frozen=True)
class Iteration:
    """The state after one pass."""

    landmarks_2d: Float[Array, "68 2"]  # pixels of the photo, 3D scheme
    yaw: float  # degrees
    pitch: float
    roll: float
    # robust mean distance of the matches from the fitted face, fraction of the face size; NaN: not
    # measured
    residual: float
    # mean motion of the landmarks, fraction of the face size; infinite in the first pass of a face
    motion: float


@dataclass(frozen=True)
class CalibrationFeatures:
    """The features of a calibration: measures of B fits. Higher values indicate a better fit.

    Of one fit: without the leading axis. ``dff.aligner.confidence`` names them and computes them.
    """

    face: Float[Array, "*faces face_features"]
    landmarks: Float[Array, "*faces 68 landmark_features"]
    lost: Bool[Array, "*faces"]  # hardly a pixel looked like a face: nothing else counts

    def __getitem__(self, rows: Bools | Ints) -> CalibrationFeatures:
        return CalibrationFeatures(self.face[rows], self.landmarks[rows], self.lost[rows])

    def one(self, row: int) -> CalibrationFeatures:
        """The features of one fit, without the leading axis."""
        return CalibrationFeatures(
            self.face[row], self.landmarks[row], np.asarray(self.lost[row], dtype=bool)
        )

    @staticmethod
    def stacked(some: Sequence[CalibrationFeatures]) -> CalibrationFeatures:
        """One value of many single ones."""
        return CalibrationFeatures(
            np.array([one.face for one in some]),
            np.array([one.landmarks for one in some]),
            np.array([one.lost for one in some], dtype=bool),
        )


@dataclass(frozen=True)
class Alignment:
    """One aligned face.

    Pixels are of the whole photo, with the first pixel's centre at (0.5, 0.5).
    """

    box: Box  # where the face was looked for
    # pixels, 300-W scheme: the jaw points lie on the visible contour
    landmarks_2d: Float[Array, "68 2"]
    # pixels, AFLW2000-3D scheme; z in pixels towards the viewer, zero at the head's origin
    landmarks_3d: Float[Array, "68 3"]
    pose: Pose
    # probability that the photo shows each of landmarks_3d: not turned away, not covered
    visibility: Float[Array, " 68"]
    # probability that it is shown and lies within 5 % of the face's box of the truth
    confidence: Float[Array, " 68"]
    # probability that the landmarks err by less than 8 % of the face's box on average
    face_confidence: float
    failed: bool
    reason: str  # why it failed, else ""
    vertices: Float[Array, "vertices 3"]  # metres in the head frame: the fitted mesh
    coefficients: Coefficients
    cam_from_head: Rigid
    # of the whole photo; of a single photo its inverse depth is the configured one
    camera: NearPerspective
    model: str  # name of the morphable model
    # metres right and down in the photo of the upright face: what the descriptors at the landmarks
    # add to landmarks_2d
    refinement: Float[Array, "68 2"] = field(default_factory=lambda: np.zeros((68, 2)), repr=False)
    trace: tuple[Iteration, ...] = field(default=(), repr=False)
    # what the confidences rest on
    features: CalibrationFeatures | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # of a mesh and a trace, not of the functions that compute them
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def vertices_px(self) -> Floats:
        """(V, 3) the fitted mesh in pixels of the photo; z in pixels towards the viewer."""
        seen = self.cam_from_head.apply(self.vertices)
        return np.concatenate(
            [self.camera.px_from_cam(seen), -self.camera.scale * seen[:, 2:]], axis=1
        )

    @staticmethod
    def from_json(data: Mapping[str, Any], model: MorphableModel) -> Alignment:
        """The alignment that ``to_json`` wrote, within its rounding; without trace and features.

        Raises ValueError for an alignment of another face model, and KeyError for missing fields.
        """
        if data["model"] != model.name:
            raise ValueError(f"an alignment of {data['model']!r}, not of {model.name!r}")
        coefficients = Coefficients(
            np.array(data["identity"], dtype=np.float64),
            np.array(data["expression"], dtype=np.float64),
        )
        pose, camera, place = data["pose"], data["camera"], data["cam_from_head"]
        return Alignment(
            box=Box(*data["box"]),
            landmarks_2d=np.array(data["landmarks_2d"], dtype=np.float64),
            landmarks_3d=np.array(data["landmarks_3d"], dtype=np.float64),
            pose=Pose(pose["yaw"], pose["pitch"], pose["roll"], np.array(pose["matrix"])),
            visibility=np.array(data["visibility"], dtype=np.float64),
            confidence=np.array(data["confidence"], dtype=np.float64),
            face_confidence=data["face_confidence"],
            failed=data["failed"],
            reason=data["reason"],
            vertices=model.vertices(coefficients),
            coefficients=coefficients,
            cam_from_head=Rigid(np.array(place["rotation"]), np.array(place["translation"])),
            camera=NearPerspective(
                camera["scale"], np.array(camera["centre"]), camera["inverse_depth"]
            ),
            model=model.name,
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
            "camera": {
                "scale": round(float(self.camera.scale), 4),
                "centre": _rounded(self.camera.centre, 3),
                "inverse_depth": round(float(self.camera.inverse_depth), 6),
            },
            "cam_from_head": {
                "rotation": _rounded(self.cam_from_head.rotation, 8),
                "translation": _rounded(self.cam_from_head.translation, 8),
            },
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


class DeferredField:
    """A field of frozen values that may be given as a function, called when it is first read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, value: Any, owner: type | None = None) -> Any:
        if value is None:
            return self
        found = vars(value)[self.name]
        if callable(found):
            found = vars(value)[self.name] = found()
        return found

    def __set__(self, value: Any, new: Any) -> None:
        vars(value)[self.name] = new


# Most callers read few fields, and a mesh takes as long as landmarks and pose do. These are no
# defaults of the fields.
Alignment.box = DeferredField("box")  # type: ignore[assignment]
Alignment.pose = DeferredField("pose")  # type: ignore[assignment]
Alignment.vertices = DeferredField("vertices")  # type: ignore[assignment]
Alignment.coefficients = DeferredField("coefficients")  # type: ignore[assignment]
Alignment.trace = DeferredField("trace")  # type: ignore[assignment]


def _rounded(values: Any, digits: int) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), digits).tolist()


@dataclass(frozen=True)
class PersonAlignment:
    """One person in several photos.

    Each face's ``vertices`` are those of the model with the face's coefficients, plus
    ``residual_deformation``.
    """

    identity: Float[Array, " identities"]  # standard deviations
    # metres in head: what no identity of the model forms, added to its vertices
    residual_deformation: Float[Array, "vertices 3"]
    vertices: Float[Array, "vertices 3"]  # metres in head: the face at rest, all included
    faces: tuple[Alignment | None, ...]  # of each photo, all of this identity; None: left out
    left_out: Mapping[int, str]  # why, by number of the photo
    doubts: Mapping[int, str]  # about photos that are not left out, by their number

    @staticmethod
    def of(
        model: MorphableModel,
        photos: int,
        faces: Mapping[int, Alignment],
        left_out: Mapping[int, str],
        doubts: Mapping[int, str],
    ) -> PersonAlignment:
        """The answer for the ``faces`` that share an identity, by number of their photo."""
        one = next(iter(faces.values()))
        identity = one.coefficients.identity
        residual = one.vertices - model.vertices(one.coefficients)
        at_rest = model.vertices(Coefficients(identity, np.zeros(len(model.expression))))
        in_order = tuple(faces.get(i) for i in range(photos))
        return PersonAlignment(
            identity, residual, at_rest + residual, in_order, dict(left_out), doubts
        )

    @property
    def in_doubt(self) -> bool:
        """Whether no photo clearly agrees with the others: they may show different people."""
        fitted = [i for i, face in enumerate(self.faces) if face is not None]
        return len(fitted) > 1 and all(i in self.doubts for i in fitted)

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain lists and numbers; ``names`` of the photos."""
        return {
            "identity": np.round(self.identity, 4).tolist(),
            "photos": {
                name: {"left_out": self.left_out[i]}
                if face is None
                else face.to_json() | ({"doubt": self.doubts[i]} if i in self.doubts else {})
                for i, (name, face) in enumerate(zip(names, self.faces, strict=True))
            },
        }
