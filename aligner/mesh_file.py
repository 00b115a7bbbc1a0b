"""Fitted meshes as files that other programs open: binary glTF and Wavefront OBJ."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from dff.aligner.alignment import Alignment, PersonAlignment
from dff.aligner.gltf import UNLIT, GlbBuilder
from dff.face.arrays import Array, Bytes, Float, Floats, Ints
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import Rigid
from dff.face.model.morphable import Coefficients, MorphableModel

MESHES = (".glb", ".obj")
GLTF_FROM_CAM = np.diag([1.0, -1.0, -1.0])
"""glTF has y up and looks along -z; ``cam`` has y down and looks along z."""


@dataclass(frozen=True)
class HeadMotion:
    """One head over time, for an animation."""

    identity: Float[Array, " identities"]  # standard deviations
    times: Float[Array, " frames"]  # seconds, increasing
    expressions: Float[Array, "frames expressions"]  # activations
    cam_from_head: tuple[Rigid, ...]  # of each frame, in the camera of the film; metres


def encode_mesh(
    face: Alignment | PersonAlignment,
    model: MorphableModel,
    path: PurePath,
    *,
    texture: Bytes | None = None,
) -> dict[str, bytes]:
    """The files, by name, of a mesh at ``path``: one GLB, or an OBJ with material and texture.

    ``texture``: (S, S, 3) uint8 sRGB in the model's uv, such as ``FaceTexture.lit``.
    """
    if path.suffix.lower() != ".obj":
        return {path.name: glb(face, model, texture=texture)}
    stem = path.stem
    if texture is None:
        return {path.name: obj(face, model)}
    return {
        path.name: obj(face, model, material=f"{stem}.mtl"),
        f"{stem}.mtl": _material(f"{stem}.jpg"),
        f"{stem}.jpg": _encode_jpeg(texture),
    }


def glb(
    face: Alignment | PersonAlignment, model: MorphableModel, *, texture: Bytes | None = None
) -> bytes:
    """Binary glTF of a fitted mesh; of a person in several photos, the face at rest.

    In the head frame, which is glTF's own: metres, y up, looking along z. The expressions of the
    model are morph targets with their names, and the weights are the fitted ones. The first V
    vertices are the model's; copies for a second texture coordinate follow. The model's name and
    licence go along. ``texture``: (S, S, 3) uint8 sRGB in the model's uv; it is shown as it is,
    since it holds the light of its photo.
    """
    expression = np.zeros(len(model.expression))
    if isinstance(face, Alignment):
        expression[: len(face.coefficients.expression)] = face.coefficients.expression
    rest = face.vertices - model.motion(expression)
    builder = GlbBuilder()
    content = _describe_head(builder, model, rest, expression, texture)
    return builder.encode(content)


def animated_glb(
    motion: HeadMotion, model: MorphableModel, *, texture: Bytes | None = None
) -> bytes:
    """Binary glTF of a head that moves: weights of the morph targets, rotation and translation.

    As ``glb``, with the head before a camera at the origin that looks along -z.
    """
    none = np.zeros(len(model.expression))
    rest = model.vertices(Coefficients(motion.identity, none))
    builder = GlbBuilder()
    content = _describe_head(builder, model, rest, motion.expressions[0], texture)
    times = builder.add_floats(motion.times, bounds=True)
    rotations = np.stack([GLTF_FROM_CAM @ pose.rotation for pose in motion.cam_from_head])
    quaternions = _continuous_quaternions(rotations)
    places = np.stack([GLTF_FROM_CAM @ pose.translation for pose in motion.cam_from_head])
    tracks = {
        "weights": builder.add_floats(motion.expressions.ravel()),
        "rotation": builder.add_floats(quaternions),
        "translation": builder.add_floats(places),
    }
    samplers = [{"input": times, "output": number} for number in tracks.values()]
    channels = [
        {"sampler": i, "target": {"node": 0, "path": path}} for i, path in enumerate(tracks)
    ]
    first = {"rotation": quaternions[0].tolist(), "translation": places[0].tolist()}
    content["nodes"][0].update(first)  # what a viewer frames before the animation begins
    animation = {"name": "film", "samplers": samplers, "channels": channels}
    return builder.encode(content | {"animations": [animation]})


def obj(
    face: Alignment | PersonAlignment, model: MorphableModel, *, material: str | None = None
) -> bytes:
    """Wavefront OBJ of a fitted mesh, in the frame of ``glb``.

    Its vertices are exactly the model's. ``material``: name of a file with the material "face".
    """
    lines = [f"# model: {model.name}", f"# licence: {model.licence}"]
    lines += [f"mtllib {material}"] if material else []
    lines += ["o face"]
    lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in face.vertices.tolist()]
    lines += [f"vt {u:.6f} {1 - v:.6f}" for u, v in model.uv.tolist()]
    normals = vertex_normals(face.vertices, model.faces)
    lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in normals.tolist()]
    lines += ["usemtl face"] if material else []
    corners = np.stack([model.faces, model.uv_faces, model.faces], axis=-1) + 1
    lines += ["f " + " ".join("/".join(map(str, c)) for c in row) for row in corners.tolist()]
    return ("\n".join(lines) + "\n").encode()


def _describe_head(
    builder: GlbBuilder,
    model: MorphableModel,
    rest: Floats,
    expression: Floats,
    texture: Bytes | None,
) -> dict[str, Any]:
    """The content of a GLB with one node, whose mesh has the (V, 3) vertices ``rest`` at rest."""
    vertex, corner, triangles = _split_seams(model)
    shown = rest + model.motion(expression)
    attributes = {
        "POSITION": builder.add_floats(rest[vertex], of_vertices=True, bounds=True),
        # of the face as it is shown first: targets of normals would double the file
        "NORMAL": builder.add_floats(_unit_normals(shown, model.faces)[vertex], of_vertices=True),
        "TEXCOORD_0": builder.add_floats(model.uv[corner], of_vertices=True),
    }
    primitive = {
        "attributes": attributes,
        "indices": builder.add_triangles(triangles),
        "material": 0,
        "targets": [{"POSITION": builder.add_sparse(unit[vertex])} for unit in model.expression],
    }
    mesh = {
        "name": "face",
        "primitives": [primitive],
        "weights": expression.tolist(),
        "extras": {"targetNames": list(model.expression_names)},
    }
    if not len(model.expression):  # glTF has no empty lists
        del primitive["targets"], mesh["weights"], mesh["extras"]
    return {
        "asset": {"version": "2.0", "generator": "deep-face-feature", "copyright": model.licence},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "face", "mesh": 0}],
        "meshes": [mesh],
        "extras": {"model": model.name, "licence": model.licence},
        **_describe_material(builder, texture),
    }


def _describe_material(builder: GlbBuilder, texture: Bytes | None) -> dict[str, Any]:
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    if texture is None:
        surface["baseColorFactor"] = [0.8, 0.8, 0.8, 1.0]
        return {"materials": [{"name": "face", "pbrMetallicRoughness": surface}]}
    image = builder.add_image(_encode_jpeg(texture), "image/jpeg")
    surface["baseColorTexture"] = {"index": 0}
    material = {"name": "face", "pbrMetallicRoughness": surface, "extensions": {UNLIT: {}}}
    return {
        "materials": [material],
        "textures": [{"source": image}],
        "extensionsUsed": [UNLIT],
    }


def _continuous_quaternions(rotations: Floats) -> Floats:
    """(T, 4) x, y, z, w of (T, 3, 3) rotations, of signs between which one may interpolate."""
    out = Rotation.from_matrix(rotations).as_quat()
    turned = np.einsum("tc,tc->t", out[1:], out[:-1]) < 0
    out[1:] *= np.where(np.cumsum(turned) % 2 == 1, -1.0, 1.0)[:, None]
    return np.asarray(out)


def _unit_normals(vertices: Floats, faces: Ints) -> Floats:
    """``vertex_normals``, forward where a vertex belongs to no triangle."""
    normals = vertex_normals(vertices, faces).astype(np.float32)
    normals[~normals.any(1)] = (0.0, 0.0, 1.0)
    return np.asarray(normals)


def _encode_jpeg(texture: Bytes) -> bytes:
    if texture.dtype != np.uint8 or texture.ndim != 3 or texture.shape[2] != 3:
        raise ValueError(f"a texture is uint8 (S, S, 3), got {texture.dtype} {texture.shape}")
    buffer = io.BytesIO()
    Image.fromarray(texture).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _material(texture: str) -> bytes:
    """A material that shows the texture without further light."""
    return f"newmtl face\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nillum 0\nmap_Kd {texture}\n".encode()


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
