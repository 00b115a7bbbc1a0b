"""The refinement of landmarks: displacements are mirrored, applied in the upright face, learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.config import VisibilityConfig
from dff.aligner.evaluation.landmark_refinement import (
    LandmarkReadings,
    RefinementConfig,
    fit_landmark_refinement,
    read_training_photos,
)
from dff.aligner.fitting.refinement import LinearRefiner, mirror_displacements
from dff.aligner.fitting.visibility import compute_visibility
from dff.aligner.load import load_aligner
from dff.demo.photograph import write_photograph
from dff.face.geometry.camera import Box
from dff.face.model.landmark_offsets import LandmarkOffsets, UprightPose
from dff.face.model.landmarks import MIRROR
from dff.face.solve.landmark_refinement import LandmarkRefinement
from dff.infra.datasets.split import assign_split, default_group
from dff.infra.photos.images import read_image
from dff.infra.photos.landmark_files import format_pts, parse_pts
from tests.aligner.fitting.test_correction import faces, observe

NOSE = 30  # the tip of the nose, which is seen from anywhere


def constant(away: tuple[float, float], landmark: int) -> LandmarkRefinement:
    """Moves a landmark right and down by so many metres, whatever is seen, and its counterpart."""
    offset = np.zeros((68, 2))
    offset[landmark], offset[MIRROR[landmark]] = away, (-away[0], away[1])
    return LandmarkRefinement(np.zeros((68, 32)), np.zeros((68 * 32, 136)), offset.ravel())


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_refinement_is_linear_in_the_descriptors_of_visible_landmarks(
    oracle_aligner: Aligner, mirrored: bool
) -> None:
    """All descriptors are the same: the features of a face are its visible landmarks."""
    fit_model, config = oracle_aligner.fit_model, VisibilityConfig()
    state = faces(fit_model, 3)
    weight = np.zeros((68, 2, 68, 2))
    weight[NOSE, 0, 36] = [0.004, 0.001]  # moves the corner of the right eye
    refinement = LandmarkRefinement(
        np.zeros((68, 2)), weight.reshape(136, 136), np.full(136, 0.0005)
    )
    refiner = LinearRefiner(fit_model, refinement, config)
    visibility = compute_visibility(fit_model, state, config)
    observation = observe(state, np.ones((3, 2, 80, 80)))
    moved = refiner.refine(observation, state, visibility, mirrored=mirrored)
    wanted = np.full((3, 68, 2), 0.0005)
    wanted[:, 36] += [0.004, 0.001]
    wanted = mirror_displacements(wanted) if mirrored else wanted
    np.testing.assert_allclose(moved, wanted, atol=1e-8)
    hidden = replace(visibility, anchors=np.zeros_like(visibility.anchors))
    if not hidden.landmarks(config.occlusion).any():
        none = refiner.refine(observation, state, hidden, mirrored=False)
        np.testing.assert_allclose(none, 0.0005, atol=1e-8)


def test_displacements_mirrored_twice_are_the_same() -> None:
    moved = np.random.default_rng(1).normal(size=(2, 68, 2))
    np.testing.assert_allclose(mirror_displacements(mirror_displacements(moved)), moved)
    assert mirror_displacements(moved)[0, 36, 0] == -moved[0, MIRROR[36], 0]


def test_landmarks_move_in_the_axes_of_the_upright_face(tmp_path: Path) -> None:
    """Two points of the jaw, in an upright and in a turned photo."""
    write_photograph(tmp_path / "all")
    image = read_image(tmp_path / "all" / "astronaut.png")
    points = parse_pts((tmp_path / "all" / "astronaut.pts").read_bytes())
    plain = load_aligner()
    refined = Aligner(
        plain.net,
        plain.anchors,
        plain.model,
        config=plain.config,
        landmark_offsets=plain.landmark_offsets,
        calibration=plain.calibration,
        fit_correction=plain.fit_correction,
        expression_correction=plain.expression_correction,
        landmark_refinement=constant((0.008, -0.005), 4),
    )
    for turned in (False, True):
        picture, labels = image, points
        if turned:
            picture = np.ascontiguousarray(np.rot90(image))
            labels = np.column_stack([points[:, 1], image.shape[1] - points[:, 0]])
        box = Box.around(labels)
        before, after = (each.align(picture, [box])[0] for each in (plain, refined))
        moved = (after.landmarks_2d - before.landmarks_2d) / after.camera.scale
        right, down = UprightPose.of(after.cam_from_head.rotation[None]).upright[0]
        np.testing.assert_allclose(moved[4], 0.008 * right - 0.005 * down, atol=4e-4)
        np.testing.assert_allclose(moved[MIRROR[4]], -0.008 * right - 0.005 * down, atol=4e-4)
        np.testing.assert_allclose(np.delete(moved, [4, MIRROR[4]], 0), 0.0, atol=1e-4)
        np.testing.assert_allclose(after.landmarks_3d, before.landmarks_3d, atol=1e-6)
        raw = refined.without_annotation_bias().align(picture, [box])[0]
        assert not raw.refinement.any()
        assert (down[1] > 0.9) is not turned


def known_readings(share: float) -> LandmarkReadings:
    """Displacements that are a linear function of descriptors, and chance beside it."""
    rng = np.random.default_rng(5)
    seen = rng.normal(size=(400, 68, 2)).astype(np.float16)
    away = 0.002 * rng.normal(size=(400, 68, 2)) * (1 - share)
    away[:, NOSE, 1] += 0.01 * share * seen[:, 7, 1]
    return LandmarkReadings(seen, np.ones((400, 68)), away, np.arange(400) // 2)


def test_a_linear_relation_is_learned_and_chance_is_not() -> None:
    config = RefinementConfig()
    learned = fit_landmark_refinement(known_readings(1.0), config)
    assert learned is not None
    weight = learned.weight.reshape(68, 2, 68, 2)
    assert weight[7, 1, NOSE, 1] == pytest.approx(0.01, rel=0.3)
    assert np.abs(np.delete(weight[..., NOSE, 1], 7, 0)).max() < 0.001
    assert fit_landmark_refinement(known_readings(0.0), config) is None


def test_photos_and_their_mirror_images_are_read_alike(tmp_path: Path) -> None:
    """Mirrored, the left photo is what the network sees of the right one."""
    write_photograph(tmp_path / "all")
    image = read_image(tmp_path / "all" / "astronaut.png")
    points = parse_pts((tmp_path / "all" / "astronaut.pts").read_bytes())
    name = next(f"t{i}" for i in range(99) if assign_split(default_group(f"t{i}")) == "train")
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / f"{name}.png"), image[..., ::-1])
    (photos / f"{name}.pts").write_bytes(format_pts(points))
    read = read_training_photos(
        load_aligner(), [photos], LandmarkOffsets(), config=RefinementConfig()
    )
    assert read.photo.tolist() == [0, 0]
    # what the second pass of one sees is the mirror image of what that of the other sees
    first, second = read.away
    opposite = mirror_displacements(second[None])[0]
    assert (
        np.linalg.norm(first - opposite, axis=1).mean() < 0.3 * np.linalg.norm(first, axis=1).mean()
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": np.zeros((67, 2))}, "means"),
        ({"weight": np.zeros((136, 2))}, "weights"),
        ({"offset": np.full(136, np.nan)}, "not finite"),
        ({"offset": np.full(136, 0.2)}, "moves landmarks by 0.2 m"),
        ({"weight": np.full((136, 136), 0.05)}, "is it damaged"),
    ],
)
def test_damaged_refinements_are_refused(change: dict[str, np.ndarray], says: str) -> None:
    good = {"mean": np.zeros((68, 2)), "weight": np.zeros((136, 136)), "offset": np.zeros(136)}
    LandmarkRefinement(**good)
    with pytest.raises(ValueError, match=says):
        LandmarkRefinement(**(good | change))
