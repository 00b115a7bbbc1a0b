"""Recipes by name: the dataset and the training of the weights that ship, and how they are
judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dff.trainer.config import TrainConfig

RESEARCH_TERMS = "LicenseRef-300W-research-only"
"""Licence of rows made from the photos of 300-W: for research, not for sale."""


@dataclass(frozen=True)
class Preset:
    """What a dataset is made of, and how long a descriptor learns from it."""

    about: str
    identities: int  # sampled faces
    with_photos: bool
    views: int  # of each face
    size: int  # px
    seed: int
    deformed: float  # share of the sampled faces that no identity of the model forms
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
        about="also photos with 68 landmarks, such as 300-W's training parts: under the photos' terms",
        identities=1000,
        with_photos=True,
        views=16,
        size=192,
        seed=2,
        deformed=0.5,
        config=TrainConfig(steps=9000, size=160),
    ),
}


def preset_of(name: str) -> Preset:
    """Raises ValueError naming the presets that there are."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def training_of(
    preset: Preset | None, *, steps: int | None, dims: int, **changes: Any
) -> TrainConfig:
    """The preset's training, or without one the default, with ``changes``; ``steps`` None: as many
    as that has.
    """
    base = preset.config if preset else TrainConfig()
    return replace(base, steps=steps or base.steps, net=replace(base.net, dims=dims), **changes)


def make_dataset(
    preset: Preset,
    out: str,
    *,
    photos: str | None,
    workers: int,
    address: str | None = None,
    endpoint_url: str | None = None,
) -> None:
    """Make, complete or find the preset's dataset at ``out``. Raises ValueError when the photos
    don't fit it.
    """
    from dff.pipeline.synthesis import synthesize

    if preset.with_photos != (photos is not None):
        raise ValueError(
            "this preset " + ("wants --photos" if preset.with_photos else "is made without photos")
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
        photo_terms=RESEARCH_TERMS,
        progress=True,
    )


def judge(weights: Path, folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Summaries of the aligner on annotated ``folders``, by folder: AFLW2000-3D's protocol where
    there are ``.mat`` files, else 300-W's held-out photos.
    """
    from dff.aligner.align import load_aligner
    from dff.aligner.evaluation.benchmarks import evaluate_300w, evaluate_aflw2000

    aligner = load_aligner(str(weights))
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
