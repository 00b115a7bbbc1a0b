"""Train in this process, with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dff.infra.datasets.dataset import Dataset
from dff.trainer.config import TrainConfig
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.events import show_step
from dff.trainer.meter import Figures
from dff.trainer.train import TrainingCallbacks, check_gpus, train


def train_here(
    datasets: Sequence[Dataset],
    out: Path,
    *,
    config: TrainConfig,
    model: str | None,
    work: Path,
    resume: bool,
    gpu: bool,
    cache: CacheConfig,
    endpoint_url: str | None = None,
) -> Figures:
    """Train in this process, with a progress bar; the figures of held-out identities.

    The bar shows the share of the time spent waiting for batches; more loaders lower it.
    ``model``: name or file of the face model, by default that of the datasets. ``work``: folder of
    the run, which must be new unless it is resumed. ``cache``: of the shards of the datasets.
    ``endpoint_url``: of an S3 server other than AWS, for weights to start from.
    Raises ValueError for ``gpu`` where torch finds none, and as ``dff.trainer.train.train``.
    """
    check_gpus(int(gpu))
    if work.exists() and not resume:
        raise ValueError(f"{work} holds an earlier run: resume it, or give this one another name")
    with tqdm(total=config.steps, unit=" steps") as bar:

        def show(step: int, figures: Figures) -> None:
            show_step(bar, step)
            bar.set_postfix(
                loss=f"{figures['loss']:.3f}", waiting=f"{figures['wait_fraction']:.0%}"
            )

        return train(
            datasets,
            out,
            config=config,
            model=model,
            resume=resume,
            work=work,
            endpoint_url=endpoint_url,
            device="cuda" if gpu else "cpu",
            callbacks=TrainingCallbacks(on_step=show),
            cache=cache,
        ).dev
