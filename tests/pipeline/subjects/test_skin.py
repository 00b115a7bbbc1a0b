"""What is painted on sampled skin lies where it grows, has the colour that was drawn, and is its
seed's alone.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest

from dff.face.arrays import Floats
from dff.face.io.assets import load_albedo
from dff.face.model.morphable import MorphableModel
from dff.face.texture.uv_atlas import UvAtlas, build_uv_atlas
from dff.pipeline.subjects.appearance import (
    PRIOR,
    Appearance,
    correct_hue,
    sample_appearance,
)
from dff.pipeline.subjects.skin import SKIN, paint
from dff.pipeline.subjects.skin_regions import FIELDS, SkinRegions, find_skin_regions

SIZE = 192


@pytest.fixture(scope="module")
def atlas(open_head: MorphableModel) -> UvAtlas:
    return build_uv_atlas(open_head, SIZE)


@pytest.fixture(scope="module")
def base(atlas: UvAtlas) -> Floats:
    mean = load_albedo().texture(np.zeros(1))
    return np.asarray(np.clip(cv2.resize(mean, (SIZE, SIZE)).reshape(-1, 3)[atlas.texel], 0.0, 1.0))


@pytest.fixture(scope="module")
def plain() -> Appearance:
    appearance = _sample(1, feminine=True)
    return replace(appearance, beard="none", freckles=0.0, moles=(), grain=0.02)


def _sample(seed: int, *, feminine: bool) -> Appearance:
    flesh, hair = np.array([0.6, 0.45, 0.36]), np.array([0.1, 0.07, 0.05])
    return sample_appearance(
        flesh, hair, rng=np.random.default_rng(seed), feminine=feminine, hairy=True
    )


def _field(at: SkinRegions, name: str) -> Floats:
    return at.table[:, FIELDS.index(name)]


def test_beards_grow_in_the_beard_area_only(
    atlas: UvAtlas, base: Floats, plain: Appearance
) -> None:
    at = find_skin_regions(atlas)
    shaved = paint(base, plain, atlas)
    grown = np.maximum(_field(at, "jaw"), _field(at, "lip"))
    darkest: dict[str, float] = {}
    for beard in ("shadow", "stubble", "moustache", "goatee", "full"):
        bearded = paint(base, replace(plain, beard=beard, beard_share=0.8), atlas)
        changed = np.abs(bearded - shaved).max(1) > 0.02
        assert changed.sum() > 50
        assert (grown[changed] > 0).all()
        assert (_field(at, "lips")[changed] < 1.0).all()
        assert bearded[changed].mean() < shaved[changed].mean()
        darkest[beard] = float(bearded[grown > 0.9].mean())
    assert darkest["full"] < darkest["goatee"] < darkest["moustache"]
    assert darkest["full"] < darkest["shadow"]


def test_painted_regions_follow_the_landmarks(atlas: UvAtlas, open_head: MorphableModel) -> None:
    at = find_skin_regions(atlas)
    marks = open_head.template[open_head.landmarks.vertex]

    def near(point: Floats, name: str, radius: float = 0.004) -> float:
        return float(_field(at, name)[np.linalg.norm(at.places - point, axis=1) < radius].max())

    for brow in marks[17:27]:
        assert near(brow, "brow", 0.003) <= 1.0
        assert _field(at, "brow")[np.linalg.norm(at.places - brow, axis=1) < 0.004].min() < 0.003
    assert near(marks[8], "jaw") > 0.9
    assert near(marks[8], "chin") > 0.9
    assert near((marks[33] + marks[51]) / 2.0, "lip") > 0.9
    assert near(marks[30], "jaw") == 0.0
    assert near(marks[27], "lip") == 0.0
    # Both sides are alike.
    for name in ("jaw", "lip", "chin", "blush", "scalp"):
        left, right = (_field(at, name)[side * at.places[:, 0] > 0].sum() for side in (1, -1))
        assert left == pytest.approx(right, rel=0.1), name


def test_irises_lips_brows_and_scalp_have_the_colours_drawn(
    atlas: UvAtlas, base: Floats, plain: Appearance
) -> None:
    at = find_skin_regions(atlas)
    blue = paint(base, replace(plain, iris=(0.2, 0.3, 0.8)), atlas)
    brown = paint(base, replace(plain, iris=(0.4, 0.2, 0.1)), atlas)
    changed = np.abs(blue - brown).max(1) > 0.01
    assert (_field(at, "iris")[changed] < 1.1 * SKIN.iris_radius).all()
    assert blue[changed][:, 2].mean() > 2.0 * brown[changed][:, 2].mean()
    red = paint(base, replace(plain, lips=(1.1, 0.5, 0.5)), atlas)
    pale = paint(base, replace(plain, lips=(1.0, 1.0, 1.0)), atlas)
    changed = np.abs(red - pale).max(1) > 0.01
    assert changed.any()
    assert (_field(at, "lips")[changed] > 0).all()
    thin = paint(base, replace(plain, brow=PRIOR.brow[0], brow_share=0.9), atlas)
    thick = paint(base, replace(plain, brow=PRIOR.brow[1], brow_share=0.9), atlas)
    near = _field(at, "brow") < PRIOR.brow[1]
    assert thick[near].mean() < thin[near].mean() - 0.02
    bald = paint(base, replace(plain, scalp=0.0), atlas)
    hairy = paint(base, replace(plain, scalp=1.0, hair_on_head=(0.1, 0.05, 0.05)), atlas)
    top = _field(at, "scalp") > 0.9
    assert hairy[top].mean() < 0.6 * bald[top].mean()
    assert abs(bald[top].mean() - bald[at.cheeks].mean()) < 0.12


def test_the_hue_of_skin_stays_within_the_prior() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        cheek = rng.uniform(0.1, 0.9, 3)
        r, g, b = correct_hue(cheek)
        assert 1.18 - 1e-9 <= r / g <= 1.62 + 1e-9
        assert 1.06 - 1e-9 <= g / b <= 1.48 + 1e-9
        assert r + g + b == pytest.approx(cheek.sum())
    usual = np.array([0.75, 0.57, 0.47])
    assert np.allclose(correct_hue(usual), usual)


def test_a_texture_is_determined_by_its_appearance(
    atlas: UvAtlas, base: Floats, plain: Appearance
) -> None:
    one, other = (paint(base, plain, atlas) for _ in range(2))
    assert (one == other).all()
    assert one.dtype == np.float32
    assert 0.0 <= one.min() <= one.max() <= 1.0
    assert (paint(base, replace(plain, seed=plain.seed + 1), atlas) != one).any()
    appearances = [_sample(i, feminine=i % 2 == 0) for i in range(400)]
    assert asdict(appearances[0]) == asdict(_sample(0, feminine=True))
    assert {appearance.beard for appearance in appearances} == set(PRIOR.beards)
    assert {appearance.beard for appearance in appearances[::2]} <= {"none", "shadow"}
    assert 0.05 < np.mean([appearance.freckles > 0 for appearance in appearances]) < 0.4


def test_grain_is_fine_and_leaves_eyes_and_teeth_smooth(
    atlas: UvAtlas, base: Floats, plain: Appearance
) -> None:
    at = find_skin_regions(atlas)
    smooth = paint(base, replace(plain, grain=0.0), atlas)
    rough = paint(base, replace(plain, grain=0.045), atlas)
    change = (rough / np.maximum(smooth, 0.01) - 1.0).mean(1)
    other = (_field(at, "skin") == 0) & (_field(at, "scalp") == 0)
    assert np.abs(change[other]).max() < 1e-6
    assert 0.03 < change[at.cheeks].std() < 0.06
    assert abs(change[at.cheeks].mean()) < 0.01
