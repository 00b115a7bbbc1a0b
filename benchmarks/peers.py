"""CPU time beside MediaPipe's on the same photos: ``python -m benchmarks.peers PHOTOS``.

PHOTOS: a folder of AFLW2000-3D, photos of 450 pixels with their ``.mat`` files. MediaPipe comes
from PyPI into an environment of its own, made on first use; of version 0.10.14, the last one whose
package holds its face mesh model. Both programs run on one core, in turns, and the fastest of the
rounds counts. Times are CPU times: ratios of one run are reliable, absolute numbers are not.

* face with its box: MediaPipe gets a crop, 1.5 times the box, and no batches
* photo without a box
* followed frame: a shifted photo with fresh sensor noise in each frame, after the first frame; one
  frame in 25 is searched for new faces, and every second time its face is aligned in full
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.environments import install
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box

MEDIAPIPE = "mediapipe==0.10.14"
CROP = 1.5  # side of MediaPipe's crop over the longer side of the box
CASES = ("face with box, batch 1", "face with box, batch 16", "photo without box", "followed frame")
FRAMES = 52  # of each film: more than two seconds, after which faces are aligned in full again
FILMS = 3

WORKER = """
import sys, time, numpy as np
import mediapipe
data = np.load(sys.argv[1], allow_pickle=False)
crops = [data[f"crop{i}"] for i in range(int(data["photos"]))]
photos = [data[f"photo{i}"] for i in range(int(data["photos"]))]
frames = range(int(data["frames"]))
films = [[data[f"film{i}-{k}"] for k in frames] for i in range(int(data["films"]))]
Mesh = mediapipe.solutions.face_mesh.FaceMesh
still = Mesh(static_image_mode=True, max_num_faces=1, refine_landmarks=False)

def alone(images):
    start, found = time.process_time(), 0
    for image in images:
        found += still.process(image).multi_face_landmarks is not None
    return 1e3 * (time.process_time() - start) / len(images), found

def followed():
    spent, found = 0.0, 0
    for film in films:
        with Mesh(static_image_mode=False, max_num_faces=1, refine_landmarks=False) as mesh:
            mesh.process(film[0])
            start = time.process_time()
            for frame in film[1:]:
                found += mesh.process(frame).multi_face_landmarks is not None
            spent += time.process_time() - start
    return 1e3 * spent / (len(films) * (len(films[0]) - 1)), found

alone(crops[:2])
print("ready", flush=True)
cases = {"crop": lambda: alone(crops), "photo": lambda: alone(photos), "film": followed}
for line in sys.stdin:
    print(*cases[line.strip()](), flush=True)
"""


class MediaPipe:
    """A process of MediaPipe that measures itself when asked."""

    def __init__(self, python: Path, data: Path) -> None:
        environment = {**os.environ, "GLOG_minloglevel": "3", "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(
            [str(python), "-c", WORKER, str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        if self._line() != "ready":
            raise RuntimeError("MediaPipe does not start")

    def measure(self, case: str) -> tuple[float, int]:
        """Milliseconds of CPU time for each image of ``case``, and in how many a face is found."""
        assert self.process.stdin is not None
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        ms, found = self._line().split()
        return float(ms), int(found)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def read_photos(folder: Path, count: int) -> list[tuple[Bytes, Box]]:
    """``count`` photos, spread over the folder, with the boxes of their labels."""
    from dff.infra.photos.images import read_image
    from dff.infra.photos.landmark_files import parse_mat

    labels = sorted(folder.glob("*.mat"))
    if not labels:
        raise typer.BadParameter(f"{folder} has no .mat files")
    chosen = [labels[i * len(labels) // count] for i in range(min(count, len(labels)))]
    return [
        (
            read_image(path.with_suffix(".jpg")),
            Box.around(parse_mat(path.read_bytes()).landmarks[:, :2]),
        )
        for path in chosen
    ]


def cut(photo: Bytes, box: Box) -> Bytes:
    """The square crop that MediaPipe gets; what lies outside the photo is left out."""
    half = CROP / 2 * max(box.width, box.height)
    low = np.maximum(np.floor(box.centre - half), 0).astype(int)
    high = np.ceil(box.centre + half).astype(int)
    return np.ascontiguousarray(photo[low[1] : high[1], low[0] : high[0]])


def film(photo: Bytes, rng: np.random.Generator) -> list[Bytes]:
    """Frames of a camera that moves by up to two pixels, with noise of three grey levels."""
    frames = []
    for _ in range(FRAMES):
        x, y = rng.integers(0, 3, 2)
        frame = photo[y : len(photo) - 2 + y, x : photo.shape[1] - 2 + x].astype(np.float64)
        frame += rng.normal(size=frame.shape) * 3.0
        frames.append(np.clip(np.rint(frame), 0, 255).astype(np.uint8))
    return frames


def our_cases(
    aligner: Any, photos: list[tuple[Bytes, Box]], films: list[list[Bytes]]
) -> dict[str, Callable[[], tuple[float, int]]]:
    """For each of ``CASES`` a function that gives milliseconds for an image, and faces found."""
    from dff.aligner.tracking.tracker import Tracker

    images, boxes = [photo for photo, _ in photos], [[box] for _, box in photos]

    def with_box(batch: int) -> tuple[float, int]:
        start, found = time.process_time(), 0
        for i in range(0, len(images), batch):
            faces = aligner.align_batch(images[i : i + batch], boxes[i : i + batch])
            found += sum(not some[0].failed for some in faces)
        return 1e3 * (time.process_time() - start) / len(images), found

    def without_box() -> tuple[float, int]:
        start = time.process_time()
        found = sum(bool(aligner.align(image)) for image in images)
        return 1e3 * (time.process_time() - start) / len(images), found

    def followed() -> tuple[float, int]:
        spent, found = 0.0, 0
        for frames in films:
            tracker = Tracker(aligner)
            tracker.step(frames[0], 0.0)
            start = time.process_time()
            for number, frame in enumerate(frames[1:], 1):
                found += bool(tracker.step(frame, number / 25.0))
            spent += time.process_time() - start
        return 1e3 * spent / (len(films) * (FRAMES - 1)), found

    return dict(
        zip(CASES, (lambda: with_box(1), lambda: with_box(16), without_box, followed), strict=True)
    )


def main(
    photos: Annotated[Path, typer.Argument(help="Folder of AFLW2000-3D.")],
    count: Annotated[int, typer.Option(help="Photos.")] = 32,
    rounds: Annotated[int, typer.Option(help="Of which the fastest counts.")] = 4,
    environment: Annotated[
        Path, typer.Option(help="Where MediaPipe's environment is, or is made.")
    ] = Path("build/mediapipe"),
    weights: str | None = None,
    preset: str = "balanced",
) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        if os.environ.get(name) != "1":  # the libraries read these when they are loaded
            os.environ.update({n: "1" for n in (name, "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")})
            os.execv(sys.executable, [sys.executable, "-m", "benchmarks.peers", *sys.argv[1:]])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from dff.aligner.load import load_aligner

    labelled = read_photos(photos, count)
    rng = np.random.default_rng(0)
    films = [film(photo, rng) for photo, _ in labelled[:FILMS]]
    python = install(MEDIAPIPE, environment)
    peer = None
    if python:
        data = environment / "photos.npz"
        arrays = {f"photo{i}": photo for i, (photo, _) in enumerate(labelled)}
        arrays |= {f"crop{i}": cut(photo, box) for i, (photo, box) in enumerate(labelled)}
        arrays |= {f"film{i}-{k}": f for i, some in enumerate(films) for k, f in enumerate(some)}
        np.savez(data, photos=len(labelled), films=len(films), frames=FRAMES, **arrays)  # type: ignore[arg-type]
        peer = MediaPipe(python, data)
    ours = our_cases(load_aligner(weights, preset=preset), labelled, films)
    theirs = dict(zip(CASES, ("crop", "crop", "photo", "film"), strict=True))
    best: dict[str, list[tuple[float, int]]] = {case: [(np.inf, 0), (np.inf, 0)] for case in CASES}
    for number in range(rounds + 1):  # the first compiles
        for case in CASES:
            both = ours[case](), peer.measure(theirs[case]) if peer else (np.nan, 0)
            if number:
                best[case] = [min(a, b) for a, b in zip(best[case], both, strict=True)]
    if peer:
        peer.close()
    images = dict(zip(CASES, (len(labelled),) * 3 + (FILMS * (FRAMES - 1),), strict=True))
    table = Table("", "dff, ms", "MediaPipe, ms", "times MediaPipe", "faces: dff, MediaPipe")
    for case, ((ms, found), (other, seen)) in best.items():
        of = images[case]
        table.add_row(
            case,
            f"{ms:.1f}",
            f"{other:.1f}" if peer else "-",
            f"{ms / other:.2f}" if peer else "-",
            f"{found}, {seen} of {of}" if peer else f"{found} of {of}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
