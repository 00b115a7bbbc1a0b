from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dff.face.errors import BadDataset
from dff.infra.datasets.shards import SCHEMA_VERSION
from dff.pipeline.job.plan import list_differences, make_plan, parse_plan
from dff.pipeline.job.work import WorkSpec, derive_seed
from dff.pipeline.recovery.photos import PhotoRef
from tests.pipeline.job.toy_work import toy_plan


def test_seeds_are_known_and_differ() -> None:
    assert (
        derive_seed(7, "afw/1_1/0003") == 2333219940046316968
    )  # printf 7/afw/1_1/0003 | sha256sum
    seeds = {
        derive_seed(job, f"{face}/{view:04d}")
        for job in range(5)
        for face in range(50)
        for view in range(20)
    }
    assert len(seeds) == 5000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_plan_has_every_input_once_in_an_order_of_its_own() -> None:
    photos = [PhotoRef(name, f"{name}.jpg", None) for name in ("b", "c", "a")]
    plan = make_plan(
        photos, identities=2, seed=1, options={}, assets={}, renderer="r", shard_subjects=2
    )
    assert [[s.id for s in shard.subjects] for shard in plan.shards] == [
        ["a", "b"],
        ["c", "sampled-000000"],
        ["sampled-000001"],
    ]
    again = make_plan(
        photos[::-1], identities=2, seed=1, options={}, assets={}, renderer="r", shard_subjects=2
    )
    assert again.fingerprint == plan.fingerprint
    assert plan.data_key(2) == "data/part-00002-of-00003.parquet"
    assert plan.subjects == 5


def test_a_stored_plan_is_the_plan() -> None:
    plan = toy_plan()
    assert parse_plan(plan.to_json(), "plan.json") == plan


def test_the_fingerprint_sees_every_field_and_the_differences_name_it() -> None:
    plan, more = toy_plan(), PhotoRef("z", "z.jpg", None)
    others = {
        "seed: 7, now 8": toy_plan(seed=8),
        "views: 3, now 4": toy_plan(views=4),
        "colour: unknown, now True": replace(plan, options={**plan.options, "colour": True}),
        "identities: 6, now 7": toy_plan(13),
        "photos: 6, now 7 (0 gone, 1 new; the first: z)": replace(
            plan, photos=(*plan.photos, more)
        ),
        "shard_subjects: 3, now 2": toy_plan(shard_subjects=2),
        f"numpy: {plan.libraries['numpy']}, now 1.0": replace(
            plan, libraries={**plan.libraries, "numpy": "1.0"}
        ),
        "renderer: numba, now gl": replace(plan, renderer="gl"),
        f"code: {plan.code}, now 9": replace(plan, code="9"),
        f"schema_version: {SCHEMA_VERSION}, now 9": replace(plan, schema_version=9),
        f"toy: {'0' * 64}, now {'1' * 64}": replace(plan, assets={"toy": "1" * 64}),
    }
    assert (
        len({plan.fingerprint, *(other.fingerprint for other in others.values())})
        == len(others) + 1
    )
    for line, other in others.items():
        assert list_differences(plan, other) == [line]
    assert list_differences(plan, toy_plan()) == []


def test_the_fingerprint_is_the_same_in_any_process() -> None:
    script = "from tests.pipeline.job.toy_work import toy_plan; print(toy_plan().fingerprint)"
    env = {**os.environ, "PYTHONHASHSEED": "5"}
    root = Path(__file__).parents[3]
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=env,
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == toy_plan().fingerprint


def test_an_altered_or_foreign_plan_is_refused_by_name() -> None:
    content = json.loads(toy_plan().to_json())
    content["seed"] = 8
    with pytest.raises(BadDataset, match=r"OUT/plan.json was altered"):
        parse_plan(json.dumps(content).encode(), "OUT/plan.json")
    for data in (b"", b"[]", b"{}", b'{"fingerprint": "x"}', b"\xff"):
        with pytest.raises(BadDataset, match=r"OUT/plan.json is not a plan"):
            parse_plan(data, "OUT/plan.json")


def test_two_subjects_of_one_id_are_refused() -> None:
    photos = [PhotoRef("sampled-000001", "x.jpg", None)]
    with pytest.raises(ValueError, match="sampled-000001"):
        make_plan(photos, identities=2, seed=1, options={}, assets={}, renderer="r")
    with pytest.raises(ValueError, match="at least one"):
        make_plan([], identities=0, seed=1, options={}, assets={}, renderer="r")


def test_a_work_spec_is_small_and_builds_what_it_names() -> None:
    spec = WorkSpec.create("collections:Counter", a=3)
    assert len(pickle.dumps(spec)) < 200
    assert hash(spec) == hash(pickle.loads(pickle.dumps(spec)))
    assert spec.build() == {"a": 3}
    with pytest.raises(ValueError, match=r"package.module:function"):
        WorkSpec.create("collections.Counter").build()
