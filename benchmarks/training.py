"""Cost of a training step, by part: ``python -m benchmarks.training [--dataset DATASET]``.

All variants take turns within one run on one core, and the fastest round of each counts: ratios are
more reliable than absolute numbers. CPU time. With a finished dataset, a short training also
measures the share of a step that waits for its batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from dff.face.descriptor import (
    DescriptorNet,
    NetConfig,
    choose_anchors,
    image_batch,
    parameter_count,
    surface_coordinates,
)
from dff.face.io.assets import load_model
from dff.infra.dataset import open_dataset
from dff.trainer.config import LossWeights, TrainConfig
from dff.trainer.data.batches import Batch
from dff.trainer.data.crops import build_training_surface, make_sample
from dff.trainer.loss import Learner, average_known, divergence, soft_targets, sum_terms
from dff.trainer.train import Figures, TrainingCallbacks, open_view_store, train

BATCH, ROUNDS = 16, 6


def milliseconds(work: dict[str, Callable[[], object]]) -> dict[str, float]:
    """CPU time of each kind of work for one image: the fastest round, all taking turns."""
    best = dict.fromkeys(work, np.inf)
    for _ in range(ROUNDS + 1):  # the first allocates
        for name, do in work.items():
            start = time.process_time()
            do()
            best[name] = min(best[name], (time.process_time() - start) / BATCH * 1e3)
    return best


def variants() -> dict[str, Callable[[], object]]:
    """The measured work by name; each call does one batch."""
    config = TrainConfig()
    model = load_model()
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.from_numpy(surface_coordinates(model))
    anchors = coordinates[choose_anchors(model, config.anchors).astype(np.int64)]
    seen = torch.randint(0, len(coordinates), (BATCH, config.pixels), generator=generator)
    half = config.size // 2
    batch = Batch(
        image=torch.randint(
            0, 256, (BATCH, config.size, config.size, 3), dtype=torch.uint8, generator=generator
        ),
        pixel=torch.randint(0, half * half, (BATCH, config.pixels), generator=generator),
        coordinate=coordinates[seen],
        known=torch.ones(BATCH, config.pixels),
        face=torch.ones(BATCH, half, half),
    )

    def learner(net: NetConfig, *, last: bool, half: bool = False, **weights: float) -> Learner:
        out = Learner(
            DescriptorNet(net),
            anchors,
            sigma=config.sigma,
            scale=config.scale,
            views=4,
            weights=LossWeights(**weights),
            mixed=half,
        )
        if last:
            out.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return out

    def step(
        net: NetConfig | None = None,
        *,
        last: bool = True,
        half: bool = False,
        compiled: bool = False,
        **weights: float,
    ) -> Callable[[], None]:
        one = learner(net or NetConfig(), last=last, half=half, **weights)
        if compiled:
            one.net.trunk = torch.compile(one.net.trunk)  # type: ignore[method-assign]
        images = (
            batch
            if last
            else replace(
                batch, image=batch.image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
            )
        )

        def do() -> None:
            sum_terms(one(images), one.weights).backward()  # type: ignore[no-untyped-call]

        return do

    plain = learner(NetConfig(), last=True)
    rows = torch.nn.functional.normalize(
        torch.randn(BATCH, config.pixels, 32, generator=generator), dim=-1
    )

    def slow_loss() -> None:
        target = soft_targets(batch.coordinate, anchors, config.sigma)
        leaf = rows.clone().requires_grad_()
        cosine = leaf @ plain.class_vectors().T
        average_known(divergence(target, cosine, config.scale), batch.known).backward()  # type: ignore[no-untyped-call]

    single = image_batch(batch.image[:1])

    def infer() -> None:
        with torch.no_grad():
            for _ in range(BATCH):
                plain.net(single)

    return {
        "step, as configured": step(),
        "step, channels first": step(last=False),
        "step, bfloat16": step(half=True),
        "step, compiled": step(compiled=True),
        "step, compiled, bfloat16": step(compiled=True, half=True),
        "step, face term only (the network's own cost)": step(anchors=0.0),
        "step, with the views term": step(views=1.0),
        "step, narrow (24 to 192 channels)": step(NetConfig(widths=(24, 48, 96, 144, 192))),
        "step, shallow (one block at each stride)": step(NetConfig(depths=(1, 1, 1, 1, 1))),
        "the anchors term, simple implementation, without the network": slow_loss,
        "inference, one image at a time": infer,
    }


def loader(dataset: str, console: Console) -> None:
    """CPU time of a sample, and the share of waiting in a short training."""
    model = load_model()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        opened = open_dataset(dataset)
        start = time.process_time()
        store = open_view_store(opened, model, work)
        console.print(
            f"unpacking: {(time.process_time() - start) / len(store) * 1e3:.1f} ms CPU "
            "for a view, once"
        )
        surface, rng = build_training_surface(model), np.random.default_rng(0)
        best = np.inf
        for _ in range(ROUNDS):
            start = time.process_time()
            for number in range(64):
                make_sample(store.view(number % len(store)), surface, size=128, pixels=384, rng=rng)
            best = min(best, (time.process_time() - start) / 64 * 1e3)
        console.print(f"making a sample: {best:.2f} ms CPU")
        seen: list[Figures] = []
        config = replace(
            TrainConfig(), steps=40, log_every=20, eval_every=1000, checkpoint_every=1000
        )
        callbacks = TrainingCallbacks(on_step=lambda step, figures: seen.append(figures))
        train(
            opened,
            work / "w.safetensors",
            config=config,
            model=model,
            callbacks=callbacks,
            work=work,
        )
        console.print(
            f"training with one loader process, {torch.get_num_threads()} threads: "
            f"{seen[-1]['images_per_second']:.0f} images/s, "
            f"{seen[-1]['wait_fraction']:.1%} of the time waiting"
        )


def main(dataset: Annotated[str | None, typer.Option(help="A finished dataset.")] = None) -> None:
    console = Console()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    console.print(f"{parameter_count(DescriptorNet(NetConfig())):,} numbers in the network")
    found = milliseconds(variants())
    base = found["step, as configured"]
    table = Table("batches of 16", "ms CPU / image", "ratio")
    for name, value in found.items():
        table.add_row(name, f"{value:.2f}", f"{value / base:.2f}")
    console.print(table)
    torch.set_num_threads(threads)
    if dataset:
        loader(dataset, console)


if __name__ == "__main__":
    typer.run(main)
