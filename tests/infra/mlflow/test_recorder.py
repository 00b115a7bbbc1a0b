"""Records reach MLflow in order, whatever happens to its server in the meantime."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.server.constants import (
    ARTIFACT_ROOT_ENV_VAR,
    ARTIFACTS_DESTINATION_ENV_VAR,
    BACKEND_STORE_URI_ENV_VAR,
    SERVE_ARTIFACTS_ENV_VAR,
)

from dff.face.arrays import Bytes
from dff.infra.mlflow import tracking
from dff.infra.mlflow.recorder import RecorderConfig, RunRecorder
from dff.infra.mlflow.tracking import METRIC_BATCH, Run

OUTAGE = float(os.environ.get("DFF_OUTAGE", "0"))  # seconds, of a server that is restarted
HURRIED = RecorderConfig(first_wait=0.01, longest_wait=0.05, last_wait=1.0)


@dataclass(frozen=True)
class Scripted(Run):
    """A run whose calls fail as told."""

    errors: list[Exception] = field(default_factory=list)
    calls: list[object] = field(default_factory=list)

    def _call(self, what: object) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.calls.append(what)

    def log(self, metrics: object) -> None:
        self._call([(m.key, m.step) for m in metrics])  # type: ignore[attr-defined]

    def picture(self, name: str, image: Bytes) -> None:
        self._call(name)


def test_records_arrive_in_order_after_failures(caplog: pytest.LogCaptureFixture) -> None:
    run = Scripted("http://u:hunter2@mlflow", "r", [ConnectionError("refused")] * 3)
    recorder = RunRecorder(run, config=HURRIED)
    for step in range(3):
        recorder.metrics(step, {"loss": 1.0})
    recorder.picture("match.png", np.zeros((2, 2, 3), np.uint8))
    recorder.metrics(3, {"loss": 0.5})
    assert recorder.close() == 0
    sent: list[object] = []
    for call in run.calls:
        sent += call if isinstance(call, list) else [call]
    assert sent == [("loss", 0), ("loss", 1), ("loss", 2), "match.png", ("loss", 3)]
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 2, "one line when MLflow goes, one when it comes back"
    assert "does not answer; training goes on" in said[0]
    assert "answers again" in said[1]
    assert not any("hunter2" in line for line in said)


def test_a_call_takes_no_more_than_mlflow_does() -> None:
    run = Scripted("x", "r", [ConnectionError("refused")])
    recorder = RunRecorder(run, config=HURRIED)
    figures = {f"f{i}": 0.0 for i in range(300)}
    for step in range(10):
        recorder.metrics(step, figures)
    assert recorder.close() == 0
    sizes = [len(call) for call in run.calls if isinstance(call, list)]
    assert sum(sizes) == 3000
    assert max(sizes) <= METRIC_BATCH


def test_what_waits_is_bounded_and_what_is_lost_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Scripted("x", "r", [ConnectionError("refused")] * 100_000)
    recorder = RunRecorder(run, config=RecorderConfig(5, 0.01, 0.05, last_wait=0.2))
    began = time.monotonic()
    for step in range(20):
        recorder.metrics(step, {"loss": 1.0})
    assert recorder.close() == 20
    assert time.monotonic() - began < 30.0, "the end of a run waits for MLflow, but not for ever"
    assert "20 records of this run did not reach MLflow" in caplog.text


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_refused_record_does_not_hold_up_the_others(
    mlflow_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    uri = mlflow_uri
    run = tracking.start(uri, experiment="e", name="n", params={})
    MlflowClient(uri).delete_run(run.id)
    recorder = RunRecorder(run, config=HURRIED)
    recorder.metrics(1, {"loss": 1.0})
    until(lambda: "refuses a record" in caplog.text)
    MlflowClient(uri).restore_run(run.id)
    recorder.metrics(2, {"loss": 0.5})
    assert recorder.close() == 1
    history = MlflowClient(uri).get_metric_history(run.id, "loss")
    assert [point.step for point in history] == [2]


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real server with its database in ``folder``, without the command that starts it, which
    imports as much.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--port", str(port), "mlflow.server.fastapi_app:app"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ
        | {
            BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{folder}/mlflow.db",
            ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            ARTIFACTS_DESTINATION_ENV_VAR: str(folder / "artifacts"),
            SERVE_ARTIFACTS_ENV_VAR: "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for other jobs
        },
    )
    try:
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200:
                    break
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_killed_and_restarted_server_has_every_record_once(
    mlflow_database: Path, tmp_path: Path
) -> None:
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path, port):
        run = tracking.start(uri, experiment="e", name="n", params={})
        recorder = RunRecorder(run, config=RecorderConfig(longest_wait=1.0))
        client = MlflowClient(uri)
        recorder.metrics(0, {"loss": 1.0})
        until(lambda: bool(client.get_metric_history(run.id, "loss")))
    began = time.monotonic()
    for step in range(1, 200):
        recorder.metrics(step, {"loss": 1.0 / step})
    recorder.picture("match.png", np.zeros((4, 4, 3), np.uint8))
    assert time.monotonic() - began < 20.0, "training does not wait"
    time.sleep(OUTAGE)
    with mlflow_server(tmp_path, port):
        assert recorder.close() == 0
        history = client.get_metric_history(run.id, "loss")
        assert sorted(point.step for point in history) == list(range(200))
        assert [f.path for f in client.list_artifacts(run.id, "pictures")] == ["pictures/match.png"]
