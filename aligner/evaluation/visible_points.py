"""Accuracy on AFLW's points, which people placed where they saw them.

Crops of AFLW (Koestinger et al. 2011) with 21 points, of which people marked the visible ones. The
error of a face is the mean over these, without ears, over ``sqrt(width * height)`` of their box; a
face needs two of them. The unmarked ones measure the aligner's ``visibility``.
"""

from __future__ import annotations

import io
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.evaluation.benchmarks import CHUNK, YAW_BINS
from dff.face.arrays import Array, Bytes, Float, Floats
from dff.face.errors import BadLandmarks, BadPhoto
from dff.face.extras import require_extra
from dff.face.geometry.camera import Box
from dff.infra.photos.images import decode
from dff.infra.storage import Storage, open_storage

with require_extra("train"):
    from sklearn.metrics import roc_auc_score

LABELS = "labels.npz"


@dataclass(frozen=True)
class PointScheme:
    """AFLW's points by those of the 68-point scheme."""

    points: tuple[tuple[int, ...], ...]  # numbers of the 68 whose mean a point is; none: no such
    box: Box  # of the face in a crop
    crop: int  # px, side of a crop

    def of(self, values: Floats) -> Floats:
        """(P, ...) values of the P points that have a counterpart, from those of the 68."""
        return np.stack([values[list(some)].mean(0) for some in self.points if some])

    @property
    def known(self) -> list[int]:
        """Numbers of the points that have a counterpart."""
        return [i for i, some in enumerate(self.points) if some]


@cache
def load_scheme() -> PointScheme:
    """The scheme of ``data/aflw21.toml``."""
    table = tomllib.loads((files("dff.aligner.evaluation") / "data/aflw21.toml").read_text())
    return PointScheme(tuple(map(tuple, table["points"])), Box(*table["box"]), table["crop"])


@dataclass(frozen=True)
class VisiblePointsReport:
    """Errors of N faces at the points that people saw."""

    name: tuple[str, ...]
    yaw: Float[Array, " faces"]  # degrees, label
    error: Float[Array, " faces"]  # fraction of the size of the points' box; NaN: too few points
    visibility: Float[Array, "faces known"]  # the aligner's, 0 to 1
    seen: Float[Array, "faces known"]  # 1 where people saw the point, else 0
    failed: Float[Array, " faces"]  # 1 where the aligner refused its own fit, else 0

    @property
    def protocol(self) -> str:
        """The name of the protocol."""
        return (
            f"AFLW crops, {self.seen.shape[1]} of 21 points, the visible ones, as a share of "
            "sqrt(width * height) of their box"
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


def evaluate_visible_points(folder: str, aligner: Aligner) -> VisiblePointsReport:
    """Evaluate on a folder (or s3:// prefix) of crops with ``labels.npz``.

    The file holds ``name`` (N,), ``points`` (N, 21, 2) pixels of a crop, NaN where people saw none,
    and ``yaw`` (N,) degrees. Raises BadLandmarks for labels that can't be used, BadPhoto for an
    unreadable crop.
    """
    storage, scheme = open_storage(folder), load_scheme()
    names, points, yaw = _read_labels(storage)
    faces: list[Alignment] = []
    for begin in range(0, len(names), CHUNK):
        images = [_read_crop(storage, name, scheme.crop) for name in names[begin : begin + CHUNK]]
        found = aligner.align_batch(images, [[scheme.box]] * len(images))
        faces += [some[0] for some in found]
    labels = points[:, scheme.known]
    placed = np.stack([scheme.of(face.landmarks_3d[:, :2]) for face in faces])
    return VisiblePointsReport(
        name=tuple(names),
        yaw=yaw,
        error=_measure_errors(placed, labels),
        visibility=np.stack([scheme.of(face.visibility) for face in faces]),
        seen=np.asarray(np.isfinite(labels).all(2), np.float64),
        failed=np.array([face.failed for face in faces], np.float64),
    )


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
    count = len(load_scheme().points)
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
