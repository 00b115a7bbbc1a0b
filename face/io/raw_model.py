"""From the raw arrays of a published face model to a MorphableModel.

Published models differ in their units, and may lack landmarks, uv and regions. What is missing is
found by registration of the template to that of a reference model (the open head).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from dff.face.arrays import Array, Float, Floats, Integer, Ints
from dff.face.geometry.mesh import triangle_normals
from dff.face.io.adapters import check_frame, find_mirror, one_square
from dff.face.io.registration import (
    Nearest,
    Similarity,
    Surface,
    part,
    register,
    register_similarity,
)
from dff.face.io.transfer import (
    KINDS,
    SKIN,
    Correspondence,
    carried_regions,
    correspondence,
    triangles,
)
from dff.face.model.landmarks import NAMES, LandmarkTable, contour_lines
from dff.face.model.morphable import MorphableModel

UNITS = (1.0, 0.1, 0.01, 1e-3, 1e-6)  # metres, decimetres, centimetres, millimetres, micrometres
HEIGHT = (0.14, 0.5)  # metres: of a face without its head, and of a head with shoulders
UNIT_SD = 0.3  # of the activation of a named unit
FULL_UNIT = 2.0  # standard deviations of an expression mode at activation one
EXPRESSIONS = 50  # modes that are kept: the others change a photo too little to be measured
IDENTITIES = 150
BEHIND_FACE = 0.07  # metres from the landmarks back to the point from which the skin is unwrapped


@dataclass(frozen=True)
class RawModel:
    """The arrays of a published linear model, in its own unit, y up and z out of the face."""

    name: str
    licence: str
    provenance: str
    template: Float[Array, "vertices 3"]
    identity: Float[Array, "identities vertices 3"]  # at one standard deviation
    # modes of a principal component analysis, at one standard deviation
    expression: Float[Array, "expressions vertices 3"]
    units: Float[Array, "units vertices 3"]  # facial units at full activation
    unit_names: tuple[str, ...]  # (units,)
    faces: Integer[Array, "faces 3"]  # any orientation
    landmarks: Mapping[str, int]  # vertices of some of ``dff.face.model.landmarks.NAMES``
    uv: Floats | None = None  # (T, 2) v up, all in one unit square
    uv_faces: Ints | None = None  # (F, 3) rows of uv


def completed(raw: RawModel, reference: MorphableModel) -> tuple[MorphableModel, Correspondence]:
    """The model, and its correspondence with the ``reference``.

    Raises ValueError when it is not a face.
    """
    unit = guess_unit(raw.template)
    template = np.asarray(raw.template, np.float64) * unit
    faces = outward(template, np.asarray(raw.faces, np.int64))
    parts = components(faces, len(template))
    skin = parts == np.bincount(parts).argmax()
    vertex = find_landmark_vertices(template, faces[skin], raw.landmarks, reference)
    template -= template[vertex].mean(0)
    check_frame(template, vertex)
    kinds = classify_parts(template, faces, parts, reference)
    uv, uv_faces = _find_uv(raw, template, faces, parts, kinds)
    expression, names, sd = _units(raw, unit)
    mirror = find_mirror(template)
    usable = np.zeros(len(template), dtype=bool)
    usable[faces[skin]] = True
    model = MorphableModel(
        name=raw.name,
        licence=raw.licence,
        provenance=raw.provenance,
        template=template.astype(np.float32),
        identity=(strongest(raw.identity, IDENTITIES) * unit).astype(np.float32),
        expression=expression,
        expression_names=names,
        expression_sd=sd,
        faces=faces.astype(np.int32),
        uv=uv.astype(np.float32),
        uv_faces=uv_faces.astype(np.int32),
        region=kinds,
        region_names=reference.region_names,
        landmarks=LandmarkTable(vertex, contour_lines(template, vertex, mirror, usable)),
        mirror=mirror,
    )
    found = correspondence(model, reference)
    return replace(model, region=carried_regions(model, reference, found)), found


def guess_unit(template: Floats) -> float:
    """Metres per unit of (V, 3) vertices: that which gives them the height of a face or a head."""
    height = float(np.ptp(template[:, 1]))
    for unit in UNITS:
        if HEIGHT[0] <= height * unit <= HEIGHT[1]:
            return unit
    raise ValueError(
        f"a template {height:g} high is not a face in metres, centimetres, millimetres or "
        "micrometres"
    )


def outward(vertices: Floats, faces: Ints) -> Ints:
    """(F, 3) triangles that are counter-clockwise from outside, all turned or none."""
    away = vertices[faces].mean(1) - (vertices.mean(0) - [0.0, 0.0, 0.03])
    inward = (triangle_normals(vertices, faces) * away).sum() < 0
    return faces[:, [0, 2, 1]] if inward else faces


def components(faces: Ints, count: int) -> Ints:
    """(F,) number of the connected piece of the mesh that each triangle belongs to."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]]).T
    graph = sparse.coo_matrix((np.ones(ends.shape[1]), ends), shape=(count, count))
    _, of_vertex = connected_components(graph, directed=False)
    _, number = np.unique(of_vertex[faces[:, 0]], return_inverse=True)
    return np.asarray(number)


def find_landmark_vertices(
    template: Floats, skin: Ints, known: Mapping[str, int], reference: MorphableModel
) -> Ints:
    """(68,) vertices: the ``known`` ones, the others by registration of the reference's landmarks.

    ``template`` (V, 3) metres; ``skin`` its (F, 3) triangles. Raises ValueError for a landmark that
    is no vertex.
    """
    out = np.full(len(NAMES), -1, np.int64)
    for name, vertex in known.items():
        if not 0 <= vertex < len(template):
            raise ValueError(f"landmark {name} names vertex {vertex} of {len(template)}")
        out[NAMES.index(name)] = vertex
    if (out >= 0).all():
        return out
    own, rows = part(template, skin, np.arange(len(skin)))
    theirs, their_rows = part(reference.template, reference.faces, triangles(reference, SKIN))
    start = _noses_together(own.vertices, theirs.vertices)
    rigid = register_similarity(own.vertices, theirs, scaled=False, start=start)
    found = register_similarity(own.vertices, theirs, start=rigid)
    moved = found.apply(own.vertices)
    both = np.flatnonzero(
        (out >= 0) & np.isin(reference.landmarks.vertex, their_rows) & np.isin(out, rows)
    )
    pairs = None
    if len(both) >= 4:
        pairs = (
            np.searchsorted(rows, out[both]),
            np.searchsorted(their_rows, reference.landmarks.vertex[both]),
        )
    places = register(Surface(moved, own.faces), theirs, pairs)
    goals = np.asarray(reference.template, np.float64)[reference.landmarks.vertex]
    missing = out < 0
    nearest, away = Nearest(Surface(places, own.faces))(goals[missing])
    if np.median(away) > 0.01:
        raise ValueError(
            "the template cannot be laid onto the reference head: is y up, and z out of the face?"
        )
    corner = own.faces[nearest.triangle, nearest.barycentric.argmax(1)]
    out[missing] = rows[corner]
    return out


def _noses_together(own: Floats, theirs: Floats) -> Similarity:
    """The translation of one tip of the nose (the front-most point near the middle) to another."""
    tips = []
    for points in (own, theirs):
        middle = np.abs(points[:, 0] - np.median(points[:, 0])) < 0.02
        tips.append(points[middle][points[middle][:, 2].argmax()])
    return Similarity(1.0, np.eye(3), tips[1] - tips[0])


def classify_parts(template: Floats, faces: Ints, parts: Ints, reference: MorphableModel) -> Ints:
    """(F,) rows of the reference's region names: each piece takes the nearest kind of part."""
    names = reference.region_names
    skin = np.bincount(parts).argmax()
    out = np.full(len(faces), names.index("face"), np.uint8)
    surfaces = {}
    for kind in KINDS:
        chosen = triangles(reference, kind)
        if len(chosen):
            surfaces[kind[0]] = Nearest(part(reference.template, reference.faces, chosen)[0])
    for number in np.unique(parts):
        if number == skin:
            continue
        rows = parts == number
        points = template[np.unique(faces[rows])]
        away = {
            name: float(nearest(points)[1].mean())
            for name, nearest in surfaces.items()
            if name != "face"
        }
        best = min(away, key=lambda name: away[name]) if away else "face"
        out[rows] = names.index(best)
    return out


def _units(raw: RawModel, unit: float) -> tuple[Floats, tuple[str, ...], Floats]:
    """Expressions as units of activation 0 to 1; a mode becomes one unit for each direction."""
    modes = strongest(raw.expression, EXPRESSIONS) * np.float32(FULL_UNIT)
    both = np.stack([modes, -modes], axis=1).reshape(-1, *modes.shape[1:])
    names = tuple(f"mode_{m + 1}_{way}" for m in range(len(modes)) for way in ("more", "less"))
    sd = np.concatenate([np.full(len(raw.units), UNIT_SD), np.full(len(both), 1.0 / FULL_UNIT)])
    basis = np.concatenate([np.asarray(raw.units, np.float64), both]) * unit
    return basis.astype(np.float32), (*raw.unit_names, *names), sd


def strongest(modes: Floats, count: int) -> Floats:
    """At most ``count`` of the (K, V, 3) modes, by falling variance, which not every file sorts by.

    Modes that move nothing are left out.
    """
    size = np.sqrt((np.asarray(modes, np.float32) ** 2).sum((1, 2)))
    order = np.argsort(-size, kind="stable")[:count]
    kept = order[size[order] > 1e-6 * size.max(initial=0.0)]
    return np.asarray(np.asarray(modes)[kept], np.float64)


def _find_uv(
    raw: RawModel, template: Floats, faces: Ints, parts: Ints, kinds: Ints
) -> tuple[Floats, Ints]:
    if raw.uv is not None and raw.uv_faces is not None:
        turned = np.asarray(raw.uv_faces, np.int64)
        if not np.array_equal(faces, raw.faces):
            turned = turned[:, [0, 2, 1]]
        return one_square(
            np.asarray(raw.uv, np.float64) % 1.0, turned, np.zeros(len(faces), np.int64)
        )
    return unwrapped(template, faces, parts, kinds)


def unwrapped(template: Floats, faces: Ints, parts: Ints, kinds: Ints) -> tuple[Floats, Ints]:
    """uv, v down, of a mesh that has none, by spherical projection.

    The skin is projected from a point inside the head, other parts from their own centres. Folds
    (nostrils, ears) share texels with what lies over them.
    """
    skin = np.bincount(parts).argmax()
    side = template[faces].mean(1)[:, 0] > 0
    # Left and right parts of one kind (eyes) are charts of their own; the skin comes first.
    labels = np.where(parts == skin, 0, 1 + 2 * kinds.astype(np.int64) + side)
    uv = np.zeros((3 * len(faces), 2))
    _, charts = np.unique(labels, return_inverse=True)
    for chart in np.unique(charts):
        rows = np.flatnonzero(charts == chart)
        corners = template[faces[rows]]
        centre = (
            np.array([0.0, 0.0, -BEHIND_FACE]) if chart == 0 else corners.reshape(-1, 3).mean(0)
        )
        x, y, z = np.moveaxis(corners - centre, -1, 0)
        u = np.arctan2(x, z) / (2.0 * np.pi) + 0.5
        wraps = np.ptp(u, axis=1) > 0.5  # across the seam at the back
        u = u + (wraps[:, None] & (u < 0.5))
        v = np.arctan2(y, np.hypot(x, z)) / np.pi + 0.5
        flat = np.stack([u, v], axis=-1).reshape(-1, 2)
        low, high = flat.min(0), flat.max(0)
        flat = (flat - low) / np.maximum(high - low, 1e-9) * 0.998 + 0.001
        uv[(3 * rows[:, None] + np.arange(3)).ravel()] = flat
    places, compact = np.unique(np.round(uv, 7), axis=0, return_inverse=True)
    return one_square(places, compact.reshape(-1, 3), charts)
