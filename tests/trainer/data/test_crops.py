"""Crops: the target of a pixel is the surface point that projects to it, mirrored or not."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from dff.face.arrays import Bools, Floats
from dff.face.descriptor import FRAMING, STRIDE
from dff.face.errors import BadDataset
from dff.face.geometry.camera import Box
from dff.face.geometry.mesh import vertex_normals
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.shards import ViewRow, resolve_frame
from dff.trainer.data.augment import augment_photometric, occlude
from dff.trainer.data.config import AUGMENT
from dff.trainer.data.crops import (
    CropPlacement,
    TrainingSurface,
    build_training_surface,
    find_pixel_quads,
    grid_in_source,
    input_from_source,
    interpolate_coordinates,
    inverse_affine,
    lookup_triangles,
    make_sample,
    paint_over_face,
    sample_displacement,
    warp,
    warp_displaced,
)
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.data.views import StoredView, ViewStore, open_views
from tests.trainer.conftest import barycentrics

SIZE = 64
TILTED = CropPlacement(zoom=0.9, shift=(0.05, -0.08), degrees=33.0)


def facing_points(row: ViewRow, model: MorphableModel) -> tuple[Floats, Floats]:
    """(N, 6) surface coordinates and (N, 2) px of visible triangle centres that face the camera."""
    vertices = row.cam_from_head.apply(model.vertices(row.coefficients(model)))
    surface = build_training_surface(model)
    seen = np.unique(row.triangle_ids[row.triangle_ids >= 0])
    seen = seen[surface.anchored[seen]]
    normal = vertex_normals(vertices, model.faces)[model.faces[seen]].mean(1)
    seen = seen[normal[:, 2] < -0.8]
    centre = vertices[model.faces[seen]].mean(1)
    return surface.coordinates[model.faces[seen]].mean(1), row.camera.px_from_cam(centre)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_target_at_a_projected_point_is_the_point(
    rows: list[ViewRow],
    store: ViewStore,
    open_head: MorphableModel,
    surface: TrainingSurface,
    mirrored: bool,
) -> None:
    """Project surface points, map them into the crop and look up the targets there."""
    placement = replace(TILTED, mirrored=mirrored)
    errors = []
    for number in (0, 20, 41):
        coordinate, px = facing_points(rows[number], open_head)
        view = store.view(number)
        matrix = input_from_source(view.box, SIZE, placement)
        crop_px = px @ matrix[:, :2].T + matrix[:, 2]
        back = inverse_affine(matrix)
        got, known = interpolate_coordinates(
            view, crop_px @ back[:, :2].T + back[:, 2], surface, mirrored=mirrored
        )
        wanted = coordinate * [-1, 1, 1, -1, 1, 1] if mirrored else coordinate
        assert known.mean() > 0.8
        errors.append(np.linalg.norm(got - wanted, axis=1)[known])
    error = np.concatenate(errors)
    # a source pixel is about 2.5 mm wide here; a half-pixel slip would show as 1.2 mm
    assert np.median(error) < 0.0004
    assert np.percentile(error, 95) < 0.0015


def test_targets_equal_those_of_a_rendering_with_the_crops_camera(
    rows: list[ViewRow], store: ViewStore, open_head: MorphableModel, surface: TrainingSurface
) -> None:
    """Rendering gives the same targets as looking up those of the source."""
    row, view = rows[7], store.view(7)
    upright = CropPlacement(zoom=1.1, shift=(0.03, 0.02))
    matrix = input_from_source(view.box, SIZE, upright)
    vertices = row.cam_from_head.apply(open_head.vertices(row.coefficients(open_head)))
    scale = matrix[0, 0] / STRIDE
    camera = row.camera.cropped(-matrix[:, 2] / matrix[0, 0], scale)
    frame = render(vertices, open_head.faces, camera, (SIZE // STRIDE, SIZE // STRIDE))
    corners = surface.coordinates[open_head.faces[np.maximum(frame.triangle, 0)]]
    wanted = np.einsum("ijk,ijkc->ijc", frame.barycentric, corners).reshape(-1, 6)
    got, known = interpolate_coordinates(view, grid_in_source(matrix, SIZE), surface)
    known &= frame.triangle.ravel() >= 0
    error = np.linalg.norm(got - wanted, axis=1)[known]
    assert known.sum() > 250
    assert np.median(error) < 0.0004


def test_targets_of_a_mirrored_crop_are_the_mirrored_targets(
    store: ViewStore, surface: TrainingSurface
) -> None:
    view = store.view(3)
    plain = input_from_source(view.box, SIZE, TILTED)
    flipped = np.diag([-1.0, 1.0]) @ plain + np.array([[0, 0, SIZE], [0, 0, 0]])
    half = SIZE // STRIDE
    there, known = interpolate_coordinates(view, grid_in_source(plain, SIZE), surface)
    back, known_back = interpolate_coordinates(
        view, grid_in_source(flipped, SIZE), surface, mirrored=True
    )
    known, known_back = known.reshape(half, half), known_back.reshape(half, half)[:, ::-1]
    np.testing.assert_array_equal(known, known_back)
    reflected = back.reshape(half, half, 6)[:, ::-1] * [-1, 1, 1, -1, 1, 1]
    np.testing.assert_allclose(reflected[known], there.reshape(half, half, 6)[known], atol=1e-5)


def test_mirrored_coordinates_follow_the_models_table(
    mirrored_model: MorphableModel, store: ViewStore
) -> None:
    surface = build_training_surface(mirrored_model)
    vertex = int(mirrored_model.landmarks.vertex[36])
    np.testing.assert_array_equal(
        surface.mirrored[vertex], surface.coordinates[mirrored_model.mirror[vertex]]
    )


def test_the_image_is_cropped_as_the_targets() -> None:
    """A bright dot of the source appears where its centre is mapped to."""
    box = Box(30.0, 30.0, 70.0, 70.0)
    for placement in (CropPlacement(), TILTED, replace(TILTED, mirrored=True)):
        image = np.zeros((100, 100, 3), np.uint8)
        image[58:61, 41:44] = 255
        matrix = input_from_source(box, 128, placement)
        out = warp(image, matrix, 128, (0, 0, 0)).astype(float)[..., 0]
        rows, columns = np.mgrid[:128, :128] + 0.5
        centre = np.array([(out * columns).sum(), (out * rows).sum()]) / out.sum()
        wanted = matrix @ [42.5, 59.5, 1.0]
        np.testing.assert_allclose(centre, wanted, atol=0.1)  # OpenCV warps in 1/32 px


def test_the_plain_crop_frames_the_landmark_box() -> None:
    box = Box(10.0, 20.0, 50.0, 100.0)
    matrix = input_from_source(box, 128, CropPlacement())
    np.testing.assert_allclose(matrix @ [*box.centre, 1.0], [64.0, 64.0])
    top, bottom = matrix @ [30.0, 20.0, 1.0], matrix @ [30.0, 100.0, 1.0]
    assert bottom[1] - top[1] == pytest.approx(128 / FRAMING)
    mirrored = input_from_source(box, 128, CropPlacement(mirrored=True))
    np.testing.assert_allclose(mirrored[0] + matrix[0], [0.0, 0.0, 128.0], atol=1e-12)


def test_points_outside_the_view_are_unknown(store: ViewStore, surface: TrainingSurface) -> None:
    view = store.view(0)
    height, width = view.triangle.shape
    outside = np.array(
        [[-5.0, 10.0], [10.0, -0.4], [width + 3.0, 10.0], [10.0, height + 0.1], [0.2, 0.2]]
    )
    _, known = interpolate_coordinates(view, outside, surface)
    assert not known.any()
    assert (lookup_triangles(view, outside[:4], len(surface.faces)) == len(surface.faces)).all()


def test_no_target_lies_across_an_occluding_contour(
    store: ViewStore, surface: TrainingSurface
) -> None:
    """Next to the silhouette the four neighbours show distant points, so targets are unknown."""
    view = store.view(0)
    px = grid_in_source(input_from_source(view.box, SIZE, CropPlacement()), SIZE)
    triangle = lookup_triangles(view, px, len(surface.faces))
    _, known = interpolate_coordinates(view, px, surface)
    half = SIZE // STRIDE
    surface = surface.anchored[triangle].reshape(half, half)
    edge = surface & ~np.roll(surface, 1, 1) | surface & ~np.roll(surface, -1, 1)
    assert known.reshape(half, half)[edge].mean() < 0.5
    assert known.reshape(half, half)[surface].mean() > 0.6


def test_the_store_keeps_the_dense_ground_truth(
    rows: list[ViewRow], store: ViewStore, open_head: MorphableModel
) -> None:
    faces = open_head.faces
    for number in (0, 33):
        frame, view = resolve_frame(rows[number], open_head), store.view(number)
        np.testing.assert_array_equal(
            np.where(view.triangle == 0xFFFF, -1, view.triangle.astype(int)), frame.triangle
        )
        # The stored vertices lie within half a micrometre, of triangles of some millimetres.
        np.testing.assert_allclose(barycentrics(view, faces), frame.barycentric, atol=2e-3)
        assert np.abs(view.image.astype(int) - rows[number].pixels()).mean() < 1.0
        assert bool(store.is_dev[number]) == (rows[number].split == "dev")


def slow_coordinates(
    view: StoredView, px: Floats, surface: TrainingSurface, *, mirrored: bool, max_spread: float
) -> tuple[Floats, Bools]:
    """``interpolate_coordinates``, from the barycentric weights of all pixels."""
    faces = len(surface.faces)
    quads = find_pixel_quads(px, view.triangle.shape)
    dense = barycentrics(view, surface.faces).astype(np.float32)
    ids = np.minimum(view.triangle[quads.rows, quads.columns].astype(np.int64), faces)
    known = quads.inside & surface.anchored[ids].all(1)
    weight = dense[quads.rows, quads.columns]
    table = surface.mirrored if mirrored else surface.coordinates
    corners = table[surface.faces[np.where(known[:, None], ids, 0)]]
    coordinates = np.einsum("npk,npkc->npc", weight, corners)
    spread = np.linalg.norm(coordinates - coordinates[:, :1], axis=2).max(1)
    out = np.einsum("np,npc->nc", quads.weights(np.float32), coordinates)
    return out, known & (spread < max_spread)


@pytest.mark.parametrize("mirrored", [False, True])
def test_coordinates_equal_those_of_a_slow_implementation(
    store: ViewStore, surface: TrainingSurface, mirrored: bool
) -> None:
    known_points = 0
    for number in range(0, 72, 9):
        view = store.view(number)
        px = np.random.default_rng(number).uniform(-2.0, 98.0, (3000, 2))
        for spread in (0.002, 0.010):
            wanted, known = slow_coordinates(
                view, px, surface, mirrored=mirrored, max_spread=spread
            )
            got, also = interpolate_coordinates(
                view, px, surface, mirrored=mirrored, max_spread=spread
            )
            np.testing.assert_array_equal(also, known)
            np.testing.assert_allclose(got[known], wanted[known], rtol=0, atol=1e-7)
            known_points += known.sum()
    assert known_points > 5000


def test_a_view_of_another_mesh_is_refused(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    """The same name and another version of the mesh: recognised by the geometry."""
    rolled = replace(open_head, faces=np.roll(open_head.faces, 7, axis=0))
    grown = replace(open_head, template=open_head.template * np.float32(1.05))
    for model in (rolled, grown):
        view = open_views([dataset], model, CacheConfig(tmp_path)).view(0)
        px = np.random.default_rng(0).uniform(20.0, 76.0, (500, 2))
        with pytest.raises(BadDataset, match=r"row 0 of .*another version of the face model"):
            interpolate_coordinates(view, px, build_training_surface(model))


def test_a_warp_without_displacement_is_the_plain_crop(store: ViewStore) -> None:
    view = store.view(5)
    matrix = input_from_source(view.box, SIZE, TILTED)
    still = np.zeros((SIZE, SIZE, 2), np.float32)
    image, px = warp_displaced(view.image, matrix, still, (9, 9, 9))
    np.testing.assert_allclose(px, grid_in_source(matrix, SIZE), atol=1e-3)
    apart = np.abs(image.astype(int) - warp(view.image, matrix, SIZE, (9, 9, 9)).astype(int))
    assert apart.mean() < 0.5, "both interpolate bilinearly, on grids of 1/32 px"


@pytest.mark.parametrize("seed", range(4))
def test_a_warped_crop_shows_the_source_at_the_returned_points(seed: int) -> None:
    """The colours of the image are its coordinates, so each output pixel shows where it is from."""
    rng = np.random.default_rng(seed)
    size = 128
    row, column = np.mgrid[0:size, 0:size] + 0.5
    image = np.stack([2 * column - 1, 2 * row - 1, 0 * row], axis=-1).astype(
        np.uint8
    )  # half a pixel to a level
    matrix = input_from_source(Box(30.0, 34.0, 92.0, 90.0), size, TILTED)
    displacement = sample_displacement(size, AUGMENT.warp, rng=rng)
    crop, px = warp_displaced(image, matrix, displacement, (0, 0, 0))
    cells = (
        crop.reshape(size // STRIDE, STRIDE, size // STRIDE, STRIDE, 3).mean((1, 3)).reshape(-1, 3)
    )
    shown = (cells[:, :2] + 1.0) / 2.0
    within = ((px > 3) & (px < size - 3)).all(1)
    assert within.sum() > 2000
    assert np.abs(shown - px)[within].max() < 0.3, (
        "rounding to levels alone is a quarter of a pixel"
    )
    assert np.abs(shown - px)[within].mean() < 0.08
    assert np.abs(px - grid_in_source(matrix, size))[within].max() > 0.3, "the crop is warped"


def test_displacements_are_small_and_do_not_fold() -> None:
    size = 160
    moved = []
    for seed in range(60):
        displacement = sample_displacement(size, AUGMENT.warp, rng=np.random.default_rng(seed))
        down, across = np.gradient(displacement, axis=(0, 1))
        # The Jacobian determinant of the map stays positive.
        area = (1 + across[..., 0]) * (1 + down[..., 1]) - across[..., 1] * down[..., 0]
        assert area.min() > 0.15
        moved.append(np.linalg.norm(displacement, axis=2).mean() / size)
    assert 0.006 < np.mean(moved) < 0.03
    assert max(moved) < 0.08


def test_a_sample_depends_on_its_generator_alone(
    store: ViewStore, surface: TrainingSurface
) -> None:
    def sample(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return b"".join(
            part.tobytes()
            for part in astuple(make_sample(store.view(2), surface, size=SIZE, pixels=50, rng=rng))
        )

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_samples_hold_targets_and_padding(store: ViewStore, surface: TrainingSurface) -> None:
    shares = []
    for seed in range(12):
        sample = make_sample(
            store.view(seed), surface, size=SIZE, pixels=2000, rng=np.random.default_rng(seed)
        )
        known = sample.known > 0
        assert sample.image.shape == (SIZE, SIZE, 3)
        assert 30 < known.sum() < 2000, "a crop has 1,024 output pixels"
        chosen = sample.pixel[known]
        assert len(set(chosen.tolist())) == len(chosen)
        on_template = np.abs(sample.coordinate[known, :3]).max(0)
        assert (on_template < [0.1, 0.16, 0.2]).all()
        shares.append(sample.face.mean())
    faceless = np.array(shares) == 0
    assert faceless.sum() <= 2, "few views have their face painted over"
    assert all(0.02 < share < 0.9 for share in np.array(shares)[~faceless])


def test_painting_over_a_face_removes_the_skin_and_keeps_the_rest(
    store: ViewStore, surface: TrainingSurface
) -> None:
    view = store.view(2)
    painted = paint_over_face(view, surface, AUGMENT.faceless, rng=np.random.default_rng(0))
    faces = len(surface.faces)
    skin = surface.skin[np.minimum(view.triangle, faces)]
    assert skin.mean() > 0.05
    assert not surface.skin[np.minimum(painted.triangle, faces)].any()
    assert (painted.image[skin].astype(float).std(0) < 12).all(), "the face is one noisy colour"
    same = painted.triangle == view.triangle
    np.testing.assert_array_equal(
        painted.image[same & (view.triangle < faces)], view.image[same & (view.triangle < faces)]
    )


def test_occluders_change_only_the_pixels_of_their_mask() -> None:
    image = np.full((SIZE, SIZE, 3), 128, np.uint8)
    shares = []
    for seed in range(20):
        out, covered = occlude(image, AUGMENT.occlusion, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(out[~covered], image[~covered])
        shares.append(covered.mean())
    assert 0.02 < np.mean(shares) < 0.5


def test_photometric_effects_do_not_move_pixels() -> None:
    """The left half stays the bright one."""
    image = np.full((SIZE, SIZE, 3), 60, np.uint8)
    image[:, : SIZE // 2] = 190
    for seed in range(40):
        out = (
            augment_photometric(image, AUGMENT.photometric, rng=np.random.default_rng(seed))
            .astype(float)
            .mean(2)
        )
        edge = np.abs(np.diff(out.mean(0))).argmax() + 1
        assert abs(edge - SIZE // 2) <= 3
        assert out[:, : SIZE // 2 - 6].mean() > out[:, SIZE // 2 + 6 :].mean()


def test_the_training_surface_marks_regions(
    surface: TrainingSurface, open_head: MorphableModel
) -> None:
    names = np.array(open_head.region_names)[open_head.region]
    assert not surface.anchored[-1]
    assert not surface.skin[-1]
    assert not surface.anchored[:-1][names == "teeth"].any()
    assert surface.anchored[:-1][names == "scalp"].all()
    assert not surface.skin[:-1][names == "scalp"].any()
    assert surface.skin[:-1][names == "lips"].all()
