"""``dff train`` takes the face model from the dataset, or from ``--model``."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dff.commands.app import app
from dff.commands.options import parse_bytes, split_share
from dff.face.io.assets import SHIPPED, load_model, read_arrays
from dff.infra.datasets.dataset import MANIFEST, Dataset, open_dataset
from dff.infra.networks import weights
from tests.trainer.conftest import make_row, write_dataset

NAME = "other-head"
SMALL = ("--batch", "4", "--loaders", "0", "--dimension", "8")


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
    result = CliRunner().invoke(app, [*arguments, "--steps", "1", *SMALL])
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


def test_datasets_are_mixed_and_filtered(dataset: Dataset, models: Path, tmp_path: Path) -> None:
    """Shares and filter are recorded in the weights' card."""
    copy = tmp_path / "copy"
    shutil.copytree(dataset.storage.uri, copy)
    out = tmp_path / "w.safetensors"
    arguments = ["train", f"{dataset.storage.uri}:0.7", f"{copy}:0.3", "--out", str(out)]
    arguments += ["--model", str(models / f"{NAME}.npz"), "--cache", str(tmp_path / "cache")]
    arguments += ["--cache-bytes", "50MB", "--workers", "0", "--steps", "2", *SMALL]
    arguments += ["--where", "abs(yaw) > 1 and view in (0, 1, 2, 3)"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    card = weights.load(out).card
    assert card["config"]["shares"] == [0.7, 0.3]
    assert card["config"]["where"].startswith("abs(yaw) > 1")
    assert card["dataset"] == " ".join([dataset.manifest.fingerprint] * 2)
    assert card["views"] < 2 * dataset.manifest.rows
    assert any((tmp_path / "cache").glob("*.views"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--where", "yawn > 3"], "there is no column 'yawn'"),
        (["--where", "yaw > 1000"], "no views to train on that 'yaw > 1000' leaves"),
        (["--cache-bytes", "much"], "is no size such as 20GB"),
        (["--cache-bytes", "20kB"], "can't hold two blocks of shards"),
        (["--block-views", "4"], "block_views must be at least a batch"),
        (["--tracking", "sqlite:///x.db"], "trains without Ray and MLflow"),
    ],
)
def test_a_bad_choice_of_data_is_refused(
    dataset: Dataset, models: Path, tmp_path: Path, changes: list[str], message: str
) -> None:
    arguments = ["train", dataset.storage.uri, "--out", str(tmp_path / "w"), "--workers", "0"]
    arguments += ["--model", str(models / f"{NAME}.npz"), "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(app, [*arguments, "--steps", "1", "--batch", "8", *changes])
    assert result.exit_code != 0
    assert message in f"{result.output} {result.exception}"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_too_few_views_are_refused_before_a_run_is_announced(
    dataset: Dataset,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: str,
) -> None:
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a training was started")

    monkeypatch.setattr("dff.trainer.launch.train_on_ray", start)
    monkeypatch.setattr("dff.files.training.train_here", start)
    arguments = ["train", dataset.storage.uri, "--out", str(tmp_path / "w"), "--workers", workers]
    arguments += ["--model", str(models / f"{NAME}.npz"), "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(app, [*arguments, "--batch", "4096"])
    assert "do not fill one batch of 4096" in str(result.exception)
    assert "--resume" not in result.output


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("data/:0.7", ("data/", 0.7)),
        ("s3://bucket/views:3", ("s3://bucket/views", 3.0)),
        ("s3://bucket/views", ("s3://bucket/views", 1.0)),
        ("data", ("data", 1.0)),
        ("a:b", ("a:b", 1.0)),
    ],
)
def test_a_share_follows_the_dataset(text: str, wanted: tuple[str, float]) -> None:
    assert split_share(text) == wanted


def test_sizes_are_read_as_people_write_them() -> None:
    sizes = {"20GB": 20e9, "500 MB": 5e8, "1.5tb": 1.5e12, "1000": 1000}
    assert {text: parse_bytes(text) for text in sizes} == sizes
