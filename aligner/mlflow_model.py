"""The module by which MLflow loads a registered version: a model that aligns an image.

MLflow calls ``_load_pyfunc``, so nothing is pickled: a version is a weights file and the name of
this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.load import load_aligner


@dataclass(frozen=True)
class AlignerModel:
    """An aligner with the interface of MLflow's Python functions."""

    aligner: Aligner

    def predict(self, image: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """One record for each face of an (H, W, 3) RGB image of values from 0 to 255.

        The records are those of ``Alignment.to_json``. ``params``: none are known. Raises BadPhoto
        for an array that is no such image.
        """
        return [
            alignment.to_json() for alignment in self.aligner.align(np.asarray(image, np.uint8))
        ]


def _load_pyfunc(path: str) -> AlignerModel:
    """The model of a weights file, or of the one in a folder. Raises BadWeights, BadModel."""
    place = Path(path)
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    return AlignerModel(load_aligner(files[0]))
