"""Cost of training: its step by part, the loader by part, the first step, the mixing of views.

``python -m benchmarks.training [--dataset DATASET] [--no-steps]``. All variants of a table take
turns within one run on one core, and the fastest round of each counts: ratios are more reliable
than absolute numbers. CPU time. With a finished dataset, the loader is measured too, and the time
to the first step of datasets up to a million views, made of its rows and read through a simulated
connection of 30 ms a request and 100 MB a second.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import cv2
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
from dff.face.render import kernels
from dff.infra.datasets.dataset import Dataset, Shards, open_dataset
from dff.infra.datasets.shards import make_sample_id, rows_to_parquet
from dff.infra.storage import LocalStorage
from dff.trainer.config import LossWeights, TrainConfig
from dff.trainer.data.batches import Batch, StepBatches
from dff.trainer.data.crops import TrainingSurface, build_training_surface
from dff.trainer.data.order import EpochOrder
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.data.view_index import ViewIndex
from dff.trainer.data.views import StoredView, open_views
from dff.trainer.loss import Learner, average_known, divergence, soft_targets, sum_terms
from dff.trainer.meter import Figures
from dff.trainer.train import TrainingCallbacks, build_step_batches, train

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


@contextmanager
def timed(into: dict[str, float], name: str, count: int) -> Iterator[None]:
    """Add the CPU milliseconds of each of ``count`` items; keep the least of several rounds."""
    start = time.process_time()
    yield
    took = (time.process_time() - start) * 1e3 / count
    into[name] = min(into.get(name, np.inf), took)


def open_steps(opened: Dataset, work: Path, config: TrainConfig) -> StepBatches:
    """The batches of a dataset, through a new cache."""
    model = load_model()
    store = open_views([opened], model, CacheConfig(work))
    return build_step_batches(store, build_training_surface(model), config)


def loader(dataset: str, console: Console) -> None:
    """CPU time of the parts of a sample, and the share of waiting in a short training."""
    cv2.setNumThreads(0)
    opened = open_dataset(dataset)
    config = replace(TrainConfig(), size=160, batch=32)
    parts: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with timed(parts, "scan of the index, per shard", len(opened.shards)):
            steps = open_steps(opened, work / "cache", config)
        with timed(parts, "fetch: hash and lay out, per view", opened.manifest.rows):
            for shard in range(len(opened.shards)):
                steps.store.cache.fetch(0, shard)
        steps[0]  # compiles
        for round_ in range(ROUNDS):
            items = [item for step in range(4) for item in steps.items(4 * round_ + step)]
            numbers = [item.number for item in items]
            with timed(parts, "decode: image, triangles, vertices", len(items)):
                for start in range(0, len(numbers), config.batch):
                    steps.store.view_list(numbers[start : start + config.batch])
            with timed(parts, "sample, decoded and cropped", len(items)):
                for step in range(4):
                    steps[4 * round_ + step]
            with timed(parts, "all pixels' barycentric weights (not needed)", 8):
                for view in steps.store.view_list(numbers[:8]):
                    resolve_all(view, steps.surface)
        table = Table("part", "ms CPU")
        for name, value in parts.items():
            table.add_row(name, f"{value:.3f}")
        console.print(table)
        whole = parts["sample, decoded and cropped"]
        console.print(f"{1e3 / whole:.0f} images a second and core at {config.size} px")
        seen: list[Figures] = []
        short = replace(
            TrainConfig(), steps=40, log_every=20, eval_every=1000, checkpoint_every=1000
        )
        train(
            opened,
            work / "w.safetensors",
            config=short,
            model=load_model(),
            callbacks=TrainingCallbacks(on_step=lambda step, figures: seen.append(figures)),
            work=work,
        )
        console.print(
            f"training with one loader process, {torch.get_num_threads()} threads: "
            f"{seen[-1]['images_per_second']:.0f} images/s, "
            f"{seen[-1]['wait_fraction']:.1%} of the time waiting"
        )


def resolve_all(view: StoredView, surface: TrainingSurface) -> None:
    """The barycentric weights of a view's pixels, depths and normals: what unpacking computed."""
    ids = np.where(view.triangle < len(surface.faces), view.triangle.astype(np.int32), -1)
    vertices = np.zeros((len(view.vertex_px), 3))
    normals = kernels.smooth_normals(vertices, surface.faces)
    three, one = np.zeros((*ids.shape, 3), np.float32), np.zeros(ids.shape, np.float32)
    kernels.resolve(
        ids,
        np.empty((0, 0, 2)),
        vertices,
        surface.faces,
        view.vertex_px,
        view.vertex_weight,
        normals,
        three,
        one,
        three.copy(),
    )


@dataclass(frozen=True)
class RemoteDataset(Dataset):
    """A dataset of any number of shards, all with one content, behind a slow connection."""

    content: bytes
    latency: float = 0.03  # seconds of a request
    rate: float = 100e6  # bytes a second

    def shard_bytes(self, index: int) -> bytes:
        time.sleep(self.latency + len(self.content) / self.rate)
        return self.content


@dataclass(frozen=True)
class RemoteStorage(LocalStorage):
    """Answers ranges of any shard from one content."""

    content: bytes = b""
    latency: float = 0.03

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        time.sleep(self.latency)
        return self.content[start:stop]


def make_remote(opened: Dataset, views: int) -> RemoteDataset:
    """A dataset of ``views`` views in shards of 640, which show the identities of ``opened``."""
    rows = [row for index in range(len(opened.shards)) for row in opened.read_shard(index)]
    names = dict.fromkeys(row.identity_id for row in rows)
    large = []
    for copy in range(-(-640 // len(rows))):
        for name in names:
            own = [row for row in rows if row.identity_id == name]
            large += [
                replace(
                    row,
                    identity_id=f"{name}-{copy}",
                    sample_id=make_sample_id(f"{name}-{copy}", row.view),
                )
                for row in own
            ]
    content = rows_to_parquet(large[:640], {"plan": "remote"})
    count = max(views // 640, 1)
    digests = [hashlib.sha256(f"{shard}".encode()).hexdigest() for shard in range(count)]
    shards = Shards.of([len(large[:640])] * count, [len(content)] * count, digests)
    manifest = replace(opened.manifest, shards=shards)
    return RemoteDataset(RemoteStorage(Path("remote"), content), manifest, content)


def first_step(dataset: str, console: Console) -> None:
    """Time until the first batch of datasets of three sizes, behind a simulated connection."""
    opened, config = open_dataset(dataset), replace(TrainConfig(), size=160)
    table = Table("views", "shards", "s to the first batch", "s CPU", "index, bytes a view")
    for views in (640, 20_480, 1_000_000):
        remote = make_remote(opened, views)
        with tempfile.TemporaryDirectory() as folder:
            start, cpu = time.perf_counter(), time.process_time()
            steps = open_steps(remote, Path(folder), config)
            steps[0]
            took, used = time.perf_counter() - start, time.process_time() - cpu
            (index,) = steps.store.indexes
            packed = index.first.nbytes + index.train.nbytes + index.dev.nbytes
            packed += index.starts.nbytes
            table.add_row(
                f"{remote.manifest.rows:,}",
                f"{len(remote.shards):,}",
                f"{took:.1f}",
                f"{used:.1f}",
                f"{packed / remote.manifest.rows:.2f}",
            )
    console.print(table)


def mixing(console: Console) -> None:
    """The loss of mixing in blocks against a full shuffle, where shards are of different kinds.

    Each of 1,563 shards of 640 views has a value of its own, such as the mean brightness of its
    photos. The table has the standard deviation of a batch's mean, and of the mean over 50 batches,
    over those of a full shuffle.
    """
    shards, per_shard, batch, views = 1563, 640, 32, 4
    rows = np.arange(shards * per_shard)
    index = ViewIndex(
        np.arange(shards + 1) * per_shard,
        np.packbits(rows % 16 == 0),
        np.packbits(np.ones(len(rows), bool)),
        np.packbits(np.zeros(len(rows), bool)),
        (),
    )
    value = np.random.default_rng(0).standard_normal(shards)
    table = Table("views in a block", "one batch", "50 batches")
    spread: dict[int, tuple[float, float]] = {}
    for block_views in (len(rows), 65_536, 16_384, 4_096, 640):
        order = EpochOrder(index, source=0, seed=0, views=views, block_views=block_views)
        groups = np.concatenate([order.block(0, b).groups[:, 0] for b in range(order.blocks)])
        kinds = value[index.shards_of(groups)]
        kinds = kinds[: len(kinds) // 400 * 400].reshape(-1, 50, batch // views)
        spread[block_views] = float(kinds.mean(2).std()), float(kinds.mean((1, 2)).std())
    full = spread[len(rows)]
    for block_views, found in spread.items():
        table.add_row(
            "all" if block_views == len(rows) else f"{block_views:,}",
            *(f"{a / b:.2f}" for a, b in zip(found, full, strict=True)),
        )
    console.print(table)


def main(
    dataset: Annotated[str | None, typer.Option(help="A finished dataset.")] = None,
    steps: Annotated[bool, typer.Option(help="Measure the training step.")] = True,
) -> None:
    console = Console()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if steps:
        console.print(f"{parameter_count(DescriptorNet(NetConfig())):,} numbers in the network")
        found = milliseconds(variants())
        base = found["step, as configured"]
        table = Table("batches of 16", "ms CPU / image", "ratio")
        for name, value in found.items():
            table.add_row(name, f"{value:.2f}", f"{value / base:.2f}")
        console.print(table)
    mixing(console)
    if dataset:
        first_step(dataset, console)
        torch.set_num_threads(threads)
        loader(dataset, console)


if __name__ == "__main__":
    typer.run(main)
