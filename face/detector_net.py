"""The network of the face detector: which cells of a photo are centres of faces, and their poses.

An anchor-free, fully convolutional detector after Zhou, Wang, Krähenbühl, "Objects as points"
(arXiv 1904.07850), with the separable blocks of the descriptor network. For each cell of
``DETECTOR_STRIDE`` pixels it answers the log odds that the centre of a face's landmark box lies
there, the box, and the rotation of the head. Faces of 14 to 150 pixels are detected; larger ones on
smaller copies of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dff.face.arrays import Array, Float, Floats
from dff.face.descriptor import Separable, build_encoder
from dff.face.numba_cache import CACHE

DETECTOR_STRIDE = 8
"""Pixels of the photo for one cell of the output."""

DETECTOR_CHANNELS = 11
"""Of each cell: log odds, centre of the box (x, y), its width and height, rotation (2 x 3)."""

UNIT = 32.0
"""Pixels: widths and heights are answered as logarithms of multiples of it."""


@dataclass(frozen=True)
class DetectorNetConfig:
    """Size of the detector's network. Raises ValueError for sizes that cannot be built."""

    widths: tuple[int, ...] = (24, 48, 96, 128)  # channels at stride 4, 8, 16, 32
    depths: tuple[int, ...] = (1, 2, 2, 3)  # residual blocks at each stride
    groups: int = 8  # of the group normalisation

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "depths", tuple(self.depths))
        if len(self.widths) < 2 or len(self.widths) != len(self.depths):
            raise ValueError(
                f"DetectorNetConfig wants as many widths, two or more, as depths: {self}"
            )
        if any(w <= 0 or w % self.groups for w in self.widths) or any(d < 0 for d in self.depths):
            raise ValueError(
                f"DetectorNetConfig.widths must be multiples of {self.groups} groups: {self}"
            )

    @property
    def multiple(self) -> int:
        """Sides of input images must be multiples of this."""
        return int(2 * 2 ** len(self.widths))


class DetectorNet(nn.Module):
    """U-Net of separable convolutions: (B, 3, H, W) float RGB in 0..1 to the cells' answers.

    Returns (B, DETECTOR_CHANNELS, H/8, W/8). H and W must be multiples of ``config.multiple``
    (ValueError).
    """

    def __init__(self, config: DetectorNetConfig) -> None:
        super().__init__()
        self.config = config
        w, g = config.widths, config.groups
        self.stem = nn.Sequential(
            nn.Conv2d(3, w[0], 6, 4, 1, bias=False), nn.GroupNorm(g, w[0]), nn.ReLU()
        )
        self.encoder = build_encoder(w, config.depths, g)
        # The decoder ends at the second level, whose cells are the answers'.
        self.lateral = nn.ModuleList(nn.Conv2d(w[i + 1], w[i], 1) for i in range(1, len(w) - 1))
        self.decoder = nn.ModuleList(Separable(w[i], w[i], g) for i in range(1, len(w) - 1))
        self.head = nn.Conv2d(w[1], DETECTOR_CHANNELS, 1)
        assert self.head.bias is not None
        with torch.no_grad():  # faces are rare: begin there, or the first steps teach only that
            self.head.weight.mul_(0.1)
            self.head.bias.zero_()
            self.head.bias[0] = -4.0

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) images, RGB in 0..1, to the outputs of the grid.

        Raises ValueError for images of other sizes.
        """
        multiple = self.config.multiple
        if image.ndim != 4 or image.shape[1] != 3 or any(s % multiple for s in image.shape[2:]):
            raise ValueError(
                f"want (B, 3, H, W) with sides in multiples of {multiple}: {image.shape}"
            )
        x = self.stem((image - 0.5) * 4.0)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        for level in reversed(range(len(self.lateral))):
            up = functional.interpolate(self.lateral[level](x), scale_factor=2.0, mode="nearest")
            x = self.decoder[level](skips[level + 1] + up)
        return cast(Tensor, self.head(x))


@dataclass(frozen=True)
class DetectedCells:
    """Cells that answer that they are the centre of a face, in pixels of the network's input."""

    logit: Float[Array, " cells"]  # log odds that a face is there
    box: Float[Array, "cells 4"]  # x0, y0, x1, y1 of the 68 landmarks
    rows: Float[Array, "cells 2 3"]  # of the rotation cam_from_head, about


def decode_cells(answer: Floats, least: float) -> DetectedCells:
    """The local maxima of one image's (H/8, W/8, DETECTOR_CHANNELS) outputs, the best first.

    ``least``: log odds below which a cell is no face.
    """
    row, column = _find_peaks(answer, np.float32(least))
    values = answer[row, column].astype(np.float64)
    size = UNIT * np.exp(np.clip(values[:, 3:5], -4.0, 4.0))
    cell = np.stack([column, row], axis=1) + 0.5
    centre = DETECTOR_STRIDE * (cell + values[:, 1:3])
    box = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return DetectedCells(values[:, 0], box, values[:, 5:].reshape(-1, 2, 3))


@numba.njit(cache=CACHE, nogil=True)
def _find_peaks(answer, least):  # type: ignore[no-untyped-def]
    """(N,) rows and columns of the local maxima of (H, W, C) ``answer``, the best first.

    Of its first channel, from ``least`` on; of equal ones the first comes first.
    """
    height, width = answer.shape[0], answer.shape[1]
    places, falling, found = np.empty((height * width, 2), np.int64), np.empty(height * width), 0
    for row in range(height):
        for column in range(width):
            one = answer[row, column, 0]
            if not one >= least:
                continue
            highest = True
            for r in range(max(row - 1, 0), min(row + 2, height)):
                for c in range(max(column - 1, 0), min(column + 2, width)):
                    highest &= one >= answer[r, c, 0]
            if highest:
                places[found, 0], places[found, 1], falling[found] = row, column, -one
                found += 1
    order = np.argsort(falling[:found], kind="mergesort")
    return places[order, 0], places[order, 1]
