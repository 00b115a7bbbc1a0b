"""Landmark offsets (annotation bias): where annotators place landmarks relative to fitted faces.

``dff fit-landmark-offsets`` aligns the training photos of 300-W (split by ``dff.infra.split``; the
others are for evaluation). One photo shows the difference between labels and landmarks in the image
plane only; many poses together determine the offset in the head's frame, which is the same on both
sides of the face. It includes the bias of the annotators and systematic errors of the fits. With
enough photos, the change of the offset with the face's shape is fitted too.

None of these photos is labelled in the 3D scheme. Its inner points take the offsets of the 2D
scheme, from vertices of their own. Its jaw is measured in frontal views, where both schemes agree,
and only across the face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.evaluation.benchmarks import evaluate_300w
from dff.aligner.fitting.batch import take_rows
from dff.aligner.fitting.fit_model import FitModel, prior_sd
from dff.face.arrays import Array, Bools, Float, Floats
from dff.face.errors import BadLandmarks
from dff.face.model.landmarks import INNER, JAW, MIRROR, LandmarkOffsets
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


def mirrored_latents(fit_model: FitModel) -> Floats:
    """(P, P) matrix: a face's latent row times it is nearest to that of the mirrored face."""
    basis = fit_model.mesh_basis.reshape(len(fit_model.modes), -1, 3).astype(np.float64)
    other = basis[:, fit_model.model.mirror] * OTHER_SIDE
    flat, turned = basis.reshape(len(basis), -1), other.reshape(len(basis), -1)
    return np.asarray(np.linalg.solve(flat @ flat.T, flat @ turned.T).T)


def measure_landmark_offsets(
    aligner: Aligner,
    folders: Sequence[Path | str],
    *,
    by_shape: bool,
    config: OffsetConfig | None = None,
) -> LandmarkOffsets:
    """The offsets of folders of photos with ``.pts`` files, fitted to their training photos.

    ``by_shape``: also fit how they change with a face's shape. Raises BadLandmarks when a folder
    has no such photos, or none of its faces can be fitted.
    """
    raw, fit_model = aligner.without_landmark_offsets(), aligner.fit_model
    config = config or OffsetConfig()
    faces = []
    for folder in folders:
        for row in evaluate_300w(str(folder), raw, split="train").rows:
            if row.alignment is not None and not row.alignment.failed:
                faces.append((row.alignment, row.sample.landmarks))
    if not faces:
        raise BadLandmarks("no face could be fitted on the photos")
    rows = np.stack([face.cam_from_head.rotation[:2] for face, _ in faces])
    latent = np.stack([fit_model.latent(face.coefficients) for face, _ in faces])

    def label_errors(found: list[Floats]) -> LabelErrors:
        away = [
            (label - points) / face.camera.scale
            for (face, label), points in zip(faces, found, strict=True)
        ]
        return LabelErrors(rows, np.stack(away), latent)

    flat = label_errors([face.landmarks_2d for face, _ in faces])
    offset = np.zeros((2, 68, 3))
    offset[1] = fit_offsets(flat, config, depth=config.across)  # of photos like these
    offset[0, INNER] = fit_offsets(flat, config)[INNER]
    frontal = np.array([abs(face.pose.yaw) < config.frontal for face, _ in faces])
    if frontal.any():
        deep = label_errors([face.landmarks_3d[:, :2] for face, _ in faces])
        offset[0, JAW] = fit_offsets(deep[frontal], config, depth=config.unknown)[JAW]
    if not by_shape:
        return LandmarkOffsets(offset)
    by_latent = np.zeros((2, 68, 3, latent.shape[1]))
    by_latent[1] = fit_responses(flat, offset[1], mirrored_latents(fit_model), config)
    by_latent[0, INNER] = by_latent[1, INNER]
    # A latent row is the model's coefficients times this, each measured in its own standard
    # deviations.
    return LandmarkOffsets(offset, by_latent @ (fit_model.modes / prior_sd(fit_model.model) ** 2))
