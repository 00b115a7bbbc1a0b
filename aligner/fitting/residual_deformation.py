"""Residual deformation: what several photos tell of a face that no identity of the model forms.

Several photos tell more of a face than the model's directions of identity can form. Those that are
shared therefore go on with smooth deformations of the template, drawn from Gaussian processes,
which are their prior (Lüthi et al., "Gaussian Process Morphable Models", PAMI 2018): a coarse one
along all axes, and a fine one along the normals, as soft correspondences tell little and shading
much of what is fine. One photo leaves them nearly at rest.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

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
from dff.face.model.deformation import smooth_fields
from dff.face.model.morphable import MorphableModel


def build_person_fit_model(
    model: MorphableModel, anchors: Anchors, config: FitModelConfig, person: MultiImageConfig
) -> PersonFitModel:
    """The directions of identity, and those of expression, that move the anchors most."""
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
    """(M, V, 3) metres for one standard deviation; none where the configured one is zero.

    ``vertex``: those between which the Gaussian processes are sampled.
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

    At lips and lids neighbours' own normals are opposite; moving along them would tear the surface.
    """
    normals = vertex_normals(model.template, model.faces)[vertex]
    apart = cdist(model.template, model.template[vertex], "sqeuclidean")
    mean = np.exp(-2.0 * apart / reach**2) @ normals
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9))
