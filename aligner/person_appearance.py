"""Appearance by which photos of one person are told from photos of others.

Three things hide who a face is. Photos of one person differ in some directions of the identity more
than in others: identities are divided by the scatter within people. Light makes one person two and
two people one: the brightness is taken without its best fit by ambient and directed light, a linear
function of the normals (spherical harmonics to the first order, Basri and Jacobs, "Lambertian
reflectance and linear subspaces", PAMI 2003). And all faces have dark brows and lips: the mean over
people is taken away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.appearance import AppearanceDescriptor, AppearanceMeter
from dff.face.arrays import Array, Bytes, Float, Floats
from dff.face.model.morphable import MorphableModel

STATISTICS = "data/person_statistics.npz"
FINE = 1.0  # pixels of a shrunk face, standard deviation of the blur
UNSEEN = 1e-6  # weight of points that are not seen, which keeps the fit of the light solvable
NEGLIGIBLE = 1e-3  # of the largest singular value, in the fit of the light


@dataclass(frozen=True)
class PersonStatistics:
    """What photos of people share, and how photos of one person differ, for one face model."""

    brightness: Float[Array, " points"]  # mean over people, logarithm, without light
    # from identities to a space in which photos of one person differ alike in all directions
    whitening: Float[Array, "identities directions"]

    @staticmethod
    def unknown(points: int, identities: int) -> PersonStatistics:
        """Those of a model without measurements: all of a face counts as its own."""
        return PersonStatistics(np.zeros(points), np.eye(identities))


def load_person_statistics(model: MorphableModel, points: int) -> PersonStatistics:
    """The shipped statistics, or ``PersonStatistics.unknown`` for another face model."""
    identities = len(model.identity)
    name, statistics = _load()
    if model.name != name or statistics.whitening.shape[0] != identities:
        return PersonStatistics.unknown(points, identities)
    return statistics


class PersonAppearanceMeter:
    """Measures the appearance of faces of one model, to tell whether they are one person's."""

    def __init__(
        self, meter: AppearanceMeter, mean_identity: Floats, statistics: PersonStatistics
    ) -> None:
        """``mean_identity``: of fits to photos, which share a part of their identity."""
        self.meter, self.mean_identity, self.statistics = meter, mean_identity, statistics

    def measure(self, image: Bytes, face: Alignment) -> AppearanceDescriptor:
        """The appearance of a face of an (H, W, 3) uint8 RGB image."""
        seen = self.meter.measure(image, face, covers=True, blur=FINE)
        brightness = remove_light(seen.brightness, self.meter.normals(face), seen.weight)
        return AppearanceDescriptor(
            (seen.identity - self.mean_identity) @ self.statistics.whitening,
            brightness - self.statistics.brightness,
            seen.weight,
        )


def remove_light(brightness: Floats, normals: Floats, weight: Floats) -> Floats:
    """(N,) logarithms of brightness without their weighted fit by a linear function of the (N, 3)
    normals.
    """
    lit = np.column_stack([np.ones(len(normals)), normals])
    root = np.sqrt(weight + UNSEEN)
    light, *_ = np.linalg.lstsq(lit * root[:, None], brightness * root, rcond=NEGLIGIBLE)
    return np.asarray(brightness - lit @ light)


@cache
def _load() -> tuple[str, PersonStatistics]:
    with as_file(files("dff.aligner") / STATISTICS) as path, np.load(path) as table:
        statistics = PersonStatistics(
            table["brightness"].astype(np.float64), table["whitening"].astype(np.float64)
        )
        return str(table["model"]), statistics
