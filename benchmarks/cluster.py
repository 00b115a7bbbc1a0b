"""Throughput of synthesis and training over object storage, for several numbers of workers.

``python -m benchmarks.cluster s3://bucket/prefix [--endpoint-url URL] [--workers 1,2]``. Each count
of workers has a private Ray on this machine, whose processes have worked before the clock starts.
All numbers are measured in one run; the efficiency is relative to the first. What is stored lies
below the prefix and stays there.

The CPU time of a view, and of an image of the training, is told for the workers, for Ray's own
processes and for the driver; where an S3 server runs on this machine, also for its processes
(``--server PID,PID``), and for whatever else the machine does meanwhile. It says whether a second
worker does any work twice, also where the machine is too small to run all of them at once.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

from dff.face.descriptor import NetConfig
from dff.infra.clusters.cluster import connected
from dff.infra.datasets.dataset import open_dataset
from dff.infra.mlflow import tracking
from dff.pipeline.synthesis import synthesize
from dff.trainer.config import TrainConfig
from dff.trainer.launch import train_on_ray

WARM_FACES = 24  # for each worker: all have started before the first is through with them
PARTS = ("workers", "ray", "driver", "server", "others")


@dataclass
class CpuClock:
    """CPU seconds of this process, of Ray's processes below it, and of others of the machine.

    A process that has ended counts as far as it was seen.
    """

    servers: Sequence[int] = ()  # ids of an S3 server's processes
    _seen: dict[int, tuple[str, float]] = field(default_factory=dict)  # part and seconds by id

    def read(self) -> Mapping[str, float]:
        """Seconds since the processes began, by part."""
        own = psutil.Process()
        self._look(own, "driver")
        for child in own.children(recursive=True):
            with suppress(psutil.Error):
                works = " ".join(child.cmdline()).startswith("ray::")
                self._look(child, "workers" if works else "ray")
        for pid in self.servers:
            with suppress(psutil.Error):
                self._look(psutil.Process(pid), "server")
        found = {
            part: sum(seconds for name, seconds in self._seen.values() if name == part)
            for part in PARTS
        }
        times = psutil.cpu_times()
        found["others"] = times.user + times.nice + times.system - sum(found.values())
        return found

    def _look(self, process: psutil.Process, part: str) -> None:
        with suppress(psutil.Error):
            times = process.cpu_times()
            self._seen[process.pid] = part, times.user + times.system

    @contextmanager
    def watched(self) -> Iterator[list[tuple[float, Mapping[str, float]]]]:
        """(time, seconds by part) of twice a second; the list grows until the block ends."""
        seen: list[tuple[float, Mapping[str, float]]] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.5):
                seen.append((time.time(), self.read()))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            ended.set()
            thread.join()


@dataclass(frozen=True)
class Synthesis:
    """What the synthesis of some views took."""

    rate: float  # views a second
    cpu: Mapping[str, float]  # CPU milliseconds a view, by part
    first: float  # seconds from the start of a Ray to the first stored shard's end


@dataclass(frozen=True)
class Training:
    """What the second half of a training's steps took."""

    rate: float  # images a second of all workers, median
    waiting: float  # share of the time that workers wait for batches, median
    cpu: Mapping[str, float]  # CPU milliseconds an image, by part


def measure_synthesis(
    place: str,
    workers: int,
    *,
    identities: int,
    views: int,
    size: int,
    shard_faces: int,
    endpoint_url: str | None,
    clock: CpuClock,
) -> Synthesis:
    """The synthesis of sampled faces, with all columns, by warm processes."""

    def make(name: str, count: int, faces: int = 1) -> None:
        synthesize(
            None,
            f"{place}/{name}",
            identities=count,
            views=views,
            size=size,
            shard_subjects=faces,
            workers=workers,
            endpoint_url=endpoint_url,
        )

    begun = time.perf_counter()
    with connected(None, workers=workers):
        make(f"first-{workers}", 1)
        first = time.perf_counter() - begun
        make(f"warm-{workers}", WARM_FACES * workers)
        before, start = clock.read(), time.perf_counter()
        make(f"views-{workers}", identities, shard_faces)
        took, after = time.perf_counter() - start, clock.read()
    count = identities * views
    cpu = {part: (after[part] - before[part]) / count * 1e3 for part in PARTS}
    return Synthesis(count / took, cpu, first)


def measure_training(
    dataset: str,
    place: str,
    workers: int,
    *,
    steps: int,
    size: int,
    endpoint_url: str | None,
    clock: CpuClock,
) -> Training:
    """A training whose checkpoints go to ``place``."""
    config = TrainConfig(
        steps=steps,
        batch=32,
        size=size,
        loaders=0,
        log_every=max(steps // 8, 1),
        eval_every=steps,
        checkpoint_every=steps,
        net=NetConfig(dims=8, widths=(8, 16), depths=(1, 1)),
    )
    with tempfile.TemporaryDirectory() as folder:
        uri = tracking.local_uri(Path(folder))
        with clock.watched() as seen:
            launched = train_on_ray(
                dataset,
                Path(folder) / "weights.safetensors",
                config=config,
                name=f"workers-{workers}",
                storage=place,
                workers=workers,
                cpus_per_worker=1,
                endpoint_url=endpoint_url,
                tracking_uri=uri,
                cache=Path(folder) / "cache",
            )
        client = MlflowClient(uri)
        history = {
            name: [p for p in client.get_metric_history(launched.run_id, name) if p.step]
            for name in ("images_per_second", "wait_fraction")
        }
    later = {
        name: [point for point in points if point.step > steps // 2]
        for name, points in history.items()
    }
    rate, waiting = (float(np.median([p.value for p in points])) for points in later.values())
    begun = [p for p in history["images_per_second"] if p.step <= steps // 2][-1]
    ended = later["images_per_second"][-1]
    before, after = (
        min(seen, key=lambda one: abs(one[0] - point.timestamp / 1e3)) for point in (begun, ended)
    )
    # The two readings lie up to a quarter of a second beside the steps.
    images = rate * (after[0] - before[0])
    cpu = {part: (after[1][part] - before[1][part]) / images * 1e3 for part in PARTS}
    return Training(rate, waiting, cpu)


def main(
    place: Annotated[str, typer.Argument(help="s3://bucket/prefix, or a folder.")],
    endpoint_url: Annotated[str | None, typer.Option(help="Of the S3 server.")] = None,
    workers: Annotated[str, typer.Option(help="Numbers of workers.")] = "1,2",
    server: Annotated[str, typer.Option(help="Processes of an S3 server here, by id.")] = "",
    identities: int = 48,
    views: int = 20,
    view_size: int = 192,
    shard_faces: Annotated[int, typer.Option(help="Faces of a shard.", min=1)] = 2,
    steps: int = 64,
    size: int = 160,
) -> None:
    """Print views and images a second, and efficiencies; with ``--steps 0`` no images."""
    counts = [int(word) for word in workers.split(",")]
    clock = CpuClock([int(word) for word in server.split(",") if word])
    console = Console()
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    place = f"{place.rstrip('/')}/{secrets.token_hex(3)}"
    made = [
        measure_synthesis(
            place,
            count,
            identities=identities,
            views=views,
            size=view_size,
            shard_faces=shard_faces,
            endpoint_url=endpoint_url,
            clock=clock,
        )
        for count in counts
    ]
    table = Table("workers", "views/s", "efficiency", "first view, s")
    for part in PARTS:
        table.add_column(f"CPU ms a view: {part}")
    for count, found in zip(counts, made, strict=True):
        efficiency = found.rate / made[0].rate * counts[0] / count
        cells = [f"{found.cpu[part]:.1f}" for part in PARTS]
        table.add_row(
            str(count), f"{found.rate:.1f}", f"{efficiency:.2f}", f"{found.first:.1f}", *cells
        )
    console.print(table)
    if not steps:
        return
    dataset = f"{place}/views-{counts[0]}"
    open_dataset(dataset, endpoint_url=endpoint_url).verify()
    trained = [
        measure_training(
            dataset,
            f"{place}/runs",
            count,
            steps=steps,
            size=size,
            endpoint_url=endpoint_url,
            clock=clock,
        )
        for count in counts
    ]
    table = Table("workers", "images/s", "efficiency", "waiting")
    for part in PARTS:
        table.add_column(f"CPU ms an image: {part}")
    for count, run in zip(counts, trained, strict=True):
        efficiency = run.rate / trained[0].rate * counts[0] / count
        cells = [f"{run.cpu[part]:.1f}" for part in PARTS]
        table.add_row(
            str(count), f"{run.rate:.1f}", f"{efficiency:.2f}", f"{run.waiting:.0%}", *cells
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
