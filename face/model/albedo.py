"""A statistical model of skin colour in the texture of a face model.

Colours are display (sRGB) values from 0 to 1, as in the photos they are compared with: colour =
albedo * shade. The texture's u runs right and v down; the centre of its first texel is (0.5, 0.5)
texels from its corner. Source of the idea: Blanz and Vetter 1999, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dff.face.arrays import Array, Float, Floats
from dff.face.geometry.interpolation import bilinear


@dataclass(frozen=True, eq=False)  # see MorphableModel
class AlbedoModel:
    """texture = mean + coefficients @ components. Raises ValueError when the shapes disagree."""

    name: str
    licence: str  # SPDX name
    provenance: str  # sources and how it was made, for people
    mean: Float[Array, "side side 3"]  # float32, 0 to 1
    components: Float[Array, "components side side 3"]  # float32, of one standard deviation
    uv_of: str = "open-head"  # name of the model in whose uv it is

    def __post_init__(self) -> None:
        size = len(self.mean)
        if self.mean.shape != (size, size, 3) or self.components.shape[1:] != self.mean.shape:
            raise ValueError(
                "albedo wants (S, S, 3) and (k, S, S, 3): "
                f"{self.mean.shape}, {self.components.shape}"
            )

    def texture(self, coefficients: Floats) -> Floats:
        """(S, S, 3) float32 colours of (k,) coefficients in standard deviations, clipped to 0..1.

        Fewer coefficients than components leave the rest at zero; more raise ValueError.
        """
        k = len(coefficients)
        if k > len(self.components):
            raise ValueError(f"{self.name} has {len(self.components)} components, got {k}")
        moved = np.tensordot(np.asarray(coefficients, np.float32), self.components[:k], axes=1)
        return np.asarray(np.clip(self.mean + moved, 0.0, 1.0), np.float32)

    def at(self, uv: Floats) -> tuple[Floats, Floats]:
        """(N, 3) mean and (k, N, 3) components at (N, 2) uv, float32, bilinear between texels."""
        px = np.asarray(uv, np.float64) * len(self.mean)
        textures = (self.mean, *self.components)
        values = np.stack([bilinear(texture, px) for texture in textures]).astype(np.float32)
        return values[0], values[1:]
