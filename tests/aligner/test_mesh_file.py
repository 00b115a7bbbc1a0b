"""Mesh files show the same face in another program: shape, colours, texture coordinates."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
import trimesh

from dff.aligner.alignment import Alignment
from dff.aligner.mesh_file import encode_mesh, glb, obj, sample_colours
from dff.face.arrays import Bytes
from dff.face.geometry.camera import Box
from dff.face.geometry.mesh import vertex_normals
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import known_alignment


@pytest.fixture(scope="module")
def face(open_head: MorphableModel) -> Alignment:
    return known_alignment(open_head, Box(40, 40, 140, 140))


@pytest.fixture(scope="module")
def colours(face: Alignment) -> Bytes:
    return np.random.default_rng(0).integers(0, 255, face.vertices.shape, dtype=np.uint8)


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


def test_a_glb_holds_shape_normals_texture_coordinates_and_colours(
    face: Alignment, colours: Bytes, open_head: MorphableModel
) -> None:
    told, arrays = attributes(glb(face, open_head, colours=colours))
    assert open_head.licence in json.dumps(told)
    assert told["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0
    triangles = arrays["faces"].reshape(-1, 3)
    at = arrays["POSITION"]
    count = len(face.vertices)
    assert np.allclose(at[:count], face.vertices, atol=1e-6)  # the model's vertices come first
    assert np.allclose(at[triangles], face.vertices[open_head.faces], atol=1e-6)
    uv = arrays["TEXCOORD_0"][triangles]
    assert np.allclose(uv, open_head.uv[open_head.uv_faces], atol=1e-5)  # both have v down
    normals = vertex_normals(face.vertices, open_head.faces)
    assert np.allclose(arrays["NORMAL"][:count], normals, atol=1e-3)
    linear = (colours / 255.0) ** 2.2 * 255
    assert np.abs(arrays["COLOR_0"][:count, :3] - linear).max() < 3
    assert (arrays["COLOR_0"][:, 3] == 255).all()
    with pytest.raises(ValueError, match="colours"):
        glb(face, open_head, colours=colours[:5])


def test_an_obj_holds_the_same(face: Alignment, colours: Bytes, open_head: MorphableModel) -> None:
    text = obj(face, open_head, colours=colours).decode()
    assert open_head.licence in text
    rows: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        kind, *values = line.split()
        rows.setdefault(kind, []).append(values)
    vertices = np.array(rows["v"], float)
    assert np.allclose(vertices[:, :3], face.vertices, atol=1e-6)
    assert np.allclose(vertices[:, 3:] * 255, colours, atol=1e-3)
    corners = np.array([[c.split("/") for c in row] for row in rows["f"]], int) - 1
    assert np.array_equal(corners[..., 0], open_head.faces)
    assert np.array_equal(corners[..., 1], open_head.uv_faces)
    assert np.allclose(np.array(rows["vt"], float), open_head.uv * (1, -1) + (0, 1), atol=1e-5)
    normals = vertex_normals(face.vertices, open_head.faces)
    assert np.allclose(np.array(rows["vn"], float), normals, atol=1e-3)
    with pytest.raises(ValueError, match="colours"):
        obj(face, open_head, colours=colours[:5])


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".OBJ"])
def test_other_programs_read_the_file(
    face: Alignment, open_head: MorphableModel, suffix: str
) -> None:
    data = encode_mesh(face, open_head, suffix)
    mesh = trimesh.load(io.BytesIO(data), file_type=suffix[1:].lower(), force="mesh", process=False)
    assert np.allclose(
        mesh.bounds, trimesh.Trimesh(face.vertices, open_head.faces).bounds, atol=1e-5
    )
    assert len(mesh.faces) == len(open_head.faces)
    assert mesh.visual.uv is not None


def test_colours_are_those_of_the_photo(face: Alignment, open_head: MorphableModel) -> None:
    image = np.zeros((180, 180, 3), np.uint8)
    image[:, :, 0] = np.arange(180)
    image[:, :, 1] = np.arange(180)[:, None]
    image[:, :, 2] = 77
    colours = sample_colours(face, open_head, image)
    assert colours is not None
    nose = int(open_head.landmarks.vertex[30])
    x, y = face.camera.px_from_cam(face.cam_from_head.apply(face.vertices[nose : nose + 1]))[0]
    assert np.abs(colours[nose] - np.array([x - 0.5, y - 0.5, 77])).max() <= 1
    assert (colours[:, 2] == 77).all()  # hidden vertices have colours of visible ones


def test_a_face_outside_the_photo_has_no_colours(
    open_head: MorphableModel,
) -> None:
    outside = known_alignment(open_head, Box(500, 500, 600, 600))
    assert sample_colours(outside, open_head, np.zeros((90, 90, 3), np.uint8)) is None
