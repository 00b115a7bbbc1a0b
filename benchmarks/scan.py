"""A head from a 3D scan, in the topology of a face model, to render photos of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from benchmarks.cross_model import REACH
from dff.face.arrays import Floats
from dff.face.io.registration import Nearest, Surface, part, register, similarity
from dff.face.io.transfer import KINDS, triangles
from dff.face.model.landmarks import INNER, NAMES
from dff.face.model.morphable import MorphableModel

CONTROLS = 1500  # points of the skin that eyes, teeth and tongue follow


def read_scan(path: Path, landmarks: Path, model: MorphableModel) -> tuple[Floats, float]:
    """(V, 3) vertices of ``model`` registered to a scan, in head, and their distance from it.

    The scan keeps its size. ``path``: a mesh in metres, y up, looking along z; ``landmarks``: the
    inner 51 landmarks of iBUG as (51, 3) in a .npy file, in the frame of the mesh. The distance is
    the mean over the face, metres. What is not skin follows the skin around it.
    """
    mesh = trimesh.load(path, process=False, force="mesh")
    points = np.load(landmarks, allow_pickle=False)
    template = model.template.astype(np.float64)
    vertex = model.landmarks.vertex[INNER]
    into_head = similarity(points, template[vertex], scaled=False)
    scan = Surface(into_head.apply(np.asarray(mesh.vertices)), np.asarray(mesh.faces))
    nearest_row = cKDTree(scan.vertices).query(into_head.apply(points))[1]

    skin, used = part(template, model.faces, triangles(model, KINDS[0]))
    row = np.full(len(template), -1)
    row[used] = np.arange(len(used))
    registered = register(skin, scan, (row[vertex], nearest_row))
    tip = template[model.landmarks.vertex[NAMES.index("nose_tip")]]
    face = np.linalg.norm(skin.vertices - tip, axis=1) < REACH
    _, distance = Nearest(scan)(registered[face])

    some = np.random.default_rng(0).choice(len(used), CONTROLS, replace=False)
    moved = RBFInterpolator(
        skin.vertices[some], registered[some] - skin.vertices[some], neighbors=50
    )
    out = template + moved(template)
    out[used] = registered
    return out, float(distance.mean())
