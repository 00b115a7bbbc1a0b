"""Measure what tells people apart: the texture that all share, and the scatter within people.

    python scripts/measure_person_statistics.py FOLDER...

The FOLDERs have photos with ``.pts`` files, as ``dff fit-landmark-offsets`` reads them; the
training photos give the mean texture. Rendered people of the open head, four photos each, give the
scatter of the identities of one person. The result is written to
aligner/data/person_statistics.npz; `python -m benchmarks.strangers` measures what it is worth.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np

from benchmarks import multi_image
from benchmarks.strangers import align_person_apart
from dff.aligner.align import Aligner
from dff.aligner.evaluation.benchmarks import list_300w
from dff.aligner.load import load_aligner
from dff.aligner.person_appearance import PersonAppearanceMeter, PersonStatistics
from dff.face.arrays import Floats
from dff.infra.files import write_file
from dff.infra.photos.images import decode
from dff.infra.storage import open_storage

OUT = Path("aligner/data/person_statistics.npz")
PHOTOS = 4  # of a rendered person
RANGE = 1e-3  # of the largest variance of identities, below which a direction tells nothing
ISOTROPIC = 0.3  # of the mean variance within people, added to all directions


def measure_mean_texture(meter: PersonAppearanceMeter, aligner: Aligner, folder: str) -> Floats:
    """(2, P) weighted sum of the brightness at the points, and sum of the weights."""
    storage = open_storage(folder)
    total = np.zeros((2, len(meter.statistics.brightness)))
    for sample in list_300w(storage, "train"):
        image = decode(storage.read(sample.image_key))
        face = aligner.align(image, [sample.box])[0]
        if not face.failed:
            seen = meter.measure(image, face)
            total += seen.weight * seen.brightness, seen.weight
    return total


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
    parser.add_argument("folders", nargs="+", help="photos with .pts files")
    parser.add_argument("--people", type=int, default=800, help="rendered, of the open head")
    parser.add_argument("--seed", type=int, default=301, help="of the rendered people")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    aligner = load_aligner()
    points, identities = len(aligner.appearance_meter.points), len(aligner.model.identity)
    nothing = PersonStatistics.unknown(points, identities)
    meter = PersonAppearanceMeter(aligner.appearance_meter, np.zeros(identities), nothing)
    summed = sum(measure_mean_texture(meter, aligner, folder) for folder in arguments.folders)
    brightness, weight = np.asarray(summed)
    multi_image.VIEWS = PHOTOS
    found = []
    for number in range(arguments.people):
        person = multi_image.render_person(aligner.model, f"sitter-{number}", arguments.seed)
        if faces := align_person_apart(aligner, person):
            found.append([face.coefficients.identity for face in faces])
    whitening = measure_whitening(np.array(found))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        model=aligner.model.name,
        brightness=(brightness / np.maximum(weight, 1e-9)).astype(np.float32),
        whitening=whitening.astype(np.float32),
    )
    write_file(arguments.out, buffer.getvalue())
    print(f"{len(found)} people, {whitening.shape[1]} of {identities} directions")


if __name__ == "__main__":
    main()
