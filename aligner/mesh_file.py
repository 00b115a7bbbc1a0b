"""Fitted meshes as files that other programs open."""

from __future__ import annotations

import io

import numpy as np
import trimesh

from dff.aligner.alignment import Alignment, PersonAlignment
from dff.face.arrays import Bytes
from dff.face.model.morphable import MorphableModel


def glb(
    face: Alignment | PersonAlignment, model: MorphableModel, *, colours: Bytes | None = None
) -> bytes:
    """Binary glTF of a fitted mesh; of a person in several photos, the face at rest.

    In the head frame, which is glTF's own: metres, y up, looking along z. (V, 3) or (V, 4) uint8
    ``colours`` of the vertices are written when given. The model's name and licence go along.
    Raises ValueError for colours that are not one for each vertex.
    """
    if colours is not None and (
        colours.dtype != np.uint8 or colours.shape[:1] != face.vertices.shape[:1]
    ):
        raise ValueError(
            f"colours want uint8 ({len(face.vertices)}, 3 or 4), "
            f"got {colours.dtype} {colours.shape}"
        )
    mesh = trimesh.Trimesh(face.vertices, model.faces, vertex_colors=colours, process=False)
    mesh.metadata.update(model=model.name, licence=model.licence)
    buffer = io.BytesIO()
    trimesh.Scene({"face": mesh}).export(buffer, file_type="glb")
    return buffer.getvalue()
