"""How real views look: whether a small network learns to tell them from photos.

Portraits of both kinds are brought to the same frame by their inner landmarks, to the same size, and through the same
JPEG; the photos have been framed and photographed by the same sampler and sensor as the views, and each view meets a
photo of nearly the same pose. So what remains to be learned is how faces look. The figure is balanced accuracy on
people that the network has not seen: one half is chance, and perfect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from face.arrays import Bools, Bytes, Floats, Ints
from face.transform import angles_from_rotation
from infra.images import decode
from pipeline import sampling
from pipeline.landmark_fit import LandmarkRig, fit_landmarks
from pipeline.photos import Photo, Scheme
from pipeline.sensor import exposed, jpeg

SIDE = 64  # px of an aligned crop
QUALITY = 90  # of the JPEG that every aligned crop goes through
OVERSAMPLING = 4  # the frame is drawn this much larger and averaged, so that no source's size shows
WITHIN = slice(27, 68)  # the landmarks that frame a crop: nose, eyes, mouth; jaws and brows are marked by taste
FACE_FRAME, WHOLE_FRAME = 1.9, 2.4  # sides of those landmarks' box
OVAL = (0.36, 0.42)  # half axes of what is kept of a face, in sides of its frame
GREY = 128
SHIFT, ZOOM = 0.03, 0.05  # standard deviations of the frame's jitter, in its sides
POSE_LIMIT = 10.0  # degrees by which a photo's pose may differ from that of the view it meets
FOLDS, EPOCHS, BATCH, RATE = 5, 24, 64, 3e-3
WIDTHS = (16, 32, 48, 64)
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Portrait:
    """A picture of a face whose landmarks are known. Raises ValueError when the shapes are wrong."""

    person: str  # portraits of one person are never split between learning and judging
    pixels: Bytes  # (H, W, 3) RGB
    landmarks: Floats  # (68, 2) px
    scheme: Scheme
    bounds: tuple[float, float, float, float]  # left, top, right, bottom px: within, nothing was made up at a border

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.landmarks.shape != (68, 2):
            raise ValueError(f"Portrait wants (H, W, 3) and (68, 2), got {self.pixels.shape}, {self.landmarks.shape}")


def photographed(photo: Photo, person: str, *, size: int, rng: np.random.Generator) -> Portrait | None:
    """A photo framed in ``size`` px and seen by a sensor as the views of a dataset are.

    None when the photo's own pixels are too few for the drawn frame: enlarging it would show.
    """
    framing, sensor = sampling.sample_framing(rng=rng), sampling.sample_sensor(rng=rng)
    low, high = photo.landmarks.min(0), photo.landmarks.max(0)
    side = round(float((high - low).max()) / framing.share)
    if side < size:
        return None
    corner = np.round((low + high) / 2.0 - np.array(framing.centre) * side).astype(np.int64)
    height, width = photo.pixels.shape[:2]
    rows = np.clip(corner[1] + np.arange(side), 0, height - 1)
    columns = np.clip(corner[0] + np.arange(side), 0, width - 1)
    cut = cv2.resize(photo.pixels[rows[:, None], columns], (size, size), interpolation=cv2.INTER_AREA)
    seen = decode(jpeg(exposed(cut.astype(np.float32) / 255.0, sensor), sensor.quality))
    left, top = np.maximum(-corner, 0) * (size / side)
    right, bottom = np.minimum(np.array([width, height]) - corner, side) * (size / side)
    bounds = (float(left), float(top), float(right), float(bottom))
    return Portrait(person, seen, (photo.landmarks - corner) * (size / side), photo.scheme, bounds)


def pose_of(portrait: Portrait, rig: LandmarkRig) -> Floats:
    """(3,) yaw, pitch, roll in degrees, from the landmarks alone, for photos and views alike."""
    face = fit_landmarks(portrait.landmarks, rig, portrait.scheme)
    return np.array(angles_from_rotation(face.rotation[0]))


def matched(real: Floats, made: Floats, limit: float = POSE_LIMIT) -> tuple[Ints, Ints]:
    """Rows (K,) of (N, 3) ``real`` and of (M, 3) ``made`` poses that are paired: as near in total as can be.

    Each is paired once at most, and never over more than ``limit`` degrees.
    """
    away = np.linalg.norm(real[:, None] - made[None], axis=2)
    i, j = linear_sum_assignment(np.minimum(away, 2.0 * limit))
    near = away[i, j] <= limit
    return i[near], j[near]


@dataclass(frozen=True, eq=False)
class Aligned:
    """A portrait in the common frame."""

    pixels: Bytes  # (SIDE, SIDE, 3)
    inside: bool  # whether the frame lies within the picture's bounds


def aligned(portrait: Portrait, frame: float, *, rng: np.random.Generator) -> Aligned:
    """The square round the inner landmarks that is ``frame`` times as large as their box, a little jittered."""
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
    drawn = cv2.warpAffine(portrait.pixels, warp, (fine, fine), flags=how, borderMode=cv2.BORDER_REFLECT_101)
    small = cv2.resize(drawn, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    inside = bool((corner >= portrait.bounds[:2]).all() and (corner + side <= portrait.bounds[2:]).all())
    return Aligned(decode(jpeg(small, QUALITY)), inside)


def oval(pixels: Bytes) -> Bytes:
    """(..., SIDE, SIDE, 3) crops of which only a fixed oval is left: nothing but face, and no outline to learn from."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE - 0.5
    kept = (x / OVAL[0]) ** 2 + (y / OVAL[1]) ** 2 <= 1.0
    return np.where(kept[..., None], pixels, np.uint8(GREY))


@dataclass(frozen=True)
class Judgement:
    """How well two kinds of pictures are told apart: balanced accuracy, and its 95 % interval over people."""

    accuracy: float
    low: float
    high: float
    pictures: int  # of both kinds together
    people: int


class _Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(WIDTHS):
            layers += [nn.Conv2d(before, width, 3, 2 if index else 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2))
        self.head = nn.Linear(before, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N,) logits of (N, 3, S, S)."""
        out: Tensor = self.head(self.body(images))[:, 0]
        return out


def tell_apart(
    pictures: Bytes, made: Bools, people: Sequence[str], *, seed: int, folds: int = FOLDS, epochs: int = EPOCHS
) -> Judgement:
    """Learn to tell (N, S, S, 3) ``pictures`` that are ``made`` (N,) from the others, and judge it on unseen people.

    Each of ``folds`` parts of the people is judged by a network that learned from the rest. The same input gives the
    same figure. Raises ValueError when one of the kinds is missing or there are fewer people than folds.
    """
    names = sorted(set(people))
    if made.all() or not made.any() or len(names) < folds or len(pictures) != len(made) or len(people) != len(made):
        raise ValueError(f"telling apart wants both kinds and {folds} people, got {made.sum()} of {len(made)}")
    rng = np.random.default_rng(seed)
    part = dict(zip(rng.permutation(names).tolist(), np.arange(len(names)) % folds, strict=True))
    fold = np.array([part[name] for name in people])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 64.0 - 2.0
    labels = torch.from_numpy(made.astype(np.float32))
    said = np.zeros(len(made))
    for index in range(folds):
        seen = torch.from_numpy(np.flatnonzero(fold != index))
        held = torch.from_numpy(np.flatnonzero(fold == index))
        judge = _learned(images[seen], labels[seen], epochs, int(rng.integers(2**31)))
        with torch.no_grad():
            both = judge(images[held]) + judge(images[held].flip(3))
        said[held.numpy()] = both.numpy()
    return _judged((said > 0) == made, made, np.array([names.index(p) for p in people]), rng)


def _learned(images: Tensor, labels: Tensor, epochs: int, seed: int) -> _Judge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = _Judge()
        optimiser = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=0.02)
        steps = epochs * -(-len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
        # Balanced accuracy is asked for: both kinds weigh the same.
        loss_of = nn.BCEWithLogitsLoss(pos_weight=(1.0 - labels).sum() / labels.sum())
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                batch = images[chosen]
                if torch.rand(()) < 0.5:
                    batch = batch.flip(3)
                moved = torch.randint(-2, 3, (2,)).tolist()
                loss = loss_of(judge(batch.roll(moved, (2, 3))), labels[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return judge.eval()


def _judged(right: Bools, made: Bools, person: Ints, rng: np.random.Generator) -> Judgement:
    """Balanced accuracy; its interval by drawing people with replacement."""
    count = int(person.max()) + 1
    tallies = np.stack([np.bincount(person, w, count) for w in (made, made & right, ~made, ~made & right)]).astype(
        float
    )
    drawn = rng.multinomial(len(set(person.tolist())), np.full(count, 1.0 / count), RESAMPLES) @ tallies.T
    spread = (drawn[:, 1] / np.maximum(drawn[:, 0], 1.0) + drawn[:, 3] / np.maximum(drawn[:, 2], 1.0)) / 2.0
    of_made, right_made, of_real, right_real = tallies.sum(1)
    low, high = np.percentile(spread, (2.5, 97.5))
    accuracy = (right_made / of_made + right_real / of_real) / 2.0
    return Judgement(float(accuracy), float(low), float(high), len(made), count)
