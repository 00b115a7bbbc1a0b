"""Experiment tracking with MLflow: runs, metrics, images, and weights as model versions.

A model version is a Python function of MLflow: a weights file, and the module that loads it
(``LOADER``); nothing is pickled. Only explicit run ids are used, never MLflow's "active run", so
another process can continue a run.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from dff.face.arrays import Bytes
from dff.face.errors import BadPlace, BadWeights, StorageError, UnknownWeights
from dff.face.extras import require_extra
from dff.face.private_folder import set_missing_home
from dff.infra.mlflow.signature import describe_signature
from dff.infra.redaction import hide_secrets

with require_extra("train"):
    set_missing_home()  # mlflow asks for it when it is imported
    import mlflow
    import mlflow.artifacts
    import mlflow.pyfunc
    from mlflow import MlflowClient
    from mlflow.entities import (
        Dataset,
        DatasetInput,
        InputTag,
        Metric,
        Param,
        Run as MlflowRun,
        RunStatus,
    )
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
    from requests.exceptions import RequestException

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
"""Prefix of the tags that store the values with which a run was continued."""
SQLITE = "sqlite:///"
LOADER = "dff.aligner.mlflow_model"
"""The module by which MLflow loads a registered version."""
EVALUATION = "evaluation."
"""Prefix of the tags of a model version that store its errors by benchmark."""
DISTRIBUTION = "deep-face-feature"
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


def default_uri() -> str:
    """The tracking URI of every command that is given none.

    It is what MLflow was told, as by the environment variable ``MLFLOW_TRACKING_URI``, else an
    SQLite file in the folder ``runs`` of the working directory, which is not made.
    """
    if mlflow.is_tracking_uri_set():
        return str(mlflow.get_tracking_uri())
    return f"{SQLITE}{Path('runs').absolute() / 'mlflow.db'}"


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

    def use_dataset(self, source: str, *, digest: str) -> None:
        """Note a dataset that the run trains on, for MLflow's lineage.

        ``digest``: of its content; MLflow keeps 36 characters.
        """
        kind = "s3" if source.startswith("s3://") else "local"
        dataset = Dataset(
            name=source.rstrip("/").rpartition("/")[2][:500],
            digest=digest[:36],
            source_type=kind,
            source=json.dumps({"uri": hide_secrets(source)}),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(self.id, [DatasetInput(dataset, tags)])

    def register(self, weights: Path, *, name: str, alias: str, tags: Mapping[str, str]) -> int:
        """Store a weights file with the run, as a new version of model ``name`` with an ``alias``.

        ``mlflow models serve`` and ``mlflow.pyfunc.load_model(...).predict(image)`` work with the
        version. MLflow reserves the alias "latest" (MlflowException).
        """
        client = self._client
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            save_pyfunc(model, weights)
            client.log_artifacts(self.id, str(model), "model")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        source = f"{client.get_run(self.id).info.artifact_uri}/model"
        version = client.create_model_version(name, source, run_id=self.id, tags=dict(tags))
        client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)

    def finish(self, *, failed: bool = False) -> None:
        """Close the run."""
        self._client.set_terminated(
            self.id, RunStatus.to_string(RunStatus.FAILED if failed else RunStatus.FINISHED)
        )


def save_pyfunc(folder: Path, weights: Path) -> None:
    """Write a model of MLflow to a new folder: a copy of the weights file, and how it is used."""
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=LOADER,
        data_path=str(weights),
        signature=describe_signature(),
        input_example=np.full((8, 8, 3), 128, np.uint8),
        pip_requirements=[DISTRIBUTION],
    )


def describe_code() -> dict[str, str]:
    """Tags that say which code runs, and who runs it.

    The program and its command, the version, and in a repository of it the commit.
    """
    here = Path(__file__).parent
    program = Path(sys.argv[0])
    command = ["dff", *sys.argv[1:2]] if program.stem in ("dff", "__main__") else [program.name]
    tags = {
        "dff.version": installed_version(DISTRIBUTION),
        "mlflow.source.name": " ".join(command),
        "mlflow.source.type": "LOCAL",
    }
    with suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not of the user's own repository
        tags["mlflow.source.git.commit"] = git("rev-parse", "HEAD")
        if git("status", "--porcelain", "--untracked-files=no"):
            tags["dff.changed"] = "true"
    except (OSError, subprocess.SubprocessError):
        pass
    return tags


def make_metrics(step: int, values: Mapping[str, float]) -> list[Metric]:
    """Figures at a step, with the time of now."""
    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, step) for name, value in values.items()]


def check_server(tracking_uri: str) -> None:
    """Raises StorageError when there is no MLflow at ``tracking_uri``; asks once or twice only.

    It is BadPlace for what is no address.
    """
    if not urlsplit(tracking_uri).scheme and tracking_uri != "databricks":
        raise BadPlace(
            "the address of an MLflow server looks like http://host:5000 or sqlite:///mlflow.db, "
            f"not {tracking_uri!r}"
        )
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
    begun: float | None = None,
) -> Run:
    """Begin a run of an experiment; with ``resume`` continue the newest one of that name.

    ``begun``: seconds since 1970 at which its work began, by default now.
    ``artifacts``: folder for the experiment's files when it is new; without it the server decides,
    and files of a local SQLite database lie beside it. Raises StorageError when there is no MLflow
    at ``tracking_uri``, ValueError when a continued run has other values of the same ``params``,
    except of those in ``may_change``: these are tags ``resumed.<name>``, since MLflow's parameters
    are written once. Passwords in values are hidden.
    """
    _quieten()
    try:
        if tracking_uri.startswith(SQLITE):
            folder = Path(tracking_uri.removeprefix(SQLITE)).parent
            folder.mkdir(parents=True, exist_ok=True)
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
        run = client.create_run(
            experiment_id,
            start_time=None if begun is None else int(begun * 1000),
            run_name=name,
            tags=describe_code(),
        )
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
    if is_unreachable(error):
        return StorageError(hide_secrets(f"no MLflow can be used at {tracking_uri}: {SILENT}"))
    reason = str(error).partition("\n")[0]
    return StorageError(hide_secrets(f"no MLflow can be used at {tracking_uri}: {reason}"))


SILENT = "the server does not answer"


def is_unreachable(error: BaseException) -> bool:
    """Whether an error of MLflow comes of a server that does not answer, or with failures only."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, RequestException):
            return True
        found = found.__cause__ or found.__context__
    return False


MODELS = "models:/"
"""Prefix of the address of a registered model: ``models:/name@alias`` or
``models:/name/version``.
"""


def registered_weights(address: str, *, tracking_uri: str | None = None) -> Path:
    """The weights file of a registered model, fetched when it lies elsewhere.

    ``tracking_uri``: MLflow's, by default ``default_uri``. Raises BadWeights when there is no such
    model, version or alias, or when it holds no weights file.
    """
    _quieten()
    split_address(address)
    uri = tracking_uri or default_uri()
    check_there(uri, address)
    try:
        with asked_hastily():
            found = _find_version(MlflowClient(uri), address)
            folder = Path(
                mlflow.artifacts.download_artifacts(artifact_uri=found.source, tracking_uri=uri)
            )
    except BadWeights:
        raise
    except Exception as error:  # MLflow lets its database's and its server's own errors through
        raise _refuse_version(address, uri, error) from error
    files = sorted(folder.rglob("*.safetensors"))
    if len(files) != 1:
        raise BadWeights(f"{address} holds {len(files)} weights files, it should hold one")
    return files[0]


def check_there(uri: str, wanted: str) -> None:
    """Raise BadWeights where ``uri`` is a missing SQLite file, in which ``wanted`` is looked for.

    MLflow would make an empty one, in whatever folder this is.
    """
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        raise BadWeights(
            f"{wanted}: there is no MLflow at {hide_secrets(uri)}; dff train makes runs/mlflow.db "
            "in the folder where it runs; say in MLFLOW_TRACKING_URI where another one is"
        )


def find_registered_version(address: str, *, tracking_uri: str | None = None) -> str:
    """The version that ``models:/NAME@ALIAS`` names; ``tracking_uri`` as of ``registered_weights``.

    Raises BadWeights.
    """
    _quieten()
    split_address(address)
    uri = tracking_uri or default_uri()
    check_there(uri, address)
    try:
        with asked_hastily():
            return str(_find_version(MlflowClient(uri), address).version)
    except Exception as error:
        raise _refuse_version(address, uri, error) from error


def _refuse_version(address: str, uri: str, error: Exception) -> BadWeights:
    if is_unreachable(error):
        return BadWeights(
            hide_secrets(f"{address} can't be fetched from MLflow at {uri}: {SILENT}")
        )
    reason = str(error).partition("\n")[0]
    return BadWeights(hide_secrets(f"{address} is no registered model of {uri}: {reason}"))


def _find_version(client: MlflowClient, address: str) -> ModelVersion:
    """The model version of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``. Raises BadWeights
    for an address of another form, and MlflowException.
    """
    name, number = split_address(address)
    named = client.get_model_version_by_alias if "@" in address else client.get_model_version
    return named(name, number)


def split_address(address: str) -> tuple[str, str]:
    """(name, alias or version) of a registered model's address. Raises BadWeights."""
    name, _, number = address.removeprefix(MODELS).rpartition("@" if "@" in address else "/")
    if not name or not number:
        raise UnknownWeights(
            f"{address} names no registered model: say {MODELS}NAME@ALIAS or {MODELS}NAME/VERSION"
        )
    return name, number


def note_evaluation(address: str, protocol: str, result: str, *, tracking_uri: str) -> None:
    """Keep an error that was measured with a registered version, as a tag of the version.

    ``result`` is text for people, such as "nme_box 3.45". Raises BadWeights, MlflowException.
    """
    client = MlflowClient(tracking_uri)
    found = _find_version(client, address)
    tag = EVALUATION + protocol.partition(" ")[0].rstrip(",:")
    client.set_model_version_tag(found.name, str(found.version), tag, result)


@dataclass(frozen=True)
class Promotion:
    """A version that has taken over an alias."""

    version: int
    evaluations: dict[str, str]  # by benchmark
    before: int | None  # version that had the alias
    evaluations_before: dict[str, str]


def promote(
    model: str,
    source: str,
    target: str,
    *,
    tracking_uri: str | None = None,
    unevaluated: bool = False,
) -> Promotion:
    """Give the version with the alias ``source`` the alias ``target``, too.

    ``tracking_uri``: by default ``default_uri``. Raises BadWeights when there is no such version,
    or when it was never evaluated, unless ``unevaluated``, and StorageError when there is no MLflow
    at ``tracking_uri``.
    """
    uri = tracking_uri or default_uri()
    check_there(uri, f"{MODELS}{model}@{source}")
    check_server(uri)
    client = MlflowClient(uri)
    try:
        found = client.get_model_version_by_alias(model, source)
    except MlflowException as error:
        reason = str(error).partition("\n")[0]
        raise BadWeights(f"no version of {model} has the alias {source!r}: {reason}") from error
    try:
        old = client.get_model_version_by_alias(model, target)
    except MlflowException:
        old = None
    evaluations = _read_evaluations(found)
    if not evaluations and not unevaluated:
        raise BadWeights(
            f"version {found.version} of {model} was never evaluated: evaluate it first (dff "
            f"evaluate ... --weights {MODELS}{model}@{source} --tracking URI), or say --unevaluated"
        )
    client.set_registered_model_alias(model, target, str(found.version))
    return Promotion(
        int(found.version),
        evaluations,
        int(old.version) if old else None,
        _read_evaluations(old) if old else {},
    )


def _read_evaluations(found: ModelVersion) -> dict[str, str]:
    return {
        key.removeprefix(EVALUATION): str(value)
        for key, value in sorted(found.tags.items())
        if key.startswith(EVALUATION)
    }


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
