"""Photometric residuals of a face model at points of its surface, their Jacobian, light and albedo.

The colour of a surface point is ``albedo(point) * shade(normal)``; its residual is the photo's
colour where the point projects minus that. Colours are the image's own values in 0 to 1. The photo
is sampled bilinearly and the samples are differentiated exactly. Normals depend on pose and shape
(shape from shading): near a shape they are linearised in its coefficients, with the derivatives of
the template's normals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from dff.face.arrays import Array, Bools, Float, Floats, Integer, Ints
from dff.face.geometry.interpolation import bilinear_with_gradient
from dff.face.geometry.lighting import ambient, basis, basis_gradient
from dff.face.geometry.mesh import SurfacePoints, triangle_normals, vertex_normals
from dff.face.geometry.transform import skew
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import MorphableModel
from dff.face.numba_cache import CACHE
from dff.face.solve import gauss_newton as fit
from dff.face.solve.robust import robust_weights

SKIN = ("face", "lips", "brows")
LIGHT_SD = 0.5  # of the coefficients of order one and two, where the mean level is one
MODES = 32  # whose derivatives are computed at a time: hundreds would take 300 MB
LIGHT_TINT_SD = 0.15  # of the difference of one colour channel from the mean of the three


@dataclass(frozen=True)
class FaceAppearance:
    """The parameters of a rendered face: pose and shape, albedo, light."""

    face: fit.FaceState  # a batch of one, in crop pixels
    albedo: Float[Array, " albedos"]  # standard deviations
    light: Float[Array, "9 3"]  # spherical harmonics by RGB


@dataclass(frozen=True)
class Normals:
    """Unit normals of samples in ``head``, linearised about a shape."""

    exact: Float[Array, "samples 3"]  # float32, at ``shape``
    shape: Float[Array, " coefficients"]
    # float32 derivatives by the coefficients, before normalisation
    slope: Float[Array, "samples 3 coefficients"]

    def at(self, shape: Floats) -> tuple[Floats, Floats]:
        """(N, 3) float32 unit normals for (P,) ``shape``, and (N, 1) lengths before normalising."""
        change = (shape - self.shape).astype(np.float32)
        moved = self.exact + (self.slope.reshape(-1, len(change)) @ change).reshape(-1, 3)
        length = np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-9)
        return moved / length, length


@dataclass(frozen=True)
class SkinSamples:
    """Points of the skin, spread evenly over the template, with their shape and albedo models.

    The ring is the skin with its neighbouring triangles, which also decide its normals.
    """

    points: SurfacePoints  # (samples,)
    mean: Float[Array, "samples 3"]  # metres
    basis: Float[Array, "3 samples coefficients"]  # metres
    albedo_mean: Float[Array, "samples 3"]
    albedo_basis: Float[Array, "albedos samples 3"]
    ring_faces: Integer[Array, "triangles 3"]  # rows of the ring's vertices
    ring_mean: Float[Array, "vertices 3"]  # metres
    ring_basis: Float[Array, "coordinates coefficients"]  # metres; x, y, z of each vertex
    corners: Integer[Array, "samples 3"]  # of the points' triangles, rows of the ring's vertices
    # derivatives of the template's unit normals by the coefficients
    normal_derivatives: Float[Array, "samples 3 coefficients"]

    def normals(self, coefficients: Floats) -> Floats:
        """(N, 3) unit normals in ``head`` of a shape's (P,) coefficients."""
        moved = self.ring_mean + (self.ring_basis @ coefficients.astype(np.float32)).reshape(-1, 3)
        per_vertex = vertex_normals(moved, self.ring_faces)
        normal = np.einsum("nk,nkc->nc", self.points.barycentric, per_vertex[self.corners])
        return np.asarray(normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9))

    def colours(self, albedo: Floats) -> Floats:
        """(N, 3) albedo of (A,) coefficients."""
        return self.albedo_mean + np.tensordot(albedo.astype(np.float32), self.albedo_basis, axes=1)

    def chosen(self, rows: Bools | Ints) -> SkinSamples:
        """The samples at ``rows``."""
        return SkinSamples(
            SurfacePoints(self.points.triangle[rows], self.points.barycentric[rows]),
            self.mean[rows],
            self.basis[:, rows],
            self.albedo_mean[rows],
            self.albedo_basis[:, rows],
            self.ring_faces,
            self.ring_mean,
            self.ring_basis,
            self.corners[rows],
            self.normal_derivatives[rows],
        )


def skin_triangles(model: MorphableModel) -> Ints:
    """(T,) triangles of face, lips and brows; all triangles of a model that names none of them."""
    named = [name for name in SKIN if name in model.region_names]
    return model.find_triangles(*named) if named else np.arange(len(model.faces))


def spread_points(model: MorphableModel, triangles: Ints, count: int) -> SurfacePoints:
    """``count`` points spread evenly over the template's ``triangles``, without randomness."""
    area = np.linalg.norm(triangle_normals(model.template, model.faces[triangles]), axis=1)
    edges = np.cumsum(area) / area.sum()
    triangle = triangles[
        np.minimum(np.searchsorted(edges, (np.arange(count) + 0.5) / count), len(triangles) - 1)
    ]
    # Low-discrepancy barycentrics: Roberts' R2 sequence folded into the triangle.
    uv = (np.arange(count)[:, None] * np.array([0.7548776662466927, 0.5698402909980532])) % 1.0
    uv = np.where(uv.sum(1, keepdims=True) > 1.0, 1.0 - uv, uv)
    return SurfacePoints(triangle, np.column_stack([1.0 - uv.sum(1), uv]))


def skin_samples(
    model: MorphableModel, albedo: AlbedoModel, *, identities: int, expressions: int, count: int
) -> SkinSamples:
    """``count`` points spread evenly over the template's skin, without randomness."""
    triangles = skin_triangles(model)
    points = spread_points(model, triangles, count)
    mean, modes = model.basis_at(points, identities, expressions)

    vertices = np.zeros(len(model.template), dtype=bool)
    vertices[model.faces[triangles]] = True
    ring = model.faces[
        vertices[model.faces].any(axis=1)
    ]  # with its neighbours, which share in its normals
    used, compact = np.unique(ring, return_inverse=True)
    ring_mean, ring_basis = model.basis_of_vertices(used, identities, expressions)

    compact = compact.reshape(ring.shape)
    corners = np.searchsorted(used, model.faces[points.triangle])
    colour_mean, colour_basis = albedo.at(points.of(model.uv, model.uv_faces))
    return SkinSamples(
        points,
        mean.astype(np.float32),
        np.ascontiguousarray(np.moveaxis(modes, 1, 0), dtype=np.float32),
        colour_mean.astype(np.float32),
        colour_basis.astype(np.float32),
        compact,
        ring_mean.astype(np.float32),
        ring_basis.reshape(3 * len(ring_mean), identities + expressions).astype(np.float32),
        corners,
        normal_derivatives(ring_mean, ring_basis, compact, corners, points.barycentric),
    )


def normal_derivatives(
    mean: Floats, modes: Floats, faces: Ints, corners: Ints, barycentric: Floats
) -> Floats:
    """(N, 3, P) float32 derivatives of interpolated unit normals by the coefficients.

    The vertices are (R, 3) ``mean`` with (R, 3, P) ``modes``.
    """
    a, b, c = (mean[faces[:, i]] for i in range(3))
    first, second = b - a, c - a
    total = _sum_at_vertices(np.cross(first, second), faces, len(mean))
    length = np.maximum(np.linalg.norm(total, axis=1), 1e-12)[:, None, None]
    unit = total / length[..., 0]
    between = np.einsum("nk,nkc->nc", barycentric, unit[corners])
    reach = np.linalg.norm(between, axis=1)[:, None, None]
    between /= reach[..., 0]
    out = np.empty((len(corners), 3, modes.shape[2]), dtype=np.float32)
    for begin in range(0, modes.shape[2], MODES):
        some = slice(begin, begin + MODES)
        da, db, dc = (modes[faces[:, i], :, some] for i in range(3))
        change = np.cross(db - da, second[..., None], axis=1) + np.cross(
            first[..., None], dc - da, axis=1
        )
        slope = _across(_sum_at_vertices(change, faces, len(mean)), unit) / length
        turned = sum(barycentric[:, k, None, None] * slope[corners[:, k]] for k in range(3))
        out[..., some] = _across(turned, between) / reach
    return out


def _sum_at_vertices(values: Floats, faces: Ints, count: int) -> Floats:
    """(count, ...) sums of (F, ...) values of triangles at their vertices."""
    total = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
    _add_at_vertices(values.reshape(len(values), -1), faces, total.reshape(count, -1))
    return total


@numba.njit(cache=CACHE, nogil=True)
def _add_at_vertices(values, faces, total):  # type: ignore[no-untyped-def]
    """Add (F, N) values of triangles to those of their vertices; ``np.add.at`` is slower."""
    for corner in range(3):
        for f in range(len(faces)):
            v = faces[f, corner]
            for n in range(values.shape[1]):
                total[v, n] += values[f, n]


def _across(vectors: Floats, unit: Floats) -> Floats:
    """The parts of (N, 3, P) vectors that are perpendicular to (N, 3) unit vectors."""
    along = np.einsum("nx,nxp->np", unit, vectors)
    return np.asarray(vectors - unit[..., None] * along[:, None])


def turned(samples: SkinSamples, face: fit.FaceState) -> Floats:
    """(N, 3) float32 samples in ``cam``, whose origin is the head's."""
    shape = face.coefficients[0].astype(np.float32)
    head = samples.mean + np.stack([axis @ shape for axis in samples.basis], axis=1)
    return np.asarray(head @ face.rotation[0].T.astype(np.float32))


def projected(points_cam: Floats, face: fit.FaceState) -> Floats:
    """(N, 2) pixels of (N, 3) points in ``cam``."""
    return np.asarray(points_cam[:, :2] * face.scale[0] + face.centre[0])


def residuals(
    samples: SkinSamples, scene: FaceAppearance, image: Floats, normals: Normals
) -> Floats:
    """(N, 3) colours of the (H, W, 3) float32 ``image`` at the samples, minus the rendered ones."""
    seen, _ = bilinear_with_gradient(image, projected(turned(samples, scene.face), scene.face))
    in_head, _ = normals.at(scene.face.coefficients[0])
    harmonics = basis((in_head @ scene.face.rotation[0].T).astype(np.float32))
    return seen - samples.colours(scene.albedo) * np.maximum(
        harmonics @ scene.light.astype(np.float32), 0.0
    )


def residuals_and_jacobian(
    samples: SkinSamples, scene: FaceAppearance, image: Floats, normals: Normals
) -> tuple[Floats, Floats]:
    """``residuals`` and their (N, 3, D) float32 derivatives.

    The columns are those of ``dff.face.solve.gauss_newton.jacobian`` (log scale, rotation vector,
    centre, coefficients), then albedo (A), then light (9 * 3, row by row).
    """
    face = scene.face
    points = turned(samples, face)
    scale = np.float32(face.scale[0])
    seen, gradient = bilinear_with_gradient(image, projected(points, face))
    n, p, a = len(points), samples.basis.shape[2], len(samples.albedo_basis)

    rotation = face.rotation[0].astype(np.float32)
    in_head, length = normals.at(face.coefficients[0])
    normal = in_head @ rotation.T
    harmonics = basis(normal)
    light = scene.light.astype(np.float32)
    shading = harmonics @ light
    lit = shading > 0
    shading = np.maximum(shading, 0.0)
    albedo = samples.colours(scene.albedo)

    out = np.empty((n, 3, fit.POSE + p + a + 27), dtype=np.float32)
    out[:, :, 0] = np.einsum("ncx,nx->nc", gradient, points[:, :2] * scale)
    out[:, :, 1:4] = gradient @ (-skew(points)[:, :2] * scale)
    by_normal = np.einsum("nkx,kc->ncx", basis_gradient(normal), light) * (albedo * lit)[..., None]
    out[:, :, 1:4] -= by_normal @ -skew(normal)
    by_normal -= (by_normal @ normal[..., None]) * normal[:, None]  # a normal keeps its length
    by_normal /= length[:, None]
    out[:, :, 4:6] = gradient
    rows = ((rotation[:2] * scale) @ samples.basis.reshape(3, -1)).reshape(2, n, p)
    np.multiply(gradient[:, :, 0, None], rows[0][:, None], out=out[:, :, 6 : 6 + p])
    out[:, :, 6 : 6 + p] += gradient[:, :, 1, None] * rows[1][:, None]
    out[:, :, 6 : 6 + p] -= (by_normal @ rotation) @ normals.slope
    out[:, :, 6 + p : 6 + p + a] = -shading[..., None] * np.moveaxis(samples.albedo_basis, 0, 2)
    by_light = np.zeros((n, 3, 9, 3), dtype=np.float32)
    for channel in range(3):
        by_light[:, channel, :, channel] = (
            -(albedo[:, channel] * lit[:, channel])[:, None] * harmonics
        )
    out[:, :, 6 + p + a :] = by_light.reshape(n, 3, 27)
    return seen - albedo * shading, out


def light_prior() -> tuple[Floats, Floats]:
    """Mean (27,) and precision (27, 27) of the light, row by row: white and mostly ambient."""
    tint = np.eye(3) - 1.0 / 3.0
    precision = np.zeros((27, 27))
    for row in range(9):
        block = np.eye(3) * 0.5 if row == 0 else np.eye(3) / LIGHT_SD**2 + tint / LIGHT_TINT_SD**2
        precision[3 * row : 3 * row + 3, 3 * row : 3 * row + 3] = block
    return ambient().ravel(), precision


def solve_light(seen: Floats, albedo: Floats, harmonics: Floats, weights: Floats) -> Floats:
    """(9, 3) least-squares light of (N, 3) seen colours.

    With (N, 3) albedo, (N, 9) harmonics and (N,) weights.
    """
    # Not ``least_squares.normal_equations``: the order of these products decides stored bytes.
    mean, precision = light_prior()
    hessian, right = precision.copy(), precision @ mean
    for channel in range(3):
        design = harmonics * albedo[:, channel, None]
        rows = np.arange(channel, 27, 3)
        hessian[np.ix_(rows, rows)] += design.T @ (design * weights[:, None])
        right[rows] += design.T @ (seen[:, channel] * weights)
    return np.asarray(np.linalg.solve(hessian, right).reshape(9, 3))


def solve_albedo(seen: Floats, samples: SkinSamples, shading: Floats, weights: Floats) -> Floats:
    """(A,) least-squares albedo coefficients of (N, 3) seen colours, under their unit prior.

    With (N, 3) shading and (N,) weights.
    """
    # Not ``least_squares.normal_equations``: the order of these products decides stored bytes.
    count = len(samples.albedo_basis)
    root = np.sqrt(weights)[:, None]
    design = (samples.albedo_basis * (shading * root)).reshape(count, -1).astype(np.float64)
    target = ((seen - samples.albedo_mean * shading) * root).ravel()
    return np.asarray(np.linalg.solve(design @ design.T + np.eye(count), design @ target))


def explain_colours(
    samples: SkinSamples,
    seen: Floats,
    normals_cam: Floats,
    *,
    strength: float,
    taus: tuple[float, ...],
    start: tuple[Floats, Floats] | None = None,
) -> tuple[Floats, Floats]:
    """Albedo (A,) and light (9, 3) of (N, 3) seen colours by alternating robust least squares.

    ``strength`` turns squared colour residuals into squared standard deviations, summed over all
    samples; ``taus`` are the scales of the robust loss, one for each round. Without a ``start``
    (albedo, light) the first light is ambient, from the ratio of the medians: occluders of less
    than half of the face change it little.
    """
    harmonics = basis(normals_cam)
    if start is None:
        level = np.median(seen, axis=0) / np.median(samples.albedo_mean, axis=0)
        start = np.zeros(len(samples.albedo_basis)), ambient() * level
    albedo, light = start
    for tau in taus:
        colour, shading = samples.colours(albedo), np.maximum(harmonics @ light, 0.0)
        weights = strength / len(seen) * robust_weights(seen - colour * shading, tau)
        light = solve_light(seen, colour, harmonics, weights)
        albedo = solve_albedo(seen, samples, np.maximum(harmonics @ light, 0.0), weights)
    return albedo, light
