"""The paper's comparison: one cascade on DFF and on SIFT, and dense fits, on the same faces.

    python -m benchmarks.cascade AFLW2000/ --labels reannotated.npz --photos 300w/ --learn data/
        --out cascades/

trains both cascades on a dataset's training identities and prints the errors of every stage on
held-out ones. Then it compares all methods on photos: ``nme_box`` and pose by yaw bin, ``nme_iod``
of the inner 51 points on held-out photos, CPU milliseconds for each face (one thread, batches of
32), and the AUROC of confidence for well aligned faces. A cascade that is named (``--dff``,
``--sift``) is not trained again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.cascade.io import load_cascade, load_cascade_aligner, save_cascade
from dff.aligner.cascade.model import KINDS, Kind
from dff.aligner.cascade.training import Progress, Recipe, train_cascade
from dff.aligner.confidence import GOOD
from dff.aligner.evaluation.benchmarks import Report, evaluate_300w, evaluate_aflw2000
from dff.aligner.evaluation.calibration import Reliability
from dff.aligner.load import load_aligner
from dff.aligner.threads import use_threads
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.infra.datasets.dataset import Dataset, open_dataset

BINS = ("0-30", "30-60", "60-90", "mean of bins")


class Timed:
    """An aligner that counts its CPU seconds and faces, without the first call, which compiles."""

    def __init__(self, aligner: Aligner, name: str) -> None:
        self.aligner, self.name = aligner, name
        self.seconds, self.faces = 0.0, 0
        self.bar = tqdm(unit="face", desc=name)

    def align_batch(
        self, images: Sequence[Bytes], boxes: Sequence[Sequence[Box] | None] | None = None
    ) -> list[list[Alignment]]:
        if not self.faces:
            self.aligner.align_batch(images[:2], None if boxes is None else boxes[:2])
        start = time.process_time()
        found = self.aligner.align_batch(images, boxes)
        self.seconds += time.process_time() - start
        self.faces += len(images)
        self.bar.update(len(images))
        return found


def trust(report: Report) -> Reliability:
    """Confidence of each face against whether its mean error is below ``GOOD``."""
    rows = [row for row in report.rows if row.alignment is not None]
    confidence = np.array(
        [row.alignment.face_confidence for row in rows if row.alignment is not None]
    )
    return Reliability(confidence, np.array([row.errors["nme_box"] < GOOD for row in rows]))


def learned(base: Aligner, dataset: Dataset, kind: Kind, asked: argparse.Namespace) -> Path:
    """Train a cascade on the dataset; returns its file."""
    path: Path = asked.out / f"{kind}.safetensors"
    recipe = Recipe(
        kind=kind, views=asked.views, held_out=asked.held_out, calibration=asked.calibrate
    )
    with tqdm(total=recipe.stages, unit="stage", desc=f"learning on {kind}") as bar:

        def watch(progress: Progress) -> None:
            bar.update()
            bar.set_postfix(held_out=f"{100 * progress.held_out:.2f} %")

        save_cascade(path, train_cascade(base, dataset, recipe, watch=watch))
    return path


def learning_table(files: dict[Kind, Path]) -> Table:
    """The errors on held-out rendered faces after every stage, from the files' cards."""
    cards: dict[Kind, list[dict[str, float]]] = {
        kind: load_cascade(path).card.get("nme_box", []) for kind, path in files.items()
    }
    stages = max(map(len, cards.values()), default=0)
    table = Table(
        "held-out rendered faces, nme_box", *(f"stage {i + 1}" for i in range(stages)), "file"
    )
    for kind, reached in cards.items():
        figures = [f"{100 * stage['held_out']:.2f} %" for stage in reached]
        table.add_row(f"cascade, {kind}", *figures, f"{files[kind].stat().st_size / 1e6:.1f} MB")
    return table


def measure_aligner(aligner: Aligner, name: str, asked: argparse.Namespace) -> list[str]:
    """A row of the table of photos."""
    timed: Any = Timed(aligner, name)  # has the one method of an aligner that evaluations call
    faces = evaluate_aflw2000(asked.aflw2000, timed, labels=asked.labels)
    by_yaw, reliability = faces.summary["nme_box_by_yaw"], trust(faces)
    inner, over = "", ""
    if asked.photos:
        photos = evaluate_300w(asked.photos, timed).summary
        inner, over = (
            f"{photos['nme_iod_51']['mean']:.2f}",
            f"{100 * photos['share_over_10_percent']:.1f}",
        )
    timed.bar.close()
    return [
        name,
        *("-" if by_yaw.get(one) is None else f"{by_yaw[one]:.2f}" for one in BINS),
        f"{faces.summary['geodesic']['mean']:.1f}",
        inner,
        over,
        f"{1e3 * timed.seconds / timed.faces:.0f}",
        f"{faces.summary['failed']:.2f}",
        f"{reliability.ece:.3f}",
        f"{reliability.auroc:.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("aflw2000", help="folder of AFLW2000-3D images with their .mat files")
    parser.add_argument(
        "--labels", type=Path, help="reannotated points, .npz or .npy; default: those of the .mat"
    )
    parser.add_argument("--photos", help="folder of 300-W photos; held-out ones are used")
    parser.add_argument("--weights", help="weights file or shipped name; default: those that ship")
    parser.add_argument(
        "--dff", type=Path, help="cascade on DFF; default: --learn, or the one that ships"
    )
    parser.add_argument("--sift", type=Path, help="cascade on SIFT; default: --learn, or none")
    parser.add_argument(
        "--learn", metavar="DATASET", help="learn the cascades that are not named on this dataset"
    )
    parser.add_argument(
        "--views", type=int, default=1600, help="of training identities (default: %(default)s)"
    )
    parser.add_argument(
        "--held-out", type=int, default=240, help="that choose the penalty (default: %(default)s)"
    )
    parser.add_argument(
        "--calibrate", type=int, default=140, help="that calibrate; 0: none (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/cascades"), help="folder of what is learned"
    )
    asked = parser.parse_args()
    use_threads(1)
    console = Console(width=150)
    base = load_aligner(asked.weights)
    files: dict[Kind, Path] = {kind: getattr(asked, kind) for kind in KINDS if getattr(asked, kind)}
    if asked.learn:
        dataset = open_dataset(asked.learn)
        files |= {kind: learned(base, dataset, kind, asked) for kind in KINDS if kind not in files}
    if files:
        console.print(learning_table(files))
    alike = replace(base.config, later_margin=base.config.margin, mirror=False)
    aligners: dict[str, Aligner] = {
        "dense, crops as the cascade": load_aligner(asked.weights, config=alike),
        "dense": base,
        "cascade, DFF": load_cascade_aligner(asked.weights, files.get("dff")),
    }
    if "sift" in files:
        aligners["cascade, SIFT"] = load_cascade_aligner(asked.weights, files["sift"])
    table = Table(
        "method", *BINS, "pose", "300-W inner 51", "over 10 %", "ms", "failed", "ECE", "AUROC"
    )
    for name, aligner in aligners.items():
        table.add_row(*measure_aligner(aligner, name, asked))
    console.print(table)


if __name__ == "__main__":
    main()
