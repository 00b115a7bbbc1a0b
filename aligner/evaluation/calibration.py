"""Calibrated confidence: ``dff calibrate`` fits it on held-out views and measures it on others.

Faces of a dataset's dev identities are aligned from boxes with the errors of a detector. Hard
negatives are aligned too: faces painted over, boxes beside the face, photos upside down. The
``Calibration`` is fitted to half of the identities and measured on the other half; real photos are
only used for measuring.

Figures: ECE is the expected calibration error over ten equal bins (Naeini et al. 2015). The AUROC
of failures is that of hard negatives against well aligned faces, the AUROC of visibility that of
hidden against visible landmarks.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from dff.aligner.align import Aligner
from dff.aligner.alignment import CalibrationFeatures
from dff.aligner.confidence import (
    CLOSE,
    FAILED_BELOW,
    GOOD,
    Calibration,
    append_face,
    face_probability,
)
from dff.face.arrays import Array, Bool, Bools, Bytes, Float, Floats
from dff.face.errors import BadDataset
from dff.face.extras import require_extra
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import INNER, MIRROR
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.shards import ViewRow
from dff.infra.datasets.split import find_split_groups
from dff.infra.files import strip_suffix
from dff.infra.photos.image_listing import IMAGE_SUFFIXES
from dff.infra.photos.images import decode
from dff.infra.photos.landmark_files import parse_mat, parse_pts
from dff.infra.storage import open_storage

with require_extra("train"):
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_auc_score

Kind = Literal["face", "covered", "beside", "upside down"]
NEGATIVES: tuple[Kind, ...] = ("covered", "beside", "upside down")

SHIFT = 0.1  # largest shift of the given boxes, fraction of their size
SCALE = (0.8, 1.25)
BINS = 10
BATCH = 32
RIDGE = 1.0  # of standardised weights


@dataclass(frozen=True)
class Case:
    """An image, the box of a face in it, and the ground truth."""

    kind: Kind
    subject: str  # cases of one subject stay on one side of the split
    image: Bytes
    box: Box
    truth: Float[Array, "68 2"] | None  # pixels; None where there is no face
    visible: Bool[Array, " 68"] | None = None  # of the 3D scheme; None: not labelled
    contour: bool = False  # the truth is of the 2D scheme


@dataclass(frozen=True)
class Outcomes:
    """The results of N cases."""

    kind: Sequence[Kind]
    subject: Sequence[str]
    # fraction of the face's box; infinite where there is no face
    error: Float[Array, "cases 68"]
    visible: Bool[Array, "cases 68"]
    # landmarks whose truth is known, in the scheme that confidence is about
    labelled: Bool[Array, "cases 68"]
    features: CalibrationFeatures

    @property
    def face(self) -> Bools:
        """(N,) whether the case is a face, aligned well or not."""
        return np.array([kind == "face" for kind in self.kind])

    @property
    def good(self) -> Bools:
        """(N,) whether the case is a well aligned face."""
        return np.asarray(self.error.mean(1) < GOOD)

    def __getitem__(self, rows: Bools) -> Outcomes:
        index: list[int] = np.flatnonzero(rows).tolist()
        return Outcomes(
            [self.kind[i] for i in index],
            [self.subject[i] for i in index],
            self.error[rows],
            self.visible[rows],
            self.labelled[rows],
            self.features[rows],
        )


def view_cases(dataset: Dataset, *, views: int, seed: int = 0) -> Iterator[Case]:
    """At least ``views`` views of dev identities, and as many hard negatives made of them.

    There are fewer where the dataset has fewer. Raises BadDataset when there is no dev identity.
    """
    count = 0
    for index in range(len(dataset.shards)):
        if "dev" not in dataset.columns(index, ["split"])["split"]:
            continue
        seen: dict[str, int] = {}
        for row in dataset.read_shard(index):
            seen[row.identity_id] = number = seen.get(row.identity_id, -1) + 1
            if row.split == "dev" and number < 8:
                yield from _view_cases(
                    row, NEGATIVES[number % 3], np.random.default_rng([seed, row.seed])
                )
                count += 1
        if count >= views:
            return
    if not count:
        raise BadDataset(f"{dataset.storage.uri} has no held-out identities")


def _view_cases(row: ViewRow, other: Kind, rng: np.random.Generator) -> Iterator[Case]:
    landmarks = row.landmarks_3d.astype(np.float64)
    box = disturb_box(Box.around(landmarks), rng)
    case = Case("face", row.identity_id, row.pixels(), box, landmarks, row.visible_3d)
    yield case
    negative = make_negative(case, other, rng)
    if negative:
        yield negative


def photo_cases(folder: str, *, every: int = 1, seed: int = 0) -> Iterator[Case]:
    """Dev photos with ``.pts`` (2D scheme), or all images with ``.mat`` (3D scheme).

    One in ``every`` is taken. Boxes are those of the labels; a hard negative is made of each photo.
    """
    storage = open_storage(folder)
    keys = {info.key for info in storage.list("")}
    images = [key for key in sorted(keys) if PurePosixPath(key).suffix.lower() in IMAGE_SUFFIXES]
    groups = find_split_groups(storage, {strip_suffix(key): key for key in images})
    number = 0
    for key in images:
        stem = strip_suffix(key)
        pts, mat = f"{stem}.pts", f"{stem}.mat"
        if pts in keys and groups.split(stem) == "dev":
            contour, landmarks = True, parse_pts(storage.read(pts))
        elif mat in keys:
            contour, landmarks = False, parse_mat(storage.read(mat)).landmarks[:, :2]
        else:
            continue
        number += 1
        if number % every:
            continue
        rng = np.random.default_rng([seed, number])
        image = decode(storage.read(key), upright=False)  # labels are of the stored pixels
        case = Case(
            "face",
            PurePosixPath(key).stem,
            image,
            Box.around(landmarks),
            landmarks,
            contour=contour,
        )
        yield case
        negative = make_negative(case, NEGATIVES[number // every % 3], rng)
        if negative:
            yield negative


def disturb_box(box: Box, rng: np.random.Generator) -> Box:
    """A box with the errors of a detector."""
    centre = box.centre + box.size * rng.uniform(-SHIFT, SHIFT, 2)
    half = np.exp(rng.uniform(*np.log(SCALE))) * np.array([box.width, box.height]) / 2
    return Box(*(centre - half).tolist(), *(centre + half).tolist())


def make_negative(case: Case, kind: Kind, rng: np.random.Generator) -> Case | None:
    """A hard negative: the face painted over, a box beside it, or the photo upside down.

    None where there is no room beside the face.
    """
    assert case.truth is not None
    if kind == "covered":
        return replace(
            case, kind=kind, image=_covered(case.image, case.truth, rng), truth=None, visible=None
        )
    height, width = case.image.shape[:2]
    if kind == "upside down":
        turned = np.array([width, height]) - case.truth
        box = Box(
            width - case.box.x1, height - case.box.y1, width - case.box.x0, height - case.box.y0
        )
        return replace(
            case,
            kind=kind,
            image=np.ascontiguousarray(case.image[::-1, ::-1]),
            box=box,
            truth=turned,
        )
    side = case.box.size * rng.uniform(0.4, 0.8)
    for _ in range(30):
        centre = rng.uniform(0, [width, height])
        low, high = centre - side / 2, centre + side / 2
        face = Box.around(case.truth)
        apart = (low > [face.x1, face.y1]) | (high < [face.x0, face.y0 - 0.4 * face.height])
        if apart.any():
            return replace(
                case, kind=kind, box=Box(*low.tolist(), *high.tolist()), truth=None, visible=None
            )
    return None


def _covered(image: Bytes, landmarks: Floats, rng: np.random.Generator) -> Bytes:
    """Paint a face and some of its border over, by a colour, the photo's mean colour, or noise."""
    wide = landmarks.mean(0) + 1.35 * (landmarks - landmarks.mean(0))
    forehead = wide - [0.0, 0.35 * float(np.ptp(landmarks[:, 1]))]
    hull = cv2.convexHull(np.rint(np.concatenate([wide, forehead])).astype(np.int32))
    inside = cv2.fillConvexPoly(np.zeros(image.shape[:2], np.uint8), hull, 1).astype(bool)
    out = image.copy()
    paint = int(rng.integers(3))
    if paint == 0:
        out[inside] = image.reshape(-1, 3).mean(0)
    elif paint == 1:
        out[inside] = rng.integers(0, 256, 3)
    else:
        out[inside] = rng.integers(0, 256, (int(inside.sum()), 3))
    return out


def align_cases(aligner: Aligner, cases: Iterable[Case]) -> Outcomes:
    """Align all cases, from upright faces, and compare them with the ground truth.

    So photos upside down give fits that are wrong, of which a calibration learns.
    """
    aligner = aligner.without_turned_starts()
    kinds: list[Kind] = []
    subjects, errors, visible, labelled, features = [], [], [], [], []
    for some in _batches(cases):
        found = aligner.align_batch([case.image for case in some], [[case.box] for case in some])
        for case, (alignment,) in zip(some, found, strict=True):
            assert alignment.features is not None
            error = np.full(68, np.inf)
            if case.truth is not None:
                points = alignment.landmarks_2d if case.contour else alignment.landmarks_3d[:, :2]
                error = np.linalg.norm(points - case.truth, axis=1) / Box.around(case.truth).size
            known = np.full(68, case.truth is not None)
            if case.contour:
                known[: INNER.start] = False  # confidence refers to the 3D scheme's jaw
            kinds.append(case.kind)
            subjects.append(case.subject)
            errors.append(error)
            visible.append(np.ones(68, bool) if case.visible is None else case.visible)
            labelled.append(known)
            features.append(alignment.features)
    return Outcomes(
        kinds,
        subjects,
        np.array(errors),
        np.array(visible),
        np.array(labelled),
        CalibrationFeatures.stacked(features),
    )


def _batches(cases: Iterable[Case]) -> Iterator[list[Case]]:
    batch: list[Case] = []
    for case in cases:
        batch.append(case)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def for_fitting(outcomes: Outcomes) -> Bools:
    """(N,) the cases to fit to: those of half of the subjects, by SHA-256 of their names."""
    return np.array(
        [hashlib.sha256(name.encode()).digest()[0] % 2 == 0 for name in outcomes.subject]
    )


def fit_calibration(outcomes: Outcomes) -> Calibration:
    """The maximum-likelihood calibration with weights that are not negative.

    That of landmarks is fitted on faces alone, and the same on both sides of the face. Raises
    ValueError unless some cases are aligned well and others are not.
    """
    features, good = outcomes.features, outcomes.good
    sure = ~features.lost
    if len({*good[sure].tolist()}) < 2:
        raise ValueError("a calibration needs cases that were aligned well and cases that were not")
    face = _logistic(features.face[sure], good[sure], np.zeros((int(sure.sum()), 0)))
    some = outcomes[sure & outcomes.face]
    rows = append_face(some.features, face_probability(some.features, face))
    _, pair = np.unique(np.minimum(np.arange(68), MIRROR), return_inverse=True)
    which = np.tile(np.eye(pair.max() + 1)[pair], (len(some.kind), 1))
    flat = rows.reshape(-1, rows.shape[-1])
    visible, right = (
        _logistic(flat, true.ravel(), which)
        for true in (some.visible, some.visible & (some.error < CLOSE))
    )
    weighted = flat.shape[1]
    each = np.concatenate([np.arange(weighted), weighted + pair])
    return Calibration(face, visible[each], right[each])


def _logistic(features: Floats, true: Bools, which: Floats) -> Floats:
    """(F + max(G, 1),) weights of (N, F) features, then an offset for each of (N, G) ``which``.

    Weights are constrained to be at least 0, which ``sklearn.linear_model.LogisticRegression``
    cannot do.
    """
    mean, sd = features.mean(0), features.std(0) + 1e-6
    rows = np.hstack([(features - mean) / sd, which, np.ones((len(features), 1))])
    sign = np.where(true, 1.0, -1.0)
    weighted = features.shape[1]

    def loss(weight: Floats) -> tuple[float, Floats]:
        margin = sign * (rows @ weight)
        slope = -(sign * expit(-np.clip(margin, -50, 50))) @ rows
        slope[:-1] += RIDGE * weight[:-1]
        return float(np.logaddexp(0.0, -margin).sum() + RIDGE / 2 * (weight[:-1] ** 2).sum()), slope

    bounds = [(0.0, None)] * weighted + [(None, None)] * (which.shape[1] + 1)
    found = minimize(loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x
    weight = found[:weighted] / sd
    offset = found[-1] - float(weight @ mean)
    return np.concatenate([weight, found[weighted:-1] + offset if which.shape[1] else [offset]])


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities and binary outcomes."""

    predicted: Float[Array, " predictions"]
    true: Bool[Array, " predictions"]

    @property
    def ece(self) -> float:
        """Expected calibration error."""
        return float(
            sum(abs(mean - true) * count for mean, true, count in self.bins()) / len(self.predicted)
        )

    def bins(self) -> list[tuple[float, float, int]]:
        """Mean prediction, share true and count of every bin that is not empty."""
        index = np.minimum((self.predicted * BINS).astype(int), BINS - 1)
        return [
            (
                float(self.predicted[index == i].mean()),
                float(self.true[index == i].mean()),
                int((index == i).sum()),
            )
            for i in range(BINS)
            if (index == i).any()
        ]

    @property
    def auroc(self) -> float:
        """Area under the receiver operating characteristic; NaN when all outcomes are equal."""
        if self.true.all() or not self.true.any():
            return float("nan")
        return float(roc_auc_score(self.true, self.predicted))


@dataclass(frozen=True)
class Trust:
    """The reliability of confidence on one set."""

    name: str
    cases: int
    aligned: float  # share of the faces
    # share reported as failed, by kind of case; faces are "face aligned" or "face not aligned"
    reported_failed: dict[str, float]
    face: Reliability  # aligned
    failure: Reliability  # well aligned faces against hard negatives
    visible: Reliability | None  # None where visibility is not labelled
    landmark: Reliability  # accurate landmarks of faces

    def to_json(self) -> dict[str, Any]:
        """The figures by name, as plain numbers."""
        figures = {
            "face ECE": self.face.ece,
            "failure AUROC": self.failure.auroc,
            "landmark ECE": self.landmark.ece,
            "landmark AUROC": self.landmark.auroc,
        }
        if self.visible is not None:
            figures |= {"visibility ECE": self.visible.ece, "visibility AUROC": self.visible.auroc}
        figures |= {
            "faces aligned": self.aligned,
            **{f"failed: {k}": v for k, v in self.reported_failed.items()},
        }
        return {"cases": self.cases, **{name: round(value, 4) for name, value in figures.items()}}


def trust(name: str, outcomes: Outcomes, calibration: Calibration, *, visibility: bool) -> Trust:
    """Measure a calibration.

    Without labels of ``visibility`` only landmarks that are predicted to be visible count.
    """
    predicted = calibration.face_confidence(outcomes.features)
    seen, right = calibration.landmark_confidence(outcomes.features)
    face, good = outcomes.face, outcomes.good
    failed: dict[str, Bools] = {"face aligned": face & good, "face not aligned": face & ~good}
    for kind in NEGATIVES:
        failed[kind] = np.array([k == kind for k in outcomes.kind])
    clear = (face & good) | ~face
    chosen = outcomes.labelled & face[:, None] & (visibility | (seen > 0.5))
    return Trust(
        name,
        len(predicted),
        float(good[face].mean()),
        {
            kind: float((predicted[rows] < FAILED_BELOW).mean())
            for kind, rows in failed.items()
            if rows.any()
        },
        Reliability(predicted, good),
        Reliability(predicted[clear], face[clear]),
        Reliability(seen[chosen], outcomes.visible[chosen]) if visibility else None,
        Reliability(right[chosen], (outcomes.visible & (outcomes.error < CLOSE))[chosen]),
    )


def reliability_picture(sets: Sequence[Trust]) -> bytes:
    """PNG: reliability diagrams of faces and landmarks of each set.

    Histograms of the predictions are drawn below.
    """
    figure = Figure(figsize=(4 * len(sets), 4.6), dpi=110, layout="constrained")
    axes = figure.subplots(
        2, len(sets), squeeze=False, sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    for (above, below), one in zip(axes.T, sets, strict=True):
        above.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        lines = {"face": one.face, "landmark": one.landmark}
        lines |= {"visibility": one.visible} if one.visible is not None else {}
        for label, line in lines.items():
            predicted, true, count = np.array(line.bins()).T
            above.plot(
                predicted, true, marker="o", markersize=4, label=f"{label}: ECE {line.ece:.3f}"
            )
            below.plot(predicted, count / count.sum(), marker=".")
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="came true", title=one.name)
        above.title.set_fontsize(9)
        above.legend(fontsize=7)
        above.grid(alpha=0.3)
        below.set(xlabel="predicted", ylabel="share", ylim=(0, 1))
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def calibrate(
    aligner: Aligner, dataset: Dataset, *, views: int, photos: Sequence[Path] = (), every: int = 1
) -> tuple[Calibration, list[Trust]]:
    """A calibration for an aligner's weights, and its reliability.

    It is measured on the other half of the dataset, and on each folder of ``photos``. Raises
    BadDataset for a dataset with too few held-out identities, ValueError when it is too small.
    """
    # Labels of rendered views have no annotation bias.
    raw = aligner.without_annotation_bias()
    outcomes = align_cases(raw, view_cases(dataset, views=views))
    first = for_fitting(outcomes)
    if first.all() or not first.any():
        raise BadDataset(
            f"{dataset.storage.uri} has too few held-out identities to calibrate with some and to "
            f"evaluate with others: {len(set(outcomes.subject))}"
        )
    calibration = fit_calibration(outcomes[first])
    sets = [trust("held-out views", outcomes[~first], calibration, visibility=True)]
    for folder in photos:
        real = align_cases(aligner, photo_cases(str(folder), every=every))
        sets.append(trust(folder.name, real, calibration, visibility=False))
    return calibration, sets
