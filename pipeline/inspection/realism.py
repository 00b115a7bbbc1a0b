"""How real views look: whether they can be told from photos.

Portraits of both kinds are brought to the same frame by their inner landmarks, to the same size,
and through the same JPEG; the photos have been framed and photographed by the same sampler and
sensor as the views, and each view meets a photo whose landmarks lie nearly the same, which is the
same pose and expression. So what remains to be learned is how faces look. The figure is balanced
accuracy on people that the judge has not seen: one half is chance, and perfect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from dff.face.arrays import Bools, Bytes, Floats, Ints
from dff.infra.images import decode
from dff.pipeline.recovery.photos import Photo
from dff.pipeline.scene.camera_sensor import (
    apply_sensor,
    encode_jpeg,
    sample_framing,
    sample_sensor,
)

SIDE = 64  # px of an aligned crop
QUALITY = 90  # of the JPEG that every aligned crop goes through
OVERSAMPLING = 4  # the frame is drawn this much larger and averaged, so that no source's size shows
WITHIN = slice(
    27, 68
)  # the landmarks that frame a crop: nose, eyes, mouth; jaws and brows are marked by taste
FACE_FRAME, WHOLE_FRAME = 1.9, 2.2  # sides of those landmarks' box
OVAL = (0.36, 0.42)  # half axes of what is kept of a face, in sides of its frame
GREY = 128
SHIFT, ZOOM = 0.03, 0.05  # standard deviations of the frame's jitter, in its sides
# of the box: by which landmarks may differ between a view and the photo it meets; the nearest of
SHAPE_LIMIT = 0.05
# 600 other photos is at 0.04
FOLDS = 5
CELLS, TURNS = 8, 8  # the judge sees cells of a crop, and orientations of edges
BANDS = (0.7, 1.4, 2.8)  # px: standard deviations between which detail is measured
EDGES = (0.6, 1.5)  # px: scales of edges
RIDGE = 0.1
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Portrait:
    """A picture of a face whose landmarks are known. Raises ValueError when the shapes are
    wrong.
    """

    person: str  # portraits of one person are never split between learning and judging
    pixels: Bytes  # (H, W, 3) RGB
    landmarks: Floats  # (68, 2) px
    bounds: tuple[
        float, float, float, float
    ]  # left, top, right, bottom px: within, nothing was made up at a border

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.landmarks.shape != (68, 2):
            raise ValueError(
                f"Portrait wants (H, W, 3) and (68, 2), got {self.pixels.shape}, {self.landmarks.shape}"
            )


def photographed(
    photo: Photo, person: str, *, size: int, rng: np.random.Generator
) -> Portrait | None:
    """A photo framed in ``size`` px and seen by a sensor as the views of a dataset are.

    None when the photo's own pixels are too few for the drawn frame: enlarging it would show.
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


def evaluate_shape(portrait: Portrait) -> Floats:
    """(82,) where the inner landmarks lie in their box, over its longer side: pose and expression
    in one.
    """
    points = portrait.landmarks[WITHIN]
    low, high = points.min(0), points.max(0)
    return np.asarray(((points - (low + high) / 2.0) / (high - low).max()).ravel())


def matched(real: Floats, made: Floats, limit: float = SHAPE_LIMIT) -> tuple[Ints, Ints]:
    """Rows (K,) of (N, F) ``real`` and of (M, F) ``made`` shapes that are paired: as near in total
    as can be.

    Each is paired once at most, and never over more than ``limit``, root mean square over the
    landmarks.
    """
    squares = (real**2).sum(1)[:, None] + (made**2).sum(1) - 2.0 * real @ made.T
    away = np.sqrt(np.maximum(squares, 0.0) * 2.0 / real.shape[1])
    i, j = linear_sum_assignment(np.minimum(away, 2.0 * limit))
    near = away[i, j] <= limit
    return i[near], j[near]


@dataclass(frozen=True, eq=False)
class Aligned:
    """A portrait in the common frame."""

    pixels: Bytes  # (SIDE, SIDE, 3)
    inside: bool  # whether the frame lies within the picture's bounds


def aligned(portrait: Portrait, frame: float, *, rng: np.random.Generator) -> Aligned:
    """The square round the inner landmarks that is ``frame`` times as large as their box, a little
    jittered.
    """
    points = portrait.landmarks[WITHIN]
    low, high = points.min(0), points.max(0)
    side = frame * float((high - low).max()) * float(np.exp(rng.normal(0.0, ZOOM)))
    corner = (low + high) / 2.0 + rng.normal(0.0, SHIFT, 2) * side - side / 2.0
    fine = SIDE * OVERSAMPLING
    step = side / fine
    # cv2 counts from the first pixel's centre.
    first = corner + step / 2.0 - 0.5
    warp = np.array([[step, 0.0, first[0]], [0.0, step, first[1]]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    drawn = cv2.warpAffine(
        portrait.pixels, warp, (fine, fine), flags=how, borderMode=cv2.BORDER_REFLECT_101
    )
    small = cv2.resize(drawn, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    inside = bool(
        (corner >= portrait.bounds[:2]).all() and (corner + side <= portrait.bounds[2:]).all()
    )
    return Aligned(decode(encode_jpeg(small, QUALITY)), inside)


def oval(pixels: Bytes) -> Bytes:
    """(..., SIDE, SIDE, 3) crops of which only a fixed oval is left: nothing but face, and no
    outline to learn from.
    """
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE - 0.5
    kept = (x / OVAL[0]) ** 2 + (y / OVAL[1]) ** 2 <= 1.0
    return np.where(kept[..., None], pixels, np.uint8(GREY))


@dataclass(frozen=True)
class Judgement:
    """How well two kinds of pictures are told apart: balanced accuracy, and its 95 % interval over
    people.
    """

    accuracy: float
    low: float
    high: float
    pictures: int  # of both kinds together
    people: int


def described(pictures: Bytes) -> Floats:
    """(N, F) float32 of (N, SIDE, SIDE, 3) crops: in each cell colour, the energy of three bands of
    detail, and edges.

    Edges are orientations of gradients at two scales, as histograms that don't know their contrast
    (Dalal and Triggs 2005); the energy of fine bands is what betrays renderings and what is
    smoothed.
    """
    return np.stack([_described(picture) for picture in pictures])


def _described(picture: Bytes) -> Floats:
    colour = cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb).astype(np.float32) / 255.0
    parts = [_cells(colour)]
    before = colour
    for sd in BANDS:
        smooth = cv2.GaussianBlur(colour, (0, 0), sd)
        parts.append(np.log(0.002 + _cells(np.abs(before - smooth))))
        before = smooth
    for sd in EDGES:
        smooth = cv2.GaussianBlur(colour[..., 0], (0, 0), sd)
        dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
        angle = np.arctan2(dy, dx) % np.pi / np.pi * TURNS
        away = np.abs((angle[..., None] - np.arange(TURNS) + TURNS / 2) % TURNS - TURNS / 2)
        turns = _cells(np.maximum(1.0 - away, 0.0) * np.hypot(dx, dy)[..., None])
        parts.append(np.sqrt(turns / (turns.sum(axis=2, keepdims=True) + 0.02)))
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def _cells(values: Floats) -> Floats:
    return np.asarray(
        cv2.resize(values.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    )


def tell_apart(pictures: Bytes, made: Bools, people: Sequence[str], *, seed: int) -> Judgement:
    """Learn to tell (N, SIDE, SIDE, 3) ``pictures`` that are ``made`` (N,) from the others; judge
    it on unseen people.

    Each of FOLDS parts of the people is judged by what was learned from the rest: kernel ridge
    regression, both kinds weighing the same. The same input gives the same figure. Raises
    ValueError when one of the kinds is missing or there are fewer people than folds.
    """
    names = sorted(set(people))
    if (
        made.all()
        or not made.any()
        or len(names) < FOLDS
        or not len(pictures) == len(people) == len(made)
    ):
        raise ValueError(
            f"telling apart wants both kinds and {FOLDS} people, got {made.sum()} of {len(made)}"
        )
    rng = np.random.default_rng(seed)
    part = dict(zip(rng.permutation(names).tolist(), np.arange(len(names)) % FOLDS, strict=True))
    fold = np.array([part[name] for name in people])
    features = described(pictures)
    said = np.zeros(len(made))
    for index in range(FOLDS):
        held = fold == index
        said[held] = _learned(features[~held], made[~held], features[held])
    return _judged((said > 0) == made, made, np.array([names.index(p) for p in people]), rng)


def _learned(known: Floats, made: Bools, asked: Floats) -> Floats:
    """(M,) above 0 where (M, F) ``asked`` look made, after (N, F) ``known`` of which (N,) are
    ``made``.
    """
    mean, spread = known.mean(0), known.std(0) + 1e-3
    a, b = (
        np.clip((some - mean) / spread, -4.0, 4.0).astype(np.float64) for some in (known, asked)
    )
    # Both kinds have the same say, however many there are of each.
    weight = np.where(made, 0.5 / made.sum(), 0.5 / (~made).sum()) * len(made)
    ridge = np.diag(RIDGE / weight)
    target = np.where(made, 1.0, -1.0)
    return np.asarray(_kernel(b, a) @ np.linalg.solve(_kernel(a, a) + ridge, target))


def _kernel(a: Floats, b: Floats) -> Floats:
    away = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2.0 * a @ b.T
    return np.exp(-np.maximum(away, 0.0) / a.shape[1])


def _judged(right: Bools, made: Bools, person: Ints, rng: np.random.Generator) -> Judgement:
    """Balanced accuracy; its interval by drawing people with replacement."""
    count = int(person.max()) + 1
    tallies = np.stack(
        [np.bincount(person, w, count) for w in (made, made & right, ~made, ~made & right)]
    ).astype(float)
    drawn = (
        rng.multinomial(len(set(person.tolist())), np.full(count, 1.0 / count), RESAMPLES)
        @ tallies.T
    )
    spread = (
        drawn[:, 1] / np.maximum(drawn[:, 0], 1.0) + drawn[:, 3] / np.maximum(drawn[:, 2], 1.0)
    ) / 2.0
    of_made, right_made, of_real, right_real = tallies.sum(1)
    low, high = np.percentile(spread, (2.5, 97.5))
    accuracy = (right_made / of_made + right_real / of_real) / 2.0
    return Judgement(float(accuracy), float(low), float(high), len(made), count)
