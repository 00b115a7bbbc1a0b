"""The maps of a row are those of rendering, whatever lies between: a file, an occluder, the image's
border.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dff.face.errors import BadDataset
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.landmarks import NAMES
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import HIDDEN_DEPTH, OCCLUDER, Frame, interpolate, render, visible
from dff.infra.datasets.ground_truth import LandmarkVisibility, Maps, compute_maps
from dff.infra.datasets.shards import ViewRow, parquet_to_rows, rows_to_parquet
from tests.infra.rows import toy_view

SIZE = 128


def through_a_file(row: ViewRow) -> ViewRow:
    return parquet_to_rows(rows_to_parquet([row], {}))[0]


def head_view(
    model: MorphableModel, yaw: float = 0.0, plate: bool = False, shift: float = 0.0
) -> tuple[ViewRow, Frame]:
    """The mean face, and the frame of it alone; with ``plate`` a square stands 4 cm before its left
    eye.
    """
    scale = SIZE / 0.30
    camera = WeakPerspective(scale, np.array([SIZE * 0.5 + shift, SIZE * 0.5]))
    pose = Rigid(rotation_from_angles(yaw, 0.0, 0.0), np.array([0.0, 0.0, 1.0]))
    coefficients = Coefficients(np.zeros(0), np.zeros(0))
    head = model.vertices(coefficients)
    corners = model.landmarks.vertex[
        [NAMES.index(f"eye_left_{side}") for side in ("inner", "outer")]
    ]
    square = np.array(
        [[-0.02, -0.02, 0.04], [0.02, -0.02, 0.04], [0.02, 0.02, 0.04], [-0.02, 0.02, 0.04]]
    )
    square += head[corners].mean(0)
    both = pose.apply(np.concatenate([head, square]))
    faces = np.concatenate([model.faces, len(head) + np.array([[0, 1, 2], [0, 2, 3]], np.int32)])
    cam = both[: len(head)]
    alone = render(cam, model.faces, camera, (SIZE, SIZE))
    shown = render(both, faces, camera, (SIZE, SIZE)) if plate else alone
    px = camera.px_from_cam(cam)
    fixed = model.landmarks.vertex
    contour = model.landmarks.contour_vertices(px, model.template)
    return (
        ViewRow(
            sample_id="a/0000",
            identity_id="a",
            photo_id="",
            photo_sha256="",
            view=0,
            split="train",
            mode="rerender",
            seed=0,
            image=b"",
            width=SIZE,
            height=SIZE,
            triangle_ids=np.where(shown.triangle >= len(model.faces), OCCLUDER, shown.triangle),
            camera=camera,
            cam_from_head=pose,
            identity=np.zeros(0),
            expression=np.zeros(0),
            light=np.zeros((9, 3)),
            landmarks_2d=px[contour],
            landmarks_3d=px[fixed],
            visible_2d=visible(shown, cam[contour], camera, HIDDEN_DEPTH),
            visible_3d=visible(shown, cam[fixed], camera, HIDDEN_DEPTH),
            pose=(yaw, 0.0, 0.0),
            model=model.name,
            licence=model.licence,
            fit_error=0.0,
            recipe="{}",
        ),
        alone,
    )


def of_left_eye(maps: Maps) -> set[int]:
    return {
        int(maps.landmarks_3d.visibility[i])
        for i, name in enumerate(NAMES)
        if name.startswith("eye_left")
    }


def test_maps_are_those_of_rendering(toy_model: MorphableModel) -> None:
    rng = np.random.default_rng(4)
    for view in range(4):
        row, frame = toy_view(toy_model, "a", view, rng=rng)
        maps = compute_maps(through_a_file(row), toy_model)
        for name in ("triangle", "barycentric", "depth", "normal"):
            assert getattr(maps, name).tobytes() == getattr(frame, name).tobytes()
        assert (maps.model == frame.mask).all()
        cam = row.cam_from_head.apply(toy_model.vertices(row.coefficients(toy_model)))
        assert (maps.point == interpolate(frame, cam, toy_model.faces)).all()
        assert np.abs(maps.point[..., 2] - maps.depth)[maps.model].max() < 1e-6
        assert np.allclose(
            maps.rest[maps.model], maps.points.of(toy_model.template, toy_model.faces), atol=1e-6
        )
        assert (maps.region[maps.model] == toy_model.region[maps.triangle[maps.model]]).all()
        assert (maps.region[~maps.model] == -1).all()
        assert not maps.occluder.any()


def test_surface_points_lie_on_their_pixels(toy_model: MorphableModel) -> None:
    row, _ = toy_view(toy_model, "a", 1, rng=np.random.default_rng(8))
    maps = compute_maps(row, toy_model)
    y, x = np.nonzero(maps.model)
    assert np.abs(row.camera.px_from_cam(maps.point[y, x]) - np.stack([x, y], 1) - 0.5).max() < 0.01


def test_an_occluder_takes_its_pixels_and_leaves_the_rest_as_it_was(
    open_head: MorphableModel,
) -> None:
    row, alone = head_view(open_head, plate=True)
    maps = compute_maps(through_a_file(row), open_head)
    plate = maps.occluder
    assert abs(plate.sum() - (0.04 / 0.30 * SIZE) ** 2) < 40  # 4 cm of 30
    assert (maps.triangle[~plate] == alone.triangle[~plate]).all()
    assert maps.depth[~plate].tobytes() == alone.depth[~plate].tobytes()
    assert maps.normal[~plate].tobytes() == alone.normal[~plate].tobytes()
    assert (maps.depth[plate] == 0).all()
    assert not (maps.model & plate).any()
    assert not (maps.skin & ~maps.model).any()
    names = np.array(open_head.region_names)
    assert set(names[maps.region[maps.skin]]) <= {"face", "lips", "brows", "ears", "neck"}
    assert "scalp" in set(names[maps.region[maps.model & ~maps.skin]])


def test_hidden_landmarks_say_why(open_head: MorphableModel) -> None:
    bare = compute_maps(head_view(open_head)[0], open_head)
    assert of_left_eye(bare) == {LandmarkVisibility.VISIBLE}
    assert of_left_eye(compute_maps(head_view(open_head, plate=True)[0], open_head)) == {
        LandmarkVisibility.OCCLUDED
    }
    turned = compute_maps(head_view(open_head, yaw=80.0)[0], open_head)
    far = "left" if turned.landmarks_3d.visibility[NAMES.index("eye_left_outer")] else "right"
    for name in ("eye_{}_outer", "jaw_{}_4", "brow_{}_outer"):
        assert (
            turned.landmarks_3d.visibility[NAMES.index(name.format(far))]
            == LandmarkVisibility.SELF_OCCLUDED
        )
    # The far jaw of the 2D scheme slides to the outline, where it is seen.
    half = compute_maps(head_view(open_head, yaw=45.0)[0], open_head)
    assert (half.landmarks_2d.visibility[:17] == LandmarkVisibility.VISIBLE).sum() > (
        half.landmarks_3d.visibility[:17] == LandmarkVisibility.VISIBLE
    ).sum()
    beyond = compute_maps(head_view(open_head, shift=0.45 * SIZE)[0], open_head).landmarks_3d
    out = beyond.px[:, 0] >= SIZE
    assert out.any()
    assert (beyond.visibility[out] == LandmarkVisibility.OUTSIDE).all()
    for landmarks in (bare.landmarks_2d, half.landmarks_2d, turned.landmarks_3d, beyond):
        assert ((landmarks.visibility == LandmarkVisibility.VISIBLE) == landmarks.visible).all()


def test_another_models_row_is_refused(
    toy_model: MorphableModel, open_head: MorphableModel
) -> None:
    row, _ = toy_view(toy_model, "a", 0, rng=np.random.default_rng(1))
    with pytest.raises(BadDataset, match="shows the model 'toy', not 'open-head'"):
        compute_maps(row, open_head)
    with pytest.raises(BadDataset, match="shows the model 'other'"):
        compute_maps(replace(row, model="other"), toy_model)
