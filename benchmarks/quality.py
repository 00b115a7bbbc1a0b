"""The quality score on photos with deliberately corrupted landmarks and on untouched ones.

    python -m benchmarks.quality [--photos ../shared/data/photos] [--count 200] [--refit]

Each photo is recovered with its own landmarks and with each kind of corrupted ones. Printed are the
AUROC of the score (the probability that an untouched photo scores higher than a corrupted one) for
each kind, and the share that the job's threshold refuses. A photo without any fit scores 0.
``--refit`` fits the score's weights to half of the photos (those whose file names have an even
SHA-256) and prints them; all figures are then of the other half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import expit

from benchmarks.inverse import SHARED, by_name_hash
from dff.face.arrays import Floats
from dff.face.errors import BadFit, DffError
from dff.face.io.assets import load_albedo, load_model
from dff.infra.storage import open_storage
from dff.pipeline.recovery.inverse import NO_LIMITS, FitLimits, invert
from dff.pipeline.recovery.photos import Photo, list_photos, read_photo
from dff.pipeline.recovery.quality import (
    FEATURES,
    SHIPPED,
    ScoreWeights,
    measure_features,
    score_fit,
)

RIDGE = 1e-2  # of the weights in the logistic regression, per photo
UNTOUCHED = "untouched"

Corruption = Callable[[Floats, Photo, np.random.Generator], Floats]
"""(68, 2) landmarks, another photo and randomness to wrong landmarks."""


def _size(points: Floats) -> float:
    return float(np.sqrt(np.prod(np.ptp(points, axis=0))))


def _direction(rng: np.random.Generator, count: int = 1) -> Floats:
    angle = rng.uniform(0.0, 2 * np.pi, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def shifted(points: Floats, other: Photo, rng: np.random.Generator) -> Floats:
    """All points shifted by 15 to 50 % of the face."""
    return np.asarray(points + rng.uniform(0.15, 0.5) * _size(points) * _direction(rng))


def swapped(points: Floats, other: Photo, rng: np.random.Generator) -> Floats:
    """The landmarks of another photo, in the box of this one's."""
    theirs = other.landmarks
    middle = (theirs.max(0) + theirs.min(0)) / 2
    return np.asarray(
        (theirs - middle) * (_size(points) / _size(theirs)) + (points.max(0) + points.min(0)) / 2
    )


def misplaced(points: Floats, other: Photo, rng: np.random.Generator) -> Floats:
    """The landmarks of another photo in its own pixels, as after a mistake in file names."""
    return other.landmarks


def mirrored(points: Floats, other: Photo, rng: np.random.Generator) -> Floats:
    """The landmarks of the mirrored photo, not renamed."""
    middle = (points.max(0) + points.min(0)) / 2
    return np.asarray((points - middle) * [-1.0, 1.0] + middle)


def scaled(points: Floats, other: Photo, rng: np.random.Generator) -> Floats:
    """Scaled about their centre by 25 to 60 %."""
    factor = rng.uniform(1.25, 1.6) ** rng.choice([-1.0, 1.0])
    return np.asarray((points - points.mean(0)) * factor + points.mean(0))


def scattered(points: Floats, other: Photo, rng: np.random.Generator) -> Floats:
    """Half of the points displaced by 15 to 40 % of the face, each its own way."""
    rows = rng.choice(68, 34, replace=False)
    out = points.copy()
    out[rows] += rng.uniform(0.15, 0.4, (34, 1)) * _size(points) * _direction(rng, 34)
    return out


CORRUPTIONS: dict[str, Corruption] = {
    made.__name__: made for made in (shifted, swapped, misplaced, mirrored, scaled, scattered)
}


def auroc(good: Floats, bad: Floats) -> float:
    """Probability that a ``good`` (N,) is greater than a ``bad`` (M,); ties count half."""
    above = (good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean()
    return float(above)


def fit_weights(features: Floats, good: Floats) -> ScoreWeights:
    """A logistic regression of (N,) 0 or 1 on (N, F) features; both classes count alike."""
    rows = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    weight = np.where(good > 0.5, 0.5 / good.mean(), 0.5 / (1 - good.mean()))
    out = np.zeros(rows.shape[1])
    penalty = RIDGE * len(rows) * np.diag([1.0] * features.shape[1] + [0.0]) / 100
    for _ in range(50):
        chance = expit(rows @ out)
        curve = (weight * chance * (1 - chance))[:, None] * rows
        out = out + np.linalg.solve(
            rows.T @ curve + penalty, rows.T @ (weight * (good - chance)) - penalty @ out
        )
    return ScoreWeights(out[:-1], float(out[-1]))


def main(photos: Path = SHARED, count: int = 200, seed: int = 0, refit: bool = False) -> None:
    console = Console()
    if not photos.is_dir():
        console.print(f"quality: skipped, no folder {photos}")
        return
    model, albedo = load_model(), load_albedo()
    storage = open_storage(str(photos))
    refs = sorted(list_photos(storage), key=by_name_hash)
    found: dict[
        str, list[tuple[bool, Floats | None]]
    ] = {}  # by kind: of the test half, features or no fit
    unread = 0
    for number, ref in enumerate(track(refs[:count], "quality", console=console, transient=True)):
        rng = np.random.default_rng([seed, number])
        test = int(by_name_hash(ref), 16) % 2 == 1
        try:
            photo, other = (
                read_photo(storage, ref),
                read_photo(storage, refs[(number + 1) % len(refs)]),
            )
        except DffError:
            unread += 1
            continue
        for kind in (UNTOUCHED, *CORRUPTIONS):
            points = (
                photo.landmarks
                if kind == UNTOUCHED
                else CORRUPTIONS[kind](photo.landmarks, other, rng)
            )
            try:
                quality = invert(
                    replace(photo, landmarks=points), model=model, albedo=albedo, limits=NO_LIMITS
                ).quality
                found.setdefault(kind, []).append((test, measure_features(quality)))
            except BadFit:
                found.setdefault(kind, []).append((test, None))
    console.print(f"{unread} photos left out, since they or their landmarks cannot be used")
    if refit:
        rows = [
            (e, kind == UNTOUCHED)
            for kind, many in found.items()
            for test, e in many
            if not test and e is not None
        ]
        weights = fit_weights(
            np.array([e for e, _ in rows]), np.array([float(good) for _, good in rows])
        )
        shown = dict(zip(FEATURES, np.round(weights.features, 2).tolist(), strict=True))
        console.print("weights:", shown | {"bias": round(weights.bias, 2)})
    else:
        weights = SHIPPED
    show(console, found, weights)


def show(
    console: Console, found: dict[str, list[tuple[bool, Floats | None]]], weights: ScoreWeights
) -> None:
    scores = {
        kind: np.array([0.0 if e is None else score_fit(e, weights) for test, e in many if test])
        for kind, many in found.items()
    }
    bad = {kind: values for kind, values in scores.items() if kind != UNTOUCHED}
    bad["all"] = np.concatenate(list(bad.values()))
    good, threshold = scores[UNTOUCHED], FitLimits().score
    table = Table(
        "landmarks",
        "photos",
        "AUROC",
        "median score",
        f"refused below {threshold}",
        "no fit at all",
    )
    table.add_row(UNTOUCHED, *_row(good, np.nan, threshold))
    for kind, values in bad.items():
        table.add_row(kind, *_row(values, auroc(good, values), threshold))
    console.print(table)
    for share in (0.01, 0.02, 0.05, 0.1):
        at = float(np.quantile(good, share))
        console.print(
            f"refusing {share:.0%} of the untouched (below {at:.2f}) "
            f"refuses {(bad['all'] < at).mean():.1%}"
        )


def _row(values: Floats, area: float, threshold: float) -> list[str]:
    share = f"{(values < threshold).mean():.1%}"
    return [
        str(len(values)),
        f"{area:.4f}",
        f"{np.median(values):.3f}",
        share,
        f"{(values == 0).mean():.1%}",
    ]


if __name__ == "__main__":
    typer.run(main)
