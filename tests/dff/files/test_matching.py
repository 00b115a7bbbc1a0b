"""``dff evaluate matching`` on photos: labels are read in the project's pixels, and one command
gives all figures.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from typer.testing import CliRunner

from dff.commands.app import app
from dff.face.errors import BadLandmarks, BadPhoto
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.morphable import MorphableModel
from dff.files.matching import read_labelled_photos
from tests.aligner.image_files import turned


@pytest.fixture
def folder(open_head: MorphableModel, tmp_path: Path) -> Path:
    """Three pictures of noise, labelled as AFLW2000-3D where the template's landmarks lie; and one
    without a label.
    """
    rng = np.random.default_rng(0)
    for number, yaw in enumerate((0.0, 12.0, 50.0)):
        noise = rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"image{number}.jpg"), cv2.resize(noise, (200, 200)))
        points = (
            open_head.template[open_head.landmarks.vertex] @ rotation_from_angles(yaw, 0.0, 0.0).T
        )
        px = (
            WeakPerspective(700.0, np.array([100.0, 90.0])).px_from_cam(points) + 0.5
        )  # counted from 1
        label = {
            "pt3d_68": np.column_stack([px, np.zeros(68)]).T,
            "Pose_Para": np.deg2rad([[0.0, yaw, 0.0, 0, 0, 0, 1]]),
        }
        scipy.io.savemat(tmp_path / f"image{number}.mat", label)
    cv2.imwrite(str(tmp_path / "other.jpg"), np.zeros((20, 20, 3), np.uint8))
    return tmp_path


def test_labels_are_read_in_pixels_from_the_corner(folder: Path) -> None:
    photos = read_labelled_photos(folder, None)
    assert [photo.pose[0] for photo in photos] == pytest.approx([0.0, 12.0, 50.0])
    assert all(photo.image.shape == (200, 200, 3) for photo in photos)
    np.testing.assert_allclose(
        photos[0].landmarks[[36, 45]].mean(0)[0], 100.0, atol=0.5
    )  # the eyes are symmetric
    moved = folder / "moved.npz"
    np.savez(moved, image1=photos[1].landmarks + 3.0 - 0.5)  # counted from 0
    (only,) = read_labelled_photos(folder, moved)
    np.testing.assert_allclose(only.landmarks, photos[1].landmarks + 3.0, atol=1e-4)


def test_photos_are_read_as_they_are_stored_and_broken_labels_are_named(folder: Path) -> None:
    stored = read_labelled_photos(folder, None)[0].image
    (folder / "image0.jpg").write_bytes(turned(stored[:150], 6))
    assert read_labelled_photos(folder, None)[0].image.shape == (150, 200, 3)
    whole = (folder / "image0.jpg").read_bytes()
    (folder / "image0.jpg").write_bytes(whole[:100])
    with pytest.raises(BadPhoto, match=r"image0\.jpg: the image"):
        read_labelled_photos(folder, None)
    (folder / "image0.jpg").write_bytes(whole)
    (folder / "image1.mat").write_bytes(b"broken")
    with pytest.raises(BadLandmarks, match=r"image1\.mat: not a readable"):
        read_labelled_photos(folder, None)


def test_one_command_gives_figures_thresholds_and_a_picture(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--pairs", "1", "--json", str(tmp_path / "m.json"), "--pictures", str(out)]
    result = CliRunner().invoke(app, ["evaluate", "matching", str(folder), *arguments])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "m.json").read_text())
    cells = {(row["method"], row["yaw"]) for row in content["rows"]}
    methods = ("dff", "raw", "patches", "sift 24", "sift 48", "sift 72", "daisy")
    assert cells == {(method, yaw) for method in methods for yaw in ("0-30", "30-60")}
    assert all(row["identity"] == "different" and row["pairs"] == 1 for row in content["rows"])
    # Noise shows no face: no detector finds one, and no threshold is met.
    judged = {t["name"]: t["met"] for t in content["thresholds"]}
    assert judged["different identity, yaw 0-30: PCK 5 %"] is False
    assert cv2.imread(str(out / "matching.jpg")) is not None
