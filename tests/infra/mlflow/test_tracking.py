"""Runs in a real SQLite MLflow: continued by name, figures at their steps, weights behind an
alias.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.models import infer_signature
from typer.testing import CliRunner

from dff.aligner.load import load_aligner
from dff.aligner.service.weights_watch import find_version
from dff.commands.app import app
from dff.demo.photograph import write_photograph
from dff.face.errors import BadWeights, StorageError
from dff.infra.mlflow import tracking
from dff.infra.networks import weights
from dff.trainer.launch import choose_tracking


def test_a_run_keeps_figures_pictures_and_weights(mlflow_uri: str, tmp_path: Path) -> None:
    uri = mlflow_uri
    begin = {"experiment": "e", "name": "first", "artifacts": tmp_path / "files"}
    run = tracking.start(uri, params={"steps": 2, "net": {"dims": 32}}, **begin)  # type: ignore[arg-type]
    run.metrics(10, {"loss": 2.0, "wait": 0.5})
    run.finish(failed=True)
    assert tracking.start(uri, params={"steps": 3}, **begin) != run  # type: ignore[arg-type]
    begin["name"] = "second"
    run = tracking.start(uri, params={"steps": 2, "net": {"dims": 32}}, **begin)  # type: ignore[arg-type]
    run.metrics(10, {"loss": 2.0, "wait": 0.5})
    begin["resume"] = True
    again = tracking.start(uri, params={"steps": 2}, **begin)  # type: ignore[arg-type]
    assert again == run, "the same name goes on with the same run"
    run.metrics(20, {"loss": 1.0})
    run.picture("match.png", np.zeros((4, 6, 3), np.uint8))
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"first")
    assert run.register(weights, name="dff", alias="candidate", tags={"licence": "CC0-1.0"}) == 1
    weights.write_bytes(b"second")
    assert run.register(weights, name="dff", alias="candidate", tags={"licence": "CC0-1.0"}) == 2
    run.finish()

    client = MlflowClient(uri)
    kept = client.get_run(run.id)
    assert kept.info.status == "FINISHED"
    assert kept.data.params == {"steps": "2", "net.dims": "32"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.id, "loss")] == [
        (10, 2.0),
        (20, 1.0),
    ]
    assert [f.path for f in client.list_artifacts(run.id, "pictures")] == ["pictures/match.png"]
    version = client.get_model_version_by_alias("dff", "candidate")
    assert (version.version, version.run_id, version.tags) == (2, run.id, {"licence": "CC0-1.0"})
    stored = Path(str(version.source).removeprefix("file://")) / "data" / "w.safetensors"
    assert stored.read_bytes() == b"second"
    with pytest.raises(ValueError, match=r"other values \(steps 2 -> 3\)"):
        tracking.start(uri, params={"steps": 3}, **begin)  # type: ignore[arg-type]
    longer = tracking.start(uri, params={"steps": 3}, may_change=["steps"], **begin)  # type: ignore[arg-type]
    assert longer == run
    kept = client.get_run(run.id)
    assert kept.data.params["steps"] == "2"
    assert kept.data.tags["resumed.steps"] == "3"


def test_a_run_keeps_more_parameters_than_one_call_takes(mlflow_uri: str) -> None:
    uri = mlflow_uri
    params = {f"p{i}": i for i in range(2 * tracking.PARAM_BATCH + 1)}
    run = tracking.start(uri, experiment="e", name="many", params=params)
    kept = MlflowClient(uri).get_run(run.id).data.params
    assert kept == {name: str(value) for name, value in params.items()}


def test_registered_weights_are_found_by_alias_and_by_version(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = mlflow_uri
    run = tracking.start(uri, experiment="e", name="first", params={}, artifacts=tmp_path / "files")
    shipped = weights.SHIPPED[weights.DEFAULT]
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"not weights")
    run.register(other, name="dff", alias="candidate", tags={})
    run.finish()
    second = tracking.start(
        uri, experiment="e", name="second", params={}, artifacts=tmp_path / "files"
    )
    second.register(shipped, name="dff", alias="candidate", tags={})
    second.finish()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking.registered_weights("models:/dff/1").read_bytes() == b"not weights"
    loaded = weights.load("models:/dff@candidate")
    assert loaded.card == weights.load(weights.DEFAULT).card
    with pytest.raises(BadWeights, match="models:/dff@champion is no registered model"):
        weights.load("models:/dff@champion")
    with pytest.raises(BadWeights, match="cannot be read as a weights file"):
        weights.load("models:/dff/1")


def test_a_missing_mlflow_is_said_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    nowhere = f"sqlite:///{tmp_path}/mlflow.db"
    for uri, place in ((nowhere, nowhere), (None, f"sqlite:///{tmp_path}/runs/mlflow.db")):
        for ask in (
            lambda uri: tracking.registered_weights("models:/dff@candidate", tracking_uri=uri),
            lambda uri: tracking.find_registered_version("models:/dff@candidate", tracking_uri=uri),
            lambda uri: tracking.promote("dff", "candidate", "champion", tracking_uri=uri),
        ):
            with pytest.raises(BadWeights) as told:
                ask(uri)
            said = str(told.value)
            assert said.startswith(f"models:/dff@candidate: there is no MLflow at {place}; ")
            assert "MLFLOW_TRACKING_URI" in said
    assert not list(tmp_path.iterdir())
    for address in ("models:/dff", "models:/", "models:/dff@", "models:/@candidate"):
        with pytest.raises(BadWeights, match="NAME@ALIAS"):
            tracking.registered_weights(address, tracking_uri=nowhere)
    (tmp_path / "mlflow.db").write_bytes(
        b"no database at all, but something of another program" * 20
    )
    with pytest.raises(BadWeights, match="is no registered model") as told:
        tracking.registered_weights("models:/dff@candidate", tracking_uri=nowhere)
    assert "\n" not in str(told.value)


def test_every_command_finds_what_a_training_wrote(
    mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking.local_uri(tmp_path / "runs")
    shutil.copy(mlflow_database, tmp_path / "runs" / "mlflow.db")
    assert tracking.default_uri() == uri
    assert choose_tracking("s3://bucket/runs") == uri
    run = tracking.start(uri, experiment="e", name="first", params={})
    run.register(weights.SHIPPED[weights.DEFAULT], name="dff", alias="candidate", tags={})
    run.finish()
    assert weights.load("models:/dff@candidate").card == weights.load(weights.DEFAULT).card
    assert find_version("models:/dff@candidate") == "1"
    words = ["models", "promote", "candidate", "champion", "--model", "dff", "--unevaluated"]
    told = CliRunner().invoke(app, words)
    assert told.stdout.startswith("dff version 1 is champion"), told.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking.default_uri() == "http://mlflow:5000"


def test_a_server_that_does_not_answer_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "HASTY", {tracking.RETRIES: "0", tracking.TIMEOUT: "5"})
    uri = "http://user:secret@127.0.0.1:1"
    silent = r"MLflow (at|can be used at) http://\*\*\*@127.0.0.1:1: the server does not answer$"
    for ask in (tracking.registered_weights, tracking.find_registered_version):
        with pytest.raises(BadWeights, match=silent):
            ask("models:/dff@champion", tracking_uri=uri)
    with pytest.raises(StorageError, match=silent):
        tracking.check_server(uri)


def test_a_place_without_mlflow_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for uri in ("nonsense://here", f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}"):
        with pytest.raises(StorageError, match=f"no MLflow can be used at {uri}"):
            tracking.start(uri, experiment="e", name="n", params={})


@pytest.mark.parametrize("name", ["it's", 'said "so"', """both ' and \\" of them"""])
def test_a_name_may_hold_quotes(mlflow_database: Path, tmp_path: Path, name: str) -> None:
    uri = tracking.local_uri(tmp_path / "anna's runs")
    shutil.copy(mlflow_database, tmp_path / "anna's runs" / "mlflow.db")
    other = tracking.start(uri, experiment="e", name="other", params={})
    run = tracking.start(uri, experiment="e", name=name, params={})
    assert run != other
    assert tracking.start(uri, experiment="e", name=name, params={}, resume=True) == run


def test_a_password_in_an_address_is_never_shown() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        dead = f"http://user:hunter2@127.0.0.1:{sock.getsockname()[1]}"
    acts: list[Callable[[], object]] = [
        lambda: tracking.start(dead, experiment="e", name="n", params={}),
        lambda: tracking.check_server(dead),
        lambda: tracking.registered_weights("models:/dff@candidate", tracking_uri=dead),
    ]
    for act in acts:
        with pytest.raises((StorageError, BadWeights), match=r"127\.0\.0\.1") as told:
            act()
        assert "hunter2" not in str(told.value)
        assert "***@127.0.0.1" in str(told.value)
    assert not tracking.HASTY.keys() & os.environ.keys()


def test_a_registered_version_is_a_model_that_mlflow_loads(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dff", "train", "s3://faces/views"])
    run = tracking.start(mlflow_uri, experiment="e", name="n", params={}, artifacts=tmp_path / "a")
    shipped = weights.SHIPPED[weights.DEFAULT]
    run.register(shipped, name="dff", alias="candidate", tags={})
    run.use_dataset("s3://faces/views/", digest="0" * 64)
    client = MlflowClient(mlflow_uri)
    (used,) = client.get_run(run.id).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.source_type) == ("views", "s3")
    assert json.loads(used.dataset.source) == {"uri": "s3://faces/views/"}
    tags = client.get_run(run.id).data.tags
    assert tags["dff.version"]
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["mlflow.source.name"] == "dff train"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    place = tracking.registered_weights("models:/dff@candidate").parent.parent
    stored = [path.name for path in place.rglob("*") if path.is_file()]
    assert not [name for name in stored if name.endswith((".pkl", ".pickle", ".py"))]
    model = mlflow.pyfunc.load_model(str(place))
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, -1, 3)
    photo = write_photograph(tmp_path / "photos")
    (face,) = model.predict(photo)
    (alone,) = load_aligner().align(photo)
    assert face == alone.to_json()
    assert model.metadata.signature.outputs == infer_signature(None, [face]).outputs


def test_only_an_evaluated_version_is_promoted(mlflow_uri: str, tmp_path: Path) -> None:
    run = tracking.start(mlflow_uri, experiment="e", name="n", params={}, artifacts=tmp_path / "a")
    shipped = weights.SHIPPED[weights.DEFAULT]
    with pytest.raises(BadWeights, match="no version of dff has the alias 'candidate'"):
        tracking.promote("dff", "candidate", "champion", tracking_uri=mlflow_uri)
    for result in ("nme_box 3.5", "nme_box 3.4"):
        run.register(shipped, name="dff", alias="candidate", tags={"licence": "CC0-1.0"})
        with pytest.raises(BadWeights, match="was never evaluated"):
            tracking.promote("dff", "candidate", "champion", tracking_uri=mlflow_uri)
        tracking.note_evaluation(
            "models:/dff@candidate", "AFLW2000-3D, 2000 photos", result, tracking_uri=mlflow_uri
        )
        done = tracking.promote("dff", "candidate", "champion", tracking_uri=mlflow_uri)
    assert (done.version, done.before) == (2, 1)
    assert done.evaluations == {"AFLW2000-3D": "nme_box 3.4"}
    assert done.evaluations_before == {"AFLW2000-3D": "nme_box 3.5"}
    version = MlflowClient(mlflow_uri).get_model_version_by_alias("dff", "champion")
    assert int(version.version) == 2
