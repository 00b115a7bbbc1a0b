"""ICT-FaceKit as a MorphableModel: arrays of a file in, model out.

Nothing of it is shipped; ``dff.face.io.assets.load_model`` takes the path of a file. The frame is
always ``head`` (x to the face's left, y up, z out of the face) in metres, with the origin at the
centroid of the 68 landmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dff.face.arrays import Floats, Ints
from dff.face.model.landmarks import (
    CHIN,
    JAW_ENDS,
    NOSE_ROOT,
    NOSE_TIP,
    OUTER_EYE_CORNERS,
    LandmarkTable,
    contour_lines,
)
from dff.face.model.morphable import MorphableModel

REGIONS = (
    "face",
    "neck",
    "scalp",
    "ears",
    "lips",
    "brows",
    "eyes",
    "lashes",
    "teeth",
    "tongue",
    "mouth",
)
ICT_PARTS = (  # first vertex of each part of the ICT-FaceKit mesh, from its documentation
    (0, "face"),
    (9409, "neck"),  # the back of the head too: see _ict_regions
    (11248, "mouth"),  # then eye sockets, gums and tongue
    (17039, "teeth"),
    (21451, "eyes"),
)
ICT_FACE = 9409  # vertices of the face come first
ICT_EYEBALLS = (
    21451,
    22221,
    23021,
    23791,
)  # first vertices of the outer and inner shell of the left and right one
ICT_KEYS = (
    "neutral",
    "identity",
    "expression",
    "expression_names",
    "faces",
    "uv",
    "uv_faces",
    "landmarks68",
)


def is_ict_facekit(arrays: Mapping[str, Any]) -> bool:
    """Whether a file's arrays are those of a compact ICT-FaceKit."""
    return all(key in arrays for key in ICT_KEYS)


def from_ict_facekit(arrays: Mapping[str, Any]) -> MorphableModel:
    """ICT-FaceKit Light (MIT, USC Institute for Creative Technologies) from its arrays in one .npz.

    ``neutral`` (V, 3) centimetres; ``identity`` (K, V, 3) offsets at one standard deviation;
    ``expression`` (E, V, 3) with ``expression_names``; ``faces`` and ``uv_faces`` (N, 4) quads, -1
    fills triangles; ``uv`` (T, 2) v up; ``landmarks68`` vertices. Raises KeyError or ValueError
    when they do not fit together or the frame is another.
    """
    metres = 0.01
    neutral = np.asarray(arrays["neutral"], np.float64) * metres
    vertex = np.asarray(arrays["landmarks68"], np.int64)
    centre = neutral[vertex].mean(0)
    template = neutral - centre
    faces, uv_faces = _triangles(np.asarray(arrays["faces"]), np.asarray(arrays["uv_faces"]))
    check_frame(template, vertex)
    mirror = find_mirror(template)
    expression = np.asarray(arrays["expression"], np.float32) * np.float32(metres)
    # The eyeballs' uv overlap the face's, so they get charts of their own; other charts are tiles.
    charts = np.searchsorted(ICT_EYEBALLS, faces[:, 0], side="right")
    uv, uv_faces = one_square(np.asarray(arrays["uv"], np.float64), uv_faces, charts)
    return MorphableModel(
        name="ict-facekit",
        licence="MIT",
        provenance="ICT-FaceKit Light, USC Institute for Creative Technologies; "
        "a file supplied by the user",
        template=template.astype(np.float32),
        identity=np.asarray(arrays["identity"], np.float32) * np.float32(metres),
        expression=expression,
        expression_names=tuple(
            str(n).replace("_L", "Left").replace("_R", "Right") for n in arrays["expression_names"]
        ),
        expression_sd=np.full(len(expression), 0.3),
        faces=faces,
        uv=uv.astype(np.float32),
        uv_faces=uv_faces,
        region=_ict_regions(template, faces),
        region_names=REGIONS,
        landmarks=LandmarkTable(
            vertex, contour_lines(template, vertex, mirror, np.arange(len(template)) < ICT_FACE)
        ),
        mirror=mirror,
    )


def check_frame(template: Floats, vertex: Ints) -> None:
    """Check by its landmarks that (V, 3) ``template`` is a face in metres in the ``head`` frame.

    Raises ValueError.
    """
    points = template[vertex]
    right, left = (points[i] for i in OUTER_EYE_CORNERS)
    across = left - right
    if not 0.07 < across[0] < 0.12 or np.abs(across[1:]).max() > 0.01:
        raise ValueError(
            f"the outer eye corners are {across} metres apart: "
            "not a face in metres with x to its left"
        )
    if points[CHIN, 1] > points[NOSE_ROOT, 1] - 0.05:
        raise ValueError("the chin is not below the nose: y must point up")
    if points[NOSE_TIP, 2] < points[list(JAW_ENDS), 2].mean() + 0.03:
        raise ValueError("the nose is not in front of the ears: z must point out of the face")


def find_mirror(template: Floats) -> Ints:
    """(V,) nearest vertex at the mirrored place, for a mesh without a table of its own."""
    from scipy.spatial import cKDTree

    _, nearest = cKDTree(template).query(template * [-1.0, 1.0, 1.0])
    return np.asarray(nearest, np.int64)


def _triangles(quads: Ints, uv_quads: Ints) -> tuple[Ints, Ints]:
    """(F, 3) triangles of vertices and of uv rows from quads; a triangle's fourth entry is -1."""
    if quads.shape != uv_quads.shape or quads.ndim != 2 or quads.shape[1] != 4:
        raise ValueError(f"faces and uv_faces want (N, 4), got {quads.shape} and {uv_quads.shape}")
    four = quads[:, 3] >= 0

    def split(q: Ints) -> Ints:
        return np.concatenate([q[:, [0, 1, 2]], q[four][:, [0, 2, 3]]]).astype(np.int32)

    return split(quads), split(uv_quads)


def one_square(uv: Floats, uv_faces: Ints, charts: Ints) -> tuple[Floats, Ints]:
    """uv in one [0, 1] square, v down, and its triangles, from (T, 2) uv of unit tiles, v up.

    ``charts`` (F,) numbers the charts, as several may share a tile. The first chart (the face)
    keeps the upper left three quarters; the rest line the right edge and the bottom.
    """
    tile = np.floor(uv[uv_faces][..., 0].min(1) + 1e-6).astype(np.int64)
    _, number = np.unique(np.stack([charts, tile], axis=1), axis=0, return_inverse=True)
    number = number.ravel()
    places = (
        [(0.0, 0.0)] + [(0.75, 0.25 * i) for i in range(4)] + [(0.25 * i, 0.75) for i in range(3)]
    )
    if number.max() >= len(places):
        raise ValueError(
            f"uv lies in {number.max() + 1} tiles; at most {len(places)} can be placed"
        )
    # A row of uv that several charts use is there once for each of them.
    pairs = np.stack([np.repeat(number[:, None], 3, axis=1), uv_faces], axis=2).reshape(-1, 2)
    rows, compact = np.unique(pairs, axis=0, return_inverse=True)
    chart, row = rows.T
    shift = np.zeros(number.max() + 1)
    shift[number] = tile
    inside = np.clip(np.stack([uv[row, 0] - shift[chart], 1 - uv[row, 1]], axis=1), 0.0, 1.0)
    side = np.where(chart == 0, 0.745, 0.245)[:, None] if number.max() else 1.0
    corner = np.array(places)[chart]
    return inside * side + corner, compact.reshape(-1, 3).astype(np.int32)


def _ict_regions(template: Floats, faces: Ints) -> Ints:
    starts = np.array([start for start, _ in ICT_PARTS])
    numbers = np.array([REGIONS.index(name) for _, name in ICT_PARTS])
    out = numbers[np.searchsorted(starts, faces[:, 0], side="right") - 1].astype(np.uint8)
    above = template[faces].mean(1)[:, 1] > 0.0  # the height of the nose
    out[(out == REGIONS.index("neck")) & above] = REGIONS.index("scalp")
    return out
