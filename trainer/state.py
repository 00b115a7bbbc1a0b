"""The state of a run: its beginning, its checkpoints, and the weights that it becomes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dff.face.arrays import Integer
from dff.face.descriptor import (
    Anchors,
    DescriptorNet,
    NetConfig,
    choose_anchors,
    surface_coordinates,
)
from dff.face.model.morphable import MorphableModel
from dff.infra.networks import weights
from dff.trainer.config import (
    RESUMABLE_CHANGES,
    TrainConfig,
    from_dict,
    list_changes,
    to_card,
    to_dict,
)
from dff.trainer.data.views import ViewStore
from dff.trainer.loss import Learner
from dff.trainer.optimisation import (
    read_checkpoint,
    write_checkpoint,
)

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
    dev: Mapping[str, float],
) -> None:
    """Write the averaged weights with their card.

    ``dataset``: fingerprint of the training data; ``dev``: the last validation figures.
    """
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
