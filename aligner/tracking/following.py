"""Faces followed from frame to frame by what changes quickly: pose and expression.

A *keyframe* is a frame in which a face was aligned in full. In the frames after it the network sees
a small crop, and only pose and expression are fitted, about the identity of the keyframe. Fits to
small crops have errors of their own, which hardly change within a second. Therefore the keyframe
itself is fitted in its small crop, too, and a later answer is that of the keyframe, moved by what
changed between the two small fits. Lids move few pixels, which hardly move a fit. They are moved by
what has changed in the correction of expressions between the two crops. A small crop shows less of
lids than a full alignment. Where closed eyes open, and with ``balanced`` where open ones close, the
face is aligned in full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numba
import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment, Pose
from dff.aligner.fitting import kernels
from dff.aligner.fitting.assessment import AGREEMENT, GATE
from dff.aligner.fitting.batch import with_fields
from dff.aligner.fitting.crop import Crops, frame_landmarks
from dff.aligner.fitting.expressions import EyeReader, find_blinks
from dff.aligner.fitting.fit_model import (
    FitModel,
    FitState,
    add_match_errors,
    build_fit_model_from_modes,
    principal_directions,
    prior_sd,
)
from dff.aligner.fitting.observation import (
    MatchedPixels,
    SparseObservation,
    SparseObserver,
    describe_landmarks,
)
from dff.aligner.fitting.steps import refine
from dff.aligner.fitting.visibility import compute_visibility
from dff.aligner.landmark_placement import move_alignment, place_landmarks
from dff.face.arrays import Array, Bytes, Float, Floats
from dff.face.descriptor import Anchors
from dff.face.fused_network import SparseFeatures
from dff.face.geometry.camera import Box, NearPerspective
from dff.face.geometry.transform import Rigid
from dff.face.model.landmark_offsets import LandmarkOffsets
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.numba_cache import CACHE
from dff.face.solve.expression_correction import EYE_CORNERS

CLOCK_ERROR = 1e-6  # seconds: times that differ by less are the same


@dataclass(frozen=True)
class Keyframe:
    """A face that was aligned in full, and its fit in the small crop."""

    face: Alignment
    table: Float[Array, " numbers"]  # of its landmarks, as the columns of ``landmark_basis``
    time: float  # seconds
    until: float  # seconds: from then on the face is aligned in full
    # of expression alone, about the identity that the small crop shows
    fit_model: FitModel
    visible: Float[Array, "1 anchors"]  # weights of the anchors: those that can be seen
    observer: SparseObserver  # of these
    small: FitState  # the small fit of one face, by ``fit_model``
    agreement: float  # share of the small crop's pixels that agree with the small fit
    lids: Float[Array, " lids"]  # what ``EyeReader`` reads in the small crop
    closed: float  # mean activation of both lids where the eyes are closed, or 0


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
        self.blinks = find_blinks(aligner.model.expression_names)
        self.fit_model = build_expression_model(aligner, self.config.expressions)
        self.eyes: EyeReader | None = None
        if aligner.expression_correction is not None:
            self.eyes = EyeReader(aligner.expression_correction)
        self.landmark_descriptor = describe_landmarks(
            aligner.anchors, aligner.fit_model.landmark_mean
        )
        self.motions = build_motions(self.fit_model, self.eyes, aligner.landmark_offsets)
        # the mean activation of the blinks, of what the reader reads
        units = np.zeros(0, np.int64) if self.eyes is None else self.eyes.units
        self.mean_blink = np.isin(units, self.blinks) / max(len(self.blinks), 1)
        self.corners = aligner.model.landmarks.among_used.vertex[list(EYE_CORNERS)]
        self.observer = self._observer(aligner.anchors)
        solver, correspondences = aligner.config.solver, self.config.correspondences
        # settings of ``follow_faces``
        self.fitting = (
            np.array(solver.pose_noise),
            solver.still_reach,
            solver.still,
            np.array([one.gate for one in correspondences]),
            np.array([one.noise for one in correspondences]),
            solver.observations,
            GATE,
            AGREEMENT,
        )

    def _observer(self, anchors: Anchors) -> SparseObserver:
        """Observes small crops, and matches them to these anchors."""
        return SparseObserver(
            self.aligner.net,
            anchors,
            self.landmark_descriptor,
            replace(self.aligner.config.observation, pixels=self.config.pixels),
        )

    def begin(
        self, image: Bytes, face: Alignment, time: float, *, first: bool = False
    ) -> FollowedFace | None:
        """Follow a face from here on, which was aligned in this image; None if it can't be.

        ``first``: no frame before showed the face, so an unsure alignment is soon repeated.
        """
        fit_model, config = self.aligner.fit_model, self.aligner.config
        small = fit_model.state_of_alignments([face], config.inverse_depth)
        seen = compute_visibility(fit_model, small, config.visibility)
        crops = self._crops(face.landmarks_3d, small.rotation)
        observation = self.observer.observe([image], crops)
        if not self._shows_face(observation):
            return None
        for _ in range(self.config.first_fits):
            small = refine(fit_model, config, observation, small, seen)
        anchors = len(self.aligner.anchors.vertex)
        latent = self.fit_model.latent(fit_model.coefficients(small.coefficients[0]))
        shaped = _shape_anchors(fit_model, small.coefficients[0], anchors)
        mean = (fit_model.anchor_mean[:anchors] + shaped) - _shape_anchors(
            self.fit_model, latent, anchors
        )
        weight = (seen.anchors * fit_model.anchor_weight)[:, :anchors]
        rows = np.flatnonzero(weight[0] > self.config.least_weight)
        observer = self._observer(self.aligner.anchors[rows])
        table = self._landmark_table(face)
        features = SparseFeatures.of(
            observation.descriptor[0].transpose(1, 2, 0), observation.face_logit[0]
        )
        keyframe = Keyframe(
            face,
            table,
            time,
            time + self._interval(face, first=first),
            self.fit_model.with_anchors(rows, mean[rows].astype(np.float32)),
            np.ascontiguousarray(weight[:, rows]),
            observer,
            replace(small, coefficients=latent[None]),
            1.0,
            self._read_lids(features, crops, table, face.cam_from_head, face.camera),
            self._closed(face),
        )
        matches = observer.match(observation.descriptor, observation.face_logit)
        observation = replace(observation, matches=matches)
        small, agreement = self._fit(observation, keyframe, keyframe.small)
        return FollowedFace(face, replace(keyframe, small=small, agreement=agreement), small)

    def follow(self, image: Bytes, before: FollowedFace, time: float) -> FollowedFace | None:
        """The face in the next image; None where it should be aligned in full."""
        key, config = before.keyframe, self.config
        if time > key.until - CLOCK_ERROR:
            return None
        landmarks = before.face.landmarks_3d
        crops = self._crops(landmarks, before.small.rotation)
        seen = key.observer.observe_matches(image, crops)
        if not self._shows_face(seen):
            return None
        small, agreement = self._fit(seen, key, before.small)
        less, more = sorted((agreement, key.agreement))
        if less < config.least_agreement * more:
            return None
        turned = np.vdot(small.rotation[0], key.small.rotation[0])  # 1 + 2 cosines
        grown = abs(math.log(small.scale[0] / key.small.scale[0]))
        least = 1.0 + 2.0 * math.cos(math.radians(config.turned))
        if turned < least or grown > math.log(config.grown):
            return None
        face = self._answer(key, small, before.face, seen)
        return None if face is None else FollowedFace(face, key, small)

    def _interval(self, face: Alignment, *, first: bool) -> float:
        """Seconds for which a face is followed at most."""
        config, out = self.config, self.config.interval
        if first and face.face_confidence < config.unsure:
            out = min(config.first_interval, out)
        if self._closed(face) >= config.fully_closed:
            out = min(config.closed_interval, out)
        return out

    def _closed(self, face: Alignment) -> float:
        """The mean activation of both lids where they are closed, or 0."""
        if not self.blinks:
            return 0.0
        mean = float(face.coefficients.expression[self.blinks].mean())
        return mean if mean >= self.config.closed_eyes else 0.0

    def _crops(self, landmarks: Floats, rotation: Floats) -> Crops:
        """The small crop about (68, 3) landmarks of a head that is turned by ``rotation``."""
        return frame_landmarks(landmarks[None], rotation, self.config.margin, self.side)

    def _shows_face(self, seen: MatchedPixels) -> bool:
        """Whether a small crop shows enough of a face."""
        matched = np.count_nonzero(seen.matches.mask[0])  # a third of the time of ``seen.matched``
        return bool(matched >= self.aligner.config.observation.fewest)

    def _fit(self, seen: MatchedPixels, key: Keyframe, state: FitState) -> tuple[FitState, float]:
        """The small fit from the last one, and the share of pixels that agree with it."""
        matches, fit_model, state = seen.matches, key.fit_model, state.copied()
        agreement = kernels.follow_faces(
            matches.anchor,
            matches.probability,
            matches.mask,
            seen.px,
            key.visible,
            fit_model.anchor_mean,
            fit_model.anchor_basis,
            fit_model.size,
            *self.fitting,
            state.scale,
            state.rotation,
            state.centre,
            state.coefficients,
            state.inverse_depth,
        )
        return state, float(agreement.sum() / matches.mask.sum())

    def _answer(
        self, key: Keyframe, small: FitState, last: Alignment, seen: SparseObservation
    ) -> Alignment | None:
        """The keyframe's answer, moved as its small fit has moved to ``small``, and its lids.

        None where these have moved so far that the small crop is no longer sure of them.
        """
        first, face, aligner = key.small, key.face, self.aligner
        rotation, centre = np.empty((3, 3)), np.empty(2)
        scale = _move_pose(
            first.rotation[0],
            first.scale[0],
            first.centre[0],
            small.rotation[0],
            small.scale[0],
            small.centre[0],
            face.cam_from_head.rotation,
            face.camera.scale,
            face.camera.centre,
            rotation,
            centre,
        )
        # what is made of valid values is valid
        cam_from_head = with_fields(face.cam_from_head, rotation=rotation)
        camera = with_fields(face.camera, scale=scale, centre=centre)
        motions, modes = self.motions, self.fit_model.moving_modes
        change = (small.coefficients - first.coefficients)[0, :modes]
        table = key.table + change.astype(np.float32) @ motions.landmarks[:modes]
        lids = self._read_lids(seen.features, seen.crops, table, cam_from_head, camera) - key.lids
        lids += change @ motions.lids
        closing = float(lids @ self.mean_blink)
        if key.closed and closing < 0.0:
            if closing < -self.config.opening * key.closed:
                return None
            lids[:] = 0.0
        # a frame later where the last one was aligned in full: that alone is no failure to follow
        elif not key.closed and closing > self.config.closing and last is not face:
            return None
        table += lids.astype(np.float32) @ motions.landmarks[modes:]
        used = self.fit_model.used_basis.shape[1]
        landmarks = place_landmarks(
            aligner.model,
            aligner.landmark_offsets,
            table[:used].reshape(-1, 3),
            table[used:].reshape(2, 68, 3),
            cam_from_head,
            camera,
            face.refinement,
        )
        return move_alignment(
            face,
            partial(self._mesh, face, change, lids),
            landmarks,
            partial(self._coefficients, face, change, lids),
            cam_from_head,
            camera,
            partial(self._pose, rotation),
            box=partial(Box.around, last.landmarks_3d[:, :2]),
            trace=(),
        )

    def _read_lids(
        self,
        features: SparseFeatures,
        crops: Crops,
        table: Floats,
        cam_from_head: Rigid,
        camera: NearPerspective,
    ) -> Floats:
        """(N,) what ``EyeReader`` reads of a face with the numbers ``table``; without one, none."""
        if self.eyes is None:
            return np.zeros(0)
        used = self.fit_model.used_basis.shape[1]
        corners = table[:used].reshape(-1, 3)[self.corners]
        return self.eyes.read(features, crops, corners, cam_from_head, camera)

    def _landmark_table(self, face: Alignment) -> Floats:
        """The numbers of a face on which its landmarks depend, as columns of the ``motions``."""
        points = face.vertices[self.aligner.model.landmarks.used]
        in_head = self.aligner.landmark_offsets.in_head(face.coefficients.joined)
        return np.concatenate([points.ravel(), in_head.ravel()])

    def _pose(self, rotation: Floats) -> Pose:
        """The answered pose of a head whose ``cam_from_head`` is ``rotation``."""
        return Pose.of(self.reporter.pose_matrices(rotation[None])[0])

    def _coefficients(self, face: Alignment, change: Floats, lids: Floats) -> Coefficients:
        """The coefficients of a keyframe's face, moved by ``motions``."""
        moved = np.concatenate([change, lids]) @ self.motions.expression
        return Coefficients(face.coefficients.identity, face.coefficients.expression + moved)

    def _mesh(self, face: Alignment, change: Floats, lids: Floats) -> Floats:
        """(V, 3) metres in the head frame: the mesh of a keyframe's face, moved by ``motions``."""
        moved = np.concatenate([change, lids]).astype(np.float32) @ self.motions.mesh
        return np.asarray(face.vertices + moved.reshape(-1, 3))


def _shape_anchors(fit_model: FitModel, latent: Floats, count: int) -> Floats:
    """(count, 3) metres in head: the first anchors moved by latent coefficients from their mean."""
    basis = fit_model.double_anchor_basis[:count]
    return np.asarray(basis.reshape(3 * count, -1) @ latent).reshape(count, 3)


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


@dataclass(frozen=True)
class Motions:
    """How a followed face moves: by M rows, latent directions of expression, then lids."""

    expression: Float[Array, "motions expressions"]  # activations
    mesh: Float[Array, "motions vertexcoordinates"]  # metres, float32
    # float32, of the numbers that landmarks depend on: coordinates of the vertices that
    # ``LandmarkTable.used`` names, then ``in_head`` of the offsets
    landmarks: Float[Array, "motions numbers"]
    lids: Float[Array, "modes lids"]  # what lids lack for each latent direction, by ``EyeReader``


def build_motions(
    fit_model: FitModel, eyes: EyeReader | None, landmark_offsets: LandmarkOffsets
) -> Motions:
    """The motions of a fit model's expressions, and of the lids that ``eyes`` read, if any."""
    model, count = fit_model.model, fit_model.moving_modes
    modes = fit_model.modes[:count, len(model.identity) :]
    units = np.zeros(0, np.int64) if eyes is None else eyes.units
    expression = np.concatenate([modes, np.eye(len(model.expression))[units]])
    used = np.concatenate([fit_model.used_basis, fit_model.used_expression_basis[units]])
    vertices = model.expression[units].reshape(len(units), model.template.size)
    response = landmark_offsets.response
    in_head = np.zeros((len(expression), landmark_offsets.offset.size))
    if response.shape[3]:
        of_expression = response.reshape(-1, response.shape[3])[:, len(model.identity) :]
        in_head = expression @ of_expression.T
    return Motions(
        expression,
        np.concatenate([fit_model.mesh_basis[:count], vertices.astype(np.float32)]),
        np.concatenate([used, in_head.astype(np.float32)], axis=1),
        np.zeros((count, 0)) if eyes is None else modes @ eyes.fitted,
    )


@numba.njit(cache=CACHE, nogil=True)
def _move_pose(  # type: ignore[no-untyped-def]
    first_rotation,
    first_scale,
    first_centre,
    rotation,
    scale,
    centre,
    face_rotation,
    face_scale,
    face_centre,
    new_rotation,
    new_centre,
):
    """Move a face's pose as another one, the ``first``, has moved; returns its scale.

    Fills (3, 3) ``new_rotation`` and (2,) ``new_centre``.
    """
    for r in range(3):
        for c in range(3):
            new_rotation[r, c] = 0.0
            for k in range(3):
                turned = 0.0
                for m in range(3):
                    turned += first_rotation[m, k] * face_rotation[m, c]
                new_rotation[r, c] += rotation[r, k] * turned
    roll = np.arctan2(rotation[0, 1], -rotation[1, 1])
    roll -= np.arctan2(first_rotation[0, 1], -first_rotation[1, 1])
    cos, sin = scale * np.cos(roll), scale * np.sin(roll)
    x = (face_centre[0] - first_centre[0]) / first_scale
    y = (face_centre[1] - first_centre[1]) / first_scale
    new_centre[0] = centre[0] + cos * x - sin * y
    new_centre[1] = centre[1] + sin * x + cos * y
    return scale / first_scale * face_scale
