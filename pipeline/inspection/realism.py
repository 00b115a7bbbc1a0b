"""Realism of views, by a classifier two-sample test (C2ST) between views and photos.

Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests" (2017). Portraits of both kinds are
aligned by their inner landmarks, resized, and compressed by the same JPEG. The photos are framed by
the same sampler and go through the same camera sensor model as the views, and each view is matched
with a photo of nearly the same pose and expression. So the classifier can only use the appearance
of the faces. The figure is its balanced accuracy on people outside its training data: one half is
chance, and the best result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from dff.face.arrays import Array, Bools, Bytes, Float, Floats, Ints, UInt8
from dff.face.extras import require_extra
from dff.face.model.landmarks import BELOW_BROWS
from dff.infra.photos.images import decode
from dff.pipeline.recovery.photos import Photo
from dff.pipeline.scene.camera_sensor import (
    apply_sensor,
    encode_jpeg,
    sample_framing,
    sample_sensor,
)

with require_extra("synthesis"):
    from sklearn.kernel_ridge import KernelRidge

GREY = 128


@dataclass(frozen=True)
class RealismConfig:
    """How portraits are aligned, described and classified."""

    side: int = 64  # px of an aligned crop
    quality: int = 90  # of the JPEG that every aligned crop goes through
    # The frame is drawn this much larger and averaged, so that no source's resolution shows
    oversampling: int = 4
    face_frame: float = 1.9  # side of the frame, in sides of the landmarks' box
    whole_frame: float = 2.2
    oval: tuple[float, float] = (0.36, 0.42)  # half axes of the face, in sides of its frame
    shift: float = 0.03  # standard deviations of the frame's jitter, in its sides
    zoom: float = 0.05
    # Root mean square by which landmarks may differ between a view and the photo it is matched
    # with, in sides of their box; the nearest of 600 other photos is at 0.04
    shape_limit: float = 0.05
    folds: int = 5  # of the cross-validation
    cells: int = 8  # of the features, along each side of a crop
    orientations: int = 8  # of edges
    bands: tuple[float, ...] = (0.7, 1.4, 2.8)  # px: scales between which detail is measured
    edges: tuple[float, ...] = (0.6, 1.5)  # px: scales of edges
    ridge: float = 0.1  # regularisation of the classifier
    resamples: int = 1000  # of the people, for the confidence interval


CONFIG = RealismConfig()


@dataclass(frozen=True, eq=False)
class Portrait:
    """An image of a face with known landmarks. Raises ValueError when the shapes are wrong."""

    person: str  # portraits of one person are all in the training or all in the validation fold
    pixels: UInt8[Array, "H W 3"]  # RGB
    landmarks: Float[Array, "68 2"]  # px
    # left, top, right, bottom, px: outside of these, pixels repeat the border of the image
    bounds: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.landmarks.shape != (68, 2):
            raise ValueError(
                f"Portrait must have (H, W, 3) pixels and (68, 2) landmarks, got "
                f"{self.pixels.shape} and {self.landmarks.shape}"
            )


def reframe_photo(
    photo: Photo, person: str, *, size: int, rng: np.random.Generator
) -> Portrait | None:
    """A photo in a frame of ``size`` px, framed and degraded as the views of a dataset are.

    None when the drawn frame has fewer than ``size`` px of the photo: it would have to be enlarged.
    """
    framing, sensor = sample_framing(rng=rng), sample_sensor(rng=rng)
    low, high = photo.landmarks.min(0), photo.landmarks.max(0)
    side = round(float((high - low).max()) / framing.share)
    if side < size:
        return None
    corner = np.round((low + high) / 2.0 - np.array(framing.centre) * side).astype(np.int64)
    height, width = photo.pixels.shape[:2]
    rows = np.clip(corner[1] + np.arange(side), 0, height - 1)
    columns = np.clip(corner[0] + np.arange(side), 0, width - 1)
    cut = cv2.resize(
        photo.pixels[rows[:, None], columns], (size, size), interpolation=cv2.INTER_AREA
    )
    seen = decode(encode_jpeg(apply_sensor(cut.astype(np.float32) / 255.0, sensor), sensor.quality))
    left, top = np.maximum(-corner, 0) * (size / side)
    right, bottom = np.minimum(np.array([width, height]) - corner, side) * (size / side)
    bounds = (float(left), float(top), float(right), float(bottom))
    return Portrait(person, seen, (photo.landmarks - corner) * (size / side), bounds)


def normalise_landmarks(portrait: Portrait) -> Floats:
    """(82,) coordinates of the inner landmarks in their box, in its longer sides.

    They describe pose and expression together.
    """
    points = portrait.landmarks[BELOW_BROWS]
    low, high = points.min(0), points.max(0)
    return np.asarray(((points - (low + high) / 2.0) / (high - low).max()).ravel())


def match_shapes(
    real: Floats, made: Floats, limit: float = CONFIG.shape_limit
) -> tuple[Ints, Ints]:
    """(K,) rows of (N, F) ``real`` and (K,) rows of (M, F) ``made`` shapes that form pairs.

    The sum of their distances is minimal. Each row is in one pair at most, and no pair is further
    apart than ``limit``, root mean square over the landmarks.
    """
    squares = (real**2).sum(1)[:, None] + (made**2).sum(1) - 2.0 * real @ made.T
    away = np.sqrt(np.maximum(squares, 0.0) * 2.0 / real.shape[1])
    i, j = linear_sum_assignment(np.minimum(away, 2.0 * limit))
    near = away[i, j] <= limit
    return i[near], j[near]


@dataclass(frozen=True, eq=False)
class AlignedCrop:
    """A portrait in the common frame, of RealismConfig.side."""

    pixels: UInt8[Array, "S S 3"]
    inside: bool  # whether the frame lies within the portrait's bounds


def align_crop(
    portrait: Portrait,
    frame: float,
    *,
    rng: np.random.Generator,
    config: RealismConfig = CONFIG,
) -> AlignedCrop:
    """The square around the inner landmarks, ``frame`` times as large as their box, jittered."""
    points = portrait.landmarks[BELOW_BROWS]
    low, high = points.min(0), points.max(0)
    side = frame * float((high - low).max()) * float(np.exp(rng.normal(0.0, config.zoom)))
    corner = (low + high) / 2.0 + rng.normal(0.0, config.shift, 2) * side - side / 2.0
    fine = config.side * config.oversampling
    step = side / fine
    # cv2 counts from the first pixel's centre.
    first = corner + step / 2.0 - 0.5
    warp = np.array([[step, 0.0, first[0]], [0.0, step, first[1]]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    drawn = cv2.warpAffine(
        portrait.pixels, warp, (fine, fine), flags=how, borderMode=cv2.BORDER_REFLECT_101
    )
    small = cv2.resize(drawn, (config.side, config.side), interpolation=cv2.INTER_AREA)
    inside = bool(
        (corner >= portrait.bounds[:2]).all() and (corner + side <= portrait.bounds[2:]).all()
    )
    return AlignedCrop(decode(encode_jpeg(small, config.quality)), inside)


def mask_oval(pixels: Bytes, config: RealismConfig = CONFIG) -> Bytes:
    """(..., S, S, 3) crops that are grey outside a fixed oval, which holds the face alone."""
    side, (width, height) = pixels.shape[-2], config.oval
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    kept = (x / width) ** 2 + (y / height) ** 2 <= 1.0
    return np.where(kept[..., None], pixels, np.uint8(GREY))


@dataclass(frozen=True)
class TwoSampleTest:
    """The balanced accuracy of a classifier, and its 95 % confidence interval over people."""

    accuracy: float
    low: float
    high: float
    pictures: int  # of both samples
    people: int


def extract_features(crops: Bytes, config: RealismConfig = CONFIG) -> Floats:
    """(N, F) float32 features of (N, S, S, 3) crops: colour, detail and edges of each cell.

    Detail is the log energy between neighbouring scales, which differs between renderings or
    smoothed images and photos. Edges are histograms of oriented gradients (Dalal and Triggs 2005)
    at two scales, interpolated linearly between the nearest two orientations and normalised by
    cell. (With ``skimage.feature.hog``, which assigns each gradient to one orientation, the control
    of smoothed photos has 60 to 62 % accuracy instead of 58 to 59 %; the tracked figures would no
    longer compare.)
    """
    return np.stack([_extract_features(crop, config) for crop in crops])


def _extract_features(crop: Bytes, config: RealismConfig) -> Floats:
    turns, cells = config.orientations, config.cells
    colour = cv2.cvtColor(crop, cv2.COLOR_RGB2YCrCb).astype(np.float32) / 255.0
    parts = [_average_cells(colour, cells)]
    before = colour
    for sd in config.bands:
        smooth = cv2.GaussianBlur(colour, (0, 0), sd)
        parts.append(np.log(0.002 + _average_cells(np.abs(before - smooth), cells)))
        before = smooth
    for sd in config.edges:
        smooth = cv2.GaussianBlur(colour[..., 0], (0, 0), sd)
        dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
        angle = np.arctan2(dy, dx) % np.pi / np.pi * turns
        away = np.abs((angle[..., None] - np.arange(turns) + turns / 2) % turns - turns / 2)
        magnitudes = np.maximum(1.0 - away, 0.0) * np.hypot(dx, dy)[..., None]
        histogram = _average_cells(magnitudes, cells)
        parts.append(np.sqrt(histogram / (histogram.sum(axis=2, keepdims=True) + 0.02)))
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def _average_cells(values: Floats, cells: int) -> Floats:
    """(C, C, ...) means over the cells of an (S, S, ...) image."""
    size = (cells, cells)
    return np.asarray(cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_AREA))


def run_two_sample_test(
    crops: Bytes,
    made: Bools,
    people: Sequence[str],
    *,
    seed: int,
    config: RealismConfig = CONFIG,
) -> TwoSampleTest:
    """Classify (N, S, S, 3) ``crops`` into rendered ones, (N,) ``made``, and photos.

    Each fold of the people is classified by kernel ridge regression that was trained on the others,
    with both samples weighted equally. The same input gives the same figure. Raises ValueError when
    one of the samples is empty or there are fewer people than folds.
    """
    names, folds = sorted(set(people)), config.folds
    one_sample = made.all() or not made.any()
    if one_sample or len(names) < folds or not len(crops) == len(people) == len(made):
        raise ValueError(
            f"the test needs both samples and {folds} people, got {made.sum()} rendered of "
            f"{len(made)} portraits and {len(names)} people"
        )
    rng = np.random.default_rng(seed)
    part = dict(zip(rng.permutation(names).tolist(), np.arange(len(names)) % folds, strict=True))
    fold = np.array([part[name] for name in people])
    features = extract_features(crops, config)
    predicted = np.zeros(len(made))
    for index in range(folds):
        held = fold == index
        predicted[held] = _classify(features[~held], made[~held], features[held], config.ridge)
    person = np.array([names.index(name) for name in people])
    return _score((predicted > 0) == made, made, person, config.resamples, rng)


def _classify(train: Floats, made: Bools, test: Floats, ridge: float) -> Floats:
    """(M,) scores of (M, F) ``test`` features, above 0 for rendered ones, learned from (N, F)."""
    mean, spread = train.mean(0), train.std(0) + 1e-3
    a, b = (np.clip((some - mean) / spread, -4.0, 4.0).astype(np.float64) for some in (train, test))
    # Both samples have the same total weight, however many crops each has.
    weight = np.where(made, 0.5 / made.sum(), 0.5 / (~made).sum()) * len(made)
    regression = KernelRidge(alpha=ridge, kernel="rbf", gamma=1.0 / train.shape[1])
    regression.fit(a, np.where(made, 1.0, -1.0), sample_weight=weight)
    return np.asarray(regression.predict(b))


def _score(
    right: Bools, made: Bools, person: Ints, resamples: int, rng: np.random.Generator
) -> TwoSampleTest:
    """Balanced accuracy, and its interval by bootstrapping the people."""
    count = int(person.max()) + 1
    counts = np.stack(
        [np.bincount(person, w, count) for w in (made, made & right, ~made, ~made & right)]
    ).astype(float)
    drawn = (
        rng.multinomial(len(set(person.tolist())), np.full(count, 1.0 / count), resamples)
        @ counts.T
    )
    spread = (
        drawn[:, 1] / np.maximum(drawn[:, 0], 1.0) + drawn[:, 3] / np.maximum(drawn[:, 2], 1.0)
    ) / 2.0
    of_made, right_made, of_real, right_real = counts.sum(1)
    low, high = np.percentile(spread, (2.5, 97.5))
    accuracy = (right_made / of_made + right_real / of_real) / 2.0
    return TwoSampleTest(float(accuracy), float(low), float(high), len(made), count)
