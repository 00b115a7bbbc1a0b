"""The compiled loops of the fit against the same formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.fitting import kernels
from dff.aligner.fitting.correspondence import Matches, soft_correspondence
from dff.aligner.fitting.fit_model import FitState, largest_cosines
from dff.aligner.fitting.observation import probe
from dff.aligner.fitting.steps import scale_weights
from dff.face.geometry.mesh import triangle_normals
from dff.face.geometry.transform import rotation_from_vector
from dff.face.solve.gauss_newton import (
    Lines,
    evaluate_shape,
    initial_pose,
    project,
    step,
)
from dff.face.solve.robust import robust_weights

FACES, PIXELS, CANDIDATES, ANCHORS, MODES = 2, 60, 4, 40, 5
SIZE = 0.15  # metres


class Scene:
    """Pixels of two faces, matched to anchors with noise and some outliers."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.mean = (0.05 * rng.normal(size=(ANCHORS, 3))).astype(np.float32)
        self.basis = (0.003 * rng.normal(size=(ANCHORS, 3, MODES))).astype(np.float32)
        self.state = FitState(
            scale=np.array([700.0, 1200.0]),
            rotation=rotation_from_vector(0.4 * rng.normal(size=(FACES, 3))),
            centre=rng.uniform(50, 150, (FACES, 2)),
            coefficients=0.5 * rng.normal(size=(FACES, MODES)),
            inverse_depth=np.array([1.0, 0.5]),
        )
        anchor = rng.integers(0, ANCHORS, (FACES, PIXELS, CANDIDATES)).astype(np.int32)
        probability = rng.dirichlet([5.0, 1.0, 1.0, 0.5, 0.5], (FACES, PIXELS))[..., :CANDIDATES]
        mask = rng.uniform(0.6, 1.0, (FACES, PIXELS))
        mask[:, -5:] = 0.0
        self.matches = Matches(
            np.zeros((FACES, PIXELS, 2)),
            mask,
            anchor,
            probability.astype(np.float32),
            np.ones(FACES),
        )
        self.visible = rng.uniform(0.2, 1.0, (FACES, ANCHORS))
        near = np.take_along_axis(self.predicted, anchor[..., :1].astype(int), axis=1)
        self.px = near + 3.0 * rng.normal(size=(FACES, PIXELS, 2))
        self.px[:, ::9] += 60.0

    @property
    def predicted(self) -> np.ndarray:
        points = evaluate_shape(self.mean, self.basis, self.state.coefficients)
        return project(self.state, points, self.state.inverse_depth)

    @property
    def observed(self) -> tuple[np.ndarray, ...]:
        return self.matches.anchor, self.matches.probability, self.matches.mask, self.px

    @property
    def gate(self) -> np.ndarray:
        return 0.15 * self.state.scale * SIZE

    def lines(self, seed: int) -> Lines:
        rng = np.random.default_rng(seed)
        normal = rng.normal(size=(FACES, 12, 2))
        return Lines(
            mean=0.05 * rng.normal(size=(FACES, 12, 3)),
            basis=(0.003 * rng.normal(size=(FACES, 12, 3, MODES))).astype(np.float32),
            targets=rng.uniform(50, 150, (FACES, 12, 2)),
            normal=normal / np.linalg.norm(normal, axis=2, keepdims=True),
            weights=rng.uniform(0.1, 1.0, (FACES, 12)),
        )


def assert_same_states(got: FitState, wanted: FitState, tolerance: float = 1e-5) -> None:
    assert np.allclose(got.scale, wanted.scale, rtol=tolerance)
    assert np.allclose(got.rotation, wanted.rotation, atol=tolerance)
    assert np.allclose(got.centre, wanted.centre, atol=100 * tolerance)
    assert np.allclose(got.coefficients, wanted.coefficients, atol=10 * tolerance)


@pytest.mark.parametrize("lined", [False, True])
def test_steps_are_those_of_the_normal_equations_in_numpy(lined: bool) -> None:
    scene, noises = Scene(1), (0.05, 0.03)
    start, face_size = scene.state, scene.state.scale * SIZE
    lines = scene.lines(2) if lined else Lines.none(FACES, MODES)
    mean, basis, weight = soft_correspondence(
        scene.matches,
        scene.px,
        scene.predicted,
        scene.gate,
        scene.visible,
        scene.mean,
        scene.basis,
    )
    wanted = start
    for noise in noises:
        face = step(
            wanted,
            mean,
            basis.astype(np.float64),
            scene.px,
            scale_weights(weight, 30.0),
            noise=noise * wanted.scale * SIZE,
            prior=np.zeros(MODES),
            prior_sd=np.ones(MODES),
            inverse_depth=start.inverse_depth,
            lines=lines if lined else None,
        )
        wanted = wanted.with_face(face)
    got = start.copied()
    tables = scene.mean, scene.basis, SIZE, 0.15, np.array(noises), 30.0
    line = lines.mean, lines.basis, lines.targets, lines.normal, lines.weights
    kernels.take_steps(
        *scene.observed,
        scene.visible,
        *tables,
        *line,
        got.scale,
        got.rotation,
        got.centre,
        got.coefficients,
        got.inverse_depth,
    )
    assert np.abs(got.centre - start.centre).max() > 1e-3 * face_size.min()
    assert_same_states(got, wanted, 1e-4)


def test_poses_in_closed_form_leave_outliers_out_as_numpy_does() -> None:
    scene, noises = Scene(3), (0.3, 0.2, 0.12)
    face_size = scene.state.scale * SIZE
    mean, _, weight = soft_correspondence(
        scene.matches,
        scene.px,
        scene.predicted,
        np.full(FACES, np.inf),
        np.ones((FACES, ANCHORS)),
        scene.mean,
        scene.basis[:, :, :0],
    )
    inliers, wanted = weight, scene.state
    for noise in noises:
        wanted = wanted.with_face(initial_pose(mean, scene.px, inliers, 0))
        away = scene.px - project(wanted, mean, wanted.inverse_depth)
        inliers = weight * robust_weights(away, (noise * face_size)[:, None])
    got = scene.state.copied()
    kernels.find_poses(
        *scene.observed,
        scene.mean,
        np.zeros((PIXELS, 3, 0), np.float32),
        SIZE,
        np.array(noises),
        np.zeros(0),
        300.0,
        got.scale,
        got.rotation,
        got.centre,
        got.inverse_depth,
    )
    assert np.allclose(got.scale, wanted.scale, rtol=1e-5)
    assert np.allclose(got.rotation, wanted.rotation, atol=1e-5)
    assert np.allclose(got.centre, wanted.centre, atol=1e-3)


def test_points_in_a_plane_give_no_pose_and_keep_the_state() -> None:
    scene = Scene(4)
    scene.mean[:] = scene.mean[0]
    got = scene.state.copied()
    kernels.find_poses(
        *scene.observed,
        scene.mean,
        np.zeros((PIXELS, 3, 0), np.float32),
        SIZE,
        np.array([0.3, 0.1]),
        np.array([0.05]),
        300.0,
        got.scale,
        got.rotation,
        got.centre,
        got.inverse_depth,
    )
    for values in (got.scale, got.rotation, got.centre):
        assert np.isfinite(values).all()


def test_a_pose_is_found_anew_only_where_the_face_has_jumped() -> None:
    scene = Scene(5)
    scene.matches.probability[..., 1:] = 1e-5  # one candidate, which lies near its pixel
    got = scene.state.copied()
    got.centre[1] += 80.0
    before = got.centre.copy()
    jumped = kernels.find_jumped(
        *scene.observed,
        scene.visible,
        scene.mean,
        scene.basis,
        SIZE,
        np.array([0.3, 0.2, 0.12]),
        0.08,
        0.3,
        got.scale,
        got.rotation,
        got.centre,
        got.coefficients,
        got.inverse_depth,
    )
    assert jumped.tolist() == [False, True]
    assert (got.centre[0] == before[0]).all()
    assert np.linalg.norm(got.centre[1] - scene.state.centre[1]) < 15.0


def test_agreement_falls_with_the_distance_of_a_match_from_its_prediction() -> None:
    scene = Scene(6)
    gate, tolerance = 0.1, 0.035
    agreement, residual = kernels.agree(
        *scene.observed,
        scene.visible,
        scene.mean,
        scene.basis,
        SIZE,
        gate,
        tolerance,
        scene.state.scale,
        scene.state.rotation,
        scene.state.centre,
        scene.state.coefficients,
        scene.state.inverse_depth,
    )
    flat = np.zeros((FACES, ANCHORS, 3), np.float32)
    flat[..., :2] = scene.predicted
    for face in range(FACES):
        size = scene.state.scale[face] * SIZE
        rows = scene.matches.anchor[face]
        square = ((scene.px[face, :, None] - scene.predicted[face, rows]) ** 2).sum(2)
        share = scene.matches.probability[face] * scene.visible[face, rows]
        share = share * np.exp(-0.5 * square / (gate * size) ** 2)
        share[share < 2e-3 * share.max(1, keepdims=True)] = 0.0
        total = share.sum(1)
        place = np.einsum("nk,nkc->nc", share, scene.predicted[face, rows])
        place /= np.maximum(total, 1e-12)[:, None]
        distance = np.linalg.norm(place - scene.px[face], axis=1) / size
        live = (scene.matches.mask[face] > 0) & (total >= 1e-6)
        wanted = scene.matches.mask[face] * total * np.exp(-0.5 * (distance / tolerance) ** 2)
        wanted = np.where(live, wanted, 0.0)
        assert np.allclose(agreement[face], wanted, atol=1e-5)
        assert np.isclose(residual[face], (wanted * distance).sum() / wanted.sum(), rtol=1e-4)


def test_following_is_a_search_for_jumps_then_steps_then_agreement() -> None:
    scene = Scene(6)
    seen = *scene.observed, scene.visible, scene.mean, scene.basis, SIZE
    pose_noise, gates, noises = np.array([0.3, 0.1]), np.array([0.1, 0.08]), np.full((2, 2), 0.04)
    lines = Lines.none(FACES, MODES)
    line = lines.mean, lines.basis, lines.targets, lines.normal, lines.weights
    got, wanted = scene.state.copied(), scene.state.copied()
    settings = pose_noise, 0.08, 0.5, gates, noises, 30.0, 0.1, 0.035
    agreement = kernels.follow_faces(*seen, *settings, *state_fields(got))
    kernels.find_jumped(*seen, pose_noise, 0.08, 0.5, *state_fields(wanted))
    for gate, noise in zip(gates, noises, strict=True):
        kernels.take_steps(*seen, gate, noise, 30.0, *line, *state_fields(wanted))
    for one, other in zip(state_fields(got), state_fields(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    want, _ = kernels.agree(*seen, 0.1, 0.035, *state_fields(wanted))
    np.testing.assert_allclose(agreement, want, atol=1e-9)
    assert np.abs(got.centre - scene.state.centre).max() > 0.1


def state_fields(state: FitState) -> tuple[np.ndarray, ...]:
    """As the kernels take them."""
    return state.scale, state.rotation, state.centre, state.coefficients, state.inverse_depth


def test_probes_are_means_of_the_mask_and_largest_cosines_about_a_place() -> None:
    rng = np.random.default_rng(7)
    descriptor = rng.normal(size=(1, 9, 12, 4)).astype(np.float32)
    logit = rng.normal(size=(1, 9, 12)).astype(np.float32)
    expected = rng.normal(size=(3, 4)).astype(np.float32)
    places = np.array([[[5.5, 4.2], [0.1, 8.9], [12.5, 3.0]]])  # the last lies outside
    found = probe(np.moveaxis(descriptor, 3, 1), logit, places, expected)[0]
    mask = 1.0 / (1.0 + np.exp(-logit[0].astype(np.float64)))
    for n, (row, column) in enumerate([(4, 5), (6, 2)]):  # two pixels from every edge
        cosine = descriptor[0] @ expected[n]
        parts = [(slice(row - r, row + r + 1), slice(column - r, column + r + 1)) for r in (1, 2)]
        wanted = [mask[part].mean() for part in parts] + [cosine[part].max() for part in parts]
        assert np.allclose(found[n], wanted, atol=1e-5)
    assert (found[2] == 0).all()


def test_the_largest_cosine_is_that_of_the_triangle_that_faces_the_camera_most() -> None:
    rng = np.random.default_rng(8)
    vertices, faces = rng.normal(size=(20, 3)), rng.integers(0, 20, (30, 3)).astype(np.int32)
    faces = faces[np.linalg.norm(triangle_normals(vertices, faces), axis=1) > 1e-3]
    triangles = rng.integers(0, len(faces), (6, 4))
    normal = triangle_normals(vertices, faces)
    cosine = -normal[:, 2] / np.linalg.norm(normal, axis=1)
    found = largest_cosines(vertices, faces, triangles, towards=-1.0)
    assert np.allclose(found, cosine[triangles].max(1), atol=1e-9)


@pytest.mark.parametrize("moves", [False, True])
def test_landmarks_are_those_of_shape_and_camera(oracle_aligner: Aligner, *, moves: bool) -> None:
    fit_model, rng = oracle_aligner.fit_model, np.random.default_rng(7)
    state = FitState(
        scale=np.array([700.0, 1200.0]),
        rotation=rotation_from_vector(0.4 * rng.normal(size=(FACES, 3))),
        centre=rng.uniform(50, 150, (FACES, 2)),
        coefficients=0.5 * rng.normal(size=(FACES, len(fit_model.modes))),
        inverse_depth=np.array([1.0, 0.5]),
    )
    moved = 0.005 * rng.normal(size=(FACES, 68, 2))
    points = evaluate_shape(fit_model.landmark_mean, fit_model.landmark_basis, state.coefficients)
    if moves:
        points = points + moved @ state.rotation[:, :2]
    found = fit_model.landmarks(state, moved if moves else None)
    np.testing.assert_allclose(found, project(state, points, state.inverse_depth), atol=1e-9)
