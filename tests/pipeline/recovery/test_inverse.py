"""A face that is known, rendered and recovered; what must not disturb it; what must be refused."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from dff.face.arrays import Bytes, Floats
from dff.face.errors import BadFit
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.lighting import ambient, shade
from dff.face.geometry.transform import Rigid, geodesic_degrees, rotation_from_angles
from dff.face.model.albedo import AlbedoModel
from dff.face.model.landmarks import INNER, JAW, nme_box
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import render, sample_texture, shaded, supersampled
from dff.face.texture.crop import square_crop
from dff.infra.storage import open_storage
from dff.pipeline.inspection.recovery_panel import draw_recovery
from dff.pipeline.recovery.inverse import (
    AT_LEAST,
    NO_LIMITS,
    REFUSALS,
    FitLimits,
    Recovery,
    check_quality,
    invert,
)
from dff.pipeline.recovery.landmark_fit import (
    LandmarkFitModel,
    activation_prior,
    fit_landmarks,
    robust_size,
)
from dff.pipeline.recovery.photos import Photo, list_photos, read_photo

SIZE = 320


@pytest.fixture(scope="module")
def open_albedo() -> AlbedoModel:
    from dff.face.io.assets import load_albedo

    return load_albedo()


@dataclass(frozen=True)
class Truth:
    """A photo and what made it."""

    photo: Photo
    cam_from_head: Rigid
    coefficients: Coefficients
    light: Floats  # (9, 3)
    vertices_px: Floats  # (V, 2)


def made(
    model: MorphableModel,
    albedo: AlbedoModel,
    yaw: float,
    seed: int,
    noise: float = 0.6,
    identities: int = 40,
) -> Truth:
    """A face of the model on a noisy wall, with landmarks as an annotator of 300-W would set
    them.
    """
    rng = np.random.default_rng(seed)
    expression = np.zeros(len(model.expression))
    expression[rng.choice(len(expression), 4, replace=False)] = 0.4
    expression *= np.asarray(model.expression_sd) > 0
    coefficients = Coefficients(rng.normal(size=identities) * 0.7, expression)
    pose = Rigid(
        rotation_from_angles(yaw, rng.uniform(-8, 8), rng.uniform(-12, 12)),
        np.array([0.0, 0.0, 1.0]),
    )
    vertices = pose.apply(model.vertices(coefficients))
    middle = vertices[model.landmarks.vertex][:, :2].mean(0)
    scale = 0.45 * SIZE / np.ptp(vertices[model.landmarks.vertex][:, 1])
    camera = WeakPerspective(float(scale), np.full(2, SIZE / 2) - scale * middle)
    light = ambient(1.3)
    towards = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.2), -1.0])
    light[[3, 1, 2]] = (0.6 * towards / np.linalg.norm(towards))[:, None]
    frame = render(vertices, model.faces, camera, (SIZE, SIZE))
    texture = albedo.texture(rng.normal(size=len(albedo.components)) * 0.6)
    colour, coverage = supersampled(
        frame,
        vertices,
        model.faces,
        camera,
        lambda part: shaded(part, sample_texture(part, texture, model.uv, model.uv_faces), light),
    )
    wall = np.clip(0.4 + 0.05 * rng.normal(size=(SIZE, SIZE, 3)), 0, 1)
    pixels = colour + (1.0 - coverage.reshape(SIZE, SIZE, 1)) * wall
    pixels = np.clip(pixels + 0.01 * rng.normal(size=pixels.shape), 0, 1)
    px = camera.px_from_cam(vertices)
    landmarks = (
        px[model.landmarks.contour_vertices(px, model.template)] + rng.normal(size=(68, 2)) * noise
    )
    photo = Photo(f"made-{seed}", (pixels * 255).astype(np.uint8), landmarks, "2d", "")
    assert frame.mask.mean() > 0.1
    return Truth(photo, pose, coefficients, light, px)


def vertices_in_photo(recovery: Recovery, model: MorphableModel) -> Floats:
    """(V, 2) photo pixels of the recovered mesh."""
    cam = recovery.cam_from_head.apply(model.vertices(recovery.coefficients))
    return np.asarray(recovery.camera.px_from_cam(cam) / recovery.scale + recovery.corner)


def face_error(recovery: Recovery, truth: Truth, model: MorphableModel) -> float:
    """Mean distance of the inner landmarks' vertices from where they truly are, over the size of
    the landmark box.
    """
    vertices = model.landmarks.vertex
    box = np.sqrt(np.prod(np.ptp(truth.vertices_px[vertices], axis=0)))
    away = np.linalg.norm(
        (vertices_in_photo(recovery, model) - truth.vertices_px)[vertices[INNER]], axis=1
    )
    return float(away.mean() / box)


@pytest.mark.parametrize("yaw", [0.0, -25.0, 50.0, 70.0])
def test_a_known_face_comes_back(
    open_head: MorphableModel, open_albedo: AlbedoModel, yaw: float
) -> None:
    truth = made(open_head, open_albedo, yaw, seed=int(yaw) % 7)
    recovery = invert(truth.photo, model=open_head, albedo=open_albedo)
    assert geodesic_degrees(recovery.cam_from_head.rotation, truth.cam_from_head.rotation) < 3.0
    assert face_error(recovery, truth, open_head) < 0.006
    assert recovery.quality["colour_error"] < 0.02
    assert recovery.quality["occluded"] < 0.02
    # A face shows normals of one hemisphere, on which the harmonics are not orthogonal:
    # coefficients may differ, their shading of what is seen may not. Albedo and light share one
    # unknown level.
    normals = np.random.default_rng(0).normal(size=(500, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals[:, 2] = -np.abs(normals[:, 2])
    found, known = (shade(normals, light).mean(axis=1) for light in (recovery.light, truth.light))
    level = found.mean() / known.mean()
    assert np.abs(found / level - known).mean() < 0.05 * known.mean()
    assert np.corrcoef(found, known)[0, 1] > 0.85


def test_the_joint_fit_is_nearer_than_the_landmark_fit(
    open_head: MorphableModel, open_albedo: AlbedoModel
) -> None:
    """With noisy points the joint steps must help: over all skin vertices, not only where points
    are.
    """
    fit_model = LandmarkFitModel.build(open_head, 60, len(open_head.expression))
    seen = np.unique(open_head.faces[open_head.find_triangles("face", "lips", "brows")])
    before, after = [], []
    for seed in (11, 12, 13):
        truth = made(open_head, open_albedo, 10.0, seed, noise=3.0)
        first = fit_landmarks(truth.photo.landmarks, fit_model, "2d")
        c = first.coefficients[0]
        shape = open_head.vertices(Coefficients(c[:60], c[60:]))
        px = first.camera(0).px_from_cam(first.cam_from_head(0).apply(shape))
        recovery = invert(truth.photo, model=open_head, albedo=open_albedo)
        before.append(np.linalg.norm((px - truth.vertices_px)[seen], axis=1).mean())
        after.append(
            np.linalg.norm(
                (vertices_in_photo(recovery, open_head) - truth.vertices_px)[seen], axis=1
            ).mean()
        )
    assert np.mean(after) < 0.9 * np.mean(before)


def test_wrong_landmarks_hardly_change_the_shape(
    open_head: MorphableModel, open_albedo: AlbedoModel
) -> None:
    truth = made(open_head, open_albedo, 10.0, seed=3)
    wrong = truth.photo.landmarks.copy()
    wrong[[19, 36, 44, 50, 57, 4, 12]] += np.array([0.35, -0.3]) * robust_size(wrong)
    recovery = invert(replace(truth.photo, landmarks=wrong), model=open_head, albedo=open_albedo)
    clean = invert(truth.photo, model=open_head, albedo=open_albedo)
    assert face_error(recovery, truth, open_head) < face_error(clean, truth, open_head) + 0.006
    assert recovery.quality["wrong_points"] == pytest.approx(7 / 68, abs=2.5 / 68)


@pytest.mark.parametrize("together", [False, True])
def test_a_fifth_of_the_landmarks_a_fifth_of_the_face_off_hardly_turns_it(
    open_head: MorphableModel, open_albedo: AlbedoModel, together: bool
) -> None:
    from benchmarks.inverse import displaced

    for seed, yaw in ((21, 0.0), (22, 35.0)):
        truth = made(open_head, open_albedo, yaw, seed)
        wrong = displaced(truth.photo.landmarks, together, rng=np.random.default_rng(seed))
        assert (np.linalg.norm(wrong - truth.photo.landmarks, axis=1) > 20.0).sum() == 14
        poses = [
            invert(photo, model=open_head, albedo=open_albedo).cam_from_head.rotation
            for photo in (truth.photo, replace(truth.photo, landmarks=wrong))
        ]
        assert geodesic_degrees(*poses) < 2.0


def test_an_occluder_is_detected_and_does_not_change_the_shape(
    open_head: MorphableModel, open_albedo: AlbedoModel
) -> None:
    truth = made(open_head, open_albedo, 0.0, seed=5)
    pixels = truth.photo.pixels.copy()
    x, y = truth.photo.landmarks[[48, 54, 57, 8]].mean(0).astype(int)
    pixels[y - 22 : y + 22, x - 45 : x + 45] = [20, 160, 60]
    recovery = invert(replace(truth.photo, pixels=pixels), model=open_head, albedo=open_albedo)
    assert face_error(recovery, truth, open_head) < 0.015
    assert recovery.quality["colour_error"] < 0.03
    corner = (np.array([[x - 45, y - 22], [x + 45, y + 22]]) - recovery.corner) * recovery.scale
    (x0, y0), (x1, y1) = np.round(corner).astype(int)
    patch = np.zeros_like(recovery.occluded)
    patch[y0:y1, x0:x1] = True
    assert recovery.occluded[patch].mean() > 0.8
    assert recovery.occluded[~patch].sum() < 0.25 * patch.sum()


def test_the_same_bytes_give_the_same_recovery(
    open_head: MorphableModel, open_albedo: AlbedoModel
) -> None:
    photo = made(open_head, open_albedo, 20.0, seed=6).photo
    first = invert(photo, model=open_head, albedo=open_albedo)
    with threadpool_limits(2):
        second = invert(photo, model=open_head, albedo=open_albedo)
    for field in fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=field.name)
    np.testing.assert_array_equal(first.coefficients.identity, second.coefficients.identity)
    np.testing.assert_array_equal(first.cam_from_head.rotation, second.cam_from_head.rotation)
    assert (first.quality, first.camera.scale) == (second.quality, second.camera.scale)


def test_the_recovery_is_in_the_pixels_of_its_crop(
    open_head: MorphableModel, open_albedo: AlbedoModel
) -> None:
    truth = made(open_head, open_albedo, 15.0, seed=8)
    recovery = invert(truth.photo, model=open_head, albedo=open_albedo, size=192)
    assert recovery.crop.shape == (192, 192, 3)
    np.testing.assert_allclose(
        recovery.given / recovery.scale + recovery.corner, truth.photo.landmarks
    )
    cam = recovery.cam_from_head.apply(open_head.vertices(recovery.coefficients))
    assert cam[:, 2].min() > 0
    px = recovery.camera.px_from_cam(cam)
    chosen = open_head.landmarks.contour_vertices(px, open_head.template)
    np.testing.assert_allclose(px[chosen], recovery.landmarks, atol=0.01)
    assert recovery.quality["landmark_error"] == pytest.approx(
        nme_box(recovery.landmarks, recovery.given)
    )
    inner = np.linalg.norm(recovery.landmarks - recovery.given, axis=1)[INNER].mean()
    box = np.sqrt(np.prod(np.ptp(recovery.given, axis=0)))
    assert recovery.quality["landmark_error_inner"] == pytest.approx(inner / box)


def test_the_panel_shows_six_pictures_of_the_crop(
    open_head: MorphableModel, open_albedo: AlbedoModel
) -> None:
    recovery = invert(
        made(open_head, open_albedo, 0.0, seed=9).photo, model=open_head, albedo=open_albedo
    )
    panel = draw_recovery(recovery, model=open_head, albedo=open_albedo)
    assert list(panel) == ["photo", "mesh", "albedo", "light", "rendering", "residual"]
    assert {(picture.shape, picture.dtype.name) for picture in panel.values()} == {
        ((256, 256, 3), "uint8")
    }
    drawn = np.abs(panel["photo"].astype(int) - recovery.crop).max(axis=2) > 60
    near = np.linalg.norm(
        np.argwhere(drawn)[:, None, ::-1] + 0.5 - recovery.landmarks[None], axis=2
    ).min(1)
    assert drawn.sum() > 68 * 4, "dots that show in a thumbnail"
    assert np.percentile(near, 95) < 5.0
    skin = panel["residual"].std(axis=2) + np.abs(panel["residual"].mean(axis=2) - 128) > 1
    explained = np.abs(panel["rendering"].astype(int) - recovery.crop).mean(axis=2)[
        skin & ~recovery.occluded
    ]
    assert np.median(explained) < 0.04 * 255


def noise(shape: tuple[int, ...]) -> Bytes:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_a_photo_without_a_face_is_refused_with_the_reason(
    open_head: MorphableModel, open_albedo: AlbedoModel
) -> None:
    photo = made(open_head, open_albedo, 0.0, seed=10).photo
    wall = np.full_like(photo.pixels, 150)
    cases = {
        "structure": replace(photo, pixels=wall),
        "structure|colour|occluded": replace(photo, pixels=noise(photo.pixels.shape)),
        "do not form a face": replace(
            photo, landmarks=np.random.default_rng(1).permutation(photo.landmarks)
        ),
        "too small": replace(photo, landmarks=photo.landmarks * 0.05),
        "structure|occluded|colour": replace(photo, landmarks=photo.landmarks[:, :] + [0.0, 90.0]),
        "outside|too little skin": replace(
            photo, pixels=photo.pixels[:, :130], landmarks=photo.landmarks + np.array([-10.0, 0.0])
        ),
    }
    for reason, bad in cases.items():
        with pytest.raises(BadFit, match=f"^made-10: .*({reason})"):
            invert(bad, model=open_head, albedo=open_albedo)


def test_each_limit_refuses_by_its_name() -> None:
    good = {field.name: 0.0 for field in fields(FitLimits)} | {
        "face_size": 100.0,
        "structure": 0.9,
        "score": 1.0,
    }
    check_quality("a", good, FitLimits())
    for field in fields(FitLimits):
        bad = good | {field.name: -1.0 if field.name in AT_LEAST else 9.0}
        words = (
            rf"^a: {REFUSALS[field.name]} \({field.name.replace('_', ' ')} .*(above|below) .*\)$"
        )
        with pytest.raises(BadFit, match=words):
            check_quality("a", bad, FitLimits())
        check_quality("a", bad, NO_LIMITS)
    with pytest.raises(BadFit, match="colour error nan"):
        check_quality("a", good | {"colour_error": np.nan}, FitLimits())


def test_a_crop_keeps_pixels_in_their_places() -> None:
    height, width = 90, 120
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([2 * x, 2 * y, np.full_like(x, 7)], axis=-1).astype(np.uint8)
    landmarks = np.random.default_rng(0).uniform([5.0, 20.0], [65.0, 85.0], (68, 2))
    crop = square_crop(pixels, landmarks, 200)
    assert not crop.valid.all()
    assert crop.valid.any()
    rows, columns = np.nonzero(crop.valid)
    photo_px = np.stack([columns + 0.5, rows + 0.5], axis=1) / crop.scale + crop.corner
    inside = (photo_px > 2).all(1) & (photo_px < [width - 2, height - 2]).all(1)
    expected = 2.0 * (photo_px - 0.5)
    found = crop.pixels[rows, columns, :2]
    np.testing.assert_allclose(found[inside], expected[inside], atol=1.01)
    outside = ~crop.valid
    centres = np.argwhere(outside)[:, ::-1] / crop.scale + crop.corner
    assert ((centres < 2) | (centres > np.array([width, height]) - 2)).any(axis=1).all()


def test_points_of_the_model_are_fitted_and_activations_held(toy_model: MorphableModel) -> None:
    rng = np.random.default_rng(0)
    fit_model = LandmarkFitModel.build(toy_model, 4, 3)
    truth = Coefficients(rng.normal(size=4) * 0.5, np.array([0.5, 0.3, 0.0]))
    pose = Rigid(rotation_from_angles(12.0, 5.0, -20.0), np.zeros(3))
    points = pose.apply(toy_model.vertices(truth))[:, :2] * 900.0 + 100.0
    landmarks = points[toy_model.landmarks.vertex]
    face = fit_landmarks(landmarks, fit_model, "3d")
    assert geodesic_degrees(face.rotation[0], pose.rotation) < 2.0
    assert nme_box(fit_model.project(face, "3d"), landmarks) < 0.01
    stretched = Coefficients(truth.identity, np.array([3.0, 0.0, 0.0]))
    far = pose.apply(toy_model.vertices(stretched))[:, :2] * 900.0 + 100.0
    held = fit_landmarks(far[toy_model.landmarks.vertex], fit_model, "3d").coefficients[0, 4:]
    assert held.min() > -0.5
    assert held.max() < 1.6


def test_the_prior_of_an_activation_is_the_product_of_two_gaussians() -> None:
    mean, sd = activation_prior(np.array([5.0, 1.5, -0.4, 0.5]), np.array([1.0, 0.5, 0.5, 0.5]), 1)
    np.testing.assert_allclose(mean[[0, 3]], 0.0)
    np.testing.assert_allclose(sd[[0, 3]], [1.0, 0.5])
    for index, end in ((1, 1.0), (2, 0.0)):
        grid = np.linspace(-2, 3, 200_001)
        density = (grid / 0.5) ** 2 + ((grid - end) / 0.07) ** 2
        assert grid[density.argmin()] == pytest.approx(mean[index], abs=1e-4)
    assert sd[1] < 0.07


def test_robust_size_is_hardly_moved_by_a_third_of_wrong_points(open_head: MorphableModel) -> None:
    points = open_head.template[open_head.landmarks.vertex][:, :2]
    box = np.sqrt(np.prod(np.ptp(points, axis=0)))
    assert robust_size(points) == pytest.approx(box, rel=0.3)
    wrong = points.copy()
    wrong[:20] += 10.0 * box
    assert robust_size(wrong) < 2.5 * robust_size(points)
    assert robust_size(points[JAW]) > 0


def test_real_photos_are_explained(
    shared: Path, open_head: MorphableModel, open_albedo: AlbedoModel
) -> None:
    """A sample of what ``benchmarks.inverse`` measures on 200 photos."""
    storage = open_storage(str(shared / "data" / "photos"))
    refs = list_photos(storage)[::220]
    quality = [
        invert(
            read_photo(storage, ref), model=open_head, albedo=open_albedo, limits=NO_LIMITS
        ).quality
        for ref in refs
    ]
    assert len(quality) > 8
    assert np.median([q["landmark_error_inner"] for q in quality]) < 0.020
    assert np.median([q["colour_error"] for q in quality]) < 0.055
