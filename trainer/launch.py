"""Training on Ray, the driver's side: start the tracked run and workers, register weights."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from dff.face.errors import ClusterError, Diverged
from dff.face.extras import require_extra
from dff.face.io.assets import model_path
from dff.infra import tracking, weights
from dff.infra.cluster import connected
from dff.infra.dataset import open_dataset
from dff.infra.files import check_output_file
from dff.infra.storage import WITH_CREDENTIALS, S3Access
from dff.trainer.config import RESUMABLE_CHANGES, TrainConfig, to_dict
from dff.trainer.train import Figures, check_gpus, load_dataset_model
from dff.trainer.worker import WEIGHTS, Job, train_worker

with require_extra("train"):
    import ray
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

_log = logging.getLogger(__name__)

EXPERIMENT = "dff-descriptor"
REGISTERED_NAME = "dff-descriptor"
ALIAS = "candidate"  # of the newest registered version


@dataclass(frozen=True)
class LaunchResult:
    """The outcome of a distributed run."""

    weights: Path
    dev: Figures  # of held-out identities
    run_id: str
    version: int  # of the registered model


def train_on_ray(
    dataset: str,
    out: Path,
    *,
    config: TrainConfig,
    model: str | None = None,
    name: str,
    storage: Path,
    workers: int = 1,
    gpu: bool = False,
    cpus_per_worker: int | None = None,
    address: str | None = None,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
    tracking_uri: str | None = None,
    resume: bool = False,
    max_failures: int = 2,
    progress: bool = False,
) -> LaunchResult:
    """Train on a Ray cluster (``address``) or a private local Ray, and write the weights file to
    ``out``.

    ``model``: name or file of the face model, which all nodes see; by default that of the dataset.
    ``storage``: folder that all nodes see, for checkpoints under ``name``. ``resume`` goes on from
    the last one; without it a ``name`` that is there already is refused, since Ray would go on with
    it unasked. ``tracking_uri``: MLflow's; an SQLite file in ``storage`` without it. ``progress``
    shows a bar of the steps. ``cpus_per_worker``: by default all of this machine's, shared.

    Raises ValueError, BadDataset, BadModel, Diverged for a loss that is not finite, and
    ClusterError for any other failure of the workers, after ``max_failures`` tries.
    """
    config.check_workers(workers)
    check_output_file(out)
    check_run_name(name)
    if gpu and address is None:
        check_gpus(workers)
    storage = storage.absolute()
    if (storage / name).exists() and not resume:
        raise ValueError(
            f"{storage / name} holds an earlier run: resume it, or give this one another name"
        )
    # Workers would try a bad dataset again. A cluster may see files that this machine does not.
    if address is None:
        load_dataset_model(open_dataset(dataset, endpoint_url=endpoint_url, access=access), model)
    run = tracking.start(
        tracking_uri or tracking.local_uri(storage),
        experiment=EXPERIMENT,
        name=name,
        params={
            "dataset": locate_dataset(dataset),
            "model": locate_model(model) or "of the dataset",
            "workers": workers,
            **to_dict(config),
            "start": weights.everywhere(config.start) if config.start else "",
        },
        may_change={*RESUMABLE_CHANGES, "workers"},
    )
    finished = False
    try:
        job = build_job(
            dataset,
            config,
            model=model,
            endpoint_url=endpoint_url,
            access=access,
            cache=storage / "views",
            run=run,
        )
        cpus = cpus_per_worker or max(1, (os.cpu_count() or 1) // workers)
        scaling = ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": cpus}
        )
        running = RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        )
        bar = _progress_bar(config.steps) if progress else nullcontext()
        with connected(address, workers=workers * cpus), bar as steps_done:
            _warn_of_missing_gpus(workers if gpu else 0)
            made = _run_workers(job, steps_done, scaling, running)
            weights.rewrite(out, made)
        card = made.card
        tags = {
            "model": card["model"],
            "model_licence": card["model_licence"],
            "dataset": card["dataset"],
        }
        version = run.register(out, name=REGISTERED_NAME, alias=ALIAS, tags=tags)
        finished = True
    finally:
        run.finish(failed=not finished)
    return LaunchResult(out, card["dev"], run.id, version)


def _warn_of_missing_gpus(wanted: int) -> None:
    """Say what the workers wait for: a cluster may still add nodes, so it is no error."""
    here = int(ray.cluster_resources().get("GPU", 0))
    if here < wanted:
        _log.warning("the cluster has %d GPUs, training waits for %d", here, wanted)


def _run_workers(
    job: Job, steps_done: Queue | None, scaling: ScalingConfig, running: RunConfig
) -> weights.Weights:
    """The weights in the last checkpoint of a whole training. Raises Diverged and ClusterError."""
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job.as_dict(), "steps_done": steps_done},
        scaling_config=scaling,
        run_config=running,
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        # Ray wraps a worker's error in its own: only the message names it.
        kind = Diverged if Diverged.__name__ in str(error) else ClusterError
        raise kind(f"the workers failed: {error}") from error
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        return weights.load(Path(folder) / WEIGHTS)


def build_job(
    dataset: str,
    config: TrainConfig,
    *,
    model: str | None,
    endpoint_url: str | None,
    access: S3Access = WITH_CREDENTIALS,
    cache: Path,
    run: tracking.Run | None,
) -> Job:
    """The job for the workers, with absolute local paths: they have another working directory."""
    if config.start:
        config = replace(config, start=weights.everywhere(config.start))
    return Job(
        locate_dataset(dataset),
        endpoint_url,
        asdict(access),
        locate_model(model),
        to_dict(config),
        str(cache),
        asdict(run) if run else None,
    )


def check_run_name(name: str) -> None:
    """Raises ValueError for a name that is no name of a folder: checkpoints lie in one."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"a run's name is the name of a folder, without '/', not {name!r}")


def locate_model(model: str | None) -> str | None:
    """A model's name as it is, a model's file as an absolute path."""
    if model is not None and model_path(model) == Path(model):
        return os.path.normpath(Path(model).absolute())
    return model


def locate_dataset(uri: str) -> str:
    """One text for each place: ``./data/`` and ``data`` are the same folder."""
    if "://" in uri:
        return uri.rstrip("/")
    return os.path.normpath(Path(uri).absolute())


@contextmanager
def _progress_bar(steps: int) -> Iterator[Queue]:
    """A bar of the steps that rank 0 puts into the queue, each with its loss; drawn by a thread.

    Not ``ray.train.UserCallback.after_report``: it runs in the process of Ray's controller, which
    takes one report of each worker every two seconds, and a worker waits until its last report was
    taken. A report at every logged step would hold up the training.
    """
    queue = Queue(actor_options={"num_cpus": 0})

    def draw() -> None:
        with tqdm(total=steps, unit="step") as bar:
            while (item := queue.get()) is not None:
                step, loss = item
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{loss:.3f}")

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        queue.put(None)
        thread.join()
        queue.shutdown()
