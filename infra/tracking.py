"""Experiment tracking with MLflow: runs, metrics, images, and weights as model versions.

Weights are files of a run that a model version points to: nothing is pickled. Only explicit run ids
are used, never MLflow's "active run", so another process can continue a run.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from dff.face.arrays import Bytes
from dff.face.errors import BadWeights, StorageError
from dff.face.extras import require_extra
from dff.face.private_folder import set_missing_home
from dff.infra.redaction import hide_secrets

with require_extra("train"):
    set_missing_home()  # mlflow asks for it when it is imported
    import mlflow
    import mlflow.artifacts
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunStatus
    from mlflow.entities import Run as MlflowRun
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

PARAM_BATCH = 100
"""Parameters that MLflow takes in one call."""
METRIC_BATCH = 1000
"""Metrics that MLflow takes in one call."""
PARAM_LENGTH = 500
"""Characters that every MLflow backend keeps of a parameter's value."""


RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
HASTY = {RETRIES: "2", TIMEOUT: "10"}
"""MLflow's own settings would wait ten minutes for a server that is silent."""
RESUMED = "resumed."
"""What the tags begin with that keep the values with which a run was continued."""
SQLITE = "sqlite:///"
REFUSALS = frozenset(
    {
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "PERMISSION_DENIED",
        "RESOURCE_DOES_NOT_EXIST",
    }
)
"""Codes of answers that another try would not change."""


def local_uri(folder: Path) -> str:
    """The tracking URI of an SQLite file in ``folder``, which is made: for one machine."""
    folder.mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{folder.absolute() / 'mlflow.db'}"


@dataclass(frozen=True)
class Run:
    """One run of an experiment: plain text, so that it can be passed to another process."""

    tracking_uri: str
    id: str

    @property
    def _client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record figures at a step; a step recorded again after a resume gets a second value."""
        self.log(make_metrics(step, values))

    def log(self, metrics: Collection[Metric]) -> None:
        """Record at most ``METRIC_BATCH`` metrics; one that was recorded already stays as it is."""
        self._client.log_batch(self.id, metrics=list(metrics))

    def picture(self, name: str, image: Bytes) -> None:
        """Keep (H, W, 3) uint8 RGB as ``pictures/<name>``, a PNG."""
        encoded = BytesIO()
        Image.fromarray(image).save(encoded, format="PNG")
        self.picture_file(name, encoded.getvalue())

    def picture_file(self, name: str, data: bytes) -> None:
        """Keep an encoded picture as ``pictures/<name>``."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            self._client.log_artifact(self.id, str(path), "pictures")

    def register(self, weights: Path, *, name: str, alias: str, tags: Mapping[str, str]) -> int:
        """Store a weights file with the run, as a new version of model ``name`` with an ``alias``.

        MLflow reserves the alias "latest" (MlflowException).
        """
        client = self._client
        client.log_artifact(self.id, str(weights), "weights")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        source = f"{client.get_run(self.id).info.artifact_uri}/weights"
        version = client.create_model_version(name, source, run_id=self.id, tags=dict(tags))
        client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)

    def finish(self, *, failed: bool = False) -> None:
        """Close the run."""
        self._client.set_terminated(
            self.id, RunStatus.to_string(RunStatus.FAILED if failed else RunStatus.FINISHED)
        )


def make_metrics(step: int, values: Mapping[str, float]) -> list[Metric]:
    """Figures at a step, with the time of now."""
    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, step) for name, value in values.items()]


def check_server(tracking_uri: str) -> None:
    """Raises StorageError when there is no MLflow at ``tracking_uri``; asks once or twice only."""
    _quieten()
    try:
        with asked_hastily():
            MlflowClient(tracking_uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow lets its database's and its server's own errors through
        raise _refuse(tracking_uri, error) from error


def start(
    tracking_uri: str,
    *,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    artifacts: Path | None = None,
    resume: bool = False,
    may_change: Collection[str] = (),
) -> Run:
    """Begin a run of an experiment; with ``resume`` continue the newest one of that name.

    ``artifacts``: folder for the experiment's files when it is new; without it the server decides,
    and files of a local SQLite database lie beside it. Raises StorageError when there is no MLflow
    at ``tracking_uri``, ValueError when a continued run has other values of the same ``params``,
    except of those in ``may_change``: these are tags ``resumed.<name>``, since MLflow's parameters
    are written once. Passwords in values are hidden.
    """
    _quieten()
    try:
        client = MlflowClient(tracking_uri)
        with asked_hastily():
            found = client.get_experiment_by_name(experiment)
    except Exception as error:  # MLflow lets its database's and its server's own errors through
        raise _refuse(tracking_uri, error) from error
    if artifacts is None and tracking_uri.startswith(SQLITE):
        artifacts = Path(tracking_uri.removeprefix(SQLITE)).parent / "artifacts"
    if found is None:
        location = artifacts.absolute().as_uri() if artifacts else None
        experiment_id = client.create_experiment(experiment, artifact_location=location)
    else:
        experiment_id = found.experiment_id
    flat = {key: hide_secrets(str(v))[:PARAM_LENGTH] for key, v in flattened(params).items()}
    run = _find_run(client, experiment_id, name) if resume else None
    if run is None:
        run = client.create_run(experiment_id, run_name=name)
        listed = [Param(key, value) for key, value in flat.items()]
        for first in range(0, len(listed), PARAM_BATCH):
            client.log_batch(run.info.run_id, params=listed[first : first + PARAM_BATCH])
        return Run(tracking_uri, run.info.run_id)
    kept = run.data.params
    changed = {key: value for key, value in flat.items() if kept.get(key, value) != value}
    if other := sorted(set(changed) - set(may_change)):
        changes = ", ".join(f"{key} {kept[key]} -> {changed[key]}" for key in other)
        raise ValueError(
            f"run {name!r} was begun with other values ({changes}): repeat them, or give this "
            "run its own name"
        )
    client.update_run(run.info.run_id, status=RunStatus.to_string(RunStatus.RUNNING))
    for key, value in changed.items():  # MLflow never changes a parameter
        client.set_tag(run.info.run_id, f"{RESUMED}{key}", value)
    return Run(tracking_uri, run.info.run_id)


def _find_run(client: MlflowClient, experiment_id: str, name: str) -> MlflowRun | None:
    """The newest run of that name. MLflow's filters know no escapes within quotes."""
    quote = "'" if "'" not in name else '"'
    if quote not in name:
        asked = f"attributes.run_name = {quote}{name}{quote}"
        return next(iter(client.search_runs([experiment_id], asked, max_results=1)), None)
    token = None
    while True:
        page = client.search_runs([experiment_id], page_token=token)
        for run in page:
            if run.info.run_name == name:
                return run
        if not (token := page.token):
            return None


def _refuse(tracking_uri: str, error: Exception) -> StorageError:
    reason = str(error).partition("\n")[0]
    return StorageError(hide_secrets(f"no MLflow can be used at {tracking_uri}: {reason}"))


MODELS = "models:/"
"""What the address of a registered model begins with: ``models:/name@alias`` or
``models:/name/version``.
"""


def registered_weights(address: str, *, tracking_uri: str | None = None) -> Path:
    """The weights file of a registered model, fetched when it lies elsewhere.

    ``tracking_uri``: MLflow's; by default what the environment variable MLFLOW_TRACKING_URI says.
    Raises BadWeights when there is no such model, version or alias, or when it holds no weights
    file.
    """
    _quieten()
    name, _, version = address.removeprefix(MODELS).rpartition("@" if "@" in address else "/")
    if not name or not version:
        raise BadWeights(
            f"{address} names no registered model: say {MODELS}NAME@ALIAS or {MODELS}NAME/VERSION"
        )
    uri = tracking_uri or mlflow.get_tracking_uri()
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        # MLflow would make an empty database there, in whatever folder this is
        raise BadWeights(
            f"{address}: there is no MLflow at {hide_secrets(uri)}; say where it is in "
            "MLFLOW_TRACKING_URI"
        )
    try:
        with asked_hastily():
            client = MlflowClient(tracking_uri)
            named = (
                client.get_model_version_by_alias if "@" in address else client.get_model_version
            )
            found = named(name, version)
            folder = Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=found.source, tracking_uri=tracking_uri
                )
            )
    except Exception as error:  # MLflow lets its database's and its server's own errors through
        reason = str(error).partition("\n")[0]
        raise BadWeights(
            hide_secrets(f"{address} is no registered model of {uri}: {reason}")
        ) from error
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise BadWeights(f"{address} holds {len(files)} weights files, it should hold one")
    return files[0]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"net": {"dims": 32}}`` as ``{"net.dims": 32}``."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flattened(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


class _Haste:
    """``HASTY`` in the environment, as far as the user has not set it, while any thread wants so.

    MLflow reads these variables at each request and takes no such arguments.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._set = threading.Lock(), 0, frozenset[str]()

    def enter(self) -> None:
        with self._lock:
            if self._users == 0:
                self._set = frozenset(HASTY.keys() - os.environ.keys())
                os.environ.update({name: HASTY[name] for name in self._set})
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for name in self._set:
                    os.environ.pop(name, None)


_HASTE = _Haste()


@contextmanager
def asked_hastily() -> Iterator[None]:
    """Ask MLflow two or three times within seconds, and not for minutes."""
    _HASTE.enter()
    try:
        yield
    finally:
        _HASTE.leave()


def is_refusal(error: Exception) -> bool:
    """Whether MLflow answered that it will never take this, as for a run that was deleted."""
    return isinstance(error, MlflowException) and error.error_code in REFUSALS


def _quieten() -> None:
    """Silence MLflow, its migrations and its retries: the training command reports by itself."""
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
