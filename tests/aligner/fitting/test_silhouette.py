"""Occluding contours: tracing, the border of the mask, and residuals of a shifted fit."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dff.aligner.config import AlignConfig, FitModelConfig
from dff.aligner.fitting.contour import trace
from dff.aligner.fitting.correspondence import Matches
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.fit_model import FitModel, FitState, build_fit_model
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.silhouette import find_ends, match_silhouette
from dff.aligner.fitting.visibility import compute_visibility
from dff.face.arrays import Floats
from dff.face.descriptor import SKIN_REGIONS, STRIDE
from dff.face.geometry.mesh import unique_edges
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render
from dff.face.solve.gauss_newton import FaceState, Lines, project
from tests.aligner.oracle import PositionCode, oracle_anchors

SIZE = 320
CONFIG = AlignConfig()
MOST = CONFIG.visibility.contour_points


def ball(rows: int, columns: int) -> tuple[Floats, np.ndarray]:
    """Vertices of a sphere of radius one, and its triangles from outside."""
    polar, azimuth = (
        np.linspace(0.02, np.pi - 0.02, rows),
        np.linspace(0, 2 * np.pi, columns, endpoint=False),
    )
    p, a = np.meshgrid(polar, azimuth, indexing="ij")
    vertices = np.stack([np.sin(p) * np.cos(a), np.cos(p), np.sin(p) * np.sin(a)], axis=-1).reshape(
        -1, 3
    )
    at = np.arange(rows * columns).reshape(rows, columns)
    low, right = at[:-1], np.roll(at, -1, axis=1)[:-1]
    below, diagonal = at[1:], np.roll(at, -1, axis=1)[1:]
    faces = np.concatenate(
        [np.stack([low, right, below], -1), np.stack([right, diagonal, below], -1)]
    ).reshape(-1, 3)
    return vertices, faces


def places(vertices: Floats, faces: np.ndarray, depth: Floats) -> tuple[int, Floats, Floats]:
    """(count, (count, 2) places, (count, 2) normals) of a sphere that fills a map of ``depth``."""
    row = np.zeros((MOST, 2), np.int32), np.zeros(MOST), np.zeros((MOST, 2)), np.zeros((MOST, 2))
    scale = len(depth) / 2.0
    count = trace(
        vertices,
        vertices,
        unique_edges(faces).astype(np.int32),
        depth,
        scale,
        np.full(2, -1.0),
        CONFIG.visibility.contour_occlusion,
        *row,
    )
    return count, row[2][:count], row[3][:count]


def test_the_contour_of_a_sphere_is_a_circle() -> None:
    vertices, faces = ball(41, 90)
    open_depth = np.full((64, 64), np.inf)
    count, at, outward = places(vertices, faces, open_depth)
    assert count > 80
    assert np.abs(np.linalg.norm(at, axis=1) - 1.0).max() < 0.004  # chords of the mesh lie inside
    np.testing.assert_allclose(outward, at / np.linalg.norm(at, axis=1)[:, None], atol=1e-9)
    # All round, though more edges cross than a rim holds.
    angle = np.sort(np.arctan2(at[:, 1], at[:, 0]))
    assert np.diff(np.append(angle, angle[0] + 2 * np.pi)).max() < 0.25


def test_occluded_edges_are_no_contour() -> None:
    vertices, faces = ball(41, 90)
    depth = np.full((64, 64), np.inf)
    depth[:, 32:] = -2.0  # a wall before the right half
    count, at, _ = places(vertices, faces, depth)
    assert count > 40
    assert at[:, 0].max() < 2.0 / 64


def test_ends_are_where_the_map_passes_zero() -> None:
    x = np.arange(40.0)
    logit = np.tile(20.3 - x, (40, 1)).astype(np.float32)
    start, step = (
        np.array([[19.0, 10.0], [19.0, 10.0], [5.0, 10.0], [22.5, 30.0]]),
        np.zeros((4, 2)),
    )
    step[:, 0] = [0.25, -0.25, 0.25, 0.25]
    away = np.zeros(4)
    find_ends(logit, start, step, 4, 16, away)
    assert away[[0, 3]] == pytest.approx([1.3 / 0.25, -2.2 / 0.25])
    assert np.isnan(away[1:3]).all()  # one points inwards, one is too far inside

    stripes = np.tile(np.where((x % 8) < 4, 1.0, -1.0), (40, 1)).astype(np.float32)
    find_ends(stripes, np.array([[12.6, 5.0]]), np.array([[1.0, 0.0]]), 1, 12, away)
    assert away[0] == pytest.approx(
        11.5 - 12.6, abs=0.1
    )  # of the ends at 3.5, 11.5 and 19.5 the second is nearest


@pytest.fixture(scope="module")
def fit_model(open_head: MorphableModel) -> FitModel:
    anchors = oracle_anchors(open_head, PositionCode.of(open_head), 200)
    return build_fit_model(open_head, anchors, FitModelConfig(modes=10))


def make_state(rotation: Floats) -> FitState:
    middle = np.full((1, 2), SIZE / 2)
    face = FaceState(np.array([900.0]), rotation[None], middle, np.zeros((1, 10)))
    return FitState.of(face, CONFIG.inverse_depth)


def observe(fit_model: FitModel, state: FitState) -> Observation:
    """By a network that knows exactly which pixels show the face, and matches none of them."""
    frame = render(
        fit_model.vertices(state)[0] @ state.rotation[0].T,
        fit_model.model.faces,
        state.camera(0),
        (SIZE, SIZE),
    )
    model = fit_model.model
    skin = np.append(np.isin(model.region_names, SKIN_REGIONS)[model.region], False)
    covered = cv2.resize(
        skin[frame.triangle].astype(np.float32), (SIZE // STRIDE,) * 2, interpolation=cv2.INTER_AREA
    )
    crops = Crops(np.full((1, 2), SIZE / 2), np.full(1, float(SIZE)), np.zeros(1), SIZE)
    return Observation(
        crops,
        Matches.none(1, 0, 0),
        np.zeros((1, 0, 2)),
        np.zeros((1, 0, *covered.shape), np.float32),
        (covered - 0.5)[None] * 10.0,
    )


def match_at(fit_model: FitModel, state: FitState, observation: Observation) -> Lines:
    contour = compute_visibility(fit_model, state, CONFIG.visibility).contour
    return match_silhouette(fit_model, state, contour, observation, CONFIG.silhouette)


@pytest.mark.parametrize("yaw", [0.0, 50.0, -85.0])
def test_the_silhouette_measures_the_shift_of_a_face(fit_model: FitModel, yaw: float) -> None:
    true = make_state(rotation_from_angles(yaw, 5.0, 3.0))
    observation = observe(fit_model, true)
    reach = CONFIG.silhouette.reach * fit_model.face_size(true)[0]
    assert reach / CONFIG.silhouette.steps < 1.0  # px: a step passes no detail of the map
    for shift in ([0.0, 0.0], [2.0, -1.0], [-3.0, 0.5]):
        moved = replace(true, centre=true.centre + shift)
        lines = match_at(fit_model, moved, observation)
        used = lines.weights[0] > 0
        assert used.sum() > 15
        px = project(moved, lines.mean, moved.inverse_depth)
        off = ((lines.targets - px) * lines.normal).sum(-1)[0, used]
        expected = -(lines.normal[0, used] @ shift)
        assert np.median(np.abs(off - expected)) < 0.5  # px, where one of the map's is two
        assert abs(np.median(off - expected)) < 0.3
        assert np.abs(off).max() <= reach + 1e-9
        np.testing.assert_allclose(np.linalg.norm(lines.normal[0, used], axis=1), 1.0)


def test_without_a_border_of_the_mask_there_are_no_lines(fit_model: FitModel) -> None:
    state = make_state(np.diag([1.0, -1.0, -1.0]))
    observation = observe(fit_model, state)
    everywhere = replace(observation, face_logit=np.ones_like(observation.face_logit))
    assert match_at(fit_model, state, everywhere).weights.max() == 0.0
