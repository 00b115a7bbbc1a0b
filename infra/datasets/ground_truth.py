"""All ground-truth maps of a view, from its row and the face model alone.

A row stores the triangle that each pixel shows; the maps follow from it, in the numbers that
rendering had. ``maps.points.of(values, model.faces)`` interpolates any other values at the model's
vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from dff.face.arrays import Array, Bool, Bools, Float, Floats, Integer
from dff.face.geometry.mesh import SurfacePoints
from dff.face.model.morphable import MorphableModel
from dff.face.render import zbuffer
from dff.face.render.frame import (
    HIDDEN_DEPTH,
    OCCLUDER,
    Frame,
    interpolate,
    render,
    visible,
)
from dff.face.render.visibility import Visibility
from dff.infra.datasets.shards import ViewRow, resolve_frame

SKIN = ("face", "lips", "brows", "ears", "neck")
"""Regions that count as skin, of those that a model has."""


class LandmarkVisibility(IntEnum):
    """Whether a landmark is visible, and if not, why."""

    VISIBLE = 0
    SELF_OCCLUDED = 1  # by the face
    OCCLUDED = 2  # by something before the face alone
    OUTSIDE = 3  # of the image


@dataclass(frozen=True, eq=False)
class Landmarks68:
    """The 68 landmarks of one jaw scheme (``dff.face.model.landmarks.NAMES``)."""

    px: Float[Array, "68 2"]  # pixels
    visible: Bool[Array, " 68"]
    visibility: Integer[Array, " 68"]  # of LandmarkVisibility


@dataclass(frozen=True, eq=False)
class Maps:
    """The dense ground truth of a view, at each pixel centre.

    Where the model is not visible a map is zero, unless it says otherwise.
    """

    # row of the model's faces; -1 background, -2 an occluder
    triangle: Integer[Array, "rows columns"]
    barycentric: Float[Array, "rows columns 3"]  # weights of the triangle's corners
    point: Float[Array, "rows columns 3"]  # metres in cam: the surface point; its z is the depth
    # metres in head: the same point on the model's template, equal for all views and people
    rest: Float[Array, "rows columns 3"]
    uv: Float[Array, "rows columns 2"]  # in the model's texture, 0..1
    depth: Float[Array, "rows columns"]  # metres along z of cam
    normal: Float[Array, "rows columns 3"]  # smooth outward unit normals in cam
    # row of the model's region_names; -1 where the model is not visible
    region: Integer[Array, "rows columns"]
    model: Bool[Array, "rows columns"]  # the model is visible
    occluder: Bool[Array, "rows columns"]  # an accessory or a hand is visible
    skin: Bool[Array, "rows columns"]  # skin is visible: of face, ears, neck, lips and brows
    landmarks_2d: Landmarks68  # jaw on the visible contour
    landmarks_3d: Landmarks68  # jaw fixed to the surface

    @property
    def points(self) -> SurfacePoints:
        """The (N,) surface points of the pixels of ``model``, row by row."""
        return SurfacePoints(self.triangle[self.model], self.barycentric[self.model])


def compute_maps(
    row: ViewRow, model: MorphableModel, *, visibility: Visibility = zbuffer.visibility
) -> Maps:
    """All maps of a view.

    ``visibility``: of the renderer that made it; only ``Landmarks68.visibility`` needs it.

    Raises BadDataset when the row is of another model.
    """
    frame = resolve_frame(row, model)
    cam = row.cam_from_head.apply(model.vertices(row.coefficients(model)))
    alone = render(cam, model.faces, row.camera, (row.height, row.width), visibility=visibility)
    region = np.append(model.region.astype(np.int16), np.int16(-1))[np.maximum(frame.triangle, -1)]
    of_skin = np.append(
        np.isin(model.region, [i for i, name in enumerate(model.region_names) if name in SKIN]),
        False,
    )
    contour = model.landmarks.contour_vertices(row.camera.px_from_cam(cam), model.template)
    return Maps(
        triangle=frame.triangle,
        barycentric=frame.barycentric,
        point=interpolate(frame, cam, model.faces),
        rest=interpolate(frame, model.template, model.faces),
        uv=interpolate(frame, model.uv, model.uv_faces),
        depth=frame.depth,
        normal=frame.normal,
        region=region,
        model=frame.mask,
        occluder=frame.triangle == OCCLUDER,
        skin=of_skin[np.maximum(frame.triangle, -1)],
        landmarks_2d=_landmarks(row, alone, cam[contour], row.landmarks_2d, row.visible_2d),
        landmarks_3d=_landmarks(
            row, alone, cam[model.landmarks.vertex], row.landmarks_3d, row.visible_3d
        ),
    )


def _landmarks(row: ViewRow, alone: Frame, places: Floats, px: Floats, seen: Bools) -> Landmarks68:
    """Landmarks at (68, 3) ``places`` in cam; ``alone``: the model without occluders."""
    inside = ((px >= 0.0) & (px < [row.width, row.height])).all(1)
    without = visible(alone, places, row.camera, HIDDEN_DEPTH)
    kind = LandmarkVisibility
    hidden = np.where(without, kind.OCCLUDED, np.where(inside, kind.SELF_OCCLUDED, kind.OUTSIDE))
    return Landmarks68(px, seen, np.where(seen, kind.VISIBLE, hidden).astype(np.int8))
