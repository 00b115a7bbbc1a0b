"""Counts add up, lights and skin tones are measured as they were set, samples keep their order."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest

from dff.face.geometry import lighting
from dff.face.model.morphable import MorphableModel
from dff.pipeline.inspection.gallery import TRUTHS, strip, truth_strip
from dff.pipeline.inspection.report import CONFIG, YAWS, SampleSelection
from dff.pipeline.inspection.statistics import (
    SCALES,
    DatasetStatistics,
    NameCounts,
    describe_light,
    describe_recipe,
    measure_skin_tone,
)
from dff.pipeline.scene.camera_sensor import apply_sensor, linearize, sample_sensor
from dff.pipeline.scene.lights import directional_light
from tests.infra.rows import toy_view


def columns(
    count: int, *, shard: int = 0, photos: bool = False, rng: np.random.Generator
) -> dict[str, list]:
    """Columns as a shard gives them: four views a person."""
    who = [f"{shard}-{i // 4}" for i in range(count)]
    recipe = {
        "movement": "smile+open+rest",
        "worn": ["glasses"],
        "background": None,
        "sensor": {"grey": False},
    }
    return {
        "identity_id": who,
        "photo_id": [w if photos else "" for w in who],
        "view": [i % 4 for i in range(count)],
        "mode": ["rerender"] * count,
        "yaw": rng.uniform(-130, 130, count).tolist(),
        "pitch": rng.normal(0, 60, count).tolist(),
        "roll": rng.normal(0, 60, count).tolist(),
        "camera": ["pinhole" if i % 3 else "weak_perspective" for i in range(count)],
        "translation": rng.normal(0, 2, (count, 3)).tolist(),
        "light": rng.normal(0, 1, (count, 9, 3)).tolist(),
        "licence": ["CC0-1.0"] * count,
        "fit_error": np.repeat(rng.random(-(-count // 4)), 4)[:count].tolist(),
        "recipe": [
            json.dumps(recipe if i % 2 else {**recipe, "movement": "photo", "worn": []})
            for i in range(count)
        ],
    }


def test_every_count_adds_up_to_the_views() -> None:
    rng = np.random.default_rng(0)
    statistics = DatasetStatistics()
    for shard, count in enumerate((20, 7, 40)):
        statistics.add(columns(count, shard=shard, photos=shard == 1, rng=rng))
    assert statistics.views == 67
    assert statistics.identities == 5 + 2 + 10
    assert len(statistics.fit_errors) == 7
    assert {h.name for h in statistics.histograms} == set(SCALES) - {"skin tone"}
    for histogram in statistics.histograms:
        assert sum(histogram.counts) + histogram.unknown == 67, histogram.name
        assert len(histogram.counts) == len(histogram.edges) - 1
    for counts in statistics.name_counts:
        assert sum(counts.counts.values()) == 67, counts.name
        assert sum(n for _, n in counts.top(1)) == 67
    statistics.add_skin([20.0, np.nan, -80.0])
    skin = statistics.histograms[-1]
    assert (skin.name, sum(skin.counts), skin.unknown, skin.counts[0]) == ("skin tone", 2, 1, 1)


def test_values_fall_between_their_edges() -> None:
    rng = np.random.default_rng(1)
    some = columns(60, rng=rng)
    statistics = DatasetStatistics()
    statistics.add(some)
    yaw = next(h for h in statistics.histograms if h.name == "yaw")
    inside = np.clip(some["yaw"], yaw.edges[0], yaw.edges[-1] - 1e-9)
    assert yaw.counts == np.histogram(inside, yaw.edges)[0].tolist()
    distance = next(h for h in statistics.histograms if h.name == "distance")
    assert distance.unknown == 20


@pytest.mark.parametrize(
    ("side", "above"), [(0.0, 0.0), (60.0, 10.0), (-120.0, 45.0), (20.0, -40.0)]
)
def test_the_direction_of_a_light_is_measured(side: float, above: float) -> None:
    a, e = np.deg2rad([side, above])
    direction = np.array([np.sin(a) * np.cos(e), -np.sin(e), -np.cos(a) * np.cos(e)])
    light = np.outer(directional_light(direction), np.ones(3)) + lighting.ambient(0.3)
    found = describe_light(light[None])
    assert found["light from the side"][0] == pytest.approx(side, abs=0.1)
    assert found["light from above"][0] == pytest.approx(above, abs=0.1)


def test_even_light_has_no_direction_and_no_contrast() -> None:
    found = describe_light(lighting.ambient(0.8)[None])
    assert np.isnan(found["light from the side"][0])
    assert found["light's contrast"][0] == pytest.approx(0.0, abs=1e-9)
    assert found["light's level"][0] == pytest.approx(0.8, abs=1e-3)


def test_a_recipe_is_described_in_words() -> None:
    recipe = {
        "movement": "grin+squint+raised",
        "worn": ["hat_1", "glasses"],
        "background": {"kind": "clouds"},
    }
    assert describe_recipe({**recipe, "sensor": {"grey": True}}) == {
        "mouth": "grin", "eyes": "squint", "brows": "raised", "accessories": "glasses, hat",
        "background": "clouds", "colours": "grey",
    }  # fmt: skip
    photo = describe_recipe({"movement": "photo", "worn": [], "background": None})
    assert (photo["eyes"], photo["accessories"], photo["background"]) == (
        "photo",
        "none",
        "the photo's own",
    )


@pytest.mark.parametrize("colour", [(0.85, 0.70, 0.62), (0.60, 0.42, 0.32), (0.30, 0.20, 0.15)])
def test_skin_has_the_tone_it_was_painted_with(
    toy_model: MorphableModel, colour: tuple[float, ...]
) -> None:
    rng = np.random.default_rng(2)
    row, frame = toy_view(toy_model, "a", 1, size=96, rng=rng)
    light = lighting.ambient(0.7)
    light[3] += 0.1
    sensor = replace(sample_sensor(rng=rng), grey=False, noise=0.02, shrink=1.0)
    shown = np.where(
        frame.mask[..., None], np.array(colour) * lighting.shade(frame.normal, light), 0.1
    )
    image = cv2.imencode(".png", apply_sensor(shown.astype(np.float32), sensor)[..., ::-1])[
        1
    ].tobytes()
    row = replace(row, image=image, light=light, recipe=json.dumps({"sensor": asdict(sensor)}))
    patch = np.array(colour, np.float32).reshape(1, 1, 3)
    lightness, _, yellow = cv2.cvtColor(patch, cv2.COLOR_RGB2Lab)[0, 0].tolist()
    expected = np.rad2deg(np.arctan2(lightness - 50.0, yellow))
    assert measure_skin_tone(row, toy_model) == pytest.approx(expected, abs=4.0)
    grey = replace(row, recipe=json.dumps({"sensor": asdict(replace(sensor, grey=True))}))
    assert np.isnan(measure_skin_tone(grey, toy_model))


def test_sensor_tones_are_inverted() -> None:
    rng = np.random.default_rng(3)
    light = rng.uniform(0.1, 0.9, (4, 5, 3)).astype(np.float32)
    sensor = replace(
        sample_sensor(rng=rng), grey=False, noise=0.0, blur=0.0, shrink=1.0, contrast=1.0
    )
    assert linearize(apply_sensor(light, sensor), sensor) == pytest.approx(light, abs=0.02)


def rows_of(
    selection: SampleSelection, shards: int, *, rng: np.random.Generator
) -> list[dict[str, list]]:
    out = [columns(40, shard=shard, photos=shard % 2 == 0, rng=rng) for shard in range(shards)]
    for shard, some in enumerate(out):
        selection.add(shard, some)
    return out


def test_worst_fits_come_first() -> None:
    selection = SampleSelection(20, np.random.default_rng(0))
    shards = rows_of(selection, 20, rng=np.random.default_rng(4))
    errors = [shards[shard]["fit_error"][row] for (shard, row), *_ in selection.worst()]
    every = sorted({e for s in shards if s["photo_id"][0] for e in s["fit_error"]}, reverse=True)
    assert errors == every[: CONFIG.worst]
    for places in selection.worst():
        assert len({shards[s]["identity_id"][r] for s, r in places}) == 1
        assert len(places) == 4


def test_selected_views_are_few_different_and_where_they_should_be() -> None:
    selection = SampleSelection(20, np.random.default_rng(0))
    shards = rows_of(selection, 20, rng=np.random.default_rng(5))
    at_random = selection.group("random", CONFIG.random)[""]
    assert len(set(at_random)) == len(at_random) == CONFIG.random
    assert len({shard for shard, _ in at_random}) <= 8  # few shards are read
    for name, places in selection.group("yaw", 5).items():
        assert 0 < len(places) <= 5
        for shard, row in places:
            nearest = YAWS[np.abs(YAWS - shards[shard]["yaw"][row]).argmin()]
            assert name == f"{nearest:+d}°"
    people = selection.people()
    assert len(people) == CONFIG.people
    assert sum(bool(shards[p[0][0]]["photo_id"][0]) for p in people) == CONFIG.people // 2
    again = SampleSelection(20, np.random.default_rng(0))
    rows_of(again, 20, rng=np.random.default_rng(5))
    assert again.people() == people


def test_a_strip_shows_every_truth(toy_model: MorphableModel) -> None:
    row, frame = toy_view(toy_model, "a", 1, size=48, rng=np.random.default_rng(6))
    shown = truth_strip(row, toy_model, tile=48)
    assert shown.shape == (48, len(TRUTHS) * 48 + (len(TRUTHS) - 1) * 3, 3)
    tiles = dict(
        zip(TRUTHS, (shown[:, i * 51 : i * 51 + 48] for i in range(len(TRUTHS))), strict=True)
    )
    assert (tiles["view"] == row.pixels()).all()
    for name in ("regions", "surface point", "depth", "normal"):
        coloured = np.ptp(tiles[name].astype(int), axis=2) > 0
        assert not coloured[~frame.mask].any(), name
        assert coloured[frame.mask].mean() > 0.9, name
    assert np.ptp(tiles["occluders"].astype(int), axis=2).max() == 0
    with pytest.raises(ValueError, match="at least one"):
        strip([])


def test_the_longest_bar_may_be_that_of_the_other_names() -> None:
    many = NameCounts("mouth", {f"name {i}": 20 - i for i in range(20)})
    bars = many.bars()
    assert bars[0] == ("name 0", 20, pytest.approx(20 / 45))
    assert bars[-1] == ("9 others", sum(range(1, 10)), 1.0)
    assert NameCounts("none", {}).bars() == []
