"""Deep Face Feature: from face photos to a served 3D face aligner.

    import dff
    aligner = dff.load_aligner()
    faces = aligner.align(dff.read_image("photo.jpg"))  # (H, W, 3) uint8 RGB -> list[dff.Alignment]

Subpackages: ``face`` (face model, rendering, descriptor), ``pipeline`` (inverse rendering,
synthesis), ``trainer``, ``aligner``, ``infra`` (storage, shards, weights). Every error that is
raised on purpose is a ``DffError``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dff.face.threads import limit_threads_after_fork

if TYPE_CHECKING:
    from dff.aligner.align import Aligner
    from dff.aligner.alignment import Alignment
    from dff.aligner.config import AlignConfig
    from dff.aligner.load import load_aligner
    from dff.aligner.matching.matcher import Matcher, match
    from dff.client import AsyncClient, Client
    from dff.face.errors import DffError
    from dff.face.geometry.camera import Box
    from dff.face.io.assets import load_albedo, load_model
    from dff.infra.datasets.dataset import open_dataset
    from dff.infra.photos.images import read_image
    from dff.pipeline.recovery.inverse import invert
    from dff.pipeline.synthesis import synthesize
    from dff.trainer.train import train

__all__ = [
    "AlignConfig",
    "Aligner",
    "Alignment",
    "AsyncClient",
    "Box",
    "Client",
    "DffError",
    "Matcher",
    "invert",
    "load_albedo",
    "load_aligner",
    "load_model",
    "match",
    "open_dataset",
    "read_image",
    "synthesize",
    "train",
]

_HOMES = {
    "AlignConfig": "dff.aligner.config",
    "Aligner": "dff.aligner.align",
    "Alignment": "dff.aligner.alignment",
    "AsyncClient": "dff.client",
    "Box": "dff.face.geometry.camera",
    "Client": "dff.client",
    "DffError": "dff.face.errors",
    "Matcher": "dff.aligner.matching.matcher",
    "invert": "dff.pipeline.recovery.inverse",
    "load_albedo": "dff.face.io.assets",
    "load_aligner": "dff.aligner.load",
    "load_model": "dff.face.io.assets",
    "match": "dff.aligner.matching.matcher",
    "open_dataset": "dff.infra.datasets.dataset",
    "read_image": "dff.infra.photos.images",
    "synthesize": "dff.pipeline.synthesis",
    "train": "dff.trainer.train",
}

limit_threads_after_fork()


def __getattr__(name: str) -> Any:
    """Names are imported on first use, so that ``dff --help`` need not wait for torch and Ray."""
    if name not in _HOMES:
        raise AttributeError(f"dff has no {name!r}")
    return getattr(import_module(_HOMES[name]), name)
