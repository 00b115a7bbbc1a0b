"""Comparison of networks, losses and dimensions.

``python -m benchmarks.ablation DATASET --work FOLDER``

Every variant is trained by the loop of ``dff.trainer.train`` with the same seed, views and number
of steps on one core, and evaluated on the same pairs of held-out views. The runs are short: from
scratch they rank the speed of learning, which need not be the final accuracy; from trained weights
(``--start dff-open``) they show the gain of each loss near the end. A variant whose weights are in
FOLDER is not trained again, so an interrupted run can be continued.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from dff.face.descriptor import DescriptorNet, NetConfig, parameter_count
from dff.face.io.assets import load_model
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import Dataset, open_dataset
from dff.infra.datasets.shards import ViewRow
from dff.infra.networks import weights
from dff.trainer.config import LossWeights, TrainConfig, to_card
from dff.trainer.data.crops import build_training_surface
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.data.views import ViewStore, open_views
from dff.trainer.evaluation.baselines import make_anchor_descriptor, make_network_descriptor
from dff.trainer.evaluation.config import MATCHING
from dff.trainer.evaluation.matching import Matching, compare_descriptors
from dff.trainer.evaluation.pairs import ViewPair, sample_view_pairs
from dff.trainer.state import initialise_state, save_weights
from dff.trainer.train import TrainingCallbacks, run_training

ROUNDS = 7
WITHOUT_ANCHORS = LossWeights(anchors=0.0)  # without classification against learned vectors

FIRST = TrainConfig(net=NetConfig(depths=(1, 2, 2, 2, 2)))
VARIANTS = {
    "first": FIRST,
    "net: deep, four and six blocks at strides 16 and 32": replace(
        FIRST, net=NetConfig(depths=(1, 2, 2, 4, 6))
    ),
    "net: wide, 48 to 384 channels": replace(
        FIRST, net=replace(FIRST.net, widths=(48, 96, 192, 288, 384))
    ),
    "net: narrow, 24 to 192 channels": replace(
        FIRST, net=replace(FIRST.net, widths=(24, 48, 96, 144, 192))
    ),
    "net: shallow, one block a stride": replace(
        FIRST, net=replace(FIRST.net, depths=(1, 1, 1, 1, 1))
    ),
    "net: fewer scales, strides 2 to 8": replace(
        FIRST, net=NetConfig(widths=(32, 64, 128), depths=(1, 2, 2))
    ),
    "loss: learned vectors and means": replace(FIRST, weights=LossWeights(views=0.5)),
    "loss: learned vectors and hard pairs": replace(FIRST, weights=LossWeights(hard_pairs=1.0)),
    "loss: pairs, hard negatives": replace(FIRST, weights=replace(WITHOUT_ANCHORS, hard_pairs=1.0)),
    "loss: pairs, all negatives": replace(FIRST, weights=replace(WITHOUT_ANCHORS, pairs=1.0)),
    "loss: normalised means of the views": replace(
        FIRST, weights=replace(WITHOUT_ANCHORS, views=1.0)
    ),
    "dimension 16": replace(FIRST, net=replace(FIRST.net, dims=16)),
    "dimension 64": replace(FIRST, net=replace(FIRST.net, dims=64)),
}
"""The variants trained from scratch; each differs from the first as its name says."""


def further(start: str) -> dict[str, TrainConfig]:
    """The variants that are trained further from ``start`` at a low rate."""
    net = weights.load(start).net.config
    deeper = replace(net, depths=(*net.depths[:-2], net.depths[-2] + 2, net.depths[-1] + 4))
    base = TrainConfig(start=start, net=net, learning_rate=5e-4)
    return {
        "on: learned vectors": base,
        "on: learned vectors, means x 0.5": replace(base, weights=LossWeights(views=0.5)),
        "on: learned vectors, pairs x 0.3": replace(base, weights=LossWeights(pairs=0.3)),
        "on: learned vectors, hard pairs x 0.3": replace(base, weights=LossWeights(hard_pairs=0.3)),
        "on: learned vectors, six blocks more": replace(base, net=deeper),
    }


@dataclass(frozen=True)
class Trial:
    """One variant's figures."""

    name: str
    parameters: int
    milliseconds: dict[int, float]  # CPU time of the network for an image, by batch
    report: Matching


def short(config: TrainConfig, *, steps: int, batch: int) -> TrainConfig:
    """The variant as a short run, with a quick warm-up and moving average and no evaluation."""
    return replace(
        config,
        steps=steps,
        batch=batch,
        warmup=steps // 8,
        ema=0.98,
        loaders=0,
        log_every=50,
        eval_every=steps,
        checkpoint_every=steps,
        dev_pairs=4,
    )


def weights_file(name: str) -> str:
    """The weights file of a variant."""
    return "".join(c if c.isalnum() else "-" for c in name) + ".safetensors"


def train_once(
    out: Path,
    config: TrainConfig,
    *,
    store: ViewStore,
    model: MorphableModel,
    fingerprint: str,
    console: Console,
) -> None:
    """Train a variant and write its weights, unless they exist.

    Raises ValueError when those that are there were trained otherwise: their figures would stand
    beside others'.
    """
    if out.exists():
        card = weights.load(out).card
        if (card["config"], card["dataset"]) != (to_card(config), fingerprint):
            raise ValueError(
                f"{out} comes from other steps, another start or other views: "
                "name another --work folder"
            )
        return
    start = time.process_time()
    state = initialise_state(model, config, torch.device("cpu"))
    callbacks = TrainingCallbacks(
        on_step=lambda step, figures: console.print(
            f"{out.stem} {step}: loss {figures['loss']:.3f}"
        )
    )
    dev = run_training(state, store, build_training_surface(model), config, callbacks=callbacks)
    save_weights(out, state, model, store, config, dataset=fingerprint, dev=dev)
    console.print(f"{out.stem}: {time.process_time() - start:.0f} s CPU")


def read_held_out(dataset: Dataset, *, identities: int) -> list[ViewRow]:
    """All views of the first held-out identities."""

    def rows() -> Iterator[ViewRow]:
        seen: set[str] = set()
        for index in range(len(dataset.shards)):
            for row in dataset.read_shard(index):
                if row.split == "dev":
                    seen.add(row.identity_id)
                    if len(seen) > identities:
                        return
                    yield row

    return list(rows())


def time_networks(nets: dict[str, DescriptorNet], *, size: int) -> dict[str, dict[int, float]]:
    """CPU time of each network for an image, in batches of 1 and 16: the fastest round."""
    best = {name: {1: np.inf, 16: np.inf} for name in nets}
    for _ in range(ROUNDS):
        for name, net in nets.items():
            for batch in (1, 16):
                images = torch.rand(batch, 3, size, size).contiguous(
                    memory_format=torch.channels_last
                )
                with torch.no_grad():
                    start = time.process_time()
                    net(images)
                    took = (time.process_time() - start) * 1e3 / batch
                best[name][batch] = min(best[name][batch], took)
    return best


def evaluate_variants(
    loaded: Mapping[str, weights.Weights], pairs: list[ViewPair], *, size: int, anchors: bool
) -> list[Trial]:
    """The figures of every variant's weights.

    ``anchors``: match by the anchors' probabilities, not by the raw descriptor, which is all that
    losses without anchors train.
    """
    nets = {name: w.net.to(memory_format=torch.channels_last) for name, w in loaded.items()}  # type: ignore[call-overload]
    speed = time_networks(nets, size=size)
    return [
        Trial(
            name,
            parameter_count(net),
            speed[name],
            compare_descriptors(
                pairs,
                {
                    name: make_anchor_descriptor(net, loaded[name].anchors)
                    if anchors
                    else make_network_descriptor(net)
                },
            ),
        )
        for name, net in nets.items()
    ]


def build_table(trials: list[Trial], pairs: int) -> Table:
    out = Table(
        title=f"{pairs} pairs of held-out views; PCK 5 % / mean error, px at 256, all cells alike"
    )
    for head in (
        "variant",
        "M",
        "ms, batch 1",
        "16",
        "same identity",
        "different",
        *MATCHING.yaw_bins,
    ):
        out.add_column(head)
    for trial in trials:
        cells = [{"identity": name} for name in ("same", "different")] + [
            {"yaw": name} for name in MATCHING.yaw_bins
        ]
        out.add_row(
            trial.name,
            f"{trial.parameters / 1e6:.2f}",
            *(f"{ms:.2f}" for ms in trial.milliseconds.values()),
            *(_means(trial.report, **cell) for cell in cells),
        )
    return out


def _means(report: Matching, *, identity: str = "", yaw: str = "") -> str:
    chosen = [r for r in report.rows if identity in ("", r.identity) and yaw in ("", r.yaw)]
    return (
        f"{np.mean([r.pck[-1] for r in chosen]):.1f} / {np.mean([r.px_mean for r in chosen]):.1f}"
    )


def main(
    dataset: Annotated[str, typer.Argument(help="A finished dataset with held-out identities.")],
    work: Annotated[Path, typer.Option(help="Folder of the variants' weights.")],
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the cache of shards. Default: WORK.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of each run.")] = 400,
    batch: Annotated[int, typer.Option()] = 16,
    pairs: Annotated[int, typer.Option(help="Pairs of held-out views in each cell.")] = 6,
    start: Annotated[
        str, typer.Option(help="Weights to go on from, a file or a shipped name. Default: scratch.")
    ] = "",
) -> None:
    console = Console(width=160)
    torch.set_num_threads(1)
    model, opened = load_model(), open_dataset(dataset)
    store = open_views([opened], model, CacheConfig(cache or work))
    fingerprint = opened.manifest.fingerprint
    variants = further(start) if start else VARIANTS
    for name, config in variants.items():
        config = short(config, steps=steps, batch=batch)
        train_once(
            work / weights_file(name),
            config,
            store=store,
            model=model,
            fingerprint=fingerprint,
            console=console,
        )
    size = next(iter(variants.values())).size
    shown = sample_view_pairs(
        read_held_out(opened, identities=24),
        model,
        count=pairs,
        size=size,
        rng=np.random.default_rng(0),
    )
    loaded = {"start": weights.load(start)} if start else {}
    loaded |= {name: weights.load(work / weights_file(name)) for name in variants}
    console.print(
        build_table(evaluate_variants(loaded, shown, size=size, anchors=bool(start)), len(shown))
    )


if __name__ == "__main__":
    typer.run(main)
