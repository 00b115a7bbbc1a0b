"""Training of the detector's network, in one process.

As in the training of the descriptor, all random choices depend on the seed and the number of the
step, so a run resumed from its checkpoint ends as one without interruption.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dff.face.arrays import Bytes, Floats, Ints
from dff.face.descriptor import image_batch
from dff.face.detector_net import DetectorNet, decode_cells
from dff.face.errors import BadDataset, Diverged
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import Dataset
from dff.infra.networks.detector_file import load_detector, save_detector
from dff.trainer.data.crops import TrainingSurface, build_training_surface
from dff.trainer.data.datasets import load_common_model
from dff.trainer.data.shard_cache import CacheConfig
from dff.trainer.data.views import StoredView, ViewStore, open_views
from dff.trainer.detection.config import DetectorTrainConfig, describe_run
from dff.trainer.detection.scenes import DetectionScene, compose_scene, photograph
from dff.trainer.detection.targets import build_targets, detection_loss
from dff.trainer.meter import Figures
from dff.trainer.optimisation import (
    compute_learning_rate,
    move_average,
    read_checkpoint,
    set_learning_rate,
    write_checkpoint,
)

CHECKPOINT = "detector.pt"
# second words of the seeds of the order of views, of dev scenes and of camera effects
_SEQUENCE, _DEV, _EFFECTS = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD


class SceneSource:
    """The scenes of any step, made of a pool of decoded views that slides through the dataset."""

    def __init__(
        self, store: ViewStore, model: MorphableModel, config: DetectorTrainConfig
    ) -> None:
        self.store, self.config = store, config
        self.surface: TrainingSurface = build_training_surface(model)
        self.vertices: Ints = model.landmarks.vertex
        self.template: Floats = model.template[self.vertices].astype(np.float64)
        index = store.indexes[0]
        self._numbers = np.flatnonzero(index.bits(index.train, 0, len(index)))
        self._shard = index.shards_of(self._numbers)
        self._orders: OrderedDict[int, Ints] = OrderedDict()
        self._composed: dict[int, list[DetectionScene]] = {}  # by step
        self._pool: OrderedDict[int, StoredView] = OrderedDict()  # by place in the sequence

    def scenes(self, step: int) -> list[DetectionScene]:
        """The training scenes of a step: those composed for it and for some steps before it."""
        steps = range(max(step - self.config.uses + 1, 0), step + 1)
        for gone in [made for made in self._composed if made not in steps]:
            del self._composed[gone]
        for made in steps:
            if made not in self._composed:
                self._composed[made] = self._compose(made)
        composed = [scene for made in steps for scene in self._composed[made]]
        return [
            photograph(
                scene,
                self.config.scene,
                rng=np.random.default_rng([self.config.seed, _EFFECTS, step, number]),
            )
            for number, scene in enumerate(composed[-self.config.batch :])
        ]

    def _compose(self, step: int) -> list[DetectionScene]:
        """The scenes that are used from a step on; the first step fills its batch alone."""
        views = self._slide(step * self.config.fresh)
        count = self.config.batch // self.config.uses if step else self.config.batch
        return [
            self._draw(views, np.random.default_rng([self.config.seed, step, number]))
            for number in range(count)
        ]

    def dev_scenes(self) -> list[DetectionScene]:
        """Scenes of held-out views. Raises BadDataset when there are none."""
        held_out, _ = self.store.held_out(self.config.block_shards)
        if not len(held_out):
            raise BadDataset("the dataset holds out no views: make it of more identities")
        chosen = held_out[np.linspace(0, len(held_out) - 1, min(len(held_out), 512)).astype(int)]
        views = self.store.view_list(chosen.tolist())
        rngs = [
            np.random.default_rng([self.config.seed, _DEV, number])
            for number in range(self.config.dev_scenes)
        ]
        return [photograph(self._draw(views, rng), self.config.scene, rng=rng) for rng in rngs]

    def _draw(self, views: list[StoredView], rng: np.random.Generator) -> DetectionScene:
        return compose_scene(views, self.surface, self.vertices, self.config.scene, rng=rng)

    def _slide(self, first: int) -> list[StoredView]:
        """The views at ``first`` and the places after it in the sequence."""
        wanted = range(first, first + self.config.pool)
        for place in [place for place in self._pool if place not in wanted]:
            del self._pool[place]
        missing = [place for place in wanted if place not in self._pool]
        read = self.store.view_list([self._number(place) for place in missing])
        self._pool.update(zip(missing, read, strict=True))
        return [self._pool[place] for place in wanted]

    def _number(self, place: int) -> int:
        epoch, within = divmod(place, len(self._numbers))
        if epoch not in self._orders:
            self._orders[epoch] = self._shuffle(epoch)
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return int(self._orders[epoch][within])

    def _shuffle(self, epoch: int) -> Ints:
        """The views of an epoch: blocks of shards in random order, each block shuffled."""
        rng = np.random.default_rng([self.config.seed, _SEQUENCE, epoch])
        shards = rng.permutation(int(self._shard.max()) + 1)
        block = np.empty(len(shards), np.int64)
        block[shards] = np.arange(len(shards)) // self.config.block_shards
        return self._numbers[np.lexsort((rng.random(len(self._numbers)), block[self._shard]))]


@dataclass
class DetectorState:
    """The state of a run. Mutable: ``run_detector_training`` advances it in place."""

    step: int
    net: DetectorNet
    average: DetectorNet  # moving average of the weights, which is evaluated and saved
    optimiser: torch.optim.Optimizer


def initialise_detector(config: DetectorTrainConfig) -> DetectorState:
    """The state before the first step, from the seed or the weights to start from.

    Raises BadWeights for weights that can't be read, ValueError for those of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = DetectorNet(config.net)
    if config.start:
        begin = load_detector(config.start).net
        if begin.config != config.net:
            raise ValueError(
                f"{config.start} can't be started from: its network is {begin.config}, not "
                f"{config.net}"
            )
        net.load_state_dict(begin.state_dict())
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernels = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": kernels, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
    )
    return DetectorState(0, net, copy.deepcopy(net).requires_grad_(False), optimiser)


def run_detector_training(
    state: DetectorState,
    source: SceneSource,
    config: DetectorTrainConfig,
    *,
    on_figures: Callable[[int, Figures], None] = lambda step, figures: None,
    on_checkpoint: Callable[[DetectorState], None] = lambda state: None,
) -> Figures:
    """Advance ``state`` to ``config.steps``; returns the last validation figures.

    ``on_figures``: (step, figures) of the training every ``log_every`` steps, and of the validation
    every ``eval_every`` steps and at the end. Raises Diverged for a loss that is not finite.
    """
    dev_scenes = source.dev_scenes()
    sums: dict[str, float] = {}
    dev: Figures = {}
    while state.step < config.steps:
        terms = _take_step(state, source, config)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value / config.log_every
        last = state.step == config.steps
        if state.step % config.log_every == 0:
            if not np.isfinite(sum(sums.values())):
                raise Diverged(f"the loss of step {state.step} is {sums}: lower the learning rate")
            on_figures(state.step, sums)
            sums = {}
        if state.step % config.eval_every == 0 or last:
            dev = measure_detector(state.average, dev_scenes, config)
            on_figures(state.step, dev)
        if state.step % config.checkpoint_every == 0 or last:
            on_checkpoint(state)
    return dev or measure_detector(state.average, dev_scenes, config)


def _take_step(
    state: DetectorState, source: SceneSource, config: DetectorTrainConfig
) -> dict[str, float]:
    scenes = source.scenes(state.step)
    built = [build_targets(scene, source.template, config) for scene in scenes]
    targets = {
        name: torch.from_numpy(np.stack([getattr(one, name) for one in built]))
        for name in ("heat", "counted", "answer", "weight")
    }
    set_learning_rate(state.optimiser, compute_learning_rate(state.step, config))
    state.net.train()
    terms = detection_loss(state.net(_stack([scene.image for scene in scenes])), targets)
    weights = {"centre": 1.0, "box": config.box_weight, "rotation": config.rotation_weight}
    loss: Tensor = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.net.parameters(), config.max_gradient)
    state.optimiser.step()
    move_average(state.average.parameters(), state.net.parameters(), state.step, config.ema)
    state.step += 1
    return {name: float(value.detach()) for name, value in terms.items()}


def _stack(images: list[Bytes]) -> Tensor:
    batch = image_batch(torch.from_numpy(np.stack(images)))
    return batch.contiguous(memory_format=torch.channels_last)


def measure_detector(
    net: DetectorNet,
    scenes: list[DetectionScene],
    config: DetectorTrainConfig,
    *,
    probability: float = 0.3,
) -> Figures:
    """Recall and false alarms from this ``probability`` on, and mean overlap of boxes.

    ``recall``: share of the faces that must be detected with a box that overlaps theirs by half
    (intersection over union); ``false_per_scene``: detections that overlap no face at all by a
    quarter.
    """
    least = float(np.log(probability / (1.0 - probability)))
    found, wanted, false, overlaps = 0, 0, 0, list[float]()
    with torch.inference_mode():
        net.eval()
        answers = [
            net(_stack([scene.image]))[0].permute(1, 2, 0).float().numpy() for scene in scenes
        ]
    for scene, answer in zip(scenes, answers, strict=True):
        truth = np.concatenate([scene.landmarks.min(1), scene.landmarks.max(1)], axis=1)
        boxes = decode_cells(answer, least).box
        meet = _overlaps(truth, boxes)
        best = meet.max(1, initial=0.0)
        longest = (truth[:, 2:] - truth[:, :2]).max(1, initial=0.0)
        must = (scene.visible >= config.scene.whole) & (longest >= config.scene.smallest)
        must &= longest <= config.scene.largest
        wanted += int(must.sum())
        found += int((best[must] >= 0.5).sum())
        overlaps += best[must & (best >= 0.5)].tolist()
        false += int((meet.max(0, initial=0.0) < 0.25).sum())
    return {
        "recall": found / max(wanted, 1),
        "false_per_scene": false / max(len(scenes), 1),
        "overlap": float(np.mean(overlaps)) if overlaps else 0.0,
    }


def _overlaps(a: Floats, b: Floats) -> Floats:
    """(N, M) intersection over union of (N, 4) and (M, 4) boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0.0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9))


def save_detector_checkpoint(path: Path, state: DetectorState, config: DetectorTrainConfig) -> None:
    """Write the state and the settings to a checkpoint."""
    content = {
        "run": describe_run(config),
        "step": state.step,
        "net": state.net.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": state.optimiser.state_dict(),
    }
    write_checkpoint(path, content)


def load_detector_checkpoint(path: Path, state: DetectorState, config: DetectorTrainConfig) -> None:
    """Load a checkpoint into a new ``state``, in place.

    Raises ValueError when it is damaged or belongs to other settings.
    """
    content = read_checkpoint(path)
    then, now = content["run"], describe_run(config)
    changed = sorted(name for name in then | now if then.get(name) != now.get(name))
    if changed:
        raise ValueError(f"{path} belongs to a run with other settings: {', '.join(changed)}")
    state.step = int(content["step"])
    state.net.load_state_dict(content["net"])
    state.average.load_state_dict(content["average"])
    state.optimiser.load_state_dict(content["optimiser"])


def train_detector(
    dataset: Dataset,
    out: Path,
    config: DetectorTrainConfig,
    *,
    model: MorphableModel | str | None = None,
    work: Path | None = None,
    cache: CacheConfig | None = None,
    resume: bool = False,
    on_figures: Callable[[int, Figures], None] = lambda step, figures: None,
) -> Figures:
    """Train a detector on a finished dataset and write its file to ``out``; the last figures.

    ``work``: folder of the checkpoint, by default ``out`` with the suffix ``.run``; ``resume``
    continues from it, if there is one. Raises BadDataset, BadModel, Diverged, and ValueError for a
    checkpoint of other settings.
    """
    work = work or out.with_suffix(".run")
    loaded = load_common_model([dataset], model)
    store = open_views([dataset], loaded, cache or CacheConfig(work / "shards"))
    state = initialise_detector(config)
    checkpoint = work / CHECKPOINT
    if resume and checkpoint.exists():
        load_detector_checkpoint(checkpoint, state, config)
    figures = run_detector_training(
        state,
        SceneSource(store, loaded, config),
        config,
        on_figures=on_figures,
        on_checkpoint=lambda now: save_detector_checkpoint(checkpoint, now, config),
    )
    card = {
        "model": loaded.name,
        "model_licence": loaded.licence,
        "data_licences": list(store.licences),
        "dataset": dataset.manifest.fingerprint,
        "views": len(store),
        "steps": state.step,
        "dev": dict(figures),
        "config": describe_run(config),
        "torch": torch.__version__,
    }
    save_detector(out, state.average, card)
    return figures
