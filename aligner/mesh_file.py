"""Fitted meshes as files that other programs open: binary glTF and Wavefront OBJ."""

from __future__ import annotations

import io

import numpy as np
import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from dff.aligner.alignment import Alignment, PersonAlignment
from dff.aligner.fitting.depth_buffer import DepthBuffer
from dff.face.arrays import Bytes, Ints
from dff.face.geometry.interpolation import bilinear
from dff.face.geometry.mesh import vertex_normals
from dff.face.model.morphable import MorphableModel

MESHES = (".glb", ".obj")
HIDDEN = 0.01  # metres behind the visible surface from which a vertex has no colour of its own
GRAZING = 0.2  # cosine between normal and view below which a vertex has none either


def encode_mesh(
    face: Alignment | PersonAlignment,
    model: MorphableModel,
    suffix: str,
    *,
    colours: Bytes | None = None,
) -> bytes:
    """``obj`` for the suffix .obj, else ``glb``."""
    return (obj if suffix.lower() == ".obj" else glb)(face, model, colours=colours)


def glb(
    face: Alignment | PersonAlignment, model: MorphableModel, *, colours: Bytes | None = None
) -> bytes:
    """Binary glTF of a fitted mesh; of a person in several photos, the face at rest.

    In the head frame, which is glTF's own: metres, y up, looking along z. With normals, texture
    coordinates and, where given, (V, 3) uint8 sRGB ``colours`` of the vertices. The first V
    vertices are the model's; copies for a second texture coordinate follow. The model's name and
    licence go along. Raises ValueError for colours that are not one for each vertex.
    """
    _check_colours(colours, face)
    vertex, texture, faces = _split_seams(model)
    visual = TextureVisuals(
        uv=model.uv[texture] * (1, -1) + (0, 1),  # trimesh has v up
        material=PBRMaterial(metallicFactor=0.0, roughnessFactor=1.0),
    )
    if colours is not None:
        opaque = np.full((len(vertex), 1), 255, np.uint8)  # trimesh declares four channels
        linear = _linear_from_srgb(colours)[vertex]
        visual.vertex_attributes["color"] = np.concatenate([linear, opaque], axis=1)
    mesh = trimesh.Trimesh(
        face.vertices[vertex],
        faces,
        vertex_normals=vertex_normals(face.vertices, model.faces)[vertex],
        visual=visual,
        process=False,
    )
    mesh.metadata.update(model=model.name, licence=model.licence)
    buffer = io.BytesIO()
    trimesh.Scene({"face": mesh}).export(buffer, file_type="glb", include_normals=True)
    return buffer.getvalue()


def obj(
    face: Alignment | PersonAlignment, model: MorphableModel, *, colours: Bytes | None = None
) -> bytes:
    """Wavefront OBJ of a fitted mesh, with the content of ``glb``.

    Its vertices are exactly the model's. Colours follow the coordinates of a vertex, 0 to 1, as
    MeshLab, Blender and others read them. Raises ValueError as ``glb``.
    """
    _check_colours(colours, face)
    lines = [f"# model: {model.name}", f"# licence: {model.licence}", "o face"]
    values = face.vertices
    if colours is not None:
        values = np.concatenate([values, colours[:, :3] / 255.0], axis=1)
    lines += [f"v {' '.join(f'{x:.6f}' for x in row)}" for row in values.tolist()]
    lines += [f"vt {u:.6f} {1 - v:.6f}" for u, v in model.uv.tolist()]
    normals = vertex_normals(face.vertices, model.faces)
    lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in normals.tolist()]
    corners = np.stack([model.faces, model.uv_faces, model.faces], axis=-1) + 1
    lines += ["f " + " ".join("/".join(map(str, c)) for c in row) for row in corners.tolist()]
    return ("\n".join(lines) + "\n").encode()


def sample_colours(face: Alignment, model: MorphableModel, image: Bytes) -> Bytes | None:
    """(V, 3) uint8 sRGB colours of the vertices in the (H, W, 3) ``image``; None where it has none.

    A vertex that the photo does not show takes the colour of the mirrored vertex, or the mean.
    """
    seen = face.cam_from_head.apply(face.vertices)
    px = face.camera.px_from_cam(seen)
    if face.failed or not np.isfinite(px).all():
        return None
    buffer = DepthBuffer.of(seen, face.camera.inverse_depth, model.faces, 256)
    facing = vertex_normals(seen, model.faces)[:, 2] < -GRAZING  # the camera looks along z
    shown = facing & (buffer.behind(buffer.seen, buffer.nearest_depth()) < HIDDEN)
    shown &= ((px >= 0) & (px <= image.shape[1::-1])).all(1)
    if not shown.any():
        return None
    low = np.clip(np.floor(px[shown].min(0)).astype(int) - 1, 0, None)
    high = np.ceil(px[shown].max(0)).astype(int) + 2
    part = image[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    colours = np.empty((len(px), 3))
    colours[shown] = bilinear(part, px[shown] - low)
    mirrored = ~shown & shown[model.mirror]
    colours[~shown] = colours[shown].mean(0)
    colours[mirrored] = colours[model.mirror[mirrored]]
    return np.clip(np.round(colours), 0, 255).astype(np.uint8)


def _check_colours(colours: Bytes | None, face: Alignment | PersonAlignment) -> None:
    if colours is None:
        return
    if colours.dtype != np.uint8 or colours.shape != face.vertices.shape:
        raise ValueError(
            f"colours want uint8 ({len(face.vertices)}, 3), got {colours.dtype} {colours.shape}"
        )


def _split_seams(model: MorphableModel) -> tuple[Ints, Ints, Ints]:
    """Vertices with one texture coordinate each, as glTF wants: (M,) the model's vertex and
    (M,) the row of ``uv`` of each, and (F, 3) triangles of them. Row i < V is the model's vertex i.
    """
    pairs = np.stack([model.faces.ravel(), model.uv_faces.ravel()], axis=1)
    unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
    count = len(model.template)
    first = np.ones(len(unique), dtype=bool)
    first[1:] = unique[1:, 0] != unique[:-1, 0]
    row = np.empty(len(unique), dtype=np.int64)
    row[first] = unique[first, 0]
    row[~first] = count + np.arange(np.count_nonzero(~first))
    vertex = np.concatenate([np.arange(count), unique[~first, 0]])
    texture = np.zeros(len(vertex), dtype=np.int64)
    texture[row] = unique[:, 1]
    return vertex, texture, row[inverse.ravel()].reshape(-1, 3)


def _linear_from_srgb(colours: Bytes) -> Bytes:
    """uint8 linear light, which glTF wants, of uint8 sRGB (IEC 61966-2-1)."""
    value = colours / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.round(linear * 255).astype(np.uint8)
