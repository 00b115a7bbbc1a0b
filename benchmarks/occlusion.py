"""Faces that a mask, a hand, an object or another face covers: are they found, is it known what.

    python -m benchmarks.occlusion 300W/ --count 20

Covers are painted over photos with ``.pts`` files, by their labels, ``--count`` of each kind. A
photo is aligned as a whole. A face is *found* where one of IoU 0.3 with the label is answered, and
*off* where its uncovered inner landmarks err by more than 10 % of the distance of the outer eye
corners. Visibility: of the inner landmarks of found faces. Those that the cover leaves count as
visible, though some may be turned away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.detection import overlap
from dff.aligner.load import load_aligner
from dff.aligner.threads import use_threads
from dff.face.arrays import Bools, Bytes, Floats
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import (
    CHIN,
    INNER,
    MOUTH,
    MOUTH_CORNERS,
    NOSE_BASE,
    NOSE_ROOT,
    NOSE_TIP,
    OUTER_EYE_CORNERS,
)
from dff.infra.photos.images import decode
from dff.infra.photos.landmark_files import parse_pts

MEETS, OFF = 0.3, 0.1
SMALLEST = 60.0  # pixels of a labelled face
JAW_UNDER_MASK = slice(1, 16)
COVERED = (CHIN, *MOUTH_CORNERS, NOSE_TIP, *OUTER_EYE_CORNERS)  # where hands and objects lie


@dataclass(frozen=True)
class LabelledFace:
    """A photo and its face."""

    image: Bytes  # (H, W, 3) RGB
    points: Floats  # (68, 2) pixels

    @property
    def size(self) -> float:
        return Box.around(self.points).size

    @property
    def eyes_apart(self) -> float:
        return float(np.linalg.norm(np.subtract(*self.points[list(OUTER_EYE_CORNERS)])))

    @property
    def skin(self) -> Floats:
        """(3,) the median colour of the face."""
        inside = fill(self.image.shape, cv2.convexHull(self.points.astype(np.float32))[:, 0]) > 0.5
        return np.asarray(np.median(self.image[inside], axis=0))


@dataclass(frozen=True)
class Cover:
    """What is painted over a photo."""

    colour: Floats  # (H, W, 3)
    alpha: Floats  # (H, W), 0 to 1


Painter = Callable[[LabelledFace, LabelledFace, np.random.Generator], Cover]


def fill(shape: tuple[int, ...], polygon: Floats) -> Floats:
    """(H, W) share of each pixel that lies in a (N, 2) polygon."""
    big = np.zeros((2 * shape[0], 2 * shape[1]), np.uint8)
    cv2.fillPoly(big, [np.rint(2 * polygon).astype(np.int32)], 255)
    small = cv2.resize(big, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(small / 255.0)


def light(face: LabelledFace, alpha: Floats) -> Floats:
    """(H, W, 1) the photo's blurred brightness over its mean in the cover."""
    grey = cv2.GaussianBlur(face.image.mean(2), (0, 0), 0.12 * face.size)
    mean = max(float(grey[alpha > 0.5].mean()), 1.0) if (alpha > 0.5).any() else 128.0
    return np.asarray(np.clip(grey / mean, 0.55, 1.5)[..., None])


def mask_alpha(face: LabelledFace, rng: np.random.Generator) -> Floats:
    """(H, W) a mask from the bridge of the nose to below the chin."""
    points = face.points
    bridge = points[NOSE_ROOT] + rng.uniform(0.35, 0.85) * (points[NOSE_TIP] - points[NOSE_ROOT])
    middle = points[NOSE_ROOT : NOSE_BASE + 1].mean(0)
    jaw = middle + (points[JAW_UNDER_MASK] - middle) * rng.uniform(1.02, 1.1)
    low = 0.04 * (points[CHIN] - points[NOSE_ROOT])
    cheeks = [0.45 * end + 0.55 * bridge + low for end in (jaw[-1], jaw[0])]
    return fill(face.image.shape, np.vstack([jaw, cheeks[0], bridge, cheeks[1]]))


def plain_mask(colour: Callable[[LabelledFace, np.random.Generator], Floats]) -> Painter:
    """Paints masks of one ``colour``, (3,) or (H, W, 3)."""

    def paint(face: LabelledFace, other: LabelledFace, rng: np.random.Generator) -> Cover:
        alpha = mask_alpha(face, rng)
        return Cover(np.clip(colour(face, rng) * light(face, alpha), 0, 255), alpha)

    return paint


def checked(face: LabelledFace, rng: np.random.Generator) -> Floats:
    """(H, W, 3) a check of two colours."""
    across = np.indices(face.image.shape[:2]) * (2 * np.pi / (0.08 * face.size))
    a, b = rng.uniform(30, 230, (2, 3))
    return np.asarray(np.where((np.sin(across).prod(0) > 0)[..., None], a, b))


def printed_mask(own: bool) -> Painter:
    """Paints masks with a mouth on them: the ``own`` one of the face, or another's."""

    def paint(face: LabelledFace, other: LabelledFace, rng: np.random.Generator) -> Cover:
        cover = plain_mask(lambda face, rng: rng.uniform(200, 240, 3))(face, other, rng)
        source = face if own else other
        lips, eyes = source.points[MOUTH], face.points[list(OUTER_EYE_CORNERS)]
        width = face.eyes_apart * rng.uniform(0.45, 0.65)
        across = np.subtract(*lips[[6, 0]])  # between its corners
        turn = complex(*(eyes[1] - eyes[0])) / face.eyes_apart * width / complex(*across)
        matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
        place = face.points[NOSE_BASE] + 0.45 * (face.points[CHIN] - face.points[NOSE_BASE])
        shift = place - matrix @ lips.mean(0)
        size = face.image.shape[1::-1]
        print_ = cv2.warpAffine(source.image, np.column_stack([matrix, shift]), size)
        hull = cv2.convexHull((1.12 * (lips - lips.mean(0))).astype(np.float32))[:, 0]
        inside = fill(face.image.shape, hull @ matrix.T + place)
        inside = cv2.GaussianBlur(inside, (0, 0), 0.008 * face.size)[..., None]
        return Cover(cover.colour * (1 - inside) + print_ * inside, cover.alpha)

    return paint


def hand(face: LabelledFace, other: LabelledFace, rng: np.random.Generator) -> Cover:
    """A palm with four fingers, of the face's colour, that come from beside the face."""
    at = face.points[rng.choice(COVERED)]
    angle, unit = rng.uniform(0, 2 * np.pi), face.size
    along = np.array([np.cos(angle), np.sin(angle)])
    aside = np.array([-along[1], along[0]])
    alpha = np.zeros(face.image.shape[:2], np.uint8)
    shade = np.ones(face.image.shape[:2])
    for finger in (-1.5, -0.5, 0.5, 1.5):
        root = at + 0.12 * unit * finger * aside + 0.3 * unit * along
        tip = at + 0.1 * unit * finger * aside - rng.uniform(0.1, 0.2) * unit * along
        a, b = (tuple(np.rint(end).astype(int).tolist()) for end in (root, tip))
        bright = rng.uniform(0.85, 1.1)
        cv2.line(alpha, a, b, (255,), max(round(0.11 * unit), 1), cv2.LINE_AA)
        cv2.line(shade, a, b, (bright,), max(round(0.08 * unit), 1), cv2.LINE_AA)
    palm = tuple(np.rint(at + 0.5 * unit * along).astype(int).tolist())
    cv2.circle(alpha, palm, round(0.3 * unit), (255,), -1, cv2.LINE_AA)
    shade = cv2.GaussianBlur(shade, (0, 0), 0.02 * unit)[..., None]
    return Cover(np.clip(face.skin * rng.uniform(0.85, 1.15) * shade, 0, 255), alpha / 255.0)


def block(face: LabelledFace, other: LabelledFace, rng: np.random.Generator) -> Cover:
    """A turned rectangle of one colour or a check."""
    at, angle = face.points[rng.choice(COVERED)], rng.uniform(0, np.pi)
    sides = face.size * rng.uniform(0.25, 0.6, 2) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * sides
    colour = checked(face, rng) if rng.random() < 0.5 else rng.uniform(20, 235, 3)
    alpha = fill(face.image.shape, corners @ turn.T + at)
    return Cover(np.broadcast_to(colour, face.image.shape), alpha)


def other_face(face: LabelledFace, other: LabelledFace, rng: np.random.Generator) -> Cover:
    """Another face of the same size before one side of the face."""
    scale = face.size / other.size
    aside = rng.choice([-1, 1]) * rng.uniform(0.5, 0.75) * face.size * np.array([1.0, 0.0])
    shift = face.points.mean(0) + aside - scale * other.points.mean(0)
    size = face.image.shape[1::-1]
    moved = cv2.warpAffine(
        other.image, np.column_stack([scale * np.eye(2), shift]), size, flags=cv2.INTER_AREA
    )
    hull = cv2.convexHull((scale * other.points + shift).astype(np.float32))[:, 0]
    middle = hull.mean(0)
    hull = middle + (hull - middle) * 1.15 - [0.0, 0.1 * face.size]
    return Cover(moved.astype(float), fill(face.image.shape, hull))


KINDS: dict[str, Painter] = {
    "surgical mask": plain_mask(lambda face, rng: np.array([130, 175, 205.0]) + rng.normal(0, 12)),
    "white mask": plain_mask(lambda face, rng: np.full(3, 228.0)),
    "black mask": plain_mask(lambda face, rng: np.full(3, 37.0)),
    "checked mask": plain_mask(checked),
    "mask of the skin's colour": plain_mask(lambda face, rng: face.skin),
    "mask with the own mouth": printed_mask(own=True),
    "mask with another's mouth": printed_mask(own=False),
    "hand": hand,
    "object": block,
    "another face": other_face,
}


@dataclass(frozen=True)
class Outcome:
    """One covered face."""

    covered: Bools  # (68,)
    found: Alignment | None
    error: float  # of its uncovered inner landmarks, fraction of the distance of the eyes


def align_covered(
    aligner: Aligner, face: LabelledFace, cover: Cover, rng: np.random.Generator
) -> Outcome:
    """Paint one cover, with the noise of a camera, and align the photo."""
    edge = cv2.GaussianBlur(cover.alpha, (0, 0), max(0.5, 0.006 * face.size))[..., None]
    colour = cover.colour + rng.normal(0, 2.5, (*face.image.shape[:2], 1))
    image = np.clip(face.image * (1 - edge) + colour * edge, 0, 255).astype(np.uint8)
    x, y = np.clip(face.points.astype(int), 0, np.array(image.shape[1::-1]) - 1).T
    covered = cover.alpha[y, x] > 0.5
    label = corners_of(face.points)
    best, share = None, MEETS
    for one in aligner.align(image):
        met = overlap(corners_of(one.landmarks_3d[:, :2]), label)
        best, share = (one, met) if met >= share else (best, share)
    if best is None:
        return Outcome(covered, None, np.nan)
    away = np.linalg.norm(best.landmarks_2d - face.points, axis=1)[INNER]
    return Outcome(covered, best, float(away[~covered[INNER]].mean()) / face.eyes_apart)


def corners_of(points: Floats) -> Floats:
    return np.concatenate([points.min(0), points.max(0)])


def summarize(outcomes: list[Outcome]) -> list[str]:
    """The cells of a row: counts, and figures of the visibility of inner landmarks."""
    found = [one for one in outcomes if one.found is not None]
    hidden = np.concatenate([one.covered[INNER] for one in found])
    seen = np.concatenate([one.found.visibility[INNER] for one in found if one.found])
    return [
        f"{len(found)} of {len(outcomes)}",
        str(sum(one.error > OFF for one in found)),
        f"{roc_auc_score(~hidden, seen):.3f}",
        f"{(seen[hidden] > 0.5).mean():.0%}",
        f"{(seen[~hidden] < 0.5).mean():.0%}",
    ]


def read_faces(folder: Path, seed: int) -> list[LabelledFace]:
    """All labelled faces of a folder that are large enough, in random order."""
    files = sorted(folder.rglob("*.pts"))
    faces = []
    for number in np.random.default_rng(seed).permutation(len(files)):
        points = parse_pts(files[number].read_bytes())
        photos = [path for path in files[number].parent.glob(f"{files[number].stem}.*g")]
        if photos and Box.around(points).size > SMALLEST:
            faces.append(LabelledFace(decode(photos[0].read_bytes(), upright=False), points))
    return faces


def main(
    folder: Annotated[Path, typer.Argument(help="Photos with .pts files; subfolders too.")],
    count: Annotated[int, typer.Option(min=1, help="Photos of each kind.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the photos and covers.")] = 0,
    preset: Annotated[str, typer.Option(help="Of the aligner.")] = "balanced",
) -> None:
    use_threads(1)
    cv2.setNumThreads(1)
    aligner, rng = load_aligner(preset=preset), np.random.default_rng(seed)
    faces = read_faces(folder, seed)
    if not faces:
        raise typer.BadParameter(f"{folder} has no photo with a .pts file and a large enough face")
    table = Table(
        "cover", "found", "off", "AUROC", "hidden called visible", "visible called hidden"
    )
    every: list[Outcome] = []
    for kind, paint in KINDS.items():
        some = []
        for _ in range(count):
            face, other = faces[rng.integers(len(faces))], faces[rng.integers(len(faces))]
            some.append(align_covered(aligner, face, paint(face, other, rng), rng))
        table.add_row(kind, *summarize(some))
        every += some
    table.add_row("all", *summarize(every))
    Console().print(table)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=__doc__)(main)
    app()
