"""``dff train`` takes the face model from the dataset, or from ``--model``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dff.commands.app import app
from dff.face.io.assets import SHIPPED, load_model, read_arrays
from dff.infra import weights
from dff.infra.dataset import MANIFEST, Dataset, open_dataset
from tests.trainer.conftest import make_row, write_dataset

NAME = "other-head"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the open head under another name."""
    folder = tmp_path_factory.mktemp("models")
    arrays = dict(read_arrays(SHIPPED["open-head"]))
    np.savez(folder / f"{NAME}.npz", **{**arrays, "name": np.array(NAME)})
    (folder / NAME).symlink_to(folder / f"{NAME}.npz")  # where DFF_MODELS is searched for the name
    return folder


@pytest.fixture(scope="module")
def dataset(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Views of that model, as its manifest says."""
    model = load_model(str(models / f"{NAME}.npz"))
    assert model.name == NAME
    rng = np.random.default_rng(0)
    rows = [make_row(model, f"id{i:03d}", view, rng=rng) for i in range(16) for view in range(4)]
    folder = tmp_path_factory.mktemp("data")
    manifest = write_dataset(folder, rows).manifest
    counted = replace(manifest, counts={"model": {NAME: len(rows)}})
    (folder / MANIFEST).write_bytes(counted.to_json())
    return open_dataset(str(folder))


@pytest.mark.parametrize("given", [True, False])
def test_a_dataset_of_another_model_is_trained_on(
    dataset: Dataset, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    out = tmp_path / "w.safetensors"
    arguments = ["train", dataset.storage.uri, "--out", str(out), "--workers", "0"]
    if given:
        arguments += ["--model", str(models / f"{NAME}.npz")]
    else:
        monkeypatch.setenv("DFF_MODELS", str(models))
    result = CliRunner().invoke(app, [*arguments, "--steps", "1", "--batch", "4"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert weights.load(out).card["model"] == NAME


def test_a_model_that_the_dataset_does_not_show_is_refused(
    dataset: Dataset, tmp_path: Path
) -> None:
    arguments = ["train", dataset.storage.uri, "--out", str(tmp_path / "w"), "--workers", "0"]
    result = CliRunner().invoke(app, [*arguments, "--model", "open-head", "--steps", "1"])
    assert f"shows the face model {NAME!r}, not 'open-head'" in str(result.exception)


def test_a_model_that_evaluation_would_not_find_is_refused_before_training(
    dataset: Dataset, models: Path, tmp_path: Path
) -> None:
    arguments = ["train", dataset.storage.uri, "--out", str(tmp_path / "w"), "--workers", "0"]
    arguments += ["--model", str(models / f"{NAME}.npz"), "--evaluate-on", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--steps", "1"])
    assert f"{NAME} is neither a model's name" in str(result.exception)
    assert not (tmp_path / "w").exists()
