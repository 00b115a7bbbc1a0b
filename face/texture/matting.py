"""The alpha matte of the person in a photo: hair, hat, neck and clothes against the background.

The fitted head says where the person surely is; colours decide the rest, by a cut through a graph
of pixels. Source: Rother, Kolmogorov and Blake, "GrabCut" (2004), as in OpenCV. Its colour models
are started here and not by OpenCV, which draws from a random generator of the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Bytes, Floats, Ints
from dff.face.model.landmarks import CHIN, INNER, head_up
from dff.face.texture.fitted_head import FittedHead


@dataclass(frozen=True)
class MattingConfig:
    """How the matte is estimated."""

    side: int = 96  # px at which the cut is made: it takes 15 ms, and its edge is soft anyway
    rounds: int = 2
    near_head: float = 0.015  # metres from the head's silhouette that are rather the person
    near_body: float = 0.05  # the same below the chin
    # Metres from which nothing above the eyes is the person: without such, the cut takes all.
    far: float = 0.05
    facing: float = 0.35  # cosine towards the camera from which the fitted skin is surely visible
    softness: float = 1.0  # px of the edge


MATTING = MattingConfig()


def estimate_matte(head: FittedHead, config: MattingConfig = MATTING) -> Floats:
    """(S, S) float32 0..1: how far each pixel of the crop shows the person.

    Pixels beyond the photo's border belong to the background.
    """
    side, size = config.side, head.size
    small = cv2.resize(head.recovery.crop, (side, side), interpolation=cv2.INTER_AREA)
    small = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    labels = _guess_labels(head, config)
    if (labels & 1).any() and not (labels & 1).all():
        _cut(small, labels, config.rounds)
    cut = cv2.GaussianBlur((labels & 1).astype(np.float32), (0, 0), config.softness)
    return np.asarray(
        cv2.resize(cut, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.float32
    )


def _guess_labels(head: FittedHead, config: MattingConfig) -> Bytes:
    """(side, side) OpenCV's labels: sure or likely foreground or background."""
    side = config.side
    scale = side / head.size
    landmarks = head.recovery.landmarks
    facing = head.skin & (head.frame.normal[..., 2] < -config.facing)
    mask, skin, valid = (
        cv2.resize(m.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
        for m in (head.frame.mask, facing, head.recovery.valid)
    )
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) * (head.pixel / scale)
    chin = landmarks[CHIN] * scale
    up = head_up(landmarks * scale)
    at = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=2) + 0.5 - chin
    height = at @ up / max(float(up @ up), 1.0)  # 0 at the chin, 1 at the eyes
    labels = np.full((side, side), cv2.GC_PR_BGD, dtype=np.uint8)
    labels[outside < np.where(height < 0.0, config.near_body, config.near_head)] = cv2.GC_PR_FGD
    labels[(outside > config.far) & (height > 1.0)] = cv2.GC_BGD
    labels[valid == 0] = cv2.GC_BGD
    hull = cv2.convexHull(np.round(landmarks[INNER] * scale).astype(np.int32))
    cv2.fillConvexPoly(skin, hull, 1)  # eyes and mouth are not skin
    labels[(cv2.erode(skin, np.ones((3, 3), np.uint8)) & mask & valid) > 0] = cv2.GC_FGD
    return labels


def _cut(image: Bytes, labels: Bytes, rounds: int) -> None:
    """Cut an (H, W, 3) image by (H, W) ``labels``, which become those of the cut."""
    inside = (labels & 1).astype(bool)
    draw = _multiply_with_carry()
    background, foreground = (_fit_mixture(image[m], draw) for m in (~inside, inside))
    cv2.grabCut(image, labels, None, background, foreground, rounds, cv2.GC_EVAL)


COMPONENTS = 5  # of the Gaussian mixtures of OpenCV's GrabCut
MIXTURE_STEPS = 10
SEEDING_TRIALS = 3
LEAST_DETERMINANT, WHITE_NOISE = 1e-6, 0.01  # what keeps a covariance from being singular


def _fit_mixture(colours: Bytes, draw: Iterator[int]) -> Floats:
    """(1, 65) weights, means and covariances, in OpenCV's order, of (N, 3) colours' clusters.

    ``draw`` gives uniform 32-bit numbers.
    """
    samples = colours.reshape(-1, 3).astype(np.float32)
    count = min(COMPONENTS, len(samples))
    centres = samples[_seed_clusters(samples, count, draw)]
    label = ((samples[:, None] - centres[None]) ** 2).sum(2).argmin(1).astype(np.int32)
    if count > 1:
        # Seeding was OpenCV's first step.
        stop = (cv2.TERM_CRITERIA_MAX_ITER, MIXTURE_STEPS - 1, 0.0)
        flags = cv2.KMEANS_USE_INITIAL_LABELS
        _, label, _ = cv2.kmeans(samples, count, label[:, None], stop, 1, flags)
    out = np.zeros((13, COMPONENTS))
    weights, means, covariances = out[:1].ravel(), np.zeros((5, 3)), np.zeros((5, 3, 3))
    for k in range(count):
        own = samples[label.ravel() == k].astype(np.float64)
        if len(own) == 0:
            continue
        share = 1.0 / len(own)
        weights[k] = len(own) / len(samples)
        means[k] = own.sum(0) * share
        covariances[k] = (own.T @ own) * share - np.outer(means[k], means[k])
        if np.linalg.det(covariances[k]) <= LEAST_DETERMINANT:
            covariances[k] += WHITE_NOISE * np.eye(3)
    return np.concatenate([weights, means.ravel(), covariances.ravel()])[None]


def _seed_clusters(samples: Floats, count: int, draw: Iterator[int]) -> Ints:
    """Rows of (N, D) samples from which k-means starts: each far from those before.

    Source: Arthur and Vassilvitskii, "k-means++" (2007), with the best of some trials as in OpenCV.
    """
    chosen = [next(draw) % len(samples)]
    nearest = ((samples - samples[chosen[0]]) ** 2).sum(1)
    for _ in range(1, count):
        trials = []
        total = nearest.sum(dtype=np.float64)
        for _ in range(SEEDING_TRIALS):
            place = ((next(draw) << 32) | next(draw)) * 2.0**-64 * total
            row = int(np.searchsorted(np.cumsum(nearest, dtype=np.float64), place))
            row = min(row, len(samples) - 1)
            closer = np.minimum(nearest, ((samples - samples[row]) ** 2).sum(1))
            trials.append((closer.sum(dtype=np.float64), row, closer))
        _, row, nearest = min(trials, key=lambda trial: trial[0])
        chosen.append(row)
    return np.array(chosen)


def _multiply_with_carry() -> Iterator[int]:
    """Uniform 32-bit numbers of Marsaglia's generator, as OpenCV's with seed 0."""
    state = 2**32 - 1
    while True:
        state = (state & 0xFFFFFFFF) * 4164903690 + (state >> 32)
        yield state & 0xFFFFFFFF
