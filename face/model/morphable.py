"""A 3D morphable face model: coefficients to vertices, with its priors and tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dff.face.arrays import Array, Float, Floats, Integer, Ints
from dff.face.geometry.mesh import SurfacePoints
from dff.face.model.deformation import smooth_fields
from dff.face.model.landmarks import NOSE_TIP, LandmarkTable


@dataclass(frozen=True)
class DeformationScale:
    """One scale of the residual deformations: a Gaussian process on a part of the template."""

    deviation: float  # metres, standard deviation at the middle
    reach: float  # metres, standard deviation of the covariance's Gaussian
    places: int  # vertices from which the functions are found (Nyström)
    functions: int  # of each parity
    within: float  # metres from the nose tip; vertices further off don't take part


COARSE = DeformationScale(0.003, 0.05, 600, 16, np.inf)  # the whole head
FINE = DeformationScale(0.0015, 0.02, 900, 64, 0.11)  # the face: bridge of the nose, chin, brows
ASYMMETRY = 0.35  # deviation of the asymmetric part of a deformation over the symmetric part's


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of a face in a model. Raises ValueError when they are not finite."""

    identity: Float[Array, " identities"]  # standard deviations
    expression: Float[Array, " expressions"]  # activations: 0 neutral, 1 the full unit
    # standard deviations of the model's ``deformations``
    deformation: Float[Array, " deformations"] = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        for name in ("identity", "expression", "deformation"):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.ndim != 1 or not np.isfinite(value).all():
                raise ValueError(f"Coefficients.{name} must be one finite row")
            object.__setattr__(self, name, value)

    @property
    def joined(self) -> Floats:
        """(K + E,) identity, then expression."""
        return np.concatenate([self.identity, self.expression])


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a key of caches
class MorphableModel:
    """A linear face model in the ``head`` frame, in metres.

    vertices = template + identity coefficients @ identity + expression coefficients @ expression
    (Blanz and Vetter 1999; expression units as in FACS / ARKit). Raises ValueError when tables
    disagree.
    """

    name: str
    licence: str  # SPDX name or the licence's own
    provenance: str  # sources and how the model was made, for people
    template: Float[Array, "vertices 3"]  # metres
    identity: Float[Array, "identities vertices 3"]  # metres of one standard deviation
    expression: Float[Array, "expressions vertices 3"]  # metres at full activation
    expression_names: tuple[str, ...]
    expression_sd: Float[Array, " expressions"]  # prior standard deviation of each activation
    faces: Integer[Array, "faces 3"]  # int32, counter-clockwise from outside
    uv: Float[Array, "texture_vertices 2"]  # in [0, 1]: u right, v down the texture image
    uv_faces: Integer[Array, "faces 3"]  # int32 rows of uv
    region: Integer[Array, " faces"]  # rows of region_names
    region_names: tuple[str, ...]
    landmarks: LandmarkTable
    mirror: Integer[Array, " vertices"] = field(repr=False)  # vertex at the mirrored place

    def __post_init__(self) -> None:
        v = len(self.template)
        if self.identity.shape[1:] != (v, 3) or self.expression.shape[1:] != (v, 3):
            raise ValueError("basis and template disagree about the vertices")
        if len(self.expression_names) != len(self.expression) or len(self.expression_sd) != len(
            self.expression
        ):
            raise ValueError("expression names, prior and basis disagree")
        if self.faces.shape != self.uv_faces.shape or len(self.region) != len(self.faces):
            raise ValueError("triangles, uv triangles and regions disagree")
        if self.faces.min() < 0 or self.faces.max() >= v or self.mirror.shape != (v,):
            raise ValueError("a triangle or mirror entry names no vertex")

    def vertices(self, coefficients: Coefficients) -> Floats:
        """(V, 3) metres in ``head``; fewer coefficients than modes leave the rest at zero.

        Raises ValueError for more coefficients than modes.
        """
        identity, deformation = coefficients.identity, coefficients.deformation
        k, m, e = len(identity), len(deformation), len(coefficients.expression)
        if k > len(self.identity) or e > len(self.expression) or (m and m > len(self.deformations)):
            modes = f"{len(self.identity)} + {len(self.deformations)} + {len(self.expression)}"
            raise ValueError(f"{self.name} has {modes} modes, got {k} + {m} + {e}")
        out = self.template.astype(np.float64).ravel()
        dtype = self.identity.dtype
        out = out + identity.astype(dtype) @ self.identity[:k].reshape(k, out.size)
        if m:
            out = out + deformation.astype(dtype) @ self.deformations[:m].reshape(m, out.size)
        return np.asarray(out.reshape(-1, 3) + self.motion(coefficients.expression))

    def pack_identity(self, coefficients: Coefficients) -> Floats:
        """The row that datasets store: the identity; then, if there is one, the deformation.

        An identity with fewer coefficients than modes is filled with zeros before a deformation.
        """
        identity, deformation = coefficients.identity, coefficients.deformation
        if len(deformation) == 0:
            return identity
        missing = len(self.identity) - len(identity)
        return np.concatenate([identity, np.zeros(missing), deformation])

    def unpack_identity(self, stored: Floats, expression: Floats) -> Coefficients:
        """The coefficients of a row of ``pack_identity``, with an ``expression``."""
        identity, deformation = np.split(stored, [len(self.identity)])
        return Coefficients(identity, expression, deformation)

    @cached_property
    def used_template(self) -> Floats:
        """(U, 3) metres, float64: the vertices that ``LandmarkTable.used`` names."""
        return self.template[self.landmarks.used].astype(np.float64)

    @cached_property
    def deformations(self) -> Floats:
        """(M, V, 3) metres per standard deviation: smooth displacements outside the identity modes.

        Two Gaussian processes over the template (``dff.face.model.deformation``), mostly symmetric:
        a coarse one of the whole head and a fine one of the face. The fine one is needed for other
        models' noses and chins: fitted to ICT-FaceKit's people, the root mean square of the coarse
        coefficients is 3.9 without it, and 1.0 beside 1.6 for the fine ones. The deviations along y
        and z fall to three quarters at the sides.
        """
        tip = self.template[self.landmarks.vertex[NOSE_TIP]]
        away = np.linalg.norm(self.template - tip, axis=1)
        out = []
        for scale in (COARSE, FINE):
            among = np.flatnonzero(away < scale.within)
            places = np.linspace(0, len(among) - 1, min(scale.places, len(among)))
            vertex = among[places.astype(np.int64)]
            for parity in (1, -1):
                fields = scale.deviation * smooth_fields(
                    self.template, vertex, reach=scale.reach, count=scale.functions, parity=parity
                )
                # A symmetric deformation is odd in x, and even in y and z.
                axes = np.diag([ASYMMETRY, 1.0, 1.0] if parity > 0 else [1.0, ASYMMETRY, ASYMMETRY])
                out.append(
                    np.einsum("fv,cd->fcvd", fields, axes).reshape(-1, len(self.template), 3)
                )
        return np.concatenate(out).astype(self.identity.dtype)

    def motion(self, expression: Floats) -> Floats:
        """(V, 3) metres of displacement by (E,) activations.

        Units of activation zero, most of them, are not read: the basis exceeds a processor's cache.
        """
        used = np.flatnonzero(expression)
        basis = self.expression[used].reshape(len(used), self.template.size)
        return np.asarray((expression[used].astype(basis.dtype) @ basis).reshape(-1, 3))

    def neutral(self) -> Coefficients:
        """The mean face at rest."""
        return Coefficients(np.zeros(len(self.identity)), np.zeros(len(self.expression)))

    def find_triangles(self, *regions: str) -> Ints:
        """(N,) triangles of the named regions. Raises ValueError for an unknown name."""
        missing = set(regions) - set(self.region_names)
        if missing:
            raise ValueError(
                f"{self.name} has no region {sorted(missing)}; it has {self.region_names}"
            )
        return np.flatnonzero(np.isin(self.region, [self.region_names.index(r) for r in regions]))

    def basis_at(
        self, points: SurfacePoints, identities: int, expressions: int
    ) -> tuple[Floats, Floats]:
        """(N, 3) mean and (N, 3, K + E) linear basis of (N,) surface points, float64 metres."""
        corners = self.faces[points.triangle]
        w = points.barycentric
        mean = np.einsum("nk,nkc->nc", w, self.template[corners])
        ids = np.einsum("nk,mnkc->ncm", w, self.identity[:identities][:, corners])
        exps = np.einsum("nk,mnkc->ncm", w, self.expression[:expressions][:, corners])
        return mean.astype(np.float64), np.concatenate([ids, exps], axis=2).astype(np.float64)

    def basis_of_vertices(
        self, vertices: Ints, identities: int, expressions: int
    ) -> tuple[Floats, Floats]:
        """(N, 3) mean and (N, 3, K + E) linear basis of (N,) vertices, float64 metres."""
        ids = np.moveaxis(self.identity[:identities][:, vertices], 0, 2)
        exps = np.moveaxis(self.expression[:expressions][:, vertices], 0, 2)
        basis = np.concatenate([ids, exps], axis=2).astype(np.float64)
        return self.template[vertices].astype(np.float64), basis
