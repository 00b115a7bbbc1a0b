"""AFLW's points: labels with a known shift, hidden ones that the aligner knows, and their bias."""

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
from dff.aligner.evaluation.landmark_offsets import OffsetConfig, latent_from_coefficients
from dff.aligner.evaluation.visible_points import (
    LabelledFaces,
    VisiblePointsReport,
    cross_validate_points,
    evaluate_visible_points,
    fit_point_bias,
    load_aflw_crops,
    load_point_set,
    measure_visible_points,
)
from dff.aligner.fitting.fit_model import FitModel
from dff.aligner.landmark_sets import PointBias, WrongModel
from dff.face.arrays import Bytes, Floats
from dff.face.errors import BadLandmarks, BadPhoto
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.landmark_offsets import MIRRORED_TERMS, TERMS
from dff.face.model.landmarks import MIRROR
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import known_alignment

YAWS = (0.0, -50.0, 80.0, 100.0)
SHIFT = np.array([3.0, -4.0])  # pixels
FLIP = np.array([-1.0, 1.0])  # multiplies what is right and down to mirror it
ON_MESH = load_point_set(as_marked=False)


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
    crop = np.zeros((120, 120, 3), np.uint8)
    face = aligner.align_batch([crop], [[load_aflw_crops().box]])[0][0]
    found = np.full((4, 21, 2), 1000.0)
    for i, some in ON_MESH.fitted.items():
        found[:, i] = face.landmarks_3d[list(some), :2].mean(0)
    return found


def evaluate(folder: Path, aligner: Aligner) -> VisiblePointsReport:
    return evaluate_visible_points(str(folder), aligner, as_marked=False)


def test_the_error_is_the_shift_of_the_visible_points(
    tmp_path: Path, aligner: Aligner, points: np.ndarray
) -> None:
    points += SHIFT
    points[:, :6] = np.nan  # the brows are hidden
    points[3, 15:] = np.nan  # nor much of the last face
    write_crops(tmp_path, points)
    report = evaluate(tmp_path, aligner)
    known = [i for i in ON_MESH.fitted if i > 5]
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
    hidden = [all(n < 31 for n in ON_MESH.visible_with[i]) for i in range(21)]
    for wrong in (False, True):
        labels = points.copy()
        labels[:, np.array(hidden) != wrong] = np.nan
        write_crops(tmp_path, labels)
        summary = evaluate(tmp_path, aligner).summary
        assert summary["visibility AUROC"] == (0.0 if wrong else 1.0)


def test_a_face_with_one_point_does_not_count(
    tmp_path: Path, aligner: Aligner, points: np.ndarray
) -> None:
    points[2, 1:] = np.nan
    write_crops(tmp_path, points)
    report = evaluate(tmp_path, aligner)
    assert report.summary["count"] == 3
    assert report.to_json()["images"]["crop2"] is None


def test_labels_and_crops_of_other_kinds_are_refused(
    tmp_path: Path, aligner: Aligner, points: np.ndarray
) -> None:
    with pytest.raises(BadLandmarks, match=r"can't read labels\.npz"):
        evaluate(tmp_path, aligner)
    write_crops(tmp_path, points[:, :19])
    with pytest.raises(BadLandmarks, match=r"points \(4, 19, 2\).*\(N, 21, 2\)"):
        evaluate(tmp_path, aligner)
    write_crops(tmp_path, points)
    Image.new("RGB", (64, 120)).save(tmp_path / "crop1.jpg")
    with pytest.raises(BadPhoto, match=r"crop1\.jpg has 64 x 120 pixels, not 120 x 120"):
        evaluate(tmp_path, aligner)


def test_the_bias_is_that_of_one_face_model(
    tmp_path: Path, aligner: Aligner, points: np.ndarray
) -> None:
    write_crops(tmp_path, points)
    with pytest.raises(WrongModel, match="open-head"):
        evaluate_visible_points(str(tmp_path), aligner)


@pytest.fixture
def fit_model(oracle_aligner: Aligner) -> FitModel:
    return oracle_aligner.fit_model


def turned_faces(fit_model: FitModel, count: int, rng: np.random.Generator) -> list[Alignment]:
    """Faces of all shapes in many poses, of which the camera sees one side."""
    faces, model = [], fit_model.model
    for yaw, pitch, roll in rng.uniform(-1.0, 1.0, (count, 3)) * [80.0, 20.0, 25.0]:
        face = known_alignment(model, load_aflw_crops().box)
        latent = rng.normal(size=len(fit_model.modes))
        face = replace(face, coefficients=fit_model.coefficients(latent))
        turn = Rigid(rotation_from_angles(yaw, pitch, roll), face.cam_from_head.translation)
        x = model.template[model.landmarks.vertex, 0]
        seen = np.where(x * np.sin(np.deg2rad(yaw)) > -0.02, 0.9, 0.1)
        faces.append(replace(face, cam_from_head=turn, visibility=seen))
    return faces


def some_bias(fit_model: FitModel, rng: np.random.Generator) -> PointBias:
    """A bias that is the same on both sides."""
    mirror = ON_MESH.find_mirror(fit_model.model)
    by_pose, visible = rng.normal(size=(21, TERMS, 2)) * 0.003, rng.normal(size=(21, 1 + TERMS))
    by_pose = (by_pose + by_pose[mirror] * MIRRORED_TERMS[:, None] * FLIP) / 2
    visible = (visible + visible[mirror] * [1.0, *MIRRORED_TERMS]) / 2
    by_latent = rng.normal(size=(21, len(fit_model.modes), 2)) * 0.0005
    other = np.einsum("kl,plc->pkc", fit_model.mirrored_latents, by_latent[mirror]) * FLIP
    by_shape = np.einsum(
        "plc,lk->pkc", (by_latent + other) / 2, latent_from_coefficients(fit_model)
    )
    return PointBias(by_pose, by_shape, visible, np.array([90.0, 30.0]))


def labelled(faces: list[Alignment], labels: Floats) -> LabelledFaces:
    names = tuple(map(str, range(len(faces))))
    return LabelledFaces(names, np.zeros(len(faces)), labels, tuple(faces))


def test_a_known_bias_is_found(open_head: MorphableModel, fit_model: FitModel) -> None:
    rng = np.random.default_rng(3)
    faces = turned_faces(fit_model, 500, rng)
    points = replace(ON_MESH, bias=some_bias(fit_model, rng))
    labels = np.stack([points.place(face, open_head) for face in faces])
    noisy = labels + rng.normal(size=labels.shape) * 0.3
    chance = np.stack([points.visibility(face) for face in faces])
    noisy[rng.random(chance.shape) > chance] = np.nan
    found, config = labelled(faces, noisy), OffsetConfig(steps=6, folds=3)
    bias = fit_point_bias(found, fit_model, config)
    fitted = replace(ON_MESH, bias=bias)
    placed = np.stack([fitted.place(face, open_head) for face in faces])
    marked = np.isfinite(noisy).all(2)
    error = np.linalg.norm(placed - labels, axis=2)[marked].mean()
    assert error < 0.2, "pixels, of which the noise has 0.4"
    shown = np.stack([fitted.visibility(face) for face in faces])
    assert np.abs(shown - chance).mean() < 0.08
    on_mesh = measure_visible_points(found, open_head, ON_MESH)
    report = cross_validate_points(found, fit_model, config)
    assert np.nanmean(report.error) < 0.3 * np.nanmean(on_mesh.error)
    assert report.summary["visibility AUROC"] > on_mesh.summary["visibility AUROC"] + 0.02
    refused = [replace(face, failed=True) for face in faces]
    with pytest.raises(BadLandmarks, match="no face could be fitted"):
        fit_point_bias(labelled(refused, noisy), fit_model, config)


def test_a_face_that_was_not_seen_is_judged_by_the_others(
    open_head: MorphableModel, fit_model: FitModel
) -> None:
    rng = np.random.default_rng(4)
    faces = turned_faces(fit_model, 60, rng)
    labels = np.stack([ON_MESH.place(face, open_head) for face in faces])
    labels[7] += 20.0
    report = cross_validate_points(labelled(faces, labels), fit_model, OffsetConfig())
    assert report.error[7] > 0.2
    assert np.delete(report.error, 7).max() < 0.01


@pytest.mark.parametrize("yaw", [-70.0, 0.0, 35.0])
def test_the_points_of_a_mirrored_face_are_mirrored(open_head: MorphableModel, yaw: float) -> None:
    points = load_point_set()
    face = known_alignment(open_head, Box(10, 10, 110, 110))
    rotation = rotation_from_angles(yaw, 8.0, 12.0)
    flip = np.diag([-1.0, 1.0, 1.0])
    visibility = np.random.default_rng(5).random(68)
    placed, seen = [], []
    for turn, shown in (
        (rotation, visibility),
        (flip @ rotation @ flip, visibility[MIRROR]),
    ):
        one = replace(face, cam_from_head=Rigid(turn, np.zeros(3)), visibility=shown)
        placed.append(points.place(one, open_head) - one.camera.centre)
        seen.append(points.visibility(one))
        camera = replace(one.camera, centre=one.camera.centre + SHIFT)
        moved = points.place(replace(one, camera=camera), open_head)
        np.testing.assert_allclose(moved - camera.centre, placed[-1], atol=1e-9)
    mirror = points.find_mirror(open_head)
    np.testing.assert_allclose(placed[1][mirror] * FLIP, placed[0], atol=0.01)
    np.testing.assert_allclose(seen[1][mirror], seen[0], atol=0.002)


def test_a_bias_comes_back_from_its_file(fit_model: FitModel) -> None:
    bias = some_bias(fit_model, np.random.default_rng(6))
    again = PointBias.from_json(json.loads(json.dumps(bias.to_json())))
    np.testing.assert_allclose(again.by_pose, bias.by_pose, atol=5.1e-6)
    np.testing.assert_allclose(again.by_shape, bias.by_shape, atol=5.1e-7)
    np.testing.assert_allclose(again.visible, bias.visible, atol=5.1e-5)
    with pytest.raises(ValueError, match=r"wants \(P, 14, 2\)"):
        replace(bias, visible=bias.visible[:, 1:])
    with pytest.raises(ValueError, match=r"\(P, C, 2\)"):
        replace(bias, by_shape=bias.by_shape[1:])
    with pytest.raises(ValueError, match="not finite"):
        replace(bias, by_pose=bias.by_pose * np.nan)
