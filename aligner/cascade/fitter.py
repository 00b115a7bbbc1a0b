"""The cascade's fitter: one stage of learned regressors in each pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.cascade.features import PointFeatures
from dff.aligner.cascade.model import Cascade, Stage, fingerprint
from dff.aligner.config import AlignConfig
from dff.aligner.detection import Detection, Search
from dff.aligner.fitting.assessment import assess, move_fit
from dff.aligner.fitting.change import apply_change, turns_about_z
from dff.aligner.fitting.crop import Crops, frame_boxes, frame_faces
from dff.aligner.fitting.face_fit import FaceFit
from dff.aligner.fitting.fit_model import FitModel, FitState, build_fit_model_from_modes
from dff.aligner.fitting.observation import Observer, describe_landmarks
from dff.face.arrays import Bools, Bytes, Floats
from dff.face.descriptor import Anchors, Network
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel

LARGEST_LATENT = 3.0  # standard deviations: cascades are learned within these bounds


class CascadeFitter:
    """Fits single faces by the stages of a cascade.

    After the last stage the network observes the faces at their final states. So confidence has the
    same features as for dense fits.
    """

    def __init__(
        self,
        net: Network,
        anchors: Anchors,
        model: MorphableModel,
        cascade: Cascade,
        config: AlignConfig,
    ) -> None:
        """Raises ValueError for a cascade learned with other anchors, or on points they lack."""
        if cascade.anchors != fingerprint(anchors):
            raise ValueError("the cascade was learned with other weights")
        wide = len(model.identity) + len(model.expression)
        if cascade.points.max() >= 68 + len(anchors.vertex) or cascade.directions.shape[1] != wide:
            raise ValueError(
                "the cascade uses points or shape directions that these weights do not have"
            )
        self.net, self.cascade, self.config = net, cascade, config
        self.passes = len(cascade.stages)
        self.fit_model = build_fit_model_from_modes(
            model, anchors, cascade.directions, config.fit_model
        )
        self.features = PointFeatures(cascade.points, cascade.extent, cascade.components)
        landmark_descriptor = describe_landmarks(anchors, self.fit_model.landmark_mean)
        self.observer = Observer(net, anchors, landmark_descriptor, config.observation)

    def begin(self, detections: Sequence[Detection]) -> FaceFit:
        """Start as the frontal mean face in each box."""
        config = self.config
        state, crops = start_cascade(self.fit_model, detections, config.margin, config.crop)
        return FaceFit.begin(self.fit_model, state, crops, config, detected=True)

    def resume(self, faces: Sequence[Alignment]) -> FaceFit:
        """Start as the mean face in the faces' boxes, as in training."""
        detections = []
        for face in faces:
            state = self.fit_model.state_of_alignments([face], 0.0)
            box = Box.around(face.landmarks_3d[:, :2])
            detections.append(Detection(box, face.face_confidence, pose=state))
        return self.begin(detections)

    def step(self, number: int, images: Sequence[Bytes], before: FaceFit) -> Search[FaceFit]:
        """Apply one stage; after the last one observe the final states."""
        fit_model, config = self.fit_model, self.config
        crops = before.crops if number == 0 else self._crops(before.state)
        stage = self.cascade.stages[number]
        state = self._apply(stage, images, crops, before.state)
        if number + 1 < self.passes:
            return move_fit(fit_model, before, state)
        observation = yield from self.observer.observe_in_steps(images, self._crops(state))
        after = assess(fit_model, self.observer, observation, before, state, config.visibility)
        return replace(after, lost=observation.matched < config.observation.fewest)

    def early_stop(self, number: int, motion: Floats) -> Bools:
        """(B,) false: every face passes all stages."""
        return np.zeros(len(motion), dtype=bool)

    def _crops(self, state: FitState) -> Crops:
        return frame_faces(self.fit_model, state, self.config.margin, self.config.crop)

    def _apply(
        self, stage: Stage, images: Sequence[Bytes], crops: Crops, state: FitState
    ) -> FitState:
        """The state of B faces after one stage that reads their crops."""
        seen, visible = self.features.read(
            self.fit_model, self.net, images, crops, state, self.config.visibility
        )
        change = stage.change(stage.rows(seen, visible), yaw_in_crop(state, crops.angle))
        return move_face(state, change, crops.angle, self.fit_model.face_size(state))


def yaw_in_crop(state: FitState, angle: Floats) -> Floats:
    """(B,) degrees of yaw to the right in crops turned by (B,) ``angle``; 0 is frontal."""
    gaze = np.einsum("bij,bj->bi", turns_about_z(-angle), state.rotation[:, :, 2])
    return np.asarray(np.rad2deg(np.arctan2(gaze[:, 0], -gaze[:, 2])))


def move_face(state: FitState, change: Floats, angle: Floats, face_size: Floats) -> FitState:
    """``apply_change`` within the bounds of latent coefficients that cascades are learned in."""
    found = apply_change(state, change, angle, face_size)
    latent = np.clip(found.coefficients, -LARGEST_LATENT, LARGEST_LATENT)
    return replace(found, coefficients=latent)


def start_cascade(
    fit_model: FitModel, detections: Sequence[Detection], margin: float, size: int
) -> tuple[FitState, Crops]:
    """The start of a cascade, as in training: the frontal mean face in each box, and its crops.

    Of a detection's pose only the rotation in the image plane is used, with the box in the axes so
    rotated. The cameras are at infinity.
    """
    boxes, angle = [one.box for one in detections], np.zeros(len(detections))
    for i, one in enumerate(detections):
        if one.pose is not None:
            mean_face = replace(one.pose, coefficients=np.zeros((1, len(fit_model.modes))))
            seen = FitState.of(mean_face, 0.0)
            angle[i] = frame_faces(fit_model, seen, margin, size).angle[0]
            turn = turns_about_z(angle[i : i + 1])[0, :2, :2]
            boxes[i] = Box.around(fit_model.landmarks(seen)[0] @ turn)
    turn = turns_about_z(angle)
    state, crops = fit_model.state_in_boxes(boxes, 0.0), frame_boxes(boxes, margin, size)
    turned, middle = (
        np.einsum("bij,bj->bi", turn[:, :2, :2], centre) for centre in (state.centre, crops.centre)
    )
    return (
        replace(state, rotation=turn @ state.rotation, centre=turned),
        replace(crops, centre=middle, angle=angle),
    )
