"""Views of the mode profile, on a photo whose answer is known: rendered from a known face before a
green wall.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dff.face.arrays import Floats
from dff.face.geometry.lighting import shade
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import Rigid, angles_from_rotation, rotation_from_angles
from dff.face.io.assets import load_albedo
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import Frame, interpolate, render, sample_texture
from dff.face.texture.fitted_head import mask_skin
from dff.infra.datasets.shards import ViewRow
from dff.pipeline.recovery.inverse import Recovery
from dff.pipeline.scene import views
from dff.pipeline.scene.photo_warping import PROFILING
from dff.pipeline.scene.sampling import SceneConfig, draw_scene
from dff.pipeline.scene.scene import PROFILE, RERENDER, Scene
from dff.pipeline.subjects import subject_file as person_file
from dff.pipeline.subjects.build import recover_person
from dff.pipeline.subjects.subject import Person, PhotoScene
from tests.face.texture.test_albedo_completion import SIZE, TEXELS, photograph, speckled

YAW = 20.0


@pytest.fixture(scope="module")
def truth(open_head: MorphableModel) -> Floats:
    return speckled(open_head)


@pytest.fixture(scope="module")
def recovery(open_head: MorphableModel, truth: Floats) -> Recovery:
    """Behind the green wall's person there are stripes, so that nothing moves unseen."""
    found, frame = photograph(open_head, truth, YAW)
    crop = found.crop.copy()
    stripes = ((np.arange(SIZE) // 8) % 2 == 0)[None, :] & ~frame.mask
    crop[stripes] = (40, 190, 60)
    return replace(found, crop=crop)


@pytest.fixture(scope="module")
def person(open_head: MorphableModel, recovery: Recovery) -> Person:
    made = recover_person(
        recovery,
        "known",
        model=open_head,
        albedo=load_albedo(),
        texture_size=TEXELS,
        licence="CC0-1.0",
        rng=np.random.default_rng(0),
    )
    return person_file.store_person(made, open_head).person


def own_of(person: Person) -> PhotoScene:
    assert person.photo_scene is not None
    return person.photo_scene


def turned(person: Person, model: MorphableModel, yaw: float, pitch: float = 0.0) -> Scene:
    """The photo's scene with the head turned by degrees of yaw and pitch."""
    scene = draw_scene(person, 0, model=model, rng=np.random.default_rng(0), size=SIZE)
    own = scene.cam_from_head
    y, p, r = angles_from_rotation(own.rotation)
    return replace(
        scene, cam_from_head=Rigid(rotation_from_angles(y + yaw, p + pitch, r), own.translation)
    )


def row_of(person: Person, scene: Scene, model: MorphableModel) -> ViewRow:
    return views.make_row(person, 3, scene, model=model, seed=1, size=SIZE)


def test_an_unrotated_view_is_the_photo(
    person: Person, recovery: Recovery, open_head: MorphableModel
) -> None:
    row = row_of(person, turned(person, open_head, 0.0), open_head)
    assert row.mode == "profile"
    away = np.abs(row.pixels().astype(float) - recovery.crop)
    encoded = cv2.imdecode(
        cv2.imencode(".jpg", recovery.crop, [cv2.IMWRITE_JPEG_QUALITY, 95])[1], cv2.IMREAD_COLOR
    )
    by_jpeg = np.abs(encoded.astype(float) - recovery.crop)
    assert away.mean() < 2.0 * by_jpeg.mean() + 0.3
    assert np.percentile(away, 99) < 2.0 * np.percentile(by_jpeg, 99) + 2.0
    # Outlines are mixed from the pixels around them; beside them not one pixel is wrong.
    outline = cv2.morphologyEx(
        (row.triangle_ids >= 0).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)
    )
    assert away.max(2)[outline == 0].max() < 40.0


def test_smaller_and_larger_views_show_the_same(
    person: Person, recovery: Recovery, open_head: MorphableModel
) -> None:
    for size in (128, 512):
        scene = draw_scene(person, 0, model=open_head, rng=np.random.default_rng(0), size=size)
        shown = (
            views.make_row(person, 0, scene, model=open_head, seed=1, size=size)
            .pixels()
            .astype(np.float32)
        )
        # Views smaller than the crop are sampled, not averaged: a blur makes both comparable.
        expected = cv2.resize(
            recovery.crop.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR
        )
        a, b = (cv2.GaussianBlur(image, (0, 0), size / 40.0) for image in (shown, expected))
        assert np.abs(a - b).mean() < 2.0


@pytest.mark.parametrize(("yaw", "pitch"), [(-35.0, 0.0), (15.0, 10.0), (45.0, -8.0)])
def test_the_ground_truth_is_that_of_the_model(
    person: Person, open_head: MorphableModel, yaw: float, pitch: float
) -> None:
    scene = turned(person, open_head, yaw, pitch)
    one, other = (
        row_of(person, replace(scene, mode=mode), open_head) for mode in ("profile", "rerender")
    )
    assert one.image != other.image
    for name in (
        "triangle_ids",
        "landmarks_2d",
        "landmarks_3d",
        "visible_2d",
        "visible_3d",
        "light",
    ):
        assert (getattr(one, name) == getattr(other, name)).all(), name
    assert one.pose == other.pose


@pytest.mark.parametrize("yaw", [-30.0, 25.0, 45.0])
def test_a_turned_face_keeps_its_colours_and_their_light(
    person: Person, recovery: Recovery, truth: Floats, open_head: MorphableModel, yaw: float
) -> None:
    """What the photo saw well shows the truth under the photo's light, which turned with the
    face.
    """
    scene = turned(person, open_head, yaw)
    frame = resolve_frame(person, scene, open_head)
    photographed = recovery.cam_from_head.apply(open_head.vertices(recovery.coefficients))
    normals = vertex_normals(photographed, open_head.faces)
    lit = shade(normals, recovery.light)
    expected = sample_texture(frame, truth, open_head.uv, open_head.uv_faces) * interpolate(
        frame, lit, open_head.faces
    )
    shown = row_of(person, scene, open_head).pixels() / 255.0
    steep = interpolate(frame, -normals[:, 2:], open_head.faces)[..., 0]
    skin = mask_skin(frame, open_head)
    well = skin & (steep > 0.7) & (frame.normal[..., 2] < -0.4)
    assert well.sum() > 2000
    assert np.abs(shown - expected).mean(2)[well].mean() < 0.03
    unseen = skin & (steep < 0.0)
    assert unseen.sum() > 100 or yaw < 0.0 or yaw < 30.0
    if unseen.any():
        assert np.abs(shown - expected).mean(2)[unseen].mean() < 0.12


@pytest.mark.parametrize("yaw", [-45.0, -25.0, 25.0, 45.0])
def test_the_background_never_bleeds_onto_the_face(
    person: Person, open_head: MorphableModel, yaw: float
) -> None:
    scene = turned(person, open_head, yaw)
    frame = resolve_frame(person, scene, open_head)
    inside = cv2.erode(frame.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    skin = mask_skin(frame, open_head) & inside
    # Clothes that this photo lacks would cover the neck's rim.
    covered = sample_texture(frame, own_of(person).lit_texture, open_head.uv, open_head.uv_faces)[
        ..., 3
    ]
    inside &= cv2.dilate(covered, np.ones((5, 5), np.uint8)) < 0.01
    colour = row_of(person, scene, open_head).pixels().astype(int)
    green = colour[..., 1] > np.maximum(colour[..., 0], colour[..., 2]) + 25
    assert green[skin].mean() < 0.002
    assert green[inside].mean() < 0.02


def test_the_background_stays_where_it_is(
    person: Person, recovery: Recovery, open_head: MorphableModel
) -> None:
    """Far from the person nothing moves, at any turn; no pixel of the face is seen beside the
    face.
    """
    own = own_of(person)
    stood = cv2.resize(own.surroundings[..., 3], (SIZE, SIZE)) > 0.02
    wide = cv2.dilate(stood.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    for yaw in (-45.0, 30.0, 45.0):
        scene = turned(person, open_head, yaw)
        row = row_of(person, scene, open_head)
        shown = row.pixels().astype(int)
        beside = (
            cv2.dilate((row.triangle_ids >= 0).astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
        )
        assert (beside & ~wide).sum() > 5000
        away = np.abs(shown - recovery.crop).max(2)[beside & ~wide]
        assert np.median(away) < 4.0
        assert (away > 20.0).mean() < 0.06  # the turned head's own outline may reach there
        assert (shown[..., 0] > shown[..., 1] + 10)[beside].mean() < 0.02


def resolve_frame(person: Person, scene: Scene, model: MorphableModel) -> Frame:
    vertices = scene.cam_from_head.apply(person.vertices(scene.expression, model))
    return render(vertices, model.faces, scene.camera, (SIZE, SIZE))


def test_the_person_is_separated_from_the_background(
    person: Person, recovery: Recovery, open_head: MorphableModel
) -> None:
    head = resolve_frame(person, turned(person, open_head, 0.0), open_head).mask
    stood = cv2.resize(own_of(person).surroundings[..., 3], (SIZE, SIZE)) > 0.5
    assert (stood & head).sum() / (stood | head).sum() > 0.95
    assert own_of(person).crop[..., 3][~head].max() < 0.05


def test_views_are_the_same_in_any_order(
    person: Person, recovery: Recovery, open_head: MorphableModel
) -> None:
    """A photo is prepared once for all of its views; that of another photo in between changes
    nothing.
    """
    scenes = [turned(person, open_head, yaw) for yaw in (-20.0, 40.0)]
    first = [row_of(person, scene, open_head).image for scene in scenes]
    dark = replace(own_of(person), crop=own_of(person).crop * np.float32(0.5))
    other = row_of(replace(person, photo_scene=dark), scenes[0], open_head).image
    assert other not in first
    assert [row_of(person, scene, open_head).image for scene in reversed(scenes)] == first[::-1]


def test_rows_are_reproduced_from_their_own_columns(
    person: Person, open_head: MorphableModel
) -> None:
    made = [
        views.make_view(
            person, v, model=open_head, seed=90 + v, size=128, config=SceneConfig(profile_share=1.0)
        )
        for v in range(6)
    ]
    assert {row.mode for row in made} == {"profile"}
    for row in made:
        again = views.make_row(
            person, row.view, views.restore_scene(row), model=open_head, seed=row.seed, size=128
        )
        assert again.image == row.image
        assert again.recipe == row.recipe


def test_shares_and_poses_of_profile_views(person: Person, open_head: MorphableModel) -> None:
    scenes = [
        draw_scene(
            person,
            1,
            model=open_head,
            rng=np.random.default_rng(seed),
            size=SIZE,
            config=SceneConfig(profile_share=0.35),
        )
        for seed in range(400)
    ]
    profiled = [scene for scene in scenes if scene.mode == PROFILE]
    assert 0.28 < len(profiled) / len(scenes) < 0.42
    own = own_of(person)
    yaw = np.array([angles_from_rotation(scene.cam_from_head.rotation)[0] for scene in profiled])
    # A little back, far out, never beyond a profile; what the turn in the image adds is small.
    assert yaw.min() > YAW - PROFILING.inward - 12.0
    assert yaw.max() > YAW + PROFILING.outward - 12.0
    assert np.abs(yaw).max() < PROFILING.max_yaw + 6.0
    assert (yaw > YAW).mean() > 0.55
    for scene in profiled:
        assert (scene.expression == own.expression).all()
        assert (scene.light == own.light.astype(np.float32)).all()
        assert scene.background is None
        assert scene.accessories == ()
    none = [
        draw_scene(
            person,
            view,
            model=open_head,
            rng=np.random.default_rng(view),
            size=SIZE,
            config=SceneConfig(profile_share=0.0),
        )
        for view in range(20)
    ]
    assert {scene.mode for scene in none} == {RERENDER}


def test_a_sampled_face_without_a_photo_is_refused(
    person: Person, open_head: MorphableModel
) -> None:
    scene = turned(person, open_head, 10.0)
    with pytest.raises(ValueError, match="no photo"):
        row_of(replace(person, photo_scene=None), scene, open_head)
