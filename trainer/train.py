"""The training loop: a plain function of a dataset and a configuration, without distribution.

A run is determined by (dataset, model, config): its random choices depend on the seed and on the
number of the step. So its whole state is the step, the weights, their moving average and the
optimiser's moments, and a run resumed from a checkpoint ends as one without interruption.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dff.face.arrays import Integer
from dff.face.descriptor import (
    Anchors,
    DescriptorNet,
    NetConfig,
    choose_anchors,
    surface_coordinates,
)
from dff.face.errors import BadDataset, BadModel, Diverged
from dff.face.io.assets import load_model
from dff.face.model.morphable import MorphableModel
from dff.infra import weights
from dff.infra.dataset import Dataset
from dff.infra.shard_filter import parse_filter
from dff.trainer.config import (
    RESUMABLE_CHANGES,
    TrainConfig,
    from_dict,
    list_changes,
    to_card,
    to_dict,
)
from dff.trainer.data.batches import Batch, StepBatches, batches
from dff.trainer.data.crops import TrainingSurface, build_training_surface
from dff.trainer.data.order import ViewOrder
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.data.views import ViewStore, open_views
from dff.trainer.evaluation.matching import measure_matches
from dff.trainer.evaluation.pairs import DevPair, sample_dev_pairs
from dff.trainer.loss import Learner, sum_terms
from dff.trainer.optimisation import (
    compute_learning_rate,
    move_average,
    read_checkpoint,
    set_learning_rate,
    write_checkpoint,
)

Figures = Mapping[str, float]
CHECKPOINT = "checkpoint.pt"


@dataclass
class TrainingState:
    """The state of a run, held by checkpoints. Mutable: ``run_training`` advances it in place."""

    step: int  # optimiser steps done
    learner: Learner
    average: Learner  # moving average of the learner's weights, which is evaluated and saved
    optimiser: torch.optim.Optimizer
    vertex: Integer[Tensor, " anchors"]  # int64, vertices of the model
    licences: tuple[str, ...]  # of the data that the starting weights were trained on


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


def initialise_state(
    model: MorphableModel,
    config: TrainConfig,
    device: torch.device,
    *,
    endpoint_url: str | None = None,
) -> TrainingState:
    """The state before the first step, from the seed and the weights to start from.

    Anchors are those of the weights to start from. ``endpoint_url``: of an S3 server other than
    AWS, for weights in a bucket. Raises BadWeights for weights that cannot be read, ValueError when
    they have another network or another number of anchors.
    """
    begin = None
    if config.start:
        begin = weights.load(config.start, model=model, endpoint_url=endpoint_url)
    chosen = choose_anchors(model, config.anchors)
    # Another version of the model has other farthest points, but the same vertices.
    vertex = begin.anchors.vertex if begin else chosen
    if len(vertex) != len(chosen):
        raise ValueError(
            f"{config.start} can't be started from: it has {len(vertex)} anchors, not {len(chosen)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        learner = Learner(
            DescriptorNet(config.net),
            torch.from_numpy(surface_coordinates(model)[vertex]),
            sigma=config.sigma,
            scale=config.scale,
            views=config.views,
            weights=config.weights,
            contrast=config.contrast,
            min_membership=config.min_membership,
            mixed=config.mixed,
        )
    licences: tuple[str, ...] = ()
    if begin:
        licences = tuple(begin.card["data_licences"])
        if not is_shallower(begin.net.config, config.net):
            raise ValueError(
                f"{config.start} can't be started from: its network, {begin.net.config}, must be "
                f"as wide as {config.net} and nowhere deeper"
            )
        _grow_network(learner.net, begin.net, config.new_block_gain)
        learner.vectors.data.copy_(torch.from_numpy(begin.anchors.descriptor))
    learner = learner.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(learner).requires_grad_(False)
    # No weight decay for norms, biases and the class vectors (which are normalised anyway).
    kernels = [p for p in learner.net.parameters() if p.ndim > 1]
    others = [p for p in learner.parameters() if p.ndim <= 1] + [learner.vectors]
    groups = [
        {"params": kernels, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    return TrainingState(
        0, learner, average, optimiser, torch.from_numpy(vertex.astype(np.int64)), licences
    )


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


def is_shallower(smaller: NetConfig, larger: NetConfig) -> bool:
    """Whether ``larger`` only adds residual blocks to ``smaller``: as wide, nowhere less deep."""
    as_wide = all(
        getattr(smaller, name) == getattr(larger, name) for name in ("dims", "widths", "groups")
    )
    return as_wide and all(
        low <= high for low, high in zip(smaller.depths, larger.depths, strict=True)
    )


def _grow_network(net: DescriptorNet, begin: DescriptorNet, new_block_gain: float) -> None:
    """Give ``net`` the weights of the shallower ``begin``; its other blocks are nearly identities.

    ``new_block_gain`` is the gain of the last norm of these blocks; at zero they would get no
    gradient. Source: Chen, Goodfellow, Shlens, "Net2Net" (2016).
    """
    known = begin.state_dict()
    for name, value in net.state_dict().items():
        if name in known:
            value.copy_(known[name])
        elif name.endswith("norm.weight"):
            value.fill_(new_block_gain)


def is_log_step(step: int, config: TrainConfig) -> bool:
    """Whether figures are logged after so many steps."""
    return step % config.log_every == 0 or step == config.steps


def is_checkpoint_step(step: int, config: TrainConfig) -> bool:
    """Whether a checkpoint is made after so many steps."""
    return step % config.checkpoint_every == 0 or step == config.steps


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
    meter = _Meter(config.batch)
    with _Validation(store, surface, config, callbacks) as validation:
        if state.step == config.steps and rank == 0:  # resumed after the last step
            validation.dev = validation.measure(state)
        while state.step < config.steps:
            rate = compute_learning_rate(state.step, config)
            meter.add(_take_step(state, module, meter.next_batch(source), config, rate))
            last = state.step == config.steps
            wanted = False
            if is_log_step(state.step, config):
                callbacks.on_step(
                    state.step, {**meter.read(config, world, group), "learning_rate": rate}
                )
                wanted = callbacks.wants_checkpoint(state.step)
            if rank == 0 and (state.step % config.eval_every == 0 or last):
                validation.start(state)
                if last:
                    validation.wait()
            if is_checkpoint_step(state.step, config) or wanted:
                # Otherwise every resumption would start from diverged weights.
                if not all(bool(p.isfinite().all()) for p in state.learner.parameters()):
                    raise Diverged(
                        f"the weights of step {state.step} are not finite: lower the learning rate"
                    )
                callbacks.on_checkpoint(state)
                meter.restart_clock()
        return validation.dev


class _Validation:
    """Measures copies of the averaged weights on held-out pairs, in a thread of its own.

    Training goes on meanwhile; it waits only for a validation that is unfinished when the next is
    due. The thread has a store of its own, since a store serves one thread.
    """

    def __init__(
        self,
        store: ViewStore,
        surface: TrainingSurface,
        config: TrainConfig,
        callbacks: TrainingCallbacks,
    ) -> None:
        self.dev: dict[str, float] = {}  # last figures
        self._store, self._surface, self._config = store, surface, config
        self._callbacks = callbacks
        self._pairs: list[DevPair] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="validation")
        self._running: Future[None] | None = None

    def __enter__(self) -> _Validation:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def start(self, state: TrainingState) -> None:
        """Begin to measure the state's average as it is now."""
        self.wait()
        then = replace(state, average=copy.deepcopy(state.average))
        self._running = self._thread.submit(self._run, then)

    def wait(self) -> None:
        """Return when nothing is measured. Raises what a validation raised."""
        if self._running is not None:
            self._running.result()

    def measure(self, state: TrainingState) -> dict[str, float]:
        """The validation figures of a state's average."""
        config = self._config
        if not self._pairs:  # not before the first step: the shards that hold them must be fetched
            self._pairs = sample_dev_pairs(
                self._store.separate(),
                self._surface,
                count=config.dev_pairs,
                size=config.size,
                config=config.evaluation,
            )
        average = state.average
        return measure_matches(
            average.net,
            average.class_vectors(),
            average.anchor_coordinate,
            config.scale,
            self._pairs,
            config.evaluation,
        )

    def _run(self, state: TrainingState) -> None:
        self.dev = self.measure(state)
        self._callbacks.on_evaluation(state, self.dev)


def build_step_batches(
    store: ViewStore,
    surface: TrainingSurface,
    config: TrainConfig,
    *,
    rank: int = 0,
    world: int = 1,
) -> StepBatches:
    """One rank's batches by step.

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


class _Meter:
    """Mutable accumulator of the loss and of the time since it was last read."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._terms: dict[str, Tensor] = {}
        self._steps = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time until now, which was not spent on steps."""
        self._began, self._waited, self._timed = time.perf_counter(), 0.0, 0

    def next_batch(self, source: Iterator[Batch]) -> Batch:
        """Take the next batch and add the time that it took."""
        began = time.perf_counter()
        out = next(source)
        self._waited += time.perf_counter() - began
        return out

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the terms of one step."""
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, torch.zeros_like(value)) + value.detach()
        self._steps += 1
        self._timed += 1

    def read(
        self,
        config: TrainConfig,
        world: int,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> dict[str, float]:
        """The means since the last reading, which then start anew.

        ``loss`` and ``loss_<term>`` of all ranks, ``images_per_second``, and ``wait_fraction``: the
        share of time spent waiting for batches. Raises Diverged for a loss that is not finite.
        """
        names = sorted(self._terms)
        values = torch.stack([self._terms[n] for n in names]) / self._steps
        if world > 1:
            torch.distributed.all_reduce(values, group=group)
            values = values / world
        means = dict(zip(names, values.cpu(), strict=True))
        loss = float(sum_terms(means, config.weights))
        if not np.isfinite(loss):
            raise Diverged(f"the loss is {loss}: lower the learning rate")
        seconds = max(time.perf_counter() - self._began, 1e-9)
        out = {
            "loss": loss,
            **{f"loss_{name}": float(value) for name, value in means.items()},
            "images_per_second": self._timed * self._batch / seconds,
            "wait_fraction": self._waited / seconds,
        }
        self._terms, self._steps = {}, 0
        self.restart_clock()
        return out


def save_checkpoint(path: Path, state: TrainingState, config: TrainConfig) -> None:
    """Write the state and the configuration to a checkpoint."""
    content = {
        "config": to_dict(config),
        "step": state.step,
        "learner": state.learner.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "vertex": state.vertex,
    }
    write_checkpoint(path, content)


def load_checkpoint(path: Path, state: TrainingState, config: TrainConfig) -> None:
    """Load a checkpoint into a new ``state``, in place.

    Raises ValueError when it is damaged, belongs to another configuration (except for
    ``RESUMABLE_CHANGES``) or other anchors, or is beyond the configuration's last step.
    """
    content = read_checkpoint(path, state.learner.vectors.device)
    # Fields that the checkpoint lacks had their defaults.
    then, now = (
        {k: v for k, v in to_dict(run).items() if k not in RESUMABLE_CHANGES}
        for run in (from_dict(content["config"]), config)
    )
    for each in (then, now):  # one place may be written in several ways
        if each["start"]:
            each["start"] = weights.everywhere(each["start"])
    if then != now:
        changes = ", ".join(list_changes(then, now))
        raise ValueError(f"{path} belongs to another configuration: {changes}")
    if not torch.equal(content["vertex"].cpu(), state.vertex):
        raise ValueError(f"{path} belongs to another face model or choice of anchors")
    if content["step"] > config.steps:
        raise ValueError(
            f"{path} is at step {content['step']} already, beyond the {config.steps} of this run"
        )
    state.step = int(content["step"])
    state.learner.load_state_dict(content["learner"])
    state.average.load_state_dict(content["average"])
    state.optimiser.load_state_dict(content["optimiser"])


def extract_anchors(state: TrainingState, model: MorphableModel, config: TrainConfig) -> Anchors:
    """The averaged class vectors as anchors of the model."""
    vertex = state.vertex.numpy().astype(np.int32)
    return Anchors(
        vertex=vertex,
        position=model.template[vertex].astype(np.float32),
        descriptor=state.average.class_vectors().detach().cpu().numpy().astype(np.float32),
        scale=config.scale,
    )


def save_weights(
    path: Path,
    state: TrainingState,
    model: MorphableModel,
    store: ViewStore,
    config: TrainConfig,
    *,
    dataset: str,
    dev: Figures,
) -> None:
    """Write the averaged weights with their card. ``dataset``: fingerprint of the training data."""
    card = {
        "model": model.name,
        "model_licence": model.licence,
        # Including the data that the starting weights were trained on.
        "data_licences": sorted({*store.licences, *state.licences}),
        "dataset": dataset,
        "views": len(store),
        "steps": state.step,
        "images_seen": state.step * config.batch,
        "dev": dict(dev),
        "config": to_card(config),
        "torch": torch.__version__,
    }
    weights.save(path, state.average.net, extract_anchors(state, model, config), card)


def load_dataset_model(dataset: Dataset, model: str | None = None) -> MorphableModel:
    """The face model that a dataset was made with.

    ``model``: its name or file, as ``load_model`` takes it; by default the model that the dataset's
    rows name. Raises BadDataset when the rows are of another model, of several, or of one that has
    no file under its name, and BadModel for a file that can't be read.
    """
    names = sorted(dataset.manifest.counts.get("model", {}))
    if not names:  # datasets of other programs may lack these counts
        names = sorted(set(dataset.columns(0, ["model"])["model"]))
    where = dataset.storage.uri
    if len(names) != 1:
        raise BadDataset(f"{where} shows several face models: {', '.join(names)}")
    if model is not None:
        loaded = load_model(model)
        if loaded.name != names[0]:
            raise BadDataset(f"{where} shows the face model {names[0]!r}, not {loaded.name!r}")
        return loaded
    try:
        loaded = load_model(names[0])
    except BadModel as error:
        raise BadDataset(
            f"{where} shows the face model {names[0]!r}, which has no file here: give it (--model)"
        ) from error
    return loaded


def load_common_model(
    datasets: Sequence[Dataset], model: MorphableModel | str | None = None
) -> MorphableModel:
    """The face model that all datasets were made with, as ``load_dataset_model``.

    Raises BadDataset when they show different models.
    """
    if isinstance(model, MorphableModel):
        return model
    loaded = [load_dataset_model(dataset, model) for dataset in datasets]
    for dataset, other in zip(datasets, loaded, strict=True):
        if other.name != loaded[0].name:
            raise BadDataset(
                f"{dataset.storage.uri} shows the face model {other.name!r}, "
                f"{datasets[0].storage.uri} {loaded[0].name!r}"
            )
    return loaded[0]


def open_training_views(
    datasets: Sequence[Dataset], model: MorphableModel, config: TrainConfig, cache: CacheConfig
) -> ViewStore:
    """The views that a configuration trains on. Raises ValueError for a filter that is none."""
    row_filter = parse_filter(config.where) if config.where else None
    return open_views(datasets, model, cache, row_filter)


def name_datasets(datasets: Sequence[Dataset]) -> str:
    """The fingerprint of the data, for the card of weights: of one dataset its own."""
    return " ".join(dataset.manifest.fingerprint for dataset in datasets)


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
