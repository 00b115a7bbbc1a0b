"""Residual deformation: shape that several photos determine beyond the model's identities.

The shared coefficients of a person therefore include smooth deformations of the template with
Gaussian process priors (Lüthi et al., "Gaussian Process Morphable Models", PAMI 2018). There is a
coarse process along all axes, and a fine one along the normals: fine detail is observed through
shading, which depends on normals. With one photo the deformations stay near zero.
"""

from __future__ import annotations

import numpy as np

from dff.aligner.config import FitModelConfig, MultiImageConfig
from dff.aligner.fitting.fit_model import (
    PersonFitModel,
    build_fit_model_from_modes,
    extend_to_person,
    principal_directions,
    prior_sd,
)
from dff.face.arrays import Floats, Ints
from dff.face.descriptor import Anchors
from dff.face.geometry.mesh import vertex_normals
from dff.face.model.deformation import gaussian_kernel, smooth_fields
from dff.face.model.morphable import MorphableModel


def build_person_fit_model(
    model: MorphableModel, anchors: Anchors, config: FitModelConfig, person: MultiImageConfig
) -> PersonFitModel:
    """The fit model of the identities and expressions that move the anchors most."""
    prior, k = prior_sd(model), len(model.identity)
    identity, expression = (
        principal_directions(
            basis[:, anchors.vertex].reshape(len(basis), -1).astype(np.float64) * sd[:, None]
        )[:count]
        * sd
        for basis, sd, count in (
            (model.identity, prior[:k], person.identities),
            (model.expression, prior[k:], person.expressions),
        )
    )
    deformations = residual_deformations(model, anchors.vertex, person)
    shared = len(identity) + len(deformations)
    modes = np.zeros((shared + len(expression), len(prior)))
    modes[: len(identity), :k] = identity
    modes[shared:, k:] = expression
    fit_model = build_fit_model_from_modes(model, anchors, modes, config)
    return extend_to_person(fit_model, deformations, identities=len(identity))


def residual_deformations(model: MorphableModel, vertex: Ints, person: MultiImageConfig) -> Floats:
    """(M, V, 3) metres of one standard deviation; M is 0 where the configured deviation is zero.

    ``vertex``: the vertices at which the Gaussian processes are sampled.
    """
    template = model.template
    if not person.deformation_sd:
        return np.zeros((0, len(template), 3))
    coarse, fine = (
        smooth_fields(template, vertex, reach=reach, count=count)
        for reach, count in (
            (person.coarse_range, person.coarse_fields),
            (person.fine_range, person.fine_fields),
        )
    )
    along_axes = np.einsum("fv,cd->fcvd", coarse, np.eye(3)).reshape(-1, *template.shape)
    outward = _smooth_normals(model, vertex, person.fine_range)
    along_normals = person.fine_share * fine[..., None] * outward
    return person.deformation_sd * np.concatenate([along_axes, along_normals])


def _smooth_normals(model: MorphableModel, vertex: Ints, reach: float) -> Floats:
    """(V, 3) unit means of the normals at (A,) vertices, smooth even where the template is folded.

    At lips and lids the normals of neighbours are opposite: moving along them would tear the
    surface.
    """
    normals = vertex_normals(model.template, model.faces)[vertex]
    # half the reach
    mean = gaussian_kernel(model.template, model.template[vertex], reach / 2.0) @ normals
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9))
