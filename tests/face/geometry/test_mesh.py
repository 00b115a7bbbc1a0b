"""Surface points and normals."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from dff.face.geometry.mesh import SurfacePoints, triangle_normals, vertex_normals
from dff.face.geometry.transform import Rigid, rotation_from_vector
from dff.face.model.morphable import MorphableModel
from dff.face.render.kernels import smooth_normals


def test_surface_points_move_with_the_mesh(toy_model: MorphableModel) -> None:
    """Interpolating positions commutes with motions; a corner's weights give the corner."""
    rng = np.random.default_rng(0)
    points = SurfacePoints(rng.integers(0, len(toy_model.faces), 40), rng.dirichlet([1, 1, 1], 40))
    motion = Rigid(rotation_from_vector(rng.normal(size=3)), rng.normal(size=3))
    still = points.of(toy_model.template, toy_model.faces)
    assert np.allclose(
        points.of(motion.apply(toy_model.template), toy_model.faces), motion.apply(still)
    )
    corners = SurfacePoints(np.array([5, 5, 5]), np.eye(3))
    assert np.array_equal(
        corners.of(toy_model.template, toy_model.faces), toy_model.template[toy_model.faces[5]]
    )
    with pytest.raises(ValueError, match="barycentrics"):
        SurfacePoints(np.zeros(4, dtype=int), np.zeros((3, 3)))


def test_normals_of_a_sphere_point_outwards() -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    normals = vertex_normals(ball.vertices, ball.faces)
    assert ((normals * ball.vertices).sum(1)).min() > np.cos(np.deg2rad(1.0))
    area = np.linalg.norm(triangle_normals(ball.vertices, ball.faces), axis=1).sum() / 2
    assert area == pytest.approx(4 * np.pi, rel=0.01)


def test_normals_turn_with_the_mesh_and_lonely_vertices_have_none(
    toy_model: MorphableModel,
) -> None:
    rotation = rotation_from_vector(np.array([0.3, -1.0, 0.5]))
    vertices = np.concatenate([toy_model.template.astype(float), np.ones((1, 3))])
    normals = vertex_normals(vertices, toy_model.faces)
    assert np.allclose(vertex_normals(vertices @ rotation.T, toy_model.faces), normals @ rotation.T)
    assert np.allclose(np.linalg.norm(normals[:-1], axis=1), 1.0)
    assert not normals[-1].any()


def test_the_renderers_normals_are_the_same(open_head: MorphableModel) -> None:
    vertices = open_head.template.astype(np.float64)
    assert (
        np.abs(
            smooth_normals(vertices, open_head.faces) - vertex_normals(vertices, open_head.faces)
        ).max()
        < 1e-9
    )
