"""Training on Ray: the driver's side. It begins the tracked run, starts the workers, and registers
what they made.
"""

from __future__ import annotations

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
from dff.trainer.config import TrainConfig, to_dict
from dff.trainer.train import Figures, load_dataset_model
from dff.trainer.worker import WEIGHTS, Job, train_worker

with require_extra("train"):
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer

EXPERIMENT = "dff-descriptor"
REGISTERED_NAME = "dff-descriptor"
LOOK = 2.0  # seconds between looks at the tracked run
ALIAS = "candidate"
"""What the newest registered version is called until somebody calls it champion."""


@dataclass(frozen=True)
class LaunchResult:
    """What a distributed run leaves."""

    weights: Path
    dev: Figures
    run_id: str
    version: int  # of the registered model


def fit(
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

    Raises ValueError, BadDataset, BadModel, Diverged for a loss that is no number, and ClusterError for any
    other failure of the workers, after ``max_failures`` tries.
    """
    config.check_workers(workers)
    storage = storage.absolute()
    if (storage / name).exists() and not resume:
        raise ValueError(
            f"{storage / name} holds an earlier run: resume it, or give this one another name"
        )
    if (
        address is None
    ):  # said at once, where workers would try again; a cluster may see other files
        load_dataset_model(open_dataset(dataset, endpoint_url=endpoint_url), model)
    run = tracking.start(
        tracking_uri or tracking.local_uri(storage),
        experiment=EXPERIMENT,
        name=name,
        params={
            "dataset": dataset,
            "model": model or "of the dataset",
            "workers": workers,
            **to_dict(config),
        },
    )
    finished = False
    try:
        job = build_job(
            dataset,
            config,
            model=model,
            endpoint_url=endpoint_url,
            cache=storage / "views",
            run=run,
        )
        cpus = cpus_per_worker or max(1, (os.cpu_count() or 1) // workers)
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=job.as_dict(),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": cpus}
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        with connected(address, workers=workers * cpus):
            try:
                with _bar(run, config.steps) if progress else nullcontext():
                    result = trainer.fit()
            except TrainingFailedError as error:
                # Ray wraps what a worker raised in errors of its own: only its words tell a loss
                # that is no number.
                kind = Diverged if Diverged.__name__ in str(error) else ClusterError
                raise kind(f"the workers failed: {error}") from error
            assert result.checkpoint is not None
            with result.checkpoint.as_directory() as folder:
                made = weights.load(Path(folder) / WEIGHTS)
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


def build_job(
    dataset: str,
    config: TrainConfig,
    *,
    model: str | None,
    endpoint_url: str | None,
    cache: Path,
    run: tracking.Run | None,
) -> Job:
    """What the workers are told: local paths are whole, since workers have another working
    directory.
    """
    source = dataset if "://" in dataset else str(Path(dataset).absolute())
    if model is not None and model_path(model) == Path(model):
        model = str(Path(model).absolute())
    if config.start:
        config = replace(config, start=weights.everywhere(config.start))
    return Job(
        source, endpoint_url, model, to_dict(config), str(cache), asdict(run) if run else None
    )


@contextmanager
def _bar(run: tracking.Run, steps: int) -> Iterator[None]:
    """A bar of what the workers record: they run elsewhere, so the tracked run is where the driver
    can look.
    """
    over = threading.Event()

    def look() -> None:
        with tqdm(total=steps, unit="step") as bar:
            while not over.wait(LOOK):
                step = run.latest("step")
                if step is not None:
                    bar.update(int(step) - bar.n)
                    bar.set_postfix(loss=f"{run.latest('loss') or 0.0:.3f}")

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
