"""Inverse rendering on real photos: residuals, refused photos, robustness and time.

    python -m benchmarks.inverse [--photos ../shared/data/photos] [--count 200]

The photos are those with the lowest SHA-256 of their file names. Refused photos are counted with
their reasons; the medians are over *all* photos that give a fit at all, accepted or not, so
refusing more does not improve them.

Then the first ``--outliers`` photos are recovered again with 20 % of their landmarks displaced by
20 % of the face, in independent directions and, which is harder, all in one direction. Printed is
the change of the pose.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dff.face.arrays import Floats
from dff.face.errors import BadFit, DffError
from dff.face.geometry.transform import geodesic_degrees
from dff.face.io.assets import load_albedo, load_model
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import MorphableModel
from dff.infra.storage import open_storage
from dff.pipeline.recovery.inverse import NO_LIMITS, FitLimits, build_tables, check_quality, invert
from dff.pipeline.recovery.photos import Photo, PhotoRef, list_photos, read_photo

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos"
TARGETS = {"landmark_error_inner": 0.020, "colour_error": 0.05, "core_seconds": 0.4}
WRONG_SHARE = 0.2  # of the landmarks ...
WRONG_BY = 0.2  # ... displaced by this share of their box
POSE_TARGET = 2.0  # degrees


def by_name_hash(ref: PhotoRef) -> str:
    return hashlib.sha256(PurePosixPath(ref.image_key).name.encode()).hexdigest()


def displaced(points: Floats, together: bool, *, rng: np.random.Generator) -> Floats:
    """(68, 2) landmarks with WRONG_SHARE of them displaced, in one direction if ``together``."""
    rows = rng.choice(len(points), round(WRONG_SHARE * len(points)), replace=False)
    angle = rng.uniform(0.0, 2.0 * np.pi, 1 if together else len(rows))
    size = np.sqrt(np.prod(np.ptp(points, axis=0)))
    out = points.copy()
    out[rows] += WRONG_BY * size * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return out


def outliers(
    console: Console, photos: list[Photo], model: MorphableModel, albedo: AlbedoModel, seed: int
) -> None:
    table = Table(
        "wrong points", "photos", "pose change, median", "95 %", f"below {POSE_TARGET:.0f} degrees"
    )
    for name, together in (("each its own way", False), ("all the same way", True)):
        turned = []
        for number, photo in enumerate(photos):
            wrong = displaced(photo.landmarks, together, rng=np.random.default_rng([seed, number]))
            pair = (photo, replace(photo, landmarks=wrong))
            try:
                a, b = (
                    invert(p, model=model, albedo=albedo, limits=NO_LIMITS).cam_from_head.rotation
                    for p in pair
                )
            except BadFit:
                continue
            turned.append(geodesic_degrees(a, b))
        middle, high = np.percentile(turned, [50, 95])
        share = np.mean(np.array(turned) < POSE_TARGET)
        table.add_row(
            name, f"{len(turned)} of {len(photos)}", f"{middle:.2f}", f"{high:.2f}", f"{share:.0%}"
        )
    console.print(table)


def main(
    photos: Path = SHARED,
    count: int = 200,
    outliers_of: Annotated[int, typer.Option("--outliers")] = 50,
) -> None:
    console = Console()
    if not photos.is_dir():
        console.print(f"inverse: skipped, no folder {photos}")
        return
    model, albedo = load_model(), load_albedo()
    storage = open_storage(str(photos))
    refs = sorted(list_photos(storage), key=by_name_hash)[:count]

    start = time.perf_counter()
    build_tables(model, albedo)
    once = time.perf_counter() - start
    first = read_photo(storage, refs[0])
    invert(first, model=model, albedo=albedo, limits=NO_LIMITS)  # compiles what numba compiles

    reasons: Counter[str] = Counter()
    read: list[Photo] = []
    found: dict[str, list[float]] = {}
    spent: dict[str, float] = defaultdict(float)
    for ref in track(refs, "inverse rendering", console=console, transient=True):
        clock = time.perf_counter()
        try:
            photo = read_photo(storage, ref)
            start, start_cpu = time.perf_counter(), time.process_time()
            spent["read and decode"] += start - clock
            read.append(photo)
            marks = [start]
            names = ["landmarks and colours"]

            def watch(
                name: str, *_: object, marks: list[float] = marks, names: list[str] = names
            ) -> None:
                marks.append(time.perf_counter())
                names.append("joint steps" if name == "colours" else names[-1])

            recovery = invert(photo, model=model, albedo=albedo, limits=NO_LIMITS, watch=watch)
            end, end_cpu = time.perf_counter(), time.process_time()
            spent["landmarks and colours"] += marks[1] - marks[0]
            spent["joint steps"] += marks[-1] - marks[1]
            spent["judging"] += end - marks[-1]
        except DffError as error:
            reasons[str(error).split(": ", 1)[-1]] += 1
            continue
        for name, value in (
            recovery.quality | {"seconds": end - start, "core_seconds": end_cpu - start_cpu}
        ).items():
            found.setdefault(name, []).append(value)
        try:
            check_quality(ref.id, recovery.quality, FitLimits())
        except BadFit as error:
            reasons[re.sub(r" [-\d.e]+ (above|below).*", "", str(error).split(": ", 1)[-1])] += 1

    table = Table("figure", "median", "5 %", "95 %", "target", title=f"{len(refs)} photos")
    for name, values in found.items():
        low, middle, high = np.percentile(values, [5, 50, 95])
        target = f"<= {TARGETS[name]}" if name in TARGETS else ""
        table.add_row(name, f"{middle:.4f}", f"{low:.4f}", f"{high:.4f}", target)
    console.print(table)
    explained = len(found.get("seconds", []))
    console.print(
        f"mean seconds of {explained} photos: {np.mean(found['seconds']):.3f}; "
        f"tables once: {once:.2f}"
    )
    console.print({name: f"{seconds / len(refs):.3f} s" for name, seconds in spent.items()})
    console.print(f"refused {sum(reasons.values())}: {dict(reasons)}")
    outliers(console, read[:outliers_of], model, albedo, seed=0)


if __name__ == "__main__":
    typer.run(main)
