"""The joint step of inverse rendering: pose, shape, albedo and light against pixels, landmarks and
priors at once.

The energy of a scene, all in squared standard deviations:

    colour     strength * sum_samples r^2 / (1 + r^2 / tau^2)
    landmarks  sum_points weight * d^2 / (1 + d^2 / outlier^2)
    priors     identity, expression (with its range), albedo, light

Levenberg-Marquardt (Marquardt 1963) on its iteratively re-weighted Gauss-Newton model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Floats, Ints
from dff.face.solve import gauss_newton as fit
from dff.face.solve import photometric
from dff.face.solve.photometric import Normals, Scene, SkinSamples
from dff.face.solve.robust import robust_energy, robust_weights
from dff.pipeline.recovery.landmark_fit import (
    ACTIVATION_RANGE,
    ACTIVATION_SLACK,
    LandmarkFitModel,
    activation_prior,
)
from dff.pipeline.recovery.photos import Scheme

COLOUR_SD = 0.05  # what an explained colour may be off
INDEPENDENT = 400.0  # colour errors go in patches: how many independent ones a face has
LANDMARK_SD = 0.025  # of the face's size: annotators, and two models' tables, differ by so much
LANDMARK_OUTLIERS = 0.04  # of the face's size
TRIES = 4  # of more and more damping before a step is given up
WORST_DAMPING = 1e4


@dataclass(frozen=True)
class Problem:
    """One energy to be lowered: what is seen of the face and which vertices the landmarks mean is
    held fixed.
    """

    fit_model: LandmarkFitModel
    rows: Ints  # (68,) of the rig
    scheme: Scheme
    targets: Floats  # (68, 2) pixels
    face_size: float  # pixels
    samples: SkinSamples  # (N,) that are seen
    normals: Normals  # (N,)
    image: Floats  # (S, S, 3) float32
    tau: float  # colour difference where outliers begin

    @property
    def colour_strength(self) -> float:
        return INDEPENDENT / COLOUR_SD**2 / max(len(self.samples.mean), 1)

    @property
    def landmark_weights(self) -> Floats:
        """(68,) per squared pixel."""
        return self.fit_model.weights(self.scheme) / (LANDMARK_SD * self.face_size) ** 2

    @property
    def landmark_outlier(self) -> float:
        return LANDMARK_OUTLIERS * self.face_size


def energy(problem: Problem, scene: Scene) -> float:
    """What ``improve`` lowers."""
    residual = photometric.residuals(problem.samples, scene, problem.image, problem.normals)
    total = problem.colour_strength * float(
        robust_energy(residual, problem.tau).sum(dtype=np.float64)
    )
    return total + _landmark_energy(problem, scene.face) + prior_energy(problem.fit_model, scene)


def _landmark_energy(problem: Problem, face: fit.FaceState) -> float:
    fit_model, rows = problem.fit_model, problem.rows
    px = fit.project(
        face, fit.evaluate_shape(fit_model.mean[rows], fit_model.basis[rows], face.coefficients)
    )[0]
    away = problem.targets - px
    return float(robust_energy(away, problem.landmark_outlier, problem.landmark_weights).sum())


def prior_energy(fit_model: LandmarkFitModel, scene: Scene) -> float:
    """Squared standard deviations of a scene from what is usual."""
    shape = scene.face.coefficients[0]
    expression = shape[fit_model.identities :]
    beyond = expression - np.clip(expression, *ACTIVATION_RANGE)
    mean, precision = photometric.light_prior()
    light = scene.light.ravel() - mean
    springs = (beyond / ACTIVATION_SLACK) ** 2
    return float(
        ((shape / fit_model.prior_sd()) ** 2).sum()
        + springs.sum()
        + (scene.albedo**2).sum()
        + light @ precision @ light
    )


def linearised(problem: Problem, scene: Scene) -> tuple[Floats, Floats]:
    """Gauss-Newton hessian (D, D) and descent direction (D,): half the negative gradient of the
    energy at ``scene``.

    The columns are those of ``photometric.residuals_and_jacobian``.
    """
    fit_model, face = problem.fit_model, scene.face
    residual, jac = photometric.residuals_and_jacobian(
        problem.samples, scene, problem.image, problem.normals
    )
    weight = robust_weights(residual, problem.tau) * problem.colour_strength
    root = np.sqrt(weight).astype(np.float32)
    jac *= root[:, None, None]
    flat = jac.reshape(-1, jac.shape[2])
    hessian = (flat.T @ flat).astype(np.float64)
    descent = -(flat.T @ (residual * root[:, None]).ravel()).astype(np.float64)

    p = len(face.coefficients[0])
    geometry = fit.POSE + p
    px, by_face = fit.jacobian(face, fit_model.mean[problem.rows], fit_model.basis[problem.rows])
    away = problem.targets - px[0]
    inlier = robust_weights(away, np.array([problem.landmark_outlier]))
    rows = by_face[0].reshape(-1, geometry)
    weighted = rows * np.repeat(problem.landmark_weights * inlier, 2)[:, None]
    hessian[:geometry, :geometry] += weighted.T @ rows
    descent[:geometry] += weighted.T @ away.ravel()

    prior, prior_sd = activation_prior(
        face.coefficients[0], fit_model.prior_sd(), fit_model.identities
    )
    shape = np.arange(fit.POSE, geometry)
    hessian[shape, shape] += 1.0 / prior_sd**2
    descent[shape] += (prior - face.coefficients[0]) / prior_sd**2
    skin = np.arange(geometry, geometry + len(scene.albedo))
    hessian[skin, skin] += 1.0
    descent[skin] -= scene.albedo
    mean, precision = photometric.light_prior()
    hessian[-27:, -27:] += precision
    descent[-27:] += precision @ (mean - scene.light.ravel())
    return hessian, descent


def moved(scene: Scene, delta: Floats) -> Scene:
    """The scene after (D,) ``delta`` in the columns of ``photometric.residuals_and_jacobian``."""
    geometry = fit.POSE + len(scene.face.coefficients[0])
    return Scene(
        fit.apply_step(scene.face, delta[None, :geometry]),
        scene.albedo + delta[geometry:-27],
        scene.light + delta[-27:].reshape(9, 3),
    )


def improve(problem: Problem, scene: Scene, damping: float) -> tuple[Scene, float, float]:
    """One damped step: (scene, damping for the next step, energy). The energy never rises.

    When no damping lowers the energy the scene stays as it is.
    """
    before = energy(problem, scene)
    hessian, descent = linearised(problem, scene)
    diagonal = np.diag(np.diag(hessian))
    for _ in range(TRIES):
        delta = np.linalg.solve(hessian + damping * diagonal, descent)
        candidate = moved(scene, delta)
        after = energy(problem, candidate)
        if after < before:
            return candidate, max(damping / 5.0, 1e-6), after
        damping = min(damping * 8.0, WORST_DAMPING)
    return scene, damping, before
