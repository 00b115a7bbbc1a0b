"""Labelled photos get a card and Croissant metadata on demand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dff.infra.cards import CARD, CROISSANT
from dff.infra.photos.label_card import LabelledPhotos, write_label_cards
from dff.infra.storage import open_storage
from dff.pipeline.recovery.photos import find_photos

WEIGHTS = {"dataset": "f" * 64, "data_licences": ["CC0-1.0", "MIT"]}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos, of which one has landmarks."""
    (tmp_path / "more").mkdir()
    for name in ("a.png", "more/b.jpg"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "a.pts").write_text("")
    return tmp_path


def test_the_cards_describe_the_files_that_are_there(photos: Path) -> None:
    storage = open_storage(str(photos))
    keys = [ref.image_key for ref in find_photos(storage).photos]
    write_label_cards(storage, LabelledPhotos(keys, 1, 0.8, WEIGHTS))
    text = (photos / CARD).read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "other", "the terms of the photos are not known"
    assert head["size_categories"] == ["n<1K"]
    for part in ("1 of 2 photos have landmarks", "--confidence 0.8", "f" * 64, "CC0-1.0 AND MIT"):
        assert part in text
    found = json.loads((photos / CROISSANT).read_text())
    assert found["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    matched = {
        files["name"]: {
            path.relative_to(photos).as_posix()
            for pattern in files["includes"]
            for path in photos.glob(pattern)
        }
        for files in found["distribution"]
    }
    assert matched == {"photos": {"a.png", "more/b.jpg"}, "landmarks": {"a.pts"}}


def test_a_card_that_is_there_stays_and_is_no_photo(photos: Path) -> None:
    storage = open_storage(str(photos))
    (photos / CARD).write_text("my own words")
    write_label_cards(storage, LabelledPhotos(["a.png"], 1, 0.8, WEIGHTS))
    assert (photos / CARD).read_text() == "my own words"
    assert (photos / CROISSANT).exists()
    listing = find_photos(storage)
    assert [ref.image_key for ref in listing.photos] == ["a.png", "more/b.jpg"]
    assert listing.passed_over == ()
