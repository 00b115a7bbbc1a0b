"""Training on a real local Ray: two workers do what one process does, and go on after one of them
was killed.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from mlflow import MlflowClient
from ray.train import PreemptionInfo, WorkerGroupError
from ray.util import placement_group, remove_placement_group
from tqdm import tqdm

import dff.trainer.worker
from dff.face.arrays import Bytes
from dff.face.descriptor import NetConfig
from dff.face.errors import BadDataset, ClusterError, Diverged, StorageError
from dff.face.model.morphable import MorphableModel
from dff.infra.clusters.capacity import WorkerShape
from dff.infra.clusters.cluster import connected
from dff.infra.datasets.dataset import Dataset
from dff.infra.mlflow import tracking
from dff.infra.networks import weights
from dff.infra.storage import open_storage
from dff.trainer import launch
from dff.trainer.config import TrainConfig, WorkerRange
from dff.trainer.destination import ALIAS, NAME
from dff.trainer.events import Drawn, Follower, Measured, Started
from dff.trainer.launch import LaunchResult, build_job, train_on_ray
from dff.trainer.meter import Figures
from dff.trainer.train import TrainingCallbacks, train
from dff.trainer.worker import PreemptionNotice
from tests.ray_forks.start import forked_from
from tests.s3_proxy import Proxy, every, relay_to
from tests.swift_server import BUCKET

OUTAGE = float(os.environ.get("DFF_OUTAGE", "1"))  # seconds
CONFIG = TrainConfig(
    steps=6,
    batch=16,
    views=4,
    pixels=64,
    size=64,
    anchors=120,
    warmup=2,
    loaders=0,
    log_every=1,
    eval_every=6,
    checkpoint_every=2,
    dev_pairs=4,
    learning_rate=1e-3,
    net=NetConfig(dims=8, widths=(8, 16), depths=(1, 1)),
)
ARGUMENTS: dict[str, Any] = {
    "config": CONFIG,
    "name": "run",
    "workers": 2,
    "cpus_per_worker": 1,
    "progress": True,
}
QUOTED = ARGUMENTS | {"name": "it's"}


@dataclass(frozen=True)
class Undisturbed:
    """A run of two workers that nothing happened to."""

    storage: Path
    out: Path
    launched: LaunchResult


@pytest.fixture(scope="module")
def local_ray(s3_credentials: None, ray_forks: Path) -> Iterator[None]:
    """One local Ray of three CPUs for all trainings, whose workers know the bucket's credentials.

    Starting one takes longer than a training.
    """
    with forked_from(ray_forks, "ray.train.torch"), connected(None, workers=3):
        yield


@pytest.fixture(scope="module")
def undisturbed(
    local_ray: None,
    dataset: Dataset,
    mlflow_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:
    storage = tmp_path_factory.mktemp("ray") / "anna's runs"
    storage.mkdir()
    shutil.copy(mlflow_database, storage)
    out = storage / "two.safetensors"
    launched = train_on_ray(dataset.storage.uri, out, storage=storage, **QUOTED)
    return Undisturbed(storage, out, launched)


def losses(storage: Path, run_id: str) -> list[tuple[int, float]]:
    """(step, loss) as MLflow has them, in the order of recording."""
    history = MlflowClient(tracking.local_uri(storage)).get_metric_history(run_id, "loss")
    return [
        (point.step, point.value) for point in sorted(history, key=lambda point: point.timestamp)
    ]


class Kept:
    """A recorder that keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.pictures: list[str] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)

    def picture(self, name: str, image: Bytes) -> None:
        self.pictures.append(name)


@pytest.mark.ray
def test_the_driver_follows_what_a_worker_reports(
    local_ray: None,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @ray.remote(num_cpus=3)
    class Worker:
        def work(self, events: Any) -> None:
            events.qsize()  # returns when the queue has started
            time.sleep(2.0)
            events.put(Started(1))
            for step in (2, 4, 3, 6):  # a worker that was started again repeats steps
                events.put(Measured(step, {"loss": 1.0 / step}))
            events.put(Drawn("match.png", np.zeros((2, 2, 3), np.uint8)))

    worker = Worker.remote()  # type: ignore[attr-defined]
    ray.get(worker.__ray_ready__.remote())
    while ray.available_resources().get("CPU"):  # Ray learns of it a little later
        time.sleep(0.05)
    monkeypatch.setattr(launch, "START_WAIT", 0.3)
    kept = Kept()
    with (
        tqdm(total=6) as bar,
        launch._followed(Follower(kept, bar), WorkerShape(4)) as events,
    ):
        ray.get(worker.work.remote(events))
    assert (kept.steps, kept.pictures) == ([2, 4, 3, 6], ["match.png"])
    last = capfd.readouterr().err.split("\r")[-1]
    assert "6/6" in last
    assert "loss=0.167" in last
    (said,) = [r.getMessage() for r in caplog.records if r.name == "dff.trainer.launch"]
    assert said.startswith("no worker has started: a worker needs 4 CPUs; free are 0 CPUs")


@pytest.mark.ray
def test_workers_that_have_places_and_are_loading_wait_for_nothing(
    local_ray: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "START_WAIT", 0.4)
    others = placement_group([{"CPU": 1}])  # of another training
    ray.get(others.ready())
    for reserved, told in ((True, 0), (False, 1)):
        caplog.clear()
        with launch._followed(Follower(Kept()), WorkerShape(1)) as events:
            own = placement_group([{"CPU": 1}, {"CPU": 1}] if reserved else [{"CPU": 100}])
            events.qsize()  # returns when the queue has started
            time.sleep(1.5)
        remove_placement_group(own)
        said = [r.getMessage() for r in caplog.records if r.name == "dff.trainer.launch"]
        assert len(said) == told, said
    remove_placement_group(others)


@pytest.mark.ray
def test_two_workers_train_as_one_process_does(
    dataset: Dataset, open_head: MorphableModel, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    alone: dict[int, Figures] = {}
    callbacks = TrainingCallbacks(on_step=lambda step, figures: alone.update({step: figures}))
    one = train(
        dataset, tmp_path / "one.safetensors", config=CONFIG, model=open_head, callbacks=callbacks
    )
    two = undisturbed.launched
    curve = losses(undisturbed.storage, two.run_id)
    assert [step for step, _ in curve] == [1, 2, 3, 4, 5, 6]
    for step, loss in curve:
        assert loss == pytest.approx(alone[step]["loss"], rel=2e-4), f"step {step}"
    assert two.dev["vote_mm_median"] == pytest.approx(one.dev["vote_mm_median"], rel=0.02)

    client = MlflowClient(tracking.local_uri(undisturbed.storage))
    run = client.get_run(two.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["net.dims"] == "8"
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert run.data.metrics["dev_vote_mm_median"] == pytest.approx(two.dev["vote_mm_median"])
    assert [f.path for f in client.list_artifacts(two.run_id, "pictures")] == [
        "pictures/match-0000006.png"
    ]
    version = client.get_model_version_by_alias(NAME, ALIAS)
    assert (version.run_id, version.version) == (two.run_id, two.version)
    assert weights.load(undisturbed.out, model=open_head).card["steps"] == 6

    with pytest.raises(ValueError, match="holds an earlier run"):
        train_on_ray(dataset.storage.uri, undisturbed.out, storage=undisturbed.storage, **QUOTED)


def take_away_after(event: Path, proxy: Proxy) -> None:
    """Once the file ``event`` is there, no request to the bucket is answered for a while."""
    while not event.exists():
        time.sleep(0.1)
    proxy.away.set()
    time.sleep(OUTAGE)
    proxy.away.clear()


@pytest.mark.ray
def test_a_killed_worker_changes_nothing(
    dataset: Dataset,
    mlflow_database: Path,
    undisturbed: Undisturbed,
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 1 is killed in the middle of an epoch, a step after a checkpoint: the steps from there
    are done again.

    Meanwhile one in five requests to the bucket, which holds the dataset, the checkpoints and the
    weights, meets a fault; and after the kill the bucket is away for a second (``DFF_OUTAGE``).
    """
    killed = tmp_path / "killed"
    place = f"s3://{BUCKET}/killed"

    def until_ray_knows_checkpoint(step: int) -> None:
        runs = open_storage(f"{place}/runs/{ARGUMENTS['name']}", endpoint_url=s3_url)
        snapshot = "checkpoint_manager_snapshot.json"
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            there = any(info.key == snapshot for info in runs.list())
            if there and f"step-{step:07d}".encode() in runs.read(snapshot):
                return
            time.sleep(0.2)

    def worker_that_is_killed(values: dict[str, Any]) -> None:
        whole = dff.trainer.worker.run_training

        def run(
            *arguments: Any, rank: int, callbacks: TrainingCallbacks, **options: Any
        ) -> dict[str, float]:
            def step(number: int, figures: Figures) -> None:
                callbacks.on_step(number, figures)
                if rank == 1 and number == 3 and not killed.exists():
                    until_ray_knows_checkpoint(2)
                    killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

            return whole(
                *arguments, rank=rank, callbacks=replace(callbacks, on_step=step), **options
            )

        dff.trainer.worker.run_training = run
        dff.trainer.worker.train_worker(values)

    monkeypatch.setattr(launch, "train_worker", worker_that_is_killed)
    shutil.copy(mlflow_database, tmp_path)
    bucket = open_storage(place, endpoint_url=s3_url)
    for info in dataset.storage.list():
        bucket.write(f"views/{info.key}", dataset.storage.read(info.key))
    out = f"{place}/killed.safetensors"
    with relay_to(s3_url) as proxy:
        proxy.choose, proxy.stall = every(5), 0.5
        threading.Thread(target=lambda: take_away_after(killed, proxy), daemon=True).start()
        launched = train_on_ray(
            f"{place}/views",
            out,
            storage=f"{place}/runs",
            endpoint_url=proxy.url,
            tracking_uri=tracking.local_uri(tmp_path),
            cache=tmp_path / "cache",
            **ARGUMENTS,
        )
        assert len({*proxy.spoilt}) > 4
    assert killed.exists()
    wanted = losses(undisturbed.storage, undisturbed.launched.run_id)
    assert losses(tmp_path, launched.run_id) == wanted[:3] + wanted[2:], (
        "steps 1 and 2 are not done again"
    )
    first, second = weights.load(undisturbed.out), weights.load(out, endpoint_url=s3_url)
    assert torch.equal(*(torch.from_numpy(w.anchors.descriptor) for w in (first, second)))
    there = second.net.state_dict()
    assert all(torch.equal(value, there[name]) for name, value in first.net.state_dict().items())


DRIVER = """
import pickle, sys, time
from dataclasses import replace
import dff.trainer.launch

def worker_that_stops_at_step_5(values):
    import dff.trainer.worker
    whole = dff.trainer.worker.run_training
    def run(*arguments, callbacks, **options):
        def step(number, figures):
            callbacks.on_step(number, figures)
            if number == 5:
                time.sleep(600)
        return whole(*arguments, callbacks=replace(callbacks, on_step=step), **options)
    dff.trainer.worker.run_training = run
    dff.trainer.worker.train_worker(values)

places, options = pickle.loads(bytes.fromhex(sys.argv[1]))
dff.trainer.launch.train_worker = worker_that_stops_at_step_5
dff.trainer.launch.train_on_ray(*places, **options)
"""


@pytest.mark.ray
def test_after_its_driver_was_killed_a_training_resumes(
    dataset: Dataset, mlflow_database: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Killed at step 5, on a cluster that stays; the same command goes on from step 4.

    The weights go to MLflow's registry alone.
    """
    shutil.copy(mlflow_database, tmp_path)
    out = "models:/ours@staging"
    options = ARGUMENTS | {"storage": tmp_path, "resume": True, "progress": False}
    address = ray.get_runtime_context().gcs_address
    command = pickle.dumps(((dataset.storage.uri, out), options | {"address": address})).hex()
    snapshot = tmp_path / "run" / "checkpoint_manager_snapshot.json"
    with subprocess.Popen([sys.executable, "-c", DRIVER, command]) as driver:
        try:
            deadline = time.monotonic() + 200
            while not (snapshot.exists() and "step-0000004" in snapshot.read_text()):
                assert driver.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        finally:
            driver.kill()
    resumed = train_on_ray(dataset.storage.uri, out, **options)
    wanted = losses(undisturbed.storage, undisturbed.launched.run_id)
    got = losses(tmp_path, resumed.run_id)
    assert got[-2:] == wanted[4:], "not from step 4 on"
    assert set(got) <= set(wanted)
    assert resumed.weights == "models:/ours/1"
    file = tracking.registered_weights(out, tracking_uri=tracking.local_uri(tmp_path))
    first, second = weights.load(undisturbed.out), weights.load(file)
    there = second.net.state_dict()
    assert all(torch.equal(value, there[name]) for name, value in first.net.state_dict().items())


@pytest.mark.parametrize(
    "start", ["", "dff-open", "models:/dff-descriptor@candidate", "/there/w.safetensors"]
)
def test_workers_are_told_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """They run elsewhere: what is relative here is relative to nothing there."""
    monkeypatch.chdir(tmp_path)
    arguments: dict[str, Any] = {
        "model": "open-head",
        "endpoint_url": None,
        "cache": tmp_path,
    }
    job = build_job(["data"], replace(CONFIG, start="w.safetensors"), **arguments)
    assert (job.datasets, job.config["start"]) == (
        [str(tmp_path / "data")],
        str(tmp_path / "w.safetensors"),
    )
    job = build_job(["s3://bucket/data"], replace(CONFIG, start=start), **arguments)
    assert (job.datasets, job.config["start"]) == (["s3://bucket/data"], start)


@pytest.mark.parametrize(
    ("model", "told"),
    [(None, None), ("open-head", "open-head"), ("m.npz", "{cwd}/m.npz"), ("/m.npz", "/m.npz")],
)
def test_workers_are_told_the_face_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str | None, told: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    job = build_job(["data"], CONFIG, model=model, endpoint_url=None, cache=tmp_path)
    assert job.model == (None if told is None else told.format(cwd=tmp_path))


def test_a_dataset_of_another_model_is_refused_before_ray_starts(
    dataset: Dataset, other_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadDataset, match="shows the face model 'open-head', not 'other-head'"):
        train_on_ray(
            dataset.storage.uri,
            tmp_path / "w",
            config=CONFIG,
            model=str(other_model),
            name="n",
            storage=tmp_path / "runs",
        )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "capacity", "message"),
    [({"batch": 4096}, None, "do not fill one batch"), ({}, 20_000, "can't hold two blocks")],
)
def test_a_dataset_that_no_step_can_be_taken_on_is_refused_before_ray_starts(
    dataset: Dataset,
    tmp_path: Path,
    changes: dict[str, Any],
    capacity: int | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        train_on_ray(
            dataset.storage.uri,
            tmp_path / "w",
            config=replace(CONFIG, **changes),
            name="n",
            storage=tmp_path / "runs",
            cache=tmp_path / "cache",
            cache_bytes=capacity,
        )
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_does_not_split_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not split over 3 workers"):
        train_on_ray(
            "nowhere",
            tmp_path / "w",
            config=replace(CONFIG, batch=16),
            name="n",
            storage=tmp_path,
            workers=3,
        )


@pytest.mark.ray
def test_a_run_goes_on_with_more_steps_and_other_workers(
    dataset: Dataset, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last of these tests, since it changes the undisturbed run."""
    folder, run_id = undisturbed.storage.parent, undisturbed.launched.run_id
    monkeypatch.chdir(folder)
    # The batch has four groups: of three workers one stands by.
    changed = {"config": replace(CONFIG, steps=8), "workers": WorkerRange(1, 3)}
    again = train_on_ray(
        f"{os.path.relpath(dataset.storage.uri)}/",
        undisturbed.out,
        storage=undisturbed.storage.relative_to(folder),
        resume=True,
        **QUOTED | changed,
    )
    assert again.run_id == run_id
    assert [step for step, _ in losses(undisturbed.storage, run_id)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert weights.load(undisturbed.out).card["steps"] == 8
    tags = MlflowClient(tracking.local_uri(undisturbed.storage)).get_run(run_id).data.tags
    assert (tags["resumed.steps"], tags["resumed.workers"]) == ("8", "1:3")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_a_name_that_is_no_folders_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a run's name"):
        train_on_ray("nowhere", tmp_path / "w", config=CONFIG, name=name, storage=tmp_path)


def test_a_training_that_cannot_be_stored_or_computed_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="is a folder"):
        train_on_ray("nowhere", tmp_path, config=CONFIG, name="n", storage=tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="wants a GPU for each worker, 2 in all"):
        train_on_ray(
            "nowhere",
            tmp_path / "w",
            config=CONFIG,
            name="n",
            storage=tmp_path,
            workers=2,
            gpu=True,
        )


def test_a_failed_training_is_one_line_and_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    failures: dict[int, Exception] = {
        1: OSError(28, "No space left on device", "/tmp/w.pt"),
        3: RuntimeError("another\nwith a stack"),
    }
    error = WorkerGroupError("a stack\nof many\nlines", failures)
    told = launch.explain_failure(error, "first")
    assert isinstance(told, ClusterError)
    assert "\n" not in str(told)
    assert "worker 1: OSError: [Errno 28] No space left on device: '/tmp/w.pt'" in str(told)
    log = tmp_path / "dff-first-error.log"
    assert str(log) in str(told)
    assert "of many" in log.read_text()
    diverged = WorkerGroupError("Diverged: the loss is nan", {0: Diverged("the loss is nan")})
    assert isinstance(launch.explain_failure(diverged, "first"), Diverged)


def test_one_checkpoint_answers_one_notice_of_preemption(monkeypatch: pytest.MonkeyPatch) -> None:
    notices = [None, {"a": [0]}, {"a": [0]}, {"a": [0], "b": [1]}, {"a": [0], "b": [1]}]
    told = (None if n is None else PreemptionInfo(None, n) for n in notices)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(told))
    notice = PreemptionNotice()
    asked = [notice.asks_for_checkpoint(step) for step in range(len(notices))]
    assert asked == [False, True, False, True, False]


@pytest.mark.parametrize(("loaders", "asked", "wanted"), [(0, None, 1), (3, None, 4), (3, 2, 2)])
def test_a_worker_on_a_cluster_has_the_cpus_that_it_needs(
    loaders: int, asked: int | None, wanted: int
) -> None:
    config = replace(CONFIG, loaders=loaders)
    shape = launch.size_workers(config, 4, local=False, cpus=asked, gpus=1)
    assert shape == WorkerShape(wanted, 1)
