"""Deep Face Feature: from face photos to a served 3D face aligner.

    import dff
    aligner = dff.load_aligner()
    faces = aligner.align(dff.read_image("photo.jpg"))  # (H, W, 3) uint8 RGB -> list[dff.Alignment]

The pieces lie under their rooms: ``face`` (model, rendering, descriptor), ``pipeline`` (inverse rendering, synthesis),
``trainer``, ``aligner``, ``infra`` (storage, shards, weights). Every error that is raised on purpose is a ``DffError``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligner.align import AlignConfig, Aligner, load_aligner
    from aligner.alignment import Alignment
    from face.assets import load_albedo, load_model
    from face.camera import Box
    from face.errors import DffError
    from infra.dataset import open_dataset
    from infra.images import read_image
    from pipeline.inverse import invert
    from pipeline.synthesis import synthesize
    from trainer.train import train

__all__ = [
    "AlignConfig",
    "Aligner",
    "Alignment",
    "Box",
    "DffError",
    "invert",
    "load_albedo",
    "load_aligner",
    "load_model",
    "open_dataset",
    "read_image",
    "synthesize",
    "train",
]

_HOMES = {
    "AlignConfig": "aligner.align",
    "Aligner": "aligner.align",
    "Alignment": "aligner.alignment",
    "Box": "face.camera",
    "DffError": "face.errors",
    "invert": "pipeline.inverse",
    "load_albedo": "face.assets",
    "load_aligner": "aligner.align",
    "load_model": "face.assets",
    "open_dataset": "infra.dataset",
    "read_image": "infra.images",
    "synthesize": "pipeline.synthesis",
    "train": "trainer.train",
}


def __getattr__(name: str) -> Any:
    """Names are imported when they are first used, so that ``dff --help`` need not wait for torch and Ray."""
    if name not in _HOMES:
        raise AttributeError(f"dff has no {name!r}")
    return getattr(import_module(_HOMES[name]), name)
