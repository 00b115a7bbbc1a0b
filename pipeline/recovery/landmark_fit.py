"""Pose, identity and expression from 68 points: robust Gauss-Newton with annealed noise.

The 17 jaw points of the 2D scheme slide: the vertex of each is chosen anew before every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Array, Float, Floats, Integer, Ints
from dff.face.model.landmarks import JAW
from dff.face.model.morphable import MorphableModel
from dff.face.solve import gauss_newton as fit
from dff.face.solve.robust import robust_weights
from dff.pipeline.recovery.photos import Scheme


@dataclass(frozen=True)
class LandmarkFitConfig:
    """How landmarks are fitted. Shares are of the face's size (``robust_size``)."""

    # Where outliers begin in each step: far at first, since the mean face is far off.
    outliers: tuple[float, ...] = (
        *(0.20, 0.15, 0.10, 0.10, 0.08, 0.07),
        *(0.06, 0.05, 0.04, 0.04, 0.04, 0.04),
    )
    # What an inlier may be off, as a share: how strongly points outweigh the priors. Less than what
    # annotators differ by, because the fit is to reproduce the points that it is given.
    landmark_sd: float = 0.008
    pose_steps: int = 3  # with the mean face: a pose before a shape
    start_rounds: int = 4  # of the closed-form pose, without points that lie far off
    start_outlier: float = 0.2  # share


@dataclass(frozen=True)
class ActivationPrior:
    """Penalty of expression activations outside of their range."""

    low: float = 0.0
    high: float = 1.0
    sd: float = 0.07  # of the pull towards the nearer end


LANDMARK_FIT = LandmarkFitConfig()
ACTIVATION = ActivationPrior()
JAW_WEIGHT = {"2d": 0.3, "3d": 0.5}
"""Weight of the jaw's landmarks, which are annotated less exactly than the rest."""


@dataclass(frozen=True)
class LandmarkFitModel:
    """A model restricted to all vertices that a landmark may mean."""

    model: MorphableModel
    identities: int
    expressions: int
    mean: Float[Array, "U 3"]  # metres
    basis: Float[Array, "U 3 P"]  # metres, of identity then expression
    vertices: Integer[Array, " U"]  # of the model
    row: Integer[Array, " V"]  # of ``vertices``; -1 for the others

    @staticmethod
    def build(model: MorphableModel, identities: int, expressions: int) -> LandmarkFitModel:
        """The part of a model that its landmarks need, with these numbers of coefficients."""
        vertices = model.landmarks.used
        mean, basis = model.basis_of_vertices(vertices, identities, expressions)
        row = np.full(len(model.template), -1)
        row[vertices] = np.arange(len(vertices))
        return LandmarkFitModel(model, identities, expressions, mean, basis, vertices, row)

    def prior_sd(self) -> Floats:
        """(P,) prior standard deviations of identity then expression."""
        return np.concatenate(
            [np.ones(self.identities), self.model.expression_sd[: self.expressions]]
        )

    def rows(self, face: fit.FaceState, scheme: Scheme) -> Ints:
        """(68,) rows of the vertices that the landmarks mean on a face (a batch of one)."""
        table = self.model.landmarks
        if scheme == "3d":
            return np.asarray(self.row[table.vertex])
        px = np.zeros((len(self.row), 2))
        px[self.vertices] = fit.project(
            face, fit.evaluate_shape(self.mean, self.basis, face.coefficients)
        )[0]
        return np.asarray(self.row[table.contour_vertices(px, self.model.template)])

    def weights(self, scheme: Scheme) -> Floats:
        """(68,) weights of the landmarks."""
        weights = np.ones(68)
        weights[JAW] = JAW_WEIGHT[scheme]
        return weights

    def project(self, face: fit.FaceState, scheme: Scheme) -> Floats:
        """(68, 2) pixels of the landmarks of a face (a batch of one)."""
        rows = self.rows(face, scheme)
        return np.asarray(
            fit.project(
                face, fit.evaluate_shape(self.mean[rows], self.basis[rows], face.coefficients)
            )[0]
        )


def robust_size(points: Floats) -> float:
    """A size in pixels of (68, 2) landmarks that a third of wrong points hardly changes.

    It is about sqrt(w * h) of their box: three times the median distance from the median point.
    """
    return float(3.0 * np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1)))


def fit_landmarks(
    points: Floats,
    fit_model: LandmarkFitModel,
    scheme: Scheme,
    *,
    config: LandmarkFitConfig = LANDMARK_FIT,
) -> fit.FaceState:
    """The face (a batch of one) in the pixels of (68, 2) ``points``."""
    size = max(robust_size(points), 1e-6)
    weights, targets = fit_model.weights(scheme)[None], points[None]
    sd = fit_model.prior_sd()
    face = _start(targets, weights, fit_model, size, config)
    for index, share in enumerate(config.outliers):
        rows = fit_model.rows(face, scheme)
        prior, prior_sd = activation_prior(face.coefficients[0], sd, fit_model.identities)
        face = fit.step(
            face,
            fit_model.mean[rows],
            fit_model.basis[rows],
            targets,
            # The step's noise is where outliers begin *and* the data's scale.
            weights * (share / config.landmark_sd) ** 2,
            noise=np.array([share * size]),
            prior=prior,
            prior_sd=prior_sd if index >= config.pose_steps else np.zeros_like(prior_sd),
        )
    return face


def _start(
    targets: Floats,
    weights: Floats,
    fit_model: LandmarkFitModel,
    size: float,
    config: LandmarkFitConfig,
) -> fit.FaceState:
    """The pose of the mean face, in closed form, without points that lie far off."""
    mean_face = fit_model.mean[fit_model.row[fit_model.model.landmarks.vertex]]
    count = len(fit_model.prior_sd())
    face = fit.initial_pose(mean_face, targets, weights, count)
    for _ in range(config.start_rounds):
        away = targets - fit.project(face, mean_face[None])
        inlier = robust_weights(away, np.array([config.start_outlier * size]))
        face = fit.initial_pose(mean_face, targets, weights * inlier, count)
    return face


def activation_prior(
    coefficients: Floats, sd: Floats, identities: int, config: ActivationPrior = ACTIVATION
) -> tuple[Floats, Floats]:
    """Mean and standard deviation (P,) of the Gaussian prior that holds at (P,) ``coefficients``.

    It has standard deviations ``sd`` about zero; after the ``identities`` first coefficients an
    activation outside its range is also pulled to the nearer end. The result is the product of the
    two Gaussians.
    """
    ends = np.clip(coefficients, config.low, config.high)
    outside = ends != coefficients
    outside[:identities] = False
    own = 1.0 / sd**2
    pull = np.where(outside, 1.0 / config.sd**2, 0.0)
    return pull * ends / (own + pull), 1.0 / np.sqrt(own + pull)
