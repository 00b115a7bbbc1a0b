"""Throughput of synthesis and training over object storage, for several numbers of workers.

``python -m benchmarks.cluster s3://bucket/prefix [--endpoint-url URL] [--workers 1,2]``. Each count
of workers has a private Ray on this machine, whose processes have worked before the clock starts.
All numbers are measured in one run; the efficiency is relative to the first. What is stored lies
below the prefix and stays there.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

from dff.face.descriptor import NetConfig
from dff.infra import tracking
from dff.infra.cluster import connected
from dff.infra.dataset import open_dataset
from dff.pipeline.synthesis import synthesize
from dff.trainer.config import TrainConfig
from dff.trainer.launch import train_on_ray

FACES_PER_SHARD = 2


def measure_synthesis(
    place: str, workers: int, *, identities: int, views: int, endpoint_url: str | None
) -> float:
    """Views a second of sampled faces, each of 192 px with all columns, by warm processes."""

    def make(name: str, count: int) -> None:
        synthesize(
            None,
            f"{place}/{name}",
            identities=count,
            views=views,
            size=192,
            shard_subjects=FACES_PER_SHARD,
            workers=workers,
            endpoint_url=endpoint_url,
        )

    with connected(None, workers=workers):
        make(f"warm-{workers}", 2 * FACES_PER_SHARD * workers)
        start = time.perf_counter()
        make(f"views-{workers}", identities)
        return identities * views / (time.perf_counter() - start)


def measure_training(
    dataset: str,
    place: str,
    workers: int,
    *,
    steps: int,
    size: int,
    endpoint_url: str | None,
) -> tuple[float, float]:
    """Images a second of all workers, and the share of the time that they wait for batches.

    The median over the second half of the steps; checkpoints go to ``place``.
    """
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
        found = [
            [
                point.value
                for point in client.get_metric_history(launched.run_id, name)
                if point.step > steps // 2
            ]
            for name in ("images_per_second", "wait_fraction")
        ]
    rate, waiting = (float(np.median(values)) for values in found)
    return rate, waiting


def main(
    place: Annotated[str, typer.Argument(help="s3://bucket/prefix, or a folder.")],
    endpoint_url: Annotated[str | None, typer.Option(help="Of the S3 server.")] = None,
    workers: Annotated[str, typer.Option(help="Numbers of workers.")] = "1,2",
    identities: int = 48,
    views: int = 20,
    steps: int = 64,
    size: int = 160,
) -> None:
    """Print views and images a second, and efficiencies."""
    counts = [int(word) for word in workers.split(",")]
    console = Console()
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    place = f"{place.rstrip('/')}/{secrets.token_hex(3)}"
    table = Table("workers", "views/s", "efficiency", "images/s", "efficiency", "waiting")
    made, trained = [], []
    for count in counts:
        made.append(
            measure_synthesis(
                place, count, identities=identities, views=views, endpoint_url=endpoint_url
            )
        )
        console.print(f"{count} workers: {made[-1]:.1f} views/s")
    dataset = f"{place}/views-{counts[0]}"
    open_dataset(dataset, endpoint_url=endpoint_url).verify()
    for count in counts:
        trained.append(
            measure_training(
                dataset,
                f"{place}/runs",
                count,
                steps=steps,
                size=size,
                endpoint_url=endpoint_url,
            )
        )
        console.print(f"{count} workers: {trained[-1][0]:.1f} images/s")
    for count, synthesis, (rate, waiting) in zip(counts, made, trained, strict=True):
        share = count / counts[0]
        table.add_row(
            str(count),
            f"{synthesis:.1f}",
            f"{synthesis / made[0] / share:.2f}",
            f"{rate:.1f}",
            f"{rate / trained[0][0] / share:.2f}",
            f"{waiting:.0%}",
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
