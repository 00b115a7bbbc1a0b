"""The open albedo: skin tones, features and seams; samples at vertices equal the texture."""

from __future__ import annotations

import numpy as np
import pytest

from dff.face.arrays import Floats
from dff.face.io.assets import load_albedo
from dff.face.model.albedo import AlbedoModel
from dff.face.model.landmarks import NAMES
from dff.face.model.morphable import MorphableModel


@pytest.fixture(scope="module")
def albedo() -> AlbedoModel:
    return load_albedo()


def at_vertices(albedo: AlbedoModel, model: MorphableModel) -> tuple[Floats, Floats]:
    """(V, 3) mean and (k, V, 3) components at the first uv of each vertex."""
    rows = np.full(len(model.template), len(model.uv), np.int64)
    np.minimum.at(rows, model.faces.ravel(), model.uv_faces.ravel())
    return albedo.at(model.uv[np.where(rows == len(model.uv), 0, rows)])


@pytest.fixture(scope="module")
def colours(albedo: AlbedoModel, open_head: MorphableModel) -> Floats:
    """(V, 3) mean colours of the vertices."""
    return at_vertices(albedo, open_head)[0]


def of_region(model: MorphableModel, colours: Floats, *regions: str) -> Floats:
    return colours[np.unique(model.faces[model.find_triangles(*regions)])]


def test_open_albedo_matches_its_metadata(albedo: AlbedoModel) -> None:
    assert load_albedo("open-albedo") is albedo
    assert albedo.licence == "CC0-1.0"
    assert "MakeHuman" in albedo.provenance
    assert albedo.mean.shape == (256, 256, 3)
    assert albedo.mean.dtype == albedo.components.dtype == np.float32
    assert 10 <= len(albedo.components) <= 16
    assert albedo.mean.min() >= 0.0
    assert albedo.mean.max() <= 1.0


def test_texture_is_linear_until_it_is_clipped(albedo: AlbedoModel) -> None:
    assert np.array_equal(albedo.texture(np.zeros(0)), albedo.mean)
    c = np.random.default_rng(0).normal(size=len(albedo.components)) * 0.1
    whole = albedo.mean + np.einsum("k,kyxc->yxc", c, albedo.components)
    assert np.allclose(albedo.texture(c), np.clip(whole, 0, 1), atol=1e-5)
    far = albedo.texture(np.full(3, 9.0))
    assert far.min() >= 0.0
    assert far.max() <= 1.0
    with pytest.raises(ValueError, match="components"):
        albedo.texture(np.zeros(99))


def test_sampling_at_texel_centres_gives_the_texels(albedo: AlbedoModel) -> None:
    size = len(albedo.mean)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, size, (2, 50))
    mean, components = albedo.at((np.c_[x, y] + 0.5) / size)
    assert np.allclose(mean, albedo.mean[y, x], atol=1e-6)
    assert np.allclose(components, albedo.components[:, y, x], atol=1e-6)
    between, _ = albedo.at(np.array([[11.0, 20.5]]) / size)  # halfway between two texels
    assert np.allclose(between[0], (albedo.mean[20, 10] + albedo.mean[20, 11]) / 2, atol=1e-6)


def test_shape_errors_are_refused() -> None:
    with pytest.raises(ValueError, match="albedo wants"):
        AlbedoModel(
            "x", "CC0-1.0", "", np.zeros((4, 5, 3), np.float32), np.zeros((2, 4, 4, 3), np.float32)
        )


def test_skin_goes_from_very_dark_to_very_light(
    albedo: AlbedoModel, open_head: MorphableModel
) -> None:
    """The first component is lightness: it covers the range of human skin."""
    mean, components = at_vertices(albedo, open_head)
    cheeks = np.unique(open_head.landmarks.contour[[2, 14], 5])
    tones = [
        np.clip(mean[cheeks] + c * components[0, cheeks], 0, 1).mean() for c in (-2.0, 0.0, 2.0)
    ]
    assert tones[0] < 0.2
    assert 0.4 < tones[1] < 0.65
    assert tones[2] > 0.75
    for c in (-2.0, 0.0, 2.0):
        red, green, blue = np.clip(mean[cheeks] + c * components[0, cheeks], 0, 1).mean(0)
        assert red > green > blue  # whatever the tone, skin is warm


def test_features_have_their_colours(
    albedo: AlbedoModel, open_head: MorphableModel, colours: Floats
) -> None:
    face = np.median(of_region(open_head, colours, "face"), axis=0)
    lips = np.median(of_region(open_head, colours, "lips"), axis=0)
    assert lips[0] / lips[1] > 1.05 * face[0] / face[1]
    brow = colours[open_head.landmarks.inner[[NAMES.index("brow_left_mid") - 17]]].mean()
    assert of_region(open_head, colours, "brows").min() < 0.8 * face.mean()
    assert brow < face.mean() * 1.05
    eyes = np.unique(open_head.faces[open_head.find_triangles("eyes")])
    depth = open_head.template[eyes, 2]
    left = open_head.template[eyes, 0] > 0
    pupil = eyes[left][depth[left].argmax()]
    assert colours[pupil].mean() < 0.2
    assert np.median(colours[eyes]) > 0.7
    teeth = of_region(open_head, colours, "teeth").mean(1)
    assert teeth.max() > 0.7
    assert of_region(open_head, colours, "mouth").mean() < 0.3  # little light gets in
    assert of_region(open_head, colours, "scalp").mean() < 0.7 * face.mean()


def test_seams_do_not_show(albedo: AlbedoModel, open_head: MorphableModel) -> None:
    """A vertex of the skin that lies at several places of the texture has nearly one colour."""
    skin = np.isin(
        open_head.region, [open_head.region_names.index(r) for r in ("face", "neck", "ears")]
    )
    pairs = np.unique(
        np.c_[open_head.faces[skin].ravel(), open_head.uv_faces[skin].ravel()], axis=0
    )
    colour, _ = albedo.at(open_head.uv[pairs[:, 1]])
    low = np.full((len(open_head.template), 3), np.inf)
    high = np.full((len(open_head.template), 3), -np.inf)
    np.minimum.at(low, pairs[:, 0], colour)
    np.maximum.at(high, pairs[:, 0], colour)
    seam = np.bincount(pairs[:, 0], minlength=len(low)) > 1
    assert seam.sum() > 20
    assert np.quantile((high - low)[seam].max(1), 0.9) < 0.06


def test_skin_is_nearly_symmetric(open_head: MorphableModel, colours: Floats) -> None:
    rows = np.unique(open_head.faces[open_head.find_triangles("face", "lips", "ears")])
    assert np.abs(colours[rows] - colours[open_head.mirror[rows]]).mean() < 0.015
