"""Votes, the cascade on DFF and the cascade on SIFT on the same faces in the same boxes, as one table.

``python -m benchmarks.cascade --dff dff.safetensors --sift sift.safetensors AFLW2000/ --labels reannotated.npz
--photos 300w/``: ``nme_box`` and pose by yaw bin, ``nme_iod`` of the inner 51 points on held-out photos, CPU
milliseconds for each face (one thread, batches of 32), and how well confidence tells faces that were aligned well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from aligner.align import Aligner, load_aligner
from aligner.alignment import Alignment
from aligner.calibrate import Reliability
from aligner.cascade import load_cascade_aligner
from aligner.confidence import GOOD
from aligner.evaluate import Report, evaluate_300w, evaluate_aflw2000
from face.arrays import Bytes
from face.camera import Box


class Timed:
    """An aligner whose CPU seconds and faces are counted; the first call compiles and is not."""

    def __init__(self, aligner: Aligner) -> None:
        self.aligner = aligner
        self.seconds, self.faces = 0.0, 0

    def align_batch(
        self, images: Sequence[Bytes], boxes: Sequence[Sequence[Box] | None] | None = None
    ) -> list[list[Alignment]]:
        if not self.faces:
            self.aligner.align_batch(images[:2], None if boxes is None else boxes[:2])
        start = time.process_time()
        found = self.aligner.align_batch(images, boxes)
        self.seconds += time.process_time() - start
        self.faces += len(images)
        return found


def trust(report: Report) -> Reliability:
    """What was said of each face against whether its mean error is below ``GOOD``."""
    rows = [row for row in report.rows if row.alignment is not None]
    said = np.array([row.alignment.face_confidence for row in rows if row.alignment is not None])
    return Reliability(said, np.array([row.errors["nme_box"] < GOOD for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("aflw2000")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--photos", help="folder of 300-W photos; those held out are judged")
    parser.add_argument("--weights")
    parser.add_argument("--dff", type=Path, help="cascade on DFF; default: the one that ships with the weights")
    parser.add_argument("--sift", type=Path, help="cascade on SIFT")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    aligners = {"votes": load_aligner(asked.weights), "cascade, DFF": load_cascade_aligner(asked.weights, asked.dff)}
    if asked.sift:
        aligners["cascade, SIFT"] = load_cascade_aligner(asked.weights, asked.sift)
    bins = ("0-30", "30-60", "60-90", "mean of bins")
    table = Table("method", *bins, "pose", "300-W inner 51", "over 10 %", "ms", "failed", "ECE", "AUROC")
    for name, aligner in aligners.items():
        timed = Timed(aligner)
        faces = evaluate_aflw2000(asked.aflw2000, timed, labels=asked.labels)  # type: ignore[arg-type]
        by_yaw, said = faces.summary["nme_box_by_yaw"], trust(faces)
        inner, over = "", ""
        if asked.photos:
            photos = evaluate_300w(asked.photos, timed).summary  # type: ignore[arg-type]
            inner, over = f"{photos['nme_iod_51']['mean']:.2f}", f"{100 * photos['share_over_10_percent']:.1f}"
        table.add_row(
            name,
            *(f"{by_yaw[one]:.2f}" for one in bins),
            f"{faces.summary['geodesic']['mean']:.1f}",
            inner,
            over,
            f"{1e3 * timed.seconds / timed.faces:.0f}",
            f"{faces.summary['failed']:.2f}",
            f"{said.ece:.3f}",
            f"{said.auroc:.3f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
