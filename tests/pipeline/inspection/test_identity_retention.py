"""A person's views match under other light and poses, and strangers' only by chance."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dff.face.geometry import lighting
from dff.face.geometry.transform import rotation_from_angles
from dff.face.io.assets import load_albedo
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import OCCLUDER
from dff.infra.datasets.shards import ViewRow
from dff.pipeline.inspection.identity_retention import (
    CONFIG,
    FrontalMap,
    FrontalTexture,
    correlate,
    extract_frontal_texture,
    measure_identity_retention,
)
from dff.pipeline.job.work import derive_seed
from dff.pipeline.scene import views
from dff.pipeline.scene.sampling import make_plain_scene
from dff.pipeline.subjects.build import sample_person

PEOPLE, SIZE = 4, 128
SIDE = CONFIG.side


@pytest.fixture(scope="module")
def rows(open_head: MorphableModel) -> list[list[ViewRow]]:
    """Three frontal views of some sampled people, without accessories."""
    out = []
    for index in range(PEOPLE):
        rng = np.random.default_rng(derive_seed(1, str(index)))
        person = sample_person(
            f"sampled-{index}", model=open_head, albedo=load_albedo(), texture_size=256, rng=rng
        )
        some = []
        for view, yaw in enumerate((-12.0, 0.0, 15.0)):
            scene = make_plain_scene(
                person,
                np.zeros(len(open_head.expression)),
                rotation(yaw),
                model=open_head,
                size=SIZE,
            )
            light = lighting.ambient(0.7)
            light[3] += 0.25 * (view - 1)
            lit = replace(scene, light=light.astype(np.float32))
            row = views.make_row(person, view, lit, model=open_head, seed=0, size=SIZE)
            some.append(row)
        out.append(some)
    return out


def rotation(yaw: float) -> np.ndarray:
    return rotation_from_angles(yaw, 0.0, 0.0)


@pytest.fixture(scope="module")
def textures(rows: list[list[ViewRow]], open_head: MorphableModel) -> list[list[FrontalTexture]]:
    frontal = FrontalMap.build(open_head)
    return [
        [extract_frontal_texture(row.pixels(), row, open_head, frontal) for row in some]
        for some in rows
    ]


def test_the_frontal_map_is_a_frontal_face(open_head: MorphableModel) -> None:
    frontal = FrontalMap.build(open_head)
    assert len(frontal.points.triangle) == frontal.inside.sum() > 0.3 * SIDE**2
    at = frontal.points.of(open_head.template, open_head.faces)
    y, x = np.nonzero(frontal.inside)
    assert np.corrcoef(x, at[:, 0])[0, 1] > 0.99  # the face's left is the picture's right
    assert np.corrcoef(y, at[:, 1])[0, 1] < -0.99


def test_views_of_a_person_resemble_each_other_most(textures: list[list[FrontalTexture]]) -> None:
    fronts = [some[1] for some in textures]
    others = [some[k] for some in textures for k in (0, 2)]
    whose = [person for person in range(PEOPLE) for _ in (0, 2)]
    found = measure_identity_retention(others, whose, fronts, seed=0)
    assert found.rate == 1.0
    assert (found.views, found.people) == (2 * PEOPLE, PEOPLE)


def test_the_table_is_a_correlation(textures: list[list[FrontalTexture]]) -> None:
    fronts = [some[1] for some in textures]
    table = correlate(fronts, fronts)
    assert np.diag(table) == pytest.approx(1.0, abs=1e-4)
    assert table == pytest.approx(table.T, abs=1e-5)
    assert table.max() < 1.0 + 1e-4


def test_brightness_and_contrast_do_not_matter(
    rows: list[list[ViewRow]], open_head: MorphableModel
) -> None:
    frontal, row = FrontalMap.build(open_head), rows[0][1]
    one = extract_frontal_texture(row.pixels(), row, open_head, frontal)
    dim = extract_frontal_texture(
        (row.pixels() * 0.6 + 20).astype(np.uint8), row, open_head, frontal
    )
    assert correlate([one], [dim])[0, 0] > 0.97


def test_textures_without_common_skin_do_not_correlate(
    textures: list[list[FrontalTexture]],
) -> None:
    one = textures[0][1]
    left = np.arange(SIDE)[None] < SIDE // 2
    halves = [
        FrontalTexture(np.where(part, one.values, 0.0), one.seen & part) for part in (left, ~left)
    ]
    assert correlate(halves[:1], halves[1:])[0, 0] == -1.0


def test_occluders_are_left_out(rows: list[list[ViewRow]], open_head: MorphableModel) -> None:
    frontal, row = FrontalMap.build(open_head), rows[0][1]
    ids = row.triangle_ids.copy()
    ids[:, : SIZE // 2] = np.where(ids[:, : SIZE // 2] >= 0, OCCLUDER, ids[:, : SIZE // 2])
    covered = extract_frontal_texture(
        row.pixels(), replace(row, triangle_ids=ids), open_head, frontal
    )
    plain = extract_frontal_texture(row.pixels(), row, open_head, frontal)
    assert 0.3 * plain.seen.sum() < covered.seen.sum() < 0.7 * plain.seen.sum()
    assert not (covered.seen & ~plain.seen).any()


def test_other_people_are_retrieved_at_chance_level() -> None:
    rng = np.random.default_rng(2)

    def stranger() -> FrontalTexture:
        values = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), 2.0)
        return FrontalTexture(values.astype(np.float32), np.ones((SIDE, SIDE), bool))

    photos, asked = [stranger() for _ in range(20)], [stranger() for _ in range(400)]
    found = measure_identity_retention(asked, [i % 20 for i in range(400)], photos, seed=0)
    assert found.rate == pytest.approx(1 / 20, abs=0.04)
    assert found.low <= 1 / 20 <= found.high
