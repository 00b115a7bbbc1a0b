"""Faces followed from frame to frame by what changes quickly: pose and expression.

A *keyframe* is a frame in which a face was aligned in full. In the frames after it the network sees
a small crop, and only pose and expression are fitted, about the identity of the keyframe. Fits to
small crops have errors of their own, which hardly change within a second. Therefore the keyframe
itself is fitted in its small crop, too, and a later answer is that of the keyframe, moved by what
changed between the two small fits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment, move_alignment
from dff.aligner.fitting.assessment import measure_agreement
from dff.aligner.fitting.crop import frame_landmarks
from dff.aligner.fitting.fit_model import (
    FitModel,
    FitState,
    add_match_errors,
    build_fit_model_from_modes,
    principal_directions,
    prior_sd,
)
from dff.aligner.fitting.observation import Observation, Observer, describe_landmarks
from dff.aligner.fitting.steps import find_jumped_poses, follow_matches, refine
from dff.aligner.fitting.visibility import compute_visibility
from dff.face.arrays import Array, Bytes, Float, Floats
from dff.face.descriptor import Anchors
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import Rigid, rotation_2d
from dff.face.model.morphable import Coefficients, MorphableModel

CLOCK_ERROR = 1e-6  # seconds: times that differ by less are the same


@dataclass(frozen=True)
class Keyframe:
    """A face that was aligned in full, and its fit in the small crop."""

    face: Alignment
    time: float  # seconds
    # of expression alone, about the identity that the small crop shows
    fit_model: FitModel
    visible: Float[Array, "1 anchors"]  # weights of the anchors
    small: FitState  # the small fit of one face, by ``fit_model``
    agreement: float  # share of the small crop's pixels that agree with the small fit


@dataclass(frozen=True)
class FollowedFace:
    """A face of the last frame."""

    face: Alignment
    keyframe: Keyframe
    small: FitState  # the last small fit


class FaceFollower:
    """Follows faces of one aligner. Threads may share it."""

    def __init__(self, aligner: Aligner) -> None:
        self.aligner, self.config = aligner, aligner.config.following
        self.reporter = aligner.reporter(aligner.fit_model)
        self.side = aligner.config.crop_side(self.config.crop)
        self.fit_model = build_expression_model(aligner, self.config.expressions)
        self.observer = Observer(
            aligner.net,
            aligner.anchors,
            describe_landmarks(aligner.anchors, aligner.fit_model.landmark_mean),
            replace(aligner.config.observation, pixels=self.config.pixels),
        )

    def begin(self, image: Bytes, face: Alignment, time: float) -> FollowedFace | None:
        """Follow a face from here on, which was aligned in this image; None if it can't be."""
        fit_model, config = self.aligner.fit_model, self.aligner.config
        small = fit_model.state_of_alignments([face], config.inverse_depth)
        seen = compute_visibility(fit_model, small, config.visibility)
        observation = self._observe(image, face.landmarks_3d[:, :2], small.rotation)
        if observation is None:
            return None
        for _ in range(self.config.first_fits):
            small = refine(fit_model, config, observation, small, seen)
        anchors = len(self.aligner.anchors.vertex)
        latent = self.fit_model.latent(fit_model.coefficients(small.coefficients[0]))
        shaped = fit_model.anchor_mean + fit_model.double_anchor_basis @ small.coefficients[0]
        mean = (shaped[:anchors] - self.fit_model.anchor_basis @ latent).astype(np.float32)
        keyframe = Keyframe(
            face,
            time,
            replace(self.fit_model, anchor_mean=mean),
            np.ascontiguousarray((seen.anchors * fit_model.anchor_weight)[:, :anchors]),
            replace(small, coefficients=latent[None]),
            1.0,
        )
        small, agreement = self._fit(observation, keyframe, keyframe.small)
        return FollowedFace(face, replace(keyframe, small=small, agreement=agreement), small)

    def follow(self, image: Bytes, before: FollowedFace, time: float) -> FollowedFace | None:
        """The face in the next image; None where it should be aligned in full."""
        key, config = before.keyframe, self.config
        if time - key.time > config.interval - CLOCK_ERROR:
            return None
        landmarks = before.face.landmarks_3d[:, :2]
        observation = self._observe(image, landmarks, before.small.rotation)
        if observation is None:
            return None
        small, agreement = self._fit(observation, key, before.small)
        less, more = sorted((agreement, key.agreement))
        if less < config.least_agreement * more:
            return None
        turned = np.trace(small.rotation[0] @ key.small.rotation[0].T)  # 1 + 2 cosines
        grown = abs(np.log(small.scale[0] / key.small.scale[0]))
        if turned < 1.0 + 2.0 * np.cos(np.deg2rad(config.turned)) or grown > np.log(config.grown):
            return None
        return FollowedFace(self._answer(key, small, before.face), key, small)

    def _observe(self, image: Bytes, landmarks: Floats, rotation: Floats) -> Observation | None:
        """The small crop about (68, 2) landmarks; None where it hardly shows a face."""
        config = self.aligner.config
        crops = frame_landmarks(landmarks[None], rotation, config.later_margin, self.side)
        seen = self.observer.observe([image], crops)
        return seen if seen.matched[0] >= config.observation.fewest else None

    def _fit(self, seen: Observation, key: Keyframe, state: FitState) -> tuple[FitState, float]:
        """The small fit from the last one, and the share of pixels that agree with it."""
        config = self.aligner.config
        state, _ = find_jumped_poses(key.fit_model, config, seen, state, key.visible)
        state = follow_matches(
            key.fit_model,
            seen,
            state,
            key.visible,
            self.config.correspondences,
            observations=config.solver.observations,
        )
        agreement, _ = measure_agreement(key.fit_model, state, seen.matches, seen.px, key.visible)
        return state, float(agreement.sum() / seen.matches.mask.sum())

    def _answer(self, key: Keyframe, small: FitState, last: Alignment) -> Alignment:
        """The keyframe's answer, moved as its small fit has moved to ``small``."""
        first, face, aligner = key.small, key.face, self.aligner
        rotation = small.rotation[0] @ (first.rotation[0].T @ face.cam_from_head.rotation)
        turn = rotation_2d(_roll(small.rotation[0]) - _roll(first.rotation[0]))
        away = (face.camera.centre - first.centre[0]) / first.scale[0]
        camera = replace(
            face.camera,
            scale=float(small.scale[0] / first.scale[0] * face.camera.scale),
            centre=small.centre[0] + small.scale[0] * (turn @ away),
        )
        change = (small.coefficients - first.coefficients)[0, : self.fit_model.moving_modes]
        moved = change.astype(np.float32) @ self.fit_model.mesh_basis[: len(change)]
        vertices = face.vertices + moved.reshape(-1, 3)
        modes = self.fit_model.modes[: len(change), len(aligner.model.identity) :]
        expression = face.coefficients.expression + change @ modes
        coefficients = Coefficients(face.coefficients.identity, expression)
        cam_from_head = Rigid(rotation, face.cam_from_head.translation)
        moved_face = move_alignment(
            face,
            aligner.model,
            aligner.landmark_offsets,
            vertices,
            coefficients,
            cam_from_head,
            camera,
            self.reporter.pose_matrices(rotation[None])[0],
        )
        return replace(moved_face, box=Box.around(last.landmarks_3d[:, :2]), trace=())


def build_expression_model(aligner: Aligner, expressions: int) -> FitModel:
    """A fit model whose latent directions are expressions, and the systematic match errors."""
    model, anchors = aligner.model, aligner.anchors
    modes = expression_modes(model, anchors, expressions)
    fit_model = build_fit_model_from_modes(model, anchors, modes, aligner.config.fit_model)
    return add_match_errors(fit_model, anchors.error_fields, pooled=False)


def expression_modes(model: MorphableModel, anchors: Anchors, count: int) -> Floats:
    """(count, K + E) coefficients of the expressions that move the anchors most under the prior."""
    identities, prior = len(model.identity), prior_sd(model)
    moved = model.expression.astype(np.float64)[:, anchors.vertex].reshape(
        len(model.expression), -1
    )
    directions = principal_directions(moved * prior[identities:, None])[:count]
    none = np.zeros((len(directions), identities))
    return np.concatenate([none, directions * prior[identities:]], axis=1)


def _roll(rotation: Floats) -> float:
    """Radians by which a head is turned in the image plane."""
    return float(np.arctan2(rotation[0, 1], -rotation[1, 1]))
