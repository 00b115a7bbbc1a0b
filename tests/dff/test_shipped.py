"""The weights that come with the program work on a real photograph, and say under which terms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data

import dff
from dff.face.errors import BadWeights
from dff.face.model.landmarks import INNER, nme_box
from dff.infra.cards import CARD, CROISSANT
from dff.infra.datasets.dataset import open_dataset
from dff.infra.datasets.dataset_card import describe_croissant, format_card
from dff.infra.networks import weights
from dff.infra.photos.landmark_files import parse_pts

TRUTH = Path(__file__).parents[2] / "dff/data/astronaut.pts"


def test_a_photograph_that_was_not_trained_on_is_aligned() -> None:
    image = np.asarray(skimage.data.astronaut(), dtype=np.uint8)
    truth = parse_pts(TRUTH.read_bytes())
    faces = [face for face in dff.load_aligner().align(image) if not face.failed]
    assert len(faces) == 1
    assert nme_box(faces[0].landmarks_2d[INNER], truth[INNER]) < 0.06
    assert abs(faces[0].pose.yaw) < 10
    assert faces[0].trace[-1].motion < 0.02


def test_a_box_without_a_face_is_answered_as_failed() -> None:
    image = np.ascontiguousarray(
        np.asarray(skimage.data.astronaut(), dtype=np.uint8)[:150, 330:480]
    )
    faces = dff.load_aligner().align(image, [dff.Box(30, 30, 120, 120)])
    assert [face.failed for face in faces] == [True]


def test_research_weights_are_in_the_repository_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "dff-research" not in weights.SHIPPED
    assert any("300W" in terms for terms in weights.load("dff-research").card["data_licences"])
    monkeypatch.setitem(weights.NAMED, "dff-research", Path("/nowhere/dff-research.safetensors"))
    with pytest.raises(BadWeights, match=r"research only .*weights/research/dff-research\.safeten"):
        weights.load("dff-research")


def test_the_card_names_free_terms_only() -> None:
    card = weights.load(weights.DEFAULT).card
    assert {name for terms in card["data_licences"] for name in terms.split(" AND ")} <= {
        "CC0-1.0",
        "MIT",
    }
    assert card["model_licence"] == "CC0-1.0 AND MIT"
    assert weights.SHIPPED[weights.DEFAULT].stat().st_size < 8_000_000


def test_the_sample_of_views_is_small_free_and_whole() -> None:
    folder = Path(__file__).parents[2] / "samples" / "views-200"
    sample = open_dataset(str(folder))
    sample.verify()
    assert sample.manifest.rows == 200
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8e6
    assert list(sample.manifest.counts["licence"]) == ["CC0-1.0 AND MIT"]
    assert set(sample.manifest.counts["split"]) == {"train", "dev"}
    assert json.loads((folder / CROISSANT).read_text()) == describe_croissant(sample.manifest)
    options = json.loads((folder / "plan.json").read_text())["options"]
    assert (folder / CARD).read_text() == format_card(sample.manifest, options)
