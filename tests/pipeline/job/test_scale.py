"""The bookkeeping of twenty thousand shards; ``benchmarks.scale`` has a million."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scale import (
    Counting,
    Job,
    Prices,
    Units,
    costs,
    drive,
    lay_out,
    parse,
    peak,
    resume,
    simulated_record,
    verify,
)
from dff.infra.datasets.dataset import MANIFEST, SEGMENT, data_folder, data_key, parse_manifest
from dff.infra.storage import open_storage
from dff.pipeline.job import ledger, run as job
from dff.pipeline.job.ledger import Record
from dff.pipeline.job.plan import Plan, make_plan
from dff.pipeline.job.work import ShardPlan
from dff.pipeline.recovery.photos import PhotoRef
from dff.pipeline.synthesis import Options, fill_shard
from tests.pipeline.job.toy_work import toy_plan

SHARDS, PHOTOS, IN_FLIGHT = 20_080, 2_000, 80


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Counting:
    """A job whose driver was killed with sixty records outside any segment."""
    storage = Counting(open_storage(str(tmp_path_factory.mktemp("scale") / "set")))
    lay_out(storage, SHARDS, PHOTOS)
    drive(storage, IN_FLIGHT)
    return storage


def test_twenty_thousand_shards_are_resumed_and_verified_in_little_memory_and_few_requests(
    killed: Counting,
) -> None:
    """The bound is 1 GB for a million shards; this is a fiftieth."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = peak()
    assert [info.key for info in killed.list("ledger/")] == [
        *(f"ledger/part-{i}.json" for i in range(SHARDS - IN_FLIGHT, SHARDS) if i % 4),
        *(f"ledger/segment-{i:05d}.jsonl" for i in range(20)),
    ]
    assert resume(killed)["shards made"] == IN_FLIGHT / 4
    killed.requests.clear()
    begin = time.process_time()
    assert resume(killed)["shards made"] == 0
    assert killed.requests == {
        "GET": 1 + 21,  # the plan, each segment
        "LIST": 1 + 21 + 1,  # the ledger, each folder of data, the ledger for late records
        "PUT": 2,  # plan and manifest, if absent
        "DELETE": 1,  # the mark of a run that was killed, if there is one
    }
    assert verify(killed)["failures"] == SHARDS // 100 + 1
    assert parse(killed)["shards"] == SHARDS
    assert time.process_time() - begin < 60.0 / 10
    assert peak() - before < 1000.0 / 10


def test_the_plan_is_as_large_as_its_photos_and_not_as_its_shards() -> None:
    photos = [PhotoRef(f"{i:06d}", f"{i:06d}.jpg", f"{i:06d}.pts") for i in range(100)]
    sizes = [
        len(
            make_plan(
                photos,
                identities=identities,
                seed=0,
                options={},
                assets={},
                renderer="",
                shard_subjects=1,
            ).to_json()
        )
        for identities in (0, 1_000_000)
    ]
    assert sizes[1] - sizes[0] == len("1000000") - 1
    plan = make_plan(
        photos, identities=1_000_000, seed=0, options={}, assets={}, renderer="", shard_subjects=1
    )
    assert plan.shards[1_000_099].subjects[0].id == "sampled-999999"
    assert plan.data_key(1_000_099) == "data/01000/part-1000099-of-1000100.parquet"
    with pytest.raises(IndexError):
        plan.shards[1_000_100]


def test_no_folder_holds_more_than_a_thousand_shards() -> None:
    assert data_key(7, 1000) == "data/part-00007-of-01000.parquet"
    keys = [data_key(i, 2500) for i in range(2500)]
    assert len(set(keys)) == 2500
    for segment in range(3):
        assert (
            sum(key.startswith(data_folder(segment, 2500)) for key in keys)
            == (SEGMENT, SEGMENT, 500)[segment]
        )


def test_a_job_is_finished_in_several_segments(tmp_path: Path) -> None:
    """With real shards: the driver writes full segments, and a reader finds every row."""
    plan = toy_plan(1010, shard_subjects=1, views=1)
    out = open_storage(str(tmp_path / "out"))
    manifest = job.drive(
        plan,
        out,
        lambda shards, again: map_records(shards, plan),
        config=job.RunConfig(budget=1.0),
        progress=False,
    )
    assert [info.key for info in out.list("ledger/")] == [
        "ledger/segment-00000.jsonl",
        "ledger/segment-00001.jsonl",
    ]
    assert [record.shard for record in ledger.read_all(out)] == list(range(1010))
    assert parse_manifest(out.read(MANIFEST), MANIFEST) == manifest
    assert manifest.shards[1009].key == plan.data_key(1009)
    assert manifest.shards[-1] == manifest.shards[1009]
    assert [shard.key for shard in manifest.shards[998:1002]] == [
        plan.data_key(i) for i in range(998, 1002)
    ]


def map_records(shards: Iterable[ShardPlan], plan: Plan) -> Generator[Record]:
    for shard in shards:
        yield simulated_record(shard, plan)


@pytest.mark.parametrize("size", [128, 256, 1024])
@pytest.mark.parametrize("views", [1, 20, 100, 5000])
def test_a_full_shard_holds_about_the_same_number_of_pixels(views: int, size: int) -> None:
    faces = fill_shard(Options(views=views, size=size))
    assert faces == 1 or 0.7 < faces * views * size**2 / (640 * 256**2) < 1.3


def test_the_costs_of_a_job_that_can_be_computed_by_hand() -> None:
    wanted = Job(
        photos=1000,
        views=10,
        cores=10,
        shard_photos=10,
        busy=0.5,
        lost=0.0,
        bad_photos=0.1,
        transient=0.0,
        retries=3,
    )
    unit = Units(
        photo=1.0,
        identity=0.0,
        view=0.1,
        start=0.0,
        bytes=1e5,
        shard_put=2.0,
        photo_get=2.0,
        memory=700.0,
    )
    found = costs(wanted, unit, Prices(core_hour=0.36, put=5.0, get=1.0, month=0.5))
    assert found["views"] == 9000
    assert found["shards"] == 100
    assert found["core hours"] == pytest.approx((1000 + 900) / 0.5 / 3600)
    assert found["wall hours"] == pytest.approx(found["core hours"] / 10)
    assert (found["PUT"], found["GET"], found["LIST"]) == (2 * 100 + 1 + 2, 2000, 2 + 1 + 1 + 1)
    assert found["compute $"] == pytest.approx(3800 / 3600 * 0.36)
    assert found["requests $"] == pytest.approx(208 / 1000 * 5 + 2)
    assert found["storage $ a month"] == pytest.approx(9000 * 1e5 / 1e9 * 0.5)
    assert found["chance that a try fails"] == found["chance that the job stops for a shard"] == 0
    fragile = costs(replace(wanted, lost=36.0, transient=0.01), unit, Prices(1, 1, 1, 1))
    assert fragile["lost processes"] == pytest.approx(36 * 3800 / 3600)
    assert fragile["chance that a try fails"] == pytest.approx(1 - 0.99**22.03 * math.exp(-0.19))
