"""The outer mesh hides what the whole mesh hides."""

import numpy as np
import pytest

from dff.aligner.config import FitModelConfig, VisibilityConfig
from dff.aligner.fitting.depth_buffer import DepthBuffer, depth_behind
from dff.aligner.fitting.fit_model import FitModel, FitState, build_fit_model
from dff.aligner.fitting.visibility import compute_visibility
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.morphable import MorphableModel
from dff.face.render.kernels import smooth_normals
from dff.face.solve.gauss_newton import FaceState
from tests.aligner.oracle import PositionCode, oracle_anchors


@pytest.fixture(scope="module")
def fit_model(open_head: MorphableModel, code: PositionCode) -> FitModel:
    return build_fit_model(open_head, oracle_anchors(open_head, code), FitModelConfig())


def state(yaw: float, pitch: float, modes: int) -> FitState:
    rng = np.random.default_rng(2)
    rotation = rotation_from_angles(yaw, pitch, 10.0)[None]
    face = FaceState(np.full(1, 900.0), rotation, np.zeros((1, 2)), rng.normal(size=(1, modes)))
    return FitState.of(face, 1.0)


def test_the_outer_mesh_is_a_part_of_the_whole_one(fit_model: FitModel) -> None:
    outer, one = fit_model.outer, state(20.0, 0.0, len(fit_model.modes))
    assert len(outer.faces) < 0.85 * len(fit_model.model.faces)
    vertices = outer.vertices(one.coefficients)
    np.testing.assert_allclose(vertices, fit_model.vertices(one)[:, outer.vertex], atol=1e-7)
    np.testing.assert_array_equal(outer.vertex[outer.anchors], fit_model.anchor_vertex)
    np.testing.assert_array_equal(outer.vertex[outer.edges], fit_model.contour_edges)
    np.testing.assert_array_equal(
        outer.vertex[outer.faces][outer.landmark_triangles],
        fit_model.model.faces[fit_model.landmark_triangles],
    )


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (35.0, -15.0), (-80.0, 10.0)])
def test_it_hides_what_the_whole_mesh_hides(fit_model: FitModel, yaw: float, pitch: float) -> None:
    config, one = VisibilityConfig(), state(yaw, pitch, len(fit_model.modes))
    found = compute_visibility(fit_model, one, config)
    turned = fit_model.vertices(one)[0] @ one.rotation[0].T
    faces = fit_model.model.faces
    buffer = DepthBuffer.of(turned, 1.0, faces, config.buffer)
    at = buffer.seen[fit_model.anchor_vertex]
    depth, place = buffer.nearest_depth(), (buffer.low, buffer.scale)
    behind = np.array([depth_behind(at, n, *place, depth) for n in range(len(at))])
    hidden = behind > config.occlusion
    facing = -smooth_normals(buffer.seen, faces)[fit_model.anchor_vertex, 2]
    turns = np.clip((facing + 0.1) / 0.2, 0.0, 1.0)
    assert 0.1 < hidden.mean() < 0.9
    np.testing.assert_allclose(found.anchors[0], turns * ~hidden, atol=1e-3)
