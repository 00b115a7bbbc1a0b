"""Inverse rendering on real photos: how well it explains them and how long it takes.

    python -m benchmarks.inverse [--photos ../shared/data/photos] [--count 200]

The photos are those with the lowest SHA-256 of their file names. Refused photos are counted with their reasons; the
medians are over *all* photos that give a fit at all, accepted or not, so refusing more does not improve them.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from face.assets import load_albedo, load_model
from face.errors import BadFit, DffError
from infra.storage import open_storage
from pipeline.inverse import ANYTHING, Limits, invert, judge, tables_of
from pipeline.photos import PhotoRef, list_photos, read_photo

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos"
TARGETS = {"landmark_error_inner": 0.020, "colour_error": 0.05, "core_seconds": 1.5}


def by_name_hash(ref: PhotoRef) -> str:
    return hashlib.sha256(PurePosixPath(ref.image_key).name.encode()).hexdigest()


def main(photos: Path = SHARED, count: int = 200) -> None:
    console = Console()
    if not photos.is_dir():
        console.print(f"inverse: skipped, no folder {photos}")
        return
    model, albedo = load_model(), load_albedo()
    storage = open_storage(str(photos))
    refs = sorted(list_photos(storage), key=by_name_hash)[:count]

    start = time.perf_counter()
    tables_of(model, albedo)
    once = time.perf_counter() - start
    first = read_photo(storage, refs[0])
    invert(first, model=model, albedo=albedo, limits=ANYTHING)  # compiles what numba compiles

    reasons: Counter[str] = Counter()
    found: dict[str, list[float]] = {}
    spent: Counter[str] = Counter()
    for ref in track(refs, "inverse rendering", console=console, transient=True):
        clock = time.perf_counter()
        try:
            photo = read_photo(storage, ref)
            start, start_cpu = time.perf_counter(), time.process_time()
            spent["read and decode"] += start - clock
            marks = [start]
            names = ["landmarks and colours"]

            def watch(name: str, *_: object, marks: list[float] = marks, names: list[str] = names) -> None:
                marks.append(time.perf_counter())
                names.append("joint steps" if name == "colours" else names[-1])

            recovery = invert(photo, model=model, albedo=albedo, limits=ANYTHING, watch=watch)
            end, end_cpu = time.perf_counter(), time.process_time()
            spent["landmarks and colours"] += marks[1] - marks[0]
            spent["joint steps"] += marks[-1] - marks[1]
            spent["judging"] += end - marks[-1]
        except DffError as error:
            reasons[str(error).split(": ", 1)[-1]] += 1
            continue
        for name, value in (recovery.quality | {"seconds": end - start, "core_seconds": end_cpu - start_cpu}).items():
            found.setdefault(name, []).append(value)
        try:
            judge(ref.id, recovery.quality, Limits())
        except BadFit as error:
            reasons[re.sub(r" [-\d.e]+ (above|below).*", "", str(error).split(": ", 1)[-1])] += 1

    table = Table("figure", "median", "5 %", "95 %", "target", title=f"{len(refs)} photos")
    for name, values in found.items():
        low, middle, high = np.percentile(values, [5, 50, 95])
        target = f"<= {TARGETS[name]}" if name in TARGETS else ""
        table.add_row(name, f"{middle:.4f}", f"{low:.4f}", f"{high:.4f}", target)
    console.print(table)
    explained = len(found.get("seconds", []))
    console.print(f"mean seconds of {explained} photos: {np.mean(found['seconds']):.3f}; tables once: {once:.2f}")
    console.print({name: f"{seconds / len(refs):.3f} s" for name, seconds in spent.items()})
    console.print(f"refused {sum(reasons.values())}: {dict(reasons)}")


if __name__ == "__main__":
    typer.run(main)
