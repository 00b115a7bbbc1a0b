"""Fits to alignments: landmarks as annotated, pose, confidence, and why a fit is no face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.special import expit, logit

from dff.aligner.alignment import (
    Alignment,
    CalibrationFeatures,
    Iteration,
    Pose,
)
from dff.aligner.confidence import (
    FAILED_BELOW,
    Calibration,
    calibration_features,
    eye_similarity,
)
from dff.aligner.config import EyeEvidenceConfig
from dff.aligner.fitting.batch import with_fields
from dff.aligner.fitting.face_fit import FaceFit
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.loop import Pass
from dff.aligner.landmark_placement import place_landmarks
from dff.face.arrays import Array, Float, Floats, Int
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import angles_from_rotation, rotation_from_vector
from dff.face.model.landmark_offsets import LandmarkOffsets, PoseCorrection, close_edges

REFERENCE_ROTATION: dict[str, tuple[float, float, float]] = {"open-head": (4.8, 0.0, 0.0)}
"""Rotation vector in degrees, head_from_reference: where each model's head frame sees the frontal
face of AFLW2000-3D.

What is frontal is a convention of each model. Measured by fitting the model to the labelled
landmarks of 92 images and averaging the rotation to their labelled pose (5.1, 0.1, -0.1 with the
original labels, 4.5, -0.5, 0.4 with the reannotated ones); the parts that break the left-right
symmetry are noise. A model without an entry gets none.
"""


def head_from_reference(model: str) -> Floats:
    """(3, 3) rotation to the head frame of a model from the frontal face of AFLW2000-3D."""
    return rotation_from_vector(np.deg2rad(REFERENCE_ROTATION.get(model, (0.0, 0.0, 0.0))))


@dataclass(frozen=True)
class SteppedFaces:
    """The states of the faces that a pass has moved, for their traces."""

    faces: Int[Array, " stepped"]  # numbers
    state: FitState
    residual: Float[Array, " stepped"]
    motion: Float[Array, " stepped"]

    @staticmethod
    def of(done: Pass) -> SteppedFaces:
        """Those of one pass."""
        return SteppedFaces(done.faces, done.fit.state, done.fit.residual, done.motion)


class Reporter:
    """Reports the fits of a fit model."""

    def __init__(
        self,
        fit_model: FitModel,
        calibration: Calibration,
        landmark_offsets: LandmarkOffsets,
        pose_correction: PoseCorrection,
        *,
        fewest_visible: int,
        turned_away: float,
    ) -> None:
        """``fewest_visible`` landmarks of a face; ``turned_away``: z of the furthest gaze."""
        self.fit_model, self.calibration = fit_model, calibration
        self.landmark_offsets, self.pose_correction = landmark_offsets, pose_correction
        self.fewest_visible, self.turned_away = fewest_visible, turned_away
        self._annotated = fit_model.as_annotated(landmark_offsets)
        self._reference = head_from_reference(fit_model.model.name)

    def trace(self, passes: Sequence[SteppedFaces], face: int) -> tuple[Iteration, ...]:
        """The iterations of one face of some passes."""
        out = []
        for stepped in passes:
            for row in np.flatnonzero(stepped.faces == face):
                state = stepped.state[row : row + 1]
                moved = self.landmark_offsets.in_image("3d", state.rotation)
                landmarks = self._annotated.landmarks(state, moved)
                if not self.landmark_offsets.none:
                    landmarks = close_edges(landmarks, state.rotation, state.scale)
                angles = angles_from_rotation(self.pose_matrices(state.rotation)[0])
                residual, motion = float(stepped.residual[row]), float(stepped.motion[row])
                out.append(Iteration(landmarks[0], *angles, residual, motion))
        return tuple(out)

    def face_confidence(self, fit: FaceFit) -> Floats:
        """(B,) confidences of fits."""
        features = calibration_features(fit, self.fit_model.face_size(fit.state))
        return self.calibration.face_confidence(features)

    def report(
        self, fit: FaceFit, boxes: Sequence[Box], passes: Sequence[SteppedFaces]
    ) -> list[Alignment]:
        """The alignments of B faces whose fits have ended after these passes."""
        fit_model = self.fit_model
        features = calibration_features(fit, fit_model.face_size(fit.state))
        whole = self.calibration.face_confidence(features)
        seen, right = self.calibration.landmark_confidence(features)
        matrices = self.pose_matrices(fit.state.rotation)
        return [
            self._alignment(
                fit.state,
                i,
                box=boxes[i],
                matrix=matrices[i],
                visibility=seen[i],
                confidence=right[i],
                face_confidence=float(whole[i]),
                features=features.one(i),
                refinement=fit.refinement[i],
                expression=fit.expression[i],
                trace=partial(self.trace, passes, i),
            )
            for i in range(len(boxes))
        ]

    def confirm(self, face: Alignment, probability: float) -> Alignment:
        """A refused face, judged again with the ``probability`` of a detector that sees it, too.

        Fit and detector are different networks, so their odds are multiplied. Faces that were not
        refused, or are still refused with these odds, are returned as they are.
        """
        return self._judge_again(face, float(logit(probability)))

    def confirm_by_eyes(self, face: Alignment, config: EyeEvidenceConfig) -> Alignment:
        """A refused upright face, judged again by how well the network sees its eyes.

        Faces that are not refused, or would be in spite of that, are returned as they are.
        """
        if face.features is None or -face.cam_from_head.rotation[1, 1] < config.upright:
            return face
        above = float(eye_similarity(face.features)) - config.least
        most = float(logit(config.most) - logit(face.face_confidence))
        return self._judge_again(face, min(config.weight * above, most)) if above > 0.0 else face

    def is_doubted(self, face: Alignment) -> bool:
        """Whether a face is refused, or would be by its fit alone."""
        if face.failed or face.features is None:
            return face.failed
        alone = self.calibration.face_confidence(CalibrationFeatures.stacked([face.features]))
        return bool(alone[0] < FAILED_BELOW)

    def _judge_again(self, face: Alignment, log_odds: float) -> Alignment:
        """A refused face by further evidence for it; others are returned as they are."""
        if not face.failed or face.features is None:
            return face
        confidence = float(expit(logit(face.face_confidence) + log_odds))
        rotation = face.cam_from_head.rotation
        if self.explain_rejection(face.features, confidence, face.visibility, rotation):
            return face
        return replace(face, face_confidence=confidence, failed=False, reason="")

    def _alignment(
        self,
        state: FitState,
        i: int,
        *,
        box: Box,
        matrix: Floats,
        visibility: Floats,
        confidence: Floats,
        face_confidence: float,
        features: CalibrationFeatures,
        refinement: Floats,
        expression: Floats,
        trace: Callable[[], tuple[Iteration, ...]],
    ) -> Alignment:
        camera, cam_from_head = state.camera(i), state.cam_from_head(i)
        model = self.fit_model.model
        fitted = self.fit_model.coefficients(state.coefficients[i])
        coefficients = with_fields(fitted, expression=fitted.expression + expression)
        flat, deep = place_landmarks(
            model,
            self.landmark_offsets,
            self.fit_model.used_vertices(state.coefficients[i], expression),
            self.landmark_offsets.in_head(coefficients.joined),
            cam_from_head,
            camera,
            refinement,
        )
        reason = self.explain_rejection(features, face_confidence, visibility, state.rotation[i])
        return Alignment(
            box=box,
            landmarks_2d=flat,
            landmarks_3d=deep,
            pose=Pose.of(matrix),
            visibility=visibility,
            confidence=confidence,
            face_confidence=face_confidence,
            failed=bool(reason),
            reason=reason,
            vertices=partial(self._mesh, state[i : i + 1], expression),  # type: ignore[arg-type]
            coefficients=coefficients,
            cam_from_head=cam_from_head,
            camera=camera,
            model=model.name,
            refinement=refinement,
            trace=trace,  # type: ignore[arg-type]
            features=features,
        )

    def _mesh(self, state: FitState, expression: Floats) -> Floats:
        """(V, 3) metres in the head frame: the mesh of one face, with activations added to it."""
        # in the model's own precision, or it would be copied
        basis = self.fit_model.model.expression
        moved = np.tensordot(expression.astype(basis.dtype), basis, axes=1)
        return np.asarray(self.fit_model.vertices(state)[0] + moved)

    def pose_matrices(self, rotation: Floats) -> Floats:
        """(B, 3, 3) the answered poses of heads whose ``cam_from_head`` is ``rotation``."""
        return self.pose_correction.corrected(rotation @ self._reference, rotation)

    def explain_rejection(
        self,
        features: CalibrationFeatures,
        face_confidence: float,
        visibility: Floats,
        rotation: Floats,
    ) -> str:
        """Why a fit is rejected, else "".

        Of one fit: (68,) ``visibility``, (3, 3) ``rotation`` of ``cam_from_head``. Without visible
        landmarks, or turned away, a fit is rejected whatever its confidence.
        """
        visible = int((visibility > 0.5).sum())
        if features.lost:
            return "no part of the box looks like a face"
        if face_confidence < FAILED_BELOW:
            return (
                "the face model does not explain what is in the box "
                f"(confidence {face_confidence:.2f})"
            )
        if visible < self.fewest_visible:
            return f"{visible} of 68 landmarks are visible in the box"
        if rotation[2, 2] > self.turned_away:
            return "the head is turned away from the camera"
        return ""
