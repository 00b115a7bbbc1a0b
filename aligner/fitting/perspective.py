"""What several photos of one person are fitted with: a shape of their own kind, and cameras that
are near or far.

From arm's length a nose is a tenth larger than from afar, more than noses differ, and one photo
hardly tells the two apart, so the camera's nearness is among the unknowns.

Several photos tell more of a face than the model's directions of identity can form. Those that are
shared therefore go on beyond them: smooth deformations of the template, drawn from Gaussian
processes, which are their prior (Lüthi et al., "Gaussian Process Morphable Models", PAMI 2018): a
coarse one along all axes, and a fine one outwards, as votes of pixels tell little and the light on
the skin much of what is fine. One photo leaves them nearly at rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from dff.aligner.fitting.loop import FitModel, fit_model_of, prior_sd
from dff.face.arrays import Floats, Ints
from dff.face.descriptor import Anchors
from dff.face.geometry.mesh import vertex_normals
from dff.face.model.deformation import smooth_fields
from dff.face.model.morphable import MorphableModel
from dff.face.solve.gauss_newton import FaceState, evaluate_shape, jacobian

IDENTITIES, EXPRESSIONS = 100, 40  # latent directions of each
BEYOND_RANGE, BEYOND_FIELDS = (
    0.05,
    20,
)  # metres over which a smooth deformation changes, and how many along each axis
FINE, FINE_RANGE, FINE_FIELDS = (
    0.2,
    0.02,
    150,
)  # the same of fine ones, whose deviation is that share of the others'
NEARNESS, NEARNESS_SD, NEAREST = (
    1.0,
    1.0,
    4.0,
)  # 1 / metres: of cameras to faces, from telephoto lenses to selfies


@dataclass(frozen=True, kw_only=True)
class PerspectiveFitModel(FitModel):
    """A rig whose first ``identities`` latent directions are the person's, the others change the
    expression alone,

    but the last, which changes nothing on the face: it is the camera's nearness. Of the person's
    the first are identities of the model, the rest, whose ``modes`` are zero, lie beyond it.
    """

    identities: int

    def nearness(self, state: FaceState) -> Floats:
        return nearness(state)


def nearness(state: FaceState) -> Floats:
    """(B,) 1 / metres, of the states of a ``PerspectiveFitModel``."""
    return np.asarray(np.clip(NEARNESS + NEARNESS_SD * state.coefficients[:, -1], 0.0, NEAREST))


def near_jacobian(state: FaceState, mean: Floats, basis: Floats) -> tuple[Floats, Floats]:
    """``dff.face.solve.gauss_newton.jacobian``, whose last column is the latent of the nearness."""
    near = nearness(state)
    px, out = jacobian(state, mean, basis, near)
    depth = np.matmul(
        evaluate_shape(mean, basis, state.coefficients), state.rotation[:, 2, :, None]
    )  # (B, N, 1)
    out[..., -1] = (
        -NEARNESS_SD * (px - state.centre[:, None]) * depth / (1.0 + near[:, None, None] * depth)
    )
    return px, out


def build_perspective_fit_model(
    model: MorphableModel,
    anchors: Anchors,
    *,
    identities: int = IDENTITIES,
    expressions: int = EXPRESSIONS,
    beyond: float = 0.0,
) -> PerspectiveFitModel:
    """The directions of identity, and those of expression, that move the anchors most under the
    prior.

    ``beyond``: metres by which a coordinate lies off the model's identities, a standard deviation;
    0: not at all. Fine deformations come beside the coarse, outwards, ``FINE`` times as large.
    """
    prior = prior_sd(model)
    k = len(model.identity)
    blocks = []
    for basis, sd, count in (
        (model.identity, prior[:k], identities),
        (model.expression, prior[k:], expressions),
    ):
        at_anchors = (
            basis[:, anchors.vertex].reshape(len(basis), -1).astype(np.float64) * sd[:, None]
        )
        _, vectors = np.linalg.eigh(at_anchors @ at_anchors.T)
        blocks.append(vectors.T[::-1][:count] * sd)
    fields = np.zeros((0, len(model.template), 3))
    if beyond:
        coarse = smooth_fields(
            model.template, anchors.vertex, reach=BEYOND_RANGE, count=BEYOND_FIELDS
        )
        fine = smooth_fields(model.template, anchors.vertex, reach=FINE_RANGE, count=FINE_FIELDS)
        along = np.einsum("fv,cd->fcvd", coarse, np.eye(3)).reshape(-1, *model.template.shape)
        fields = beyond * np.concatenate(
            [along, FINE * fine[..., None] * _outward(model, anchors.vertex)]
        )
    known, shared = len(blocks[0]), len(blocks[0]) + len(fields)
    directions = np.zeros((shared + len(blocks[1]) + 1, len(prior)))
    directions[:known, :k] = blocks[0]
    directions[shared:-1, k:] = blocks[1]
    fit_model = fit_model_of(model, anchors, directions)
    # No coefficients of the model make these.
    fit_model.mesh_basis[known:shared] = fields.reshape(len(fields), fit_model.mesh_basis.shape[1])
    for table, vertex in (
        (fit_model.anchor_basis, fit_model.anchor_vertex),
        (fit_model.landmark_basis, model.landmarks.vertex),
    ):
        table[..., known:shared] = np.moveaxis(fields[:, vertex], 0, 2)
    return PerspectiveFitModel(**vars(fit_model), identities=shared)


def _outward(model: MorphableModel, vertex: Ints) -> Floats:
    """(V, 3) unit directions, smooth even where the template is folded: means of the normals at the
    ``vertex`` (A,).

    At lips and lids neighbours' own normals are opposite, and moving along them would tear the
    surface.
    """
    normals = vertex_normals(model.template, model.faces)[vertex]
    apart = cdist(model.template, model.template[vertex], "sqeuclidean")
    mean = np.exp(-2.0 * apart / FINE_RANGE**2) @ normals
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9))
