"""Accuracy on AFLW's points, which people placed where they saw them.

Crops of AFLW (Koestinger et al. 2011) with 21 points, of which people marked the visible ones. The
error of a face is the mean over these, without ears, over ``sqrt(width * height)`` of their box; a
face needs two of them. The unmarked ones measure the aligner's ``visibility``.

The points are those of the landmark set ``aflw21``: with its bias, or the places on the fitted mesh
that come nearest to them. ``fit_point_bias`` measures the bias on such crops.
"""

from __future__ import annotations

import io
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from scipy.special import expit

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.evaluation.benchmarks import CHUNK, YAW_BINS
from dff.aligner.evaluation.landmark_offsets import (
    OTHER_SIDE,
    BiasTerms,
    OffsetConfig,
    fit_landmarks_by_pose,
    latent_from_coefficients,
)
from dff.aligner.fitting.fit_model import FitModel
from dff.aligner.landmark_sets import LandmarkSet, PointBias, load_landmark_sets, log_odds
from dff.face.arrays import Array, Bytes, Float, Floats, Ints
from dff.face.errors import BadLandmarks, BadPhoto
from dff.face.extras import require_extra
from dff.face.geometry.camera import Box
from dff.face.model.landmark_offsets import MIRRORED_TERMS, TERMS, UprightPose, pose_terms
from dff.face.model.morphable import MorphableModel
from dff.infra.photos.images import decode
from dff.infra.storage import Storage, open_storage

with require_extra("train"):
    from sklearn.metrics import roc_auc_score

LABELS = "labels.npz"
SET = "aflw21"
RIDGE = 1.0  # of the weights of ``PointBias.visible``
STEPS = 25  # of Newton's method, which needs about ten


@dataclass(frozen=True)
class AflwCrops:
    """The geometry of the crops of AFLW."""

    box: Box  # of the face in a crop
    side: int  # px


@cache
def load_aflw_crops() -> AflwCrops:
    """The crops of ``data/aflw21.toml``."""
    table = tomllib.loads((files("dff.aligner.evaluation") / "data/aflw21.toml").read_text())
    return AflwCrops(Box(*table["box"]), table["crop"])


@dataclass(frozen=True)
class LabelledFaces:
    """N faces that were fitted in crops, and what people marked there."""

    name: tuple[str, ...]
    yaw: Float[Array, " faces"]  # degrees, label
    labels: Float[Array, "faces points 2"]  # pixels; NaN where people saw no such point
    faces: tuple[Alignment, ...]

    def __getitem__(self, rows: Ints) -> LabelledFaces:
        return LabelledFaces(
            tuple(self.name[i] for i in rows),
            self.yaw[rows],
            self.labels[rows],
            tuple(self.faces[i] for i in rows),
        )


@dataclass(frozen=True)
class VisiblePointsReport:
    """Errors of N faces at the points that people saw."""

    name: tuple[str, ...]
    yaw: Float[Array, " faces"]  # degrees, label
    error: Float[Array, " faces"]  # fraction of the size of the points' box; NaN: too few points
    visibility: Float[Array, "faces known"]  # the aligner's, 0 to 1
    seen: Float[Array, "faces known"]  # 1 where people saw the point, else 0
    failed: Float[Array, " faces"]  # 1 where the aligner refused its own fit, else 0
    as_marked: bool  # whether points and visibility include the bias of people

    @property
    def protocol(self) -> str:
        """The name of the protocol."""
        place = "where people mark them" if self.as_marked else "on the fitted mesh"
        return (
            f"AFLW crops, {self.seen.shape[1]} of 21 points {place}, the visible ones, as a share "
            "of sqrt(width * height) of their box"
        )

    @property
    def summary(self) -> dict[str, Any]:
        """Figures by name; errors in per cent."""
        usable = np.isfinite(self.error)
        bins: dict[str, float | int] = {}
        means = []
        for low, high in pairwise((*YAW_BINS[:-1], np.inf)):
            some = usable & (np.abs(self.yaw) >= low) & (np.abs(self.yaw) < high)
            name = f"{low:.0f}-{high:.0f}" if np.isfinite(high) else f"{low:.0f}-{YAW_BINS[-1]:.0f}"
            bins[f"{name} count"] = int(some.sum())
            if some.any():
                means.append(100 * float(self.error[some].mean()))
                bins[name] = round(means[-1], 3)
        bins["mean of bins"] = round(float(np.mean(means)), 3)
        figures: dict[str, Any] = {
            "count": int(usable.sum()),
            "failed": round(float(self.failed.mean()), 4),
            "nme_visible": {
                "mean": round(100 * float(self.error[usable].mean()), 3),
                "median": round(100 * float(np.median(self.error[usable])), 3),
            },
            "nme_visible_by_yaw": bins,
        }
        if 0.0 < self.seen.mean() < 1.0:
            auroc = roc_auc_score(self.seen.ravel(), self.visibility.ravel())
            figures["visibility AUROC"] = round(float(auroc), 4)
        return figures

    def to_json(self) -> dict[str, Any]:
        """Protocol, summary, and the error of each face; None where it has too few points."""
        errors = {
            name: round(float(error), 5) if np.isfinite(error) else None
            for name, error in zip(self.name, self.error, strict=True)
        }
        return {"protocol": self.protocol, **self.summary, "images": errors}


def evaluate_visible_points(
    folder: str, aligner: Aligner, *, as_marked: bool = True
) -> VisiblePointsReport:
    """Evaluate on a folder (or s3:// prefix) of crops with ``labels.npz``.

    The file holds ``name`` (N,), ``points`` (N, 21, 2) pixels of a crop, NaN where people saw none,
    and ``yaw`` (N,) degrees. ``as_marked``: with the bias of the landmark set. Raises BadLandmarks
    for labels that can't be used, BadPhoto for an unreadable crop, WrongModel for an aligner with
    another face model than the set's.
    """
    return measure_visible_points(
        align_crops(folder, aligner), aligner.model, load_point_set(as_marked=as_marked)
    )


def load_point_set(*, as_marked: bool = True) -> LandmarkSet:
    """The landmark set of the points; ``as_marked``: with its bias."""
    points = load_landmark_sets()[SET]
    return points if as_marked else replace(points, bias=None)


def align_crops(folder: str, aligner: Aligner) -> LabelledFaces:
    """The faces of the crops in a folder. Raises as ``evaluate_visible_points``."""
    storage, crops = open_storage(folder), load_aflw_crops()
    names, labels, yaw = _read_labels(storage)
    faces: list[Alignment] = []
    for begin in range(0, len(names), CHUNK):
        images = [_read_crop(storage, name, crops.side) for name in names[begin : begin + CHUNK]]
        found = aligner.align_batch(images, [[crops.box]] * len(images))
        faces += [some[0] for some in found]
    return LabelledFaces(tuple(names), yaw, labels, tuple(faces))


def measure_visible_points(
    found: LabelledFaces, model: MorphableModel, points: LandmarkSet
) -> VisiblePointsReport:
    """The errors of ``points``, without the ears, which no point of iBUG marks."""
    return _report(found, points, *_place_points(found, model, points))


def _place_points(
    found: LabelledFaces, model: MorphableModel, points: LandmarkSet
) -> tuple[Floats, Floats]:
    """(N, P, 2) pixels and (N, P) visibility of the points."""
    place = points.place_on_mesh if points.bias is None else points.place
    placed = np.stack([place(face, model) for face in found.faces])
    return placed, np.stack([points.visibility(face) for face in found.faces])


def _report(
    found: LabelledFaces, points: LandmarkSet, placed: Floats, visibility: Floats
) -> VisiblePointsReport:
    known = [*points.fitted]
    labels = found.labels[:, known]
    return VisiblePointsReport(
        name=found.name,
        yaw=found.yaw,
        error=_measure_errors(placed[:, known], labels),
        visibility=visibility[:, known],
        seen=np.asarray(np.isfinite(labels).all(2), np.float64),
        failed=np.array([face.failed for face in found.faces], np.float64),
        as_marked=points.bias is not None,
    )


def fit_point_bias(found: LabelledFaces, fit_model: FitModel, config: OffsetConfig) -> PointBias:
    """The bias of the people who marked the ``found`` faces, the same on both sides.

    From the faces whose fit was not refused; from all for the visibility, which a refused fit is
    not sure of. ``fit_model``: along whose directions of shape the bias changes. Raises
    BadLandmarks when all were refused.
    """
    points, model = load_point_set(as_marked=False), fit_model.model
    mirror = points.find_mirror(model)
    good = np.flatnonzero([not face.failed for face in found.faces])
    if not len(good):
        raise BadLandmarks("no face could be fitted in the crops")
    placed, shown = _place_points(found, model, points)
    fitted = found[good]
    shape = BiasTerms.of_shape(fitted.faces, fit_model, config)
    bias, limit = fit_landmarks_by_pose(
        fitted.faces, placed[good], fitted.labels, config, mirror=mirror, shape=shape
    )
    rotation = np.stack([face.cam_from_head.rotation for face in found.faces])
    terms, shown = pose_terms(UprightPose.of(rotation), limit), log_odds(shown)
    marked = np.asarray(np.isfinite(found.labels).all(2), np.float64)
    visible = np.stack(
        [
            _fit_logistic(
                np.concatenate(
                    [
                        np.column_stack([shown[:, point], terms]),
                        np.column_stack([shown[:, other], terms * MIRRORED_TERMS]),
                    ]
                ),
                np.concatenate([marked[:, point], marked[:, other]]),
            )
            for point, other in enumerate(mirror)
        ]
    )
    # Latent directions have no exact counterparts on the other side.
    bias = (bias + _mirror_bias(bias, mirror, fit_model)) / 2
    by_shape = np.einsum("plc,lk->pkc", bias[:, TERMS:], latent_from_coefficients(fit_model))
    return PointBias(bias[:, :TERMS], by_shape, visible, limit)


def _mirror_bias(bias: Floats, mirror: Ints, fit_model: FitModel) -> Floats:
    """(P, TERMS + L, 2) metres by terms of pose and shape, as those of mirrored faces say."""
    other = bias[mirror] * OTHER_SIDE[:2]
    other[:, :TERMS] *= MIRRORED_TERMS[:, None]
    other[:, TERMS:] = np.einsum("kl,plc->pkc", fit_model.mirrored_latents, other[:, TERMS:])
    return other


def cross_validate_points(
    found: LabelledFaces, fit_model: FitModel, config: OffsetConfig
) -> VisiblePointsReport:
    """The report on each of ``folds`` parts, with the bias that the other parts have."""
    points, number, model = load_point_set(), np.arange(len(found.faces)), fit_model.model
    placed, visibility = _place_points(found, model, points)
    for fold in range(config.folds):
        rows = np.flatnonzero(number % config.folds == fold)
        rest = np.flatnonzero(number % config.folds != fold)
        bias = fit_point_bias(found[rest], fit_model, config)
        others = _place_points(found[rows], model, replace(points, bias=bias))
        placed[rows], visibility[rows] = others
    return _report(found, points, placed, visibility)


def _fit_logistic(features: Floats, true: Floats) -> Floats:
    """(F,) weights of (N, F) features by ridge regression, finite even if all are ``true``."""
    weight, ridge = np.zeros(features.shape[1]), RIDGE * np.eye(features.shape[1])
    for _ in range(STEPS):
        chance = expit(features @ weight)
        slope = features.T @ (true - chance) - RIDGE * weight
        curvature = (features * (chance * (1.0 - chance))[:, None]).T @ features + ridge
        weight = weight + np.linalg.solve(curvature, slope)
    return weight


def _measure_errors(placed: Floats, labels: Floats) -> Floats:
    """(N,) errors of (N, P, 2) points; NaN where fewer than two are labelled."""
    errors = np.full(len(placed), np.nan)
    for i, (at, label) in enumerate(zip(placed, labels, strict=True)):
        seen = np.isfinite(label).all(1)
        if seen.sum() >= 2:
            size = float(np.sqrt(np.ptp(label[seen], axis=0).prod()))
            apart = np.linalg.norm(at[seen] - label[seen], axis=1)
            errors[i] = apart.mean() / size if size > 0 else np.nan
    return errors


def _read_labels(storage: Storage) -> tuple[list[str], Floats, Floats]:
    """Names, (N, 21, 2) points and (N,) yaws."""
    try:
        with np.load(io.BytesIO(storage.read(LABELS)), allow_pickle=False) as table:
            names = [str(name) for name in table["name"]]
            points, yaw = table["points"].astype(np.float64), table["yaw"].astype(np.float64)
    except Exception as error:  # zipfile, zlib and numpy each have their own way to refuse
        raise BadLandmarks(f"{storage.uri}: can't read {LABELS}: {error}") from error
    count = len(load_point_set())
    if not names or points.shape != (len(names), count, 2) or yaw.shape != (len(names),):
        raise BadLandmarks(
            f"{storage.uri}: {LABELS} has {len(names)} names, points {points.shape} and yaws "
            f"{yaw.shape}, where (N, {count}, 2) and (N,) are wanted"
        )
    return names, points, yaw


def _read_crop(storage: Storage, name: str, side: int) -> Bytes:
    key = name if PurePosixPath(name).suffix else f"{name}.jpg"
    try:
        image = decode(storage.read(key), upright=False)
    except BadPhoto as error:
        raise BadPhoto(f"{key}: {error}") from error
    if image.shape[:2] != (side, side):
        raise BadPhoto(f"{key} has {image.shape[1]} x {image.shape[0]} pixels, not {side} x {side}")
    return image
