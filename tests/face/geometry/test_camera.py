"""Cameras and boxes: the pixel convention and its laws."""

from __future__ import annotations

import numpy as np
import pytest

from dff.face.geometry.camera import Box, Camera, NearPerspective, Pinhole, WeakPerspective

CENTRE = np.array([100.0, 80.0])
CAMERAS = [
    Pinhole(320.0, CENTRE),
    WeakPerspective(800.0, CENTRE),
    NearPerspective(320.0, CENTRE, 0.5),
]
each_camera = pytest.mark.parametrize("camera", CAMERAS, ids=["pinhole", "weak", "near"])


def points(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(50, 3)) * 0.1 + [0.0, 0.0, 1.0]


def test_points_project_to_known_pixels() -> None:
    assert np.allclose(CAMERAS[0].px_from_cam(np.array([0.1, -0.2, 2.0])), [116.0, 48.0])
    assert np.allclose(CAMERAS[1].px_from_cam(np.array([0.1, -0.02, 7.0])), [180.0, 64.0])


@each_camera
def test_a_crop_moves_and_scales_pixels(camera: Camera) -> None:
    """``px -> (px - corner) * scale``; a crop of a crop is one crop; depth order is unchanged."""
    rng = np.random.default_rng(0)
    p = points(rng)
    a, s, b, t = np.array([12.0, -7.0]), 1.7, np.array([3.0, 40.0]), 0.3
    crop = camera.cropped(a, s)
    assert np.allclose(crop.px_from_cam(p), (camera.px_from_cam(p) - a) * s)
    twice, once = crop.cropped(b, t), camera.cropped(a + b / s, s * t)
    assert np.allclose(twice.px_from_cam(p), once.px_from_cam(p))
    assert np.array_equal(np.argsort(crop.screen_depth(p)), np.argsort(p[:, 2]))


@each_camera
def test_screen_depth_and_weight_are_affine_on_the_screen(camera: Camera) -> None:
    """Half-way along a segment on the screen, depth is the mean and the weights give the point."""
    rng = np.random.default_rng(0)
    a, b = points(rng), points(rng)
    depth, weight = camera.screen_depth, camera.screen_weight
    wa, wb = weight(a)[:, None], weight(b)[:, None]
    middle = (a * wa + b * wb) / (wa + wb)
    assert np.allclose(
        camera.px_from_cam(middle), (camera.px_from_cam(a) + camera.px_from_cam(b)) / 2
    )
    assert np.allclose(depth(middle), (depth(a) + depth(b)) / 2)


def test_a_near_camera_is_a_pinhole_and_from_afar_weak_perspective() -> None:
    p = points(np.random.default_rng(1)) - [0.0, 0.0, 1.0]
    pinhole = Pinhole(320.0 * 2.0, CENTRE)  # two metres before the origin
    assert np.allclose(
        CAMERAS[2].px_from_cam(p), pinhole.px_from_cam(p + np.array([0.0, 0.0, 2.0]))
    )
    assert np.allclose(CAMERAS[2].depth_on_screen(CAMERAS[2].screen_depth(p)), p[:, 2])
    assert np.allclose(NearPerspective(800.0, CENTRE).px_from_cam(p), CAMERAS[1].px_from_cam(p))


def test_points_behind_a_pinhole_have_no_weight() -> None:
    behind = np.array([[0.0, 0.0, -1.0], [0.1, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert np.isnan(CAMERAS[0].screen_weight(behind)).tolist() == [True, True, False]
    assert np.isfinite(CAMERAS[1].screen_weight(behind)).all()


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_cameras_without_positive_scale_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Pinhole(value, np.zeros(2))
    with pytest.raises(ValueError, match="positive"):
        WeakPerspective(value, np.zeros(2))


def test_a_square_about_a_box_keeps_its_centre() -> None:
    """A square about a box has its centre, and holds it when the margin is one or more."""
    box = Box.around(np.array([[3.0, 10.0], [7.0, 4.0], [5.0, 5.0]]))
    assert (box.x0, box.y0, box.x1, box.y1) == (3.0, 4.0, 7.0, 10.0)
    assert box.size == pytest.approx(np.sqrt(24.0))
    square = box.square(1.5)
    assert square.width == pytest.approx(square.height) == pytest.approx(9.0)
    assert np.allclose(square.centre, box.centre)
    for corners in ((0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, -1.0), (0.0, 0.0, np.nan, 1.0)):
        with pytest.raises(ValueError, match=r"x0 < x1 and y0 < y1 must hold|four finite numbers"):
            Box(*corners)
