"""What is read of hair in a picture, on pictures of people whose hair is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.io.assets import load_albedo
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import OCCLUDER
from dff.face.texture.fitted_head import build_fitted_head
from dff.infra.photos.images import decode
from dff.pipeline.accessories.hair import Colour, Hair
from dff.pipeline.recovery.inverse import Recovery
from dff.pipeline.scene import views
from dff.pipeline.scene.sampling import make_plain_scene
from dff.pipeline.subjects.build import sample_person
from dff.pipeline.subjects.hair_estimation import (
    HairEstimate,
    estimate_hair,
    has_style,
    sample_hair_like,
)

SIZE = 256
FAIR, DARK = (0.62, 0.50, 0.32), (0.05, 0.045, 0.04)


def _hair(**changes: object) -> Hair:
    plain = Hair(DARK, DARK, 0.014, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, "", 3)
    return replace(plain, **changes)  # type: ignore[arg-type]


def _seen(style: Hair | None, model: MorphableModel, yaw: float = 0.0) -> HairEstimate:
    """What a picture of a person in this hair says of it, when the fit is perfect."""
    albedo = load_albedo()
    person = sample_person(
        "known", model=model, albedo=albedo, texture_size=256, rng=np.random.default_rng(5)
    )
    person = replace(
        person, accessories=replace(person.accessories, style=style, clothes=(0.1, 0.2, 0.6))
    )
    rest = np.zeros(len(model.expression), dtype=np.float32)
    scene = make_plain_scene(
        person, rest, rotation_from_angles(yaw, 0.0, 0.0), model=model, size=SIZE
    )
    camera, pose = (
        WeakPerspective(700.0, np.array([128.0, 118.0])),
        Rigid(scene.cam_from_head.rotation, np.zeros(3)),
    )
    scene = replace(
        scene, camera=camera, cam_from_head=pose, accessories=("body", *(["hair"] if style else []))
    )
    shot = views.render_scene(person, scene, model=model, size=SIZE)
    marks = shot.landmarks.contour
    recovery = Recovery(
        photo_id="known",
        photo_sha256="0" * 64,
        crop=decode(shot.image),
        valid=np.ones((SIZE, SIZE), bool),
        occluded=np.zeros((SIZE, SIZE), bool),
        corner=np.zeros(2),
        scale=1.0,
        camera=camera,
        cam_from_head=pose,
        coefficients=Coefficients(person.identity, rest),
        albedo=np.zeros(4),
        light=scene.light,
        landmarks=marks,
        given=marks,
        quality={},
    )
    covered = (shot.triangle_ids >= 0) | (shot.triangle_ids == OCCLUDER)
    found = estimate_hair(build_fitted_head(recovery, model), covered.astype(np.float32))
    assert found is not None
    return found


@pytest.mark.parametrize("colour", [FAIR, DARK])
@pytest.mark.parametrize("yaw", [0.0, 35.0])
def test_long_and_short_hair_are_distinguished(
    open_head: MorphableModel, colour: Colour, yaw: float
) -> None:
    short = _seen(_hair(colour=colour, tips=colour), open_head, yaw)
    long = _seen(_hair(colour=colour, tips=colour, length=0.15, cover=1.0), open_head, yaw)
    assert has_style(short)
    assert has_style(long)
    assert short.length < 0.02
    assert long.length > 0.05
    assert long.cover > short.cover


def test_thick_and_thin_hair_are_distinguished(open_head: MorphableModel) -> None:
    thin, thick = (_seen(_hair(volume=volume), open_head).thickness for volume in (0.008, 0.04))
    assert 0.003 < thin < 0.02 < thick < 0.05


def test_a_fringe_is_detected(open_head: MorphableModel) -> None:
    without, down = (_seen(_hair(fringe=fringe), open_head).fringe for fringe in (0.0, 1.0))
    assert without < 0.25 < 0.45 < down


def test_sampled_hair_has_the_estimated_style(open_head: MorphableModel) -> None:
    rng = np.random.default_rng(1)
    seen = HairEstimate(share=0.9, thickness=0.02, length=0.11, fringe=0.8, cover=1.0)
    style = sample_hair_like(seen, np.array(FAIR), rng=rng)
    assert style is not None
    assert (style.volume, style.length, style.cover, style.colour) == (0.02, 0.11, 1.0, FAIR)
    assert style.fringe > 0.5
    for bald in (replace(seen, share=0.1), replace(seen, thickness=0.001, length=0.0)):
        assert sample_hair_like(bald, np.array(FAIR), rng=rng) is None


def test_a_head_without_hair_has_hair_of_no_length(open_head: MorphableModel) -> None:
    assert _seen(None, open_head).length == 0.0
