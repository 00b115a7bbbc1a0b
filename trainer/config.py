"""What a training run is: one frozen value, unknown names refused. Functions take its fields, not
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any

from dff.face.descriptor import NetConfig

RESUMABLE_CHANGES = frozenset(
    {"steps", "loaders", "compiled", "log_every", "eval_every", "checkpoint_every"}
)
"""Fields that may differ between a run and its resumption. Other ``steps`` bend the schedule from
there on.
"""


@dataclass(frozen=True)
class LossWeights:
    """How much each term of the loss counts; a term of weight zero is not computed.

    Raises ValueError for weights below zero, and when none is above.
    """

    anchors: float = 1.0  # classification against the learned vector of each anchor
    views: float = 0.0  # classification against the normalised means over the views of one identity
    pairs: float = 0.0  # contrast of pixels of two views, against all that show another place
    hard_pairs: float = 0.0  # the same against the most alike of those only
    face: float = 0.5  # does the pixel show the face

    def __post_init__(self) -> None:
        if not all(weight >= 0 for weight in astuple(self)) or not any(astuple(self)):
            raise ValueError(
                f"LossWeights wants weights of zero and more, and one above zero: {self}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Raises ValueError for what cannot be trained."""

    steps: int = 4000
    batch: int = 32  # images in a step, over all workers together
    views: int = 4  # of one identity in a batch
    pixels: int = 384  # surface points learned from in each image
    size: int = 128  # input pixels
    anchors: int = 800
    sigma: float = 0.0045  # metres on the surface: width of the soft targets
    scale: float = 16.0  # log odds are scale * cosine
    learning_rate: float = 3e-3
    warmup: int = 100  # steps
    weight_decay: float = 0.01
    ema: float = 0.999  # of the moving average of the weights
    seed: int = 0
    start: str = ""  # weights to start from, a file or a shipped name; none: from scratch
    mixed: bool = False  # the network's activations in bfloat16
    compiled: bool = (
        False  # the network by torch.compile, which takes a minute before the first step
    )
    loaders: int = 1  # processes that make batches; 0 makes them in the trainer's own
    log_every: int = 20  # steps
    eval_every: int = 500
    checkpoint_every: int = 250
    dev_pairs: int = 64  # pairs of views that the dev figures are taken from
    net: NetConfig = field(default_factory=NetConfig)
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.views, self.pixels, self.anchors, self.log_every) < 1:
            raise ValueError(f"TrainConfig wants positive counts: {self}")
        if min(self.eval_every, self.checkpoint_every) < 1 or self.loaders < 0 or self.warmup < 0:
            raise ValueError(f"TrainConfig wants positive intervals: {self}")
        if self.seed < 0:
            raise ValueError(f"TrainConfig wants a seed of zero and more, got {self.seed}")
        if self.batch % self.views:
            raise ValueError(
                f"a batch of {self.batch} does not hold whole groups of {self.views} views"
            )
        if self.size % self.net.multiple:
            raise ValueError(
                f"an input of {self.size} pixels is no multiple of {self.net.multiple}"
            )
        if (
            not all(x > 0 for x in (self.sigma, self.scale, self.learning_rate))
            or not 0 <= self.ema < 1
        ):
            raise ValueError(
                "TrainConfig wants positive sigma, scale and rate, and an average below one: "
                f"{self}"
            )

    def check_workers(self, workers: int) -> None:
        """ValueError when the batch does not split into whole identities over ``workers``."""
        if workers < 1 or self.batch % (workers * self.views):
            raise ValueError(
                f"a batch of {self.batch} in groups of {self.views} does not split over "
                f"{workers} workers"
            )


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values, for JSON and checkpoints."""
    plain = asdict(config)
    plain["net"] |= {"widths": list(config.net.widths), "depths": list(config.net.depths)}
    return plain


def to_card(config: TrainConfig) -> dict[str, Any]:
    """As a card tells it: of the weights that were started from, their own name without the folders
    before it.
    """
    return to_dict(config) | {"start": config.start.rsplit("/", 1)[-1]}


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of ``to_dict``; missing names take their defaults. ValueError for unknown
    ones.
    """
    out = dict(values)
    for name, kind in (("net", NetConfig), ("weights", LossWeights)):
        if name in out:
            _check_names(kind, out[name])
            out[name] = kind(**out[name])
    _check_names(TrainConfig, out)
    return TrainConfig(**out)


def _check_names(kind: Any, values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}")
