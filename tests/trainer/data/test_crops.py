"""Crops keep the truth: a surface point lies where the crop's target map says, mirrored or not."""

from __future__ import annotations

import numpy as np
import pytest

from dff.face.arrays import Floats
from dff.face.descriptor import FRAMING, STRIDE
from dff.face.geometry.camera import Box
from dff.face.geometry.mesh import vertex_normals
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render
from dff.infra.shards import ViewRow, resolve_frame
from dff.trainer.data.augment import augment_photometric, occlude
from dff.trainer.data.crops import (
    CropPlacement,
    TrainingSurface,
    build_training_surface,
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
from dff.trainer.data.view_cache import ViewStore

SIZE = 64
TILTED = CropPlacement(zoom=0.9, shift=(0.05, -0.08), degrees=33.0)


def facing_points(row: ViewRow, model: MorphableModel) -> tuple[Floats, Floats]:
    """((N, 6) surface coordinates, (N, 2) source px) of triangle centres that face the camera and
    are seen.
    """
    vertices = row.cam_from_head.apply(model.vertices(row.coefficients(model)))
    surface = build_training_surface(model)
    seen = np.unique(row.triangle_ids[row.triangle_ids >= 0])
    seen = seen[surface.anchored[seen]]
    normal = vertex_normals(vertices, model.faces)[model.faces[seen]].mean(1)
    seen = seen[normal[:, 2] < -0.8]
    centre = vertices[model.faces[seen]].mean(1)
    return surface.coordinates[model.faces[seen]].mean(1), row.camera.px_from_cam(centre)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_projected_point_lies_where_the_target_map_says(
    rows: list[ViewRow],
    store: ViewStore,
    open_head: MorphableModel,
    surface: TrainingSurface,
    mirrored: bool,
) -> None:
    """Project surface points, carry them through the crop, and read the target map there: the same
    points again.
    """
    placement = TILTED._replace(mirrored=mirrored)
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


def test_the_target_of_an_output_pixel_is_the_point_that_projects_to_its_centre(
    rows: list[ViewRow], store: ViewStore, open_head: MorphableModel, surface: TrainingSurface
) -> None:
    """Slow twin: resolve the crop's own camera instead of looking up the source's map."""
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


def test_mirroring_follows_the_models_table_not_a_sign(
    mirrored_model: MorphableModel, store: ViewStore
) -> None:
    surface = build_training_surface(mirrored_model)
    vertex = int(mirrored_model.landmarks.vertex[36])
    np.testing.assert_array_equal(
        surface.mirrored[vertex], surface.coordinates[mirrored_model.mirror[vertex]]
    )


def test_the_image_moves_with_the_targets() -> None:
    """A bright dot at a known source pixel shows at the pixel its centre maps to."""
    box = Box(30.0, 30.0, 70.0, 70.0)
    for placement in (CropPlacement(), TILTED, TILTED._replace(mirrored=True)):
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


def test_hidden_and_outside_places_are_unknown(store: ViewStore, surface: TrainingSurface) -> None:
    view = store.view(0)
    height, width = view.triangle.shape
    outside = np.array(
        [[-5.0, 10.0], [10.0, -0.4], [width + 3.0, 10.0], [10.0, height + 0.1], [0.2, 0.2]]
    )
    _, known = interpolate_coordinates(view, outside, surface)
    assert not known.any()
    assert (lookup_triangles(view, outside[:4], len(surface.faces)) == len(surface.faces)).all()


def test_no_target_straddles_an_edge(store: ViewStore, surface: TrainingSurface) -> None:
    """Next to the silhouette the four neighbours disagree; what is called known has them on one
    sheet.
    """
    view = store.view(0)
    px = grid_in_source(input_from_source(view.box, SIZE, CropPlacement()), SIZE)
    triangle = lookup_triangles(view, px, len(surface.faces))
    _, known = interpolate_coordinates(view, px, surface)
    half = SIZE // STRIDE
    surface = surface.anchored[triangle].reshape(half, half)
    edge = surface & ~np.roll(surface, 1, 1) | surface & ~np.roll(surface, -1, 1)
    assert known.reshape(half, half)[edge].mean() < 0.5
    assert known.reshape(half, half)[surface].mean() > 0.6


def test_the_store_keeps_the_dense_truth(
    rows: list[ViewRow], store: ViewStore, open_head: MorphableModel
) -> None:
    for number in (0, 33):
        frame, view = resolve_frame(rows[number], open_head), store.view(number)
        np.testing.assert_array_equal(
            np.where(view.triangle == 0xFFFF, -1, view.triangle.astype(int)), frame.triangle
        )
        error = np.abs(view.weight / 255.0 - frame.barycentric[..., :2])[frame.mask]
        assert error.max() <= 0.5 / 255 + 1e-6
        assert np.abs(view.image.astype(int) - rows[number].pixels()).mean() < 1.0
        assert bool(store.is_dev[number]) == (rows[number].split == "dev")


def test_an_unbent_crop_is_the_plain_one(store: ViewStore) -> None:
    view = store.view(5)
    matrix = input_from_source(view.box, SIZE, TILTED)
    still = np.zeros((SIZE, SIZE, 2), np.float32)
    image, px = warp_displaced(view.image, matrix, still, (9, 9, 9))
    np.testing.assert_allclose(px, grid_in_source(matrix, SIZE), atol=1e-3)
    apart = np.abs(image.astype(int) - warp(view.image, matrix, SIZE, (9, 9, 9)).astype(int))
    assert apart.mean() < 0.5, "both interpolate bilinearly, on grids of a thirty-second of a pixel"


@pytest.mark.parametrize("seed", range(4))
def test_a_bent_crop_shows_what_its_source_places_say(seed: int) -> None:
    """An image whose colours are its coordinates: each output pixel shows the place that it is said
    to show.
    """
    rng = np.random.default_rng(seed)
    size = 128
    row, column = np.mgrid[0:size, 0:size] + 0.5
    image = np.stack([2 * column - 1, 2 * row - 1, 0 * row], axis=-1).astype(
        np.uint8
    )  # half a pixel to a level
    matrix = input_from_source(Box(30.0, 34.0, 92.0, 90.0), size, TILTED)
    displacement = sample_displacement(size, rng=rng)
    crop, px = warp_displaced(image, matrix, displacement, (0, 0, 0))
    cells = (
        crop.reshape(size // STRIDE, STRIDE, size // STRIDE, STRIDE, 3).mean((1, 3)).reshape(-1, 3)
    )
    shown = (cells[:, :2] + 1.0) / 2.0
    within = ((px > 3) & (px < size - 3)).all(1)
    assert within.sum() > 2000
    assert np.abs(shown - px)[within].max() < 0.3, (
        "rounding to levels alone makes a quarter of a pixel"
    )
    assert np.abs(shown - px)[within].mean() < 0.08
    assert np.abs(px - grid_in_source(matrix, size))[within].max() > 0.3, "it is bent"


def test_bends_are_small_and_fold_nowhere() -> None:
    size = 160
    moved = []
    for seed in range(60):
        displacement = sample_displacement(size, rng=np.random.default_rng(seed))
        down, across = np.gradient(displacement, axis=(0, 1))
        # The map's own derivative: the area of a pixel's image stays positive, so neighbours keep
        # their order.
        area = (1 + across[..., 0]) * (1 + down[..., 1]) - across[..., 1] * down[..., 0]
        assert area.min() > 0.15
        moved.append(np.linalg.norm(displacement, axis=2).mean() / size)
    assert 0.006 < np.mean(moved) < 0.03
    assert max(moved) < 0.08


def test_a_sample_is_decided_by_its_generator(store: ViewStore, surface: TrainingSurface) -> None:
    def sample(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return b"".join(
            part.tobytes()
            for part in make_sample(store.view(2), surface, size=SIZE, pixels=50, rng=rng)
        )

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_samples_say_what_they_know(store: ViewStore, surface: TrainingSurface) -> None:
    shares = []
    for seed in range(12):
        sample = make_sample(
            store.view(seed), surface, size=SIZE, pixels=2000, rng=np.random.default_rng(seed)
        )
        known = sample.known > 0
        assert sample.image.shape == (SIZE, SIZE, 3)
        assert 30 < known.sum() < 2000, "a crop of 1,024 output pixels cannot fill 2,000"
        chosen = sample.pixel[known]
        assert len(set(chosen.tolist())) == len(chosen)
        on_template = np.abs(sample.coordinate[known, :3]).max(0)
        assert (on_template < [0.1, 0.16, 0.2]).all()
        shares.append(sample.face.mean())
    faceless = np.array(shares) == 0
    assert faceless.sum() <= 2, "few views have their face painted over"
    assert all(0.02 < share < 0.9 for share in np.array(shares)[~faceless])


def test_a_view_without_its_face_shows_no_skin_and_keeps_the_rest(
    store: ViewStore, surface: TrainingSurface
) -> None:
    view = store.view(2)
    bare = paint_over_face(view, surface, rng=np.random.default_rng(0))
    faces = len(surface.faces)
    skin = surface.skin[np.minimum(view.triangle, faces)]
    assert skin.mean() > 0.05
    assert not surface.skin[np.minimum(bare.triangle, faces)].any()
    assert (bare.image[skin].astype(float).std(0) < 12).all(), "what was the face is one colour"
    same = bare.triangle == view.triangle
    np.testing.assert_array_equal(
        bare.image[same & (view.triangle < faces)], view.image[same & (view.triangle < faces)]
    )


def test_occluders_clear_the_targets() -> None:
    image = np.full((SIZE, SIZE, 3), 128, np.uint8)
    shares = []
    for seed in range(20):
        out, covered = occlude(image, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(out[~covered], image[~covered])
        shares.append(covered.mean())
    assert 0.02 < np.mean(shares) < 0.5


def test_photometric_effects_keep_pixels_in_their_places() -> None:
    """The bright half stays the left half, whatever the camera did."""
    image = np.full((SIZE, SIZE, 3), 60, np.uint8)
    image[:, : SIZE // 2] = 190
    for seed in range(40):
        out = augment_photometric(image, rng=np.random.default_rng(seed)).astype(float).mean(2)
        edge = np.abs(np.diff(out.mean(0))).argmax() + 1
        assert abs(edge - SIZE // 2) <= 3
        assert out[:, : SIZE // 2 - 6].mean() > out[:, SIZE // 2 + 6 :].mean()


def test_the_chart_knows_regions(surface: TrainingSurface, open_head: MorphableModel) -> None:
    names = np.array(open_head.region_names)[open_head.region]
    assert not surface.anchored[-1]
    assert not surface.skin[-1]
    assert not surface.anchored[:-1][names == "teeth"].any()
    assert surface.anchored[:-1][names == "scalp"].all()
    assert not surface.skin[:-1][names == "scalp"].any()
    assert surface.skin[:-1][names == "lips"].all()
