"""Landmark offsets: known annotation biases are recovered and added to the landmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.aligner.config import SmoothingConfig
from dff.aligner.evaluation.benchmarks import Row, Sample
from dff.aligner.evaluation.landmark_offsets import (
    BiasTerms,
    LabelErrors,
    OffsetConfig,
    align_training_photos,
    cross_validate,
    fit_bias_by_pose,
    fit_bias_terms,
    fit_landmark_offsets,
    fit_offsets,
    fit_responses,
)
from dff.aligner.landmark_placement import JAW_TOLERANCE
from dff.aligner.tracking.tracker import Smoother
from dff.face.arrays import Floats
from dff.face.errors import BadLandmarks
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import (
    geodesic_degrees,
    rotation_from_angles,
    rotation_from_vector,
)
from dff.face.model.landmark_offsets import (
    MIRRORED_TERMS,
    TERMS,
    LandmarkOffsets,
    UprightPose,
    close_edges,
    pose_terms,
)
from dff.face.model.landmarks import INNER, JAW, MIRROR, NAMES, SCHEMES
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.split import assign_split, default_group
from dff.infra.networks import weights
from tests.aligner.oracle import PositionCode, Scene, make_scene
from tests.face.model.contour import contour_points

CONFIG = OffsetConfig()
FLIP = np.array([-1.0, 1.0, 1.0])


def some_offsets(rng: np.random.Generator, size: float = 0.004) -> Floats:
    """(68, 3) metres, the same on both sides."""
    offset = rng.normal(size=(68, 3)) * size
    return np.asarray((offset + offset[MIRROR] * FLIP) / 2)


def poses(count: int, rng: np.random.Generator) -> Floats:
    """(N, 2, 3) rows of cam_from_head."""
    angles = rng.normal(size=(count, 3)) * [35.0, 12.0, 10.0]
    return np.stack([rotation_from_angles(*turn)[:2] for turn in angles])


def test_known_offsets_are_found_under_noise_and_outliers() -> None:
    rng = np.random.default_rng(0)
    landmark_offsets, rows = some_offsets(rng), poses(400, rng)
    away = np.einsum("nij,kj->nki", rows, landmark_offsets) + rng.normal(size=(400, 68, 2)) * 0.002
    away[rng.random((400, 68)) < 0.1] += 0.05
    found = fit_offsets(LabelErrors(rows, away, np.zeros((400, 0))), CONFIG, depth=0.0)
    assert np.abs(found - landmark_offsets).max() < 0.001
    np.testing.assert_allclose(found, found[MIRROR] * FLIP, atol=1e-12)


def test_unobserved_offsets_stay_zero() -> None:
    rng = np.random.default_rng(1)
    landmark_offsets = some_offsets(rng)
    rows = np.stack([rotation_from_angles(yaw, 0.0, 0.0)[:2] for yaw in rng.normal(size=50) * 2.0])
    away = np.einsum("nij,kj->nki", rows, landmark_offsets)
    found = fit_offsets(LabelErrors(rows, away, np.zeros((50, 0))), CONFIG)
    assert np.abs(found[:, 2]).max() < 0.05 * np.abs(landmark_offsets[:, 2]).max(), (
        "frontal views say nothing of depth"
    )
    assert np.abs(found - landmark_offsets)[:, :2].max() < 0.1 * np.abs(landmark_offsets).max()
    assert not fit_offsets(
        LabelErrors(rows, np.zeros_like(away), np.zeros((50, 0))), CONFIG
    ).any(), "no errors, no offset"


def test_a_shift_of_all_labels_to_one_side_is_no_offset() -> None:
    rows = np.stack([rotation_from_angles(yaw, 0.0, 0.0)[:2] for yaw in (-30.0, -10.0, 10.0, 30.0)])
    found = fit_offsets(
        LabelErrors(rows, np.full((4, 68, 2), [0.002, 0.0]), np.zeros((4, 0))), CONFIG
    )
    assert np.abs(found).max() < 1e-6


def test_responses_to_shape_are_recovered_on_both_sides() -> None:
    rng = np.random.default_rng(3)
    rows, latent = poses(600, rng), rng.normal(size=(600, 4))
    mirrored = np.diag(
        [1.0, -1.0, 1.0, -1.0]
    )  # of the second and fourth direction mirrored faces have the opposite
    moves = rng.normal(size=(68, 3, 4)) * 0.0005
    moves = (moves + FLIP[:, None] * (moves[MIRROR] @ mirrored)) / 2
    offset = some_offsets(rng)
    away = np.einsum("nij,nkj->nki", rows, offset + np.einsum("kjp,np->nkj", moves, latent))
    away += rng.normal(size=away.shape) * 0.001
    found = fit_responses(LabelErrors(rows, away, latent), offset, mirrored, CONFIG)
    assert np.abs(found - moves).max() < 0.0004
    assert np.abs(found - moves).mean() < 0.2 * np.abs(moves).mean()
    np.testing.assert_allclose(found, FLIP[:, None] * (found[MIRROR] @ mirrored), atol=1e-12)


def test_known_offsets_by_pose_are_found_under_noise_and_outliers() -> None:
    rng = np.random.default_rng(10)
    table = rng.normal(size=(68, TERMS, 2)) * 0.004
    table = (table + table[MIRROR] * MIRRORED_TERMS[:, None] * FLIP[:2]) / 2
    angles = rng.uniform(-1.0, 1.0, (300, 3)) * [80.0, 25.0, 20.0]
    pose = UprightPose.of(np.stack([rotation_from_angles(*turn) for turn in angles]))
    limit = np.array([90.0, 90.0])
    terms = pose_terms(pose, limit)
    true = np.einsum("nt,ltc->nlc", terms, table)
    away = true + rng.normal(size=true.shape) * 0.002
    away[rng.random((300, 68)) < 0.1] += 0.05
    mirrored = away[:, MIRROR] * FLIP[:2]
    found = fit_bias_terms(
        BiasTerms.of_pose(pose, limit, CONFIG),
        away,
        mirrored,
        outlier=CONFIG.pose_outlier,
        steps=CONFIG.steps,
    )
    error = np.linalg.norm(np.einsum("nt,ltc->nlc", terms, found) - true, axis=2)
    assert error.mean() < 0.0008, "noise alone is 2.5 mm, the offsets 8"
    np.testing.assert_allclose(found, found[MIRROR] * MIRRORED_TERMS[:, None] * FLIP[:2], atol=1e-9)


def labelled_row(face: Alignment, name: str, move: Floats, turn: Floats) -> Row:
    """A row as of AFLW2000-3D whose labels differ from the face by ``move`` px and ``turn``."""
    points, rotation = face.landmarks_3d[:, :2] + move, face.pose.matrix @ turn
    sample = Sample(name, name, points, Box.around(points), rotation, face.pose.yaw)
    return Row(sample, face, points, {})


def test_photos_are_judged_by_offsets_of_the_other_photos(
    oracle_aligner: Aligner, open_head: MorphableModel, code: PositionCode
) -> None:
    rng = np.random.default_rng(11)
    faces = []
    for yaw in np.linspace(-60.0, 60.0, 6):
        one = make_scene(open_head, code, yaw=yaw, rng=rng)
        faces += oracle_aligner.align(one.image, [one.box])
    turn = rotation_from_vector(np.deg2rad([4.0, 0.0, 0.0]))
    move = np.array([0.0, 3.0])
    rows = [labelled_row(face, str(i), move, turn) for i, face in enumerate(faces)]
    odd = replace(rows[2], sample=replace(rows[2].sample, landmarks=rows[2].landmarks + 40.0))
    model, offsets = oracle_aligner.model, LandmarkOffsets()
    judged = cross_validate([*rows[:2], odd, *rows[3:]], model, offsets, replace(CONFIG, folds=6))
    assert judged[2].errors["nme_box"] > 0.1, "its own label does not help it"
    bias = fit_bias_by_pose(rows, model, offsets, CONFIG)
    frontal = rotation_from_angles(0.0, 0.0, 0.0)
    found = bias.landmarks.in_image("3d", frontal[None])[0] * faces[2].camera.scale
    np.testing.assert_allclose(found[:, 1], 3.0, atol=1.0)
    corrected = bias.pose.corrected(frontal, frontal)
    assert geodesic_degrees(corrected, frontal @ turn) < 1.0
    assert not bias.landmarks.by_pose[1].any(), "the 2D scheme is not measured by these photos"


def test_mirrored_latents_are_of_the_mirrored_face(oracle_aligner: Aligner) -> None:
    fit_model = oracle_aligner.fit_model
    mirrored = fit_model.mirrored_latents
    latent = np.zeros(len(fit_model.modes))
    latent[:8] = np.random.default_rng(4).normal(size=8)
    moved = (latent @ fit_model.mesh_basis).reshape(-1, 3)
    other = (latent @ mirrored @ fit_model.mesh_basis).reshape(-1, 3)
    error = np.linalg.norm(other - moved[fit_model.model.mirror] * FLIP) / np.linalg.norm(moved)
    assert error < 0.1, error


@pytest.fixture(scope="module")
def scene(open_head: MorphableModel, code: PositionCode) -> Scene:
    return make_scene(open_head, code, yaw=30.0, pitch=5.0, rng=np.random.default_rng(5))


def with_landmark_offsets(aligner: Aligner, landmark_offsets: LandmarkOffsets) -> Aligner:
    return Aligner(
        aligner.net,
        aligner.anchors,
        aligner.model,
        config=aligner.config,
        landmark_offsets=landmark_offsets,
    )


def test_offsets_move_landmarks_and_nothing_else(oracle_aligner: Aligner, scene: Scene) -> None:
    rng = np.random.default_rng(6)
    model = oracle_aligner.model
    wide = len(model.identity) + len(model.expression)
    landmark_offsets = LandmarkOffsets(
        np.stack([some_offsets(rng), some_offsets(rng)]),
        rng.normal(size=(2, 68, 3, wide)) * 0.001,
        rng.normal(size=(2, 68, TERMS, 2)) * 0.003,
    )
    (raw,), (face,) = (
        one.align(scene.image, [scene.box])
        for one in (oracle_aligner, with_landmark_offsets(oracle_aligner, landmark_offsets))
    )
    both = np.concatenate([face.coefficients.identity, face.coefficients.expression])
    on_contour = contour_points(
        model.landmarks,
        face.vertices,
        face.vertices_px[:, :2],
        model.template,
        tolerance=JAW_TOLERANCE * face.camera.scale,
    )
    for number, (points, before, after) in enumerate(
        (
            (
                face.vertices[model.landmarks.vertex],
                raw.landmarks_3d[:, :2],
                face.landmarks_3d[:, :2],
            ),
            (on_contour, raw.landmarks_2d, face.landmarks_2d),
        )
    ):
        at = points + landmark_offsets.offset[number] + landmark_offsets.response[number] @ both
        at_cam = face.cam_from_head.apply(at)
        rotation = face.cam_from_head.rotation[None]
        at_cam[:, :2] += landmark_offsets.in_image(SCHEMES[number], rotation)[0]
        scale = np.array([face.camera.scale])
        expected = close_edges(face.camera.px_from_cam(at_cam)[None], rotation, scale)[0]
        assert np.abs(expected - before).max() > 3.0
        np.testing.assert_allclose(after, expected, atol=1e-6)
    np.testing.assert_allclose(face.trace[-1].landmarks_2d, face.landmarks_3d[:, :2], atol=1e-3)
    for name in ("vertices", "visibility", "confidence", "face_confidence"):
        np.testing.assert_array_equal(getattr(face, name), getattr(raw, name))
    (again,) = (
        with_landmark_offsets(oracle_aligner, landmark_offsets)
        .without_annotation_bias()
        .align(scene.image, [scene.box])
    )
    np.testing.assert_array_equal(again.landmarks_3d, raw.landmarks_3d)


def test_without_offsets_landmarks_lie_on_the_mesh(oracle_aligner: Aligner, scene: Scene) -> None:
    (face,) = oracle_aligner.align(scene.image, [scene.box])
    table, px = oracle_aligner.model.landmarks, face.vertices_px
    np.testing.assert_allclose(face.landmarks_3d, px[table.vertex], atol=1e-9)
    on_contour = contour_points(
        table,
        face.cam_from_head.apply(face.vertices),
        px[:, :2],
        oracle_aligner.model.template,
        tolerance=JAW_TOLERANCE * face.camera.scale,
    )
    np.testing.assert_allclose(face.landmarks_2d, face.camera.px_from_cam(on_contour), atol=1e-9)
    assert LandmarkOffsets().none
    assert not LandmarkOffsets(np.full((2, 68, 3), 0.01)).none


def test_smoothed_faces_keep_the_offsets(oracle_aligner: Aligner, scene: Scene) -> None:
    aligner = with_landmark_offsets(
        oracle_aligner, LandmarkOffsets(np.stack([some_offsets(np.random.default_rng(7))] * 2))
    )
    (face,) = aligner.align(scene.image, [scene.box])
    smoother = Smoother(aligner.model, SmoothingConfig(), landmark_offsets=aligner.landmark_offsets)
    smoothed = smoother(face, 0.04)
    np.testing.assert_allclose(smoothed.landmarks_3d, face.landmarks_3d, atol=0.01)
    np.testing.assert_allclose(smoothed.landmarks_2d, face.landmarks_2d, atol=0.01)


@pytest.fixture(scope="module")
def annotated(
    open_head: MorphableModel, code: PositionCode, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Floats], Path]:
    """A folder of photos whose annotator is biased in the 2D scheme."""
    rng = np.random.default_rng(8)
    names = [
        name
        for name in (f"face{i}" for i in range(60))
        if assign_split(default_group(name)) == "train"
    ][:24]
    yaws = rng.permutation(np.linspace(-40, 40, len(names)))
    shown = [
        make_scene(open_head, code, yaw=yaw, pitch=rng.uniform(-8, 8), rng=rng) for yaw in yaws
    ]

    def folder(landmark_offsets: Floats) -> Path:
        out = tmp_path_factory.mktemp("photos")
        for name, one in zip(names, shown, strict=True):
            points = one.landmarks_2d + 320 * 3.2 * landmark_offsets @ one.rotation[:2].T
            cv2.imwrite(str(out / f"{name}.png"), one.image[..., ::-1])
            lines = "\n".join(f"{x + 0.5} {y + 0.5}" for x, y in points)
            (out / f"{name}.pts").write_text(f"version: 1\nn_points: 68\n{{\n{lines}\n}}\n")
        return out

    return folder


def test_offsets_are_fitted_to_photos(
    oracle_aligner: Aligner, annotated: Callable[[Floats], Path]
) -> None:
    landmark_offsets = some_offsets(np.random.default_rng(9))

    def measure_offsets(folders: list[Path]) -> LandmarkOffsets:
        faces, found_labels = align_training_photos(oracle_aligner, folders)
        return fit_landmark_offsets(oracle_aligner, faces, found_labels, by_shape=False)

    none = measure_offsets([annotated(np.zeros((68, 3)))])
    found = measure_offsets([annotated(landmark_offsets)])
    moved = found.offset - none.offset  # what fits of few photos miss is not the annotator's
    assert (
        np.abs(moved[1] - landmark_offsets)[:, :2].mean() < 0.15 * np.abs(landmark_offsets).mean()
    )
    assert (
        np.abs(moved[1] - landmark_offsets)[INNER, 2].mean()
        < 0.5 * np.abs(landmark_offsets[INNER]).mean()
    )
    assert (
        np.abs(moved[0] - landmark_offsets)[JAW, :2].mean()
        < 0.3 * np.abs(landmark_offsets[JAW]).mean()
    )
    assert np.abs(found.offset[0, JAW, 2]).max() < 0.1 * np.abs(found.offset).max(), (
        "frontal views tell no jaw's depth"
    )
    for table in found.offset:
        np.testing.assert_allclose(table, table[MIRROR] * FLIP, atol=1e-12)
    assert abs(found.offset[1, NAMES.index("chin"), 0]) == 0.0


def test_folders_without_usable_photos_are_refused(oracle_aligner: Aligner, tmp_path: Path) -> None:
    with pytest.raises(BadLandmarks):
        align_training_photos(oracle_aligner, [tmp_path])


def test_offsets_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="LandmarkOffsets wants"):
        LandmarkOffsets(np.zeros((68, 3)))
    with pytest.raises(ValueError, match="finite"):
        replace(LandmarkOffsets(), offset=np.full((2, 68, 3), np.nan))


@pytest.mark.parametrize("name", sorted(weights.NAMED))
def test_what_shipped_weights_measured_is_the_same_on_both_sides(name: str) -> None:
    loaded = weights.load(name)
    offsets, calibration = loaded.landmark_offsets, loaded.calibration
    assert offsets is not None
    assert calibration is not None
    np.testing.assert_allclose(offsets.offset[:, MIRROR] * FLIP, offsets.offset, atol=1e-7)
    by_pose = offsets.by_pose[:, MIRROR] * MIRRORED_TERMS[:, None] * FLIP[:2]
    np.testing.assert_allclose(by_pose, offsets.by_pose, atol=1e-7)
    assert offsets.response.any(), "they depend on the shape"
    for kind in ("visible", "right"):
        of_landmarks = np.array(calibration[kind])[-68:]
        np.testing.assert_array_equal(of_landmarks[MIRROR], of_landmarks)
