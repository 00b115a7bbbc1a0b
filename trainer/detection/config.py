"""Settings of the detector's training. A range is a pair (low, high)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dff.face.detector_net import DetectorNetConfig
from dff.trainer.data.config import (
    Checked,
    Counts,
    FacelessConfig,
    MosaicConfig,
    OcclusionConfig,
    PhotometricConfig,
    Range,
)


@dataclass(frozen=True)
class PatternConfig(Checked):
    """Random patterns without faces. Lengths in pixels, levels of 0..255."""

    skin_share: float = 0.25  # of the colours
    grey_share: float = 0.2
    octave_gain: Range = (0.5, 1.1)  # strength of each octave of noise over the coarser one's
    contrast: Range = (8.0, 45.0)  # standard deviation of an octave
    period: Range = (1.0, 12.0)  # of stripes and checks, over 2 pi in stripes
    letter: Range = (0.25, 2.0)  # scale of letters of some 22 px; log-uniform
    turned_probability: float = 0.6
    zoom: Range = (0.5, 2.5)  # log-uniform
    bent_probability: float = 0.3
    bend: Range = (0.01, 0.06)  # standard deviation of the displacement, in sides
    shaded_probability: float = 0.5
    shade: Range = (0.1, 0.6)  # standard deviation of the logarithm of the brightness


@dataclass(frozen=True)
class CoverConfig(Checked):
    """Masks, hands and things over faces."""

    mask_probability: float = 0.2  # of each face
    mask_margin: Range = (1.0, 1.12)  # of the jaw about the nose
    mask_top: Range = (0.1, 0.95)  # of the way from the root of the nose to its tip
    scarf_probability: float = 0.15  # of each mask: it hangs below the chin
    printed_probability: float = 0.2  # of each mask: with another's mouth
    pleats_probability: float = 0.3
    straps_probability: float = 0.5
    patterned_share: float = 0.25
    own_colour_share: float = 0.15  # of the skin's colour
    plain_share: float = 0.4  # of the usual colours of masks, else of any
    thing_probability: float = 0.12  # of each face: something in front of it
    thing: Range = (0.25, 0.7)  # its sides, over the face's
    hand_share: float = 0.4  # of the things


@dataclass(frozen=True)
class DetectionSceneConfig:
    """Training images: faces of several views over backgrounds, or none."""

    size: int = 160  # pixels of the side
    count: Counts = (1, 5)  # faces that are placed
    empty_probability: float = 0.25  # no face at all
    one_size_probability: float = 0.3  # all faces about as large, as in a group photo
    face: Range = (12.0, 125.0)  # pixels: longer side of the landmark box; log-uniform
    small_probability: float = 0.4  # of each face: within ``small`` instead
    small: Range = (12.0, 32.0)
    # one face larger than these, with at most so many others: its parts are no faces
    huge_probability: float = 0.3
    huge: Range = (125.0, 420.0)
    most_beside_huge: int = 2
    # degrees of in-plane rotation, either way, and the share of the faces within each
    rotations: tuple[tuple[float, float], ...] = ((20.0, 0.65), (50.0, 0.3), (90.0, 0.05))
    mirror_probability: float = 0.5
    cutout_probability: float = 0.7  # of each face: without its own background
    faceless_probability: float = 0.08  # of each face: painted over, and no face
    pattern_probability: float = 0.6  # of each background: drawn, else of a view
    objects: Counts = (0, 4)  # things of a face's size, behind the faces
    parts: Counts = (0, 4)  # ears and other parts of faces that are no faces, as large
    part_reach: Range = (0.1, 0.2)  # of them about a landmark, over the face's size
    ear_share: float = 0.4  # of the parts
    shadow_probability: float = 0.2  # one side of the scene lies in the shade
    shadow: Range = (0.1, 0.7)  # brightness of the shade
    border_probability: float = 0.2  # black at the right or lower edge, as where photos are padded
    border: Range = (0.05, 0.5)  # share of the side that is black
    # visible share of a face from which it must be detected, and below which it must not
    whole: float = 0.5
    hidden: float = 0.25
    smallest: float = 13.0  # pixels: smaller faces may be detected, but need not
    largest: float = 125.0  # pixels: the same for larger ones
    too_large: float = 170.0  # pixels from which a face must not be detected
    faceless: FacelessConfig = field(default_factory=FacelessConfig)
    mosaic: MosaicConfig = field(default_factory=MosaicConfig)
    occlusion: OcclusionConfig = field(
        default_factory=lambda: OcclusionConfig(
            probability=0.3, ellipse=(0.03, 0.15), polygon=(0.04, 0.15), bar_width=(0.01, 0.08)
        )
    )
    pattern: PatternConfig = field(default_factory=PatternConfig)
    cover: CoverConfig = field(default_factory=CoverConfig)
    photometric: PhotometricConfig = field(
        default_factory=lambda: PhotometricConfig(
            contrast=(0.6, 1.5),
            grey_probability=0.2,
            blur=(0.4, 1.1),
            low_resolution=(0.5, 0.9),
            noise=(1.0, 10.0),
        )
    )

    def __post_init__(self) -> None:
        if not (0 < self.face[0] <= self.face[1]) or not (0 <= self.hidden <= self.whole <= 1):
            raise ValueError(f"DetectionSceneConfig wants rising sizes and shares: {self}")
        if abs(sum(share for _, share in self.rotations) - 1.0) > 1e-6:
            raise ValueError(
                f"DetectionSceneConfig wants shares of rotations that sum to one: {self}"
            )


@dataclass(frozen=True)
class DetectorTrainConfig:
    """A training run of the detector. Raises ValueError for one that is impossible."""

    steps: int = 5000
    batch: int = 8  # scenes in a step
    pool: int = 1536  # decoded views that scenes are made of
    fresh: int = 2  # of them that each step replaces
    uses: int = 4  # of each scene, in as many steps: mirrored or not, with other camera effects
    block_shards: int = 8  # shards whose views are shuffled together
    learning_rate: float = 3e-3  # after the warm-up
    final_rate: float = 0.01  # learning rate at the last step, over ``learning_rate``
    warmup: int = 100  # steps
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    max_gradient: float = 5.0  # norm that gradients are clipped to
    ema: float = 0.997  # decay of the moving average of the weights
    box_weight: float = 1.0  # of the loss of boxes, beside that of centres
    rotation_weight: float = 1.0
    # width of the target about a centre, over the face size, and cells added to it
    spread: float = 0.08
    least_spread: float = 0.35
    seed: int = 0
    start: str = ""  # file of a detector to start from; none: from scratch
    log_every: int = 100  # steps
    eval_every: int = 1000
    checkpoint_every: int = 250
    dev_scenes: int = 128  # of held-out views, for validation
    net: DetectorNetConfig = field(default_factory=DetectorNetConfig)
    scene: DetectionSceneConfig = field(default_factory=DetectionSceneConfig)

    def __post_init__(self) -> None:
        counts = (self.steps, self.batch, self.pool, self.fresh, self.block_shards, self.log_every)
        if min(*counts, self.eval_every, self.checkpoint_every, self.dev_scenes) < 1:
            raise ValueError(f"DetectorTrainConfig needs positive counts: {self}")
        if self.uses < 1 or self.batch % self.uses:
            raise ValueError(f"a batch of {self.batch} scenes is no multiple of {self.uses} uses")
        if self.scene.size % self.net.multiple:
            raise ValueError(
                f"scenes of {self.scene.size} pixels are no multiple of {self.net.multiple}"
            )
        if self.seed < 0 or not self.learning_rate > 0:
            raise ValueError(f"DetectorTrainConfig needs a seed and a positive rate: {self}")


RESUMABLE = {"steps", "log_every", "eval_every", "checkpoint_every", "dev_scenes"}
"""Settings that a resumed run may change."""


def describe_run(config: DetectorTrainConfig) -> dict[str, Any]:
    """The settings that make the weights, in plain values; ``start`` without its folder."""
    plain = {
        f.name: _plain(getattr(config, f.name)) for f in fields(config) if f.name not in RESUMABLE
    }
    return plain | {"start": config.start.rsplit("/", 1)[-1]}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return _plain(asdict(value)) if hasattr(value, "__dataclass_fields__") else value
