"""The iteration: the state of B faces and what the network sees there -> a better state.

Every array has a leading batch axis B. Pixels are of each face's own photo. A face's *unit* is the
size in pixels at which the model's frontal landmark box appears under its pose: noise, gates and
motion are fractions of it, so faces of every size and yaw are treated alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from dff.aligner.fitting.correspondence import Matches, vote
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.silhouette import (
    KEPT,
    MOST,
    REACH,
    STEPS,
    Rim,
    behind,
    ends,
    rim_edges,
    surface_depth,
    turning,
)
from dff.face.arrays import Bools, Floats, Ints
from dff.face.descriptor import STRIDE, Anchors
from dff.face.geometry.camera import Box, NearPerspective
from dff.face.geometry.mesh import triangle_normals
from dff.face.geometry.transform import CAM_FROM_FRONTAL_HEAD
from dff.face.model.landmarks import SCHEMES, LandmarkOffsets
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render import zbuffer
from dff.face.render.kernels import smooth_normals
from dff.face.solve.gauss_newton import (
    FaceState,
    Lines,
    evaluate_shape,
    initial_pose,
    project,
    step,
)
from dff.face.solve.robust import robust_weights

MIN_PIXELS = 24  # fewer matched pixels than this say nothing about a pose
OCCLUSION = 0.012  # metres behind the visible surface at which a point counts as hidden
BUFFER = 64  # pixels of the visibility buffer's side
# how far anchors count on which no landmark lies; they differ between people in ways no mode tells
ASIDE = 0.15
ASIDE_REGIONS = ("ears", "scalp", "neck")
NO_MODES = np.zeros(0)


@dataclass(frozen=True)
class Solver:
    """How faces are fitted. Fractions are of the face's unit."""

    # independent observations that a whole face's pixels are worth: weighs data against prior
    evidence: float = 300.0
    pose_noise: tuple[float, ...] = (
        0.3,
        0.2,
        0.12,
        0.08,
    )  # closed-form poses, each ignoring what the last disbelieved
    rigid_noise: tuple[float, ...] = (0.06, 0.05)  # Gauss-Newton on pose alone
    shape_noise: tuple[float, ...] = (0.05, 0.035)  # then on everything
    # how near to its prediction a match must fall, in the first pass after the pose is known
    first_gate: float = 0.15
    later_gates: tuple[float, ...] = (0.08,)  # and in later passes, which begin from a prediction
    later_noise: float = 0.03
    outline: float = (
        60.0  # independent observations that a whole outline is worth, once there is a prediction
    )
    later_steps: int = 2  # for each gate
    # independent observations that a photo's skin is worth to others of the person; 0: none
    skin: float = 1000.0


@dataclass(frozen=True)
class Look:
    """What the network saw of B faces in one pass."""

    matches: Matches
    px: Floats  # (B, N, 2) pixels of the photo that were matched
    face_logit: Floats  # (B, H, W) log odds that pixels of the crops, STRIDE wide, show the face
    crops: Crops
    face: Ints  # (B,) which of the faces that were asked for

    @property
    def area(self) -> Floats:
        """(B,) square pixels of the photo that show the face."""
        pixels = (self.matches.mask > 0).sum(1) * self.matches.pitch**2
        return np.asarray(pixels * (self.crops.side / self.crops.size) ** 2)


@dataclass(frozen=True)
class Sight:
    """What the fitted meshes of B faces let be seen. Rows are rewritten as faces move."""

    anchors: Floats  # (B, A) 0 to 1
    landmarks: Floats  # (B, 68, 2) how they are exposed
    rim: Rim

    @staticmethod
    def unknown(faces: int, anchors: int) -> Sight:
        """Every anchor in sight, and no rim."""
        return Sight(np.ones((faces, anchors)), np.zeros((faces, 68, 2)), Rim.nothing(faces))

    def __getitem__(self, rows: Ints | Bools) -> Sight:
        return Sight(self.anchors[rows], self.landmarks[rows], self.rim[rows])

    def put(self, rows: Ints, part: Sight) -> None:
        self.anchors[rows], self.landmarks[rows] = part.anchors, part.landmarks
        self.rim.put(rows, part.rim)


@dataclass(frozen=True)
class FitModel:
    """What alignment needs of a morphable model and its anchors, cut out once.

    A state's coefficients are *latent*: standard normal under the model's prior, the P directions
    that move the anchors most under it. They are fewer than the model's own coefficients, which
    follow from them linearly.
    """

    model: MorphableModel
    anchor_vertex: Ints  # (A,)
    anchor_mean: Floats  # (A, 3) float32 metres
    anchor_basis: Floats  # (A, 3, P) float32
    landmark_triangles: Ints  # (68, T) the triangles at each landmark, some repeated
    landmark_mean: Floats  # (68, 3)
    landmark_basis: Floats  # (68, 3, P)
    mesh_basis: Floats  # (P, 3 V) float32
    modes: Floats  # (P, K + E): the model's coefficients of each latent direction
    size: float  # metres: geometric mean of the sides of the frontal landmark box
    mirrored: bool  # the second half of the anchors is of looks at mirrored photos
    near: float = 0.0  # 1 / metres: of the camera to faces

    @cached_property
    def in_crease(self) -> Bools:
        """(68,) landmarks whose triangles all look away even from the front."""
        return _facing(self.model.template, self.model.faces, self.landmark_triangles, 1.0) < 0.0

    @cached_property
    def anchor_trust(self) -> Floats:
        """(A,) how far a refinement counts each anchor."""
        model, names = (
            self.model,
            [name for name in ASIDE_REGIONS if name in self.model.region_names],
        )
        aside = np.isin(self.anchor_vertex, model.faces[model.triangles_of(*names)])
        return np.where(aside, ASIDE, 1.0)

    @cached_property
    def rim_edges(self) -> Ints:
        """(E, 2) what an outline may cross."""
        return rim_edges(self.model)

    @cached_property
    def vertex_basis(self) -> Floats:
        """(V, 3, P) float32."""
        return np.ascontiguousarray(
            np.moveaxis(self.mesh_basis.reshape(len(self.mesh_basis), -1, 3), 0, 2)
        )

    @cached_property
    def no_basis(self) -> Floats:
        """(A, 3, 0): the anchors of the rigid mean face."""
        return self.anchor_basis[:, :, :0]

    def nearness(self, state: FaceState) -> Floats:
        """(B,) 1 / metres, of the cameras."""
        return np.full(len(state.scale), self.near)

    def unit(self, state: FaceState) -> Floats:
        """(B,) pixels."""
        return state.scale * self.size

    def vertices(self, state: FaceState) -> Floats:
        """(B, V, 3) metres in the head frame."""
        offset = state.coefficients.astype(np.float32) @ self.mesh_basis
        return np.asarray(
            self.model.template.astype(np.float64) + offset.reshape(len(offset), -1, 3)
        )

    def landmarks(self, state: FaceState) -> Floats:
        """(B, 68, 2) pixels, 3D scheme."""
        points = evaluate_shape(self.landmark_mean, self.landmark_basis, state.coefficients)
        return project(state, points, self.nearness(state))

    def anchors(self, state: FaceState) -> Floats:
        """(B, A, 2) pixels."""
        points = evaluate_shape(self.anchor_mean, self.anchor_basis, state.coefficients)
        return project(state, points, self.nearness(state))

    def latent(self, coefficients: Coefficients) -> Floats:
        """(P,) the latent row whose coefficients are nearest, each measured in its own standard
        deviations.
        """
        prior = prior_sd(self.model)
        # Measured so, the rows of ``modes`` are orthonormal.
        both = np.concatenate([coefficients.identity, coefficients.expression])
        return np.asarray((self.modes / prior) @ (both / prior))

    def as_annotated(self, landmark_offsets: LandmarkOffsets) -> Self:
        """The rig whose landmarks lie where annotators of the 3D scheme put them."""
        if landmark_offsets.none:
            return self
        away = landmark_offsets.of("3d", np.zeros(self.modes.shape[1]))
        mean, basis = self.landmark_mean + away, self.landmark_basis
        if landmark_offsets.response.shape[3]:
            basis = basis + landmark_offsets.response[SCHEMES.index("3d")] @ self.modes.T
        return replace(self, landmark_mean=mean, landmark_basis=basis)

    def camera(self, state: FaceState, face: int) -> NearPerspective:
        """Of the whole photo."""
        return NearPerspective(
            float(state.scale[face]), state.centre[face], float(self.nearness(state)[face])
        )

    def coefficients(self, latent: Floats) -> Coefficients:
        """The model's coefficients of one (P,) latent row."""
        both = latent @ self.modes
        k = len(self.model.identity)
        return Coefficients(both[:k], both[k:])


def prior_sd(model: MorphableModel) -> Floats:
    """(K + E,) standard deviations of a model's coefficients."""
    return np.concatenate([np.ones(len(model.identity)), model.expression_sd.astype(np.float64)])


def build_fit_model(
    model: MorphableModel,
    anchors: Anchors,
    *,
    modes: int,
    mirrored: bool = False,
    near: float = 0.0,
) -> FitModel:
    """The rig of a model with at most ``modes`` latent directions, for cameras that are ``near``, 1
    / metres.

    ``mirrored``: it also serves looks at mirrored photos, whose matches are of the anchors on the
    other side of the face. These follow the anchors in every table of anchors.
    """
    prior = prior_sd(model)
    both = np.concatenate([model.identity, model.expression]).astype(np.float32)
    at_anchors = both[:, anchors.vertex].reshape(len(both), -1) * prior[:, None]
    # Right singular vectors of the anchors' motion under the prior, from the small Gram matrix.
    _, vectors = np.linalg.eigh(at_anchors @ at_anchors.T)
    return fit_model_of(
        model, anchors, vectors.T[::-1][:modes] * prior, mirrored=mirrored, near=near
    )


def fit_model_of(
    model: MorphableModel,
    anchors: Anchors,
    directions: Floats,
    *,
    mirrored: bool = False,
    near: float = 0.0,
) -> FitModel:
    """The rig whose (P, K + E) latent directions are these; ``mirrored`` and ``near`` as in
    ``build_fit_model``.
    """
    vertex = (
        np.concatenate([anchors.vertex, model.mirror[anchors.vertex]])
        if mirrored
        else anchors.vertex
    )
    both = np.concatenate([model.identity, model.expression]).astype(np.float32)
    mesh_basis = (directions.astype(np.float32) @ both.reshape(len(both), -1)).astype(np.float32)
    by_vertex = np.moveaxis(mesh_basis.reshape(len(directions), -1, 3), 0, 2)
    return FitModel(
        model=model,
        anchor_vertex=vertex,
        anchor_mean=model.template[vertex].astype(np.float32),
        anchor_basis=np.ascontiguousarray(by_vertex[vertex]),
        landmark_triangles=_triangles_at(model.faces, model.landmarks.vertex),
        landmark_mean=model.template[model.landmarks.vertex].astype(np.float64),
        landmark_basis=by_vertex[model.landmarks.vertex].astype(np.float64),
        mesh_basis=mesh_basis,
        modes=directions,
        size=Box.around(model.template[model.landmarks.vertex][:, :2]).size,
        mirrored=mirrored,
        near=near,
    )


def _facing(vertices: Floats, faces: Ints, triangles: Ints, towards: float) -> Floats:
    """(N,) largest cosine between the z axis times ``towards`` and the normals of each row of (N,
    T) ``triangles``.
    """
    normal = triangle_normals(vertices, faces[triangles.ravel()])
    cosine = towards * normal[:, 2] / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    return np.asarray(cosine.reshape(triangles.shape).max(1))


def _triangles_at(faces: Ints, vertices: Ints) -> Ints:
    """(N, T) triangles that meet each of (N,) vertices, the first repeated where there are fewer
    than T.
    """
    meeting = [np.flatnonzero((faces == vertex).any(1)) for vertex in vertices]
    most = max(len(some) for some in meeting)
    return np.stack(
        [np.concatenate([some, np.full(most - len(some), some[0])]) for some in meeting]
    )


def state_in_boxes(fit_model: FitModel, boxes: list[Box]) -> FaceState:
    """The mean face, looking ahead, with its landmark box about each box."""
    ahead = FaceState(
        np.ones(1),
        CAM_FROM_FRONTAL_HEAD[None],
        np.zeros((1, 2)),
        np.zeros((1, len(fit_model.modes))),
    )
    frontal = Box.around(fit_model.landmarks(ahead)[0])
    scale = np.array([box.size for box in boxes]) / frontal.size
    centre = np.stack([box.centre for box in boxes]) - scale[:, None] * frontal.centre
    rotation = np.repeat(ahead.rotation, len(boxes), axis=0)
    return FaceState(scale, rotation, centre, np.zeros((len(boxes), len(fit_model.modes))))


def crops_of_boxes(boxes: list[Box], margin: float, size: int) -> Crops:
    """Upright crops: squares of ``margin`` times the longer side of each box."""
    side = np.array([margin * max(box.width, box.height) for box in boxes])
    return Crops(np.stack([box.centre for box in boxes]), side, np.zeros(len(boxes)), size)


def crops_of_state(fit_model: FitModel, state: FaceState, margin: float, size: int) -> Crops:
    """Crops about the landmarks, turned so that the head's own up is up where it has a direction on
    the screen.
    """
    up = state.rotation[:, :2, 1]
    angle = np.where(np.linalg.norm(up, axis=1) > 0.3, np.arctan2(up[:, 0], -up[:, 1]), 0.0)
    c, s = np.cos(angle), np.sin(angle)
    upright = np.stack(
        [np.stack([c, -s], -1), np.stack([s, c], -1)], -2
    )  # row vectors into the crop's axes
    points = fit_model.landmarks(state) @ upright
    low, high = points.min(1), points.max(1)
    centre = np.einsum("bi,bji->bj", (low + high) / 2, upright)
    return Crops(centre, margin * (high - low).max(1), angle, size)


def sight_of(fit_model: FitModel, state: FaceState) -> Sight:
    """How far the fitted meshes let the anchors be seen, how the landmarks are exposed, and where
    surfaces turn away.

    An anchor: zero where all four buffer pixels round it show other parts of the mesh in front of
    it, else falling as the smooth surface turns away. A landmark: the cosine to the camera of that
    triangle at it which faces the camera most, since lids and lips are sharp edges, and the metres
    that it lies behind the visible surface. Landmarks in a crease, which not even the frontal
    template turns to the camera, count as facing it.
    """
    faces = fit_model.model.faces
    anchors = np.zeros((len(state.scale), len(fit_model.anchor_mean)))
    landmarks = np.zeros((len(state.scale), 68, 2))
    rim = Rim.nothing(len(state.scale))
    for face, (mesh, near) in enumerate(
        zip(fit_model.vertices(state), fit_model.nearness(state), strict=True)
    ):
        seen = mesh @ state.rotation[face].T
        # As the camera sees it: planes stay planes, and what turns away from it turns away from the
        # z axis.
        seen /= 1.0 + near * seen[:, 2:]
        low, high = seen[:, :2].min(0), seen[:, :2].max(0)
        scale = BUFFER / float((high - low).max())
        px = (seen[:, :2] - low) * scale
        ids = zbuffer.visibility(px, seen[:, 2], faces, (BUFFER, BUFFER))
        # At a triangle's nearest corner: near enough beside a tolerance of a centimetre.
        depth = surface_depth(ids, faces, seen[:, 2])
        normal = smooth_normals(seen, faces)
        smooth = -normal[fit_model.anchor_vertex, 2]
        best = np.where(
            fit_model.in_crease, 1.0, _facing(seen, faces, fit_model.landmark_triangles, -1.0)
        )
        hidden = behind(seen[fit_model.anchor_vertex], low, scale, depth) > OCCLUSION
        anchors[face] = ~hidden * np.clip((smooth + 0.1) / 0.2, 0.0, 1.0)
        landmarks[face] = np.stack(
            [best, behind(seen[fit_model.model.landmarks.vertex], low, scale, depth)], axis=1
        )
        row = rim.vertices[face], rim.share[face], rim.px[face], rim.outward[face]
        rim.count[face] = turning(seen, normal, fit_model.rim_edges, depth, scale, low, *row)
        rim.px[face] = rim.px[face] * state.scale[face] + state.centre[face]
    return Sight(anchors, landmarks, rim)


def outlines(
    fit_model: FitModel, solver: Solver, state: FaceState, sight: Sight, look: Look
) -> Lines:
    """Where B faces end, for those places of their rims near which they do."""
    b, rim, modes = len(state.scale), sight.rim, len(fit_model.modes)
    out = Lines(
        mean=np.zeros((b, KEPT, 3)),
        basis=np.zeros((b, KEPT, 3, modes), np.float32),
        targets=np.zeros((b, KEPT, 2)),
        normal=np.zeros((b, KEPT, 2)),
        weights=np.zeros((b, KEPT)),
    )
    stride = REACH / STEPS * fit_model.unit(state)  # pixels of the photo
    start = look.crops.crop_from_photo(rim.px) / STRIDE - 0.5
    step = (
        look.crops.crop_from_photo(rim.px + rim.outward * stride[:, None, None]) / STRIDE
        - 0.5
        - start
    )
    away = np.empty(MOST)
    for face in range(b):
        count = rim.count[face]
        ends(look.face_logit[face], start[face], step[face], count, STEPS, away)
        found = np.flatnonzero(np.isfinite(away[:count]))
        if len(found) == 0:
            continue
        kept = found[np.arange(min(len(found), KEPT)) * len(found) // min(len(found), KEPT)]
        n = len(kept)
        vertices, share = rim.vertices[face, kept], rim.share[face, kept, None]
        corner = fit_model.model.template[vertices].astype(np.float64)
        out.mean[face, :n] = (1.0 - share) * corner[:, 0] + share * corner[:, 1]
        basis, part = fit_model.vertex_basis[vertices], share[..., None].astype(np.float32)
        out.basis[face, :n] = (1.0 - part) * basis[:, 0] + part * basis[:, 1]
        normal = out.normal[face, :n] = rim.outward[face, kept]
        out.targets[face, :n] = rim.px[face, kept] + normal * (away[kept] * stride[face])[:, None]
        out.weights[face, :n] = solver.outline * len(found) / count / n
    return out


def first_fit(fit_model: FitModel, solver: Solver, look: Look, start: FaceState) -> FaceState:
    """Fit without a prediction: pose in closed form, pose alone, then everything.

    ``start`` says only what size to expect; what cannot be fitted keeps it.
    """
    matches, px = look.matches, look.px
    b = len(px)
    everywhere, seen = (
        np.zeros((b, len(fit_model.anchor_mean), 2)),
        np.ones((b, len(fit_model.anchor_mean))),
    )
    mean, rigid, weight = vote(
        matches, px, everywhere, np.full(b, np.inf), seen, fit_model.anchor_mean, fit_model.no_basis
    )
    unit = fit_model.unit(start)
    state = replace(start, coefficients=np.zeros((b, 0)))
    trust = weight
    for noise in solver.pose_noise:
        state = sane(initial_pose(mean, px, trust, 0), state, unit)
        trust = weight * robust_weights(
            px - project(state, mean, fit_model.nearness(state)), (noise * unit)[:, None]
        )
    for noise in solver.rigid_noise:
        unit = fit_model.unit(state)
        weighted = evidence(weight, solver.evidence)
        found = step(
            state,
            mean,
            rigid,
            px,
            weighted,
            noise=noise * unit,
            prior=NO_MODES,
            prior_sd=NO_MODES,
            inverse_depth=fit_model.nearness(state),
        )
        state = sane(found, state, unit)
    state = replace(state, coefficients=np.zeros((b, len(fit_model.modes))))
    return _steps(fit_model, solver, look, state, seen, solver.first_gate, solver.shape_noise)


def resume(fit_model: FitModel, solver: Solver, look: Look, state: FaceState) -> FaceState:
    """Fit faces whose shape is known nearly and whose pose may have jumped.

    Where a face was says nothing of where it is: its pose is found in closed form from all matches,
    on its own shape.
    """
    matches, px = look.matches, look.px
    b = len(px)
    visible = sight_of(fit_model, state).anchors
    everywhere = np.zeros((b, len(fit_model.anchor_mean), 2))
    mean, basis, weight = vote(
        matches,
        px,
        everywhere,
        np.full(b, np.inf),
        visible,
        fit_model.anchor_mean,
        fit_model.anchor_basis,
    )
    points = evaluate_shape(mean, basis, state.coefficients)
    unit = fit_model.unit(state)
    posed = state
    trust = weight
    for noise in solver.pose_noise:
        found = replace(initial_pose(points, px, trust, 0), coefficients=state.coefficients)
        posed = sane(found, posed, unit)
        trust = weight * robust_weights(
            px - project(posed, points, fit_model.nearness(posed)), (noise * unit)[:, None]
        )
    return refine(fit_model, solver, look, posed, sight_of(fit_model, posed))


def refine(
    fit_model: FitModel, solver: Solver, look: Look, state: FaceState, sight: Sight
) -> FaceState:
    """Fit from a prediction and what it lets be seen: matches count where the anchors in sight are
    predicted.
    """
    lines = outlines(fit_model, solver, state, sight, look)
    trust = sight.anchors * fit_model.anchor_trust
    for gate in solver.later_gates:
        state = _steps(
            fit_model,
            solver,
            look,
            state,
            trust,
            gate,
            (solver.later_noise,) * solver.later_steps,
            lines,
        )
    return state


def _steps(
    fit_model: FitModel,
    solver: Solver,
    look: Look,
    state: FaceState,
    visible: Floats,
    gate: float,
    noises: tuple[float, ...],
    lines: Lines | None = None,
) -> FaceState:
    unit = fit_model.unit(state)
    predicted = fit_model.anchors(state)
    mean, basis, weight = vote(
        look.matches,
        look.px,
        predicted,
        gate * unit,
        visible,
        fit_model.anchor_mean,
        fit_model.anchor_basis,
    )
    weight = evidence(weight, solver.evidence)
    modes = len(fit_model.modes)
    for noise in noises:
        found = step(
            state,
            mean,
            basis,
            look.px,
            weight,
            noise=noise * unit,
            prior=np.zeros(modes),
            prior_sd=np.ones(modes),
            inverse_depth=fit_model.nearness(state),
            lines=lines,
        )
        state = sane(found, state, unit)
    return state


def evidence(weight: Floats, observations: float) -> Floats:
    """(B, N) weights such that a face whose N rows all count fully is worth ``observations``
    independent points.

    Neighbouring pixels err together, so the number of pixels says little about how much is known.
    """
    return weight * (observations / weight.shape[1])


def sane(found: FaceState, before: FaceState, unit: Floats) -> FaceState:
    """``found`` where it is finite and not collapsed, exploded or gone; else ``before``."""
    ratio = found.scale / before.scale
    good = np.isfinite(found.scale) & (ratio > 0.1) & (ratio < 10)
    good &= np.isfinite(found.rotation).all((1, 2)) & np.isfinite(found.coefficients).all(1)
    good &= np.linalg.norm(found.centre - before.centre, axis=1) < 5 * unit
    return chosen(good, found, before)


def chosen(condition: Bools, yes: FaceState, no: FaceState) -> FaceState:
    """Row by row one of two states."""
    return FaceState(
        np.where(condition, yes.scale, no.scale),
        np.where(condition[:, None, None], yes.rotation, no.rotation),
        np.where(condition[:, None], yes.centre, no.centre),
        np.where(condition[:, None], yes.coefficients, no.coefficients),
    )


def put(state: FaceState, rows: Ints, part: FaceState) -> FaceState:
    """``state`` with its ``rows`` replaced by ``part``."""

    def merged(whole: Floats, new: Floats) -> Floats:
        out = whole.copy()
        out[rows] = new
        return out

    return FaceState(
        merged(state.scale, part.scale),
        merged(state.rotation, part.rotation),
        merged(state.centre, part.centre),
        merged(state.coefficients, part.coefficients),
    )
