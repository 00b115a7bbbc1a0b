"""Visibility of a fitted mesh: its anchors, its landmarks and its occluding contour."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from dff.aligner.config import VisibilityConfig
from dff.aligner.fitting.batch import join_rows, with_fields
from dff.aligner.fitting.contour import OccludingContour, trace_contour
from dff.aligner.fitting.depth_buffer import DepthBuffer, depth_behind, turn_points
from dff.aligner.fitting.fit_model import FitModel, FitState, fill_largest_cosines
from dff.face.arrays import Array, Float, Floats
from dff.face.numba_cache import CACHE
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


@numba.njit(cache=CACHE, nogil=True)
def soft_facing(cosine):  # type: ignore[no-untyped-def]
    """0 where a surface turns away from the camera to 1 where it faces it.

    ``cosine`` to the camera: one or an array.
    """
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
    anchors, facing, behind = np.empty((1, len(outer.anchors))), *np.empty((2, 1, 68))
    _judge(
        seen,
        normal,
        outer.faces,
        depth,
        buffer.low,
        buffer.scale,
        outer.anchors,
        outer.landmarks,
        outer.landmark_triangles,
        fit_model.in_crease,
        config.occlusion,
        anchors[0],
        facing[0],
        behind[0],
    )
    contour = trace_contour(buffer, normal, outer.edges, depth, config)
    contour = with_fields(
        contour,
        vertices=outer.vertex[contour.vertices],
        px=contour.px * state.scale[0] + state.centre[0],
    )
    return Visibility(anchors, facing, behind, contour)


@numba.njit(cache=CACHE, nogil=True)
def _judge(  # type: ignore[no-untyped-def]
    seen,
    normal,
    faces,
    depth,
    low,
    scale,
    anchors,
    landmarks,
    triangles,
    in_crease,
    occlusion,
    visible,
    facing,
    behind,
):
    """Fill (A,) ``visible`` of the anchors, and (68,) ``facing`` and ``behind`` of the landmarks.

    (V, 3) ``seen`` and unit ``normal`` of a mesh, whose nearest ``depth`` lies in pixels
    ``scale * (xy - low)``; (68, T) ``triangles`` at the landmarks.
    """
    for n in range(len(anchors)):
        v = anchors[n]
        hidden = depth_behind(seen, v, low, scale, depth) > occlusion
        visible[n] = 0.0 if hidden else soft_facing(-normal[v, 2])
    fill_largest_cosines(seen, faces, triangles, -1.0, facing)
    for n in range(len(landmarks)):
        if in_crease[n]:
            facing[n] = 1.0
        behind[n] = depth_behind(seen, landmarks[n], low, scale, depth)
