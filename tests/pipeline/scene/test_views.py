"""Views: exact correspondence, honest visibility, and rows that can be made again byte for byte."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from dff.face.geometry.transform import rotation_from_angles
from dff.face.io.assets import load_albedo
from dff.face.model.landmarks import NAMES
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import HIDDEN_DEPTH, OCCLUDER, render
from dff.infra.datasets.shards import ViewRow, parquet_to_rows, resolve_frame, rows_to_parquet
from dff.pipeline.accessories.neckline import find_neckline
from dff.pipeline.inspection.gallery import (
    contact_sheet,
    draw_correspondences,
    find_common_points,
)
from dff.pipeline.inspection.verify import find_differences, measure_correspondence_errors
from dff.pipeline.job.work import derive_seed
from dff.pipeline.scene import views
from dff.pipeline.scene.camera_sensor import encode_jpeg
from dff.pipeline.scene.sampling import make_plain_scene
from dff.pipeline.subjects.build import sample_person
from dff.pipeline.subjects.subject import Person

SIZE = 160


@pytest.fixture(scope="module")
def person(open_head: MorphableModel) -> Person:
    rng = np.random.default_rng(11)
    albedo = load_albedo()
    return sample_person(
        "sampled-000011", model=open_head, albedo=albedo, texture_size=256, rng=rng, deformed=1.0
    )


@pytest.fixture(scope="module")
def rows(person: Person, open_head: MorphableModel) -> list[ViewRow]:
    seeds = [derive_seed(5, f"{person.id}/{view:04d}") for view in range(16)]
    return [
        views.make_view(person, v, model=open_head, seed=seeds[v], size=SIZE) for v in range(16)
    ]


def test_a_deformed_person_is_no_identity_of_the_model(
    person: Person, open_head: MorphableModel
) -> None:
    """Nor an unrecognisable one: its points lie millimetres off the nearest that identities
    form.
    """
    basis = open_head.identity.reshape(len(open_head.identity), -1).T.astype(float)
    off = (person.neutral - open_head.template).ravel()
    nearest = basis @ np.linalg.lstsq(basis, off, rcond=None)[0]
    away = np.linalg.norm((off - nearest).reshape(-1, 3), axis=1)
    assert 0.0005 < np.median(away) < 0.006


def test_correspondences_between_views_are_exact(
    rows: list[ViewRow], open_head: MorphableModel
) -> None:
    compared = 0
    for a, b in pairwise(rows):
        away = measure_correspondence_errors(a, b, open_head)
        compared += len(away)
        assert away.max(initial=0.0) < 0.1
    assert compared > 900


def test_surface_points_project_to_the_centres_of_their_pixels(
    rows: list[ViewRow], open_head: MorphableModel
) -> None:
    for row in rows:
        frame = resolve_frame(row, open_head)
        cam = frame.points().of(
            row.cam_from_head.apply(open_head.vertices(row.coefficients(open_head))),
            open_head.faces,
        )
        y, x = np.nonzero(frame.mask)
        assert np.abs(row.camera.px_from_cam(cam) - np.stack([x, y], 1) - 0.5).max() < 0.01


def test_a_row_rendered_again_is_the_same(
    rows: list[ViewRow], person: Person, open_head: MorphableModel
) -> None:
    stored = parquet_to_rows(rows_to_parquet(rows, {}))
    for index, row in enumerate(stored):
        assert find_differences(row, person, model=open_head) == []
        again = views.make_row(
            person, index, views.restore_scene(row), model=open_head, seed=row.seed, size=SIZE
        )
        assert again.image == row.image
        assert (again.triangle_ids == row.triangle_ids).all()
        assert again.recipe == row.recipe
        assert (again.landmarks_2d == row.landmarks_2d).all()


def test_a_view_is_determined_by_its_seed(
    person: Person, rows: list[ViewRow], open_head: MorphableModel
) -> None:
    again = views.make_view(person, 7, model=open_head, seed=rows[7].seed, size=SIZE)
    assert rows_to_parquet([again], {}) == rows_to_parquet([rows[7]], {})
    other = views.make_view(person, 7, model=open_head, seed=rows[7].seed + 1, size=SIZE)
    assert other.image != again.image


def test_an_altered_column_is_named(
    rows: list[ViewRow], person: Person, open_head: MorphableModel
) -> None:
    row = rows[0]
    other = row.pixels().copy()
    other[5, 7] ^= 32
    for altered, said in (
        ({"landmarks_3d": row.landmarks_3d + np.float32(0.1)}, "landmarks_3d: .* is 0.14 px off"),
        ({"landmarks_2d": row.landmarks_2d + np.float32(1.0)}, "landmarks_2d: .* is 1.41 px off"),
        ({"triangle_ids": row.triangle_ids[::-1]}, "triangle_ids: .* pixels show another triangle"),
        ({"visible_3d": ~row.visible_3d}, "visible_3d: .* is not (seen|hidden)"),
        ({"image": rows[1].image}, "image: .* pixels differ, by at most"),
        ({"image": encode_jpeg(other, 100)}, "image: .* pixels differ, by at most"),
        ({"light": row.light * np.float32(1.001)}, "image: "),
        ({"pose": (0.0, 0.0, 0.0)}, "pose: differs"),
        ({"licence": "none"}, "licence: differs"),
        (
            {"recipe": "{}"},
            "can't be rendered again: ValueError: the recipe of sampled-000011/0000 is not of",
        ),
    ):
        found = find_differences(replace(row, **altered), person, model=open_head)  # type: ignore[arg-type]
        assert any(re.match(said, line) for line in found), (said, found)


def test_faces_are_in_the_picture(rows: list[ViewRow]) -> None:
    for row in rows:
        assert 0.05 < (row.triangle_ids >= 0).mean() < 0.95
        assert (row.landmarks_3d > -0.1 * SIZE).all()
        assert (row.landmarks_3d < 1.1 * SIZE).all()
        assert row.pixels().std() > 5


@pytest.mark.parametrize("yaw", [-80.0, 0.0, 80.0])
def test_visibility_of_landmarks_on_known_poses(
    person: Person, open_head: MorphableModel, yaw: float
) -> None:
    """Yaw as in AFLW2000-3D: at +80 degrees the person's left half is turned away from the camera
    or towards it; the half is found by depth, and no landmark of the far eye and jaw may count as
    seen."""
    rest = np.zeros(len(open_head.expression), dtype=np.float32)
    scene = make_plain_scene(
        person, rest, rotation_from_angles(yaw, 0.0, 0.0), model=open_head, size=256
    )
    row = views.make_row(person, 0, scene, model=open_head, seed=1, size=256)
    seen = dict(zip(NAMES, row.visible_3d.tolist(), strict=True))
    if yaw == 0.0:
        for name in (
            "nose_tip",
            "eye_left_outer",
            "eye_right_outer",
            "mouth_left",
            "mouth_right",
            "chin",
        ):
            assert seen[name], name
        return
    cam = row.cam_from_head.apply(open_head.vertices(row.coefficients(open_head)))[
        open_head.landmarks.vertex
    ]
    left = cam[NAMES.index("eye_left_outer"), 2] < cam[NAMES.index("eye_right_outer"), 2]
    near, far = ("left", "right") if left else ("right", "left")
    for name in ("eye_{}_outer", "brow_{}_outer", "jaw_{}_5"):
        assert seen[name.format(near)], name.format(near)
        assert not seen[name.format(far)], name.format(far)


def test_visibility_agrees_with_the_frame(rows: list[ViewRow], open_head: MorphableModel) -> None:
    """A visible landmark has no nearer surface before it, a hidden one has."""
    for row in rows:
        frame = resolve_frame(row, open_head)
        cam = row.cam_from_head.apply(open_head.vertices(row.coefficients(open_head)))[
            open_head.landmarks.vertex
        ]
        px = np.floor(row.landmarks_3d).astype(int)
        inside = ((px >= 1) & (px < SIZE - 1)).all(1)
        for (x, y), z, seen in zip(px[inside], cam[inside, 2], row.visible_3d[inside], strict=True):
            around = frame.depth[y - 1 : y + 2, x - 1 : x + 2]
            behind = around[around > 0] < z - HIDDEN_DEPTH
            assert not (seen and len(behind) == 9 and behind.all())
            assert (
                seen
                or behind.any()
                or (row.triangle_ids[y - 1 : y + 2, x - 1 : x + 2] == OCCLUDER).any()
            )


def test_views_keep_to_the_same_person(
    rows: list[ViewRow], person: Person, open_head: MorphableModel
) -> None:
    assert len(person.deformation) == len(open_head.deformations)
    assert len({row.seed for row in rows}) == len(rows)
    for row in rows:
        face = row.coefficients(open_head)
        assert (face.identity == person.identity).all()
        assert (face.deformation == person.deformation).all()
        assert row.split == person.split
        assert row.licence == "CC0-1.0 AND MIT"
        assert row.photo_id == ""
        assert row.mode == "rerender"


def test_colours_of_clothes_touch_no_ground_truth(
    person: Person, rows: list[ViewRow], open_head: MorphableModel
) -> None:
    worn = replace(person, accessories=replace(person.accessories, clothes=(0.9, 0.1, 0.1)))
    scene = views.restore_scene(rows[2])
    one, other = (
        views.make_row(p, 2, scene, model=open_head, seed=1, size=SIZE) for p in (person, worn)
    )
    assert (one.triangle_ids == other.triangle_ids).all()
    assert one.image != other.image
    neckline = find_neckline(open_head)
    dressed = neckline.coverage(open_head.template)
    assert dressed[neckline.rim].min() == 1.0
    assert dressed[open_head.landmarks.vertex].max() == 0.0


def test_a_body_behind_a_near_camera_is_drawn(person: Person, open_head: MorphableModel) -> None:
    """Looking down at a selfie's distance, shoulders would reach behind the camera."""
    rest = np.zeros(len(open_head.expression), dtype=np.float32)
    scene = make_plain_scene(
        person, rest, rotation_from_angles(0.0, 70.0, 0.0), model=open_head, size=SIZE
    )
    near = replace(
        scene, cam_from_head=replace(scene.cam_from_head, translation=np.array([0.0, 0.0, 0.3]))
    )
    assert len(views.make_row(person, 0, near, model=open_head, seed=1, size=SIZE).image) > 500


def test_pictures_of_rows(rows: list[ViewRow], open_head: MorphableModel) -> None:
    sheet = contact_sheet(rows, columns=5, tile=64)
    assert sheet.shape == (4 * 67 - 3, 5 * 67 - 3, 3)
    front = sorted(rows, key=lambda row: abs(row.pose[0]))
    points, px_a, px_b = find_common_points(front[0], front[1], open_head, 20)
    assert len(points.triangle) == 20
    for row, px in ((front[0], px_a), (front[1], px_b)):
        vertices = row.cam_from_head.apply(open_head.vertices(row.coefficients(open_head)))
        assert np.allclose(
            row.camera.px_from_cam(points.of(vertices, open_head.faces)), px, atol=0.01
        )
    picture = draw_correspondences(front[0], front[1], open_head, 20, scale=2)
    assert picture.shape == (2 * SIZE, 4 * SIZE + 8, 3)
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_landmarks_of_the_2d_scheme_lie_on_the_outline(
    person: Person, open_head: MorphableModel
) -> None:
    """Turned away, the far jaw of the 2D scheme is seen, where that of the 3D scheme hides behind
    the cheek.
    """
    rest = np.zeros(len(open_head.expression), dtype=np.float32)
    scene = make_plain_scene(
        person, rest, rotation_from_angles(45.0, 0.0, 0.0), model=open_head, size=256
    )
    row = views.make_row(person, 0, scene, model=open_head, seed=1, size=256)
    assert row.visible_2d[:17].sum() > row.visible_3d[:17].sum()
    away = np.linalg.norm(row.landmarks_2d - row.landmarks_3d, axis=1)
    assert away[17:].max() < 0.1 * np.ptp(row.landmarks_3d, axis=0).max()
    vertices = row.cam_from_head.apply(open_head.vertices(row.coefficients(open_head)))
    frame = render(vertices, open_head.faces, row.camera, (256, 256))
    shown = row.triangle_ids != OCCLUDER
    assert (frame.triangle == row.triangle_ids)[shown].all()
    assert shown.mean() > 0.6
