"""Followed faces beside faces aligned in full in every frame: ``python -m benchmarks.following``.

PHOTOS: folders of AFLW2000-3D with reannotated landmarks. Each photo becomes a film: it is shifted
by up to 8 % of the face size, turned by 10 degrees and scaled by 8 % in sines, one cycle in 24
frames, with fresh noise of three grey levels in each frame. NME over the box of all frames after
the first; unsteadiness: root mean square of the motion between frames that the film does not have,
per cent of the face size and coordinate. CPU times on one core; the first frame is not counted.
"""

from __future__ import annotations

import time
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from dff.aligner.align import Aligner
from dff.aligner.load import load_aligner
from dff.aligner.tracking.following import FaceFollower
from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import nme_box
from dff.infra.photos.images import read_image
from dff.infra.photos.landmark_files import parse_reannotated

CYCLE, RATE, NOISE = 24, 25.0, 3.0


def film(
    photo: Bytes, landmarks: Floats, seed: int, count: int
) -> tuple[list[Bytes], list[Floats]]:
    """``count`` frames, and the (2, 3) similarity of pixels by which each moves the photo."""
    rng = np.random.default_rng(seed)
    phase, box = rng.uniform(0, 2 * np.pi, 4), Box.around(landmarks)
    frames, moves = [], []
    for i in range(count):
        wave = np.sin(2 * np.pi * i / CYCLE + phase)
        angle, scale = np.deg2rad(10) * wave[0], 1 + 0.08 * wave[1]
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]])
        move = np.column_stack([turn, box.centre + 0.08 * box.size * wave[2:] - turn @ box.centre])
        centred = move.copy()  # OpenCV counts the first pixel's centre as 0
        centred[:, 2] += turn @ np.full(2, 0.5) - 0.5
        size = photo.shape[1::-1]
        frame = cv2.warpAffine(photo, centred, size, borderMode=cv2.BORDER_REFLECT)
        noisy = frame + rng.normal(size=frame.shape) * NOISE
        frames.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
        moves.append(move)
    return frames, moves


def follow(aligner: Aligner, frames: list[Bytes], first: Box) -> tuple[Floats, float, int]:
    """(F, 68, 2) landmarks, milliseconds a frame after the first, and how many were in full."""
    follower = FaceFollower(aligner) if aligner.config.following.interval > 0 else None
    (face,) = aligner.align(frames[0], [first])
    followed = follower.begin(frames[0], face, 0.0) if follower else None
    out, full, start = [face.landmarks_3d[:, :2]], 0, time.process_time()
    for i, frame in enumerate(frames[1:], 1):
        followed = follower.follow(frame, followed, i / RATE) if follower and followed else None
        if followed is None:
            full += 1
            ((face,),) = aligner.track([frame], [[face]])
            followed = follower.begin(frame, face, i / RATE) if follower else None
        else:
            face = followed.face
        out.append(face.landmarks_3d[:, :2])
    ms = 1e3 * (time.process_time() - start) / (len(frames) - 1)
    return np.array(out), ms, full


def with_interval(aligner: Aligner, interval: float) -> Aligner:
    """The same aligner with so many seconds between full alignments of a followed face."""
    other = copy(aligner)
    following = replace(aligner.config.following, interval=interval)
    other.config = replace(aligner.config, following=following)
    return other


def main(
    photos: Annotated[list[Path], typer.Argument(help="Folders of AFLW2000-3D.")],
    every: Annotated[int, typer.Option(help="Of the photos.")] = 8,
    frames: Annotated[int, typer.Option(help="Of each film.")] = CYCLE,
    interval: Annotated[
        float | None,
        typer.Option(help="Seconds between full alignments; by default those of the preset."),
    ] = None,
    preset: str = "balanced",
    weights: str | None = None,
) -> None:
    aligner = load_aligner(weights, preset=preset)
    in_full = with_interval(aligner, 0.0)
    if interval is not None:
        aligner = with_interval(aligner, interval)
    labels: dict[Path, Floats] = {}
    for folder in photos:
        marked = parse_reannotated(next(folder.glob("*.npz")).read_bytes())
        if not isinstance(marked, dict):
            raise typer.BadParameter(f"{folder} has no .npz that names its photos")
        labels |= {folder / f"{name}.jpg": points[:, :2] for name, points in marked.items()}
    rows: dict[str, list[list[float]]] = {"in full in every frame": [], "followed": []}
    for seed, path in enumerate(sorted(labels)[::every]):
        truth = labels[path]
        shown, moves = film(read_image(path), truth, seed, frames)
        for name, one in zip(rows, (in_full, aligner), strict=True):
            first = Box.around(truth @ moves[0][:, :2].T + moves[0][:, 2])
            found, ms, full = follow(one, shown, first)
            errors = [
                nme_box(points, truth @ move[:, :2].T + move[:, 2])
                for points, move in zip(found, moves, strict=True)
            ]
            still = np.stack(
                [
                    np.linalg.solve(move[:, :2], (points - move[:, 2]).T).T
                    for points, move in zip(found, moves, strict=True)
                ]
            )
            size = Box.around(truth).size
            steps = np.sqrt((np.diff(still, axis=0) ** 2).mean()) / size
            share = full / (frames - 1)
            rows[name].append([100 * float(np.mean(errors[1:])), 100 * steps, share, ms])
    table = Table("", "NME, %", "unsteadiness, %", "frames in full, %", "ms a frame")
    for name, figures in rows.items():
        error, steps, full, ms = np.mean(figures, axis=0)
        table.add_row(name, f"{error:.2f}", f"{steps:.2f}", f"{100 * full:.0f}", f"{ms:.1f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
