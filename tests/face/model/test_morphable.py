"""The linear face model: linearity, packing of coefficients, and checks of its tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dff.face.geometry.mesh import SurfacePoints
from dff.face.model.morphable import (
    ASYMMETRY,
    COARSE,
    FINE,
    Coefficients,
    MorphableModel,
)

MODELS = ["toy_model", "open_head"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> MorphableModel:
    found: MorphableModel = request.getfixturevalue(request.param)
    return found


def test_the_model_is_linear(model: MorphableModel) -> None:
    rng = np.random.default_rng(0)
    k, e = len(model.identity), len(model.expression)
    a, b = (Coefficients(rng.normal(size=k), rng.normal(size=e)) for _ in range(2))
    both = Coefficients(a.identity + b.identity, a.expression + b.expression)
    sum_of = model.vertices(a) + model.vertices(b) - model.vertices(model.neutral())
    assert np.abs(model.vertices(both) - sum_of).max() < 1e-5
    assert np.allclose(model.vertices(model.neutral()), model.template)
    assert model.vertices(a).dtype == np.float64


def test_missing_coefficients_are_zero(model: MorphableModel) -> None:
    k, e = len(model.identity), len(model.expression)
    short = Coefficients(np.array([1.0, -2.0]), np.array([0.5]))
    full = Coefficients(np.pad([1.0, -2.0], (0, k - 2)), np.pad([0.5], (0, e - 1)))
    assert np.allclose(model.vertices(short), model.vertices(full), atol=1e-7)
    with pytest.raises(ValueError, match="modes"):
        model.vertices(Coefficients(np.zeros(k + 1), np.zeros(e)))
    too_many = np.zeros(len(model.deformations) + 1)
    with pytest.raises(ValueError, match="modes"):
        model.vertices(Coefficients(np.zeros(k), np.zeros(e), too_many))
    with pytest.raises(ValueError, match="modes"):
        model.vertices(Coefficients(np.zeros(k), np.zeros(e + 1)))


def test_deformations_add_to_identities(model: MorphableModel) -> None:
    rng = np.random.default_rng(2)
    identity, off = rng.normal(size=len(model.identity)), rng.normal(size=5)
    rest = np.zeros(len(model.expression))
    moved = model.vertices(Coefficients(identity, rest, off)) - model.vertices(
        Coefficients(identity, rest)
    )
    np.testing.assert_allclose(moved, np.tensordot(off, model.deformations[:5], axes=1), atol=1e-8)


def test_stored_identities_give_back_the_coefficients(model: MorphableModel) -> None:
    rng = np.random.default_rng(3)
    rest = np.zeros(len(model.expression))
    for identities, deformations in ((2, 0), (len(model.identity), 0), (2, 5)):
        face = Coefficients(rng.normal(size=identities), rest, rng.normal(size=deformations))
        stored = model.pack_identity(face)
        assert len(stored) == (len(model.identity) + deformations if deformations else identities)
        back = model.unpack_identity(stored, rest)
        np.testing.assert_array_equal(back.deformation, face.deformation)
        np.testing.assert_allclose(model.vertices(back), model.vertices(face), atol=1e-8)


@pytest.mark.parametrize(
    ("rows", "deviation", "reach"),
    [
        (slice(6 * COARSE.functions), COARSE.deviation, COARSE.reach),
        (slice(6 * COARSE.functions, None), FINE.deviation, FINE.reach),
    ],
    ids=["coarse", "fine"],
)
def test_deformations_are_smooth_and_mostly_alike_on_both_sides(
    open_head: MorphableModel, rows: slice, deviation: float, reach: float
) -> None:
    deformed = open_head.deformations[rows]
    sd = np.sqrt((deformed.astype(float) ** 2).sum(0))  # (V, 3) of a random one
    face = np.unique(open_head.faces[open_head.find_triangles("face", "lips", "brows")])
    assert 0.7 * deviation < sd[face].mean() < deviation
    mirrored = deformed[:, open_head.mirror] * [-1.0, 1.0, 1.0]
    even, odd = (deformed + mirrored) / 2.0, (deformed - mirrored) / 2.0
    aside = (
        np.abs(open_head.template[face, 0]) > reach
    )  # at the middle a face is its own mirror image
    share = np.sqrt((odd[:, face[aside]] ** 2).sum() / (even[:, face[aside]] ** 2).sum())
    assert share == pytest.approx(ASYMMETRY, rel=0.1)
    assert sd[face].max() < 1.05 * deviation
    rng = np.random.default_rng(3)
    field = np.tensordot(rng.normal(size=len(deformed)), deformed, axes=1)
    edges = open_head.faces[open_head.find_triangles("face")][:, :2]
    steps = np.linalg.norm(np.diff(field[edges], axis=1), axis=2)
    lengths = np.linalg.norm(np.diff(open_head.template[edges].astype(float), axis=1), axis=2)
    assert (steps < 4.0 * deviation * lengths / reach + 1e-6).all()


def test_fine_deformations_are_of_the_face_alone(open_head: MorphableModel) -> None:
    """Fine deformations leave the back of the head at rest; coarse ones move it."""
    behind = open_head.template[:, 2] < open_head.template[:, 2].min() + 0.05
    coarse, fine = np.split(open_head.deformations[:, behind], [6 * COARSE.functions])
    assert np.abs(fine).max() < 0.02 * FINE.deviation
    assert np.abs(coarse).max() > 1e-3


def test_restricted_bases_are_the_model(model: MorphableModel) -> None:
    """A basis at surface points or vertices agrees with the whole model."""
    rng = np.random.default_rng(1)
    c = Coefficients(rng.normal(size=3), rng.normal(size=2))
    whole = model.vertices(c)
    parameters = np.concatenate([c.identity, c.expression])
    points = SurfacePoints(rng.integers(0, len(model.faces), 30), rng.dirichlet([1, 1, 1], 30))
    mean, basis = model.basis_at(points, 3, 2)
    assert np.abs(mean + basis @ parameters - points.of(whole, model.faces)).max() < 1e-6
    vertices = rng.integers(0, len(model.template), 30)
    mean, basis = model.basis_of_vertices(vertices, 3, 2)
    assert np.abs(mean + basis @ parameters - whole[vertices]).max() < 1e-6


def test_the_mirror_is_its_own_inverse(model: MorphableModel) -> None:
    assert np.array_equal(model.mirror[model.mirror], np.arange(len(model.template)))
    assert np.abs(model.template[model.mirror] * [-1, 1, 1] - model.template).max() < 1e-3


def test_regions_share_out_the_triangles(model: MorphableModel) -> None:
    parts = [model.find_triangles(name) for name in model.region_names]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(model.faces)))
    assert len(model.find_triangles("face", "neck")) == len(model.find_triangles("face")) + len(
        model.find_triangles("neck")
    )
    with pytest.raises(ValueError, match="tail"):
        model.find_triangles("face", "tail")


def test_tables_must_agree(toy_model: MorphableModel) -> None:
    for wrong in (
        {"identity": toy_model.identity[:, :-1]},
        {"expression_sd": toy_model.expression_sd[:-1]},
        {"uv_faces": toy_model.uv_faces[:-1]},
        {"region": toy_model.region[:-1]},
        {"faces": toy_model.faces + 1},
        {"mirror": toy_model.mirror[:-1]},
    ):
        with pytest.raises(ValueError, match=r"disagree|no vertex"):
            replace(toy_model, **wrong)
    for bad in (np.array([np.nan]), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="finite"):
            Coefficients(bad, np.zeros(1))
