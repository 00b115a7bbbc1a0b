"""Every map of a view's ground truth, from its row and the face model alone.

A row stores the triangle that each pixel sees; this is what follows from it, in the numbers that
rendering had. For another frame or unit of a surface point, ``Maps.points`` goes with any values at
the model's vertices: ``maps.points.of(values, model.faces)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Bools, Floats
from dff.face.geometry.mesh import SurfacePoints
from dff.face.model.morphable import MorphableModel
from dff.face.render import zbuffer
from dff.face.render.frame import OCCLUDER, Frame, Image, interpolate, render, visible
from dff.face.render.visibility import Visibility
from dff.infra.shards import ViewRow, frame_of

SKIN = ("face", "lips", "brows", "ears", "neck")
"""Regions that count as visible skin, of those that a model has."""

HIDDEN_DEPTH = 0.004  # metres behind the nearest surface at which a landmark counts as hidden


class Seen(IntEnum):
    """Whether a landmark is seen, and if not, why."""

    SEEN = 0
    BEHIND_FACE = 1  # the face hides it itself
    BEHIND_OCCLUDER = 2  # it would be seen, did nothing stand before the face
    OUTSIDE = 3  # beyond the image


@dataclass(frozen=True, eq=False)
class Landmarks68:
    """The 68 landmarks of one jaw scheme (``dff.face.model.landmarks.NAMES``)."""

    px: Floats  # (68, 2) float32
    visible: Bools  # (68,)
    why: NDArray[np.int8]  # (68,) of Seen; SEEN where visible


@dataclass(frozen=True, eq=False)
class Maps:
    """What each pixel centre of an (H, W) view shows. Where the model is not seen, a map is 0, or
    as it says.
    """

    triangle: NDArray[np.int32]  # (H, W) row of the model's faces; -1 background, -2 an occluder
    barycentric: Image  # (H, W, 3) weights of the triangle's corners
    point: Image  # (H, W, 3) metres in cam: the surface point; its z is the depth
    # (H, W, 3) metres in head: the same point on the model's template, equal for all views and
    # people
    rest: Image
    uv: Image  # (H, W, 2) in the model's texture, 0..1
    depth: Image  # (H, W) metres along z of cam
    normal: Image  # (H, W, 3) smooth outward unit normals in cam
    region: NDArray[
        np.int16
    ]  # (H, W) row of the model's region_names; -1 where the model is not seen
    model: Bools  # (H, W) the model is seen
    occluder: Bools  # (H, W) something that the person wears or holds is seen
    skin: Bools  # (H, W) skin is seen: of the face, ears, neck, with lips and brows
    landmarks_2d: Landmarks68  # jaw on the visible contour
    landmarks_3d: Landmarks68  # jaw fixed to the surface

    @property
    def points(self) -> SurfacePoints:
        """The (N,) surface points of the pixels of ``model``, row by row."""
        return SurfacePoints(self.triangle[self.model], self.barycentric[self.model])


def maps_of(
    row: ViewRow, model: MorphableModel, *, visibility: Visibility = zbuffer.visibility
) -> Maps:
    """All maps of a view. ``visibility``: of the renderer that made it; only ``Landmarks68.why``
    needs it.

    Raises BadDataset when the row is of another model.
    """
    frame = frame_of(row, model)
    cam = row.cam_from_head.apply(model.vertices(row.coefficients))
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
    why = np.where(without, Seen.BEHIND_OCCLUDER, np.where(inside, Seen.BEHIND_FACE, Seen.OUTSIDE))
    return Landmarks68(px, seen, np.where(seen, Seen.SEEN, why).astype(np.int8))
