"""Measure what tells people apart: the texture that all share, and the scatter within people.

    PYTHONPATH=. python scripts/measure_person_statistics.py

Both are measured on rendered people of the open head, four views each, so no photo is part of them.
The result is written to aligner/data/person_statistics.npz; `python -m benchmarks.strangers`
measures how well strangers are told with it.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from rich.progress import track

from benchmarks import multi_image
from benchmarks.strangers import align_person_apart
from dff.aligner.load import load_aligner
from dff.aligner.person_appearance import PersonAppearanceMeter, PersonStatistics
from dff.face.arrays import Floats
from dff.infra.files import write_file

OUT = Path("aligner/data/person_statistics.npz")
VIEWS = 4  # of a person
RANGE = 1e-3  # of the largest variance of identities, below which a direction tells nothing
ISOTROPIC = 0.3  # of the mean variance within people, added to all directions


def measure_whitening(identities: Floats) -> Floats:
    """(K, R) from (people, photos, K) identities: the inverse root of their scatter within people.

    Directions in which people hardly differ are left out.
    """
    everyone = identities.reshape(-1, identities.shape[-1])
    variances, axes = np.linalg.eigh(np.cov(everyone.T))
    axes = axes[:, variances > RANGE * variances.max()]
    within = (identities - identities.mean(1, keepdims=True)).reshape(-1, len(axes)) @ axes
    scatter = within.T @ within / (len(identities) * (identities.shape[1] - 1))
    scatter += ISOTROPIC * np.trace(scatter) / len(scatter) * np.eye(len(scatter))
    return np.asarray(axes @ np.linalg.cholesky(np.linalg.inv(scatter)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=800, help="to render")
    parser.add_argument("--seed", type=int, default=301, help="of the people")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    aligner = load_aligner()
    points, identities = len(aligner.appearance_meter.points), len(aligner.model.identity)
    nothing = PersonStatistics.unknown(points, identities)
    meter = PersonAppearanceMeter(aligner.appearance_meter, np.zeros(identities), nothing)
    found, total, weights = [], np.zeros(points), np.zeros(points)
    for number in track(range(arguments.people), "people"):
        person = multi_image.render_person(
            aligner.model, f"sitter-{number}", arguments.seed, views=VIEWS
        )
        if faces := align_person_apart(aligner, person):
            found.append([face.coefficients.identity for face in faces])
            for image, face in zip(person.images, faces, strict=True):
                seen = meter.measure(image, face)
                total += seen.weight * seen.brightness
                weights += seen.weight
    whitening = measure_whitening(np.array(found))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        model=aligner.model.name,
        brightness=(total / np.maximum(weights, 1e-9)).astype(np.float32),
        whitening=whitening.astype(np.float32),
    )
    write_file(arguments.out, buffer.getvalue())
    print(f"{len(found)} people, {whitening.shape[1]} of {identities} directions")


if __name__ == "__main__":
    main()
