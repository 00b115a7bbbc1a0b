"""Whose face it is: a person is found again under other light and poses, and among strangers only
by chance.
"""

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
from dff.infra.shards import ViewRow
from dff.pipeline.inspection.identity_retention import (
    SIDE,
    Chart,
    Look,
    likeness,
    look_of,
    recognised,
)
from dff.pipeline.job.work import derive_seed
from dff.pipeline.scene import views
from dff.pipeline.scene.sampling import make_plain_scene
from dff.pipeline.subjects.build import sampled_person

PEOPLE, SIZE = 4, 128


@pytest.fixture(scope="module")
def rows(open_head: MorphableModel) -> list[list[ViewRow]]:
    """Three views of some sampled people, seen from before, nothing worn."""
    out = []
    for index in range(PEOPLE):
        rng = np.random.default_rng(derive_seed(1, str(index)))
        person = sampled_person(
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
def looks(rows: list[list[ViewRow]], open_head: MorphableModel) -> list[list[Look]]:
    chart = Chart.of(open_head)
    return [[look_of(row.pixels(), row, open_head, chart) for row in some] for some in rows]


def test_a_chart_is_a_frontal_face(open_head: MorphableModel) -> None:
    chart = Chart.of(open_head)
    assert len(chart.points.triangle) == chart.inside.sum() > 0.3 * SIDE**2
    at = chart.points.of(open_head.template, open_head.faces)
    y, x = np.nonzero(chart.inside)
    assert np.corrcoef(x, at[:, 0])[0, 1] > 0.99  # the face's left is the picture's right
    assert np.corrcoef(y, at[:, 1])[0, 1] < -0.99


def test_views_of_a_person_resemble_each_other_most(looks: list[list[Look]]) -> None:
    fronts = [some[1] for some in looks]
    others = [some[k] for some in looks for k in (0, 2)]
    whose = [person for person in range(PEOPLE) for _ in (0, 2)]
    found = recognised(others, whose, fronts, seed=0)
    assert found.rate == 1.0
    assert (found.looks, found.people) == (2 * PEOPLE, PEOPLE)


def test_likeness_is_a_correlation(looks: list[list[Look]]) -> None:
    fronts = [some[1] for some in looks]
    table = likeness(fronts, fronts)
    assert np.diag(table) == pytest.approx(1.0, abs=1e-4)
    assert table == pytest.approx(table.T, abs=1e-5)
    assert table.max() < 1.0 + 1e-4


def test_brightness_and_contrast_do_not_matter(
    rows: list[list[ViewRow]], open_head: MorphableModel
) -> None:
    chart, row = Chart.of(open_head), rows[0][1]
    one = look_of(row.pixels(), row, open_head, chart)
    dim = look_of((row.pixels() * 0.6 + 20).astype(np.uint8), row, open_head, chart)
    assert likeness([one], [dim])[0, 0] > 0.97


def test_looks_without_common_skin_are_unlike(looks: list[list[Look]]) -> None:
    one = looks[0][1]
    left = np.arange(SIDE)[None] < SIDE // 2
    halves = [Look(np.where(part, one.values, 0.0), one.seen & part) for part in (left, ~left)]
    assert likeness(halves[:1], halves[1:])[0, 0] == -1.0


def test_what_hides_the_face_is_not_looked_at(
    rows: list[list[ViewRow]], open_head: MorphableModel
) -> None:
    chart, row = Chart.of(open_head), rows[0][1]
    ids = row.triangle_ids.copy()
    ids[:, : SIZE // 2] = np.where(ids[:, : SIZE // 2] >= 0, OCCLUDER, ids[:, : SIZE // 2])
    covered = look_of(row.pixels(), replace(row, triangle_ids=ids), open_head, chart)
    bare = look_of(row.pixels(), row, open_head, chart)
    assert 0.3 * bare.seen.sum() < covered.seen.sum() < 0.7 * bare.seen.sum()
    assert not (covered.seen & ~bare.seen).any()


def test_strangers_are_found_by_chance() -> None:
    rng = np.random.default_rng(2)

    def stranger() -> Look:
        values = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), 2.0)
        return Look(values.astype(np.float32), np.ones((SIDE, SIDE), bool))

    photos, asked = [stranger() for _ in range(20)], [stranger() for _ in range(400)]
    found = recognised(asked, [i % 20 for i in range(400)], photos, seed=0)
    assert found.rate == pytest.approx(1 / 20, abs=0.04)
    assert found.low <= 1 / 20 <= found.high
