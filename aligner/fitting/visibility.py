"""Visibility of a fitted mesh: its anchors, its landmarks and its occluding contour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.aligner.config import VisibilityConfig
from dff.aligner.fitting.batch import join_rows, with_fields
from dff.aligner.fitting.contour import OccludingContour, trace_contour
from dff.aligner.fitting.depth_buffer import DepthBuffer, turn_points
from dff.aligner.fitting.fit_model import FitModel, FitState, largest_cosines
from dff.face.arrays import Array, Float, Floats
from dff.face.render.kernels import smooth_normals

GRAZING = 0.1  # cosine to the camera on either side of which visibility falls from one to zero


@dataclass(frozen=True)
class Visibility:
    """The visibility of the fitted meshes of B faces."""

    anchors: Float[Array, "faces anchors"]  # 0 hidden to 1 visible
    # cosine to the camera of the triangle at a landmark that faces it most
    facing: Float[Array, "faces 68"]
    depth_behind: Float[Array, "faces 68"]  # metres behind the visible surface
    contour: OccludingContour

    @staticmethod
    def unknown(faces: int, anchors: int, config: VisibilityConfig) -> Visibility:
        """Every anchor visible, and no contour."""
        contour = OccludingContour.empty(faces, config.contour_points)
        none = np.zeros((faces, 68))
        return Visibility(np.ones((faces, anchors)), none, none.copy(), contour)

    def landmarks(self, occlusion: float) -> Floats:
        """(B, 68) 0 hidden to 1 visible; hidden from ``occlusion`` metres behind the surface."""
        return np.asarray(soft_facing(self.facing) * (self.depth_behind <= occlusion))


def soft_facing(cosine: Floats) -> Floats:
    """0 where a surface turns away from the camera to 1 where it faces it, by its cosine."""
    return np.minimum(np.maximum((cosine + GRAZING) / (2 * GRAZING), 0.0), 1.0)


def compute_visibility(
    fit_model: FitModel, state: FitState, config: VisibilityConfig
) -> Visibility:
    """The visibility of B fitted meshes, of their outer parts (``FitModel.outer``).

    An anchor is hidden where all four buffer pixels around it show other parts of the mesh in front
    of it; else its visibility falls as the smooth surface turns away. Lids and lips are sharp
    edges, so a landmark takes the cosine of that triangle at it which faces the camera most.
    Landmarks in a crease, whose triangles face away even on the frontal template, count as facing
    the camera.
    """
    latent = state.coefficients[:, : fit_model.moving_modes]
    return join_rows(
        [
            _visibility_of_face(fit_model, mesh, state[i : i + 1], config)
            for i, mesh in enumerate(fit_model.outer.vertices(latent))
        ]
    )


def _visibility_of_face(
    fit_model: FitModel, mesh: Floats, state: FitState, config: VisibilityConfig
) -> Visibility:
    outer = fit_model.outer
    turned = turn_points(mesh, state.rotation[0])
    buffer = DepthBuffer.of_front(turned, float(state.inverse_depth[0]), outer.faces, config.buffer)
    seen, depth = buffer.seen, buffer.nearest_depth()
    normal = smooth_normals(seen, outer.faces)
    facing = largest_cosines(seen, outer.faces, outer.landmark_triangles, towards=-1.0)
    hidden = buffer.behind(seen[outer.anchors], depth) > config.occlusion
    contour = trace_contour(buffer, normal, outer.edges, depth, config)
    return Visibility(
        anchors=(~hidden * soft_facing(-normal[outer.anchors, 2]))[None],
        facing=np.where(fit_model.in_crease, 1.0, facing)[None],
        depth_behind=buffer.behind(seen[outer.landmarks], depth)[None],
        contour=with_fields(
            contour,
            vertices=outer.vertex[contour.vertices],
            px=contour.px * state.scale[0] + state.centre[0],
        ),
    )
