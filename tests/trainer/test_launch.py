"""Training on a real local Ray: two workers do what one process does, tracked and registered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from face.descriptor import NetConfig
from face.morphable import MorphableModel
from infra import tracking, weights
from infra.dataset import Dataset
from trainer.config import TrainConfig
from trainer.launch import ALIAS, REGISTERED_NAME, fit
from trainer.train import Figures, Watch, train

CONFIG = TrainConfig(
    steps=4, batch=16, views=4, pixels=64, size=64, anchors=120, warmup=2, loaders=0, log_every=1, eval_every=4,
    checkpoint_every=2, dev_pairs=4, learning_rate=1e-3, net=NetConfig(dims=8, widths=(8, 16), depths=(1, 1)),
)  # fmt: skip


@pytest.mark.ray
def test_two_workers_train_as_one_process_does(dataset: Dataset, open_head: MorphableModel, tmp_path: Path) -> None:
    alone: dict[int, Figures] = {}
    one = train(
        dataset,
        tmp_path / "one.safetensors",
        config=CONFIG,
        model=open_head,
        watch=Watch(step=lambda step, figures: alone.update({step: figures})),
    )
    storage = tmp_path / "ray"
    out = tmp_path / "two.safetensors"
    arguments = {"name": "run", "storage": storage, "workers": 2, "cpus_per_worker": 1}
    two = fit(dataset.storage.uri, out, config=CONFIG, **arguments)  # type: ignore[arg-type]

    client = MlflowClient(tracking.local_uri(storage))
    history = client.get_metric_history(two.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4]
    for point in history:
        assert point.value == pytest.approx(alone[point.step]["loss"], rel=2e-4), f"step {point.step}"
    assert two.dev["vote_mm_median"] == pytest.approx(one.dev["vote_mm_median"], rel=0.02)

    run = client.get_run(two.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["net.dims"] == "8"
    assert [f.path for f in client.list_artifacts(two.run_id, "pictures")] == ["pictures/match-0000004.png"]
    version = client.get_model_version_by_alias(REGISTERED_NAME, ALIAS)
    assert (version.run_id, version.version) == (two.run_id, two.version)
    assert weights.load(out, model=open_head).card["steps"] == 4

    with pytest.raises(ValueError, match="holds an earlier run"):
        fit(dataset.storage.uri, out, config=CONFIG, **arguments)  # type: ignore[arg-type]


def test_a_batch_that_does_not_split_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not split over 3 workers"):
        fit("nowhere", tmp_path / "w", config=replace(CONFIG, batch=16), name="n", storage=tmp_path, workers=3)
