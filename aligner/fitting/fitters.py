"""The dense fitter: one face in one photo, by soft correspondences of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.config import AlignConfig
from dff.aligner.detection import Detection, Search
from dff.aligner.fitting.assessment import assess, move_fit, see_meshes
from dff.aligner.fitting.batch import replace_rows, with_fields
from dff.aligner.fitting.correction import Corrector, LinearCorrector
from dff.aligner.fitting.correspondence import interleave, pool
from dff.aligner.fitting.crop import Crops, frame_boxes, frame_faces, frame_landmarks
from dff.aligner.fitting.expressions import ExpressionCorrector, LearnedExpressionCorrector
from dff.aligner.fitting.face_fit import FaceFit
from dff.aligner.fitting.fit_model import FitState, add_match_errors, build_fit_model
from dff.aligner.fitting.loop import is_last_pass
from dff.aligner.fitting.observation import (
    MirroredObserver,
    Observation,
    Observer,
    describe_landmarks,
    observe_faces,
)
from dff.aligner.fitting.refinement import LinearRefiner, Refiner
from dff.aligner.fitting.steps import fit_from_detection, fit_from_last_frame, refine
from dff.face.arrays import Bools, Bytes, Floats
from dff.face.descriptor import Anchors, Network
from dff.face.model.morphable import MorphableModel
from dff.face.solve.expression_correction import ExpressionCorrection
from dff.face.solve.fit_correction import FitCorrection
from dff.face.solve.landmark_refinement import LandmarkRefinement


class DenseFitter:
    """Fits single faces by soft correspondences; every second pass observes the mirrored photo."""

    def __init__(
        self,
        net: Network,
        anchors: Anchors,
        model: MorphableModel,
        config: AlignConfig,
        correction: FitCorrection | None = None,
        refinement: LandmarkRefinement | None = None,
        expression_correction: ExpressionCorrection | None = None,
    ) -> None:
        """``correction``: of the fits of each pass; ``refinement``: of their landmarks;
        ``expression_correction``: of the activations of the last. None of them by default.
        """
        self.config, self.passes = config, config.passes
        mirrors = config.mirror and config.passes > 1
        self.pools = mirrors and config.passes > 2
        fit_model = build_fit_model(model, anchors, config.fit_model, both_sides=mirrors)
        self.fit_model = add_match_errors(fit_model, anchors.error_fields, pooled=self.pools)
        self.errors = anchors.error_fields.shape[2]
        parts = net, anchors, describe_landmarks(anchors, self.fit_model.landmark_mean)
        self.observers: tuple[Observer, ...] = (Observer(*parts, config.observation),)
        if mirrors:
            self.observers += (MirroredObserver(*parts, config.observation),)
        self.corrector: Corrector | None = None
        if correction is not None:
            self.corrector = LinearCorrector(self.fit_model, correction, config.visibility)
        self.refiner: Refiner | None = None
        if refinement is not None:
            self.refiner = LinearRefiner(self.fit_model, refinement, config.visibility)
        self.expression_corrector: ExpressionCorrector | None = None
        if expression_correction is not None:
            self.expression_corrector = LearnedExpressionCorrector(
                self.fit_model, expression_correction, config.visibility
            )

    def with_refiner(self, refiner: Refiner | None) -> DenseFitter:
        """The same fitter with another refinement of landmarks, or none."""
        other = copy(self)
        other.refiner = refiner
        return other

    def at_crops(self) -> tuple[DenseFitter, ...]:
        """The fitters of ``AlignConfig.averaged_crops``."""
        return tuple(
            self.with_crop(self.config.crop_side(share)) for share in self.config.averaged_crops
        )

    def with_crop(self, side: int) -> DenseFitter:
        """The same fitter of single crops of ``side`` pixels."""
        other = copy(self)
        other.config = replace(self.config, crop=side, averaged_crops=())
        return other

    def begin(self, detections: Sequence[Detection]) -> FaceFit:
        """Start in the poses of the detections; without a pose, as the upright mean face."""
        fit_model, config = self.fit_model, self.config
        poses = [detection.pose for detection in detections if detection.pose is not None]
        if poses:
            posed = fit_model.mean_faces(poses, config.inverse_depth)
            turned = frame_faces(fit_model, posed, config.margin, config.crop)
            if len(poses) == len(detections):
                return FaceFit.begin(fit_model, posed, turned, config, detected=True)
        boxes = [detection.box for detection in detections]
        state = fit_model.state_in_boxes(boxes, config.inverse_depth)
        crops = frame_boxes(boxes, config.margin, config.crop)
        if poses:
            rows = np.flatnonzero([detection.pose is not None for detection in detections])
            state, crops = replace_rows(state, rows, posed), replace_rows(crops, rows, turned)
        return FaceFit.begin(fit_model, state, crops, config, detected=True)

    def resume(self, faces: Sequence[Alignment]) -> FaceFit:
        """Start in the faces' own poses and shapes."""
        fit_model, config = self.fit_model, self.config
        state = fit_model.state_of_alignments(faces, config.inverse_depth)
        side = config.crop_side(config.followed_crop)
        crops = frame_faces(fit_model, state, config.later_margin, side)
        return FaceFit.begin(fit_model, state, crops, config, detected=False)

    def step(self, number: int, images: Sequence[Bytes], before: FaceFit) -> Search[FaceFit]:
        """Observe the photos, step the states to the matches, correct and assess them."""
        fit_model, config = self.fit_model, self.config
        which = number % len(self.observers)
        observer, crops = self.observers[which], next_crops(before, number, config)
        followed = number == 0 and not before.detected.all()
        if followed:
            before = see_meshes(fit_model, before, config.visibility)
        if number == 1 and len(self.observers) > 1 and not self.pools:
            before = self._without_match_errors(before)
        seen = yield from observe_faces(observer, images, crops, before)
        if len(seen.rows) == 0:
            return seen.all_faces
        observation = seen.observation
        yield
        before, state = self._solve(number, observation, seen.before, followed=followed)
        yield
        if self.corrector is not None and not before.detected.any():  # their visibility is known
            state = self.corrector.correct(
                observation, state, before.visibility, mirrored=which == 1
            )
        kept = 0.0 if before.detected.any() else config.visibility.kept_motion
        after = assess(
            fit_model, observer, observation, before, state, config.visibility, kept_motion=kept
        )
        if self.refiner is not None:
            moved = self.refiner.refine(
                observation, after.state, after.visibility, mirrored=which == 1
            )
            after = with_fields(after, refinement=moved)
        motion = np.where(seen.before.detected, np.inf, after.motion)
        if self.expression_corrector is not None and is_last_pass(self, number, motion):
            expression = self.expression_corrector.correct(
                observation, after.state, after.visibility, mirrored=which == 1
            )
            after = with_fields(after, expression=expression)
        return seen.join(after)

    def _solve(
        self, number: int, observation: Observation, before: FaceFit, *, followed: bool
    ) -> tuple[FaceFit, FitState]:
        """The states that fit an observation, and the fits that they were refined from."""
        fit_model, config = self.fit_model, self.config
        if followed:
            return before, fit_from_last_frame(
                fit_model, config, observation, before.state, before.visibility
            )
        if number == 0:
            state = fit_from_detection(fit_model, config, observation, before.state)
            if not config.refine_at_once:
                return before, state
            fit = move_fit(fit_model, before, state)
            before = see_meshes(fit_model, fit, config.visibility)
        elif self.pools and number > 1:
            matches = pool(before.matches, observation.matches)
            px = interleave(before.px, observation.px)
            observation = replace(observation, matches=matches, px=px)
        return before, refine(fit_model, config, observation, before.state, before.visibility)

    def _without_match_errors(self, fit: FaceFit) -> FaceFit:
        """The fits without the match errors of the last observation, for another one."""
        coefficients = fit.state.coefficients.copy()
        coefficients[:, len(self.fit_model.modes) - self.errors :] = 0.0
        state = with_fields(fit.state, coefficients=coefficients)
        return with_fields(fit, state=state)

    def early_stop(self, number: int, motion: Floats) -> Bools:
        """(B,) whether each face moves little enough to be done."""
        config = self.config
        # only a followed face has a known motion in its first pass
        return np.asarray(motion <= (config.followed_stop if number == 0 else config.early_stop))


def next_crops(before: FaceFit, number: int, config: AlignConfig) -> Crops:
    """The crops of a pass: first those of the fits, then tighter ones about the faces."""
    if number == 0:
        return before.crops
    landmarks, rotation = before.landmarks, before.state.rotation
    return frame_landmarks(landmarks, rotation, config.later_margin, config.crop)
