"""Where the landmarks of a fitted mesh lie: on its vertices, moved to where annotators put them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from dff.aligner.alignment import Alignment, Pose
from dff.aligner.fitting.batch import with_fields
from dff.face.arrays import Floats
from dff.face.geometry.camera import NearPerspective
from dff.face.geometry.transform import Rigid
from dff.face.model.landmark_offsets import (
    LandmarkOffsets,
    fill_moved,
    fill_with_closed_edges,
    find_upright,
)
from dff.face.model.landmarks import SCHEMES, fill_contour, fill_reach
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.numba_cache import CACHE

FLAT, DEEP = SCHEMES.index("2d"), SCHEMES.index("3d")

JAW_TOLERANCE = 0.0003
"""Metres: the jaw points of the 2D scheme are means over so deep a strip along the contour.

Without it they jump by up to a tenth of the face size where two places lie equally far out; their
error on 90 photos of 300-W is 1 % smaller with it.
"""


def move_alignment(
    face: Alignment,
    vertices: Floats | Callable[[], Floats],
    landmarks: tuple[Floats, Floats],
    coefficients: Coefficients | Callable[[], Coefficients],
    cam_from_head: Rigid,
    camera: NearPerspective,
    pose: Pose | Callable[[], Pose],
    **others: Any,
) -> Alignment:
    """``face`` with another mesh, pose and camera, and the ``landmarks`` of ``place_landmarks``.

    ``vertices`` of the mesh, ``coefficients`` and the answered ``pose``, or functions that compute
    them when they are read. ``others``: fields that change, too.
    """
    flat, deep = landmarks
    return with_fields(
        face,
        landmarks_2d=flat,
        landmarks_3d=deep,
        pose=pose,
        vertices=vertices,
        coefficients=coefficients,
        cam_from_head=cam_from_head,
        camera=camera,
        **others,
    )


def place_landmarks(
    model: MorphableModel,
    landmark_offsets: LandmarkOffsets,
    points: Floats,
    in_head: Floats,
    cam_from_head: Rigid,
    camera: NearPerspective,
    refinement: Floats,
) -> tuple[Floats, Floats]:
    """The ``landmarks_2d`` and ``landmarks_3d`` of a fitted mesh, where annotators put them.

    (U, 3) ``points``: the vertices that ``LandmarkTable.used`` names. (2, 68, 3) ``in_head``: what
    ``LandmarkOffsets.in_head`` answers for the coefficients. (68, 2) ``refinement``: of
    ``Alignment``.
    """
    table = model.landmarks.among_used
    flat, deep = np.empty((68, 2)), np.empty((68, 3))
    _place(
        points,
        model.used_template,
        table.vertex,
        table.contour,
        table.inner,
        not landmark_offsets.none,
        in_head,
        landmark_offsets.by_pose,
        landmark_offsets.pose_limit,
        cam_from_head.rotation,
        cam_from_head.translation,
        camera.scale,
        camera.centre,
        camera.inverse_depth,
        refinement,
        flat,
        deep,
    )
    return flat, deep


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _place(  # type: ignore[no-untyped-def]
    points,
    template,
    vertex,
    contour,
    inner,
    annotated,
    in_head,
    by_pose,
    pose_limit,
    rotation,
    translation,
    scale,
    centre,
    inverse_depth,
    refinement,
    flat,
    deep,
):
    """Fill (68, 2) ``flat`` and (68, 3) ``deep``: what ``place_landmarks`` returns."""
    seen, px = np.empty((len(points), 3)), np.empty((len(points), 2))
    for n in range(len(points)):
        for c in range(3):
            seen[n, c] = translation[c]
            for k in range(3):
                seen[n, c] += rotation[c, k] * points[n, k]
        near = scale / (1.0 + inverse_depth * seen[n, 2])
        for c in range(2):
            px[n, c] = seen[n, c] * near + centre[c]
    both = np.empty((2, 68, 3))  # in the frame of the camera, by scheme
    reach, jaw = np.empty(contour.shape), len(contour)
    fill_reach(px, template, vertex, contour, reach)
    fill_contour(reach, JAW_TOLERANCE * scale, seen, contour, both[FLAT, :jaw])
    for n in range(68):
        for c in range(3):
            if n >= jaw:
                both[FLAT, n, c] = seen[inner[n - jaw], c]
            both[DEEP, n, c] = seen[vertex[n], c]
    turn = rotation.reshape(1, 3, 3)
    placed, moved = np.empty((2, 68, 2)), np.zeros((1, 68, 2))
    upright, angles = np.empty((1, 2, 2)), np.empty((2, 1))
    find_upright(turn, upright, angles[0], angles[1])
    for scheme in range(2):
        if annotated:
            fill_moved(turn, pose_limit[scheme], by_pose[scheme], moved)
        for n in range(68):
            if annotated:
                for c in range(3):
                    for k in range(3):
                        both[scheme, n, c] += rotation[c, k] * in_head[scheme, n, k]
                for c in range(2):
                    both[scheme, n, c] += moved[0, n, c]
            if scheme == FLAT:
                for c in range(2):
                    both[scheme, n, c] += refinement[n, 0] * upright[0, 0, c]
                    both[scheme, n, c] += refinement[n, 1] * upright[0, 1, c]
            near = scale / (1.0 + inverse_depth * both[scheme, n, 2])
            for c in range(2):
                placed[scheme, n, c] = both[scheme, n, c] * near + centre[c]
        if annotated:
            fill_with_closed_edges(placed[scheme], rotation, scale)
    flat[:], deep[:, :2] = placed[FLAT], placed[DEEP]
    for n in range(68):
        deep[n, 2] = -scale * both[DEEP, n, 2]
