"""Files of published face models: written in small, read back, rendered and recovered."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dff.face.arrays import Floats, Ints
from dff.face.errors import BadModel
from dff.face.geometry.mesh import triangle_normals
from dff.face.io import assets, formats
from dff.face.io.assets import load_model
from dff.face.io.raw_model import guess_unit, strongest
from dff.face.io.registration import part
from dff.face.model.landmarks import INNER, JAW, NAMES, OUTER_EYE_CORNERS
from dff.face.model.morphable import MorphableModel

K, E = 5, 3
FLAME_MODES = 400  # the file's first 300 are shape


@dataclass(frozen=True)
class Written:
    """The content of the files: the open head's skin in metres, with a few of its modes."""

    template: Floats  # (V, 3)
    identity: Floats  # (K, V, 3)
    expression: Floats  # (E, V, 3)
    faces: Ints  # (F, 3)
    landmarks: Ints  # (68,)


@pytest.fixture(scope="module")
def head(open_head: MorphableModel) -> Written:
    surface, rows = part(
        open_head.template,
        open_head.faces,
        open_head.find_triangles("face", "lips", "brows", "ears", "neck", "scalp"),
    )
    jaw = open_head.expression_names.index("jawOpen")
    return Written(
        surface.vertices + np.array([0.01, -0.02, 0.03]),
        open_head.identity[:K, rows].astype(np.float64),
        open_head.expression[jaw : jaw + E, rows].astype(np.float64),
        np.asarray(surface.faces, np.int64),
        np.searchsorted(rows, open_head.landmarks.vertex),
    )


def orthonormal(modes: Floats) -> tuple[Floats, Floats]:
    """(3V, K) orthonormal columns and (K,) standard deviations with the span of (K, V, 3) modes."""
    u, s, _ = np.linalg.svd(modes.reshape(len(modes), -1).T, full_matrices=False)
    return u, s


def basel_2009(head: Written, path: Path) -> Path:
    from scipy.io import savemat

    basis, sd = orthonormal(head.identity)
    savemat(
        path / "01_MorphableModel.mat",
        {
            "shapeMU": (head.template * 1e6).reshape(-1, 1).astype(np.float32),
            "shapePC": basis.astype(np.float32),
            "shapeEV": (sd * 1e6)[:, None].astype(np.float32),
            "texMU": np.full((head.template.size, 1), 128, np.float32),
            "tl": (head.faces[:, [0, 2, 1]] + 1).astype(np.float64),  # clockwise, counted from one
        },
    )
    return path / "01_MorphableModel.mat"


def basel_h5(head: Written, path: Path) -> Path:
    import h5py

    name = path / "model2017-1_face12_nomouth.h5"
    marks = {
        "center.nose.tip": "nose_tip",
        "left.eye.corner_outer": "eye_left_outer",
        "unknown.point": "chin",
    }
    with h5py.File(name, "w") as file:
        file["version/majorVersion"] = 0
        for group, mean, modes in (
            ("shape", head.template, head.identity),
            ("expression", 0 * head.template, head.expression),
        ):
            basis, sd = orthonormal(modes)
            file[f"{group}/model/mean"] = (1e3 * mean).ravel().astype(np.float32)
            file[f"{group}/model/pcaBasis"] = basis.astype(np.float32)
            file[f"{group}/model/pcaVariance"] = ((1e3 * sd) ** 2).astype(np.float32)
            file[f"{group}/model/noiseVariance"] = np.zeros(1, np.float32)
            file[f"{group}/representer/cells"] = head.faces.T.astype(np.int32)
            file[f"{group}/representer/points"] = (1e3 * mean).T.astype(np.float32)
        file["metadata/landmarks/json"] = json.dumps(
            [
                {
                    "id": key,
                    "coordinates": (1e3 * head.template[head.landmarks[NAMES.index(of)]]).tolist(),
                }
                for key, of in marks.items()
            ]
        )
    return name


def eos_bytes(head: Written, *, version: int = 4) -> bytes:
    def matrix(values: Floats) -> bytes:
        return struct.pack("<ii", *values.shape) + np.asfortranarray(values.astype("<f4")).tobytes(
            "F"
        )

    def vector(values: Floats | Ints, kind: str) -> bytes:
        return struct.pack("<Q", len(values)) + np.ascontiguousarray(values.astype(kind)).tobytes()

    def pca(mean: Floats, modes: Floats, faces: Ints) -> bytes:
        basis, sd = orthonormal(modes)
        eigenvalues = (sd**2)[:, None]
        return (
            matrix(mean.reshape(-1, 1)) + matrix(basis) + matrix(eigenvalues) + vector(faces, "<i4")
        )

    out = struct.pack("<I", version) + pca(1e3 * head.template, 1e3 * head.identity, head.faces)
    out += pca(1e3 * head.template, 1e3 * head.identity[:1], head.faces)  # colour
    if version >= 2:
        out += struct.pack("<?i", False, 1) + struct.pack(
            "<Q", E
        )  # there are expressions, and they are blendshapes
        for number, shape in enumerate(head.expression):
            name = f"unit_{number}".encode()
            out += struct.pack("<Q", len(name)) + name + matrix(1e3 * shape.reshape(-1, 1))
    if version >= 3:
        out += struct.pack("<?", True)  # no landmark definitions
    uv = 0.5 + 2.0 * head.template[:, :2]
    out += vector(np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1), "<f8")
    return out + (vector(head.faces, "<i4") if version == 4 else b"")


def surrey(head: Written, path: Path) -> Path:
    name = path / "sfm_shape_3448.bin"
    name.write_bytes(eos_bytes(head))
    lines = [f"{i + 1} = {head.landmarks[i]} # {NAMES[i]}" for i in range(17, 68)]
    (path / "ibug_to_sfm.txt").write_text(
        "[landmark_mappings]\n"
        + "\n".join(lines)
        + "\n[contour_landmarks]\nright = [ 380,\n 373 ]\n"
    )
    return name


def flame(head: Written, path: Path) -> Path:
    pytest.importorskip("body_models")
    count = len(head.template)
    shapes = np.zeros((count, 3, FLAME_MODES), np.float32)
    shapes[:, :, :K] = np.moveaxis(head.identity, 0, -1)
    shapes[:, :, 300 : 300 + E] = np.moveaxis(head.expression, 0, -1)
    weights = np.zeros((count, 5))
    lower = (
        head.template[:, 1]
        < head.template[head.landmarks[NAMES.index("lip_lower_inner_middle")], 1]
    )
    weights[~lower, 0] = 1.0
    weights[lower, 2] = 1.0
    joints = np.zeros((5, count))
    joints[:, head.landmarks[[0, 16]]] = 0.5  # all turn about the middle between the ears
    name = path / "FLAME_NEUTRAL.npz"
    np.savez(
        name,
        v_template=head.template,
        shapedirs=shapes,
        f=head.faces,
        weights=weights,
        posedirs=np.zeros((count, 3, 36)),
        J_regressor=joints,
        kintree_table=np.array([[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
    )
    return name


def gnm(head: Written, path: Path) -> Path:
    pytest.importorskip("body_models")
    count = len(head.template)
    identity, expression = (
        np.zeros((253, count, 3), np.float32),
        np.zeros((383, count, 3), np.float32),
    )
    identity[10 : 10 + K] = head.identity  # the published modes are sorted by parts, not by size
    expression[200 : 200 + E] = head.expression
    name = path / "gnm_head.npz"
    np.savez(
        name,
        version="3.0",
        variant="head",
        template_vertex_positions=head.template.astype(np.float32),
        vertex_identity_basis=identity,
        expression_basis=expression,
        skinning_weights=np.tile([[1.0], [0.0], [0.0], [0.0]], count).astype(np.float32),
        pose_correctives_regressor=np.zeros((36, 3 * count), np.float32),
        triangles=head.faces,
        template_joint_positions=np.zeros((4, 3), np.float32),
        joint_identity_basis=np.zeros((253, 4, 3), np.float32),
        joint_parent_indices=np.array([-1, 0, 1, 1]),
        joint_names=np.array(["neck", "head", "left_eye", "right_eye"]),
        identity_names=np.array([f"i{n}" for n in range(253)]),
        expression_names=np.array([f"e{n}" for n in range(383)]),
    )
    return name


WRITERS: dict[str, Callable[[Written, Path], Path]] = {
    "basel-2009": basel_2009,
    "basel-2017": basel_h5,
    "surrey": surrey,
    "flame": flame,
    "gnm": gnm,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_published_layout_becomes_a_model(head: Written, tmp_path: Path, name: str) -> None:
    model = load_model(str(WRITERS[name](head, tmp_path)))
    assert model.name == name
    assert model.licence == next(info.licence for info in assets.SUPPLIED if info.name == name)
    centre = head.template[model.landmarks.vertex].mean(0)
    np.testing.assert_allclose(model.template, head.template - centre, atol=2e-6)
    # The same shapes: the modes span what was written, at the same size.
    assert len(model.identity) == K
    for modes, written in ((model.identity, head.identity), (model.expression, head.expression)):
        if len(modes):
            basis, sd = orthonormal(modes)
            flat = written.reshape(len(written), -1).T
            assert (
                np.linalg.norm(flat - basis[:, sd > 1e-6] @ (basis[:, sd > 1e-6].T @ flat)) < 1e-4
            )
    np.testing.assert_allclose(
        np.linalg.norm(model.identity), np.linalg.norm(head.identity), rtol=1e-4
    )
    assert np.array_equal(np.sort(model.faces, axis=1), np.sort(head.faces, axis=1))
    normals = triangle_normals(model.template, model.faces)
    assert (
        normals * model.template[model.faces].mean(1)
    ).sum() > 0  # outwards, also of a clockwise file
    # Landmarks that the file does not name are found; those that are named stay.
    away = np.linalg.norm(
        head.template[model.landmarks.vertex] - head.template[head.landmarks], axis=1
    )
    assert np.median(away) < 0.002
    assert away[INNER].max() < 0.008
    if name == "surrey":
        np.testing.assert_array_equal(model.landmarks.vertex[INNER], head.landmarks[INNER])
    if name == "basel-2017":
        assert away[NAMES.index("nose_tip")] == 0.0
    if name == "flame":
        assert model.expression_names[0] == "jawOpen"
        chin = model.expression[0][model.landmarks.vertex[NAMES.index("chin")]]
        assert chin[1] < -0.01  # downwards
    assert model.uv.min() >= 0
    assert model.uv.max() <= 1
    lips = model.template[model.faces[model.find_triangles("lips")]].mean((0, 1))
    mouth = model.template[model.landmarks.vertex[48:60]].mean(0)
    assert np.linalg.norm(lips - mouth) < 0.01


@pytest.mark.parametrize("name", ["basel-2017", "flame"])
def test_a_face_of_such_a_file_is_rendered_and_recovered(
    head: Written, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's file is found by name in DFF_MODELS, rendered, and fitted."""
    from dff.face.geometry.transform import geodesic_degrees
    from dff.face.io.assets import load_albedo
    from dff.pipeline.recovery.inverse import invert
    from tests.pipeline.recovery.test_inverse import face_error, made

    path = WRITERS[name](head, tmp_path)
    monkeypatch.setenv(assets.FOLDER, str(tmp_path))
    monkeypatch.setitem(assets.FILES, "flame", "FLAME_NEUTRAL.npz")  # a .pkl is published
    model = load_model(name)
    assert assets.model_path(name) == path
    albedo = load_albedo(model=model)
    truth = made(model, albedo, 20.0, seed=2, identities=K)
    recovery = invert(truth.photo, model=model, albedo=albedo)
    assert geodesic_degrees(recovery.cam_from_head.rotation, truth.cam_from_head.rotation) < 3.0
    assert face_error(recovery, truth, model) < 0.006
    assert recovery.quality["colour_error"] < 0.03


@pytest.mark.parametrize("name", ["gnm", "flame"])
def test_the_published_asset_itself(name: str, shared: Path) -> None:
    """Runs where body-models finds the real file; tests download nothing."""
    config = pytest.importorskip("body_models._config")
    cache = pytest.importorskip("body_models._cache")
    path = config.get_model_path(name) or cache.get_cache_dir() / name / assets.FILES[name]
    if not Path(path).is_file():
        pytest.skip(f"needs the asset of {name}, which its users fetch with body-models: {path}")
    model = load_model(str(path))
    right, left = model.template[model.landmarks.vertex[list(OUTER_EYE_CORNERS)]]
    assert 0.08 < left[0] - right[0] < 0.11
    assert model.landmarks.vertex[JAW].size == 17


def test_every_version_of_eos_is_read(head: Written) -> None:
    for version in (1, 2, 3, 4):
        raw = formats.eos(eos_bytes(head, version=version), {})
        np.testing.assert_allclose(raw.template, 1e3 * head.template, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(raw.faces, head.faces)
        assert raw.unit_names == (() if version == 1 else ("unit_0", "unit_1", "unit_2"))
        if version > 1:
            np.testing.assert_allclose(raw.units, 1e3 * head.expression, atol=1e-3)
        assert raw.uv is not None
        np.testing.assert_allclose(raw.uv, 0.5 + 2.0 * head.template[:, :2], atol=1e-6)


def test_files_that_are_no_models_are_refused_by_name(head: Written, tmp_path: Path) -> None:
    good = eos_bytes(head)
    bad = {
        "cut.bin": good[: len(good) // 2],
        "other.bin": struct.pack("<I", 77) + good[4:],
        "noise.mat": b"MATLAB" + bytes(500),
        "noise.h5": bytes(500),
        "noise.pkl": b"not a pickle",
        "empty.bin": b"",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadModel, match=name.replace(".", r"\.")):
            load_model(str(tmp_path / name))
    flat = tmp_path / "flat.bin"
    flat.write_bytes(
        eos_bytes(
            Written(head.template * 9.0, head.identity, head.expression, head.faces, head.landmarks)
        )
    )
    with pytest.raises(BadModel, match=r"flat\.bin.* not a face"):
        load_model(str(flat))


def test_the_unit_follows_from_the_height() -> None:
    for unit in (1.0, 0.01, 1e-3, 1e-6):
        assert guess_unit(np.array([[0.0, 0.0, 0.0], [0.0, 0.2 / unit, 0.0]])) == unit
    with pytest.raises(ValueError, match="not a face"):
        guess_unit(np.zeros((3, 3)))


def test_landmark_tables_of_eos_are_read() -> None:
    text = "# comment\n[landmark_mappings]\n18 = 225 # brow\n 31 = 114\n"
    text += "[contour_landmarks]\nleft = [ 1,\n 2 ]\n"
    assert formats.landmark_table(text) == {NAMES[17]: 225, NAMES[30]: 114}
    for wrong in ("nothing", "69 = 5\n"):
        with pytest.raises(ValueError, match="no mapping"):
            formats.landmark_table(wrong)


def test_the_modes_of_largest_variance_are_kept() -> None:
    modes = np.array([1.0, 3.0, 2.0])[:, None, None] * np.ones((3, 4, 3))
    np.testing.assert_allclose(strongest(modes, 2)[:, 0, 0], [3.0, 2.0])
