"""Irises of a fitted face.

Where the eyes look is not told: a fit's expression hardly turns the eyeballs. On 60 renderings
whose eyes were turned by 11 degrees on average, gaze by the fitted eyeballs erred by as much as
gaze straight ahead.
"""

from __future__ import annotations

import numpy as np

from dff.aligner.alignment import Alignment
from dff.face.arrays import Floats
from dff.face.model.morphable import MorphableModel


def find_irises(face: Alignment, model: MorphableModel) -> Floats | None:
    """(2, 3) metres in head: the centres of the irises, the person's right one first.

    They lie where the eyeballs are nearest to the direction in which the head looks. None for a
    model without eyeballs.
    """
    if "eyes" not in model.region_names or not len(model.find_triangles("eyes")):
        return None
    eyes = np.unique(model.faces[model.find_triangles("eyes")])
    right = model.template[eyes, 0] < 0
    return np.stack([_find_front(face.vertices[rows]) for rows in (eyes[right], eyes[~right])])


def _find_front(points: Floats) -> Floats:
    """(3,) the front of the sphere that fits (N, 3) points best."""
    design = np.column_stack([2.0 * points, np.ones(len(points))])
    sphere, *_ = np.linalg.lstsq(design, (points**2).sum(1), rcond=None)
    centre = sphere[:3]
    radius = np.sqrt(max(float(sphere[3] + centre @ centre), 0.0))
    return np.asarray(centre + np.array([0.0, 0.0, radius]))
