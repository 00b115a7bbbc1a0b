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

from dff.face.arrays import Array, Float, Floats, Integer
from dff.face.solve import gauss_newton as fit, photometric
from dff.face.solve.photometric import FaceAppearance, Normals, SkinSamples
from dff.face.solve.robust import robust_energy, robust_weights
from dff.pipeline.recovery.landmark_fit import (
    ACTIVATION,
    LandmarkFitModel,
    activation_prior,
)
from dff.pipeline.recovery.photos import Scheme


@dataclass(frozen=True)
class JointFitConfig:
    """Weights of the energy's terms, and the damping of a step."""

    colour_sd: float = 0.05  # what an explained colour may be off
    independent_colours: float = 400.0  # of a face: errors of neighbouring colours go together
    # Shares of the face's size
    landmark_sd: float = 0.025  # annotators, and two models' tables, differ by so much
    landmark_outlier: float = 0.04
    tries: int = 4  # of more and more damping before a step is given up
    less_damping: float = 5.0  # factor after a step that lowers the energy
    more_damping: float = 8.0  # factor after one that does not
    least_damping: float = 1e-6
    most_damping: float = 1e4


JOINT_FIT = JointFitConfig()
LIGHT = 27  # columns of the light, which are the last


@dataclass(frozen=True)
class JointFitProblem:
    """One energy to be lowered.

    What is visible of the face and which vertices the landmarks mean is held fixed.
    """

    fit_model: LandmarkFitModel
    rows: Integer[Array, " 68"]  # of the fit model
    scheme: Scheme
    targets: Float[Array, "68 2"]  # pixels
    face_size: float  # pixels
    samples: SkinSamples  # (N,) that are visible
    normals: Normals  # (N,)
    image: Float[Array, "S S 3"]  # float32
    tau: float  # colour difference where outliers begin
    config: JointFitConfig = JOINT_FIT

    @property
    def colour_strength(self) -> float:
        """The weight of each sample, per squared colour."""
        count = max(len(self.samples.mean), 1)
        return self.config.independent_colours / self.config.colour_sd**2 / count

    @property
    def landmark_weights(self) -> Floats:
        """(68,) per squared pixel."""
        sd = self.config.landmark_sd * self.face_size
        return self.fit_model.weights(self.scheme) / sd**2

    @property
    def landmark_outlier(self) -> float:
        """Pixels at which outliers begin."""
        return self.config.landmark_outlier * self.face_size


def energy(problem: JointFitProblem, scene: FaceAppearance) -> float:
    """The energy that ``improve`` lowers."""
    residual = photometric.residuals(problem.samples, scene, problem.image, problem.normals)
    total = problem.colour_strength * float(
        robust_energy(residual, problem.tau).sum(dtype=np.float64)
    )
    return total + _landmark_energy(problem, scene.face) + prior_energy(problem.fit_model, scene)


def _landmark_energy(problem: JointFitProblem, face: fit.FaceState) -> float:
    fit_model, rows = problem.fit_model, problem.rows
    px = fit.project(
        face, fit.evaluate_shape(fit_model.mean[rows], fit_model.basis[rows], face.coefficients)
    )[0]
    away = problem.targets - px
    return float(robust_energy(away, problem.landmark_outlier, problem.landmark_weights).sum())


def prior_energy(fit_model: LandmarkFitModel, scene: FaceAppearance) -> float:
    """The priors' part of the energy: squared standard deviations."""
    shape = scene.face.coefficients[0]
    expression = shape[fit_model.identities :]
    outside = expression - np.clip(expression, ACTIVATION.low, ACTIVATION.high)
    mean, precision = photometric.light_prior()
    light = scene.light.ravel() - mean
    pulls = (outside / ACTIVATION.sd) ** 2
    return float(
        ((shape / fit_model.prior_sd()) ** 2).sum()
        + pulls.sum()
        + (scene.albedo**2).sum()
        + light @ precision @ light
    )


def linearise_joint(problem: JointFitProblem, scene: FaceAppearance) -> tuple[Floats, Floats]:
    """Gauss-Newton hessian (D, D) and descent direction (D,) at ``scene``.

    The descent direction is half the negative gradient of the energy. The columns are those of
    ``photometric.residuals_and_jacobian``.
    """
    hessian, descent = _linearise_colours(problem, scene)
    _add_landmarks(problem, scene.face, hessian, descent)
    _add_priors(problem.fit_model, scene, hessian, descent)
    return hessian, descent


def _linearise_colours(problem: JointFitProblem, scene: FaceAppearance) -> tuple[Floats, Floats]:
    residual, jac = photometric.residuals_and_jacobian(
        problem.samples, scene, problem.image, problem.normals
    )
    weight = robust_weights(residual, problem.tau) * problem.colour_strength
    root = np.sqrt(weight).astype(np.float32)
    jac *= root[:, None, None]
    flat = jac.reshape(-1, jac.shape[2])
    hessian = (flat.T @ flat).astype(np.float64)
    return hessian, -(flat.T @ (residual * root[:, None]).ravel()).astype(np.float64)


def _add_landmarks(
    problem: JointFitProblem, face: fit.FaceState, hessian: Floats, descent: Floats
) -> None:
    fit_model = problem.fit_model
    geometry = fit.POSE + len(face.coefficients[0])
    mean, basis = fit_model.mean[problem.rows], fit_model.basis[problem.rows]
    px, by_face = fit.jacobian(face, mean, basis)
    away = problem.targets - px[0]
    inlier = robust_weights(away, np.array([problem.landmark_outlier]))
    rows = by_face[0].reshape(-1, geometry)
    weighted = rows * np.repeat(problem.landmark_weights * inlier, 2)[:, None]
    hessian[:geometry, :geometry] += weighted.T @ rows
    descent[:geometry] += weighted.T @ away.ravel()


def _add_priors(
    fit_model: LandmarkFitModel, scene: FaceAppearance, hessian: Floats, descent: Floats
) -> None:
    coefficients = scene.face.coefficients[0]
    geometry = fit.POSE + len(coefficients)
    prior, prior_sd = activation_prior(coefficients, fit_model.prior_sd(), fit_model.identities)
    shape = np.arange(fit.POSE, geometry)
    hessian[shape, shape] += 1.0 / prior_sd**2
    descent[shape] += (prior - coefficients) / prior_sd**2
    skin = np.arange(geometry, geometry + len(scene.albedo))
    hessian[skin, skin] += 1.0
    descent[skin] -= scene.albedo
    mean, precision = photometric.light_prior()
    hessian[-LIGHT:, -LIGHT:] += precision
    descent[-LIGHT:] += precision @ (mean - scene.light.ravel())


def apply_joint_step(scene: FaceAppearance, delta: Floats) -> FaceAppearance:
    """The scene after (D,) ``delta`` in the columns of ``photometric.residuals_and_jacobian``."""
    geometry = fit.POSE + len(scene.face.coefficients[0])
    return FaceAppearance(
        fit.apply_step(scene.face, delta[None, :geometry]),
        scene.albedo + delta[geometry:-LIGHT],
        scene.light + delta[-LIGHT:].reshape(9, 3),
    )


def improve(
    problem: JointFitProblem, scene: FaceAppearance, damping: float
) -> tuple[FaceAppearance, float, float]:
    """One damped step: (scene, damping for the next step, energy). The energy never rises.

    When no damping lowers the energy the scene stays as it is.
    """
    config = problem.config
    before = energy(problem, scene)
    hessian, descent = linearise_joint(problem, scene)
    diagonal = np.diag(np.diag(hessian))
    for _ in range(config.tries):
        delta = np.linalg.solve(hessian + damping * diagonal, descent)
        candidate = apply_joint_step(scene, delta)
        after = energy(problem, candidate)
        if after < before:
            return candidate, max(damping / config.less_damping, config.least_damping), after
        damping = min(damping * config.more_damping, config.most_damping)
    return scene, damping, before
