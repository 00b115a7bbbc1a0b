"""Registration: known motions are recovered, and albedo and regions are transferred."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dff.face.geometry.mesh import SurfacePoints
from dff.face.geometry.transform import rotation_from_angles
from dff.face.io.assets import load_albedo, load_model
from dff.face.io.registration import Nearest, Surface, register, register_similarity, similarity
from dff.face.io.transfer import carried_albedo, carried_regions, correspondence, counterparts
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import MorphableModel


def test_a_similarity_comes_back() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 3))
    rotation = rotation_from_angles(20.0, -30.0, 50.0)
    moved = 1.7 * points @ rotation.T + [0.1, -2.0, 3.0]
    found = similarity(points, moved)
    assert found.scale == pytest.approx(1.7)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-9)
    np.testing.assert_allclose(found.apply(points), moved, atol=1e-9)
    mirrored = similarity(points, points * [-1.0, 1.0, 1.0])
    assert np.linalg.det(mirrored.rotation) == pytest.approx(1.0)


def test_the_nearest_point_is_the_nearest_of_many(toy_model: MorphableModel) -> None:
    rng = np.random.default_rng(1)
    surface = Surface(toy_model.template.astype(np.float64), toy_model.faces)
    points = rng.normal(size=(40, 3)) * 0.1
    found, away = Nearest(surface)(points)
    weights = rng.dirichlet(np.ones(3) * 0.5, size=(len(surface.faces), 4000))
    dense = np.einsum("fnk,fkc->fnc", weights, surface.vertices[surface.faces]).reshape(-1, 3)
    brute = np.array([np.linalg.norm(dense - p, axis=1).min() for p in points])
    assert (away <= brute + 1e-12).all()
    np.testing.assert_allclose(away, brute, atol=5e-4)
    at = found.of(surface.vertices, surface.faces)
    np.testing.assert_allclose(np.linalg.norm(at - points, axis=1), away, atol=1e-12)
    assert found.barycentric.min() >= 0


def test_closest_points_find_a_moved_head(open_head: MorphableModel) -> None:
    surface = Surface(open_head.template.astype(np.float64), open_head.faces)
    turn = rotation_from_angles(8.0, -6.0, 5.0) @ rotation_from_angles(0.0, 0.0, 0.0).T
    moving = 1.1 * surface.vertices @ turn.T + [0.01, 0.005, -0.01]
    found = register_similarity(moving, surface)
    assert np.linalg.norm(found.apply(moving) - surface.vertices, axis=1).mean() < 0.003


def test_a_person_of_the_model_is_registered_to_the_template(open_head: MorphableModel) -> None:
    """Every vertex has a known counterpart: itself."""
    skin = open_head.find_triangles("face", "lips", "brows")
    shape = open_head.template + np.tensordot(
        [1.5, -1.0, 1.0], open_head.identity[:3].astype(np.float64), axes=1
    )
    person = replace(open_head, template=shape.astype(np.float32), name="person")
    used = np.unique(open_head.faces[skin])
    places = correspondence(person, open_head).places[used]
    before = np.linalg.norm(shape - open_head.template, axis=1)[used]
    away = np.linalg.norm(places - open_head.template[used], axis=1)
    assert away.mean() < 0.0015
    assert away.mean() < 0.4 * before.mean()


def test_transfer_to_the_same_model_changes_nothing(open_head: MorphableModel) -> None:
    albedo = load_albedo()
    found = correspondence(open_head, open_head)
    np.testing.assert_allclose(found.places, open_head.template, atol=2e-4)
    regions = carried_regions(open_head, open_head, found)
    assert (regions == open_head.region).mean() > 0.99
    carried = carried_albedo(albedo, open_head, open_head, found)
    rng = np.random.default_rng(0)
    points = SurfacePoints(
        rng.integers(0, len(open_head.faces), 3000), rng.dirichlet(np.ones(3), 3000)
    )
    uv = points.of(open_head.uv, open_head.uv_faces)
    off = np.abs(carried.at(uv)[0] - albedo.at(uv)[0]).mean(1)
    assert np.median(off) < 0.01
    assert np.percentile(off, 95) < 0.06  # a texel beside a seam


def test_register_needs_no_landmarks_where_surfaces_lie_close(open_head: MorphableModel) -> None:
    surface = Surface(open_head.template.astype(np.float64), open_head.faces)
    moving = Surface(surface.vertices * [1.03, 0.98, 1.02], surface.faces)
    at = register(moving, surface)
    assert Nearest(surface)(at)[1].mean() < 0.0005


@pytest.fixture(scope="module")
def ict(shared: Path) -> MorphableModel:
    return load_model(str(shared / "models" / "ict-facekit-light" / "ict_facekit_light.npz"))


def test_colours_and_regions_of_the_open_head_arrive_on_ict(
    ict: MorphableModel, open_head: MorphableModel
) -> None:
    albedo: AlbedoModel = load_albedo(model=ict)
    assert load_albedo(model=ict) is albedo
    assert (albedo.uv_of, albedo.licence) == (ict.name, load_albedo().licence)
    ours = load_albedo()
    for name, far in (("lips", 0.03), ("face", 0.03), ("brows", 0.05), ("eyes", 0.12)):
        theirs = []
        for model, skin in ((ict, albedo), (open_head, ours)):
            triangle = model.find_triangles(name)
            middle = SurfacePoints(triangle, np.full((len(triangle), 3), 1 / 3))
            theirs.append(np.median(skin.at(middle.of(model.uv, model.uv_faces))[0], axis=0))
        np.testing.assert_allclose(theirs[0], theirs[1], atol=far, err_msg=name)
    lips = ict.template[ict.faces[ict.find_triangles("lips")]].mean(1)
    corners = ict.template[ict.landmarks.vertex[[48, 54]]]
    assert np.abs(lips[:, 0]).max() < 1.15 * corners[1, 0]
    found = counterparts(
        SurfacePoints(np.arange(len(ict.faces)), np.full((len(ict.faces), 3), 1 / 3)),
        ict,
        open_head,
        correspondence(ict, open_head),
    )
    of = np.array(open_head.region_names)[open_head.region[found.triangle]]
    assert set(of[ict.find_triangles("teeth")]) == {"teeth"}
    assert set(of[ict.find_triangles("eyes")]) == {"eyes"}
