"""Transfer of albedo and regions from one face model to another.

Both follow a dense correspondence between the templates (``dff.face.io.registration``). Only parts
of one kind correspond, so that eyeballs take their colours from eyeballs, and gums do not take
those of the lips in front of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Array, Bools, Float, Floats, Ints
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.mesh import SurfacePoints
from dff.face.io.registration import Nearest, Surface, part, register, register_similarity
from dff.face.model.albedo import AlbedoModel
from dff.face.model.landmarks import JAW
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render

KINDS = (
    ("face", "neck", "scalp", "ears", "lips", "brows"),
    ("eyes", "lashes"),
    ("teeth",),
    ("tongue", "mouth"),
)
"""Regions whose surfaces correspond to each other."""

SKIN = KINDS[0]
ATLAS = 320  # texels a side of a transferred albedo


@dataclass(frozen=True)
class Correspondence:
    """The template of a target model laid onto that of a source model, part by part."""

    places: Float[Array, "vertices 3"]  # metres: each target vertex on the source's surface
    kinds: tuple[tuple[Ints, Ints], ...]  # target and source triangles of each kind of part


def correspondence(target: MorphableModel, source: MorphableModel) -> Correspondence:
    """Register the template of ``target`` to that of ``source``.

    Skin is registered by landmarks, other parts by their shape. Vertices of parts that the source
    does not have keep their own places.
    """
    places = np.asarray(target.template, np.float64).copy()
    kinds = []
    for kind in KINDS:
        own, theirs = triangles(target, kind), triangles(source, kind)
        kinds.append((own, theirs))
        if len(own) == 0 or len(theirs) == 0:
            continue
        for side in _sides(target.template, target.faces, own) if kind != SKIN else (own,):
            moving, rows = part(target.template, target.faces, side)
            if kind == SKIN:
                fixed, fixed_rows = part(source.template, source.faces, theirs)
                pairs = _landmark_pairs(target, source, rows, fixed_rows)
                places[rows] = register(moving, fixed, pairs)
            else:
                fixed, _ = part(
                    source.template, source.faces, _same_side(source, theirs, moving.vertices)
                )
                places[rows] = register_similarity(moving.vertices, fixed).apply(moving.vertices)
    return Correspondence(places, tuple(kinds))


def triangles(model: MorphableModel, regions: tuple[str, ...]) -> Ints:
    """(N,) triangles of those of the ``regions`` that the model has."""
    return model.find_triangles(*(name for name in regions if name in model.region_names))


def _landmark_pairs(
    target: MorphableModel, source: MorphableModel, rows: Ints, fixed_rows: Ints
) -> tuple[Ints, Ints]:
    """Inner landmarks that lie on both parts, as rows of these.

    Models place the jaw line differently: that of ICT-FaceKit is the contour of a frontal view, 13
    to 23 mm in front of the open head's. As pairs, these points would pull the jaw off the surface.
    """
    both = np.isin(target.landmarks.vertex, rows) & np.isin(source.landmarks.vertex, fixed_rows)
    both[JAW] = False
    own, theirs = target.landmarks.vertex[both], source.landmarks.vertex[both]
    return np.searchsorted(rows, own), np.searchsorted(fixed_rows, theirs)


def _sides(vertices: Floats, faces: Ints, chosen: Ints) -> tuple[Ints, ...]:
    """The chosen triangles left and right of the middle, unless many of them cross it."""
    x = vertices[faces[chosen]][..., 0]
    if ((x.min(1) < 0) & (x.max(1) > 0)).mean() > 0.01:
        return (chosen,)
    left = x.mean(1) > 0
    return tuple(side for side in (chosen[left], chosen[~left]) if len(side))


def _same_side(source: MorphableModel, theirs: Ints, vertices: Floats) -> Ints:
    for side in _sides(source.template, source.faces, theirs):
        x = source.template[source.faces[side]][..., 0]
        if np.sign(np.median(x)) == np.sign(np.median(vertices[:, 0])):
            return side
    return theirs


def counterparts(
    points: SurfacePoints, target: MorphableModel, source: MorphableModel, found: Correspondence
) -> SurfacePoints:
    """The source's surface points of (N,) points of the target's surface.

    A point of a kind of part that the source does not have takes the nearest of all its points.
    """
    triangle = np.zeros(len(points.triangle), np.int64)
    weights = np.zeros((len(triangle), 3))
    at = points.of(found.places, target.faces)
    kind_of = np.full(len(target.faces), -1)
    for number, (own, theirs) in enumerate(found.kinds):
        if len(theirs):
            kind_of[own] = number
    for number in np.unique(kind_of[points.triangle]):
        rows = np.flatnonzero(kind_of[points.triangle] == number)
        theirs = found.kinds[number][1] if number >= 0 else np.arange(len(source.faces))
        surface = Surface(np.asarray(source.template, np.float64), source.faces[theirs])
        nearest, _ = Nearest(surface)(at[rows])
        triangle[rows], weights[rows] = theirs[nearest.triangle], nearest.barycentric
    return SurfacePoints(triangle, weights)


def carried_albedo(
    albedo: AlbedoModel, source: MorphableModel, target: MorphableModel, found: Correspondence
) -> AlbedoModel:
    """The albedo model, given in the uv of ``source``, in the uv of ``target``.

    Texels of no triangle keep the mean.
    """
    flat = np.concatenate([target.uv, np.zeros((len(target.uv), 1))], axis=1)
    layout = render(
        flat, target.uv_faces, WeakPerspective(float(ATLAS), np.zeros(2)), (ATLAS, ATLAS)
    )
    places = counterparts(layout.points(), target, source, found)
    mean, components = albedo.at(places.of(source.uv, source.uv_faces))
    nearest = _nearest_covered(layout.mask)
    count = len(components)
    return AlbedoModel(
        albedo.name,
        albedo.licence,
        f"{albedo.provenance}; carried from {source.name} over to {target.name} by registration",
        mean[nearest].reshape(ATLAS, ATLAS, 3),
        components[:, nearest].reshape(count, ATLAS, ATLAS, 3),
        target.name,
    )


def _nearest_covered(mask: Bools) -> Ints:
    """(S * S,) row, among the covered texels, of the one nearest to each texel."""
    from scipy.ndimage import distance_transform_edt

    row, column = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    number = np.cumsum(mask.ravel()).reshape(mask.shape) - 1
    return np.asarray(number[row, column].ravel())


def carried_regions(target: MorphableModel, source: MorphableModel, found: Correspondence) -> Ints:
    """(F,) regions of the target, as rows of the *source's* names.

    Skin takes those of its counterparts; other parts keep theirs.
    """
    skin = found.kinds[0][0]
    middle = SurfacePoints(skin, np.full((len(skin), 3), 1.0 / 3.0))
    at = counterparts(middle, target, source, found)
    out = np.array([source.region_names.index(name) for name in target.region_names])[target.region]
    out[skin] = source.region[at.triangle]
    return out.astype(np.uint8)
