"""Several photos of one person: one identity, and of each photo its own pose and expression.

What couples the photos is the identity alone, so the normal equations are a block arrow: each photo's pose, expression
and perspective are eliminated from its own rows (the Schur complement), what remains of all photos is summed and solved
for the identity, and every photo's own part follows. This is the exact Gauss-Newton step of all unknowns at once, at
the cost of the photos' own steps. Perspective is among them because from arm's length a nose is a tenth larger than
from afar, more than noses differ, and one photo hardly tells the two apart.

Several photos tell more of a face than the model's directions of identity can form. Those that are shared therefore go
on beyond them: smooth deformations of the template, drawn from a Gaussian process, which is their prior (Lüthi et al.,
"Gaussian Process Morphable Models", PAMI 2018). One photo leaves them nearly at rest.

Source: the first version of the paper, "Deep Face Feature for Face Alignment and Reconstruction", aligns photos of one
person together; the elimination is bundle adjustment's (Triggs et al. 1999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aligner.alignment import Alignment
from aligner.loop import Look, Rig, Sight, Solver, evidence, outlines, prior_sd, rig_of, sane, sight_of
from aligner.matching import vote
from face.arrays import Floats
from face.descriptor import Anchors
from face.fit import POSE, FaceState, Lines, jacobian, moved, normal_equations, shape_of
from face.morphable import Coefficients, MorphableModel
from face.smooth import smooth_fields

IDENTITIES, EXPRESSIONS = 100, 40  # latent directions of each
BEYOND_RANGE, BEYOND_FIELDS = 0.05, 20  # metres over which a smooth deformation changes, and how many along each axis
WHOLE = 0.8  # area of a face that is seen whole, over its unit squared
VOTES, STEPS = 2, 2  # elections in each pass, and steps after each
NEARNESS, NEARNESS_SD, NEAREST = 1.0, 1.0, 4.0  # 1 / metres: of cameras to faces, from telephoto lenses to selfies


@dataclass(frozen=True)
class Together:
    """One person in several photos.

    Each face's ``vertices`` are those of the model with the face's coefficients, and ``beyond``.
    """

    identity: Floats  # (K,) standard deviations
    beyond: Floats  # (V, 3) metres in head: what no identity of the model forms, added to its vertices
    vertices: Floats  # (V, 3) metres in head: the face at rest, ``beyond`` and all
    faces: tuple[Alignment | None, ...]  # of each photo, all of this identity; None: left out
    left_out: Mapping[int, str]  # why, by number of the photo

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain lists and numbers; ``names`` of the photos."""
        return {
            "identity": np.round(self.identity, 4).tolist(),
            "photos": {
                name: {"left_out": self.left_out[i]} if face is None else face.to_json()
                for i, (name, face) in enumerate(zip(names, self.faces, strict=True))
            },
        }


@dataclass(frozen=True, kw_only=True)
class PerspectiveRig(Rig):
    """A rig whose first ``identities`` latent directions are the person's, the others change the expression alone,

    but the last, which changes nothing on the face: it is the camera's nearness. Of the person's the first are
    identities of the model, the rest, whose ``modes`` are zero, lie beyond it.
    """

    identities: int

    def nearness(self, state: FaceState) -> Floats:
        return nearness(state)


def nearness(state: FaceState) -> Floats:
    """(B,) 1 / metres, of the states of a ``PerspectiveRig``."""
    return np.asarray(np.clip(NEARNESS + NEARNESS_SD * state.coefficients[:, -1], 0.0, NEAREST))


def near_jacobian(state: FaceState, mean: Floats, basis: Floats) -> tuple[Floats, Floats]:
    """``face.fit.jacobian``, whose last column is the latent of the nearness."""
    near = nearness(state)
    px, out = jacobian(state, mean, basis, near)
    depth = np.matmul(shape_of(mean, basis, state.coefficients), state.rotation[:, 2, :, None])  # (B, N, 1)
    out[..., -1] = -NEARNESS_SD * (px - state.centre[:, None]) * depth / (1.0 + near[:, None, None] * depth)
    return px, out


def split_rig(
    model: MorphableModel,
    anchors: Anchors,
    *,
    identities: int = IDENTITIES,
    expressions: int = EXPRESSIONS,
    beyond: float = 0.0,
) -> PerspectiveRig:
    """The directions of identity, and those of expression, that move the anchors most under the prior.

    ``beyond``: metres by which a coordinate lies off the model's identities, a standard deviation; 0: not at all.
    """
    prior = prior_sd(model)
    k = len(model.identity)
    blocks = []
    for basis, sd, count in (
        (model.identity, prior[:k], identities),
        (model.expression, prior[k:], expressions),
    ):
        at_anchors = basis[:, anchors.vertex].reshape(len(basis), -1).astype(np.float64) * sd[:, None]
        _, vectors = np.linalg.eigh(at_anchors @ at_anchors.T)
        blocks.append(vectors.T[::-1][:count] * sd)
    axes = 3 if beyond else 0
    fields = smooth_fields(model.template, anchors.vertex, reach=BEYOND_RANGE, count=BEYOND_FIELDS)
    fields = np.einsum("fv,cd->fcvd", beyond * fields, np.eye(3)[:axes]).reshape(-1, len(model.template), 3)
    known, shared = len(blocks[0]), len(blocks[0]) + len(fields)
    directions = np.zeros((shared + len(blocks[1]) + 1, len(prior)))
    directions[:known, :k] = blocks[0]
    directions[shared:-1, k:] = blocks[1]
    rig = rig_of(model, anchors, directions)
    # No coefficients of the model make these.
    rig.mesh_basis[known:shared] = fields.reshape(len(fields), rig.mesh_basis.shape[1])
    for table, vertex in ((rig.anchor_basis, rig.anchor_vertex), (rig.landmark_basis, model.landmarks.vertex)):
        table[..., known:shared] = np.moveaxis(fields[:, vertex], 0, 2)
    return PerspectiveRig(**vars(rig), identities=shared)


def shared_step(
    state: FaceState,
    px: Floats,
    jac: Floats,
    targets: Floats,
    weights: Floats,
    *,
    noise: Floats,
    identities: int,
    across: tuple[Lines, Floats, Floats] | None = None,
    damping: float = 1e-6,
) -> FaceState:
    """One Gauss-Newton step of B photos of one person; the rows of ``state`` share their first ``identities`` latents.

    (B, N, 2) ``px`` and their (B, N, 2, 6 + P) derivatives ``jac``; ``across`` as in ``normal_equations``. The energy
    is ``face.fit.step``'s, summed over the photos, with the standard normal prior of the identity once.
    """
    hessian, gradient = normal_equations(targets - px, jac, weights, noise, across)
    b, p = gradient.shape
    diagonal = np.arange(p)
    hessian[:, diagonal, diagonal] *= 1.0 + damping
    hessian[:, diagonal, diagonal] += 1e-9

    shared = np.arange(POSE, POSE + identities)
    own = np.setdiff1d(diagonal, shared)
    expression = np.arange(POSE, len(own))  # rows of ``own``
    within = hessian[:, own[:, None], own]
    within[:, expression, expression] += 1.0
    own_gradient = gradient[:, own]
    own_gradient[:, expression] -= state.coefficients[:, identities:]
    coupling = hessian[:, own[:, None], shared]
    solved = np.linalg.solve(within, np.concatenate([coupling, own_gradient[..., None]], axis=2))
    reduced = hessian[:, shared[:, None], shared] - np.swapaxes(coupling, 1, 2) @ solved[..., :-1]
    pull = gradient[:, shared] - (np.swapaxes(coupling, 1, 2) @ solved[..., -1:])[..., 0]
    together = np.linalg.solve(reduced.sum(0) + np.eye(identities), pull.sum(0) - state.coefficients[0, :identities])
    delta = np.empty((b, p))
    delta[:, shared] = together
    delta[:, own] = solved[..., -1] - solved[..., :-1] @ together
    return moved(state, delta)


def fit_together(
    rig: PerspectiveRig, solver: Solver, trust: Floats, number: int, look: Look, state: FaceState, sight: Sight
) -> FaceState:
    """``aligner.loop.refine`` of photos of one person: the identity is that of all pixels at once.

    A photo counts by the square of its ``trust``, the confidence that it was aligned by itself, and of how much of the
    face it shows: where a hand and a cap leave a third of it, errors are large, and all of one kind.
    """
    unit = rig.unit(state)
    share = (trust[look.face] * np.minimum(look.area / (WHOLE * unit**2), 1.0)) ** 2
    if number == 0:
        sight = sight_of(rig, state)
    lines = outlines(rig, solver, state, sight, look)
    lines = replace(lines, weights=lines.weights * share[:, None])
    gate = solver.later_gates[0] * unit
    for _ in range(VOTES):
        # What a pixel votes for leans to where it was predicted, so shapes arrive over several elections.
        mean, basis, weight = vote(
            look.matches, look.px, rig.anchors(state), gate, sight.anchors, rig.anchor_mean, rig.anchor_basis
        )
        weight = evidence(weight, solver.evidence) * share[:, None]
        for _ in range(STEPS):
            at, jac = near_jacobian(state, mean, basis)
            noise = solver.later_noise * unit
            across = lines, *near_jacobian(state, lines.mean, lines.basis)
            found = shared_step(state, at, jac, look.px, weight, noise=noise, identities=rig.identities, across=across)
            state = _one(rig, found, state, unit)
    return state


def _one(rig: PerspectiveRig, found: FaceState, before: FaceState, unit: Floats) -> FaceState:
    """``found``, but a photo whose pose went astray keeps its own part of ``before``; the identity stays one."""
    kept = sane(found, before, unit)
    coefficients = kept.coefficients.copy()
    if np.isfinite(found.coefficients).all():
        coefficients[:, : rig.identities] = found.coefficients[:1, : rig.identities]
    coefficients[:, -1] = (nearness(kept) - NEARNESS) / NEARNESS_SD
    return replace(kept, coefficients=coefficients)


def state_of(rig: Rig, faces: Sequence[Alignment]) -> FaceState:
    """The state of B alignments, by whatever rig of the same model they were made."""
    return FaceState(
        np.array([face.camera.scale for face in faces]),
        np.stack([face.cam_from_head.rotation for face in faces]),
        np.stack([face.camera.centre for face in faces]),
        np.stack([rig.latent(face.coefficients) for face in faces]),
    )


def one_person(rig: PerspectiveRig, faces: Sequence[Alignment]) -> FaceState:
    """The state of B alignments with the mean of their identities, by the square of how sure each is."""
    state = state_of(rig, faces)
    coefficients = state.coefficients.copy()
    sure = np.array([face.face_confidence for face in faces]) ** 2
    coefficients[:, : rig.identities] = np.average(coefficients[:, : rig.identities], axis=0, weights=sure)
    return replace(state, coefficients=coefficients)


def together_of(
    model: MorphableModel, photos: int, faces: Mapping[int, Alignment], left_out: Mapping[int, str]
) -> Together:
    """What is said of the ``faces`` that share an identity, by number of their photo."""
    one = next(iter(faces.values()))
    identity = one.coefficients.identity
    beyond = one.vertices - model.vertices(one.coefficients)
    rest = model.vertices(Coefficients(identity, np.zeros(len(model.expression)))) + beyond
    return Together(identity, beyond, rest, tuple(faces.get(i) for i in range(photos)), dict(left_out))
