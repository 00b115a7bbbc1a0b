"""Jitter, lag and time of tracking: ``python -m benchmarks.video [--people 2] [--frames 30]``.

Rendered people in front of a fixed camera, with independent sensor noise (normal, in grey levels)
in each frame. Jitter: mean standard deviation of a landmark over the frames after the first ten,
px. "cold": every frame is searched and aligned separately; "followed": tracked from the frame
before; "smoothed": also filtered by the One Euro filter.

Lag after a jump: the face jumps by a tenth of its size between two frames. Given is the distance of
the smoothed landmarks from the unsmoothed ones, in per cent of the jump, in the frame of the jump
and in those after it. Steady lag: the face moves by one per cent of its size in each frame; the lag
is in frames. Times are CPU times on one core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from dff.aligner.align import Aligner
from dff.aligner.config import SmoothingConfig, TrackingConfig
from dff.aligner.load import load_aligner
from dff.aligner.tracking.tracker import Tracker
from dff.face.arrays import Bytes, Floats
from dff.face.geometry.transform import rotation_from_angles
from dff.face.io.assets import load_albedo, load_model
from dff.infra.photos.images import decode
from dff.pipeline.job.work import derive_seed
from dff.pipeline.scene.sampling import make_plain_scene
from dff.pipeline.scene.views import render_scene
from dff.pipeline.subjects.build import sample_person

SIZE, ROOM = 256, 64  # px: of the frames, and of what the rendered picture has beyond them
RATE = 25.0
SETTLED = 10  # frames in which a fit comes to rest, after which jitter counts
YAWS = (0.0, 30.0, -50.0, 15.0)


def portrait(number: int, seed: int) -> Bytes:
    """A rendered person with a margin around the frames that are cut from the image."""
    model = load_model()
    name = f"filmed-{number}"
    rng = np.random.default_rng(derive_seed(seed, name))
    person = sample_person(
        name, model=model, albedo=load_albedo(model=model), texture_size=512, rng=rng
    )
    rotation = rotation_from_angles(
        YAWS[number % len(YAWS)], rng.uniform(-10, 10), rng.uniform(-10, 10)
    )
    scene = make_plain_scene(
        person, np.zeros(len(model.expression)), rotation, model=model, size=SIZE + ROOM
    )
    return decode(render_scene(person, scene, model=model, size=SIZE + ROOM).image)


def film(
    picture: Bytes, places: Floats, *, noise: float, rng: np.random.Generator
) -> Iterator[Bytes]:
    """Frames whose upper left corners lie at (F, 2) whole pixels of the image."""
    for x, y in places.astype(int):
        part = picture[y : y + SIZE, x : x + SIZE].astype(np.float64)
        yield np.clip(np.rint(part + rng.normal(size=part.shape) * noise), 0, 255).astype(np.uint8)


def followed(aligner: Aligner, frames: Iterator[Bytes]) -> tuple[Floats, Floats, float]:
    """(F, 68, 2) tracked and smoothed landmarks, and milliseconds per frame after the first."""
    config = TrackingConfig(smoothing=SmoothingConfig(), search_interval=np.inf)
    tracker = Tracker(aligner, config=config)
    raw, smooth = [], []
    spent = 0.0
    for number, frame in enumerate(frames):
        start = time.process_time()
        (one,) = tracker.step(frame, number / RATE)
        spent += (time.process_time() - start) * (number > 0)
        raw.append(one.raw.landmarks_3d[:, :2])
        smooth.append(one.face.landmarks_3d[:, :2])
    return np.array(raw), np.array(smooth), 1e3 * spent / (len(raw) - 1)


def jitter(landmarks: Floats) -> float:
    """Standard deviation of the landmarks, px, after the fit has settled."""
    return float(np.sqrt(landmarks[SETTLED:].var(0).sum(-1) / 2).mean())


def moving(
    aligner: Aligner, picture: Bytes, place: Callable[[int], float], frames: int, seed: int
) -> Floats:
    """(F,) px by which the smoothed landmarks lag, while the image moves to the left."""
    places = np.array([[place(i), ROOM / 2] for i in range(frames)])
    raw, smooth, _ = followed(
        aligner, film(picture, places, noise=3.0, rng=np.random.default_rng(seed))
    )
    return np.asarray((smooth - raw)[..., 0].mean(1))


def main(people: int = 2, frames: int = 30, seed: int = 0, weights: str | None = None) -> None:
    console = Console()
    aligner = load_aligner(weights)
    pictures = [portrait(number, seed) for number in range(people)]
    middle = np.full((frames, 2), ROOM // 2)
    table = Table(
        "noise, grey levels", "cold, px", "followed, px", "smoothed, px", "cold, ms", "followed, ms"
    )
    for noise in (4.0,):
        rows = []
        for number, picture in enumerate(pictures):
            still = list(
                film(picture, middle, noise=noise, rng=np.random.default_rng([seed, number]))
            )
            aligner.align(still[0])
            start = time.process_time()
            cold = np.array([aligner.align(frame)[0].landmarks_3d[:, :2] for frame in still])
            ms = 1e3 * (time.process_time() - start) / frames
            raw, smooth, warm = followed(aligner, iter(still))
            rows.append([jitter(cold), jitter(raw), jitter(smooth), ms, warm])
        table.add_row(f"{noise:.0f}", *(f"{value:.2f}" for value in np.mean(rows, axis=0)))
    console.print(table)
    size = float(np.sqrt(np.prod(np.ptp(raw[0], axis=0))))
    step, speed = round(0.1 * size), 0.01 * size
    jumps = np.mean(
        [moving(aligner, p, lambda i: 20 + step * (i >= 8), 12, seed) for p in pictures], axis=0
    )
    console.print(
        f"after a jump of {step} px the smoothed face is off by "
        + ", ".join(f"{abs(off) / step:.1%}" for off in jumps[8:])
        + " of it"
    )
    steady = np.mean(
        [moving(aligner, p, lambda i: 2 + speed * i, 25, seed) for p in pictures], axis=0
    )[10:].mean()
    console.print(f"moving {speed:.1f} px a frame it lies {steady / speed:.2f} frames behind")


if __name__ == "__main__":
    typer.run(main)
