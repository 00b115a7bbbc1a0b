"""Presets: dataset and training of the weights that ship, and their evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dff.infra.storage import WITH_CREDENTIALS, S3Access
from dff.trainer.config import TrainConfig

RESEARCH_TERMS = "LicenseRef-300W-research-only"
"""Licence of rows made from the photos of 300-W: research only."""


@dataclass(frozen=True)
class Preset:
    """A dataset, and how a descriptor is trained on it."""

    about: str
    identities: int  # sampled faces
    with_photos: bool
    views: int  # of each face
    size: int  # px
    seed: int
    deformed: float  # share of the sampled faces with a residual deformation
    config: TrainConfig


PRESETS = {
    "open": Preset(
        about="sampled faces alone: free for any use",
        identities=2600,
        with_photos=False,
        views=16,
        size=192,
        seed=11,
        deformed=0.5,
        config=TrainConfig(steps=9000, size=160),
    ),
    "research": Preset(
        about="sampled faces and photos with 68 landmarks: under the photos' licence",
        identities=1000,
        with_photos=True,
        views=16,
        size=192,
        seed=2,
        deformed=0.5,
        config=TrainConfig(steps=9000, size=160),
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of this name. Raises ValueError with the names that exist."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def build_config(
    preset: Preset | None,
    *,
    steps: int | None,
    dims: int,
    sizes: tuple[int, ...] = (),
    **changes: Any,
) -> TrainConfig:
    """The training of the preset, or the default one, with ``changes``.

    ``steps``: None for the number that it has. ``sizes``: sides of images, px, the first for half
    of the steps; none: as it has them.
    """
    base = preset.config if preset else TrainConfig()
    if sizes:
        base = replace(base, size=sizes[0], other_sizes=sizes[1:])
    return replace(base, steps=steps or base.steps, net=replace(base.net, dims=dims), **changes)


def make_dataset(
    preset: Preset,
    out: str,
    *,
    photos: str | None,
    workers: int,
    address: str | None = None,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
) -> None:
    """Make the preset's dataset at ``out``, or complete it, or leave it when it is finished.

    Raises ValueError when photos are missing or not wanted, and as ``synthesize``.
    """
    from dff.pipeline.synthesis import synthesize

    if preset.with_photos != (photos is not None):
        raise ValueError(
            "this preset " + ("needs --photos" if preset.with_photos else "takes no --photos")
        )
    synthesize(
        photos,
        out,
        views=preset.views,
        identities=preset.identities,
        seed=preset.seed,
        size=preset.size,
        deformed=preset.deformed,
        workers=workers,
        address=address,
        endpoint_url=endpoint_url,
        access=access,
        photo_terms=RESEARCH_TERMS,
        progress=True,
    )


def evaluate_weights(
    weights: Path | str, folders: Sequence[Path], *, endpoint_url: str | None = None
) -> dict[str, dict[str, Any]]:
    """Figures of an aligner with ``weights`` by folder of annotated photos.

    A folder with ``.mat`` files follows the protocol of AFLW2000-3D; of others the held-out photos
    follow 300-W's. ``endpoint_url``: of an S3 server other than AWS.
    """
    if not folders:
        return {}
    from dff.aligner.evaluation.benchmarks import evaluate_300w, evaluate_aflw2000
    from dff.aligner.load import load_aligner

    aligner = load_aligner(str(weights), endpoint_url=endpoint_url)
    out: dict[str, dict[str, Any]] = {}
    for folder in folders:
        if any(folder.glob("*.mat")):
            labels = sorted(folder.glob("*.npz"))
            out[str(folder)] = evaluate_aflw2000(
                str(folder), aligner, labels=labels[0] if labels else None
            ).summary
        else:
            out[str(folder)] = evaluate_300w(str(folder), aligner, split="dev").summary
    return out
