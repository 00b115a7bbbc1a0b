"""Where annotators put landmarks on faces as an aligner fits them: a ``LandmarkOffsets``, measured
on photos with landmarks.

``dff landmarks`` aligns the training photos of 300-W (split by ``dff.infra.split``; the others
judge). What the labels miss the landmarks by is seen in the image plane alone; many poses together
say which offset in the head's frame explains it, the same on both sides of the face. It holds what
annotators do by habit, and what fits miss in every photo alike. With enough photos also how it
changes with a face's shape, which says where fits go less far than faces do.

The 3D scheme's points are labelled nowhere among these photos. Its inner points are taken to lie as
in the 2D scheme, off vertices of their own; its jaw is measured where both schemes agree, in
frontal views, and only across.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.evaluation.benchmarks import evaluate_300w
from dff.aligner.fitting.loop import FitModel, prior_sd
from dff.face.arrays import Bools, Floats
from dff.face.errors import BadLandmarks
from dff.face.model.landmarks import INNER, JAW, MIRROR, LandmarkOffsets

OTHER_SIDE = np.array([-1.0, 1.0, 1.0])  # a point of the head, mirrored
OUTLIER = 0.006  # metres: labels further off than the others say little
STEPS = 12  # of re-weighting
ACROSS = 0.02  # how strongly offsets are drawn to zero, for each photo: across the face
# and in depth, of which photos that look ahead say little, where faces may be turned further
DEPTH = 0.1
FRONTAL = 20.0  # degrees of yaw within which the two schemes agree about the jaw
UNKNOWN = 10.0  # draws what frontal views cannot tell to zero
# sides of faces, two a photo, that agree before half of what they say of one latent direction is
# believed
SHAPE = 10.0


@dataclass(frozen=True)
class Missed:
    """How far labels lie from the landmarks of N fitted faces, seen in the photos."""

    rows: Floats  # (N, 2, 3) of cam_from_head: right and down in the photo
    away: Floats  # (N, 68, 2) metres in the image plane
    latent: Floats  # (N, P) of the fitted shapes

    def __getitem__(self, faces: Bools) -> Missed:
        return Missed(self.rows[faces], self.away[faces], self.latent[faces])

    @property
    def both_sides(self) -> Floats:
        """(2 N, 2, 3): the rows, and those of the mirrored head."""
        return np.concatenate([self.rows, self.rows * OTHER_SIDE])

    def pair(self, landmark: int) -> Floats:
        """(2 N, 2) metres: of a landmark, and of its counterpart on the other side."""
        return np.concatenate([self.away[:, landmark], self.away[:, MIRROR[landmark]]])


def offsets(missed: Missed, *, depth: float = DEPTH) -> Floats:
    """(68, 3) metres in the head's frame that explain most of what was missed, the same on both
    sides.
    """
    found = np.zeros((68, 3))
    rows = missed.both_sides
    for number in range(68):
        away, twin = missed.pair(number), MIRROR[number]
        at = np.zeros(3)
        for _ in range(STEPS):
            weight = _trust(away - rows @ at)
            normal = np.einsum("n,nij,nik->jk", weight, rows, rows) + weight.sum() * np.diag(
                [ACROSS, ACROSS, depth]
            )
            at = np.linalg.solve(normal, np.einsum("n,nij,ni->j", weight, rows, away))
        found[number] = at if twin != number else at * [0.0, 1.0, 1.0]
    return found


def responses(missed: Missed, offset: Floats, mirrored: Floats, *, shape: float = SHAPE) -> Floats:
    """(68, 3, P) metres by which the landmarks move beside an ``offset`` with each latent direction
    of shape.

    ``mirrored`` (P, P): the latent row of a face, times this, is that of the mirrored face.
    """
    rows = missed.both_sides
    latent = np.concatenate([missed.latent, missed.latent @ mirrored])
    wide = latent.shape[1]
    moves = np.einsum("nij,np->nijp", rows, latent).reshape(2 * len(rows), 3 * wide)
    found = np.zeros((68, 3, wide))
    for number in range(68):
        twin = int(MIRROR[number])
        if twin < number:
            continue
        away = missed.pair(number) - rows @ offset[number]
        weighted = moves * np.repeat(_trust(away), 2)[:, None]
        normal = weighted.T @ moves + shape * np.eye(3 * wide)
        found[number] = np.linalg.solve(normal, weighted.T @ away.ravel()).reshape(3, wide)
        other = OTHER_SIDE[:, None] * (found[number] @ mirrored.T)
        found[twin] = other if twin != number else (found[number] + other) / 2
    return found


def _trust(away: Floats) -> Floats:
    """(N,) Geman-McClure weights of (N, 2) metres."""
    return np.asarray(1.0 / (1.0 + (away**2).sum(1) / OUTLIER**2) ** 2)


def mirrored_latents(fit_model: FitModel) -> Floats:
    """(P, P): the latent row of a face, times this, is nearest to that of the mirrored face."""
    basis = fit_model.mesh_basis.reshape(len(fit_model.modes), -1, 3).astype(np.float64)
    other = basis[:, fit_model.model.mirror] * OTHER_SIDE
    flat, turned = basis.reshape(len(basis), -1), other.reshape(len(basis), -1)
    return np.asarray(np.linalg.solve(flat @ flat.T, flat @ turned.T).T)


def measure_landmark_offsets(
    aligner: Aligner, folders: Sequence[Path | str], *, by_shape: bool
) -> LandmarkOffsets:
    """The habit of the annotators of folders of photos with ``.pts`` files, by the training photos
    among them.

    ``by_shape``: also how it changes with a face's shape. Raises BadLandmarks when a folder has no
    such photos, or none shows its face well enough to be fitted.
    """
    bare, fit_model = aligner.without_landmark_offsets(), aligner.fit_model
    faces = []
    for folder in folders:
        for row in evaluate_300w(str(folder), bare, split="train").rows:
            if row.alignment is not None and not row.alignment.failed:
                faces.append((row.alignment, row.sample.landmarks))
    if not faces:
        raise BadLandmarks("no face could be fitted on the photos")
    rows = np.stack([face.cam_from_head.rotation[:2] for face, _ in faces])
    latent = np.stack([fit_model.latent(face.coefficients) for face, _ in faces])

    def missed(found: list[Floats]) -> Missed:
        away = [
            (label - points) / face.camera.scale
            for (face, label), points in zip(faces, found, strict=True)
        ]
        return Missed(rows, np.stack(away), latent)

    flat = missed([face.landmarks_2d for face, _ in faces])
    offset = np.zeros((2, 68, 3))
    offset[1] = offsets(flat, depth=ACROSS)  # of photos like these
    offset[0, INNER] = offsets(flat)[INNER]
    frontal = np.array([abs(face.pose.yaw) < FRONTAL for face, _ in faces])
    if frontal.any():
        deep = missed([face.landmarks_3d[:, :2] for face, _ in faces])
        offset[0, JAW] = offsets(deep[frontal], depth=UNKNOWN)[JAW]
    if not by_shape:
        return LandmarkOffsets(offset)
    by_latent = np.zeros((2, 68, 3, latent.shape[1]))
    by_latent[1] = responses(flat, offset[1], mirrored_latents(fit_model))
    by_latent[0, INNER] = by_latent[1, INNER]
    # A latent row is the model's coefficients times this, each measured in its own standard
    # deviations.
    return LandmarkOffsets(offset, by_latent @ (fit_model.modes / prior_sd(fit_model.model) ** 2))
