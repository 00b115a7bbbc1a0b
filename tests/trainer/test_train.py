"""The training loop: it learns, resumes exactly, and writes weights with their card."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dff.face.descriptor import NetConfig, image_batch
from dff.face.errors import BadDataset, Diverged
from dff.face.io.assets import load_model
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.shards import ViewRow
from dff.infra.networks import weights
from dff.trainer.config import LossWeights, TrainConfig, to_card
from dff.trainer.data.config import AugmentConfig, MosaicConfig
from dff.trainer.data.crops import TrainingSurface
from dff.trainer.data.datasets import load_dataset_model
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.data.views import ViewStore
from dff.trainer.meter import Figures
from dff.trainer.state import (
    CHECKPOINT,
    TrainingState,
    extract_anchors,
    initialise_state,
    is_shallower,
    load_checkpoint,
    save_checkpoint,
)
from dff.trainer.train import (
    TrainingCallbacks,
    TrainingResult,
    run_training,
    train,
    wrap_distributed,
)
from tests.small_disk import enlarge, small_disk
from tests.trainer.conftest import write_dataset

Tensors = dict[str, torch.Tensor]
TINY = TrainConfig(
    steps=8,
    batch=8,
    views=4,
    pixels=64,
    size=64,
    anchors=120,
    warmup=2,
    ema=0.9,
    loaders=0,
    log_every=1,
    eval_every=100,
    checkpoint_every=3,
    dev_pairs=4,
    net=NetConfig(dims=8, widths=(8, 16, 16), depths=(1, 1, 1)),
)


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def collect_numbers(state: TrainingState) -> dict[str, torch.Tensor]:
    out = {f"learner.{k}": v for k, v in state.learner.state_dict().items()}
    out |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    for i, moments in state.optimiser.state_dict()["state"].items():
        out |= {f"moment.{i}.{k}": v for k, v in moments.items()}
    return out


def test_the_face_model_is_that_of_the_dataset(
    dataset: Dataset,
    rows: list[ViewRow],
    other_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the name in its rows, or the given file; a mismatch is one clear error."""
    assert load_dataset_model(dataset) is load_model("open-head")
    others = [replace(row, model="other-head") for row in rows]
    other = write_dataset(tmp_path / "other", others)
    assert load_dataset_model(other, str(other_model)).name == "other-head"
    with pytest.raises(
        BadDataset, match=r"'other-head', which has no file here: give it \(--model"
    ):
        load_dataset_model(other)
    with pytest.raises(BadDataset, match="shows the face model 'other-head', not 'open-head'"):
        load_dataset_model(other, "open-head")
    with pytest.raises(BadDataset, match="shows the face model 'open-head', not 'other-head'"):
        load_dataset_model(dataset, str(other_model))
    mixed = write_dataset(tmp_path / "mixed", [*others[:6], *rows[6:12]])
    counted = Dataset(
        mixed.storage, replace(mixed.manifest, counts={"model": {"open-head": 6, "other-head": 6}})
    )
    with pytest.raises(BadDataset, match="several face models: open-head, other-head"):
        load_dataset_model(counted)


def test_training_uses_the_face_model_of_the_dataset_by_default(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    config = replace(TINY, steps=1)
    named = train(dataset, tmp_path / "a.safetensors", config=config, model=open_head)
    found = train(dataset, tmp_path / "b.safetensors", config=config)
    for key, value in collect_numbers(named.state).items():
        assert torch.equal(value, collect_numbers(found.state)[key]), key


class Interrupted(Exception):
    """Stands for a power failure."""


@pytest.mark.parametrize("loaders", [0, 1])
def test_an_interrupted_run_resumes_to_the_same_end(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path, loaders: int
) -> None:
    """Interrupted at step 5, two steps after its checkpoint, and resumed: bit-identical."""
    whole = train(dataset, tmp_path / "whole.safetensors", config=TINY, model=open_head)

    def interrupt(step: int, figures: Figures) -> None:
        if step == 5:
            raise Interrupted

    config = replace(TINY, loaders=loaders)
    out = tmp_path / "parts.safetensors"
    with pytest.raises(Interrupted):
        train(
            dataset,
            out,
            config=config,
            model=open_head,
            callbacks=TrainingCallbacks(on_step=interrupt),
        )
    assert not out.exists()
    steps: list[int] = []
    seen = TrainingCallbacks(on_step=lambda step, figures: steps.append(step))
    parts = train(dataset, out, config=config, model=open_head, resume=True, callbacks=seen)
    assert steps == [4, 5, 6, 7, 8]
    wanted, got = collect_numbers(whole.state), collect_numbers(parts.state)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert whole.dev == parts.dev
    a, b = (weights.load(path) for path in (whole.weights, parts.weights))
    np.testing.assert_array_equal(a.anchors.descriptor, b.anchors.descriptor)
    again = train(dataset, out, config=config, model=open_head, resume=True)
    assert again.dev == whole.dev, "resumed after the last step"


def test_validation_runs_beside_the_training_and_changes_nothing(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    """A validation that takes as long as two steps, of the average at the step where it began."""
    config = replace(TINY, eval_every=4, checkpoint_every=4)
    whole = train(dataset, tmp_path / "whole.safetensors", config=config, model=open_head)
    two_steps_later = threading.Event()
    averages: dict[int, Tensors] = {}
    measured: dict[int, Tensors] = {}

    def step(number: int, figures: Figures) -> None:
        if number == 6:
            two_steps_later.set()

    def evaluated(state: TrainingState, figures: Figures) -> None:
        if state.step == 4:
            assert two_steps_later.wait(60), "the training stands still"
        measured[state.step] = state.average.state_dict()

    def checkpoint(state: TrainingState) -> None:
        averages[state.step] = {k: v.clone() for k, v in state.average.state_dict().items()}

    callbacks = TrainingCallbacks(on_step=step, on_evaluation=evaluated, on_checkpoint=checkpoint)
    out = tmp_path / "beside.safetensors"
    beside = train(dataset, out, config=config, model=open_head, callbacks=callbacks)
    assert list(measured) == list(averages) == [4, 8]
    for number, average in averages.items():
        assert all(torch.equal(value, measured[number][name]) for name, value in average.items())
    wanted, got = collect_numbers(whole.state), collect_numbers(beside.state)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert beside.dev == whole.dev


def test_an_error_of_the_validation_stops_the_training(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    def evaluated(state: TrainingState, figures: Figures) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(
            dataset,
            tmp_path / "w.safetensors",
            config=replace(TINY, steps=2, eval_every=1),
            model=open_head,
            callbacks=TrainingCallbacks(on_evaluation=evaluated),
        )


def test_a_checkpoint_is_made_out_of_turn_where_it_is_wanted(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    steps: list[int] = []
    callbacks = TrainingCallbacks(
        wants_checkpoint=lambda step: step == 5,
        on_checkpoint=lambda state: steps.append(state.step),
    )
    train(dataset, tmp_path / "w", config=TINY, model=open_head, callbacks=callbacks)
    assert steps == [3, 5, 6, 8]


def test_a_disk_that_is_full_costs_no_step(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    """The error names the file, the last checkpoint stays, and the run ends as if undisturbed."""
    whole = train(dataset, tmp_path / "whole.safetensors", config=TINY, model=open_head)
    kilobytes = (tmp_path / "whole.run" / CHECKPOINT).stat().st_size // 1024
    out = tmp_path / "disturbed.safetensors"
    steps: list[int] = []
    with small_disk(tmp_path / "disk", kilobytes * 3 // 2) as disk:

        def disturbed(resume: bool) -> TrainingResult:
            return train(
                dataset,
                out,
                config=TINY,
                model=open_head,
                work=disk / "run",
                cache=CacheConfig(tmp_path / "cache"),
                resume=resume,
                callbacks=TrainingCallbacks(on_step=lambda step, _: steps.append(step)),
            )

        with pytest.raises(OSError, match=rf"No space left .*'{disk}/run/{CHECKPOINT}'"):
            disturbed(resume=False)
        assert [path.name for path in (disk / "run").iterdir()] == [CHECKPOINT]
        enlarge(disk, kilobytes * 4)
        after = disturbed(resume=True)
    assert steps == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]
    wanted, got = collect_numbers(whole.state), collect_numbers(after.state)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_a_checkpoint_of_another_run_is_refused(open_head: MorphableModel, tmp_path: Path) -> None:
    state = initialise_state(open_head, TINY, torch.device("cpu"))
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, state, TINY)
    load_checkpoint(path, state, replace(TINY, steps=20, checkpoint_every=1))
    with pytest.raises(ValueError, match=r"learning_rate 0\.003 -> 0\.1"):
        load_checkpoint(path, state, replace(TINY, learning_rate=0.1))
    state.step = 9
    save_checkpoint(path, state, TINY)
    with pytest.raises(ValueError, match="at step 9 already, beyond the 8"):
        load_checkpoint(path, state, TINY)
    state.vertex = state.vertex + 1
    with pytest.raises(ValueError, match="another face model"):
        load_checkpoint(path, state, TINY)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read as a checkpoint"):
        load_checkpoint(path, state, TINY)
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]


def test_training_reduces_the_loss_and_the_matching_error(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    """After 100 small steps the loss and the validation errors are far below those at the start."""
    losses: dict[int, Figures] = {}
    config = replace(TINY, steps=100, batch=16, warmup=5, log_every=5, checkpoint_every=100)
    config = replace(config, net=NetConfig(dims=16, widths=(16, 32, 32), depths=(1, 1, 1)))
    before = train(
        dataset, tmp_path / "before", config=replace(config, steps=1), model=open_head
    ).dev
    callbacks = TrainingCallbacks(on_step=lambda step, figures: losses.update({step: figures}))
    trained = train(
        dataset, tmp_path / "w.safetensors", config=config, model=open_head, callbacks=callbacks
    )
    assert losses[100]["loss_anchors"] < 0.65 * losses[5]["loss_anchors"]
    assert losses[100]["loss_face"] < 0.7 * losses[5]["loss_face"]
    assert trained.dev["vote_mm_median"] < 0.8 * before["vote_mm_median"]
    assert trained.dev["match_px_mean"] < 0.8 * before["match_px_mean"]
    assert {"images_per_second", "wait_fraction", "learning_rate", "loss"} <= losses[100].keys()
    made = weights.load(trained.weights, model=open_head)
    assert made.card["steps"] == 100
    assert made.card["images_seen"] == 1600
    assert made.card["model_licence"] == open_head.licence
    assert made.card["data_licences"] == [open_head.licence]
    assert made.card["dataset"] == dataset.manifest.fingerprint
    assert made.card["dev"] == trained.dev
    assert made.card["config"] == to_card(config)
    assert made.card["config"]["augment"]["mosaic"]["zoom"] == [1.2, 4.2]


@pytest.mark.slow
def test_mixed_precision_and_compilation_train_nearly_the_same(
    store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    """bfloat16 has three digits and compiled code rounds otherwise; all weights stay float32."""
    base = replace(TINY, steps=3, net=NetConfig(dims=8, widths=(8,), depths=(0,)))
    ends: dict[str, tuple[float, TrainingState]] = {}
    for name, config in {
        "plain": base, "mixed": replace(base, mixed=True), "compiled": replace(base, compiled=True)
    }.items():  # fmt: skip
        losses: list[float] = []
        state = initialise_state(open_head, config, torch.device("cpu"))
        callbacks = TrainingCallbacks(
            on_step=lambda step, figures, losses=losses: losses.append(figures["loss"])
        )
        run_training(state, store, surface, config, callbacks=callbacks)
        ends[name] = losses[-1], state
    wanted, plain = ends["plain"]
    assert ends["mixed"][0] == pytest.approx(wanted, rel=0.02)
    assert ends["compiled"][0] == pytest.approx(wanted, rel=1e-4)
    for _, state in ends.values():
        there = collect_numbers(state)
        assert there.keys() == collect_numbers(plain).keys()
        assert all(value.dtype == torch.float32 for name, value in there.items())
    assert ends["mixed"][0] != wanted


def test_fields_that_a_checkpoint_lacks_have_their_defaults(
    open_head: MorphableModel, tmp_path: Path
) -> None:
    state = initialise_state(open_head, TINY, torch.device("cpu"))
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, state, TINY)
    content = torch.load(path, weights_only=True)
    del content["config"]["mixed"], content["config"]["weights"]["pairs"]
    del content["config"]["augment"]["mosaic"]
    torch.save(content, path)
    load_checkpoint(path, state, TINY)
    with pytest.raises(ValueError, match="mixed False -> True"):
        load_checkpoint(path, state, replace(TINY, mixed=True))
    augment = AugmentConfig(mosaic=MosaicConfig(most_faces=2))
    with pytest.raises(ValueError, match=r"configuration: augment\.mosaic\.most_faces 4 -> 2$"):
        load_checkpoint(path, state, replace(TINY, augment=augment))


def test_a_run_starts_from_weights_and_keeps_their_licences(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    first = train(
        dataset, tmp_path / "first.safetensors", config=replace(TINY, steps=2), model=open_head
    ).weights
    loaded = weights.load(first)
    weights.save(
        first,
        loaded.net,
        loaded.anchors,
        {**loaded.card, "data_licences": ["LicenseRef-elsewhere"]},
    )
    config = replace(TINY, start=str(first))
    state = initialise_state(open_head, config, torch.device("cpu"))
    for name, value in weights.load(first).net.state_dict().items():
        assert torch.equal(state.learner.net.state_dict()[name], value)
    np.testing.assert_allclose(
        state.learner.class_vectors().detach().numpy(), loaded.anchors.descriptor, atol=1e-6
    )
    second = train(dataset, tmp_path / "second.safetensors", config=config, model=open_head).weights
    assert set(weights.load(second).card["data_licences"]) == {
        "LicenseRef-elsewhere",
        *loaded.card["data_licences"],
    }
    with pytest.raises(ValueError, match=r"it has [0-9]+ anchors, not 60"):
        initialise_state(open_head, replace(config, anchors=60), torch.device("cpu"))


def test_a_deeper_network_starts_with_the_descriptors_of_the_shallower_one(
    rows: list[ViewRow], store: ViewStore, surface: TrainingSurface, open_head: MorphableModel
) -> None:
    """New blocks hardly change the descriptors of the shipped network, and all get gradients."""
    shipped = weights.load("dff-open").net
    depths = (
        *shipped.config.depths[:-2],
        shipped.config.depths[-2] + 2,
        shipped.config.depths[-1] + 4,
    )
    net = replace(shipped.config, depths=depths)
    config = replace(TINY, steps=1, size=160, batch=4, anchors=800, start="dff-open", net=net)
    state = initialise_state(open_head, config, torch.device("cpu"))
    images = torch.from_numpy(np.stack([cv2.resize(row.pixels(), (160, 160)) for row in rows[:2]]))
    with torch.no_grad():
        before, after = (
            net(image_batch(images)).descriptor for net in (shipped, state.learner.net)
        )
    cosine = (before * after).sum(1)
    assert cosine.mean() > 0.96, "measured: 0.974, 0.984 with the weights before"
    assert cosine.quantile(0.01) > 0.88, "measured: 0.894, 0.930 with the weights before"
    run_training(state, store, surface, config)
    known = shipped.state_dict()
    grown = {name: p for name, p in state.learner.net.named_parameters() if name not in known}
    assert len(grown) == 6 * 4, "kernels, gain and bias of six blocks"
    for name, parameter in grown.items():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 1e-4, name


@pytest.mark.parametrize(
    "net",
    [
        {"depths": (1, 0, 1)},
        {"widths": (8, 16, 24)},
        {"dims": 16},
        {"groups": 4},
        {"widths": (8, 16), "depths": (1, 1)},
    ],
    ids=["shallower", "wider", "longer descriptors", "other groups", "fewer strides"],
)
def test_starting_weights_must_be_as_wide_and_nowhere_deeper(
    open_head: MorphableModel, tmp_path: Path, net: dict[str, Any]
) -> None:
    assert is_shallower(TINY.net, TINY.net)
    assert is_shallower(TINY.net, replace(TINY.net, depths=(1, 1, 3)))
    wanted = replace(TINY.net, **net)
    assert not is_shallower(TINY.net, wanted)
    state = initialise_state(open_head, TINY, torch.device("cpu"))
    path = tmp_path / "w.safetensors"
    card = {
        "model": open_head.name,
        "model_licence": open_head.licence,
        "data_licences": [],
        "steps": 0,
    }
    weights.save(path, state.average.net, extract_anchors(state, open_head, TINY), card)
    with pytest.raises(
        ValueError, match=r"w\.safetensors can't be started from: its network.*nowhere deeper"
    ):
        initialise_state(open_head, replace(TINY, start=str(path), net=wanted), torch.device("cpu"))


def test_a_loss_that_is_not_finite_stops_the_run(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    with pytest.raises(Diverged, match="lower the learning rate"):
        train(dataset, tmp_path / "w", config=replace(TINY, learning_rate=1e30), model=open_head)
    assert not (tmp_path / "w").exists()


def test_no_checkpoint_holds_weights_that_are_not_finite(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    """Also between two steps at which the loss is logged."""
    config = replace(TINY, learning_rate=1e30, log_every=100)
    with pytest.raises(Diverged, match="weights of step 3 are not finite"):
        train(dataset, tmp_path / "w", config=config, model=open_head)
    assert not (tmp_path / "w.run" / CHECKPOINT).exists()


@pytest.mark.parametrize(
    "loss_weights", [LossWeights(), LossWeights(anchors=0.0, views=1.0), LossWeights(face=0.0)]
)
def test_any_terms_of_the_loss_can_be_trained_by_several_processes(
    store: ViewStore,
    surface: TrainingSurface,
    open_head: MorphableModel,
    tmp_path: Path,
    loss_weights: LossWeights,
) -> None:
    """A group of one process has the same gradients as no group."""
    config = replace(TINY, steps=3, weights=loss_weights)
    alone, one_of_one = (initialise_state(open_head, config, torch.device("cpu")) for _ in range(2))
    run_training(alone, store, surface, config)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        run_training(
            one_of_one, store, surface, config, wrapped=wrap_distributed(one_of_one.learner)
        )
    finally:
        torch.distributed.destroy_process_group()
    wanted, got = collect_numbers(alone), collect_numbers(one_of_one)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_as_the_cpu_does(
    dataset: Dataset, open_head: MorphableModel, tmp_path: Path
) -> None:
    """The losses differ by rounding only, and a run can be resumed on the GPU."""
    losses: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device, seen in losses.items():
        callbacks = TrainingCallbacks(
            on_step=lambda step, figures, seen=seen: seen.append(figures["loss"])
        )
        train(
            dataset,
            tmp_path / device,
            config=TINY,
            model=open_head,
            device=device,
            callbacks=callbacks,
        )
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=0.01)
    again = train(
        dataset, tmp_path / "cuda", config=TINY, model=open_head, device="cuda", resume=True
    )
    assert again.state.learner.vectors.is_cuda
    assert weights.load(again.weights, model=open_head).card["steps"] == TINY.steps


def test_a_dataset_of_another_model_is_refused(
    dataset: Dataset, toy_model: MorphableModel, tmp_path: Path
) -> None:
    with pytest.raises(BadDataset, match="shows the model 'open-head', not"):
        train(dataset, tmp_path / "w", config=TINY, model=toy_model)
    assert not (tmp_path / "w").exists()
