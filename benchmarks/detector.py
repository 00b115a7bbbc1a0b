"""Recall and false detections on AFLW2000-3D and 300-W.

    python -m benchmarks.detector aflw2000-3d/ --annotated lfpw/ --annotated afw/ --every 4

A face counts as *seen* when a proposal of the search overlaps its landmark box by IoU 0.4, and as
*found* when a face that the aligner then accepts does. The baseline is YuNet, which comes from PyPI
into an environment of its own, made on first use. Detections of no labelled face count as false,
including people in the background that the set does not label. CPU time on one core, the fastest of
some rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from benchmarks.environments import install
from benchmarks.yunet import PACKAGE, YuNet
from dff.aligner.detection import overlap
from dff.aligner.evaluation.benchmarks import STEEP, YAW_BINS
from dff.aligner.load import load_aligner
from dff.aligner.threads import use_threads
from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import Box
from dff.infra.datasets.split import assign_split, default_group
from dff.infra.photos.images import decode
from dff.infra.photos.landmark_files import parse_mat, parse_pts
from dff.pipeline.scene.backgrounds import draw_background, sample_background

MEETS = 0.4
SIZES = (24, 32, 48, 64, 96, 192)
TURNS = (-60, -30, 0, 30, 60)
CANVAS = 320  # pixels of the photos that small faces are put into
TIMED, ROUNDS = 6, 3


@dataclass(frozen=True)
class Photo:
    """One image and the faces that it is known to show."""

    image: Bytes
    points: tuple[Floats, ...]  # (68, 2) pixels of each face
    yaw: float = 0.0  # degrees, of the first

    @property
    def boxes(self) -> list[Box]:
        return [Box.around(points) for points in self.points]

    def moved(self, matrix: Floats, width: int, height: int) -> Photo:
        """The photo under a (2, 3) map of pixels, low-passed where it shrinks."""
        scale = float(np.sqrt(np.linalg.det(matrix[:, :2])))
        image = self.image
        if scale < 0.8:
            image = cv2.GaussianBlur(
                image, (0, 0), 0.45 * float(np.sqrt(1.0 / scale**2 - 1.0))
            ).astype(np.uint8)
        shifted = matrix.copy()
        shifted[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5  # OpenCV counts pixel centres from 0
        image = cv2.warpAffine(image, shifted, (width, height), flags=cv2.INTER_LINEAR).astype(
            np.uint8
        )
        return replace(
            self, image=image, points=tuple(p @ matrix[:, :2].T + matrix[:, 2] for p in self.points)
        )


def photos(folder: Path) -> list[Photo]:
    out = []
    for path in sorted(folder.glob("*.jpg")):
        label = parse_mat(path.with_suffix(".mat").read_bytes())
        if max(abs(label.yaw), abs(label.pitch), abs(label.roll)) <= STEEP:
            out.append(
                Photo(
                    decode(path.read_bytes(), upright=False),
                    (label.landmarks[:, :2],),
                    abs(label.yaw),
                )
            )
    return out


def held_out(folders: Sequence[Path], every: int) -> list[Photo]:
    """Held-out photos of 300-W, one face of each."""
    paths = [
        path
        for folder in folders
        for path in sorted(folder.glob("*.pts"))
        if assign_split(default_group(path.stem)) == "dev"
    ]
    out = []
    for path in paths[::every]:
        (image,) = (
            one for one in path.parent.glob(f"{path.stem}.*") if one.suffix in (".jpg", ".png")
        )
        out.append(
            Photo(decode(image.read_bytes(), upright=False), (parse_pts(path.read_bytes()),))
        )
    return out


def shrunk(photo: Photo, face: float, seed: int) -> Photo:
    """The photo scaled to a face of ``face`` pixels, centred on a larger drawn background."""
    scale = face / photo.boxes[0].size
    size = round(max(2.0 * scale * max(photo.image.shape[:2]), CANVAS))
    corner = size / 2 - scale * np.array(photo.image.shape[1::-1]) / 2
    small = photo.moved(np.array([[scale, 0.0, corner[0]], [0.0, scale, corner[1]]]), size, size)
    image = background(seed, size).image
    (left, top), (right, bottom) = (
        np.ceil(corner).astype(int) + 1,
        np.floor(size - corner).astype(int) - 1,
    )
    rows, columns = slice(top, bottom), slice(left, right)
    image[rows, columns] = small.image[rows, columns]
    return replace(small, image=image)


def turned(photo: Photo, degrees: float) -> Photo:
    """The photo rotated about its centre."""
    height, width = photo.image.shape[:2]
    angle = np.deg2rad(degrees)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([width, height]) / 2
    return photo.moved(np.column_stack([linear, middle - linear @ middle]), width, height)


def pasted(one: Photo, other: Photo) -> Photo:
    """Two photos in one, the second at half the size."""
    height, width = one.image.shape[:2]
    small = other.moved(
        np.array([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]), other.image.shape[1] // 2, height
    )
    both = np.hstack([one.image, small.image])
    return Photo(
        both, (*one.points, *(points + np.array([width, 0.0]) for points in small.points)), one.yaw
    )


def blacked_out(photo: Photo) -> Photo:
    image = photo.image.copy()
    for box in photo.boxes:
        wide = box.square(1.45)
        cv2.rectangle(
            image, (int(wide.x0), int(wide.y0)), (int(wide.x1), int(wide.y1)), (0, 0, 0), -1
        )
    return Photo(image, ())


def background(seed: int, size: int = 450) -> Photo:
    rng = np.random.default_rng(seed)
    wall = draw_background(sample_background(rng=rng, surroundings=False), (size, size))
    return Photo(np.clip(wall * 255.0, 0.0, 255.0).astype(np.uint8), ())


Finder = Callable[[Bytes], list[Box]]


def score(find: Finder, some: Sequence[Photo]) -> tuple[Floats, float]:
    """(F,) whether each face was found, and the number of false detections per image."""
    hits, false = [], 0
    for photo in some:
        found = find(photo.image)
        meets = np.array([[_meeting(a, b) for a in found] for b in photo.boxes]).reshape(
            len(photo.boxes), len(found)
        )
        hits += [bool((row > MEETS).any()) for row in meets]
        false += (
            int(sum(not (column > MEETS).any() for column in meets.T))
            if photo.boxes
            else len(found)
        )
    return np.array(hits), false / max(len(some), 1)


def _meeting(a: Box, b: Box) -> float:
    return overlap(np.array([a.x0, a.y0, a.x1, a.y1]), np.array([b.x0, b.y0, b.x1, b.y1]))


def milliseconds(find: Finder, some: Sequence[Photo], clock: Callable[[], float]) -> float:
    """CPU time for an image by a clock in seconds, the fastest of some rounds."""
    best = np.inf
    for _ in range(ROUNDS):
        start = clock()
        for photo in some:
            find(photo.image)
        best = min(best, (clock() - start) / len(some))
    return 1e3 * float(best)


def main(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of AFLW2000-3D images with their .mat files.")
    ],
    weights: Annotated[str, typer.Option(help="Weights, a file or a shipped name.")] = "dff-open",
    annotated: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of 300-W photos with .pts: those that are held out. Repeated."),
    ] = None,
    every: Annotated[
        int,
        typer.Option(
            help="Take only every N-th image of 300-W, and of what is shrunk, turned and so on."
        ),
    ] = 1,
    environment: Annotated[
        Path, typer.Option(help="Where YuNet's environment is, or is made.")
    ] = Path("build/yunet"),
) -> None:
    use_threads(1)
    cv2.setNumThreads(1)
    whole = [photo for folder in folders for photo in photos(folder)]
    some = whole[::every]
    yaw = np.array([photo.yaw for photo in whole])
    sets: dict[str, list[Photo]] = {
        "300-W, held out": held_out(annotated or [], every),
        **{
            f"faces of {size} px": [shrunk(photo, size, i) for i, photo in enumerate(some)]
            for size in SIZES
        },
        **{f"turned by {turn} degrees": [turned(photo, turn) for photo in some] for turn in TURNS},
        "two in a photo": [pasted(a, b) for a, b in zip(some, some[1:] + some[:1], strict=True)],
        "face blacked out": [blacked_out(photo) for photo in some],
        "drawn backgrounds": [background(seed) for seed in range(len(some))],
    }
    aligner = load_aligner(weights)
    by: dict[str, Finder] = {
        "seen": lambda image: [one.box for one in aligner.detector.find(image)],
        "found": lambda image: [
            Box.around(face.landmarks_3d[:, :2]) for face in aligner.align(image)
        ],
    }
    clocks = dict.fromkeys(by, time.process_time)
    python = install(PACKAGE, environment)
    yunet = YuNet(python) if python else None
    if yunet:
        by["YuNet"], clocks["YuNet"] = yunet.find, lambda: yunet.seconds
    heads = ["", *(f"{name}, %" for name in by), *(f"false / image, {name}" for name in by)]
    _row(heads)
    _row(["---"] * len(heads))
    straight = {name: score(find, whole) for name, find in by.items()}
    for low, high in pairwise(YAW_BINS):
        own = (yaw >= low) & ((yaw < high) | (high == YAW_BINS[-1]))
        figures = [f"{100 * hits[own].mean():.0f}" for hits, _ in straight.values()]
        _row([f"yaw {low:.0f}-{high:.0f} ({own.sum()})", *figures, *[""] * len(by)])
    figures = [f"{100 * hits.mean():.0f}" for hits, _ in straight.values()]
    _row([f"all ({len(whole)})", *figures, *(f"{false:.2f}" for _, false in straight.values())])
    for name, photos_of in sets.items():
        if photos_of:
            got = [score(find, photos_of) for find in by.values()]
            figures = [f"{100 * hits.mean():.0f}" if len(hits) else "" for hits, _ in got]
            _row([f"{name} ({len(photos_of)})", *figures, *(f"{false:.2f}" for _, false in got)])
    for name, find in by.items():
        spent = milliseconds(find, whole[:TIMED], clocks[name])
        typer.echo(f"{name}: {spent:.0f} ms CPU for an image")
    if yunet:
        yunet.close()


def _row(cells: Sequence[str]) -> None:
    """Print a row of a Markdown table at once, so that an interrupted run shows its results."""
    typer.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
