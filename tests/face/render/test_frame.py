"""The resolver and the images computed from a frame: known answers and laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh
from scipy.ndimage import distance_transform_edt

from dff.face.arrays import Floats
from dff.face.geometry.camera import Camera, Pinhole, WeakPerspective
from dff.face.geometry.lighting import shade
from dff.face.geometry.mesh import triangle_normals, vertex_normals
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.landmarks import NAMES
from dff.face.model.morphable import MorphableModel
from dff.face.render import frame as fr

CAMERAS = [Pinhole(300.0, np.array([50.0, 40.0])), WeakPerspective(300.0, np.array([50.0, 40.0]))]
SIZE = (90, 110)


def head(
    model: MorphableModel, yaw: float = 25.0, pitch: float = -10.0, roll: float = 5.0
) -> Floats:
    """(V, 3) vertices of the mean face in ``cam``, one metre away."""
    turn = Rigid(rotation_from_angles(yaw, pitch, roll), np.array([0.01, 0.0, 1.0]))
    return turn.apply(model.vertices(model.neutral()))


def centres(frame: fr.Frame) -> Floats:
    """(N, 2) pixel centres of the mask, row by row."""
    row, column = np.nonzero(frame.mask)
    return np.stack([column, row], axis=1) + 0.5


def test_a_camera_inside_a_sphere_sees_its_radius_everywhere() -> None:
    """From the centre of a sphere of radius 10 all depths are 10 and all normals outward."""
    ball = trimesh.creation.icosphere(subdivisions=5, radius=10.0)
    rng = np.random.default_rng(0)
    for _ in range(4):
        turn = rotation_from_angles(*rng.uniform(-80, 80, 3))
        vertices, camera = ball.vertices @ turn.T, Pinhole(40.0, np.array([32.0, 24.0]))
        frame = fr.render(vertices, ball.faces, camera, (48, 64))
        assert frame.mask.all()
        points = frame.points().of(vertices, ball.faces)
        distance = np.linalg.norm(points, axis=1)
        assert distance.min() > 9.997
        assert distance.max() <= 10.0 + 1e-5
        assert np.allclose(frame.depth.ravel(), points[:, 2], atol=1e-5)
        outward = (frame.normal.reshape(-1, 3) * points / distance[:, None]).sum(1)
        assert outward.min() > np.cos(np.deg2rad(0.2))


@pytest.mark.parametrize("camera", CAMERAS, ids=["pinhole", "weak"])
def test_each_pixel_shows_its_own_surface_point(camera: Camera, open_head: MorphableModel) -> None:
    """Surface points project to their pixel's centre within 0.01 px, and have the frame's depth."""
    vertices = head(open_head)
    frame = fr.render(vertices, open_head.faces, camera, SIZE)
    points = frame.points().of(vertices, open_head.faces)
    assert len(points) > 1500
    assert np.linalg.norm(camera.px_from_cam(points) - centres(frame), axis=1).max() < 0.01
    assert np.abs(points[:, 2] - frame.depth[frame.mask]).max() < 1e-6
    weights = frame.barycentric[frame.mask]
    assert weights.min() >= 0
    assert np.abs(weights.sum(1) - 1).max() < 1e-6
    assert np.abs(np.linalg.norm(frame.normal[frame.mask], axis=1) - 1).max() < 1e-6
    for image in (frame.barycentric, frame.depth, frame.normal):
        assert not image[~frame.mask].any()


@pytest.mark.parametrize("camera", CAMERAS, ids=["pinhole", "weak"])
def test_interpolation_is_that_of_the_surface(camera: Camera, open_head: MorphableModel) -> None:
    """Interpolated values and normals are perspective-correct: those of the surface points."""
    vertices = head(open_head)
    frame = fr.render(vertices, open_head.faces, camera, SIZE)
    values = np.concatenate([vertices, open_head.template[:, :2]], axis=1)
    expected = frame.points().of(values, open_head.faces)
    image = fr.interpolate(frame, values, open_head.faces)
    assert np.abs(image[frame.mask] - expected).max() < 1e-6
    assert not image[~frame.mask].any()
    smooth = frame.points().of(vertex_normals(vertices, open_head.faces), open_head.faces)
    smooth /= np.linalg.norm(smooth, axis=1, keepdims=True)
    assert np.abs(frame.normal[frame.mask] - smooth).max() < 1e-5


def test_a_tilted_plane_is_perspective_correct() -> None:
    """On a plane seen at a slant each pixel's depth is where its ray meets the plane."""
    corners = np.array([[-3.0, -1.0, 1.0], [3.0, -1.0, 1.0], [3.0, 1.0, 4.0], [-3.0, 1.0, 4.0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    camera = Pinhole(40.0, np.array([24.0, 30.0]))
    frame = fr.render(corners, faces, camera, (60, 48))
    y = (centres(frame)[:, 1] - 30.0) / 40.0
    # (0, 1, 1) + t (0, 2, 3) over the plane: z = 2.5 + 1.5 y', with y' = y z.
    expected = 2.5 / (1.0 - 1.5 * y)
    assert np.abs(frame.depth[frame.mask] - expected).max() < 1e-5


@pytest.mark.parametrize("camera", CAMERAS, ids=["pinhole", "weak"])
def test_a_frame_comes_back_from_its_ids(camera: Camera, open_head: MorphableModel) -> None:
    """Resolving ids gives the same bits as rendering, also through 16-bit storage."""
    vertices = head(open_head)
    frame = fr.render(vertices, open_head.faces, camera, SIZE)
    stored = np.where(frame.mask, frame.triangle, 65535).astype(np.uint16)
    ids = np.where(stored == 65535, -1, stored.astype(np.int32))
    back = fr.resolve(ids, vertices, open_head.faces, camera)
    for name in ("triangle", "barycentric", "depth", "normal"):
        assert np.array_equal(getattr(frame, name), getattr(back, name))


@pytest.mark.parametrize("camera", CAMERAS, ids=["pinhole", "weak"])
def test_cropping_the_camera_crops_the_frame(camera: Camera, toy_model: MorphableModel) -> None:
    """``camera.cropped`` by whole pixels gives the same pixels."""
    vertices = head(toy_model)
    whole = fr.render(vertices, toy_model.faces, camera, SIZE)
    part = fr.render(
        vertices, toy_model.faces, camera.cropped(np.array([20.0, 10.0]), 1.0), (40, 50)
    )
    assert np.array_equal(part.triangle, whole.triangle[10:50, 20:70])
    assert np.abs(part.barycentric - whole.barycentric[10:50, 20:70]).max() < 1e-6


def test_triangles_that_reach_behind_the_camera_are_left_out(toy_model: MorphableModel) -> None:
    """Inside the head, triangles in front are rendered, and those around the camera left out."""
    vertices = head(toy_model) - [0.0, 0.0, 1.0]
    frame = fr.render(vertices, toy_model.faces, Pinhole(30.0, np.array([32.0, 32.0])), (64, 64))
    in_front = (vertices[:, 2] > 0)[toy_model.faces].all(axis=1)
    seen = np.unique(frame.triangle[frame.mask])
    assert len(seen) > 3
    assert in_front[seen].all()
    behind = vertices * [1.0, 1.0, -1.0] - [0.0, 0.0, 1.0]
    assert not fr.render(
        behind, toy_model.faces, Pinhole(30.0, np.array([32.0, 32.0])), (64, 64)
    ).mask.any()
    touching = np.where(vertices[:, 2:] > 0, vertices, vertices * [1.0, 1.0, 0.0])
    again = fr.render(touching, toy_model.faces, Pinhole(30.0, np.array([32.0, 32.0])), (64, 64))
    assert np.array_equal(again.triangle, frame.triangle)


@pytest.mark.parametrize("camera", CAMERAS, ids=["pinhole", "weak"])
def test_the_projection_of_a_mesh_is_that_of_its_camera(
    camera: Camera, open_head: MorphableModel
) -> None:
    """Pixels are the camera's to the last bit; vertices behind the camera have none."""
    vertices = np.concatenate([head(open_head), [[0.1, 0.2, 0.0], [0.1, 0.2, -1.0]]])
    mesh = fr.Mesh.of(vertices, open_head.faces, camera)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight, px, depth = (
            camera.screen_weight(vertices),
            camera.px_from_cam(vertices),
            camera.screen_depth(vertices),
        )
    px[np.isnan(weight)] = np.nan
    assert np.array_equal(mesh.px, px, equal_nan=True)
    assert np.array_equal(mesh.weight, weight, equal_nan=True)
    assert np.array_equal(mesh.screen_depth, depth, equal_nan=True)
    placed = ~np.isnan(weight) & (vertices[:, 2] != 0.0)
    assert np.abs(camera.depth_on_screen(depth[placed]) - vertices[placed, 2]).max() < 1e-12


def test_invalid_arguments_are_named(toy_model: MorphableModel) -> None:
    vertices, faces, camera = head(toy_model), toy_model.faces, CAMERAS[0]
    for bad in (np.nan, np.inf):
        spoilt = vertices.copy()
        spoilt[3, 1] = bad
        with pytest.raises(ValueError, match="finite"):
            fr.render(spoilt, faces, camera, SIZE)
    with pytest.raises(ValueError, match="no vertex"):
        fr.render(vertices[:-1], faces, camera, SIZE)
    with pytest.raises(ValueError, match="no vertex"):
        fr.render(vertices, faces - 1, camera, SIZE)
    with pytest.raises(ValueError, match="positive"):
        fr.render(vertices, faces, camera, (0, 5))
    with pytest.raises(ValueError, match="triangles"):
        fr.resolve(np.full((4, 4), len(faces)), vertices, faces, camera)
    with pytest.raises(ValueError, match="behind"):
        fr.resolve(np.zeros((4, 4), dtype=int), vertices * [1.0, 1.0, -1.0], faces, camera)
    with pytest.raises(ValueError, match="odd"):
        fr.supersampled(
            fr.render(vertices, faces, camera, SIZE),
            vertices,
            faces,
            camera,
            lambda f: f.normal,
            factor=2,
        )
    assert not fr.render(vertices, faces[:0], camera, SIZE).mask.any()


def uv_square(size: int) -> tuple[fr.Frame, Floats, Floats]:
    """A frame of a unit square that fills ``size`` x ``size`` pixels, its uv, its triangles."""
    corners = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    faces = np.array([[0, 2, 1], [0, 3, 2]])
    frame = fr.render(corners, faces, WeakPerspective(float(size), np.zeros(2)), (size, size))
    return frame, corners[:, :2], faces


def test_a_texture_of_the_images_size_comes_through_unchanged() -> None:
    """With one texel for each pixel, u right and v down, sampling is the identity."""
    frame, uv, faces = uv_square(16)
    texture = np.random.default_rng(0).random((16, 16, 4)).astype(np.float32)
    assert np.abs(fr.sample_texture(frame, texture, uv, faces) - texture).max() < 1e-5


def test_sampling_between_texels_is_bilinear() -> None:
    """With four pixels per texel the weights are 1/8, 3/8, 5/8, 7/8; the border is repeated."""
    frame, uv, faces = uv_square(8)
    texture = np.array([[[0.0], [8.0]], [[80.0], [88.0]]], dtype=np.float32)
    line = np.array([0.0, 0.0, 1.0, 3.0, 5.0, 7.0, 8.0, 8.0])
    expected = line[None, :] + 10.0 * line[:, None]
    assert np.abs(fr.sample_texture(frame, texture, uv, faces)[..., 0] - expected).max() < 1e-4
    upright = fr.sample_texture(frame, texture[:, :1], uv, faces)[..., 0]  # one texel wide
    assert np.abs(upright - 10.0 * line[:, None]).max() < 1e-4


def test_shading_is_albedo_times_light(open_head: MorphableModel) -> None:
    """Colours equal ``lighting.shade`` pixel by pixel; dark sides are black, never negative."""
    frame = fr.render(head(open_head), open_head.faces, CAMERAS[0], SIZE)
    rng = np.random.default_rng(0)
    albedo, light = rng.random((*SIZE, 3)).astype(np.float32), rng.normal(size=(9, 3))
    colour = fr.shaded(frame, albedo, light)
    expected = np.where(
        frame.mask[..., None], albedo * shade(frame.normal.astype(np.float64), light), 0.0
    )
    assert np.abs(colour - expected).max() < 1e-5
    assert colour.min() == 0.0
    assert (colour[frame.mask] == 0).any()


def test_on_a_convex_head_vertices_that_face_away_are_hidden(toy_model: MorphableModel) -> None:
    """On a convex head a vertex is visible exactly when one of its triangles faces the camera."""
    camera, size = WeakPerspective(600.0, np.array([100.0, 100.0])), (200, 200)
    rng = np.random.default_rng(0)
    shown = hidden = 0
    for _ in range(20):
        vertices = head(toy_model, *rng.uniform(-90, 90, 3))
        frame = fr.render(vertices, toy_model.faces, camera, size)
        normals = triangle_normals(vertices, toy_model.faces)
        facing = -normals[:, 2] / np.linalg.norm(normals, axis=1)  # cosine
        best = np.full(len(vertices), -1.0)
        np.maximum.at(best, toy_model.faces, facing[:, None])
        column, row = camera.px_from_cam(vertices).astype(int).T
        inside = (
            distance_transform_edt(frame.mask)[row, column] > 3
        )  # on the silhouette both answers are right
        found = fr.visible(frame, vertices, camera, 0.003)
        assert found[best > 0.25].all()
        assert not found[inside & (best <= 0)].any()
        shown, hidden = shown + int(found.sum()), hidden + int((~found).sum())
    assert min(shown, hidden) > 100


def test_a_turned_head_hides_its_far_side(open_head: MorphableModel) -> None:
    """At 70 degrees of yaw the far eye corner and jaw are hidden, as is all outside the image."""
    camera, size = Pinhole(700.0, np.array([128.0, 128.0])), (256, 256)
    table = dict(zip(NAMES, open_head.landmarks.vertex, strict=True))
    for yaw, near, far in ((70.0, "left", "right"), (-70.0, "right", "left")):
        vertices = head(open_head, yaw, 0.0, 0.0)
        # The side that turns away lies deeper.
        assert vertices[table[f"eye_{near}_outer"], 2] < vertices[table[f"eye_{far}_outer"], 2]
        frame = fr.render(vertices, open_head.faces, camera, size)
        names = [
            f"eye_{near}_outer",
            f"nostril_{near}_outer",
            "nose_tip",
            f"eye_{far}_outer",
            f"jaw_{far}_6",
        ]
        seen = fr.visible(frame, vertices[[table[n] for n in names]], camera, 0.003)
        assert seen.tolist() == [True, True, True, False, False]
    elsewhere = np.array([[5.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, -0.17, 1.0]])
    assert fr.visible(frame, elsewhere, camera, 0.003).tolist() == [False, False, True]


def test_supersampled_coverage_is_the_area() -> None:
    """Coverage adds up to a triangle's area, is one inside, and multiplies constant colours."""
    triangle = np.array([[0.1, 0.1, 1.0], [0.93, 0.17, 1.0], [0.31, 0.88, 1.0]])
    faces, camera = np.array([[0, 1, 2]]), WeakPerspective(20.0, np.zeros(2))
    a, b = (triangle[1] - triangle[0])[:2], (triangle[2] - triangle[0])[:2]
    area = abs(a[0] * b[1] - a[1] * b[0]) / 2 * 400.0
    frame = fr.render(triangle, faces, camera, (20, 20))
    grey = np.array([0.25, 0.5, 1.0], dtype=np.float32)
    for factor in (3, 5, 15):
        colours, coverage = fr.supersampled(
            frame, triangle, faces, camera, lambda f: f.mask[..., None] * grey, factor=factor
        )
        assert coverage.sum() == pytest.approx(area, abs=3.0 / factor)
        assert np.abs(colours - coverage[..., None] * grey).max() < 1e-6
        steps = coverage * factor * factor
        assert np.abs(steps - np.round(steps)).max() < 1e-4
    assert coverage[6, 8] == 1.0
    assert coverage[18, 18] == 0.0


def test_supersampling_averages_a_finer_image(open_head: MorphableModel) -> None:
    """At outlines the colours are those of a 3x larger image, averaged; elsewhere the frame's."""
    vertices, camera, factor = head(open_head, 60.0), CAMERAS[0], 3
    values = open_head.template - open_head.template.min(0)

    def colour(frame: fr.Frame) -> fr.Image:
        return fr.interpolate(frame, values, open_head.faces)

    frame = fr.render(vertices, open_head.faces, camera, SIZE)
    colours, coverage = fr.supersampled(
        frame, vertices, open_head.faces, camera, colour, factor=factor
    )
    fine_camera = camera.cropped(np.zeros(2), float(factor))
    fine = fr.render(vertices, open_head.faces, fine_camera, (SIZE[0] * factor, SIZE[1] * factor))
    blocks = colour(fine).reshape(SIZE[0], factor, SIZE[1], factor, 3).mean(axis=(1, 3))
    partial = (coverage > 0) & (coverage < 1)
    assert partial.sum() > 100
    assert np.abs(colours - blocks)[partial].max() < 1e-5
    assert np.abs(colours - blocks).max() < 0.02  # metres on the head: shapes within a pixel
    same = np.isclose(colours, colour(frame)).all(axis=2)
    assert same.mean() > 0.8


def test_a_frames_parts_must_agree(toy_model: MorphableModel) -> None:
    frame = fr.render(head(toy_model), toy_model.faces, CAMERAS[0], SIZE)
    with pytest.raises(ValueError, match="H, W"):
        replace(frame, depth=frame.depth[1:])
    with pytest.raises(ValueError, match="H, W, 3"):
        replace(frame, normal=frame.normal[..., :2])
    with pytest.raises(ValueError, match="does not have"):
        fr.interpolate(frame, np.zeros((34, 1)), toy_model.faces[:2])
