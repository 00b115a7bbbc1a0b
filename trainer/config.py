"""The configuration of a training run: one frozen value, which checkpoints and weights record.

Functions of the trainer take its fields or its parts rather than the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, fields, is_dataclass
from math import inf
from typing import Any, get_origin, get_type_hints

from dff.face.descriptor import NetConfig
from dff.trainer.data.config import AugmentConfig
from dff.trainer.evaluation.config import EvaluationConfig

RESUMABLE_CHANGES = frozenset(
    {"steps", "loaders", "compiled", "log_every", "eval_every", "checkpoint_every"}
)
"""Fields that may differ between a run and its resumption.

Another number of steps changes the learning rate from the resumption on.
"""


@dataclass(frozen=True)
class WorkerRange:
    """How many workers train: any number from ``least`` to ``most``, as nodes come and go.

    Raises ValueError for an empty range.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            span = f"{self.least}:{self.most}"
            raise ValueError(f"workers are a number or a range LEAST:MOST, not {span!r}")

    def __str__(self) -> str:
        return f"{self.least}:{self.most}" if self.is_elastic else str(self.most)

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change during a run."""
        return self.least < self.most

    @staticmethod
    def parse(text: str) -> WorkerRange:
        """The range of "2:8" or "8". Raises ValueError for any other text."""
        least, _, most = text.partition(":")
        if not (least.isdecimal() and (most or least).isdecimal()) or text.endswith(":"):
            raise ValueError(f"workers are a number or a range LEAST:MOST, not {text!r}")
        return WorkerRange(int(least), int(most or least))


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the loss; a term of weight zero is not computed.

    Raises ValueError for negative weights, and when all are zero.
    """

    anchors: float = 1.0  # classification against the learned vector of each anchor
    views: float = 0.0  # classification against normalised means over the views of one identity
    pairs: float = 0.0  # contrast of the pixels of two views, with all negatives
    hard_pairs: float = 0.0  # the same with the hardest negatives only
    face: float = 0.5  # classification of pixels as face or not

    def __post_init__(self) -> None:
        if not all(weight >= 0 for weight in astuple(self)) or not any(astuple(self)):
            raise ValueError(f"LossWeights must not be negative, nor all be zero: {self}")


@dataclass(frozen=True)
class ContrastConfig:
    """The contrastive terms of the loss. Raises ValueError for distances in the wrong order."""

    positive_distance: float = 0.004  # metres in surface coordinates: two pixels are a pair
    negative_distance: float = 0.012  # the same: from here two pixels are a negative pair
    margin: float = 1.0
    """Distance of two descriptors from which a negative pair costs nothing; sqrt(2) if orthogonal.
    """

    def __post_init__(self) -> None:
        if not (0.0 < self.positive_distance <= self.negative_distance and self.margin > 0.0):
            raise ValueError(
                "ContrastConfig needs 0 < positive_distance <= negative_distance, and a positive "
                f"margin: {self}"
            )


CONTRAST = ContrastConfig()
"""The default settings."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Raises ValueError for one that is impossible."""

    steps: int = 4000
    batch: int = 32  # images in a step, of all workers together
    views: int = 4  # views of one identity in a batch
    pixels: int = 384  # surface points of each image that are trained on
    size: int = 128  # side of the network's input, px
    other_sizes: tuple[int, ...] = ()  # half of the steps take one of these sides instead, px
    anchors: int = 800
    sigma: float = 0.0045  # metres on the surface: width of the soft targets
    scale: float = 16.0  # the log odds are scale * cosine
    learning_rate: float = 3e-3  # after the warm-up
    final_rate: float = 0.01  # learning rate at the last step, over ``learning_rate``
    warmup: int = 100  # steps
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    max_gradient: float = 1.0  # norm that gradients are clipped to
    ema: float = 0.999  # decay of the moving average of the weights
    seed: int = 0
    where: str = ""  # filter of the views (``dff.infra.datasets.shard_filter``); none: all
    shares: tuple[float, ...] = (1.0,)  # of the datasets, in their order; they are normalised
    block_views: int = 65536  # views of neighbouring shards that are shuffled together, about
    start: str = ""  # weights to start from, a file or a shipped name; none: from scratch
    new_block_gain: float = 0.1  # of residual blocks that the weights started from lack
    mixed: bool = False  # the network's activations in bfloat16
    compiled: bool = False  # torch.compile the network, which takes a minute at the start
    loaders: int = 1  # processes that prepare batches; 0: the training process itself
    log_every: int = 20  # steps
    eval_every: int = 500  # steps
    checkpoint_every: int = 250  # steps
    dev_pairs: int = 64  # pairs of held-out views for validation
    min_membership: float = 0.25
    """Total soft membership from which a class counts in the ``views`` term of the loss."""
    net: NetConfig = field(default_factory=NetConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "views", "pixels", "anchors")
        for name in (*counts, "log_every", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"TrainConfig.{name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("loaders", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"TrainConfig.{name} must be at least 0, got {getattr(self, name)}"
                )
        if self.block_views < self.batch:
            raise ValueError(
                f"TrainConfig.block_views must be at least a batch of {self.batch}, got "
                f"{self.block_views}"
            )
        if not self.shares or not all(0.0 < share < float("inf") for share in self.shares):
            raise ValueError(f"the shares of datasets must be positive, got {list(self.shares)}")
        if self.seed < 0:
            raise ValueError(f"TrainConfig needs a seed of zero or more, got {self.seed}")
        if self.batch % self.views:
            raise ValueError(
                f"a batch of {self.batch} does not divide into groups of {self.views} views"
            )
        for size in (self.size, *self.other_sizes):
            if size <= 0 or size % self.net.multiple:
                raise ValueError(
                    f"an input of {size} pixels is no positive multiple of {self.net.multiple}"
                )
        for name in ("sigma", "scale", "learning_rate", "max_gradient"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"TrainConfig.{name} must be positive, got {getattr(self, name)}")
        if not all(0 <= x < 1 for x in (self.ema, *self.betas)):
            raise ValueError(
                f"TrainConfig.ema and betas must be in 0 <= x < 1, got {self.ema} and {self.betas}"
            )

    def is_log_step(self, step: int) -> bool:
        """Whether figures are logged after step ``step``."""
        return step % self.log_every == 0 or step == self.steps

    def is_checkpoint_step(self, step: int) -> bool:
        """Whether a checkpoint is made after step ``step``."""
        return step % self.checkpoint_every == 0 or step == self.steps

    def check_workers(self, workers: int) -> None:
        """Raise ValueError when the batch does not divide into identities over ``workers``."""
        if workers < 1 or self.batch % (workers * self.views):
            raise ValueError(
                f"a batch of {self.batch} in groups of {self.views} does not split over "
                f"{workers} workers"
            )

    def count_used_workers(self, workers: int) -> int:
        """The most of the ``workers`` that the batch splits over; the others have to stand by."""
        groups = self.batch // self.views
        return max(n for n in range(1, min(workers, groups) + 1) if groups % n == 0)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values for JSON and checkpoints: nested dicts, and lists for tuples."""
    plain = _to_plain(asdict(config))
    assert isinstance(plain, dict)
    return plain


def _to_plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _to_plain(part) for name, part in value.items()}
    return [_to_plain(part) for part in value] if isinstance(value, tuple) else value


def to_card(config: TrainConfig) -> dict[str, Any]:
    """``to_dict`` for the card of weights: ``start`` without the folders before its name."""
    return to_dict(config) | {"start": config.start.rsplit("/", 1)[-1]}


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of ``to_dict``; missing names take their defaults.

    Raises ValueError for unknown names and impossible values.
    """
    config = _from_plain(TrainConfig, values)
    assert isinstance(config, TrainConfig)
    return config


def _from_plain(kind: type, values: Mapping[str, Any]) -> object:
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}")
    hints = get_type_hints(kind)
    out: dict[str, object] = {}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            out[name] = _from_plain(hints[name], value)
        else:
            out[name] = tuple(value) if get_origin(hints[name]) is tuple else value
    return kind(**out)


def list_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Differences of two ``to_dict``, as "weights.pairs 0.0 -> 0.5", sorted by name."""
    old, new = _flatten(before), _flatten(after)
    names = sorted(name for name in old | new if old.get(name) != new.get(name))
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in names]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= _flatten(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
