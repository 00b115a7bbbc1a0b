import io
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from dff.face.errors import BadLandmarks
from dff.infra.photos.landmark_files import format_pts, parse_mat, parse_pts, parse_reannotated

SAMPLE = Path(__file__).parents[3].parent / "shared" / "data" / "aflw2000-3d-sample"


def pts(points: np.ndarray) -> bytes:
    rows = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points)
    return f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n".encode()


def mat(points: np.ndarray, pose: np.ndarray) -> bytes:
    out = io.BytesIO()
    scipy.io.savemat(out, {"pt3d_68": points, "Pose_Para": pose})
    return out.getvalue()


def test_each_origin_becomes_the_project_pixel_convention() -> None:
    ones = np.ones((68, 2))
    assert np.allclose(parse_pts(pts(ones)), 0.5)
    label = parse_mat(mat(np.ones((3, 68)), np.deg2rad([[10.0, -60.0, 5.0, 1, 2, 3, 4]])))
    assert np.allclose(label.landmarks, [0.5, 0.5, 1.0])
    assert np.allclose([label.pitch, label.yaw, label.roll], [10.0, -60.0, 5.0])
    out = io.BytesIO()
    np.savez(out, image00002=np.zeros((68, 2)))
    named = parse_reannotated(out.getvalue())
    assert isinstance(named, dict)
    assert np.allclose(named["image00002"], 0.5)
    out = io.BytesIO()
    np.save(out, np.zeros((5, 3, 68)))
    rows = parse_reannotated(out.getvalue())
    assert np.shape(rows) == (5, 68, 2)
    assert np.allclose(rows, 0.5)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        b"version: 1\n{\n1 2\n3 x\n}",
        b"{ 1 2 3 }",
        pts(np.ones((67, 2))),
        pts(np.full((68, 2), np.nan)),
        pts(np.full((68, 2), np.inf)),
    ],
)
def test_malformed_pts_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(BadLandmarks):
        parse_pts(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a mat file",
        mat(np.ones((3, 68)), np.zeros((1, 7)))[:200],
        mat(np.ones((3, 67)), np.zeros((1, 7))),
        mat(np.full((3, 68), np.nan), np.zeros((1, 7))),
        mat(np.ones((3, 68)), np.zeros((1, 2))),
    ],
)
def test_malformed_mat_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(BadLandmarks):
        parse_mat(data)


def test_malformed_npz_is_refused_by_name() -> None:
    out = io.BytesIO()
    np.savez(out, a=np.zeros((3, 2)))
    row = io.BytesIO()
    np.save(row, np.zeros((5, 4, 68)))
    for data in (b"", b"PK", out.getvalue(), row.getvalue()):
        with pytest.raises(BadLandmarks):
            parse_reannotated(data)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no AFLW2000-3D sample beside the repository")
def test_the_two_labellings_of_the_sample_agree_only_with_their_origins() -> None:
    better = parse_reannotated((SAMPLE / "reannotated_pts68.npz").read_bytes())
    assert isinstance(better, dict)
    offsets = [
        parse_mat((SAMPLE / f"{name}.mat").read_bytes()).landmarks[:, :2] - better[name]
        for name in better
    ]
    # Were one origin wrong, both medians would be off by one.
    assert np.abs(np.median(np.concatenate(offsets), axis=0)).max() < 0.5


def test_points_written_are_points_read() -> None:
    points = np.random.default_rng(0).uniform(-50, 3000, (68, 2))
    assert np.allclose(parse_pts(format_pts(points)), points, rtol=0, atol=5.1e-4)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_points_of_other_editors_are_read(encoding: str) -> None:
    points = np.random.default_rng(0).uniform(0, 60, (68, 2))
    text = "// Zoë\n" + format_pts(points).decode().replace("\n", "\r\n")
    np.testing.assert_allclose(parse_pts(text.encode(encoding)), points, atol=1e-3)
