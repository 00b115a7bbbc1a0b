"""Dense correspondence between the templates of two face models.

The moving template is brought onto the fixed one by a similarity, by its landmarks (thin-plate
spline), and then by non-rigid iterative closest points whose displacements are smooth over the
mesh, from stiff to soft. Sources: Bookstein 1989 (thin-plate splines); Amberg, Romdhani and Vetter,
"Optimal Step Nonrigid ICP", 2007.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import sparse
from scipy.sparse.linalg import splu

from dff.face.arrays import Array, Bools, Float, Floats, Integer, Ints
from dff.face.geometry.mesh import SurfacePoints, triangle_normals, unique_edges, vertex_normals
from dff.face.numba_cache import CACHE

CANDIDATES = 12  # triangles that are tried for each point


@dataclass(frozen=True)
class RegistrationConfig:
    """Settings of ``register`` and ``register_similarity``."""

    # of the displacements over the mesh, from stiff to soft, one solve each
    stiffness: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
    reach: float = 0.02  # metres: a closest point further away is not a counterpart
    min_cosine: float = 0.4  # between the normals of a point and its counterpart
    landmark_weight: float = 30.0  # relative to a closest point
    icp_steps: int = 30
    icp_points: int = 800  # of the moving surface, for a similarity
    icp_share: float = 0.8  # of the points, the closest ones, that count in a step


DEFAULT = RegistrationConfig()


@dataclass(frozen=True)
class Surface:
    """A triangle mesh. Raises ValueError when a triangle names no vertex."""

    vertices: Float[Array, "vertices 3"]  # metres
    faces: Integer[Array, "faces 3"]

    def __post_init__(self) -> None:
        if self.faces.size == 0 or self.faces.min() < 0 or self.faces.max() >= len(self.vertices):
            raise ValueError("a surface wants triangles that name its vertices")


@dataclass(frozen=True)
class Similarity:
    """``x -> scale * rotation @ x + translation``."""

    scale: float
    rotation: Float[Array, "3 3"]
    translation: Float[Array, " 3"]  # metres

    def apply(self, points: Floats) -> Floats:
        """(..., 3) moved points."""
        return np.asarray(self.scale * points @ self.rotation.T + self.translation)


def similarity(moving: Floats, fixed: Floats, *, scaled: bool = True) -> Similarity:
    """The least-squares similarity from (N, 3) ``moving`` to (N, 3) ``fixed`` points.

    Source: Umeyama 1991.
    """
    a, b = moving.mean(0), fixed.mean(0)
    u, s, vt = np.linalg.svd((fixed - b).T @ (moving - a))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((s * sign).sum() / ((moving - a) ** 2).sum()) if scaled else 1.0
    return Similarity(scale, rotation, b - scale * rotation @ a)


class Nearest:
    """Closest points on a surface, for many queries."""

    def __init__(self, surface: Surface) -> None:
        from scipy.spatial import cKDTree  # takes a fifth of a second to import

        self.surface = surface
        corners = np.asarray(surface.vertices, np.float64)[surface.faces]
        self._corners = corners
        # Centroids alone would miss large triangles, so corners and edge midpoints are added.
        anchors = [corners.mean(1), *(corners[:, i] for i in range(3))]
        anchors += [(corners[:, i] + corners[:, (i + 1) % 3]) / 2 for i in range(3)]
        self._tree = cKDTree(np.concatenate(anchors))
        self._count = len(surface.faces)
        normal = triangle_normals(surface.vertices, surface.faces)
        self.normals = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-15)

    def __call__(self, points: Floats) -> tuple[SurfacePoints, Floats]:
        """The closest surface points of (N, 3) points, and (N,) their distances in metres."""
        _, near = self._tree.query(points, k=min(CANDIDATES, self._tree.n))
        candidates = np.asarray(near).reshape(len(points), -1) % self._count
        triangle, weights, square = _project(
            np.asarray(points, np.float64), self._corners, candidates
        )
        return SurfacePoints(triangle, weights), np.sqrt(square)


@njit(cache=CACHE)
def _project(points: Floats, corners: Floats, candidates: Ints) -> tuple[Ints, Floats, Floats]:
    """The nearest of (N, K) candidate triangles (F, 3, 3) to each of (N, 3) points.

    Returned are its number, the barycentrics (N, 3) of the closest point on it, and (N,) its
    squared distance.
    """
    number = np.empty(len(points), np.int64)
    weights = np.empty((len(points), 3))
    square = np.full(len(points), np.inf)
    for i in range(len(points)):
        for triangle in candidates[i]:
            a, b, c = corners[triangle, 0], corners[triangle, 1], corners[triangle, 2]
            d00 = d01 = d11 = d20 = d21 = d22 = 0.0  # products of b - a, c - a and the point - a
            for k in range(3):
                ab, ac, ap = b[k] - a[k], c[k] - a[k], points[i, k] - a[k]
                d00, d01, d11 = d00 + ab * ab, d01 + ab * ac, d11 + ac * ac
                d20, d21, d22 = d20 + ap * ab, d21 + ap * ac, d22 + ap * ap
            area = max(d00 * d11 - d01 * d01, 1e-24)
            v, w = (d11 * d20 - d01 * d21) / area, (d00 * d21 - d01 * d20) / area
            t = min(max((d21 - d20 - d01 + d00) / max(d00 - 2.0 * d01 + d11, 1e-24), 0.0), 1.0)
            tries = (
                (v, w),
                (min(max(d20 / max(d00, 1e-24), 0.0), 1.0), 0.0),
                (0.0, min(max(d21 / max(d11, 1e-24), 0.0), 1.0)),
                (1.0 - t, t),
            )
            inside = v >= 0 and w >= 0 and v + w <= 1
            for edge in range(4):
                if inside != (
                    edge == 0
                ):  # outside, the closest point lies on one of the three edges
                    continue
                v, w = tries[edge]
                distance = max(
                    v * v * d00 + w * w * d11 + 2 * (v * w * d01 - v * d20 - w * d21) + d22, 0.0
                )
                if distance < square[i]:
                    square[i], number[i] = distance, triangle
                    weights[i, 0], weights[i, 1], weights[i, 2] = 1.0 - v - w, v, w
    return number, weights, square


def register_similarity(
    moving: Floats,
    fixed: Surface,
    *,
    scaled: bool = True,
    start: Similarity | None = None,
    config: RegistrationConfig = DEFAULT,
) -> Similarity:
    """The similarity of (N, 3) ``moving`` points to a surface: trimmed iterative closest points.

    Without a ``start`` it begins where the centroids (and the variances, when ``scaled``) agree.
    Sources: Besl and McKay 1992; Chetverikov et al. 2002 (trimming).
    """
    nearest = Nearest(fixed)
    moving = moving[:: max(len(moving) // config.icp_points, 1)]
    if start is None:
        scale = float(np.sqrt(fixed.vertices.var(0).sum() / moving.var(0).sum())) if scaled else 1.0
        start = Similarity(scale, np.eye(3), fixed.vertices.mean(0) - scale * moving.mean(0))
    found = start
    for _ in range(config.icp_steps):
        at, away = nearest(found.apply(moving))
        near = away <= np.quantile(away, config.icp_share)
        found = similarity(moving[near], at.of(fixed.vertices, fixed.faces)[near], scaled=scaled)
    return found


def register(
    moving: Surface,
    fixed: Surface,
    pairs: tuple[Ints, Ints] | None = None,
    *,
    config: RegistrationConfig = DEFAULT,
) -> Floats:
    """(V, 3) metres: the ``moving`` vertices registered to the fixed surface.

    Vertices without a counterpart follow their neighbours. ``pairs``: rows of moving and fixed
    vertices that are the same point (landmarks); without them the surfaces must lie near each other
    already.
    """
    from scipy.interpolate import RBFInterpolator  # takes a fifth of a second to import

    at: Floats = np.asarray(moving.vertices, np.float64)
    goal: Floats = np.zeros((0, 3))
    chosen = np.zeros(0, np.int64)
    if pairs is not None:
        chosen, first = np.unique(pairs[0], return_index=True)
        goal = fixed.vertices[pairs[1][first]].astype(np.float64)
        at = similarity(at[chosen], goal).apply(at)
        spline = RBFInterpolator(
            at[chosen], goal, kernel="thin_plate_spline", smoothing=1e-6, degree=1
        )
        at = np.asarray(spline(at))
    nearest = Nearest(fixed)
    laplacian = graph_laplacian(moving.faces, len(at))
    for stiffness in config.stiffness:
        found, away = nearest(at)
        cosine = (vertex_normals(at, moving.faces) * nearest.normals[found.triangle]).sum(1)
        weight = ((away < config.reach) & (cosine > config.min_cosine)).astype(np.float64)
        target = found.of(fixed.vertices, fixed.faces) - at
        weight[chosen] = config.landmark_weight
        target[chosen] = goal - at[chosen]
        matrix = sparse.diags(weight + 1e-6) + stiffness * laplacian
        at = at + splu(sparse.csc_matrix(matrix)).solve(weight[:, None] * target)
    return at


def graph_laplacian(faces: Ints, count: int) -> sparse.csr_matrix:
    """(V, V) graph Laplacian of the mesh's edges."""
    edges = unique_edges(faces)
    ones = np.ones(len(edges))
    adjacency = sparse.coo_matrix((ones, edges.T), shape=(count, count)).tocsr()
    adjacency = adjacency + adjacency.T
    return sparse.csr_matrix(sparse.diags(np.asarray(adjacency.sum(1)).ravel()) - adjacency)


def part(vertices: Floats, faces: Ints, chosen: Ints | Bools) -> tuple[Surface, Ints]:
    """The surface of the ``chosen`` triangles alone, and (U,) its vertices' rows in the whole."""
    used, compact = np.unique(faces[chosen], return_inverse=True)
    return Surface(np.asarray(vertices[used], np.float64), compact.reshape(-1, 3)), used
