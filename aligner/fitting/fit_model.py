"""The state of B faces, and the part of a morphable model that is fitted to them.

Every array has a leading batch axis B. Pixels are of each face's own photo. A face's *size* is the
size in pixels at which the model's frontal landmark box appears under its pose; noise, gates and
motion are fractions of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import numba
import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.config import FitModelConfig
from dff.aligner.fitting.batch import take_rows, with_fields
from dff.aligner.fitting.outer_mesh import OuterMesh, cut_outer_mesh
from dff.face.arrays import Array, Bools, Float, Floats, Int, Integer, Ints
from dff.face.descriptor import Anchors
from dff.face.geometry.camera import Box, NearPerspective
from dff.face.geometry.mesh import unique_edges
from dff.face.geometry.transform import CAM_FROM_FRONTAL_HEAD
from dff.face.model.landmark_offsets import LandmarkOffsets
from dff.face.model.landmarks import LOWER_LIP_POINTS, MOUTH, SCHEMES
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.numba_cache import CACHE
from dff.face.solve.gauss_newton import FaceState, evaluate_shape, project

JAW_OPEN = "jawOpen"  # of ARKit's expressions


@dataclass(frozen=True)
class FitState(FaceState):
    """Pose, shape and camera of B faces."""

    inverse_depth: Float[Array, " faces"]  # 1 / metres, of the cameras to the faces

    @staticmethod
    def of(state: FaceState, inverse_depth: Floats | float) -> FitState:
        """The state with cameras of that ``inverse_depth``, (B,) or one for all."""
        depth = np.full(len(state.scale), inverse_depth, np.float64)
        return FitState(state.scale, state.rotation, state.centre, state.coefficients, depth)

    def __getitem__(self, rows: slice | Ints | Bools) -> FitState:
        return take_rows(self, rows)

    def copied(self) -> FitState:
        """A state of its own memory, contiguous, for kernels that move states in place."""
        names = ("scale", "rotation", "centre", "coefficients", "inverse_depth")
        own = {name: np.array(getattr(self, name), np.float64, order="C") for name in names}
        return with_fields(self, **own)

    def with_face(self, face: FaceState) -> FitState:
        """Another pose and shape with the same cameras."""
        return FitState.of(face, self.inverse_depth)

    def camera(self, face: int) -> NearPerspective:
        """The camera of one face, for the whole photo."""
        depth = float(self.inverse_depth[face])
        return NearPerspective(float(self.scale[face]), self.centre[face], depth)


def average_states(states: Sequence[FitState]) -> FitState:
    """The mean pose and shape of B faces in several fits; the cameras of the first."""
    u, _, vt = np.linalg.svd(np.mean([state.rotation for state in states], axis=0))
    turn = np.ones((len(u), 1, 3))
    turn[:, 0, 2] = np.linalg.det(u @ vt)
    face = FaceState(
        np.exp(np.mean([np.log(state.scale) for state in states], axis=0)),
        (u * turn) @ vt,
        np.mean([state.centre for state in states], axis=0),
        np.mean([state.coefficients for state in states], axis=0),
    )
    return FitState.of(face, states[0].inverse_depth)


@dataclass(frozen=True)
class FitModel:
    """The tables of a morphable model and its anchors that fitting needs, cut out once.

    A state's coefficients are *latent*: standard normal under the model's prior, the P directions
    that move the anchors most under it. They are fewer than the model's own coefficients, which
    follow from them linearly.
    """

    model: MorphableModel
    config: FitModelConfig
    anchor_vertex: Integer[Array, " anchors"]
    anchor_mean: Float[Array, "anchors 3"]  # metres, float32
    anchor_basis: Float[Array, "anchors 3 modes"]  # float32
    landmark_triangles: Int[Array, "68 triangles"]  # those at each landmark, some repeated
    landmark_mean: Float[Array, "68 3"]  # metres
    landmark_basis: Float[Array, "68 3 modes"]
    mesh_basis: Float[Array, "modes vertexcoordinates"]  # float32
    modes: Float[Array, "modes coefficients"]  # the model's coefficients of each latent direction
    size: float  # metres: geometric mean of the sides of the frontal landmark box

    @cached_property
    def in_crease(self) -> Bools:
        """(68,) landmarks whose triangles all face away even from a frontal camera."""
        return largest_cosines(self.model.template, self.model.faces, self.landmark_triangles) < 0.0

    @cached_property
    def anchor_weight(self) -> Floats:
        """(A,) weight of each anchor when a fit is refined."""
        regions = _present(self.model, self.config.peripheral_regions)
        peripheral = np.isin(
            self.anchor_vertex, self.model.faces[self.model.find_triangles(*regions)]
        )
        more = (self.config.lip_weight - 1.0) * self._nearness(range(68)[MOUTH])
        return np.where(peripheral, self.config.peripheral_weight, 1.0) + more

    @cached_property
    def lower_lip(self) -> Floats:
        """(A,) how near each anchor is to the lower lip, 0 to 1; zeros for a model without a jaw.

        Distances are those on the face with an open jaw, which separates the lips.
        """
        return self._nearness(LOWER_LIP_POINTS)

    def _nearness(self, points: Sequence[int]) -> Floats:
        """(A,) as ``lower_lip``, to the landmarks ``points`` of the mouth."""
        model, config = self.model, self.config
        if JAW_OPEN not in model.expression_names:
            return np.zeros(len(self.anchor_vertex))
        jaw = model.expression[model.expression_names.index(JAW_OPEN)]
        opened = (model.template + config.open_jaw * jaw).astype(np.float64)
        lip = opened[model.landmarks.vertex[list(points)]]
        square = ((opened[self.anchor_vertex, None] - lip) ** 2).sum(2).min(1)
        near = np.exp(-0.5 * square / config.lip_reach**2)
        return np.where(near < 0.01, 0.0, near)

    @cached_property
    def lower_lip_anchors(self) -> Ints:
        """(N,) the anchors that belong to the lower lip."""
        return np.flatnonzero(self.lower_lip)

    @cached_property
    def contour_edges(self) -> Ints:
        """(E, 2) int32 vertices of the edges that an occluding contour may cross."""
        regions = _present(self.model, self.config.contour_regions)
        triangles = self.model.find_triangles(*regions)
        return unique_edges(self.model.faces[triangles]).astype(np.int32)

    @cached_property
    def outer(self) -> OuterMesh:
        """The part of the mesh on which visibility depends, with ``moving_modes`` directions."""
        return cut_outer_mesh(
            self.model,
            self.mesh_basis[: self.moving_modes],
            _present(self.model, self.config.inner_regions),
            anchors=self.anchor_vertex,
            landmark_triangles=self.landmark_triangles,
            edges=self.contour_edges,
        )

    @cached_property
    def vertex_basis(self) -> Floats:
        """(V, 3, P) float32."""
        by_axis = self.mesh_basis.reshape(len(self.mesh_basis), -1, 3)
        return np.ascontiguousarray(np.moveaxis(by_axis, 0, 2))

    @cached_property
    def moving_modes(self) -> int:
        """The number of first latent directions beyond which none moves the mesh."""
        moving = np.flatnonzero(self.mesh_basis.any(1))
        return int(moving[-1]) + 1 if len(moving) else 0

    @cached_property
    def mirrored_latents(self) -> Floats:
        """(P, P) matrix: a face's latent row times it is nearest to that of the mirrored face.

        Latent directions that don't move the mesh have zeros.
        """
        count = self.moving_modes
        basis = self.mesh_basis[:count].reshape(count, -1, 3).astype(np.float64)
        other = basis[:, self.model.mirror] * np.array([-1.0, 1.0, 1.0])
        flat, turned = basis.reshape(count, -1), other.reshape(count, -1)
        out = np.zeros((len(self.modes),) * 2)
        out[:count, :count] = np.linalg.solve(flat @ flat.T, flat @ turned.T).T
        return out

    @cached_property
    def template(self) -> Floats:
        """(V, 3) metres, float64."""
        return self.model.template.astype(np.float64)

    @cached_property
    def double_anchor_basis(self) -> Floats:
        """(A, 3, P) float64: predictions in single precision depend on the order of a batch."""
        return self.anchor_basis.astype(np.float64)

    @cached_property
    def rigid_basis(self) -> Floats:
        """(A, 3, 0): the basis of the anchors of the rigid mean face."""
        return self.anchor_basis[:, :, :0]

    def face_size(self, state: FaceState) -> Floats:
        """(B,) pixels."""
        return state.scale * self.size

    def vertices(self, state: FaceState) -> Floats:
        """(B, V, 3) metres in the head frame."""
        count = self.moving_modes
        offset = state.coefficients[:, :count].astype(np.float32) @ self.mesh_basis[:count]
        return np.asarray(self.template + offset.reshape(len(offset), -1, 3))

    @cached_property
    def used_basis(self) -> Floats:
        """(P, 3 U) float32: ``mesh_basis`` of the vertices that ``LandmarkTable.used`` names."""
        by_vertex = self.mesh_basis.reshape(len(self.mesh_basis), -1, 3)
        used = by_vertex[: self.moving_modes, self.model.landmarks.used]
        return np.ascontiguousarray(used.reshape(len(used), -1))

    @cached_property
    def used_expression_basis(self) -> Floats:
        """(E, 3 U) float32: the model's expressions of the same vertices."""
        used = self.model.expression[:, self.model.landmarks.used].astype(np.float32)
        return np.ascontiguousarray(used.reshape(len(used), -1))

    def used_vertices(self, coefficients: Floats, expression: Floats) -> Floats:
        """(U, 3) metres in the head frame of a face of (P,) latent ``coefficients``.

        (E,) ``expression``: activations added to them.
        """
        offset = coefficients[: self.moving_modes].astype(np.float32) @ self.used_basis
        offset += expression.astype(np.float32) @ self.used_expression_basis
        return np.asarray(self.model.used_template + offset.reshape(-1, 3))

    def landmarks(self, state: FitState, moved: Floats | None = None) -> Floats:
        """(B, 68, 2) pixels, 3D scheme; ``moved``: by (B, 68, 2) metres right and down."""
        basis = self.landmark_basis.reshape(-1, self.landmark_basis.shape[2])
        out = np.empty((len(state.scale), len(self.landmark_mean), 2))
        _place_landmarks(
            self.landmark_mean,
            basis,
            np.ascontiguousarray(state.coefficients, np.float64),
            np.zeros((len(out), 0, 2)) if moved is None else moved,
            state.scale,
            state.rotation,
            state.centre,
            state.inverse_depth,
            out,
        )
        return out

    def anchors(self, state: FitState) -> Floats:
        """(B, A, 2) pixels."""
        points = evaluate_shape(self.anchor_mean, self.double_anchor_basis, state.coefficients)
        return project(state, points, state.inverse_depth)

    def latent(self, coefficients: Coefficients) -> Floats:
        """(P,) the nearest latent row, coefficients measured in their own standard deviations."""
        prior = prior_sd(self.model)
        # In these units the rows of ``modes`` are orthonormal.
        return np.asarray((self.modes / prior) @ (coefficients.joined / prior))

    def coefficients(self, latent: Floats) -> Coefficients:
        """The model's coefficients of one (P,) latent row."""
        both = latent @ self.modes
        k = len(self.model.identity)
        return Coefficients(both[:k], both[k:])

    def with_anchors(self, rows: Ints, mean: Floats) -> Self:
        """The fit model of some of the anchors, whose (N, 3) ``mean`` may differ."""
        return replace(
            self,
            anchor_vertex=self.anchor_vertex[rows],
            anchor_mean=mean,
            anchor_basis=self.anchor_basis[rows],
        )

    def as_annotated(self, landmark_offsets: LandmarkOffsets) -> Self:
        """The fit model whose landmarks lie where annotators of the 3D scheme put them.

        What depends on the pose is left to ``landmarks``.
        """
        if landmark_offsets.none:
            return self
        scheme = SCHEMES.index("3d")
        mean, basis = self.landmark_mean + landmark_offsets.offset[scheme], self.landmark_basis
        if landmark_offsets.response.shape[3]:
            basis = basis + landmark_offsets.response[scheme] @ self.modes.T
        return replace(self, landmark_mean=mean, landmark_basis=basis)

    def state_in_boxes(self, boxes: Sequence[Box], inverse_depth: float) -> FitState:
        """The mean face, looking ahead, with its landmark box about each of B boxes."""
        frontal = self._frontal_boxes.get(inverse_depth)
        if frontal is None:
            none = np.zeros((1, len(self.modes)))
            ahead = FaceState(np.ones(1), CAM_FROM_FRONTAL_HEAD[None], np.zeros((1, 2)), none)
            frontal = Box.around(self.landmarks(FitState.of(ahead, inverse_depth))[0])
            self._frontal_boxes[inverse_depth] = frontal
        scale = np.array([box.size for box in boxes]) / frontal.size
        centre = np.array([box.centre for box in boxes]) - scale[:, None] * frontal.centre
        rotation = np.repeat(CAM_FROM_FRONTAL_HEAD[None], len(boxes), axis=0)
        face = FaceState(scale, rotation, centre, np.zeros((len(boxes), len(self.modes))))
        return FitState.of(face, inverse_depth)

    def mean_faces(self, poses: Sequence[FaceState], inverse_depth: float) -> FitState:
        """The mean face in each of these poses of one face."""
        scale, rotation, centre = (
            np.concatenate([getattr(pose, name) for pose in poses])
            for name in ("scale", "rotation", "centre")
        )
        face = FaceState(scale, rotation, centre, np.zeros((len(poses), len(self.modes))))
        return FitState.of(face, inverse_depth)

    @cached_property
    def _frontal_boxes(self) -> dict[float, Box]:
        """Landmark boxes of the mean face, looking ahead at scale 1, by inverse depth so far."""
        return {}

    def state_of_alignments(self, faces: Sequence[Alignment], inverse_depth: float) -> FitState:
        """The state of B alignments, which may come from another fit model of this face model."""
        face = FaceState(
            np.array([face.camera.scale for face in faces]),
            np.stack([face.cam_from_head.rotation for face in faces]),
            np.stack([face.camera.centre for face in faces]),
            np.stack([self.latent(face.coefficients) for face in faces]),
        )
        return FitState.of(face, inverse_depth)


@dataclass(frozen=True)
class PersonFitModel(FitModel):
    """The fit model of several photos of one person.

    Of the latent directions the first ``identities`` are the model's identities, the next
    ``deformations`` form the residual deformation, which no identity of the model has, and the rest
    are expressions. The photos share the first two kinds. ``modes`` of deformations are zero.
    """

    identities: int
    deformations: int

    @property
    def shared(self) -> int:
        """The number of latent coefficients that all photos share; they come first."""
        return self.identities + self.deformations


@numba.njit(cache=CACHE, nogil=True)
def _place_landmarks(  # type: ignore[no-untyped-def]
    mean, basis, coefficients, moved, scale, rotation, centre, inverse_depth, out
):
    """Fill ``FitModel.landmarks``; (L, 3) ``mean``, (3 L, P) ``basis``, ``moved`` or none."""
    p = np.empty(3)
    for i in range(len(out)):
        shape = np.dot(basis, coefficients[i])
        turn = rotation[i]
        for n in range(len(mean)):
            for c in range(3):
                p[c] = mean[n, c] + shape[3 * n + c]
            if moved.shape[1]:
                for c in range(3):
                    p[c] += moved[i, n, 0] * turn[0, c] + moved[i, n, 1] * turn[1, c]
            away = turn[2, 0] * p[0] + turn[2, 1] * p[1] + turn[2, 2] * p[2]
            wide = scale[i] / (1.0 + inverse_depth[i] * away)
            for axis in range(2):
                seen = turn[axis, 0] * p[0] + turn[axis, 1] * p[1] + turn[axis, 2] * p[2]
                out[i, n, axis] = seen * wide + centre[i, axis]


def prior_sd(model: MorphableModel) -> Floats:
    """(K + E,) standard deviations of a model's coefficients."""
    return np.concatenate([np.ones(len(model.identity)), model.expression_sd.astype(np.float64)])


def build_fit_model(
    model: MorphableModel, anchors: Anchors, config: FitModelConfig, *, both_sides: bool = False
) -> FitModel:
    """The fit model whose latent directions move the anchors most under the model's prior.

    ``both_sides``: every table of anchors is followed by that of their counterparts on the other
    side of the face, to which observations of mirrored photos are matched.
    """
    prior = prior_sd(model)
    both = np.concatenate([model.identity, model.expression]).astype(np.float32)
    at_anchors = both[:, anchors.vertex].reshape(len(both), -1) * prior[:, None]
    modes = principal_directions(at_anchors)[: config.modes] * prior
    return build_fit_model_from_modes(model, anchors, modes, config, both_sides=both_sides)


def add_match_errors(fit_model: FitModel, error_fields: Floats, *, pooled: bool = True) -> FitModel:
    """The fit model with latent directions that move its anchors but not the face.

    (A, 3, K) ``error_fields`` of ``Anchors``. In a fit model of both sides, mirrored observations
    have directions of their own if they are ``pooled`` with others, or else the same K latent
    coefficients, the last ones, are the errors of one observation.
    """
    count, _, fields = error_fields.shape
    if fields == 0:
        return fit_model
    moved = [error_fields]
    if len(fit_model.anchor_vertex) == 2 * count:
        moved.append(error_fields * np.array([-1.0, 1.0, 1.0])[:, None])
    extra = len(moved) * fields if pooled else fields
    anchor = np.zeros((len(fit_model.anchor_vertex), 3, extra), np.float32)
    for side, part in enumerate(moved):
        first = side * fields if pooled else 0
        anchor[side * count : (side + 1) * count, :, first : first + fields] = part

    def none(*shape: int, like: Floats) -> Floats:
        return np.zeros(shape, like.dtype)

    landmark, mesh, modes = fit_model.landmark_basis, fit_model.mesh_basis, fit_model.modes
    return replace(
        fit_model,
        anchor_basis=np.ascontiguousarray(np.concatenate([fit_model.anchor_basis, anchor], 2)),
        landmark_basis=np.concatenate([landmark, none(68, 3, extra, like=landmark)], 2),
        mesh_basis=np.concatenate([mesh, none(extra, mesh.shape[1], like=mesh)]),
        modes=np.concatenate([modes, none(extra, modes.shape[1], like=modes)]),
    )


def principal_directions(rows: Floats) -> Floats:
    """(K, K) left singular vectors of (K, N) ``rows``, by falling singular value.

    They are computed from the Gram matrix, which is small.
    """
    _, vectors = np.linalg.eigh(rows @ rows.T)
    return np.asarray(vectors.T[::-1])


def build_fit_model_from_modes(
    model: MorphableModel,
    anchors: Anchors,
    modes: Floats,
    config: FitModelConfig,
    *,
    both_sides: bool = False,
) -> FitModel:
    """The fit model of (P, K + E) latent directions; ``both_sides`` as in ``build_fit_model``."""
    vertex = anchors.vertex
    if both_sides:
        vertex = np.concatenate([vertex, model.mirror[vertex]])
    both = np.concatenate([model.identity, model.expression]).astype(np.float32)
    mesh_basis = (modes.astype(np.float32) @ both.reshape(len(both), -1)).astype(np.float32)
    by_vertex = np.moveaxis(mesh_basis.reshape(len(modes), -1, 3), 0, 2)
    return FitModel(
        model=model,
        config=config,
        anchor_vertex=vertex,
        anchor_mean=model.template[vertex].astype(np.float32),
        anchor_basis=np.ascontiguousarray(by_vertex[vertex]),
        landmark_triangles=_triangles_at(model.faces, model.landmarks.vertex),
        landmark_mean=model.template[model.landmarks.vertex].astype(np.float64),
        landmark_basis=by_vertex[model.landmarks.vertex].astype(np.float64),
        mesh_basis=mesh_basis,
        modes=modes,
        size=Box.around(model.template[model.landmarks.vertex][:, :2]).size,
    )


def extend_to_person(
    fit_model: FitModel, deformations: Floats, *, identities: int
) -> PersonFitModel:
    """A fit model whose modes after the first ``identities`` are (M, V, 3) deformations instead.

    Metres for one standard deviation. The modes that they replace are zero in ``fit_model``.
    """
    shared = slice(identities, identities + len(deformations))
    mesh_basis = fit_model.mesh_basis.copy()
    mesh_basis[shared] = deformations.reshape(len(deformations), mesh_basis.shape[1])
    tables = {field.name: getattr(fit_model, field.name) for field in fields(fit_model)}
    tables["mesh_basis"] = mesh_basis
    for name, vertex in (
        ("anchor_basis", fit_model.anchor_vertex),
        ("landmark_basis", fit_model.model.landmarks.vertex),
    ):
        tables[name] = tables[name].copy()
        tables[name][..., shared] = np.moveaxis(deformations[:, vertex], 0, 2)
    return PersonFitModel(**tables, identities=identities, deformations=len(deformations))


def largest_cosines(
    vertices: Floats, faces: Ints, triangles: Ints, *, towards: float = 1.0
) -> Floats:
    """(N,) largest cosine between the z axis times ``towards`` and the normals of (N, T) rows."""
    out = np.empty(len(triangles))
    fill_largest_cosines(vertices, faces, triangles, towards, out)
    return out


@numba.njit(cache=CACHE, nogil=True)
def fill_largest_cosines(vertices, faces, triangles, towards, out):  # type: ignore[no-untyped-def]
    """Fill (N,) ``out`` with what ``largest_cosines`` returns."""
    for n in range(len(triangles)):
        best = -1.0
        for f in triangles[n]:
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            ax, bx = vertices[j, 0] - vertices[i, 0], vertices[k, 0] - vertices[i, 0]
            ay, by = vertices[j, 1] - vertices[i, 1], vertices[k, 1] - vertices[i, 1]
            az, bz = vertices[j, 2] - vertices[i, 2], vertices[k, 2] - vertices[i, 2]
            x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
            length = max(np.sqrt(x * x + y * y + z * z), 1e-12)
            best = max(best, towards * z / length)
        out[n] = best


def _present(model: MorphableModel, regions: Sequence[str]) -> list[str]:
    return [name for name in regions if name in model.region_names]


def _triangles_at(faces: Ints, vertices: Ints) -> Ints:
    """(N, T) triangles that meet each of (N,) vertices; where there are fewer the first repeats."""
    some = np.flatnonzero(np.isin(faces, vertices).any(1))  # few, and all that meet any
    corners = faces[some]
    meeting = [some[(corners == vertex).any(1)] for vertex in vertices]
    most = max(len(few) for few in meeting)
    return np.stack([np.concatenate([few, np.full(most - len(few), few[0])]) for few in meeting])
