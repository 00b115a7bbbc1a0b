"""Photometric terms: derivatives by finite differences, recovery of light and albedo."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from dff.face.arrays import Floats
from dff.face.geometry.lighting import ambient, basis, basis_gradient
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import MorphableModel
from dff.face.solve import gauss_newton as fit, photometric
from dff.face.solve.photometric import (
    FaceAppearance,
    Normals,
    SkinSamples,
    normal_derivatives,
    skin_samples,
)
from dff.pipeline.recovery import joint_fit as joint
from dff.pipeline.recovery.joint_fit import JointFitProblem
from dff.pipeline.recovery.landmark_fit import LandmarkFitModel


def skin(rng: np.random.Generator, components: int = 3) -> AlbedoModel:
    coarse = (
        rng.uniform(-1.0, 1.0, (components + 1, 4, 4, 3))
        .repeat(8, axis=1)
        .repeat(8, axis=2)
        .astype(np.float32)
    )
    return AlbedoModel(
        "toy", "CC0-1.0", "made in code for tests", 0.5 + 0.2 * coarse[0], 0.1 * coarse[1:]
    )


def scene_of(
    model: MorphableModel, rng: np.random.Generator, components: int = 3
) -> FaceAppearance:
    shape = rng.normal(size=(1, len(model.identity) + len(model.expression))) * 0.3
    rotation = rotation_from_angles(15.0, -8.0, 5.0)[None]
    face = fit.FaceState(np.array([500.0]), rotation, np.array([[64.0, 60.0]]), shape)
    light = ambient(0.8) + rng.normal(size=(9, 3)) * 0.1
    return FaceAppearance(face, rng.normal(size=components) * 0.5, light)


def slope_image(rng: np.random.Generator, size: int = 128) -> Floats:
    """Colours linear in the pixel: bilinear sampling is exact, so its derivative has no kinks."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    slope = rng.normal(size=(2, 3)) * 0.5
    return np.asarray(0.5 + x[..., None] * slope[0] + y[..., None] * slope[1], dtype=np.float32)


def seen_samples(
    model: MorphableModel, albedo: AlbedoModel, scene: FaceAppearance
) -> tuple[SkinSamples, Normals]:
    """The samples that face the camera, and their normals."""
    samples = skin_samples(
        model, albedo, identities=len(model.identity), expressions=len(model.expression), count=120
    )
    normals = samples.normals(scene.face.coefficients[0])
    front = -(normals @ scene.face.rotation[0, 2]) > 0.3
    chosen = samples.chosen(front)
    return chosen, Normals(
        normals[front].astype(np.float32), scene.face.coefficients[0], chosen.normal_derivatives
    )


def test_the_gradient_of_the_harmonics_is_theirs() -> None:
    normals = np.random.default_rng(0).normal(size=(20, 3))
    for axis in range(3):
        step = np.eye(3)[axis] * 1e-6
        numeric = (basis(normals + step) - basis(normals - step)) / 2e-6
        np.testing.assert_allclose(basis_gradient(normals)[..., axis], numeric, atol=1e-8)


def test_samples_lie_evenly_on_the_skin_and_their_normals_are_the_meshs(
    toy_model: MorphableModel,
) -> None:
    rng = np.random.default_rng(2)
    samples = skin_samples(toy_model, skin(rng), identities=4, expressions=3, count=400)
    allowed = photometric.skin_triangles(toy_model)
    assert set(samples.points.triangle) == set(allowed)
    np.testing.assert_allclose(samples.points.barycentric.sum(1), 1.0)
    assert samples.points.barycentric.min() >= 0
    shape = rng.normal(size=7) * 0.5
    vertices = toy_model.vertices(
        replace(toy_model.neutral(), identity=shape[:4], expression=shape[4:])
    )
    smooth = samples.points.of(vertex_normals(vertices, toy_model.faces), toy_model.faces)
    smooth /= np.linalg.norm(smooth, axis=1, keepdims=True)
    np.testing.assert_allclose(samples.normals(shape), smooth, atol=1e-4)


def test_normals_follow_the_shape(toy_model: MorphableModel) -> None:
    """Normals equal those of the moved mesh; the slopes are exact derivatives at the template."""
    rng = np.random.default_rng(12)
    samples = skin_samples(toy_model, skin(rng), identities=4, expressions=3, count=200)
    at = np.zeros(7)
    normals = Normals(samples.normals(at).astype(np.float32), at, samples.normal_derivatives)
    for mode in range(7):
        step = np.eye(7)[mode] * 0.05
        numeric = (samples.normals(step) - samples.normals(-step)) / 0.1
        np.testing.assert_allclose(samples.normal_derivatives[..., mode], numeric, atol=2e-3)
        np.testing.assert_allclose(normals.at(step)[0], samples.normals(step), atol=2e-4)


def test_derivatives_for_many_modes_need_little_memory_at_a_time() -> None:
    """With all modes at once, the fitter of a person's photos took 300 MB for a moment."""
    rng = np.random.default_rng(3)
    vertices, modes = rng.normal(size=(500, 3)), rng.normal(size=(500, 3, 320))
    faces, corners = rng.integers(0, 500, (1000, 3)), rng.integers(0, 500, (200, 3))
    weights = np.full((200, 3), 1 / 3)
    tracemalloc.start()
    found = normal_derivatives(vertices, modes, faces, corners, weights)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < found.nbytes + modes.nbytes * 2
    some = normal_derivatives(vertices, modes[..., 40:45], faces, corners, weights)
    assert np.array_equal(found[..., 40:45], some)


def test_the_projection_is_that_of_the_landmark_fit(toy_model: MorphableModel) -> None:
    rng = np.random.default_rng(3)
    scene = scene_of(toy_model, rng)
    samples, _ = seen_samples(toy_model, skin(rng), scene)
    mean, modes = toy_model.basis_at(samples.points, 4, 3)
    expected = fit.project(scene.face, fit.evaluate_shape(mean, modes, scene.face.coefficients))[0]
    found = photometric.projected(photometric.turned(samples, scene.face), scene.face)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_jacobian_of_the_colours_is_theirs(toy_model: MorphableModel) -> None:
    rng = np.random.default_rng(4)
    scene = scene_of(toy_model, rng)
    samples, normals = seen_samples(toy_model, skin(rng), scene)
    image = slope_image(rng)
    residual, jac = photometric.residuals_and_jacobian(samples, scene, image, normals)
    np.testing.assert_allclose(
        residual, photometric.residuals(samples, scene, image, normals), atol=1e-6
    )
    columns = fit.POSE + 7 + 3 + 27
    assert jac.shape == (len(normals.exact), 3, columns)
    assert np.abs(residual).max() > 0.05
    for column in range(columns):
        step = np.zeros(columns)
        step[column] = 0.2 if column in (4, 5) else 4e-3
        after, before = (
            photometric.residuals(samples, joint.apply_joint_step(scene, s), image, normals).astype(
                np.float64
            )
            for s in (step, -step)
        )
        numeric = (after - before) / (2.0 * step[column])
        np.testing.assert_allclose(jac[..., column], numeric, atol=2e-4, err_msg=f"column {column}")


@pytest.fixture
def problem(toy_model: MorphableModel) -> tuple[JointFitProblem, FaceAppearance]:
    rng = np.random.default_rng(5)
    scene = scene_of(toy_model, rng)
    scene.face.coefficients[0, 4] = (
        1.3  # an activation beyond its range, so that its spring is drawn
    )
    samples, normals = seen_samples(toy_model, skin(rng), scene)
    fit_model = LandmarkFitModel.build(toy_model, 4, 3)
    targets = fit_model.project(scene.face, "2d") + rng.normal(size=(68, 2))
    targets[:4] += 30.0
    rows = fit_model.rows(scene.face, "2d")
    return JointFitProblem(
        fit_model, rows, "2d", targets, 60.0, samples, normals, slope_image(rng), 0.2
    ), scene


def test_the_descent_is_that_of_the_energy(problem: tuple[JointFitProblem, FaceAppearance]) -> None:
    """At the weights of re-weighted least squares the half gradient is the energy's own."""
    terms, scene = problem
    _, descent = joint.linearise_joint(terms, scene)
    for column in range(len(descent)):
        step = np.zeros(len(descent))
        step[column] = 0.02 if column in (4, 5) else 1e-3
        after, before = (
            joint.energy(terms, joint.apply_joint_step(scene, s)) for s in (step, -step)
        )
        numeric = -(after - before) / (4.0 * step[column])
        assert descent[column] == pytest.approx(numeric, rel=0.02, abs=0.5), column


def test_the_energy_never_rises_and_comes_to_rest(
    problem: tuple[JointFitProblem, FaceAppearance],
) -> None:
    terms, scene = problem
    energies, damping = [joint.energy(terms, scene)], 1e-3
    for _ in range(30):
        scene, damping, energy = joint.improve(terms, scene, damping)
        energies.append(energy)
        assert energy == pytest.approx(joint.energy(terms, scene))
    assert (np.diff(energies) <= 0).all()
    assert energies[-1] < 0.7 * energies[0]
    _, descent = joint.linearise_joint(terms, scene)
    _, first = joint.linearise_joint(terms, problem[1])
    assert np.linalg.norm(descent) < 0.02 * np.linalg.norm(first)


def test_light_and_albedo_come_back_under_an_occluder(toy_model: MorphableModel) -> None:
    rng = np.random.default_rng(6)
    scene = scene_of(toy_model, rng)
    samples, normals = seen_samples(toy_model, skin(rng), scene)
    light = ambient(0.9)
    light[1:4] = rng.normal(size=(3, 1)) * 0.2
    turned = normals.exact @ scene.face.rotation[0].T
    truth = samples.colours(scene.albedo) * (basis(turned) @ light)
    seen = truth.copy()
    covered = rng.random(len(seen)) < 0.2
    seen[covered] = [0.0, 0.2, 0.9]
    albedo, found = photometric.explain_colours(
        samples, seen, turned, strength=1e5, taus=(0.4, 0.3, 0.2, 0.15, 0.1, 0.1, 0.1, 0.1)
    )
    rendered = samples.colours(albedo) * (basis(turned) @ found)
    assert np.abs(rendered - truth)[~covered].mean() < 0.01
