"""Datasets are published as people expect: a Hugging Face card and Croissant metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from dff.infra.cards import CARD, CROISSANT
from dff.infra.datasets.dataset import Manifest, Shards, open_dataset
from dff.infra.datasets.dataset_card import COLUMNS, describe_croissant, format_card
from dff.infra.datasets.shards import SCHEMA
from dff.pipeline.synthesis import synthesize


def manifest(licences: dict[str, int], rows: int = 12) -> Manifest:
    shards = Shards.of([rows], [1000], ["0" * 64])
    counts = {"licence": licences, "split": {"train": rows}}
    return Manifest(2, "f" * 64, 3, 1, {"BadPhoto": 1}, counts, {"numpy": "2.3"}, shards)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    synthesize(None, str(folder), identities=2, views=1, size=64)
    return folder


def test_every_column_is_described() -> None:
    assert list(COLUMNS) == SCHEMA.names


def head_of(text: str) -> dict[str, Any]:
    _, head, body = text.split("---\n", 2)
    assert body.strip().startswith("# ")
    return dict(yaml.safe_load(head))


@pytest.mark.parametrize(
    ("licences", "told", "name"),
    [
        ({"CC0-1.0 AND MIT": 8, "MIT": 4}, ["cc0-1.0", "mit"], None),
        ({"LicenseRef-photo AND MIT": 12}, "other", "LicenseRef-photo AND MIT"),
    ],
)
def test_the_card_says_terms_and_size(
    licences: dict[str, int], told: str | list[str], name: str | None
) -> None:
    text = format_card(manifest(licences), {"views": 20})
    head = head_of(text)
    assert head["license"] == told
    assert head.get("license_name") == name
    assert head["size_categories"] == ["n<1K"]
    for part in ("12 views of 2 people", "failed: BadPhoto | 1", "* views: 20", "f" * 64):
        assert part in text


def test_a_synthesis_writes_both_and_again_the_same(made: Path, tmp_path: Path) -> None:
    synthesize(None, str(tmp_path), identities=2, views=1, size=64)
    for key in (CARD, CROISSANT):
        assert (made / key).read_bytes() == (tmp_path / key).read_bytes()
    (made / CARD).write_text("edited by hand")
    synthesize(None, str(made), identities=2, views=1, size=64)
    assert (made / CARD).read_text() == "edited by hand"


def test_the_card_finds_the_views_for_hugging_face(made: Path, tmp_path: Path) -> None:
    head = head_of(format_card(open_dataset(str(made)).manifest, {}))
    (files,) = head["configs"][0]["data_files"]
    views = datasets.load_dataset(
        "parquet", data_files=str(made / files["path"]), split="train", cache_dir=str(tmp_path)
    )
    assert views[0]["image"].size == (64, 64)


def test_croissant_follows_its_rules(made: Path) -> None:
    """Of Croissant 1.1; mlcroissant, which has them all, wants two dozen packages."""
    found = json.loads((made / CROISSANT).read_text())
    assert found == describe_croissant(open_dataset(str(made)).manifest)
    assert found["@type"] == "sc:Dataset"
    assert found["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    assert {"name", "description", "license", "version"} <= found.keys()
    assert found["license"] == [
        f"https://spdx.org/licenses/{name}.html" for name in ("CC0-1.0", "MIT")
    ]
    (files,) = found["distribution"]
    assert files["@type"] == "cr:FileSet"
    paths = {str(path.relative_to(made)) for path in made.glob(files["includes"])}
    assert paths == {shard.key for shard in open_dataset(str(made)).shards}
    (records,) = found["recordSet"]
    fields = {field["name"]: field for field in records["field"]}
    assert list(fields) == SCHEMA.names
    assert records["key"]["@id"] in {field["@id"] for field in fields.values()}
    for name, field in fields.items():
        assert field["source"]["fileSet"]["@id"] == files["@id"]
        assert field["source"]["extract"] == {"column": name}
    assert fields["image"]["dataType"] == "sc:ImageObject"
    assert (fields["landmarks_2d"]["dataType"], fields["landmarks_2d"]["arrayShape"]) == (
        "sc:Float",
        "68,2",
    )
    assert fields["identity"]["arrayShape"] == "-1"
