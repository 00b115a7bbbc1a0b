"""Landmarks of the 2D scheme on one face, from the kernels that place those of a batch."""

from __future__ import annotations

import numpy as np

from dff.face.arrays import Floats
from dff.face.model.landmarks import INNER, JAW, LandmarkTable, fill_contour, fill_reach


def contour_points(
    table: LandmarkTable,
    vertices: Floats,
    vertices_px: Floats,
    template: Floats,
    *,
    tolerance: float,
) -> Floats:
    """(68, D) points of the 2D scheme on (V, D) ``vertices``, which follow them without jumps.

    ``tolerance``: pixels by which the candidates of a jaw landmark may differ and count alike.
    """
    reach, out = np.empty(table.contour.shape), np.empty((68, vertices.shape[1]))
    fill_reach(vertices_px, template.astype(np.float64), table.vertex, table.contour, reach)
    fill_contour(reach, tolerance, vertices, table.contour, out[JAW])
    out[INNER] = vertices[table.inner]
    return out
