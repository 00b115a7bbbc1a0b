"""Landmark offsets (annotation bias): where annotators place landmarks relative to fitted faces.

``dff fit-landmark-offsets`` aligns the training photos of 300-W (split by
``dff.infra.datasets.split``; the others are for evaluation). One photo shows the difference between
labels and landmarks in the image plane only; many poses together determine the offset in the head's
frame, which is the same on both sides of the face. It includes the bias of the annotators and
systematic errors of the fits. With enough photos, the change of the offset with the face's shape is
fitted too.

None of these photos is labelled in the 3D scheme. Its inner points take the offsets of the 2D
scheme, from vertices of their own. Its jaw is measured in frontal views, where both schemes agree,
and only across the face.

What these offsets leave depends on the pose: the far side of the face, above all its jaw, is
completed by the face model's statistics. Photos of AFLW2000-3D, which show all poses and are
labelled in the 3D scheme, determine it as a polynomial of yaw and pitch, and with it how labelled
poses differ from fitted ones. The same photos can only judge it by cross-validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment, Pose
from dff.aligner.evaluation.benchmarks import Row, evaluate_300w, evaluate_aflw2000, measure_row
from dff.aligner.fitting.batch import take_rows
from dff.aligner.fitting.fit_model import FitModel, prior_sd
from dff.aligner.landmark_placement import place_landmarks
from dff.face.arrays import Array, Bools, Float, Floats, Ints
from dff.face.errors import BadLandmarks
from dff.face.geometry.transform import angles_from_rotation
from dff.face.model.landmark_offsets import (
    MIRRORED_TERMS,
    LandmarkOffsets,
    PoseCorrection,
    UprightPose,
    pose_terms,
)
from dff.face.model.landmarks import INNER, JAW, MIRROR
from dff.face.model.morphable import MorphableModel
from dff.face.solve.robust import robust_weights

OTHER_SIDE = np.array([-1.0, 1.0, 1.0])  # multiplies a point of the head to mirror it


@dataclass(frozen=True)
class OffsetConfig:
    """The robust, regularised least squares of the offsets."""

    outlier: float = 0.006  # metres at which the weight of a label is a quarter
    steps: int = 12  # of re-weighting
    # regularisation of offsets to zero, per photo: across the face, and in depth, which frontal
    # photos hardly determine
    across: float = 0.02
    depth: float = 0.1
    frontal: float = 20.0  # degrees of yaw within which the two schemes agree about the jaw
    unknown: float = 10.0  # draws the depth, which frontal views do not show, to zero
    # sides of faces, two a photo, at which the response to a latent direction is shrunk by half
    shape: float = 10.0
    pose_outlier: float = 0.012  # metres, as ``outlier``, for what depends on the pose
    pose_shrinkage: float = 1.0  # the ridge of each term of the pose, in sides of faces
    turn_outlier: float = 0.12  # radians at which the weight of a labelled pose is a quarter
    pose_share: float = 0.99  # of the photos have a smaller yaw and pitch than is extrapolated from
    folds: int = 10  # of the cross-validation


@dataclass(frozen=True)
class LabelErrors:
    """Differences between labels and the landmarks of N fitted faces, in the image plane."""

    rows: Float[Array, "faces 2 3"]  # of cam_from_head: right and down in the photo
    away: Float[Array, "faces 68 2"]  # metres in the image plane
    latent: Float[Array, "faces modes"]  # of the fitted shapes

    def __getitem__(self, faces: Bools) -> LabelErrors:
        return take_rows(self, faces)

    @property
    def both_sides(self) -> Floats:
        """(2 N, 2, 3): the rows, and those of the mirrored head."""
        return np.concatenate([self.rows, self.rows * OTHER_SIDE])

    def pair(self, landmark: int) -> Floats:
        """(2 N, 2) metres: differences of a landmark, and of its counterpart on the other side."""
        return np.concatenate([self.away[:, landmark], self.away[:, MIRROR[landmark]]])


def fit_offsets(errors: LabelErrors, config: OffsetConfig, *, depth: float | None = None) -> Floats:
    """(68, 3) metres in the head's frame by robust least squares, the same on both sides.

    ``depth``: regularisation of offsets in depth, instead of the configured one.
    """
    prior = np.diag([config.across, config.across, config.depth if depth is None else depth])
    found = np.zeros((68, 3))
    rows = errors.both_sides
    for number in range(68):
        away, opposite = errors.pair(number), MIRROR[number]
        at = np.zeros(3)
        for _ in range(config.steps):
            weight = robust_weights(away - rows @ at, config.outlier)
            normal = np.einsum("n,nij,nik->jk", weight, rows, rows) + weight.sum() * prior
            at = np.linalg.solve(normal, np.einsum("n,nij,ni->j", weight, rows, away))
        found[number] = at if opposite != number else at * [0.0, 1.0, 1.0]
    return found


def fit_responses(
    errors: LabelErrors, offset: Floats, mirrored: Floats, config: OffsetConfig
) -> Floats:
    """(68, 3, P) metres by which landmarks move with each latent direction of shape.

    They are added to the (68, 3) ``offset``. ``mirrored`` (P, P): the latent row of a face, times
    this, is that of the mirrored face.
    """
    rows = errors.both_sides
    latent = np.concatenate([errors.latent, errors.latent @ mirrored])
    wide = latent.shape[1]
    moves = np.einsum("nij,np->nijp", rows, latent).reshape(2 * len(rows), 3 * wide)
    found = np.zeros((68, 3, wide))
    for number in range(68):
        opposite = int(MIRROR[number])
        if opposite < number:
            continue
        away = errors.pair(number) - rows @ offset[number]
        weighted = moves * np.repeat(robust_weights(away, config.outlier), 2)[:, None]
        normal = weighted.T @ moves + config.shape * np.eye(3 * wide)
        found[number] = np.linalg.solve(normal, weighted.T @ away.ravel()).reshape(3, wide)
        other = OTHER_SIDE[:, None] * (found[number] @ mirrored.T)
        found[opposite] = other if opposite != number else (found[number] + other) / 2
    return found


@dataclass(frozen=True)
class AnnotationBias:
    """Measurements of annotators: their landmark positions and their poses."""

    landmarks: LandmarkOffsets
    pose: PoseCorrection


@dataclass(frozen=True)
class BiasTerms:
    """What a bias depends on linearly, of N faces and of these faces mirrored."""

    plain: Float[Array, "faces terms"]
    mirrored: Float[Array, "faces terms"]
    shrinkage: Float[Array, " terms"]  # the ridge of each, in sides of faces, two a photo

    @staticmethod
    def of_pose(pose: UprightPose, limit: Floats, config: OffsetConfig) -> BiasTerms:
        """``pose_terms``; ``limit``: as theirs."""
        terms = pose_terms(pose, limit)
        shrinkage = np.full(terms.shape[1], config.pose_shrinkage)
        return BiasTerms(terms, terms * MIRRORED_TERMS, shrinkage)

    @staticmethod
    def of_shape(
        faces: Sequence[Alignment], fit_model: FitModel, config: OffsetConfig
    ) -> BiasTerms:
        """The latent coefficients of the faces' shapes in ``fit_model``."""
        latent = np.stack([fit_model.latent(face.coefficients) for face in faces])
        shrinkage = np.full(latent.shape[1], config.shape)
        return BiasTerms(latent, latent @ fit_model.mirrored_latents, shrinkage)

    def beside(self, other: BiasTerms) -> BiasTerms:
        """These terms, then the ``other`` ones of the same faces."""
        return BiasTerms(
            np.hstack([self.plain, other.plain]),
            np.hstack([self.mirrored, other.mirrored]),
            np.concatenate([self.shrinkage, other.shrinkage]),
        )


def fit_bias_terms(
    terms: BiasTerms, away: Floats, mirrored: Floats, *, outlier: float, steps: int
) -> Floats:
    """(L, T, D) coefficients of N faces' ``terms`` that explain (N, L, D) ``away``.

    ``mirrored``: ``away`` of the mirrored faces. Robust ridge regression, in which every face
    counts with its mirror image, where ``away`` is not NaN. ``outlier``: the length at which the
    weight is a quarter; ``steps``: of re-weighting.
    """
    both = np.concatenate([terms.plain, terms.mirrored])
    target = np.concatenate([away, mirrored])
    known = np.asarray(np.isfinite(target).all(2), np.float64)
    target = np.where(known[..., None] > 0, target, 0.0)
    weight: Floats = known
    ridge = np.diag(terms.shrinkage)
    found = np.zeros((away.shape[1], both.shape[1], away.shape[2]))
    for _ in range(steps):
        weighted = weight.T[:, :, None] * both
        normal = both.T @ weighted + ridge
        found = np.linalg.solve(normal, weighted.transpose(0, 2, 1) @ target.transpose(1, 0, 2))
        left = target - (both @ found).transpose(1, 0, 2)
        weight = known * robust_weights(left, outlier)
    return found


def measure_pose_limit(pose: UprightPose, share: float) -> Floats:
    """(2,) degrees that the yaw and the pitch of a ``share`` of the faces don't exceed."""
    return np.asarray(np.quantile(np.abs([pose.yaw, pose.pitch]), share, axis=1))


def fit_landmarks_by_pose(
    faces: Sequence[Alignment],
    found: Floats,
    labels: Floats,
    config: OffsetConfig,
    *,
    mirror: Ints = MIRROR,
    shape: BiasTerms | None = None,
) -> tuple[Floats, Floats]:
    """(L, T, 2) metres for each term of the pose, and the (2,) limit of the poses in degrees.

    They move the (N, L, 2) pixels ``found`` of N faces to the ``labels``, NaN where there is none.
    ``mirror``: the counterpart of each point on the other side. ``shape``: further terms, whose
    metres follow those of the pose.
    """
    pose = UprightPose.of(np.stack([face.cam_from_head.rotation for face in faces]))
    limit = measure_pose_limit(pose, config.pose_share)
    scale = np.array([face.camera.scale for face in faces])[:, None, None]
    away = np.einsum("nij,nlj->nli", pose.upright, (labels - found) / scale)
    mirrored = away[:, mirror] * OTHER_SIDE[:2]
    terms = BiasTerms.of_pose(pose, limit, config)
    terms = terms if shape is None else terms.beside(shape)
    found = fit_bias_terms(terms, away, mirrored, outlier=config.pose_outlier, steps=config.steps)
    return found, limit


def fit_pose_correction(
    faces: Sequence[Alignment], labels: Floats, config: OffsetConfig
) -> PoseCorrection:
    """The rotations from the poses of N faces, not yet corrected, to the (N, 3, 3) labels."""
    pose = UprightPose.of(np.stack([face.cam_from_head.rotation for face in faces]))
    limit = measure_pose_limit(pose, config.pose_share)
    turns = np.stack(
        [face.pose.matrix.T @ label for face, label in zip(faces, labels, strict=True)]
    )
    away = Rotation.from_matrix(turns).as_rotvec()[:, None]
    found = fit_bias_terms(
        BiasTerms.of_pose(pose, limit, config),
        away,
        away * -OTHER_SIDE,
        outlier=config.turn_outlier,
        steps=config.steps,
    )
    return PoseCorrection(found[0], limit)


def fit_bias_by_pose(
    rows: Sequence[Row], model: MorphableModel, offsets: LandmarkOffsets, config: OffsetConfig
) -> AnnotationBias:
    """``offsets`` and what they leave in the 3D scheme, by pose; the correction of the pose.

    ``rows``: photos of AFLW2000-3D, aligned without offsets and correction.
    """
    faces, labels, rotations = zip(*map(_labelled_face, rows), strict=True)
    found = np.stack([place_face(model, offsets, face).landmarks_3d[:, :2] for face in faces])
    by_pose, limit = offsets.by_pose.copy(), offsets.pose_limit.copy()
    by_pose[0], limit[0] = fit_landmarks_by_pose(faces, found, np.stack(labels), config)
    return AnnotationBias(
        replace(offsets, by_pose=by_pose, pose_limit=limit),
        fit_pose_correction(faces, np.stack(rotations), config),
    )


def cross_validate(
    rows: Sequence[Row], model: MorphableModel, offsets: LandmarkOffsets, config: OffsetConfig
) -> list[Row]:
    """The ``rows`` with the bias by pose that was fitted to the others, in ``folds`` parts."""
    out: dict[int, Row] = {}
    for fold in range(min(config.folds, len(rows))):
        rest = [row for i, row in enumerate(rows) if i % config.folds != fold]
        bias = fit_bias_by_pose(rest, model, offsets, config)
        for i in range(fold, len(rows), config.folds):
            face = _with_bias(_labelled_face(rows[i])[0], model, bias)
            out[i] = measure_row(rows[i].sample, [face], "nme_box")
    return [out[i] for i in range(len(rows))]


def _labelled_face(row: Row) -> tuple[Alignment, Floats, Floats]:
    """Face, landmarks and pose of a photo that has them."""
    assert row.alignment is not None
    assert row.sample.rotation is not None
    return row.alignment, row.sample.landmarks, row.sample.rotation


def place_face(model: MorphableModel, offsets: LandmarkOffsets, face: Alignment) -> Alignment:
    """``face`` with its landmarks at these offsets from its mesh."""
    flat, deep = place_landmarks(
        model,
        offsets,
        face.vertices[model.landmarks.used],
        offsets.in_head(face.coefficients.joined),
        face.cam_from_head,
        face.camera,
        face.refinement,
    )
    return replace(face, landmarks_2d=flat, landmarks_3d=deep)


def _with_bias(face: Alignment, model: MorphableModel, bias: AnnotationBias) -> Alignment:
    matrix = bias.pose.corrected(face.pose.matrix, face.cam_from_head.rotation)
    pose = Pose(*angles_from_rotation(matrix), matrix)
    return replace(place_face(model, bias.landmarks, face), pose=pose)


def align_labelled_poses(
    aligner: Aligner, folders: Sequence[Path | str], labels: Sequence[Path | str]
) -> list[Row]:
    """The photos of folders of AFLW2000-3D whose face was fitted, without the bias.

    ``labels``: the reannotated landmarks of each folder. Raises as ``evaluate_aflw2000``, and
    BadLandmarks when no face can be fitted.
    """
    raw = aligner.without_annotation_bias()
    found = [
        row
        for folder, file in zip(folders, labels, strict=True)
        for row in evaluate_aflw2000(str(folder), raw, labels=file).rows
        if row.alignment is not None and not row.alignment.failed
    ]
    if folders and not found:
        raise BadLandmarks("no face could be fitted on the photos")
    return found


def align_training_photos(
    aligner: Aligner, folders: Sequence[Path | str]
) -> tuple[list[Alignment], Floats]:
    """N faces, without the bias, and their (N, 68, 2) labels.

    Of the training photos, of folders with ``.pts`` files, whose face was fitted. Raises
    BadLandmarks when a folder has no such photos, or none of its faces can be fitted.
    """
    raw = aligner.without_annotation_bias()
    faces, labels = [], []
    for folder in folders:
        for row in evaluate_300w(str(folder), raw, split="train").rows:
            if row.alignment is not None and not row.alignment.failed:
                faces.append(row.alignment)
                labels.append(row.sample.landmarks)
    if not faces:
        raise BadLandmarks("no face could be fitted on the photos")
    return faces, np.stack(labels)


def fit_landmark_offsets(
    aligner: Aligner,
    faces: Sequence[Alignment],
    labels: Floats,
    *,
    by_shape: bool,
    config: OffsetConfig | None = None,
) -> LandmarkOffsets:
    """The offsets of N faces, without the bias, to their (N, 68, 2) labels in the 2D scheme.

    The 2D scheme's depend on the pose. ``by_shape``: they also change with a face's shape.
    """
    config = config or OffsetConfig()
    offsets = fit_offsets_in_head(faces, labels, aligner.fit_model, by_shape, config)
    found = np.stack([place_face(aligner.model, offsets, face).landmarks_2d for face in faces])
    by_pose, limit = offsets.by_pose.copy(), offsets.pose_limit.copy()
    by_pose[1], limit[1] = fit_landmarks_by_pose(faces, found, labels, config)
    return replace(offsets, by_pose=by_pose, pose_limit=limit)


def fit_offsets_in_head(
    faces: Sequence[Alignment],
    labels: Floats,
    fit_model: FitModel,
    by_shape: bool,
    config: OffsetConfig,
) -> LandmarkOffsets:
    """The offsets of both schemes that do not depend on the pose, from (N, 68, 2) 2D ``labels``."""
    rows = np.stack([face.cam_from_head.rotation[:2] for face in faces])
    latent = np.stack([fit_model.latent(face.coefficients) for face in faces])
    scale = np.array([face.camera.scale for face in faces])[:, None, None]
    placed = np.stack([face.landmarks_2d for face in faces])
    flat = LabelErrors(rows, (labels - placed) / scale, latent)
    offset = np.zeros((2, 68, 3))
    offset[1] = fit_offsets(flat, config, depth=config.across)  # of photos like these
    offset[0, INNER] = fit_offsets(flat, config)[INNER]
    frontal = np.array([abs(face.pose.yaw) < config.frontal for face in faces])
    if frontal.any():
        placed = np.stack([face.landmarks_3d[:, :2] for face in faces])
        deep = LabelErrors(rows, (labels - placed) / scale, latent)
        offset[0, JAW] = fit_offsets(deep[frontal], config, depth=config.unknown)[JAW]
    if not by_shape:
        return LandmarkOffsets(offset)
    by_latent = np.zeros((2, 68, 3, latent.shape[1]))
    by_latent[1] = fit_responses(flat, offset[1], fit_model.mirrored_latents, config)
    by_latent[0, INNER] = by_latent[1, INNER]
    return LandmarkOffsets(offset, by_latent @ latent_from_coefficients(fit_model))


def latent_from_coefficients(fit_model: FitModel) -> Floats:
    """(P, C): a face's latent row is this times its model's coefficients.

    Each of these is measured in its own standard deviations.
    """
    return np.asarray(fit_model.modes / prior_sd(fit_model.model) ** 2)
