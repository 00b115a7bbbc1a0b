"""AFLW's points: labels with a known shift, and hidden ones that the aligner knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.evaluation.visible_points import evaluate_visible_points, load_scheme
from dff.face.arrays import Bytes
from dff.face.errors import BadLandmarks, BadPhoto
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import known_alignment

YAWS = (0.0, -50.0, 80.0, 100.0)
SHIFT = np.array([3.0, -4.0])  # pixels


class HalfHidden:
    """Finds the neutral face in every crop and takes its landmarks 0 to 30 for hidden."""

    def __init__(self, model: MorphableModel) -> None:
        self.model = model

    def align_batch(
        self, images: Sequence[Bytes], boxes: Sequence[Sequence[Box]]
    ) -> list[list[Alignment]]:
        visibility = np.where(np.arange(68) < 31, 0.2, 0.9)
        face = replace(known_alignment(self.model, boxes[0][0]), visibility=visibility)
        return [[face] for _ in images]


@pytest.fixture
def aligner(toy_model: MorphableModel) -> Aligner:
    return cast(Aligner, HalfHidden(toy_model))


def write_crops(folder: Path, points: np.ndarray) -> None:
    names = [f"crop{i}" for i in range(len(points))]
    for name in names:
        Image.new("RGB", (120, 120)).save(folder / f"{name}.jpg")
    np.savez(folder / "labels.npz", name=names, points=points, yaw=YAWS[: len(points)])


@pytest.fixture
def points(aligner: Aligner) -> np.ndarray:
    """(4, 21, 2) the points that the aligner finds; the ears are far off."""
    face = aligner.align_batch([np.zeros((120, 120, 3), np.uint8)], [[load_scheme().box]])[0][0]
    found = np.full((4, 21, 2), 1000.0)
    for i, some in enumerate(load_scheme().points):
        if some:
            found[:, i] = face.landmarks_3d[list(some), :2].mean(0)
    return found


def test_the_error_is_the_shift_of_the_visible_points(
    tmp_path: Path, aligner: Aligner, points: np.ndarray
) -> None:
    points += SHIFT
    points[:, :6] = np.nan  # the brows are hidden
    points[3, 15:] = np.nan  # nor much of the last face
    write_crops(tmp_path, points)
    report = evaluate_visible_points(str(tmp_path), aligner)
    known = [i for i in load_scheme().known if i > 5]
    size = np.sqrt(np.ptp(points[0, known], axis=0).prod())
    assert report.error[:3] == pytest.approx(5.0 / size)
    last = np.sqrt(np.ptp(points[3, [*range(6, 12), 13, 14]], axis=0).prod())
    bins = report.summary["nme_visible_by_yaw"]
    assert bins["60-90 count"] == 2
    assert bins["60-90"] == pytest.approx(50 * (5 / size + 5 / last), abs=1e-3)
    assert bins["mean of bins"] == pytest.approx(
        np.mean([bins["0-30"], bins["30-60"], bins["60-90"]]), abs=1e-3
    )
    content = json.loads(json.dumps(report.to_json()))
    assert "19 of 21" in content["protocol"]
    assert content["images"]["crop0"] == pytest.approx(5.0 / size, abs=1e-5)


def test_hidden_points_are_those_that_people_did_not_mark(
    tmp_path: Path, aligner: Aligner, points: np.ndarray
) -> None:
    """AUROC 1 where the aligner hides the same points, 0 where it hides the others."""
    hidden = [all(n < 31 for n in some) for some in load_scheme().points]
    for wrong in (False, True):
        labels = points.copy()
        labels[:, np.array(hidden) != wrong] = np.nan
        write_crops(tmp_path, labels)
        summary = evaluate_visible_points(str(tmp_path), aligner).summary
        assert summary["visibility AUROC"] == (0.0 if wrong else 1.0)


def test_a_face_with_one_point_does_not_count(
    tmp_path: Path, aligner: Aligner, points: np.ndarray
) -> None:
    points[2, 1:] = np.nan
    write_crops(tmp_path, points)
    report = evaluate_visible_points(str(tmp_path), aligner)
    assert report.summary["count"] == 3
    assert report.to_json()["images"]["crop2"] is None


def test_labels_and_crops_of_other_kinds_are_refused(
    tmp_path: Path, aligner: Aligner, points: np.ndarray
) -> None:
    with pytest.raises(BadLandmarks, match=r"can't read labels\.npz"):
        evaluate_visible_points(str(tmp_path), aligner)
    write_crops(tmp_path, points[:, :19])
    with pytest.raises(BadLandmarks, match=r"points \(4, 19, 2\).*\(N, 21, 2\)"):
        evaluate_visible_points(str(tmp_path), aligner)
    write_crops(tmp_path, points)
    Image.new("RGB", (64, 120)).save(tmp_path / "crop1.jpg")
    with pytest.raises(BadPhoto, match=r"crop1\.jpg has 64 x 120 pixels, not 120 x 120"):
        evaluate_visible_points(str(tmp_path), aligner)
