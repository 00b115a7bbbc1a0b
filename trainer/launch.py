"""Training on Ray, the driver's side: start the tracked run and workers, register weights."""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dff.face.errors import ClusterError, DffError, Diverged, StorageError
from dff.face.extras import require_extra
from dff.face.io.assets import model_path
from dff.infra.clusters.capacity import WorkerShape
from dff.infra.clusters.cluster import (
    check_shared,
    connected,
    describe_free_resources,
    find_reserved,
    wait_for_room,
)
from dff.infra.datasets.dataset import open_dataset
from dff.infra.mlflow import tracking
from dff.infra.mlflow.recorder import RunRecorder
from dff.infra.networks import weights
from dff.infra.networks.weights_names import REGISTERED
from dff.infra.redaction import hide_secrets
from dff.infra.storage import WITH_CREDENTIALS, S3Access, open_storage
from dff.infra.storage.arrow import open_filesystem
from dff.trainer.config import RESUMABLE_CHANGES, TrainConfig, WorkerRange, to_dict
from dff.trainer.data.datasets import load_common_model
from dff.trainer.data.shard_cache import choose_cache
from dff.trainer.destination import (
    Destination,
    check_run_name,
    describe_destination,
    resolve_destination,
)
from dff.trainer.events import Event, Follower
from dff.trainer.meter import Figures
from dff.trainer.process_group import NodeTorchConfig
from dff.trainer.train import check_gpus, check_views
from dff.trainer.worker import WEIGHTS, Job, train_worker

with require_extra("train"):
    import ray
    from ray.exceptions import RayError
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
        WorkerGroupError,
    )
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_log = logging.getLogger(__name__)

EXPERIMENT = "dff-descriptor"
START_WAIT = 25.0  # seconds after which the driver says what workers without places wait for
REMINDER = 300.0  # seconds until it says so again


@dataclass(frozen=True)
class LaunchResult:
    """The outcome of a distributed run."""

    weights: str  # file, s3://bucket/key, or models:/NAME/VERSION
    dev: Figures  # of held-out identities
    run_id: str
    version: int  # of the registered model


def train_on_ray(
    dataset: str | Sequence[str],
    out: Path | str,
    *,
    config: TrainConfig,
    model: str | None = None,
    name: str,
    storage: Path | str,
    workers: int | WorkerRange = 1,
    gpu: bool = False,
    cpus_per_worker: int | None = None,
    gpus_per_worker: float = 1,
    address: str | None = None,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
    tracking_uri: str | None = None,
    resume: bool = False,
    max_failures: int = 2,
    progress: bool = False,
    cache: Path | None = None,
    cache_bytes: int | None = None,
) -> LaunchResult:
    """Train on a Ray cluster (``address``) or a private local Ray, and write the weights file to
    ``out``, a path or ``s3://bucket/key``; or only register them, as ``models:/NAME[@ALIAS]``.

    ``dataset``: one, or several mixed by ``config.shares``. ``workers``: of a range as many train
    as there is room for at any time, and each step's batch is the same for any number of them.
    ``model``: name or file of the face model, which all nodes see; by default that of the dataset.
    ``storage``: ``s3://bucket/prefix`` or a folder that all nodes see, for checkpoints under
    ``name``. ``resume`` goes on from the last one, if there is one; without it a ``name`` that is
    there already is refused, since Ray would go on with it unasked. ``tracking_uri``: MLflow's,
    which only this process asks; without it an SQLite file (``choose_tracking``). ``progress``
    shows a bar of the steps. ``cpus_per_worker``: by default one and one for each loader on a
    cluster, and this machine's CPUs, shared, without one. ``gpus_per_worker``: with ``gpu``.
    ``cache``: folder for shards on each worker's machine, by default in its temporary folder;
    ``cache_bytes``: that it may hold.

    Raises ValueError, BadDataset, BadModel, StorageError, Diverged for a loss that is not finite,
    and ClusterError for workers that fit nowhere and any other failure of them, after
    ``max_failures`` tries.
    """
    count = workers if isinstance(workers, WorkerRange) else WorkerRange(workers, workers)
    if not count.is_elastic:
        config.check_workers(count.most)
    shape = size_workers(
        config, count.most, local=address is None, cpus=cpus_per_worker, gpus=gpus_per_worker * gpu
    )
    to = resolve_destination(out, endpoint_url=endpoint_url)
    check_run_name(name)
    if gpu and address is None:
        check_gpus(count.least)
    storage = _locate_storage(storage)
    if not resume and open_storage(storage, endpoint_url=endpoint_url).list(f"{name}/"):
        raise ValueError(
            f"{storage}/{name} holds an earlier run: resume it, or give this one another name"
        )
    # Workers would try a bad dataset again. A cluster may see files that this machine does not.
    places = [dataset] if isinstance(dataset, str) else list(dataset)
    if address is None:
        opened = [open_dataset(p, endpoint_url=endpoint_url, access=access) for p in places]
        check_views(
            opened, load_common_model(opened, model), config, choose_cache(cache, cache_bytes)
        )
    run = tracking.start(
        tracking_uri or choose_tracking(storage),
        experiment=EXPERIMENT,
        name=name,
        params=_list_params(places, config, model=model, workers=count),
        resume=resume,
        may_change={*RESUMABLE_CHANGES, "workers"},
    )
    with _recorded(run) as recorder:
        job = build_job(
            places,
            config,
            model=model,
            endpoint_url=endpoint_url,
            access=access,
            cache=cache,
            cache_bytes=cache_bytes,
        )
        filesystem, path = open_filesystem(storage, endpoint_url=endpoint_url)
        running = RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        )
        scaling = ScalingConfig(
            num_workers=(count.least, count.most) if count.is_elastic else count.most,
            use_gpu=gpu,
            resources_per_worker={"CPU": shape.cpus, **({"GPU": shape.gpus} if gpu else {})},
        )
        bar = tqdm(total=config.steps, unit=" steps") if progress else nullcontext()
        with connected(address, workers=int(count.most * shape.cpus)):
            wait_for_room(shape, count.least)
            if filesystem is None:
                check_shared(Path(storage), "--storage")
            with bar as shown, _followed(Follower(recorder, shown), shape) as events:
                trained = _run_workers(job, events, scaling, running)
        if to.file is not None:
            weights.rewrite(to.file, trained, endpoint_url=endpoint_url)
    there = (
        describe_destination(to) if to.file is not None else f"the last step of {storage}/{name}"
    )
    version = _register(run, trained, to, places, there=there)
    written = to.file or f"{REGISTERED}{to.name}/{version}"
    return LaunchResult(written, trained.card["dev"], run.id, version)


def size_workers(
    config: TrainConfig, workers: int, *, local: bool, cpus: int | None, gpus: float
) -> WorkerShape:
    """CPUs and GPUs that a worker reserves: as given, or by its number of loaders.

    Ray gives a worker as many threads as CPUs. On a cluster a worker needs one and one for each
    loader; on this machine the workers share all CPUs, whatever they need.
    """
    needed = 1 + config.loaders
    if cpus is None:
        cpus = max(1, (os.cpu_count() or 1) // workers) if local else needed
    return WorkerShape(cpus, gpus)


def choose_tracking(storage: str) -> str:
    """MLflow's file beside the checkpoints; if these are in a bucket, the place of the commands."""
    return tracking.default_uri() if "://" in storage else tracking.local_uri(Path(storage))


def _locate_storage(storage: Path | str) -> str:
    text = str(storage)
    return text.rstrip("/") if "://" in text else str(Path(storage).absolute())


def _list_params(
    datasets: Sequence[str], config: TrainConfig, *, model: str | None, workers: WorkerRange
) -> dict[str, Any]:
    """What MLflow records of a training; a run is resumed with the same."""
    return {
        "dataset": " ".join(map(locate_dataset, datasets)),
        "model": locate_model(model) or "of the dataset",
        "workers": str(workers),
        **to_dict(config),
        "start": weights.everywhere(config.start) if config.start else "",
    }


@contextmanager
def _recorded(run: tracking.Run) -> Iterator[RunRecorder]:
    """Record a training in a run; it is closed as failed where the ``with`` block fails."""
    recorder = RunRecorder(run)
    try:
        yield recorder
    except BaseException:
        recorder.close()
        _finish_failed(run)
        raise
    recorder.close()


def _finish_failed(run: tracking.Run) -> None:
    """Close the run of a training that failed, whose own error is what should be seen."""
    try:
        with tracking.asked_hastily():
            run.finish(failed=True)
    except Exception as error:  # MLflow lets its database's and its server's own errors through
        _log.warning("the MLflow run %s stays open: %s", run.id, str(error).partition("\n")[0])


def _register(
    run: tracking.Run,
    trained: weights.Weights,
    to: Destination,
    datasets: Sequence[str],
    *,
    there: str,
) -> int:
    """Register the weights as a new version, note their datasets, and close the run.

    Raises StorageError, which says that the weights are complete ``there``.
    """
    card = trained.card
    tags = {name: str(card[name]) for name in ("model", "model_licence", "dataset")}
    try:
        for place, fingerprint in zip(datasets, str(card["dataset"]).split(), strict=True):
            run.use_dataset(locate_dataset(place), digest=fingerprint)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(to.file or f"{to.name}.safetensors").name
            weights.rewrite(file, trained)
            version = run.register(file, name=to.name, alias=to.alias, tags=tags)
        run.finish()
    except Exception as error:  # MLflow lets its database's and its server's own errors through
        raise StorageError(
            f"the weights are complete in {there}, but MLflow at "
            f"{hide_secrets(run.tracking_uri)} did not register them: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    return version


def _run_workers(
    job: Job, events: Queue, scaling: ScalingConfig, running: RunConfig
) -> weights.Weights:
    """The weights in the last checkpoint of a whole training. Raises Diverged and ClusterError."""
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job.as_dict(), "events": events},
        scaling_config=scaling,
        run_config=running,
        torch_config=NodeTorchConfig(),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise explain_failure(error, str(running.name)) from error
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        return weights.load(Path(folder) / WEIGHTS)


def explain_failure(error: TrainingFailedError, name: str) -> ClusterError | Diverged:
    """One line for a failed training; all that Ray says of it is in a file that the line names."""
    log = Path(tempfile.gettempdir()) / f"dff-{name}-error.log"
    log.write_text(hide_secrets(str(error)), encoding="utf-8")
    # Ray wraps a worker's error in its own: only the message names it.
    kind = Diverged if Diverged.__name__ in str(error) else ClusterError
    failures: Mapping[int, Exception] = (
        error.worker_failures if isinstance(error, WorkerGroupError) else {}
    )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "_base_exc", failure)
        first = str(cause).strip().partition("\n")[0]
        name = cause.class_name if isinstance(cause, DffError) else type(cause).__name__
        reason = f"worker {rank}: {name}: {first}"
        break
    return kind(f"training failed: {hide_secrets(reason)} (all of it: {log})")


def build_job(
    datasets: Sequence[str],
    config: TrainConfig,
    *,
    model: str | None,
    endpoint_url: str | None,
    access: S3Access = WITH_CREDENTIALS,
    cache: Path | None = None,
    cache_bytes: int | None = None,
) -> Job:
    """The job for the workers, with absolute local paths: they have another working directory."""
    if config.start:
        config = replace(config, start=weights.everywhere(config.start))
    return Job(
        [locate_dataset(dataset) for dataset in datasets],
        endpoint_url,
        asdict(access),
        locate_model(model),
        to_dict(config),
        str(cache.absolute()) if cache else None,
        cache_bytes,
    )


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
def _followed(follower: Follower, shape: WorkerShape) -> Iterator[Queue]:
    """A queue for the workers' events, which a thread hands to ``follower``.

    As long as the workers have no places to start in, the thread says what they wait for.

    Not ``ray.train.UserCallback.after_report``: it runs in the process of Ray's controller, which
    takes one report of each worker every two seconds, and a worker waits until its last report was
    taken. A report at every logged step would hold up the training.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    others = find_reserved(shape)  # of other trainings on the cluster

    def follow() -> None:
        wait: float | None = START_WAIT
        while True:
            try:
                event: Event | None = events.get(timeout=wait)
            except queue.Empty:
                if not find_reserved(shape) - others:
                    _log.warning("no worker has started: %s", describe_free_resources(shape))
                    wait = REMINDER
                continue
            except RayError:  # the cluster is gone, which the training says by itself
                return
            if event is None:
                return
            wait = None
            follower.take(event)

    thread = threading.Thread(target=follow, daemon=True, name="events")
    thread.start()
    try:
        yield events
    finally:
        with suppress(RayError):
            events.put(None)
            thread.join()
            events.shutdown()
