"""Multi-image fitting: several photos of one person share one identity.

Each photo has a pose, an expression and a camera of its own. Only the identity is shared, so the
normal equations are a block arrow: each photo's own unknowns are eliminated (Schur complement), the
reduced systems of all photos are summed and solved for the identity, and the photos' own unknowns
follow by substitution. This is the exact Gauss-Newton step of all unknowns together, at the cost of
one small system for each photo.

Sources: the first version of the paper, "Deep Face Feature for Face Alignment and Reconstruction",
fits photos of one person together; the elimination is bundle adjustment's (Triggs et al. 1999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.appearance import AppearanceDescriptor
from dff.aligner.config import AlignConfig, MultiImageConfig
from dff.aligner.detection import Search
from dff.aligner.fitting.assessment import assess
from dff.aligner.fitting.batch import with_fields
from dff.aligner.fitting.change import in_photo
from dff.aligner.fitting.correction import LinearCorrector
from dff.aligner.fitting.correspondence import soft_correspondence
from dff.aligner.fitting.crop import frame_faces
from dff.aligner.fitting.expressions import ExpressionCorrector, LearnedExpressionCorrector
from dff.aligner.fitting.face_fit import FaceFit
from dff.aligner.fitting.fit_model import FitState
from dff.aligner.fitting.fitters import next_crops
from dff.aligner.fitting.loop import is_last_pass
from dff.aligner.fitting.observation import (
    Observation,
    Observer,
    describe_landmarks,
    observe_faces,
)
from dff.aligner.fitting.perspective import move, perspective_jacobian
from dff.aligner.fitting.photometric import Skin, adjust_photometrically
from dff.aligner.fitting.residual_deformation import build_person_fit_model
from dff.aligner.fitting.silhouette import match_silhouette
from dff.aligner.fitting.steps import accept, scale_weights
from dff.aligner.fitting.visibility import compute_visibility
from dff.face.arrays import Bools, Bytes, Floats
from dff.face.descriptor import Anchors, Network
from dff.face.model.morphable import MorphableModel
from dff.face.solve.expression_correction import ExpressionCorrection
from dff.face.solve.fit_correction import FitCorrection
from dff.face.solve.gauss_newton import POSE, Lines, linearise
from dff.face.solve.least_squares import damp, eliminate
from dff.face.tta import TtaNetwork, TtaTransform


class MultiImageFitter:
    """Fits photos of one person, all to one identity and residual deformation.

    A photo is weighted by the square of its trust (the confidence of its own alignment) and the
    square of the visible share of the face: occluded faces have large, systematic errors. From the
    second pass on, photometric bundle adjustment refines the soft correspondences of several
    photos.
    """

    def __init__(
        self,
        net: Network,
        anchors: Anchors,
        model: MorphableModel,
        config: AlignConfig,
        correction: FitCorrection | None = None,
        expression_correction: ExpressionCorrection | None = None,
        *,
        multiple: int,
    ) -> None:
        """``correction``: of the fits of each pass; ``expression_correction``: of the activations
        of the last. None of them by default.

        ``multiple``: the sides of the network's input images are multiples of this.
        """
        self.config, self.passes = config, config.multi_image.passes
        self.fit_model = build_person_fit_model(
            model, anchors, config.fit_model, config.multi_image
        )
        self.skin = Skin.of(self.fit_model, config.photometric)
        self.corrector: LinearCorrector | None = None
        if correction is not None:
            self.corrector = LinearCorrector(self.fit_model, correction, config.visibility)
        scales = [TtaTransform(scale) for scale in config.multi_image.scales]
        batch = max(config.observation.network_batch // len(scales), 1)
        self.observer = Observer(
            TtaNetwork(net, scales, multiple=multiple),
            anchors,
            describe_landmarks(anchors, self.fit_model.landmark_mean),
            replace(config.observation, network_batch=batch),
        )
        self.expression_corrector: ExpressionCorrector | None = None
        if expression_correction is not None:
            self.expression_corrector = LearnedExpressionCorrector(
                self.fit_model, expression_correction, config.visibility
            )

    def without_photometric(self) -> Self:
        """The same fitter with soft correspondences alone."""
        dense = copy(self)
        photometric = replace(self.config.photometric, observations=0.0)
        dense.config = replace(self.config, photometric=photometric)
        return dense

    def begin(self, faces: Sequence[Alignment]) -> FaceFit:
        """Start in the faces' own poses, with the mean of their identities.

        ``faces``: one of each photo. The mean is weighted by the square of confidence.
        """
        fit_model, config = self.fit_model, self.config
        state = fit_model.state_of_alignments(faces, config.multi_image.inverse_depth)
        trust = np.array([face.face_confidence for face in faces])
        coefficients = state.coefficients.copy()
        coefficients[:, : fit_model.shared] = np.average(
            coefficients[:, : fit_model.shared], axis=0, weights=trust**2
        )
        state = replace(state, coefficients=coefficients)
        crops = frame_faces(fit_model, state, config.margin, config.crop)
        return FaceFit.begin(fit_model, state, crops, config, detected=True, trust=trust)

    def step(self, number: int, images: Sequence[Bytes], before: FaceFit) -> Search[FaceFit]:
        """Fit all photos to soft correspondences, then adjust them photometrically."""
        fit_model, config = self.fit_model, self.config
        crops = next_crops(before, number, config)
        seen = yield from observe_faces(self.observer, images, crops, before)
        if len(seen.rows) == 0:
            return seen.all_faces
        observation, before = seen.observation, seen.before
        face_size = fit_model.face_size(before.state)
        yield
        state, system = yield from self._fit_correspondences(number, observation, before, face_size)
        yield
        if number > 0 and len(seen.rows) > 1 and config.photometric.observations > 0:
            found = yield from adjust_photometrically(
                self.skin,
                fit_model,
                [images[i] for i in seen.rows],
                state,
                system,
                observation,
                config,
                trust=before.trust**2,
            )
            state = self._accept(found, state, face_size)
            yield
        after = assess(fit_model, self.observer, observation, before, state, config.visibility)
        motion = np.where(seen.before.detected, np.inf, after.motion)
        if self.expression_corrector is not None and is_last_pass(self, number, motion):
            expression = self.expression_corrector.correct(
                observation, after.state, after.visibility, mirrored=False
            )
            after = with_fields(after, expression=expression)
        return seen.join(after)

    def early_stop(self, number: int, motion: Floats) -> Bools:
        """(B,) the same for all photos: no photo is done before all are."""
        done = bool((motion <= self.config.early_stop).all())
        return np.full(len(motion), done)

    def _fit_correspondences(
        self, number: int, observation: Observation, before: FaceFit, face_size: Floats
    ) -> Search[tuple[FitState, Floats]]:
        """The state by soft correspondences, and the (B, Q, Q) Gauss-Newton matrices about it.

        Yields before every step.
        """
        fit_model, config, state = self.fit_model, self.config, before.state
        solver, person = config.solver, config.multi_image
        whole = person.whole_face * face_size**2
        share = (before.trust * np.minimum(observation.area / whole, 1.0)) ** 2
        visibility = before.visibility
        if number == 0:
            visibility = compute_visibility(fit_model, state, config.visibility)
        lines = match_silhouette(
            fit_model, state, visibility.contour, observation, config.silhouette
        )
        lines = replace(lines, weights=lines.weights * share[:, None])
        gate, noise = solver.later_gates[0] * face_size, solver.later_noise * face_size
        # Soft correspondences are biased to the prediction, so the shape needs several of them to
        # converge.
        for _ in range(person.matchings):
            mean, basis, found_weight = soft_correspondence(
                observation.matches,
                observation.px,
                fit_model.anchors(state),
                gate,
                visibility.anchors,
                fit_model.anchor_mean,
                fit_model.anchor_basis,
            )
            weight = scale_weights(found_weight, solver.observations) * share[:, None]
            pull = mean, basis, weight
            for _ in range(person.steps):
                yield
                system, gradient = _linearise(observation.px, state, pull, lines, noise)
                found = shared_step(state, system, gradient, shared=fit_model.shared, config=person)
                state = self._accept(found, state, face_size)
        if self.corrector is not None:
            yield
            system, gradient = _linearise(observation.px, state, pull, lines, noise)
            # What a photo's fit misses moves the minimum of its own correspondences.
            gradient += (system @ self._predict_missing(observation, state)[..., None])[..., 0]
            found = shared_step(state, system, gradient, shared=fit_model.shared, config=person)
            state = self._accept(found, state, face_size)
        return state, system

    def _predict_missing(self, observation: Observation, state: FitState) -> Floats:
        """(B, Q) what the photos' fits miss, in the columns of ``perspective_jacobian``."""
        fit_model = self.fit_model
        assert self.corrector is not None
        seen = compute_visibility(fit_model, state, self.config.visibility)
        change = self.corrector.predict(observation, state, seen)
        step = in_photo(change, observation.crops.angle, fit_model.face_size(state))
        return np.pad(step, ((0, 0), (0, 1)))  # the distance of the camera is not predicted

    def _accept(self, found: FitState, before: FitState, face_size: Floats) -> FitState:
        """``found``, but a photo whose pose diverged keeps its own part of ``before``.

        All photos keep one identity.
        """
        kept = accept(found, before, face_size)
        coefficients = kept.coefficients.copy()
        shared = self.fit_model.shared
        if np.isfinite(found.coefficients).all():
            coefficients[:, :shared] = found.coefficients[:1, :shared]
        return replace(kept, coefficients=coefficients)


def _linearise(
    px: Floats, state: FitState, pull: tuple[Floats, Floats, Floats], lines: Lines, noise: Floats
) -> tuple[Floats, Floats]:
    """The (B, Q, Q) matrices and (B, Q) gradients of each photo's own energy.

    Of the (B, N, 2) pixels, each pulled to the point of a mean and a basis with a weight, and of
    the ``lines`` of its silhouette.
    """
    mean, basis, weight = pull
    at, jac = perspective_jacobian(state, mean, basis)
    across = lines, *perspective_jacobian(state, lines.mean, lines.basis)
    return linearise(px - at, jac, weight, noise, across)


def shared_step(
    state: FitState,
    hessian: Floats,
    gradient: Floats,
    *,
    shared: int,
    config: MultiImageConfig,
    damping: float = 1e-6,
) -> FitState:
    """One Gauss-Newton step of B photos whose states share their first ``shared`` coefficients.

    (B, Q, Q) ``hessian`` and (B, Q) ``gradient`` of the photos' own ``linearise``, in the
    columns of ``perspective_jacobian``. The energy is ``dff.face.solve.gauss_newton.step``'s,
    summed over the photos, with the prior of what is shared once and that of the cameras' inverse
    depths.
    """
    b, p = gradient.shape
    hessian = hessian.copy()
    damp(hessian, damping)
    common = np.arange(POSE, POSE + shared)
    own = np.setdiff1d(np.arange(p), common)
    prior = np.arange(POSE, len(own))  # rows of ``own``: expression, then inverse depth
    precision = np.append(np.ones(len(prior) - 1), config.inverse_depth_sd**-2)
    off_mean = state.inverse_depth[:, None] - config.inverse_depth
    within = hessian[:, own[:, None], own]
    within[:, prior, prior] += precision
    own_gradient = gradient[:, own]
    own_gradient[:, prior] -= precision * np.hstack([state.coefficients[:, shared:], off_mean])
    reduced = eliminate(
        within,
        hessian[:, own[:, None], common],
        hessian[:, common[:, None], common],
        own_gradient,
        gradient[:, common],
    )
    shared_delta = np.linalg.solve(
        reduced.hessian.sum(0) + np.eye(shared),
        reduced.gradient.sum(0) - state.coefficients[0, :shared],
    )
    delta = np.empty((b, p))
    delta[:, common] = shared_delta
    delta[:, own] = reduced.substitute(shared_delta)
    return move(state, delta, config)


def choose_person(
    faces: Mapping[int, Sequence[Alignment]], config: MultiImageConfig
) -> dict[int, Alignment]:
    """The face of each photo on which the photos agree, by number of the photo.

    ``faces``: at least one of each photo. The face is the largest one, unless another is nearer by
    ``preference`` to the identity that is nearest to all photos.
    """
    identities = {i: [face.coefficients.identity for face in some] for i, some in faces.items()}
    everyone = [one for some in identities.values() for one in some]
    medoid = min(everyone, key=lambda one: sum(_nearest(one, some) for some in identities.values()))

    def cost(i: int, k: int) -> float:
        smaller = faces[i][k].camera.scale < max(face.camera.scale for face in faces[i])
        return _nearest(medoid, [identities[i][k]]) + config.preference * smaller

    return {i: some[min(range(len(some)), key=partial(cost, i))] for i, some in faces.items()}


@dataclass(frozen=True)
class PersonCheck:
    """Whether several photos show one person: the agreement of photos, by their number."""

    strangers: Mapping[int, float]  # photos of someone else
    doubtful: Mapping[int, float]  # photos that may show someone else


def find_strangers(
    faces: Mapping[int, Alignment],
    appearances: Mapping[int, AppearanceDescriptor],
    config: MultiImageConfig,
) -> PersonCheck:
    """Photos that show someone else or may, by the agreement with the other photos.

    The agreement is the cosine between the photo's identity and the mean of the others', plus
    ``texture`` times the mean correlation of the texture. The photo that agrees least goes first,
    and is no longer compared with. Of two that disagree the surer stays. Those that are left then
    agree best of several, so more agreement is asked of them.
    """
    left, strangers = dict(appearances), dict[int, float]()
    agreement: dict[int, float] = {}
    bound = 0.0
    while len(left) > 1:
        agreement = {
            i: _agree(one, [other for k, other in left.items() if k != i], config)
            for i, one in left.items()
        }
        least = min(left, key=lambda i: (round(agreement[i], 9), faces[i].face_confidence))
        bound = config.stranger - config.few_photos / (len(left) - 1)
        if agreement[least] >= bound:
            break
        strangers[least] = agreement[least]
        del left[least]
    kept = agreement if len(left) > 1 else {}
    bound += config.doubt + config.doubt_of_rest * bool(strangers)
    doubtful = {i: kept[i] for i in left if i in kept and kept[i] < bound}
    return PersonCheck(strangers, doubtful)


def _agree(
    one: AppearanceDescriptor, others: Sequence[AppearanceDescriptor], config: MultiImageConfig
) -> float:
    """How far a face looks like one person with the others; more is better."""
    mean = replace(one, identity=np.mean([other.identity for other in others], axis=0))
    unknown = config.texture_unknown
    texture = [one.texture_agreement(other, unknown=unknown) for other in others]
    return one.identity_agreement(mean) + config.texture * float(np.mean(texture))


def _nearest(identity: Floats, others: Sequence[Floats]) -> float:
    return min(float(np.linalg.norm(identity - other)) for other in others)
