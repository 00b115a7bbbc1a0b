"""Textures of recovered faces, on photos whose answer is known: rendered from a known face under
known light.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest

from dff.face.arrays import Bytes, Floats
from dff.face.geometry import lighting
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.interpolation import bilinear
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.io.assets import load_albedo
from dff.face.model.landmarks import LEFT_EYE, RIGHT_EYE
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import Frame, render, sample_texture, shaded
from dff.face.texture.albedo_completion import COMPLETION, PhotoTexture, recover_texture
from dff.face.texture.fitted_head import build_fitted_head
from dff.face.texture.unwrapping import LUMA, tabulate_tones
from dff.face.texture.uv_atlas import build_uv_atlas, mirror_points
from dff.pipeline.recovery.inverse import Recovery
from dff.pipeline.scene.lights import directional_light

SIZE, TEXELS = 256, 256


@pytest.fixture(scope="module")
def truth(open_head: MorphableModel) -> Floats:
    return speckled(open_head)


def unwrap(recovery: Recovery, model: MorphableModel) -> PhotoTexture:
    """The recovered texture, completed by the open albedo."""
    return recover_texture(build_fitted_head(recovery, model), albedo=load_albedo(), size=TEXELS)


def speckled(model: MorphableModel) -> Floats:
    """(S, S, 3) albedo of the photographed face: the mean skin with freckles and a cheek patch,
    unlike any model's.
    """
    rng = np.random.default_rng(0)
    mean = cv2.resize(load_albedo().mean, (TEXELS, TEXELS))
    spots = cv2.GaussianBlur(rng.standard_normal((TEXELS, TEXELS)).astype(np.float32), (0, 0), 1.5)
    atlas = build_uv_atlas(model, TEXELS)
    own = np.clip(mean * np.array([0.9, 1.0, 1.1]) * (1.0 + 0.5 * spots[..., None]), 0.02, 0.98)
    return atlas.pad(own.reshape(-1, 3)[atlas.texel])


def photograph(model: MorphableModel, truth: Floats, yaw: float) -> tuple[Recovery, Frame]:
    """A photo of the face before a green wall, with the recovery that knows everything but the
    texture.
    """
    rng = np.random.default_rng(1)
    coefficients = Coefficients(rng.standard_normal(60) * 0.5, np.zeros(len(model.expression)))
    light = lighting.ambient(0.7) + np.outer(
        directional_light(np.array([0.5, -0.3, -0.81])), [0.4, 0.38, 0.35]
    )
    camera = WeakPerspective(820.0, np.array([128.0, 134.0]))
    motion = Rigid(rotation_from_angles(yaw, 4.0, 3.0), np.array([0.0, 0.0, 1.0]))
    cam = motion.apply(model.vertices(coefficients))
    frame = render(cam, model.faces, camera, (SIZE, SIZE))
    colour = shaded(frame, sample_texture(frame, truth, model.uv, model.uv_faces), light)
    image = np.where(frame.mask[..., None], colour, [0.1, 0.9, 0.1])
    recovery = Recovery(
        photo_id="known",
        photo_sha256="0" * 64,
        crop=np.round(np.clip(image, 0, 1) * 255).astype(np.uint8),
        valid=np.ones((SIZE, SIZE), bool),
        occluded=np.zeros((SIZE, SIZE), bool),
        corner=np.zeros(2),
        scale=1.0,
        camera=camera,
        cam_from_head=motion,
        coefficients=coefficients,
        albedo=np.zeros(4),
        light=light,
        landmarks=camera.px_from_cam(cam[model.landmarks.vertex]),
        given=camera.px_from_cam(cam[model.landmarks.vertex]),
        quality={"landmark_error_inner": 0.01},
    )
    return recovery, frame


@pytest.mark.parametrize("yaw", [0.0, 40.0, -65.0])
def test_rendering_the_recovered_face_gives_back_the_photo(
    open_head: MorphableModel, truth: Floats, yaw: float
) -> None:
    recovery, frame = photograph(open_head, truth, yaw)
    found = unwrap(recovery, open_head)
    again = shaded(
        frame, sample_texture(frame, found.albedo, open_head.uv, open_head.uv_faces), found.light
    )
    face = np.zeros(len(open_head.faces) + 1, bool)
    face[open_head.find_triangles("face", "lips", "brows")] = True
    error = np.abs(again - recovery.crop / 255.0).mean(2)
    facing = frame.normal[..., 2] < -0.6
    assert error[face[frame.triangle] & facing].mean() < 0.015
    assert error[face[frame.triangle]].mean() < 0.03


@pytest.mark.parametrize("yaw", [0.0, -65.0])
def test_light_is_divided_out(open_head: MorphableModel, truth: Floats, yaw: float) -> None:
    recovery, _ = photograph(open_head, truth, yaw)
    found = unwrap(recovery, open_head)
    sure = found.seen > 0.99
    assert 0.08 < sure.mean() < 0.6
    assert np.abs(found.albedo - truth)[sure].mean() < 0.03
    # The unseen side takes the mirrored side, or the statistical albedo in the photo's colours: it
    # is near the truth though its freckles are others'.
    atlas = build_uv_atlas(open_head, TEXELS)
    skin = np.isin(open_head.region[atlas.points.triangle], [open_head.region_names.index("face")])
    unseen = (found.seen.ravel()[atlas.texel] < 0.01) & skin
    assert unseen.sum() > 1000
    assert np.abs(found.albedo - truth).reshape(-1, 3)[atlas.texel][unseen].mean() < 0.10


def test_every_texel_is_filled_and_the_background_does_not_bleed(
    open_head: MorphableModel, truth: Floats
) -> None:
    recovery, _ = photograph(open_head, truth, 35.0)
    found = unwrap(recovery, open_head)
    assert np.isfinite(found.albedo).all()
    assert found.albedo.min() >= 0.0
    assert found.albedo.max() <= 1.0
    atlas = build_uv_atlas(open_head, TEXELS)
    skin = atlas.texel[np.isin(open_head.region[atlas.points.triangle], [0, 1])]
    colour = found.albedo.reshape(-1, 3)[skin]
    expected = cv2.resize(load_albedo().mean, (TEXELS, TEXELS)).reshape(-1, 3)[skin]
    assert ((colour.sum(1) > 0.1) | (expected.sum(1) < 0.5)).all()  # nostrils are dark
    assert (colour.sum(1) > 0.1).mean() > 0.99
    green = colour[:, 1] > colour[:, 0] + 0.05
    assert green.mean() < 0.001


def test_no_seam_shows(open_head: MorphableModel) -> None:
    """Both places of a vertex on a uv seam have nearly one colour, also where seen and unseen
    meet.
    """
    smooth = cv2.resize(load_albedo().mean, (TEXELS, TEXELS)) * np.array(
        [0.9, 1.0, 1.1], np.float32
    )
    atlas = build_uv_atlas(open_head, TEXELS)
    recovery, _ = photograph(open_head, atlas.pad(smooth.reshape(-1, 3)[atlas.texel]), -40.0)
    found = unwrap(recovery, open_head)
    corners = np.stack([open_head.faces.ravel(), open_head.uv_faces.ravel()], axis=1)
    corners = corners[np.repeat(np.isin(open_head.region, [0, 1, 2, 3]), 3)]
    places = np.unique(corners, axis=0)
    twice = [g for g in np.split(places, np.flatnonzero(np.diff(places[:, 0])) + 1) if len(g) > 1]
    assert len(twice) > 30
    a, b = (open_head.uv[[g[k, 1] for g in twice]] for k in (0, 1))
    samples = [bilinear(found.albedo, uv * TEXELS) for uv in (a, b)]
    away = np.abs(samples[0] - samples[1]).mean(1)
    assert np.median(away) < 0.02
    assert np.percentile(away, 95) < 0.08


def test_islands_are_padded(open_head: MorphableModel) -> None:
    atlas = build_uv_atlas(open_head, TEXELS)
    colours = np.where(atlas.points.triangle[:, None] >= 0, [[0.2, 0.5, 0.8]], 0.0)
    padded = atlas.pad(colours)
    for yaw in (-90.0, 0.0, 180.0):
        motion = Rigid(rotation_from_angles(yaw, 0.0, 0.0), np.array([0.0, 0.0, 1.0]))
        camera = WeakPerspective(800.0, np.array([128.0, 128.0]))
        frame = render(motion.apply(open_head.template), open_head.faces, camera, (SIZE, SIZE))
        seen = sample_texture(frame, padded, open_head.uv, open_head.uv_faces)[frame.mask]
        assert np.allclose(seen, [0.2, 0.5, 0.8], atol=1e-6)


def test_mirroring_twice_comes_back(open_head: MorphableModel) -> None:
    atlas = build_uv_atlas(open_head, 128)
    template = open_head.template.astype(np.float64)
    here, there = (p.of(template, open_head.faces) for p in (atlas.points, atlas.mirrored))
    assert np.allclose(there * [-1, 1, 1], here, atol=2e-4)
    again = mirror_points(open_head, atlas.mirrored)
    assert np.allclose(again.of(template, open_head.faces), here, atol=1e-9)


def test_a_shut_eye_is_not_taken_from_the_photo(open_head: MorphableModel, truth: Floats) -> None:
    recovery, _ = photograph(open_head, truth, 0.0)
    shut = recovery.landmarks.copy()
    shut[RIGHT_EYE, 1] = shut[RIGHT_EYE, 1].mean()
    found = unwrap(replace(recovery, landmarks=shut), open_head)
    atlas = build_uv_atlas(open_head, TEXELS)
    eyes = open_head.region[atlas.points.triangle] == open_head.region_names.index("eyes")
    right = atlas.points.of(open_head.template.astype(np.float64), open_head.faces)[:, 0] < 0
    seen = found.seen.ravel()[atlas.texel]
    assert seen[eyes & right].max() == 0.0
    assert seen[eyes & ~right].max() > 0.5


def test_the_border_of_the_photo_is_not_skin(open_head: MorphableModel, truth: Floats) -> None:
    recovery, frame = photograph(open_head, truth, 0.0)
    valid = np.ones((SIZE, SIZE), bool)
    valid[:, :110] = False
    crop = recovery.crop.copy()
    crop[:, :110] = (0, 0, 255)
    found = unwrap(replace(recovery, crop=crop, valid=valid), open_head)
    again = sample_texture(frame, found.albedo, open_head.uv, open_head.uv_faces)
    face = np.zeros(len(open_head.faces) + 1, bool)
    face[open_head.find_triangles("face")] = True
    cut = face[frame.triangle] & ~valid
    assert cut.sum() > 1000
    assert (again[cut][:, 2] < again[cut][:, 0] + 0.1).mean() > 0.999


def in_grey(recovery: Recovery, tone: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Recovery:
    """The photo without colours, in one tone; with the light that explains it, if skin is
    skin-coloured: blue.
    """
    luma = (recovery.crop @ LUMA)[..., None] * np.array(tone)
    bluish = recovery.light * np.array([0.8, 1.05, 1.25])
    return replace(recovery, crop=np.clip(np.round(luma), 0, 255).astype(np.uint8), light=bluish)


@pytest.mark.parametrize("tone", [(1.0, 1.0, 1.0), (1.0, 0.85, 0.65)])
def test_a_photo_without_colours_gives_grey_light_and_coloured_skin(
    open_head: MorphableModel, truth: Floats, tone: tuple[float, float, float]
) -> None:
    colour, _ = photograph(open_head, truth, 10.0)
    recovery = in_grey(colour, tone)
    found = unwrap(recovery, open_head)
    assert np.allclose(found.light, found.light[:, :1])
    sure = found.seen > 0.99
    assert np.abs(found.albedo - truth)[sure].mean() < 0.08
    # Nothing is cyan: skin, teeth and the mouth's inside are at least as red as green and blue.
    atlas = build_uv_atlas(open_head, TEXELS)
    names = [open_head.region_names.index(n) for n in ("face", "lips", "teeth", "tongue", "mouth")]
    texels = found.albedo.reshape(-1, 3)[atlas.texel][
        np.isin(open_head.region[atlas.points.triangle], names)
    ]
    assert (texels[:, 0] >= texels[:, 2] - 0.02).mean() > 0.99
    # Under the photo's light it is as the photo was.
    lit = found.lit.reshape(-1, 3)
    assert np.allclose(lit.mean(0) / lit.mean(), np.array(tone) / np.mean(tone), atol=0.06)


def test_teeth_take_less_of_the_hue_of_the_light_than_skin(
    open_head: MorphableModel, truth: Floats
) -> None:
    """A pale skin is taken for one under bluish light, but its teeth are not blue."""
    recovery, _ = photograph(open_head, truth, 10.0)
    hue = np.array([0.8, 1.0, 1.25])
    pale = np.clip(np.round(recovery.crop * hue), 0, 255).astype(np.uint8)
    bluish = replace(recovery, crop=pale, light=recovery.light * hue)
    config, albedo = replace(COMPLETION, lit_scale=1.0), load_albedo()
    atlas = build_uv_atlas(open_head, TEXELS)
    ratios = {}
    for name in ("face", "teeth"):
        of_region = open_head.region[atlas.points.triangle] == open_head.region_names.index(name)
        lit = (
            recover_texture(
                build_fitted_head(one, open_head), albedo=albedo, size=TEXELS, config=config
            ).lit.reshape(-1, 3)[atlas.texel[of_region]]
            for one in (recovery, bluish)
        )
        before, after = (np.log(texels[:, 2] / texels[:, 0]) for texels in lit)
        ratios[name] = float(np.median(after - before)) / float(np.log(hue[2] / hue[0]))
    assert ratios["face"] == pytest.approx(1.0, abs=0.1)
    assert ratios["teeth"] == pytest.approx(config.hue_of_light, abs=0.02)


def test_grey_photos_are_distinguished_from_coloured_ones(
    open_head: MorphableModel, truth: Floats
) -> None:
    recovery, _ = photograph(open_head, truth, 0.0)
    assert tabulate_tones(recovery.crop.reshape(-1, 3) / 255.0) is None
    rng = np.random.default_rng(0)
    noisy = in_grey(recovery).crop + rng.normal(0.0, 1.0, recovery.crop.shape)
    assert tabulate_tones(np.clip(noisy, 0, 255).reshape(-1, 3) / 255.0) is not None
    assert tabulate_tones(np.empty((0, 3))) is None


def test_a_shadow_on_one_side_is_not_skin(open_head: MorphableModel) -> None:
    """A hand's shadow on a cheek: diffuse light can't explain it, the other cheek can."""
    atlas = build_uv_atlas(open_head, TEXELS)
    smooth = cv2.resize(load_albedo().mean, (TEXELS, TEXELS))
    clean, _ = photograph(open_head, atlas.pad(smooth.reshape(-1, 3)[atlas.texel]), 0.0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    middle = clean.landmarks[[2, 31]].mean(0)
    shadow = 0.5 * np.exp(-((columns - middle[0]) ** 2 + (rows - middle[1]) ** 2) / (2 * 14.0**2))
    dark = replace(clean, crop=np.round(clean.crop * (1.0 - shadow[..., None])).astype(np.uint8))
    lit, shaded_face = (unwrap(r, open_head).albedo for r in (clean, dark))
    there = atlas.points.of(open_head.template.astype(np.float64), open_head.faces)
    camera, motion = clean.camera, clean.cam_from_head
    px = camera.px_from_cam(
        motion.apply(atlas.points.of(open_head.vertices(clean.coefficients), open_head.faces))
    )
    skin = np.isin(open_head.region[atlas.points.triangle], [open_head.region_names.index("face")])
    under = skin & (np.linalg.norm(px - middle, axis=1) < 10.0) & (there[:, 2] > 0.0)
    assert under.sum() > 100
    a, b = (t.reshape(-1, 3)[atlas.texel][under].mean(0) for t in (lit, shaded_face))
    # The photo there is darker by 40 % of its light.
    assert np.all(b / a > 0.75)


def test_the_mouth_is_dark_inside_and_teeth_are_not(open_head: MorphableModel) -> None:
    atlas = build_uv_atlas(open_head, TEXELS)
    region = open_head.region[atlas.points.triangle]
    depth = atlas.points.of(open_head.template.astype(np.float64), open_head.faces)[:, 2]
    light = atlas.daylight[:, 0]
    assert (
        light[np.isin(region, [open_head.region_names.index(n) for n in ("face", "lips", "eyes")])]
        == 1.0
    ).all()
    teeth = region == open_head.region_names.index("teeth")
    assert light[teeth & (depth > np.percentile(depth[teeth], 90))].min() > 0.8
    assert light[teeth & (depth < np.percentile(depth[teeth], 10))].max() < 0.5


def _with(recovery: Recovery, draw: Callable[[Bytes], None]) -> Recovery:
    crop = recovery.crop.copy()
    draw(crop)
    return replace(recovery, crop=crop)


def test_strands_before_a_cheek_stay_out_of_its_texture(
    open_head: MorphableModel, truth: Floats
) -> None:
    bare, _ = photograph(open_head, truth, 0.0)
    eye, mouth = bare.landmarks[36], bare.landmarks[48]
    middle = (eye + mouth) / 2.0 + np.array([-8.0, 0.0])

    def strands(crop: Bytes) -> None:
        for shift in (-9.0, 0.0, 9.0):
            ends = np.round(middle + np.array([[shift - 3.0, -9.0], [shift + 3.0, 9.0]])).astype(
                int
            )
            cv2.line(crop, *ends.tolist(), (14, 10, 8), 2)

    clean, through = (unwrap(r, open_head).albedo @ LUMA for r in (bare, _with(bare, strands)))
    atlas = build_uv_atlas(open_head, TEXELS)
    at = bare.camera.px_from_cam(
        bare.cam_from_head.apply(
            atlas.points.of(open_head.vertices(bare.coefficients), open_head.faces)
        )
    )
    cheek = atlas.texel[(np.abs(at - middle) < [14.0, 9.0]).all(1)]
    change = np.abs(through.ravel()[cheek] / clean.ravel()[cheek] - 1.0)
    assert len(cheek) > 100
    assert np.percentile(change, 95) < 0.25  # a strand itself is darker by 0.9


def test_dark_lenses_are_taken_off(open_head: MorphableModel, truth: Floats) -> None:
    bare, _ = photograph(open_head, truth, 0.0)

    def lenses(crop: Bytes) -> None:
        for lids in (RIGHT_EYE, LEFT_EYE):
            centre = np.round(bare.landmarks[lids].mean(0)).astype(int)
            cv2.ellipse(crop, centre.tolist(), (22, 19), 0.0, 0.0, 360.0, (16, 16, 18), -1)

    plain, worn = (unwrap(r, open_head).albedo for r in (bare, _with(bare, lenses)))
    atlas = build_uv_atlas(open_head, TEXELS)
    eyes = atlas.mask_region("eyes")
    ratio = atlas.sample_vertices(worn)[eyes].mean() / atlas.sample_vertices(plain)[eyes].mean()
    assert 0.7 < ratio < 1.4
