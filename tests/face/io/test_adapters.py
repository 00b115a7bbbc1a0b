"""The adapter of ICT-FaceKit: its model beside the open head, and malformed files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dff.face.errors import BadModel
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.transform import CAM_FROM_FRONTAL_HEAD
from dff.face.io.adapters import check_frame, from_ict_facekit
from dff.face.io.assets import load_model, read_arrays
from dff.face.model.landmarks import MIRROR, OUTER_EYE_CORNERS
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import render


@pytest.fixture(scope="module")
def ict_path(shared: Path) -> Path:
    return shared / "models" / "ict-facekit-light" / "ict_facekit_light.npz"


@pytest.fixture(scope="module")
def ict(ict_path: Path) -> MorphableModel:
    return load_model(str(ict_path))


def test_ict_facekit_is_the_size_of_the_open_head(
    ict: MorphableModel, open_head: MorphableModel
) -> None:
    assert ict.licence == "MIT"
    assert (len(ict.template), len(ict.identity), len(ict.expression)) == (24591, 100, 55)
    ours, theirs = (m.template[m.landmarks.vertex] for m in (open_head, ict))
    assert np.abs(theirs.mean(0)).max() < 1e-6
    a, b = OUTER_EYE_CORNERS
    ratio = np.linalg.norm(theirs[a] - theirs[b]) / np.linalg.norm(ours[a] - ours[b])
    assert 0.9 < ratio < 1.1
    assert (
        np.linalg.norm(ours[17:] - theirs[17:], axis=1).mean() < 0.01
    )  # the same points of the same frame


def test_ict_facekit_has_the_conventions_of_the_open_head(
    ict: MorphableModel, open_head: MorphableModel
) -> None:
    assert {"jawOpen", "mouthSmileLeft", "eyeBlinkRight"} <= set(ict.expression_names)
    expression = np.zeros(len(ict.expression))
    expression[ict.expression_names.index("jawOpen")] = 1.0
    drop = (ict.vertices(Coefficients(np.zeros(0), expression)) - ict.template)[
        ict.landmarks.vertex
    ]
    assert drop[8, 1] < -0.01
    assert ict.region_names == open_head.region_names
    at = ict.template[ict.landmarks.vertex]
    assert np.abs(at[MIRROR] * [-1, 1, 1] - at).max() < 0.002
    assert 0.0 <= ict.uv.min() <= ict.uv.max() <= 1.0
    jaw = ict.template[ict.landmarks.contour]
    assert (
        np.abs(jaw[:8, -1, 0]) < np.abs(jaw[:8, 0, 0]) + 1e-6
    ).all()  # each line ends nearer the middle


def test_quads_and_filled_triangles_make_one_closed_sheet(
    ict_path: Path, ict: MorphableModel
) -> None:
    quads = read_arrays(ict_path)["faces"]
    three = (quads[:, 3] < 0).sum()
    assert len(ict.faces) == 2 * len(quads) - three
    vertices = ict.template.astype(np.float64) @ CAM_FROM_FRONTAL_HEAD.T
    frame = render(
        vertices, ict.faces, WeakPerspective(700.0, np.array([128.0, 128.0])), (256, 256)
    )
    assert frame.mask[128, 128]
    skin = [ict.region_names.index(name) for name in ("face", "lips")]
    middle = frame.triangle[110:150, 110:150]
    assert np.isin(ict.region[middle[middle >= 0]], skin).mean() > 0.9
    assert frame.normal[128, 128, 2] < -0.5  # towards the camera: the triangles face outwards


def test_wrong_frames_and_tables_are_refused(
    ict_path: Path, tmp_path: Path, open_head: MorphableModel
) -> None:
    arrays = read_arrays(ict_path)
    vertex = open_head.landmarks.vertex
    check_frame(open_head.template, vertex)
    for wrong in (
        open_head.template * 100,
        open_head.template * [-1, 1, 1],
        open_head.template * [1, -1, -1],
    ):
        with pytest.raises(ValueError, match=r"apart|below|front"):
            check_frame(wrong, vertex)
    with pytest.raises(ValueError, match="apart"):
        from_ict_facekit(arrays | {"neutral": arrays["neutral"] * 10})  # millimetres
    path = tmp_path / "odd.npz"
    few = {k: v[:1] if k == "identity" else v for k, v in arrays.items()} | {
        "uv_faces": arrays["uv_faces"][:10]
    }
    few["expression"] = arrays["expression"][:1]
    np.savez(path, **few)
    with pytest.raises(BadModel, match=r"odd\.npz"):
        load_model(str(path))
