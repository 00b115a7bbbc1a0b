"""The training loop: a plain function of a dataset and a configuration, without distribution.

A run is determined by (dataset, model, config): its random choices depend on the seed and on the
number of the step. So its whole state is the step, the weights, their moving average and the
optimiser's moments, and a run resumed from a checkpoint ends as one without interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dff.face.errors import Diverged
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.shard_filter import parse_filter
from dff.trainer.config import (
    TrainConfig,
)
from dff.trainer.data.batches import Batch, StepBatches, batches
from dff.trainer.data.crops import TrainingSurface, build_training_surface
from dff.trainer.data.datasets import load_common_model, name_datasets
from dff.trainer.data.order import ViewOrder
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.data.views import ViewStore, open_views
from dff.trainer.loss import Learner, sum_terms
from dff.trainer.meter import Figures, Meter
from dff.trainer.optimisation import (
    compute_learning_rate,
    move_average,
    set_learning_rate,
)
from dff.trainer.state import (
    CHECKPOINT,
    TrainingState,
    initialise_state,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from dff.trainer.validation import Validation


@dataclass(frozen=True)
class TrainingCallbacks:
    """Functions that the training loop calls; none may change the training.

    ``on_step``: (step, figures) every ``log_every`` steps, on every rank. ``wants_checkpoint``:
    (step) after it, on every rank; whether all make a checkpoint now, out of turn.
    ``on_evaluation``: (the state whose average was measured, validation figures) every
    ``eval_every`` steps and at the end, on rank 0 and in a thread beside the training, before the
    next ``on_evaluation``, and at the end before ``on_checkpoint``. ``on_checkpoint``: the state
    every ``checkpoint_every`` steps and at the end, on every rank.
    """

    on_step: Callable[[int, Figures], None] = lambda step, figures: None
    wants_checkpoint: Callable[[int], bool] = lambda step: False
    on_evaluation: Callable[[TrainingState, Figures], None] = lambda state, figures: None
    on_checkpoint: Callable[[TrainingState], None] = lambda state: None


@dataclass(frozen=True)
class TrainingResult:
    """The results of a run."""

    weights: Path
    dev: Figures  # last validation figures
    state: TrainingState


def train(
    dataset: Dataset | Sequence[Dataset],
    out: Path,
    *,
    config: TrainConfig,
    model: MorphableModel | str | None = None,
    resume: bool = False,
    device: str = "cpu",
    callbacks: TrainingCallbacks | None = None,
    work: Path | None = None,
    cache: CacheConfig | None = None,
    endpoint_url: str | None = None,
) -> TrainingResult:
    """Train a descriptor in this process on a finished dataset, or on several mixed by
    ``config.shares``; write its weights file to ``out``.

    ``model``: the face model, its name or its file; by default the one that the dataset was made
    with (``load_dataset_model``). ``work``: folder of the checkpoint, by default ``out`` with the
    suffix ``.run``. ``cache``: of the dataset's shards, by default in ``work``. ``endpoint_url``:
    of an S3 server other than AWS, for weights to start from. ``resume`` continues from the
    checkpoint, if there is one. Raises BadDataset, BadModel, BadWeights, Diverged, and ValueError
    for a configuration that does not fit the dataset or the checkpoint.
    """
    work = work or out.with_suffix(".run")
    datasets = [dataset] if isinstance(dataset, Dataset) else list(dataset)
    model = load_common_model(datasets, model)
    callbacks = callbacks or TrainingCallbacks()
    store = open_training_views(datasets, model, config, cache or CacheConfig(work / "shards"))
    state = initialise_state(model, config, torch.device(device), endpoint_url=endpoint_url)
    if resume and (work / CHECKPOINT).exists():
        load_checkpoint(work / CHECKPOINT, state, config)

    def checkpoint(state: TrainingState) -> None:
        save_checkpoint(work / CHECKPOINT, state, config)
        callbacks.on_checkpoint(state)

    saving = replace(callbacks, on_checkpoint=checkpoint)
    dev = run_training(state, store, build_training_surface(model), config, callbacks=saving)
    save_weights(out, state, model, store, config, dataset=name_datasets(datasets), dev=dev)
    return TrainingResult(out, dev, state)


def run_training(
    state: TrainingState,
    store: ViewStore,
    surface: TrainingSurface,
    config: TrainConfig,
    *,
    wrapped: nn.Module | None = None,
    rank: int = 0,
    world: int = 1,
    group: torch.distributed.ProcessGroup | None = None,
    callbacks: TrainingCallbacks | None = None,
) -> dict[str, float]:
    """Advance ``state`` to ``config.steps``, in place.

    Returns the last validation figures: those of rank 0, and nothing on other ranks or without
    held-out views. ``wrapped``: the learner under ``wrap_distributed``, when ``world`` > 1, and
    ``group`` its processes, by default all. Raises Diverged when the loss or the weights are no
    longer finite, before a checkpoint holds them.
    """
    config.check_workers(world)
    callbacks = callbacks or TrainingCallbacks()
    module = wrapped or state.learner
    if config.compiled:
        state.learner.net.trunk = torch.compile(state.learner.net.trunk)  # type: ignore[method-assign]
    source = batches(
        build_step_batches(store, surface, config, rank=rank, world=world),
        first=state.step,
        last=config.steps,
        loaders=config.loaders,
        pin_memory=state.learner.vectors.is_cuda,
    )
    meter = Meter(config.batch)
    with Validation(store, surface, config, callbacks.on_evaluation) as validation:
        if state.step == config.steps and rank == 0:  # resumed after the last step
            validation.dev = validation.measure(state)
        while state.step < config.steps:
            rate = compute_learning_rate(state.step, config)
            meter.add(_take_step(state, module, meter.next_batch(source), config, rate))
            last = state.step == config.steps
            wanted = False
            if config.is_log_step(state.step):
                callbacks.on_step(
                    state.step, {**meter.read(config, world, group), "learning_rate": rate}
                )
                wanted = callbacks.wants_checkpoint(state.step)
            if rank == 0 and (state.step % config.eval_every == 0 or last):
                validation.start(state)
                if last:
                    validation.wait()
            if config.is_checkpoint_step(state.step) or wanted:
                # Otherwise every resumption would start from diverged weights.
                if not all(bool(p.isfinite().all()) for p in state.learner.parameters()):
                    raise Diverged(
                        f"the weights of step {state.step} are not finite: lower the learning rate"
                    )
                callbacks.on_checkpoint(state)
                meter.restart_clock()
        return validation.dev


def _take_step(
    state: TrainingState, module: nn.Module, batch: Batch, config: TrainConfig, rate: float
) -> dict[str, Tensor]:
    """Take one optimiser step at a learning rate; the terms of the loss before it."""
    set_learning_rate(state.optimiser, rate)
    module.train()
    terms: dict[str, Tensor] = module(batch.to(state.learner.vectors.device))
    state.optimiser.zero_grad(set_to_none=True)
    sum_terms(terms, config.weights).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.learner.parameters(), config.max_gradient)
    state.optimiser.step()
    move_average(state.average.parameters(), state.learner.parameters(), state.step, config.ema)
    state.step += 1
    return terms


def build_step_batches(
    store: ViewStore,
    surface: TrainingSurface,
    config: TrainConfig,
    *,
    rank: int = 0,
    world: int = 1,
) -> StepBatches:
    """One rank's batches by step. Raises ValueError as ``order_views``."""
    order = order_views(store, config)
    return StepBatches(
        store,
        surface,
        order,
        size=config.size,
        other_sizes=config.other_sizes,
        pixels=config.pixels,
        augment=config.augment,
        rank=rank,
        world=world,
    )


def order_views(store: ViewStore, config: TrainConfig) -> ViewOrder:
    """The order in which a configuration trains on the views of ``store``.

    Raises ValueError for too few views, too small a cache, or another number of shares than of
    datasets.
    """
    order = ViewOrder(
        store.indexes,
        config.shares,
        seed=config.seed,
        batch=config.batch,
        views=config.views,
        block_views=config.block_views,
    )
    store.check_cache(order)
    return order


def check_views(
    datasets: Sequence[Dataset], model: MorphableModel, config: TrainConfig, cache: CacheConfig
) -> None:
    """Raise BadDataset or ValueError where no step of a configuration could be taken.

    The datasets are scanned; the index is kept in the folder of ``cache`` for the training.
    """
    order_views(open_training_views(datasets, model, config, cache), config)


def open_training_views(
    datasets: Sequence[Dataset], model: MorphableModel, config: TrainConfig, cache: CacheConfig
) -> ViewStore:
    """The views that a configuration trains on. Raises ValueError for a filter that is none."""
    row_filter = parse_filter(config.where) if config.where else None
    return open_views(datasets, model, cache, row_filter)


def check_gpus(wanted: int) -> None:
    """Raises ValueError when this machine has fewer GPUs that torch can use."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < wanted:
        raise ValueError(
            f"--gpu wants a GPU for each worker, {wanted} in all; torch finds {count} on this "
            "machine: leave out --gpu, or take fewer workers"
        )


def wrap_distributed(
    learner: Learner, group: torch.distributed.ProcessGroup | None = None
) -> nn.Module:
    """Average the learner's gradients over the processes of ``group``, or torch's default group."""
    # A head whose term has weight zero gets no gradient, for which torch has to search.
    used = learner.weights.anchors and learner.weights.face
    return nn.parallel.DistributedDataParallel(
        learner, find_unused_parameters=not used, process_group=group
    )
