from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dff.face.errors import BadDataset
from dff.infra.datasets.dataset import Manifest, Shards, open_dataset, parse_manifest, spread_views
from dff.infra.storage import Storage, open_storage
from dff.pipeline.job import run as job
from tests.pipeline.job.toy_work import toy_plan, toy_work


@dataclass(frozen=True)
class Finished:
    storage: Storage
    manifest: Manifest


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    """A dataset of twelve faces in four shards, free to be damaged."""
    storage = open_storage(str(tmp_path / "out"))
    return Finished(storage, job.run(toy_plan(), storage, toy_work(tmp_path).build()))


def test_a_stored_manifest_is_the_manifest(finished: Finished) -> None:
    assert parse_manifest(finished.manifest.to_json(), "MANIFEST.json") == finished.manifest
    assert open_dataset(finished.storage.uri).manifest == finished.manifest


def test_what_is_not_there_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=r"no MANIFEST.json"):
        open_dataset(str(tmp_path))
    with pytest.raises(BadDataset, match="there is no such folder"):
        open_dataset(str(tmp_path / "nothing"))


def test_altered_and_missing_shards_are_all_named(finished: Finished) -> None:
    dataset = open_dataset(finished.storage.uri)
    data = bytearray(finished.storage.read(finished.manifest.shards[1].key))
    data[len(data) // 2] ^= 1
    finished.storage.write(finished.manifest.shards[1].key, bytes(data))
    finished.storage.delete(finished.manifest.shards[3].key)
    with pytest.raises(
        BadDataset,
        match=r"2 of 4 shards are bad.*part-00001-of-00004.* altered.*no .*part-00003-of-00004",
    ):
        dataset.verify()
    with pytest.raises(BadDataset, match=r"part-00001-of-00004.parquet was altered"):
        dataset.read_shard(1)
    assert len(dataset.read_shard(0)) == 9


def test_a_shard_put_in_the_place_of_another_is_found(finished: Finished) -> None:
    """Even when someone writes a manifest to match."""
    manifest = finished.manifest
    first, second, *_ = manifest.shards
    finished.storage.write(second.key, finished.storage.read(first.key))
    columns = manifest.shards.columns()
    columns["sha256"][1] = first.sha256
    forged = Shards.of(columns["rows"], columns["bytes"], columns["sha256"])
    finished.storage.write("MANIFEST.json", replace(manifest, shards=forged).to_json())
    with pytest.raises(BadDataset, match=r"identity 'afw/ünï 0_1' is also in another shard"):
        open_dataset(finished.storage.uri).verify()
    finished.storage.write("MANIFEST.json", replace(manifest, plan="0" * 64).to_json())
    with pytest.raises(BadDataset, match=r"4 of 4 shards are bad.*belongs to another plan"):
        open_dataset(finished.storage.uri).verify()


def test_an_altered_manifest_is_refused(finished: Finished) -> None:
    manifest = json.loads(finished.manifest.to_json())
    manifest["shards"]["rows"][0] = 10
    finished.storage.write("MANIFEST.json", json.dumps(manifest).encode())
    with pytest.raises(BadDataset, match=r"MANIFEST.json was altered"):
        open_dataset(finished.storage.uri)
    finished.storage.write("MANIFEST.json", json.dumps({**manifest, "schema_version": 1}).encode())
    with pytest.raises(
        BadDataset, match=r"MANIFEST.json has schema version 1, this program reads 2"
    ):
        open_dataset(finished.storage.uri)
    finished.storage.write("MANIFEST.json", b"not json")
    with pytest.raises(BadDataset, match=r"MANIFEST.json is not a manifest"):
        open_dataset(finished.storage.uri)


def test_a_few_views_show_as_many_identities_as_there_are(finished: Finished) -> None:
    dataset = open_dataset(finished.storage.uri)
    rows = [row for index in range(len(dataset.shards)) for row in dataset.read_shard(index)]
    people = {row.identity_id for row in rows}
    one_of_each = spread_views(dataset, len(people))
    assert {row.identity_id for row in one_of_each} == people
    assert len(one_of_each) == len(people) < len(rows)
    everything = spread_views(dataset, 10 * len(rows))
    assert [row.sample_id for row in everything] == [row.sample_id for row in rows]


def test_views_are_chosen_by_split_and_by_what_they_show(finished: Finished) -> None:
    dataset = open_dataset(finished.storage.uri)
    rows = [row for index in range(len(dataset.shards)) for row in dataset.read_shard(index)]
    fewest = sorted(int(row.visible_3d.sum()) for row in rows)[len(rows) // 2]
    for split in ("train", "dev"):
        found = spread_views(dataset, len(rows), split=split, fewest_visible=fewest)
        wanted = [r for r in rows if r.split == split and r.visible_3d.sum() >= fewest]
        assert [row.sample_id for row in found] == [row.sample_id for row in wanted]
