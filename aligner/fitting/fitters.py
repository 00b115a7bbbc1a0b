"""The dense fitter: one face in one photo, by soft correspondences of its pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.config import AlignConfig
from dff.aligner.detection import Detection
from dff.aligner.fitting.assessment import assess, move_fit, see_meshes
from dff.aligner.fitting.batch import replace_rows, take_rows
from dff.aligner.fitting.correction import Corrector, LinearCorrector
from dff.aligner.fitting.correspondence import interleave, pool
from dff.aligner.fitting.crop import Crops, frame_boxes, frame_faces
from dff.aligner.fitting.face_fit import FaceFit
from dff.aligner.fitting.fit_model import (
    FitModel,
    FitState,
    add_match_errors,
    build_fit_model,
)
from dff.aligner.fitting.observation import (
    MirroredObserver,
    Observation,
    Observer,
    describe_landmarks,
)
from dff.aligner.fitting.steps import fit_from_detection, fit_from_last_frame, refine
from dff.face.arrays import Bools, Bytes, Floats, Ints
from dff.face.descriptor import Anchors, Network
from dff.face.model.morphable import MorphableModel
from dff.face.solve.fit_correction import FitCorrection

Solve = Callable[[Observation, FaceFit, Ints], FitState]
"""From observations of B faces, their fits before, and the rows of their images to new states."""

Correct = Callable[[Observation, FaceFit, FitState], FitState]
"""From observations of B faces, the fits that a pass began from and its states to others."""


class DenseFitter:
    """Fits single faces by soft correspondences; every second pass observes the mirrored photo."""

    def __init__(
        self,
        net: Network,
        anchors: Anchors,
        model: MorphableModel,
        config: AlignConfig,
        correction: FitCorrection | None = None,
    ) -> None:
        """``correction``: of the fits of each pass; none by default."""
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

    def at_crops(self) -> tuple[DenseFitter, ...]:
        """The fitters of ``AlignConfig.averaged_crops``."""
        return tuple(self._with_crop(self._side(share)) for share in self.config.averaged_crops)

    def _side(self, share: float) -> int:
        return max(round(share * self.config.crop / 32), 1) * 32

    def _with_crop(self, side: int) -> DenseFitter:
        other = copy(self)
        other.config = replace(self.config, crop=side, averaged_crops=())
        return other

    def begin(self, detections: Sequence[Detection]) -> FaceFit:
        """Start in the poses of the detections; without a pose, as the upright mean face."""
        fit_model, config = self.fit_model, self.config
        boxes = [detection.box for detection in detections]
        state = fit_model.state_in_boxes(boxes, config.inverse_depth)
        crops = frame_boxes(boxes, config.margin, config.crop)
        for i, detection in enumerate(detections):
            if detection.pose is not None:
                mean_face = replace(
                    detection.pose, coefficients=np.zeros((1, len(fit_model.modes)))
                )
                posed = FitState.of(mean_face, config.inverse_depth)
                turned = frame_faces(fit_model, posed, config.margin, config.crop)
                row = np.array([i])
                state, crops = replace_rows(state, row, posed), replace_rows(crops, row, turned)
        return FaceFit.begin(fit_model, state, crops, config, detected=True)

    def resume(self, faces: Sequence[Alignment]) -> FaceFit:
        """Start in the faces' own poses and shapes."""
        fit_model, config = self.fit_model, self.config
        state = fit_model.state_of_alignments(faces, config.inverse_depth)
        side = self._side(config.followed_crop)
        crops = frame_faces(fit_model, state, config.later_margin, side)
        return FaceFit.begin(fit_model, state, crops, config, detected=False)

    def step(self, number: int, images: Sequence[Bytes], before: FaceFit) -> FaceFit:
        """Observe the photos, pool the matches with the last pass's, and step the states."""
        which = number % len(self.observers)
        crops = next_crops(self.fit_model, before, number, self.config)
        followed = number == 0 and not before.detected.all()
        if followed:
            before = see_meshes(self.fit_model, before, self.config.visibility)
        if number == 1 and len(self.observers) > 1 and not self.pools:
            before = self._without_match_errors(before)

        def solve(observation: Observation, before: FaceFit, rows: Ints) -> FitState:
            if followed:
                return fit_from_last_frame(
                    self.fit_model, self.config, observation, before.state, before.visibility
                )
            if number == 0:
                return fit_from_detection(self.fit_model, self.config, observation, before.state)
            if self.pools and number > 1:
                matches = pool(before.matches, observation.matches)
                px = interleave(before.px, observation.px)
                observation = replace(observation, matches=matches, px=px)
            return refine(self.fit_model, self.config, observation, before.state, before.visibility)

        def solve_again(observation: Observation, before: FaceFit, rows: Ints) -> FitState:
            return refine(self.fit_model, self.config, observation, before.state, before.visibility)

        def correct(observation: Observation, before: FaceFit, state: FitState) -> FitState:
            if self.corrector is None or before.detected.any():  # whose visibility is not known
                return state
            return self.corrector.correct(
                observation, state, before.visibility, mirrored=which == 1
            )

        again = number == 0 and self.config.refine_at_once and not followed
        # where another pass follows, it begins from the visibility of this one
        last = number == self.passes - 1 or followed
        return observe_and_solve(
            self.fit_model,
            self.observers[which],
            self.config,
            images,
            crops,
            before,
            (solve, solve_again) if again else (solve,),
            kept_motion=self.config.visibility.kept_motion if last else 0.0,
            seen_before=followed or number > 0,
            correct=correct,
        )

    def _without_match_errors(self, fit: FaceFit) -> FaceFit:
        """The fits without the match errors of the last observation, for another one."""
        coefficients = fit.state.coefficients.copy()
        coefficients[:, len(self.fit_model.modes) - self.errors :] = 0.0
        return replace(fit, state=replace(fit.state, coefficients=coefficients))

    def early_stop(self, number: int, motion: Floats) -> Bools:
        """(B,) whether each face moves little enough to be done."""
        config = self.config
        # only a followed face has a known motion in its first pass
        return np.asarray(motion <= (config.followed_stop if number == 0 else config.early_stop))


def next_crops(fit_model: FitModel, before: FaceFit, number: int, config: AlignConfig) -> Crops:
    """The crops of a pass: first those of the fits, then tighter ones about the faces."""
    if number == 0:
        return before.crops
    return frame_faces(fit_model, before.state, config.later_margin, config.crop)


def observe_and_solve(
    fit_model: FitModel,
    observer: Observer,
    config: AlignConfig,
    images: Sequence[Bytes],
    crops: Crops,
    before: FaceFit,
    solves: Sequence[Solve],
    *,
    kept_motion: float = 0.0,
    seen_before: bool = False,
    correct: Correct = lambda observation, before, state: state,
) -> FaceFit:
    """One pass over B faces; those with too few matched pixels are lost and keep their states.

    Each of ``solves`` begins from what the one before came to; all see the same observation.
    ``seen_before``: whether ``before`` holds the visibility of its meshes; it stays that of faces
    whose last solution moved them by less than ``kept_motion``. ``correct``: changes that solution.
    """
    observation = observer.observe(images, crops)
    seen = observation.matched >= config.observation.fewest
    after, rows = replace(before, lost=~seen), np.flatnonzero(seen)
    if len(rows) == 0:
        return after
    if not seen.all():  # the maps are large, so they are copied only if necessary
        observation, before = take_rows(observation, rows), before[rows]
    for solve in solves[:-1]:
        between = move_fit(fit_model, before, solve(observation, before, rows))
        before, seen_before = see_meshes(fit_model, between, config.visibility), True
    state = correct(observation, before, solves[-1](observation, before, rows))
    before = assess(
        fit_model,
        observer,
        observation,
        before,
        state,
        config.visibility,
        kept_motion=kept_motion if seen_before else 0.0,
    )
    return before if seen.all() else replace_rows(after, rows, before)
