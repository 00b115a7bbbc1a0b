"""Matching of points between photos, on rendered views: accuracy, visibility, calibration.

    python -m benchmarks.matching measure DATASET --model MODEL --pairs 12
    python -m benchmarks.matching fit DATASET --pairs 12

Pairs of views as in ``dff evaluate matching``, but of whole images: the faces are found by the
detector, and all points of the first view's face are asked for, also those that the second hides.
``measure`` gives PCK of ``dff.match`` beside that of the evaluator, which is told the landmark
boxes and the pixels of the second face, on the same visible points, with the standard error of the
difference; the AUROC of visibility; and the expected calibration errors of both probabilities.
``fit`` fits the weights of ``dff.aligner.matching.calibration`` and prints them. Matches of faces
that were not found count as wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dff.aligner.align import Aligner
from dff.aligner.load import load_aligner
from dff.aligner.matching.calibration import CLOSE
from dff.aligner.matching.matcher import DescribedFace, Matcher
from dff.face.arrays import Array, Bool, Bools, Float, Floats
from dff.face.descriptor import STRIDE
from dff.face.geometry.camera import Box
from dff.face.matching import CROP, CropFeatures, describe_crop, find_peaks, pixel_centres
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import Frame
from dff.infra.datasets.dataset import open_dataset
from dff.infra.datasets.shards import ViewRow, resolve_frame
from dff.trainer.data.crops import (
    CropPlacement,
    TrainingSurface,
    build_training_surface,
    grid_in_source,
    input_from_source,
    warp,
)
from dff.trainer.data.datasets import load_dataset_model
from dff.trainer.evaluation.config import MATCHING
from dff.trainer.evaluation.pairs import is_visible, lookup_mask, transfer_points

POINTS = 96  # of a pair
BINS = 10  # of the expected calibration error
WRONG = 1e3  # error of a match that was not made, in sizes of the face's box


@dataclass(frozen=True)
class PairFigures:
    """The points of one pair of views."""

    same: bool
    yaw: float  # degrees between the views
    visible: Bool[Array, " points"]  # the second view shows them
    error: Float[Array, " points"]  # of ``dff.match``, in sizes of the face's box
    evaluator_error: Float[Array, " points"]
    features: Float[Array, "points features"]  # of the calibration
    visibility: Float[Array, " points"]  # probabilities answered
    probability: Float[Array, " points"]


@dataclass(frozen=True, eq=False)
class View:
    """A view, as the evaluator and the matcher see it."""

    row: ViewRow
    frame: Frame
    matrix: Float[Array, "2 3"]  # of the evaluator's crop from the view
    features: CropFeatures  # of the evaluator's crop
    face: DescribedFace | None  # None: not found


def read_views(
    dataset: str, model: str | None, matcher: Matcher
) -> tuple[list[View], MorphableModel]:
    """All views of a dataset, and its face model."""
    opened = open_dataset(dataset)
    rows = [row for i in range(len(opened.shards)) for row in opened.read_shard(i)]
    face_model = load_dataset_model(opened, model)
    return [make_view(row, face_model, matcher) for row in rows], face_model


def make_view(row: ViewRow, model: MorphableModel, matcher: Matcher) -> View:
    image, box = row.pixels(), Box.around(row.landmarks_3d)
    matrix = input_from_source(box, CROP, CropPlacement())
    features = describe_crop(matcher.net, warp(image, matrix, CROP, (0, 0, 0)), mirrored=True)
    near = [
        face
        for face in matcher.aligner.align(image)
        if np.linalg.norm(Box.around(face.landmarks_3d[:, :2]).centre - box.centre) < box.size / 2
    ]
    face = matcher.describe(image, near[0]) if near else None
    return View(row, resolve_frame(row, model), matrix, features, face)


def measure_pairs(
    views: Sequence[View], model: MorphableModel, matcher: Matcher, *, count: int
) -> Iterator[PairFigures]:
    """Up to ``count`` pairs of each yaw bin and of same and different identities."""
    rng = np.random.default_rng(0)
    surface = build_training_surface(model)
    yaw = np.array([view.row.pose[0] for view in views])
    names = np.unique([view.row.identity_id for view in views], return_inverse=True)[1]
    difference, same = np.abs(yaw[:, None] - yaw), names[:, None] == names
    others = ~np.eye(len(views), dtype=bool)
    for low, high in MATCHING.yaw_ranges:
        for wanted in (same, ~same):
            cell = np.argwhere((difference >= low) & (difference < high) & wanted & others)
            made = 0
            for a, b in cell[rng.permutation(len(cell))]:
                if made == count:
                    break
                pair = measure_pair(views[a], views[b], model, surface, matcher, rng)
                if pair is not None:
                    made += 1
                    yield pair


def measure_pair(
    first: View,
    second: View,
    model: MorphableModel,
    surface: TrainingSurface,
    matcher: Matcher,
    rng: np.random.Generator,
) -> PairFigures | None:
    """The figures of one pair; None where the views share too few points."""
    row, frame = second.row, second.frame
    vertices = row.cam_from_head.apply(model.vertices(row.coefficients(model)))
    places = grid_in_source(first.matrix, CROP)
    known, coordinate, cam = transfer_points(
        first.frame, places, surface, vertices, MATCHING.max_spread
    )
    truth = row.camera.px_from_cam(cam)
    skin = surface.skin[frame.triangle] & frame.mask
    visible = is_visible(frame, skin, truth, coordinate, surface, MATCHING.same_point)
    if (known & visible).sum() < MATCHING.min_points:
        return None
    chosen = rng.permutation(np.flatnonzero(known))[:POINTS]
    places, truth, visible = places[chosen], truth[chosen], visible[chosen]
    box = Box.around(row.landmarks_3d).size
    by_evaluator = evaluator_matches(first, second, places, skin, matcher.aligner)
    error, features = np.full(len(chosen), WRONG), np.zeros((len(chosen), 4))
    if first.face and second.face:
        query, _ = matcher.query_points(first.face, places, second.face)
        found = matcher.search(query, second.face)
        error, features = np.linalg.norm(found.px - truth, axis=1) / box, found.features
    visibility, probability = matcher.calibration.probabilities(features)
    return PairFigures(
        same=first.row.identity_id == row.identity_id,
        yaw=abs(first.row.pose[0] - row.pose[0]),
        visible=visible,
        error=error,
        evaluator_error=np.linalg.norm(by_evaluator - truth, axis=1) / box,
        features=features,
        visibility=visibility,
        probability=probability,
    )


def evaluator_matches(
    first: View, second: View, places: Floats, skin: Bools, aligner: Aligner
) -> Floats:
    """(N, 2) pixels of the second view, as ``dff evaluate matching`` finds them."""
    side = CROP // STRIDE
    wanted = first.features.anchor_roots(aligner.anchors, _crop(places, first.matrix) / STRIDE)
    candidates = np.flatnonzero(lookup_mask(skin, grid_in_source(second.matrix, CROP)))
    roots = second.features.anchor_roots(aligner.anchors, pixel_centres(candidates, side))
    found = find_peaks(wanted @ roots.T, candidates, side) * STRIDE
    back = np.linalg.inv(second.matrix[:, :2])
    return np.asarray((found - second.matrix[:, 2]) @ back.T)


def _crop(px: Floats, matrix: Floats) -> Floats:
    return np.asarray(px @ matrix[:, :2].T + matrix[:, 2])


def calibration_error(probability: Floats, truth: Bools) -> float:
    """Expected calibration error over ``BINS`` equal bins (Naeini et al. 2015)."""
    of = np.minimum((probability * BINS).astype(int), BINS - 1)
    some = [of == i for i in range(BINS) if (of == i).any()]
    return float(sum(abs(probability[i].mean() - truth[i].mean()) * i.mean() for i in some))


def compare(pairs: Sequence[PairFigures], limit: float) -> str:
    """PCK of ``dff.match`` and of the evaluator, and their difference with its standard error.

    The points of one pair are right or wrong together, so the error is that of a mean of pairs.
    """
    hits = np.array(
        [
            [(error[p.visible] <= limit).sum() for error in (p.error, p.evaluator_error)]
            for p in pairs
        ]
    )
    points = np.array([p.visible.sum() for p in pairs])
    ours, evaluator = 100 * hits.sum(0) / points.sum()
    more = hits[:, 0] - hits[:, 1]
    away = more - points * more.sum() / points.sum()
    error = 100 * np.sqrt((away**2).sum() * len(pairs) / max(len(pairs) - 1, 1)) / points.sum()
    return f"{ours:14.2f} {evaluator:10.2f} {ours - evaluator:+6.2f} ± {error:.2f}"


def report(pairs: Sequence[PairFigures]) -> list[str]:
    """The table by identity and yaw, and the figures of the probabilities."""
    out = [
        "identity  yaw     points  PCK 5 %: match  evaluator   difference  "
        "PCK 2 %: match  evaluator   difference"
    ]
    cells = [
        (name, yaw, [p for p in pairs if p.same == same and MATCHING.find_yaw_bin(p.yaw) == i])
        for same, name in ((True, "same"), (False, "different"))
        for i, yaw in enumerate(MATCHING.yaw_bins)
    ]
    for name, yaw, some in (*cells, ("all", "", list(pairs))):
        if some:
            points = sum(int(p.visible.sum()) for p in some)
            figures = " ".join(compare(some, limit) for limit in (0.05, 0.02))
            out.append(f"{name:9} {yaw:6} {points:7} {figures}")
    visible, error = (np.concatenate([getattr(p, k) for p in pairs]) for k in ("visible", "error"))
    visibility, probability = (
        np.concatenate([getattr(p, k) for p in pairs]) for k in ("visibility", "probability")
    )
    right = visible & (error <= CLOSE)
    out.append(
        f"visibility: AUROC {roc_auc_score(visible, visibility):.4f}, "
        f"ECE {calibration_error(visibility, visible):.4f}, "
        f"{len(visible)} points, {visible.mean():.0%} visible"
    )
    out.append(
        f"probability: AUROC {roc_auc_score(right, probability):.4f}, "
        f"ECE {calibration_error(probability, right):.4f}"
    )
    return out


def fit(pairs: Sequence[PairFigures]) -> list[str]:
    """The weights of ``MatchCalibration``, fitted to all points."""
    features = np.concatenate([p.features for p in pairs])
    visible = np.concatenate([p.visible for p in pairs])
    right = visible & (np.concatenate([p.error for p in pairs]) <= CLOSE)
    out = []
    for name, truth in (("visible", visible), ("right", right)):
        model = LogisticRegression(C=1e3, max_iter=3000).fit(features, truth)
        weights = [*model.coef_[0], *model.intercept_]
        out.append(f"{name}: {[round(float(w), 2) for w in weights]}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("measure", "fit"))
    parser.add_argument("dataset")
    parser.add_argument("--model", help="face model of the views; default: the dataset's own")
    parser.add_argument("--pairs", type=int, default=12, help="of each yaw bin and identity")
    parser.add_argument("--weights")
    asked = parser.parse_args()
    matcher = Matcher(load_aligner(asked.weights))
    views, model = read_views(asked.dataset, asked.model, matcher)
    print(f"{sum(view.face is not None for view in views)} of {len(views)} faces found")
    pairs = list(measure_pairs(views, model, matcher, count=asked.pairs))
    print(f"{len(pairs)} pairs")
    for line in report(pairs) if asked.what == "measure" else fit(pairs):
        print(line)


if __name__ == "__main__":
    main()
