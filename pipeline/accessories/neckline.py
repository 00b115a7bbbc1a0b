"""Where the clothes of a head model end: around its neck, above the model's lower border."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dff.face.arrays import Array, Float, Floats, Int, Ints
from dff.face.model.landmarks import CHIN
from dff.face.model.morphable import MorphableModel
from dff.pipeline.accessories.config import read_config


@dataclass(frozen=True)
class NecklineConfig:
    """How far clothes reach above the lower border of a model."""

    margin: float  # metres above the border's highest point
    soft: float  # metres over which the clothes' cover ends
    below_chin: float  # metres from the chin to what counts as the border of the neck


CONFIG = read_config(NecklineConfig, "garments.toml", "neckline")


@dataclass(frozen=True, eq=False)
class Neckline:
    """The lower border of a model's neck, and the height up to which clothes cover the neck."""

    rim: Int[Array, " R"]  # vertices of the border; none when the model has no neck
    slope: Float[Array, " 3"]  # metres: height = slope . (1, z, x^2) on the template
    config: NecklineConfig

    @staticmethod
    def build(model: MorphableModel, config: NecklineConfig) -> Neckline:
        """The neckline of a model's template."""
        pairs = np.sort(
            np.concatenate(
                [model.faces[:, [0, 1]], model.faces[:, [1, 2]], model.faces[:, [2, 0]]]
            ),
            axis=1,
        )
        edges, times = np.unique(pairs, axis=0, return_counts=True)
        border = np.unique(edges[times == 1])
        chin = model.template[model.landmarks.vertex[CHIN], 1]
        rim = border[model.template[border, 1] < chin - config.below_chin]
        slope = np.zeros(3)
        if len(rim) >= 3:
            x, y, z = model.template[rim].astype(np.float64).T
            terms = np.stack([np.ones_like(z), z, x * x], axis=1)
            slope = np.linalg.lstsq(terms, y, rcond=None)[0]
            slope[0] += float((y - terms @ slope).max()) + config.margin
        else:
            rim = rim[:0]
        return Neckline(rim, slope, config)

    def coverage(self, places: Floats) -> Floats:
        """(N,) 0 to 1: how much of (N, 3) points of the template the clothes cover."""
        if len(self.rim) == 0:
            return np.zeros(len(places))
        x, y, z = places.astype(np.float64).T
        top = self.slope[0] + self.slope[1] * z + self.slope[2] * x * x
        return np.asarray(np.clip((top - y) / self.config.soft, 0.0, 1.0))

    def collar(self, template: Floats, neutral: Floats) -> Floats:
        """(R, 3) points of the rim of a face, raised to where its clothes end.

        ``neutral`` are the face's (V, 3) vertices at rest, and ``template`` those of the model.
        """
        x, y, z = template[self.rim].astype(np.float64).T
        top = self.slope[0] + self.slope[1] * z + self.slope[2] * x * x
        return np.asarray(
            neutral[self.rim] + np.stack([0.0 * y, np.maximum(top - y, 0.0), 0.0 * y], axis=1)
        )


@lru_cache(maxsize=4)
def find_neckline(model: MorphableModel) -> Neckline:
    """The neckline of a model with the shipped config; the last few are kept."""
    return Neckline.build(model, CONFIG)


@lru_cache(maxsize=4)
def find_ear_vertices(model: MorphableModel) -> Ints:
    """The vertices of a model's ears; none when it has no such region."""
    if "ears" not in model.region_names:
        return np.empty(0, dtype=np.int64)
    return np.unique(model.faces[model.find_triangles("ears")])
