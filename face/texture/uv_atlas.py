"""A model's uv layout at a size, and its mesh as a graph: all of a texture that no photo
changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import SuperLU, splu

from dff.face.arrays import Array, Bool, Bools, Float, Floats, Integer, Ints
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.interpolation import bilinear
from dff.face.geometry.mesh import SurfacePoints, triangle_normals, unique_edges
from dff.face.model.landmarks import INNER_LIPS
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import Frame, render

MOUTH_INSIDE = ("teeth", "tongue", "mouth")
"""Regions inside the mouth."""


@dataclass(frozen=True)
class AtlasConfig:
    """Lengths on a head, in metres, and the light inside the mouth."""

    smoothing: float = 0.008  # over which ``UvAtlas.smoother`` smooths
    lip: float = 0.004  # from the inner lips to the front teeth
    gloom: float = 0.045  # behind these, over which the mouth's inside turns dark
    darkest: float = 0.3  # share of the light at the back of the mouth
    hair: tuple[float, float, float] = (0.25, 0.2, 0.17)  # albedo, if a model has no scalp


ATLAS = AtlasConfig()


@dataclass(frozen=True, eq=False)
class UvAtlas:
    """A model's uv layout at ``size`` texels. Covered texels are those that show the surface."""

    model: MorphableModel
    size: int
    config: AtlasConfig
    texel: Integer[Array, " N"]  # flat index of each covered texel
    points: SurfacePoints  # (N,) of the covered texels
    places: Float[Array, "N 3"]  # metres, template: where ``points`` lie
    mirrored: SurfacePoints  # (N,) across the face; a texel without such a point repeats its own
    nearest: Integer[Array, " texels"]  # row of the covered texel nearest to each of size * size
    uv_of_vertex: Float[Array, "V 2"]  # one of the vertex's places
    edges: Integer[Array, "M 2"]  # pairs of neighbouring vertices
    region: Mapping[str, Bool[Array, " V"]]  # vertices of each region
    neighbours: sparse.csr_matrix  # (V, V) 1 between neighbours
    smoother: SuperLU  # solves for (V, C) values smoothed over ``config.smoothing``
    largest: Float[Array, " F"]  # square metres that a triangle reaches in some expression
    # float32 0..1: share of the light that reaches each covered texel; less deep in the mouth
    daylight: Float[Array, "N 1"]

    def pad(self, values: Floats) -> Floats:
        """(S, S, C) float32 of (N, C) values at the covered texels.

        Other texels repeat the nearest covered one.
        """
        return np.asarray(values[self.nearest].reshape(self.size, self.size, -1), dtype=np.float32)

    def mask_region(self, name: str) -> Bools:
        """(V,) vertices of a region; none when the model does not have it."""
        return self.region.get(name, np.zeros(len(self.model.template), dtype=bool))

    def mask_triangles(self, member: Bools) -> Bools:
        """(F,) triangles all of whose corners are among the (V,) members."""
        return np.asarray(member[self.model.faces].all(axis=1), dtype=np.bool_)

    def sample_vertices(self, texture: Floats) -> Floats:
        """(V, C) bilinear samples of an (S, T, C) texture in the model's uv."""
        return bilinear(texture, self.uv_of_vertex * np.array(texture.shape[1::-1]))

    def measure_hair(self, texture: Floats) -> Floats:
        """(3,) the median colour of the scalp in an (S, T, 3) texture."""
        scalp = self.mask_region("scalp") & ~self.mask_region("face")
        if not scalp.any():
            return np.array(self.config.hair)
        return np.asarray(np.median(self.sample_vertices(texture)[scalp], axis=0))


@lru_cache(maxsize=4)
def build_uv_atlas(model: MorphableModel, size: int, config: AtlasConfig = ATLAS) -> UvAtlas:
    """The atlas of a model at ``size`` texels; the last few are kept."""
    flat = np.concatenate([model.uv, np.zeros((len(model.uv), 1))], axis=1)
    layout = render(flat, model.uv_faces, WeakPerspective(float(size), np.zeros(2)), (size, size))
    covered = np.flatnonzero(layout.mask.ravel())
    points = layout.points()
    places = points.of(model.template.astype(np.float64), model.faces)
    uv_of_vertex = np.zeros((len(model.template), 2))
    uv_of_vertex[model.faces.ravel()] = model.uv[model.uv_faces.ravel()]
    edges = unique_edges(model.faces)
    region = {name: _region_vertices(model, name) for name in model.region_names}
    pairs = np.concatenate([edges, edges[:, ::-1]]).T
    return UvAtlas(
        model=model,
        size=size,
        config=config,
        texel=covered,
        points=points,
        places=places,
        mirrored=mirror_points(model, points),
        nearest=_find_nearest(layout, covered),
        uv_of_vertex=uv_of_vertex,
        edges=edges,
        region=region,
        neighbours=sparse.csr_matrix((np.ones(2 * len(edges)), pairs)),
        smoother=_factor_smoother(model.template, edges, config.smoothing),
        largest=_find_largest_areas(model),
        daylight=_light_mouth(model, region, points, places, config),
    )


def _region_vertices(model: MorphableModel, name: str) -> Bools:
    member = np.zeros(len(model.template), dtype=bool)
    member[model.faces[model.find_triangles(name)].ravel()] = True
    return member


def _find_nearest(layout: Frame, covered: Ints) -> Ints:
    """(S * S,) the row, of the ``covered`` texels, of the one nearest to each texel."""
    row = np.full(layout.mask.size, -1, dtype=np.int32)
    row[covered] = np.arange(len(covered))
    _, labels = cv2.distanceTransformWithLabels(
        (~layout.mask).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    row_of_label = np.zeros(labels.max() + 1, dtype=np.int32)
    row_of_label[labels.ravel()[covered]] = row[covered]
    return np.asarray(row_of_label[labels.ravel()])


def _light_mouth(
    model: MorphableModel,
    region: Mapping[str, Bools],
    points: SurfacePoints,
    places: Floats,
    config: AtlasConfig,
) -> Floats:
    """(N, 1) float32 share of the light that reaches (N,) points at (N, 3) ``places``.

    Lips and cheeks keep it from the back teeth.
    """
    none = np.zeros(len(model.template), dtype=bool)
    inside = none.copy()
    for name in MOUTH_INSIDE:
        inside |= region.get(name, none)
    inside &= ~(region.get("face", none) | region.get("lips", none))
    lips = model.template[model.landmarks.vertex[INNER_LIPS], 2]
    front = float(np.median(lips)) - config.lip
    share = np.clip(1.0 - (front - places[:, 2]) / config.gloom, config.darkest, 1.0)
    within = np.asarray(inside[model.faces].all(axis=1))[points.triangle]
    return np.where(within, share, 1.0)[:, None].astype(np.float32)


def _factor_smoother(template: Floats, edges: Ints, reach: float) -> SuperLU:
    """Factors of 1 + the Laplacian that smooths over ``reach`` metres at any vertex density."""
    i, j = edges.T
    count = len(template)
    length = np.maximum(np.linalg.norm(template[i] - template[j], axis=1), 1e-4)
    pull = (reach / length) ** 2
    diagonal = 1.0 + np.bincount(i, pull, count) + np.bincount(j, pull, count)
    return factor_laplacian(diagonal, edges, pull)


def factor_laplacian(diagonal: Floats, edges: Ints, weights: Floats) -> SuperLU:
    """Factors of the sparse symmetric matrix of (V,) diagonal entries and -(M,) edge weights."""
    i, j = edges.T
    own = np.arange(len(diagonal))
    places = (np.concatenate([own, i, j]), np.concatenate([own, j, i]))
    matrix = sparse.csc_matrix((np.concatenate([diagonal, -weights, -weights]), places))
    return splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})


def measure_areas(vertices: Floats, faces: Ints) -> Floats:
    """(F,) square metres of the triangles of (V, 3) vertices."""
    return np.asarray(np.linalg.norm(triangle_normals(vertices, faces), axis=1)) / 2.0


def _find_largest_areas(model: MorphableModel) -> Floats:
    """(F,) square metres, over the template with each expression unit fully active."""
    template = model.template.astype(np.float64)
    out = measure_areas(template, model.faces)
    for unit in model.expression:
        out = np.maximum(out, measure_areas(template + unit, model.faces))
    return out


def mirror_points(model: MorphableModel, points: SurfacePoints) -> SurfacePoints:
    """The mirrored surface points; a point whose triangle has no mirrored one stays in place."""
    mirrored = np.sort(model.mirror[model.faces], axis=1)
    number = {tuple(corners): f for f, corners in enumerate(np.sort(model.faces, axis=1).tolist())}
    found = np.array([number.get(tuple(corners), -1) for corners in mirrored.tolist()])
    target = np.where(found >= 0, found, np.arange(len(found)))
    # Which corner of the mirrored triangle each mirrored corner is.
    wanted = np.where((found >= 0)[:, None], model.mirror[model.faces], model.faces)
    place = (model.faces[target][:, :, None] == wanted[:, None, :]).argmax(2)
    weights = np.take_along_axis(points.barycentric, place[points.triangle], axis=1)
    return SurfacePoints(target[points.triangle], weights)
