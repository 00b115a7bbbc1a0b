"""One worker of a distributed training: the plain loop inside Ray Train.

Ray restarts the workers after a failure; each then goes on from the last checkpoint that was
reported.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dff.face.extras import require_extra
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import open_dataset
from dff.infra.mlflow.system_metrics import SystemMonitor
from dff.infra.storage import S3Access
from dff.trainer.config import TrainConfig, from_dict
from dff.trainer.data.crops import TrainingSurface, build_training_surface
from dff.trainer.data.datasets import load_common_model, name_datasets
from dff.trainer.data.shard_cache import choose_cache
from dff.trainer.data.views import ViewStore
from dff.trainer.evaluation.figures import draw_dev_pair
from dff.trainer.evaluation.pairs import sample_dev_pairs
from dff.trainer.events import Drawn, Event, Measured, Started
from dff.trainer.meter import Figures
from dff.trainer.state import (
    CHECKPOINT,
    TrainingState,
    extract_anchors,
    initialise_state,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from dff.trainer.train import (
    TrainingCallbacks,
    open_training_views,
    run_training,
    wrap_distributed,
)

with require_extra("train"):
    import ray.train
    import ray.train.torch
    from ray.train import CheckpointUploadMode

WEIGHTS = "weights.safetensors"
"""The file in the last checkpoint that the run was for."""


@dataclass(frozen=True)
class Job:
    """The job of every worker: plain values that are sent between machines."""

    datasets: list[str]  # URIs
    endpoint_url: str | None
    access: dict[str, bool]  # fields of dff.infra.storage.S3Access
    model: str | None  # name or file of the face model; None: the one the dataset was made with
    config: dict[str, Any]  # of TrainConfig
    cache: str | None  # folder on the worker's machine for shards; None: in its temporary folder
    cache_bytes: int | None  # that it may hold

    def as_dict(self) -> dict[str, Any]:
        """The job as plain values, as Ray Train passes them to ``train_worker``."""
        return asdict(self)


def train_worker(values: dict[str, Any]) -> None:
    """Train this worker's share of a job: Ray Train's ``train_loop_per_worker``.

    ``values``: the fields of a ``Job`` under "job"; under "events" a queue for ``Event``s, which
    rank 0 fills. Workers need no tracking server: the driver records for them.
    """
    job, events = Job(**values["job"]), values["events"]
    config = from_dict(job.config)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if rank == 0:
        events.put(Started(world))
    datasets = [
        open_dataset(uri, endpoint_url=job.endpoint_url, access=S3Access(**job.access))
        for uri in job.datasets
    ]
    model = load_common_model(datasets, job.model)
    cache = choose_cache(Path(job.cache) if job.cache else None, job.cache_bytes)
    store = open_training_views(datasets, model, config, cache)
    surface = build_training_surface(model)
    state = _restore_state(model, config, job.endpoint_url)
    used = config.count_used_workers(world)
    group = torch.distributed.new_group(range(used)) if used < world else None
    notice = PreemptionNotice()
    if rank >= used:
        _stand_by(state.step, config, notice)
        return
    reports = _Reports(rank, events, config, model, store, surface, name_datasets(datasets))
    run_training(
        state,
        store,
        surface,
        config,
        wrapped=wrap_distributed(state.learner, group) if used > 1 else None,
        rank=rank,
        world=used,
        group=group,
        callbacks=TrainingCallbacks(
            on_step=reports.report_step,
            wants_checkpoint=notice.asks_for_checkpoint,
            on_evaluation=reports.report_evaluation,
            on_checkpoint=reports.report_checkpoint,
        ),
    )


def _restore_state(
    model: MorphableModel, config: TrainConfig, endpoint_url: str | None
) -> TrainingState:
    """The state of the last checkpoint, or that of a new training, on this worker's device."""
    device = ray.train.torch.get_device()
    state = initialise_state(model, config, device, endpoint_url=endpoint_url)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            load_checkpoint(Path(folder) / CHECKPOINT, state, config)
    return state


@dataclass
class _Reports:
    """The reports of a worker: of rank 0 events to the driver, and checkpoints to Ray."""

    rank: int
    events: Any  # a queue for ``Event``s
    config: TrainConfig
    model: MorphableModel
    store: ViewStore
    surface: TrainingSurface
    dataset: str
    monitor: SystemMonitor = field(default_factory=SystemMonitor)
    dev: Figures = field(default_factory=dict)  # of the last evaluation

    def report_step(self, step: int, figures: Figures) -> None:
        """As ``TrainingCallbacks.on_step``."""
        self._tell(Measured(step, {"step": step, **figures, **self.monitor.read()}))

    def report_evaluation(self, measured: TrainingState, figures: Figures) -> None:
        """As ``TrainingCallbacks.on_evaluation``."""
        self.dev = figures
        if figures:
            named = {f"dev_{name}": value for name, value in figures.items()}
            self._tell(Measured(measured.step, {"step": measured.step, **named}))
        own = self.store.separate()
        for pair in sample_dev_pairs(own, self.surface, count=1, size=self.config.size):
            anchors = extract_anchors(measured, self.model, self.config)
            picture = draw_dev_pair(measured.average.net, anchors, pair)
            self._tell(Drawn(f"match-{measured.step:07d}.png", picture))

    def report_checkpoint(self, state: TrainingState) -> None:
        """As ``TrainingCallbacks.on_checkpoint``; rank 0 brings the state for all."""
        if self.rank > 0:
            _report(state.step)
            return
        folder = tempfile.mkdtemp(prefix="dff-checkpoint-")  # Ray deletes it after the upload
        save_checkpoint(Path(folder) / CHECKPOINT, state, self.config)
        if state.step == self.config.steps:
            save_weights(
                Path(folder) / WEIGHTS,
                state,
                self.model,
                self.store,
                self.config,
                dataset=self.dataset,
                dev=self.dev,
            )
        _report(state.step, self.dev, ray.train.Checkpoint.from_directory(folder))

    def _tell(self, event: Event) -> None:
        if self.rank == 0:
            self.events.put(event)


class PreemptionNotice:
    """Whether a node of the workers is about to be taken away, as spot instances are.

    All workers must ask at the same steps, and get the same answers.
    """

    def __init__(self) -> None:
        self._nodes: frozenset[str] = frozenset()  # whose notice was answered

    def asks_for_checkpoint(self, step: int) -> bool:
        """Whether a notice has come since the last checkpoint that was made for one."""
        info = ray.train.get_preemption_info()
        nodes = frozenset(info.preempted_node_ids) if info else frozenset()
        if nodes <= self._nodes:
            return False
        self._nodes |= nodes
        return True


def _stand_by(step: int, config: TrainConfig, notice: PreemptionNotice) -> None:
    """Take part in the questions and reports of the workers that train: Ray waits for all."""
    for later in range(step + 1, config.steps + 1):
        wanted = config.is_log_step(later) and notice.asks_for_checkpoint(later)
        if config.is_checkpoint_step(later) or wanted:
            _report(later)


def _report(
    step: int, figures: Figures | None = None, checkpoint: ray.train.Checkpoint | None = None
) -> None:
    """Report a step, at which every rank comes here, and upload its checkpoint while training goes
    on.
    """
    ray.train.report(
        {"step": step, **(figures or {})},
        checkpoint=checkpoint,
        checkpoint_dir_name=f"step-{step:07d}",
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
    )
