"""Irises and gaze of a fitted face, from how its expression turns the eyeballs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from dff.aligner.alignment import Alignment
from dff.face.arrays import Array, Float, Floats
from dff.face.model.morphable import MorphableModel


@dataclass(frozen=True)
class Eyes:
    """Both eyes, the person's right one first."""

    iris: Float[Array, "2 3"]  # metres in head: the irises' centres
    gaze: Float[Array, "2 3"]  # unit vectors in head


def measure_eyes(face: Alignment, model: MorphableModel) -> Eyes | None:
    """The eyes of a face; None for a model without eyeballs.

    At rest eyes look along z of the head. An eyeball's turn is the rigid motion that best explains
    where the expression moves its vertices.
    """
    if "eyes" not in model.region_names or not len(model.find_triangles("eyes")):
        return None
    eyes = np.unique(model.faces[model.find_triangles("eyes")])
    right = model.template[eyes, 0] < 0
    rest = face.vertices - model.motion(face.coefficients.expression)
    found = [_measure_eye(rest[rows], face.vertices[rows]) for rows in (eyes[right], eyes[~right])]
    return Eyes(*(np.stack(each) for each in zip(*found, strict=True)))


def _measure_eye(rest: Floats, moved: Floats) -> tuple[Floats, Floats]:
    """The centre of the iris and the direction of the gaze of an eyeball's (N, 3) vertices."""
    design = np.column_stack([2.0 * rest, np.ones(len(rest))])
    sphere, *_ = np.linalg.lstsq(design, (rest**2).sum(1), rcond=None)
    centre = sphere[:3]
    radius = np.sqrt(max(float(sphere[3] + centre @ centre), 0.0))
    turn, _ = Rotation.align_vectors(moved - moved.mean(0), rest - rest.mean(0))
    gaze = turn.apply([0.0, 0.0, 1.0])
    return turn.apply(centre - rest.mean(0)) + moved.mean(0) + radius * gaze, gaze
