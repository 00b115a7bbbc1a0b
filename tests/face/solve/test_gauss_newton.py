"""Robust Gauss-Newton: Jacobians, exact recovery, outliers, fixed coefficients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from dff.face.arrays import Bools, Floats
from dff.face.geometry.camera import NearPerspective
from dff.face.geometry.transform import geodesic_degrees, rotation_from_angles
from dff.face.model.morphable import MorphableModel
from dff.face.solve.gauss_newton import (
    POSE,
    FaceState,
    Lines,
    apply_step,
    evaluate_shape,
    initial_pose,
    jacobian,
    linearise,
    project,
    step,
)
from dff.face.solve.least_squares import damp
from dff.face.solve.robust import robust_weights

IDENTITIES, EXPRESSIONS = 20, 10
P = IDENTITIES + EXPRESSIONS


@pytest.fixture(scope="module")
def landmarks(open_head: MorphableModel) -> tuple[Floats, Floats]:
    """(68, 3) mean and (68, 3, P) basis of the open head's landmarks."""
    return open_head.basis_of_vertices(open_head.landmarks.vertex, IDENTITIES, EXPRESSIONS)


def random_faces(n: int, rng: np.random.Generator, yaw: float = 80.0) -> FaceState:
    turns = [rotation_from_angles(*rng.uniform([-yaw, -30, -40], [yaw, 30, 40])) for _ in range(n)]
    coefficients = np.concatenate(
        [rng.normal(size=(n, IDENTITIES)), rng.uniform(0, 0.3, (n, EXPRESSIONS))], axis=1
    )
    return FaceState(
        rng.uniform(500, 2000, n), np.array(turns), rng.uniform(50, 400, (n, 2)), coefficients
    )


def fitted(
    mean: Floats, basis: Floats, targets: Floats, weights: Floats, noise: float
) -> FaceState:
    """Robust fit with the scale of outliers lowered from a fifth of the face to ``noise`` of it."""
    size = np.sqrt(np.prod(np.ptp(targets, axis=1), axis=1))  # (B,)
    state = initial_pose(mean, targets, weights, P)
    sd = np.array([1.0] * IDENTITIES + [0.3] * EXPRESSIONS)
    for share in [*np.geomspace(0.2, noise, 12), *[noise] * 6]:
        state = step(
            state, mean, basis, targets, weights, noise=size * share, prior=np.zeros(P), prior_sd=sd
        )
    return state


@pytest.mark.parametrize("inverse_depth", [None, np.array([0.0, 0.5, 1.0, 3.0])])
def test_jacobian_against_finite_differences(
    landmarks: tuple[Floats, Floats], inverse_depth: Floats | None
) -> None:
    mean, basis = landmarks
    state = random_faces(4, np.random.default_rng(0))
    px, analytic = jacobian(state, mean, basis, inverse_depth)
    assert np.allclose(
        px, project(state, evaluate_shape(mean, basis, state.coefficients), inverse_depth)
    )
    each = np.broadcast_to(basis, (4, *basis.shape))
    assert np.allclose(
        jacobian(state, mean, each, inverse_depth)[1], analytic
    )  # one basis for all faces, or one for each
    h = 1e-5
    for column in range(POSE + P):
        delta = np.zeros((4, POSE + P))
        delta[:, column] = h
        ends = [apply_step(state, sign * delta) for sign in (1, -1)]
        a, b = (
            project(end, evaluate_shape(mean, basis, end.coefficients), inverse_depth)
            for end in ends
        )
        numeric = (a - b) / (2 * h)
        assert np.abs(numeric - analytic[..., column]).max() < 1e-5 * (1 + np.abs(numeric).max())


def test_projections_are_those_of_the_near_camera(landmarks: tuple[Floats, Floats]) -> None:
    mean, _ = landmarks
    state, inverse_depth = random_faces(3, np.random.default_rng(0)), np.array([0.0, 0.7, 2.0])
    px = project(state, np.broadcast_to(mean, (3, *mean.shape)), inverse_depth)
    for face, near in enumerate(inverse_depth):
        camera = NearPerspective(float(state.scale[face]), state.centre[face], float(near))
        assert np.allclose(px[face], camera.px_from_cam(state.cam_from_head(face).apply(mean)))
    assert np.allclose(px[0], project(state, np.broadcast_to(mean, (3, *mean.shape)))[0])


def test_the_right_inverse_depth_makes_poses_of_near_faces_exact(
    landmarks: tuple[Floats, Floats],
) -> None:
    """At 70 cm poses are wrong by degrees in weak perspective, exact with inverse depth."""
    mean, _ = landmarks
    truth = random_faces(30, np.random.default_rng(1))
    near = np.full(30, 1 / 0.7)
    targets = project(truth, np.broadcast_to(mean, (30, 68, 3)), near)
    apart = {}
    for name, inverse_depth in (("far", None), ("near", near)):
        state = initial_pose(mean, targets, np.ones((30, 68)), 0)
        for _ in range(8):
            noise = 0.2 * state.scale * float(np.ptp(mean[:, 0]))
            state = step(
                state,
                mean,
                np.zeros((68, 3, 0)),
                targets,
                np.ones((30, 68)),
                noise=noise,
                prior=np.zeros(0),
                prior_sd=np.zeros(0),
                inverse_depth=inverse_depth,
            )
        apart[name] = geodesic_degrees(state.rotation, truth.rotation)
    assert apart["near"].max() < 0.01
    assert np.median(apart["far"]) > 1.0


def test_the_first_pose_is_exact_for_the_mean_face(landmarks: tuple[Floats, Floats]) -> None:
    mean, _ = landmarks
    truth = random_faces(20, np.random.default_rng(1))
    targets = project(truth, np.broadcast_to(mean, (20, 68, 3)))
    found = initial_pose(mean, targets, np.ones((20, 68)), P)
    assert geodesic_degrees(found.rotation, truth.rotation).max() < 0.05
    assert np.abs(found.scale / truth.scale - 1).max() < 1e-3
    assert np.abs(project(found, np.broadcast_to(mean, (20, 68, 3))) - targets).max() < 0.5


def test_a_fit_explains_clean_points(landmarks: tuple[Floats, Floats]) -> None:
    """With a weak prior, points are fitted to 0.3 % of the face, and the pose to a few degrees."""
    mean, basis = landmarks
    truth = random_faces(20, np.random.default_rng(2))
    targets = project(truth, evaluate_shape(mean, basis, truth.coefficients))
    found = fitted(mean, basis, targets, np.ones((20, 68)), noise=0.005)
    size = np.sqrt(np.prod(np.ptp(targets, axis=1), axis=1))
    miss = (
        np.linalg.norm(
            project(found, evaluate_shape(mean, basis, found.coefficients)) - targets, axis=2
        ).mean(1)
        / size
    )
    assert np.median(miss) < 0.003
    assert np.median(geodesic_degrees(found.rotation, truth.rotation)) < 2.0


def displaced(targets: Floats, rng: np.random.Generator, share: float) -> tuple[Floats, Bools]:
    """(B, N, 2) targets with a fifth of the points moved by ``share`` of the face, and which."""
    b, n, _ = targets.shape
    size = np.sqrt(np.prod(np.ptp(targets, axis=1), axis=1))
    wrong = np.argsort(rng.random((b, n)), axis=1) < n // 5
    angle = rng.uniform(0, 2 * np.pi, (b, n))
    push = np.stack([np.cos(angle), np.sin(angle)], axis=2) * (share * size)[:, None, None]
    return targets + push * wrong[..., None], wrong


def test_wrong_points_hardly_turn_the_face(landmarks: tuple[Floats, Floats]) -> None:
    """With a fifth of the points displaced by a fifth of the face, the pose changes by under 2°.

    So for 95 of 100 faces of up to 60 degrees of yaw with 20 + 10 free coefficients; typically by
    less than half a degree. In the others a few wrong points agree by chance on another face.
    """
    mean, basis = landmarks
    rng = np.random.default_rng(3)
    truth = random_faces(200, rng, yaw=60.0)
    clean = project(truth, evaluate_shape(mean, basis, truth.coefficients)) + rng.normal(
        size=(200, 68, 2)
    )
    spoilt, wrong = displaced(clean, rng, 0.2)
    weights = np.ones((200, 68))
    before, after = (fitted(mean, basis, points, weights, noise=0.03) for points in (clean, spoilt))
    turn = geodesic_degrees(before.rotation, after.rotation)
    assert np.median(turn) < 0.5
    assert np.percentile(turn, 95) < 2.0
    residual = spoilt - project(after, evaluate_shape(mean, basis, after.coefficients))
    size = np.sqrt(np.prod(np.ptp(clean, axis=1), axis=1))
    trust = robust_weights(residual, (size * 0.03)[:, None])
    assert np.percentile(trust[wrong], 99) < 0.2 * np.median(trust[~wrong])


def test_weights_of_zero_leave_points_out(landmarks: tuple[Floats, Floats]) -> None:
    mean, basis = landmarks
    rng = np.random.default_rng(4)
    truth = random_faces(5, rng)
    targets = project(truth, evaluate_shape(mean, basis, truth.coefficients))
    spoilt, wrong = displaced(targets, rng, 5.0)
    weights = np.where(wrong, 0.0, 1.0)
    start = initial_pose(mean, targets, weights, P)
    arguments = {"noise": np.full(5, 10.0), "prior": np.zeros(P), "prior_sd": np.ones(P)}
    a = step(start, mean, basis, targets, weights, **arguments)
    b = step(start, mean, basis, spoilt, weights, **arguments)
    assert np.allclose(a.rotation, b.rotation)
    assert np.allclose(a.coefficients, b.coefficients)
    assert np.allclose(initial_pose(mean, spoilt, weights, P).scale, start.scale)


def test_a_coefficient_of_zero_sd_stays(landmarks: tuple[Floats, Floats]) -> None:
    mean, basis = landmarks
    truth = random_faces(3, np.random.default_rng(5))
    targets = project(truth, evaluate_shape(mean, basis, truth.coefficients))
    sd = np.where(np.arange(P) < 5, 0.0, 1.0)
    start = initial_pose(mean, targets, np.ones((3, 68)), P)
    start = FaceState(start.scale, start.rotation, start.centre, np.full((3, P), 0.1))
    end = step(
        start,
        mean,
        basis,
        targets,
        np.ones((3, 68)),
        noise=np.full(3, 5.0),
        prior=np.zeros(P),
        prior_sd=sd,
    )
    assert np.abs(end.coefficients[:, :5] - 0.1).max() < 1e-6
    assert np.abs(end.coefficients[:, 5:] - 0.1).min() > 1e-6


def test_each_face_of_a_batch_is_fitted_by_itself(landmarks: tuple[Floats, Floats]) -> None:
    mean, basis = landmarks
    truth = random_faces(4, np.random.default_rng(6))
    targets = project(truth, evaluate_shape(mean, basis, truth.coefficients))
    together = fitted(mean, basis, targets, np.ones((4, 68)), noise=0.02)
    alone = fitted(mean, basis, targets[2:3], np.ones((1, 68)), noise=0.02)
    assert np.allclose(together[2:3].rotation, alone.rotation)
    assert np.allclose(together.coefficients[2], alone.coefficients[0], atol=1e-6)
    with pytest.raises(ValueError, match="batch"):
        FaceState(together.scale[:2], together.rotation, together.centre, together.coefficients)


def test_robust_weights_fall_from_one() -> None:
    """Geman-McClure: one at zero, a quarter at the noise, near zero at ten times the noise."""
    residual = np.array([[[0.0, 0.0], [3.0, 4.0], [30.0, 40.0]]])
    assert np.allclose(robust_weights(residual, 5.0), [[1.0, 0.25, 1 / 101**2]])


def test_fitted_poses_agree_with_aflw2000(landmarks: tuple[Floats, Floats], shared: Path) -> None:
    """The open head fitted to AFLW2000-3D's landmarks has the pose of ``Pose_Para``."""
    mean, basis = landmarks
    targets, rotations = [], []
    for path in sorted((shared / "data" / "aflw2000-3d-sample").glob("*.mat")):
        annotation = loadmat(path)
        pitch, yaw, roll = np.rad2deg(annotation["Pose_Para"][0, :3])
        rotations.append(rotation_from_angles(yaw, pitch, roll))
        targets.append(annotation["pt3d_68"][:2].T - 0.5)  # its first pixel's centre is 1
    points = np.array(targets)
    found = fitted(mean, basis, points, np.ones(points.shape[:2]), noise=0.03)
    error = geodesic_degrees(found.rotation, np.array(rotations))
    assert np.median(error) < 6.0
    assert np.percentile(error, 95) < 12.0
    size = np.sqrt(np.prod(np.ptp(points, axis=1), axis=1))
    miss = (
        np.linalg.norm(
            project(found, evaluate_shape(mean, basis, found.coefficients)) - points, axis=2
        ).mean(1)
        / size
    )
    assert np.median(miss) < 0.025


def test_a_point_on_two_crossing_lines_is_a_point(landmarks: tuple[Floats, Floats]) -> None:
    mean, basis = landmarks
    rng = np.random.default_rng(11)
    state = random_faces(2, rng)
    px, jac = jacobian(state, mean, basis)
    targets, weights, noise = (
        px + rng.normal(scale=1e-3, size=px.shape),
        rng.uniform(0.5, 1.0, (2, 68)),
        np.full(2, 5.0),
    )
    points = linearise(targets - px, jac, weights, noise)
    angle = rng.uniform(0.0, np.pi, (2, 68))
    one = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    other = one[..., ::-1] * [-1.0, 1.0]
    twice = [
        np.concatenate([each, each], axis=1)
        for each in (np.broadcast_to(mean, (2, 68, 3)), targets, weights)
    ]
    bases = np.broadcast_to(basis, (2, *basis.shape))
    lines = Lines(
        twice[0],
        np.concatenate([bases, bases], 1),
        twice[1],
        np.concatenate([one, other], 1),
        twice[2],
    )
    nothing = np.zeros((2, 0, 2)), np.zeros((2, 0, 2, POSE + P)), np.zeros((2, 0))
    across = lines, np.concatenate([px, px], 1), np.concatenate([jac, jac], 1)
    for found, expected in zip(linearise(*nothing, noise, across), points, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_lines_leave_a_face_free_along_them(landmarks: tuple[Floats, Floats]) -> None:
    """Vertical lines determine the horizontal position of a face, but not the vertical one."""
    mean, basis = landmarks
    state = random_faces(1, np.random.default_rng(12), yaw=20.0)
    true = project(state, evaluate_shape(mean, basis, state.coefficients))
    off = FaceState(
        state.scale, state.rotation, state.centre + np.array([4.0, 7.0]), state.coefficients
    )
    right = np.broadcast_to([1.0, 0.0], (1, 68, 2))
    lines = Lines(mean[None], basis[None], true, right, np.ones((1, 68)))
    nothing = np.zeros((1, 0, 3)), np.zeros((1, 0, 3, P)), np.zeros((1, 0, 2)), np.zeros((1, 0))
    held = {"noise": np.array([30.0]), "prior": state.coefficients, "prior_sd": np.full(P, 1e-6)}
    found = off
    for _ in range(5):
        found = step(found, *nothing, **held, lines=lines)
    px = project(found, evaluate_shape(mean, basis, found.coefficients))
    assert np.abs(px[..., 0] - true[..., 0]).max() < 0.05
    assert np.abs((px - true)[..., 1].mean() - 7.0) < 0.5


def test_a_step_solves_the_equations_of_its_jacobian(landmarks: tuple[Floats, Floats]) -> None:
    """Rows that are summed as they are computed give the step of the whole Jacobian."""
    mean, basis = landmarks
    rng = np.random.default_rng(5)
    state = random_faces(3, rng)
    depth, noise, sd = np.array([0.5, 1.0, 2.0]), np.full(3, 4.0), np.ones(P)
    px, jac = jacobian(state, mean, basis, depth)
    targets = px + rng.normal(scale=3.0, size=px.shape)
    weights = rng.uniform(0.0, 1.0, (3, 68)) * (rng.random((3, 68)) < 0.8)
    normal = rng.normal(size=(3, 68, 2))
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    bases, means = np.broadcast_to(basis, (3, *basis.shape)), np.broadcast_to(mean, (3, 68, 3))
    lines = Lines(means, bases, targets[:, ::-1].copy(), normal, weights)
    hessian, gradient = linearise(targets - px, jac, weights, noise, (lines, px, jac))
    damp(hessian, 1e-6)
    shape = np.arange(POSE, POSE + P)
    hessian[:, shape, shape] += 1.0
    gradient[:, POSE:] -= state.coefficients
    expected = apply_step(state, np.linalg.solve(hessian, gradient[..., None])[..., 0])
    for precise, tolerance in ((basis, 1e-9), (basis.astype(np.float32), 1e-3)):
        found = step(
            state,
            mean,
            precise,
            targets,
            weights,
            noise=noise,
            prior=np.zeros(P),
            prior_sd=sd,
            inverse_depth=depth,
            lines=replace(lines, basis=np.broadcast_to(precise, (3, *basis.shape))),
        )
        apart = project(found, mean, depth) - project(expected, mean, depth)
        assert np.abs(apart).max() < tolerance
        np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=tolerance)
