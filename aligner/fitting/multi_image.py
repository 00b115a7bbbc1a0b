"""Several photos of one person: one identity, and of each photo its own pose and expression.

What couples the photos is the identity alone, so the normal equations are a block arrow: each
photo's pose, expression and perspective are eliminated from its own rows (the Schur complement),
what remains of all photos is summed and solved for the identity, and every photo's own part
follows. This is the exact Gauss-Newton step of all unknowns at once, at the cost of the photos' own
steps. What is fitted: ``dff.aligner.fitting.perspective``; how photos that agree on the skin
improve it: ``dff.aligner.fitting.photometric``.

Source: the first version of the paper, "Deep Face Feature for Face Alignment and Reconstruction",
aligns photos of one person together; the elimination is bundle adjustment's (Triggs et al. 1999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.fitting.correspondence import vote
from dff.aligner.fitting.loop import (
    FitModel,
    Look,
    Sight,
    Solver,
    evidence,
    outlines,
    sane,
    sight_of,
)
from dff.aligner.fitting.perspective import (
    NEARNESS,
    NEARNESS_SD,
    PerspectiveFitModel,
    near_jacobian,
    nearness,
)
from dff.aligner.fitting.photometric import Skin, agreed
from dff.face.arrays import Bytes, Floats
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.solve.gauss_newton import POSE, FaceState, apply_step, linearise

WHOLE = 0.8  # area of a face that is seen whole, over its unit squared
VOTES, STEPS = 2, 2  # elections in each pass, and steps after each


@dataclass(frozen=True)
class PersonAlignment:
    """One person in several photos.

    Each face's ``vertices`` are those of the model with the face's coefficients, and ``beyond``.
    """

    identity: Floats  # (K,) standard deviations
    beyond: (
        Floats  # (V, 3) metres in head: what no identity of the model forms, added to its vertices
    )
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


def shared_step(
    state: FaceState, hessian: Floats, gradient: Floats, *, identities: int, damping: float = 1e-6
) -> FaceState:
    """One Gauss-Newton step of B photos of one person; the rows of ``state`` share their first
    ``identities`` latents.

    (B, 6 + P, 6 + P) ``hessian`` and (B, 6 + P) ``gradient`` of the photos' own
    ``linearise``. The energy is ``dff.face.solve.gauss_newton.step``'s, summed over the
    photos, with the standard normal prior of the identity once.
    """
    b, p = gradient.shape
    hessian = hessian.copy()
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
    together = np.linalg.solve(
        reduced.sum(0) + np.eye(identities), pull.sum(0) - state.coefficients[0, :identities]
    )
    delta = np.empty((b, p))
    delta[:, shared] = together
    delta[:, own] = solved[..., -1] - solved[..., :-1] @ together
    return apply_step(state, delta)


def fit_person(
    fit_model: PerspectiveFitModel,
    skin: Skin,
    solver: Solver,
    images: Sequence[Bytes],
    trust: Floats,
    number: int,
    look: Look,
    state: FaceState,
    sight: Sight,
) -> FaceState:
    """``dff.aligner.fitting.loop.refine`` of photos of one person: the identity is that of all
    pixels at once.

    A photo counts by the square of its ``trust``, the confidence that it was aligned by itself, and
    of how much of the face it shows: where a hand and a cap leave a third of it, errors are large,
    and all of one kind. From the second pass on, the ``images`` have to agree on the skin.
    """
    unit = fit_model.unit(state)
    share = (trust[look.face] * np.minimum(look.area / (WHOLE * unit**2), 1.0)) ** 2
    if number == 0:
        sight = sight_of(fit_model, state)
    lines = outlines(fit_model, solver, state, sight, look)
    lines = replace(lines, weights=lines.weights * share[:, None])
    gate = solver.later_gates[0] * unit
    noise = solver.later_noise * unit
    for _ in range(VOTES):
        # What a pixel votes for leans to where it was predicted, so shapes arrive over several
        # elections.
        mean, basis, weight = vote(
            look.matches,
            look.px,
            fit_model.anchors(state),
            gate,
            sight.anchors,
            fit_model.anchor_mean,
            fit_model.anchor_basis,
        )
        weight = evidence(weight, solver.evidence) * share[:, None]
        for _ in range(STEPS):
            at, jac = near_jacobian(state, mean, basis)
            across = lines, *near_jacobian(state, lines.mean, lines.basis)
            votes, gradient = linearise(look.px - at, jac, weight, noise, across)
            found = shared_step(state, votes, gradient, identities=fit_model.identities)
            state = _one(fit_model, found, state, unit)
    if number == 0 or len(unit) == 1 or solver.skin == 0:
        return state
    seen = [images[i] for i in look.face]
    found = agreed(
        skin, fit_model, seen, state, votes, look, strength=solver.skin, trust=trust[look.face] ** 2
    )
    return _one(fit_model, found, state, unit)


def _one(
    fit_model: PerspectiveFitModel, found: FaceState, before: FaceState, unit: Floats
) -> FaceState:
    """``found``, but a photo whose pose went astray keeps its own part of ``before``; the identity
    stays one.
    """
    kept = sane(found, before, unit)
    coefficients = kept.coefficients.copy()
    if np.isfinite(found.coefficients).all():
        coefficients[:, : fit_model.identities] = found.coefficients[:1, : fit_model.identities]
    coefficients[:, -1] = (nearness(kept) - NEARNESS) / NEARNESS_SD
    return replace(kept, coefficients=coefficients)


def state_of(fit_model: FitModel, faces: Sequence[Alignment]) -> FaceState:
    """The state of B alignments, by whatever rig of the same model they were made."""
    return FaceState(
        np.array([face.camera.scale for face in faces]),
        np.stack([face.cam_from_head.rotation for face in faces]),
        np.stack([face.camera.centre for face in faces]),
        np.stack([fit_model.latent(face.coefficients) for face in faces]),
    )


def one_person(fit_model: PerspectiveFitModel, faces: Sequence[Alignment]) -> FaceState:
    """The state of B alignments with the mean of their identities, by the square of how sure each
    is.
    """
    state = state_of(fit_model, faces)
    coefficients = state.coefficients.copy()
    sure = np.array([face.face_confidence for face in faces]) ** 2
    coefficients[:, : fit_model.identities] = np.average(
        coefficients[:, : fit_model.identities], axis=0, weights=sure
    )
    return replace(state, coefficients=coefficients)


def person_alignment(
    model: MorphableModel, photos: int, faces: Mapping[int, Alignment], left_out: Mapping[int, str]
) -> PersonAlignment:
    """What is said of the ``faces`` that share an identity, by number of their photo."""
    one = next(iter(faces.values()))
    identity = one.coefficients.identity
    beyond = one.vertices - model.vertices(one.coefficients)
    rest = model.vertices(Coefficients(identity, np.zeros(len(model.expression)))) + beyond
    return PersonAlignment(
        identity, beyond, rest, tuple(faces.get(i) for i in range(photos)), dict(left_out)
    )
