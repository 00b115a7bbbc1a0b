"""Mesh files show the same face in another program: shape, colours, texture coordinates."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation

from dff.aligner.alignment import Alignment
from dff.aligner.mesh_file import GLTF_FROM_CAM, HeadMotion, animated_glb, encode_mesh, glb
from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import Box
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.morphable import Coefficients, MorphableModel
from tests.aligner.known_aligner import known_alignment


@pytest.fixture(scope="module")
def face(open_head: MorphableModel) -> Alignment:
    return known_alignment(open_head, Box(40, 40, 140, 140))


@pytest.fixture(scope="module")
def smile(face: Alignment, open_head: MorphableModel) -> Alignment:
    """The face with two expressions and an identity."""
    expression = np.zeros(len(open_head.expression))
    expression[[24, 43]] = 0.5, 1.0
    coefficients = Coefficients(np.ones(5), expression)
    return replace(face, coefficients=coefficients, vertices=open_head.vertices(coefficients))


@pytest.fixture(scope="module")
def texture() -> Bytes:
    """Smooth colours, which JPEG keeps."""
    across = np.linspace(0, 255, 64).astype(np.uint8)
    return np.stack(np.broadcast_arrays(across, across[:, None], np.uint8(80)), axis=2)


def attributes(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of a GLB, and the arrays of its only mesh as a reader without trimesh finds them."""
    length = struct.unpack("<I", data[12:16])[0]
    told = json.loads(data[20 : 20 + length])
    binary = data[28 + length :]
    kinds = {5121: np.uint8, 5125: np.uint32, 5126: np.float32}
    sizes = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
    (primitive,) = told["meshes"][0]["primitives"]
    arrays = {}
    for name, number in {**primitive["attributes"], "faces": primitive["indices"]}.items():
        accessor = told["accessors"][number]
        view = told["bufferViews"][accessor["bufferView"]]
        begin = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        width = sizes[accessor["type"]]
        flat = np.frombuffer(
            binary, kinds[accessor["componentType"]], accessor["count"] * width, begin
        )
        arrays[name] = flat.reshape(-1, width)
    return told, arrays


def binary_of(data: bytes) -> bytes:
    """The binary chunk of a GLB."""
    return data[28 + struct.unpack("<I", data[12:16])[0] :]


def read_floats(data: bytes, told: dict[str, Any], number: int) -> Floats:
    """The flat values of a float accessor."""
    accessor = told["accessors"][number]
    view = told["bufferViews"][accessor["bufferView"]]
    return np.frombuffer(
        binary_of(data), "<f4", view["byteLength"] // 4, view["byteOffset"]
    ).astype(np.float64)


def read_sparse(data: bytes, told: dict[str, Any], number: int) -> Floats:
    """(N, 3) values of a sparse accessor."""
    accessor = told["accessors"][number]
    sparse, views = accessor["sparse"], told["bufferViews"]
    rows = np.frombuffer(
        binary_of(data),
        "<u2",
        sparse["count"],
        views[sparse["indices"]["bufferView"]]["byteOffset"],
    )
    begin = views[sparse["values"]["bufferView"]]["byteOffset"]
    values = np.frombuffer(binary_of(data), "<f4", 3 * sparse["count"], begin)
    out = np.zeros((accessor["count"], 3))
    out[rows] = values.reshape(-1, 3)
    return out


def test_a_glb_holds_shape_expressions_and_texture(
    smile: Alignment, texture: Bytes, open_head: MorphableModel
) -> None:
    data = glb(smile, open_head, texture=texture)
    told, arrays = attributes(data)
    assert open_head.licence in json.dumps(told)
    triangles = arrays["faces"].reshape(-1, 3)
    count = len(smile.vertices)
    (mesh,) = told["meshes"]
    assert mesh["extras"]["targetNames"] == list(open_head.expression_names)
    morphed = arrays["POSITION"].astype(np.float64)
    for weight, target in zip(mesh["weights"], mesh["primitives"][0]["targets"], strict=True):
        if weight:
            morphed += weight * read_sparse(data, told, target["POSITION"])
    assert np.allclose(morphed[:count], smile.vertices, atol=1e-6)  # the model's come first
    assert np.allclose(morphed[triangles], smile.vertices[open_head.faces], atol=1e-6)
    uv = arrays["TEXCOORD_0"][triangles]
    assert np.allclose(uv, open_head.uv[open_head.uv_faces], atol=1e-5)  # both have v down
    normals = vertex_normals(smile.vertices, open_head.faces)
    assert np.allclose(arrays["NORMAL"][:count], normals, atol=1e-3)
    image = told["bufferViews"][told["images"][0]["bufferView"]]
    shown = Image.open(io.BytesIO(binary_of(data)[image["byteOffset"] :][: image["byteLength"]]))
    assert np.abs(np.asarray(shown).astype(float) - texture).mean() < 4
    with pytest.raises(ValueError, match="texture"):
        glb(smile, open_head, texture=texture[..., 0])


def test_an_animated_glb_repeats_the_motion(open_head: MorphableModel) -> None:
    expressions = np.zeros((3, len(open_head.expression)))
    expressions[:, 24] = 0.0, 0.5, 1.0
    poses = [
        Rigid(rotation_from_angles(yaw, 0.0, 0.0), np.array([0.1, 0.2, 1.5]))
        for yaw in (-20.0, 0.0, 20.0)
    ]
    motion = HeadMotion(np.ones(4), np.array([0.0, 0.04, 0.1]), expressions, tuple(poses))
    data = animated_glb(motion, open_head)
    told, _ = attributes(data)
    (animation,) = told["animations"]
    values = {
        channel["target"]["path"]: read_floats(
            data, told, animation["samplers"][channel["sampler"]]["output"]
        )
        for channel in animation["channels"]
    }
    assert np.allclose(values["weights"].reshape(3, -1), expressions)
    assert np.allclose(values["translation"].reshape(3, 3), (0.1, -0.2, -1.5))
    turned = Rotation.from_quat(values["rotation"].reshape(3, 4)).as_matrix()
    expected = np.stack([GLTF_FROM_CAM @ pose.rotation for pose in poses])
    assert np.allclose(turned, expected, atol=1e-6)
    times = read_floats(data, told, animation["samplers"][0]["input"])
    assert np.allclose(times, motion.times)


def test_an_obj_holds_shape_and_material(
    face: Alignment, texture: Bytes, open_head: MorphableModel
) -> None:
    files = encode_mesh(face, open_head, Path("out/face.obj"), texture=texture)
    assert [*files] == ["face.obj", "face.mtl", "face.jpg"]
    text = files["face.obj"].decode()
    assert open_head.licence in text
    assert "mtllib face.mtl" in text
    assert b"map_Kd face.jpg" in files["face.mtl"]
    rows: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        kind, *values = line.split()
        rows.setdefault(kind, []).append(values)
    assert np.allclose(np.array(rows["v"], float), face.vertices, atol=1e-6)
    corners = np.array([[c.split("/") for c in row] for row in rows["f"]], int) - 1
    assert np.array_equal(corners[..., 0], open_head.faces)
    assert np.array_equal(corners[..., 1], open_head.uv_faces)
    assert np.allclose(np.array(rows["vt"], float), open_head.uv * (1, -1) + (0, 1), atol=1e-5)
    normals = vertex_normals(face.vertices, open_head.faces)
    assert np.allclose(np.array(rows["vn"], float), normals, atol=1e-3)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".OBJ"])
def test_other_programs_read_the_file(
    face: Alignment, open_head: MorphableModel, suffix: str
) -> None:
    (data,) = encode_mesh(face, open_head, Path(f"face{suffix}")).values()
    mesh = trimesh.load(io.BytesIO(data), file_type=suffix[1:].lower(), force="mesh", process=False)
    assert np.allclose(
        mesh.bounds, trimesh.Trimesh(face.vertices, open_head.faces).bounds, atol=1e-5
    )
    assert len(mesh.faces) == len(open_head.faces)
    assert mesh.visual.uv is not None
