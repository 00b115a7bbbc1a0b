"""Photometric bundle adjustment: derivatives against differences, shapes against the truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dff.aligner.align import Aligner
from dff.aligner.config import AlignConfig, MultiImageConfig
from dff.aligner.detection import Search, search_to_end
from dff.aligner.fitting import multi_image
from dff.aligner.fitting.correspondence import Matches
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.fit_model import FitState, PersonFitModel
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.perspective import move
from dff.aligner.fitting.photometric import (
    GreyCrops,
    Shading,
    Skin,
    SkinObservation,
    adjust_photometrically,
    observe_skin,
    residual_jacobian,
)
from dff.aligner.fitting.residual_deformation import build_person_fit_model
from dff.face.arrays import Bytes, Floats
from dff.face.geometry.lighting import ambient
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.deformation import smooth_fields
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import interpolate, render, shaded
from dff.face.solve.gauss_newton import POSE, FaceState
from tests.aligner.oracle import PositionCode, oracle_anchors, scene_of

CONFIG = AlignConfig(multi_image=MultiImageConfig(identities=12, expressions=4))
SIZE, YAWS = 256, (0.0, -40.0, 35.0, -15.0)


@pytest.fixture(scope="module")
def fit_model(open_head: MorphableModel, code: PositionCode) -> PersonFitModel:
    return build_person_fit_model(
        open_head, oracle_anchors(open_head, code), CONFIG.fit_model, CONFIG.multi_image
    )


@pytest.fixture(scope="module")
def skin(fit_model: PersonFitModel) -> Skin:
    return Skin.of(fit_model, CONFIG.photometric)


def make_state(latent: Floats, photos: int) -> FitState:
    """A person of so many photos."""
    turn = np.stack(
        [rotation_from_angles(yaw, 5.0 - 4.0 * i, 3.0 * i) for i, yaw in enumerate(YAWS[:photos])]
    )
    middle = np.full((photos, 2), SIZE / 2)
    face = FaceState(
        np.full(photos, SIZE * 3.6), turn, middle, np.repeat(latent[None], photos, axis=0)
    )
    return FitState.of(face, CONFIG.multi_image.inverse_depth)


def photos_of(
    fit_model: PersonFitModel,
    state: FitState,
    *,
    rng: np.random.Generator,
    marks: float,
    lamp: float,
) -> list[Bytes]:
    """(H, W, 3) uint8 photos of skin with ``marks``, each in another light.

    ``lamp``: how far the light is from ambient.
    """
    model = fit_model.model
    fields = smooth_fields(model.template, fit_model.anchor_vertex, reach=0.006, count=400)
    albedo = np.repeat(0.45 + marks * (rng.normal(size=len(fields)) @ fields)[:, None], 3, axis=1)
    out = []
    for i, vertices in enumerate(fit_model.vertices(state)):
        turned = vertices @ state.rotation[i].T
        frame = render(turned, model.faces, state.camera(i), (SIZE, SIZE))
        light = ambient(0.9)
        light[1:4] += lamp * rng.normal(size=(3, 1))
        colours = shaded(frame, interpolate(frame, albedo, model.faces), light)
        out.append(np.rint(255.0 * np.clip(colours, 0.0, 1.0)).astype(np.uint8))
    return out


def all_face(photos: int) -> Observation:
    """The network sees the face everywhere."""
    crops = Crops(
        np.full((photos, 2), SIZE / 2), np.full(photos, float(SIZE)), np.zeros(photos), 128
    )
    return Observation(
        crops,
        Matches.none(photos, 0, 0),
        np.zeros((photos, 0, 2)),
        np.zeros((photos, 0, 64, 64), np.float32),
        np.full((photos, 64, 64), 6.0, np.float32),
    )


def test_the_rows_are_the_derivatives_of_the_residuals(
    fit_model: PersonFitModel, skin: Skin
) -> None:
    """At the template, where normals are linearised, for a photo that is linear in the pixel."""
    p = len(fit_model.modes)
    state = make_state(np.zeros(p), 1)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    observation, rng = all_face(1), np.random.default_rng(0)
    crops = replace(observation.crops, angle=np.array([0.3]), side=np.array([200.0]), size=SIZE)
    photo = GreyCrops([(0.3 + 0.4 * x - 0.2 * y)[..., None]], crops, np.array([[SIZE, SIZE]]))
    shading = Shading(
        rng.uniform(0.3, 0.6, len(skin.mean)), (ambient()[:, 0] + 0.1 * rng.normal(size=9))[None]
    )

    def observe(state: FitState) -> SkinObservation:
        return observe_skin(skin, fit_model, photo, state, observation, CONFIG.photometric)

    def residual(delta: Floats) -> Floats:
        there = move(state, delta[None, : POSE + p + 1], CONFIG.multi_image)
        seen = observe(there)
        lit = replace(shading, light=shading.light + delta[POSE + p + 1 :])
        return (seen.brightness - lit.albedo * lit.shade(seen))[0]

    seen = observe(state)
    rows = residual_jacobian(skin, seen, shading, state, 0)
    chosen = (seen.weight[0] > 0) & (shading.shade(seen)[0] > 0.05)
    assert chosen.sum() > 300
    columns = [
        *range(POSE),
        POSE,
        POSE + 5,
        POSE + fit_model.shared - 3,
        POSE + fit_model.shared + 1,
        POSE + p - 1,
        POSE + p,
    ]
    columns += [POSE + p + 1, POSE + p + 4, POSE + p + 9]
    for column in columns:
        h = 1e-4 * np.eye(POSE + p + 10)[column]
        slope = (residual(h) - residual(-h)) / 2e-4
        np.testing.assert_allclose(
            rows[chosen, column], slope[chosen], atol=2e-3 * max(np.abs(slope).max(), 1e-3)
        )


@pytest.mark.parametrize(("marks", "lamp"), [(0.08, 0.1), (0.0, 0.35)], ids=["marks", "shading"])
def test_photometric_adjustment_corrects_a_wrong_shape(
    fit_model: PersonFitModel, skin: Skin, open_head: MorphableModel, marks: float, lamp: float
) -> None:
    """Texture corrects it as well as shading does; a right shape stays."""
    rng = np.random.default_rng(3)
    p, shared = len(fit_model.modes), fit_model.shared
    true = np.zeros(p)
    true[:shared] = 0.7 * rng.normal(size=shared)
    state = make_state(true, len(YAWS))
    photos = photos_of(fit_model, state, rng=rng, marks=marks, lamp=lamp)
    # Soft correspondences that hold pose and expression, but tell little of the person.
    system = np.repeat(
        np.diag(np.r_[np.full(POSE, 1e4), np.full(shared, 0.3), np.full(p - shared + 1, 30.0)])[
            None
        ],
        4,
        0,
    )
    face = np.unique(skin.corners)

    def error(start: FitState) -> float:
        steps = adjust_photometrically(
            skin,
            fit_model,
            photos,
            start,
            system,
            all_face(4),
            CONFIG,
            trust=np.ones(len(YAWS)),
        )
        found = search_to_end(steps)
        assert np.ptp(found.coefficients[:, :shared], axis=0).max() == 0.0
        apart = (fit_model.vertices(found) - fit_model.vertices(state))[0, face]
        apart -= apart.mean(0)
        return float(1e3 * np.linalg.norm(apart, axis=1).mean())

    wrong = true.copy()
    wrong[:shared] += 0.5 * rng.normal(size=shared)
    offset = (fit_model.vertices(make_state(wrong, 1)) - fit_model.vertices(make_state(true, 1)))[
        0, face
    ]
    before = float(1e3 * np.linalg.norm(offset - offset.mean(0), axis=1).mean())
    assert before > 1.5
    assert error(make_state(wrong, len(YAWS))) < 0.7 * before
    assert error(state) < 0.25 * before


def test_occluders_and_photos_of_low_trust_have_little_influence(
    fit_model: PersonFitModel, skin: Skin
) -> None:
    rng = np.random.default_rng(4)
    p = len(fit_model.modes)
    state = make_state(0.5 * rng.normal(size=p) * (np.arange(p) < fit_model.shared), 4)
    photos = photos_of(fit_model, state, rng=rng, marks=0.05, lamp=0.2)
    system = np.repeat(np.diag(np.r_[np.full(POSE, 1e4), np.ones(p + 1)])[None], 4, 0)

    def found(photos: list[Bytes], trust: Floats) -> Floats:
        steps = adjust_photometrically(
            skin, fit_model, photos, state, system, all_face(4), CONFIG, trust=trust
        )
        return fit_model.vertices(search_to_end(steps))[0]

    def off(a: Floats, b: Floats) -> float:
        return float(1e3 * np.linalg.norm(a - b, axis=1).mean())

    steps = adjust_photometrically(
        skin, fit_model, photos, state, system, all_face(4), CONFIG, trust=np.ones(4)
    )
    assert len([*steps]) > len(photos) * CONFIG.photometric.steps, "a server can't come in between"
    clean = found(photos, np.ones(4))
    covered = [photos[0].copy(), *photos[1:]]
    covered[0][SIZE // 2 :, : SIZE // 2] = 242
    noise = [rng.integers(0, 256, photos[0].shape, dtype=np.uint8), *photos[1:]]
    assert off(found(covered, np.ones(4)), clean) < 0.6
    untrusted = found(noise, np.array([1e-4, 1.0, 1.0, 1.0]))
    assert off(untrusted, found(photos, np.array([1e-4, 1.0, 1.0, 1.0]))) < 0.1
    assert off(untrusted, clean) < off(found(noise, np.ones(4)), clean)


@pytest.mark.slow
def test_one_photo_is_left_to_its_correspondences(
    oracle_aligner: Aligner,
    open_head: MorphableModel,
    code: PositionCode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Photos that diverge under the adjustment are left to their correspondences too."""
    rng = np.random.default_rng(6)
    scenes = [
        scene_of(open_head, code, np.zeros(150), np.zeros(52), yaw=yaw, rng=rng)
        for yaw in (10.0, -20.0)
    ]
    images, boxes = [scene.image for scene in scenes], [scene.box for scene in scenes]
    config = oracle_aligner.config
    dense = Aligner(
        oracle_aligner.net,
        oracle_aligner.anchors,
        open_head,
        config=replace(config, photometric=replace(config.photometric, observations=0.0)),
    )
    one, alone = (a.align_person(images[:1], boxes[:1]) for a in (oracle_aligner, dense))
    np.testing.assert_array_equal(one.vertices, alone.vertices)
    two, apart = (a.align_person(images, boxes) for a in (oracle_aligner, dense))
    assert np.abs(two.vertices - apart.vertices).max() > 1e-5

    def astray(*args: Any, **_: Any) -> Search[FitState]:
        state: FitState = args[3]
        yield
        return replace(state, rotation=state.rotation @ rotation_from_angles(60.0, 0.0, 0.0))

    monkeypatch.setattr(multi_image, "adjust_photometrically", astray)
    kept = oracle_aligner.align_person(images, boxes)
    assert not kept.left_out
    np.testing.assert_array_equal(kept.vertices, apart.vertices)


def test_grey_crops_show_the_photo_in_its_own_pixels() -> None:
    """Brightness, its slopes and its ends, through a turned crop of a large photo."""
    height, width = 700, 900
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.repeat(np.rint(30.0 + 0.15 * x + 0.1 * y)[..., None], 3, axis=2).astype(np.uint8)
    crops = Crops(np.array([[450.0, 400.0]]), np.array([600.0]), np.array([0.4]), 128)
    found = GreyCrops.of([image], crops, np.array([300.0]), CONFIG.photometric)
    assert found.grey[0].shape == (256, 256, 1)
    px = np.array([[[400.0, 300.0], [520.5, 480.0], [450.0, 899.0], [450.0, 5.0]]])
    brightness, slope, inside = found.sample(px)
    np.testing.assert_allclose(255.0 * brightness[0, :2], 30.0 + px[0, :2] @ [0.15, 0.1], atol=1.0)
    np.testing.assert_allclose(255.0 * slope[0, :2].mean(0), [0.15, 0.1], atol=0.03)
    np.testing.assert_array_equal(inside[0], [True, True, False, False])
