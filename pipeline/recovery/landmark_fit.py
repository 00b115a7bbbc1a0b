"""Pose, identity and expression from 68 points: robust Gauss-Newton with annealed noise.

The 17 jaw points of the 2D scheme slide: which vertex each of them means is chosen anew before
every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Floats, Ints
from dff.face.model.landmarks import JAW
from dff.face.model.morphable import MorphableModel
from dff.face.solve import gauss_newton as fit
from dff.face.solve.robust import robust_weights
from dff.pipeline.recovery.photos import Scheme

OUTLIERS = (0.20, 0.15, 0.10, 0.10, 0.08, 0.07, 0.06, 0.05, 0.04, 0.04, 0.04, 0.04)
"""Where outliers begin in each step, as a share of the face's size: far at first, since the mean
face is far off.
"""

LANDMARK_SD = 0.008
"""What an inlier may be off, as a share of the face's size: how strongly points outweigh the
priors. Less than what annotators differ by, because what is asked of this fit is to reproduce the
points that it is given."""

POSE_STEPS = 3  # of these with the mean face: a pose before a shape
JAW_WEIGHT = {"2d": 0.3, "3d": 0.5}  # the jaw is annotated less exactly than the rest
ACTIVATION_RANGE = (0.0, 1.0)  # activations outside are pulled back ...
ACTIVATION_SLACK = 0.07  # ... as if by a spring of this standard deviation


@dataclass(frozen=True)
class LandmarkFitModel:
    """A model restricted to all vertices that a landmark may mean."""

    model: MorphableModel
    identities: int
    expressions: int
    mean: Floats  # (U, 3) metres
    basis: Floats  # (U, 3, P) metres
    vertices: Ints  # (U,) of the model
    row: Ints  # (V,) row of ``vertices``; -1 for the others

    @staticmethod
    def of(model: MorphableModel, identities: int, expressions: int) -> LandmarkFitModel:
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
    """A size in pixels of (68, 2) landmarks that a third of wrong points hardly moves, about sqrt(w
    * h) of their box.

    Three times the median distance from the median point: on frontal faces that is the box's size.
    """
    return float(3.0 * np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1)))


def fit_landmarks(
    points: Floats, fit_model: LandmarkFitModel, scheme: Scheme, *, landmark_sd: float = LANDMARK_SD
) -> fit.FaceState:
    """The face (a batch of one) in the pixels of (68, 2) ``points``, which are off by
    ``landmark_sd`` of its size.
    """
    size = max(robust_size(points), 1e-6)
    weights, targets = fit_model.weights(scheme)[None], points[None]
    fixed = fit_model.row[fit_model.model.landmarks.vertex]
    mean_face = fit_model.mean[fixed]
    sd = fit_model.prior_sd()
    face = fit.initial_pose(mean_face, targets, weights, len(sd))
    for _ in range(
        4
    ):  # wrong points pull the closed form: solve it again without those that lie far off
        away = targets - fit.project(face, mean_face[None])
        again = weights * robust_weights(away, np.array([0.2 * size]))
        face = fit.initial_pose(mean_face, targets, again, len(sd))
    for index, share in enumerate(OUTLIERS):
        rows = fit_model.rows(face, scheme)
        prior, prior_sd = activation_prior(face.coefficients[0], sd, fit_model.identities)
        face = fit.step(
            face,
            fit_model.mean[rows],
            fit_model.basis[rows],
            targets,
            weights
            * (share / landmark_sd)
            ** 2,  # the step's noise is where outliers begin *and* the data's scale
            noise=np.array([share * size]),
            prior=prior,
            prior_sd=prior_sd if index >= POSE_STEPS else np.zeros_like(prior_sd),
        )
    return face


def activation_prior(coefficients: Floats, sd: Floats, identities: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation (P,) of the Gaussian prior that, at (P,) ``coefficients``, holds
    activations.

    An activation outside ``ACTIVATION_RANGE`` is also pulled to the nearer end; the product of the
    two Gaussians.
    """
    low, high = ACTIVATION_RANGE
    ends = np.clip(coefficients, low, high)
    outside = ends != coefficients
    outside[:identities] = False
    own = 1.0 / sd**2
    spring = np.where(outside, 1.0 / ACTIVATION_SLACK**2, 0.0)
    return spring * ends / (own + spring), 1.0 / np.sqrt(own + spring)
