"""Descriptor matching: the probabilities of the anchors at a pixel, searched in another crop.

Training determines the probabilities of the anchors at a pixel and leaves other components of its
descriptor free. Two pixels are therefore compared by the Bhattacharyya coefficient of these
probabilities, the cosine of their square roots. The log odds are means over test-time augmentation
(``dff.face.tta``); the coefficient is the mean of those of the crops and of their mirror images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from dff.face.arrays import Array, Bytes, Float, Floats, Ints
from dff.face.descriptor import Anchors, Network, image_batch
from dff.face.geometry.interpolation import bilinear
from dff.face.tta import TtaNetwork, TtaTransform

TRANSFORMS = (
    TtaTransform(),
    *(TtaTransform(scale, turn) for scale in (0.8, 1.2) for turn in (-12.0, 12.0)),
)
"""Test-time augmentation: these match better together than each, or than three upright scales."""

CROP = 160
"""Pixels of the side of a crop that is matched."""

PEAK_SHARPNESS = 32.0
"""Factor of the cosines whose exponential weighs the pixels around a peak."""

LOWEST = -2.0
"""Score of pixels that are no candidates, below any cosine."""


def augment_for_matching(net: Network, *, multiple: int) -> TtaNetwork:
    """``net`` with the test-time augmentation of matching; sides are multiples of ``multiple``."""
    return TtaNetwork(net, TRANSFORMS, multiple=multiple)


@dataclass(frozen=True)
class CropFeatures:
    """The network's output for a square crop and, if described, for its mirror image."""

    # the crop's, then those of its mirror image, whose columns run the other way
    descriptor: Float[Array, "images side side dims"]  # float32
    face_logit: Float[Array, "side side"]  # log odds that a pixel shows the face, mean of both

    @property
    def side(self) -> int:
        """Output pixels along a side."""
        return self.face_logit.shape[0]

    def anchor_roots(self, anchors: Anchors, px: Floats) -> Floats:
        """(N, images * A) square roots of the anchor probabilities at (N, 2) output pixels.

        Unit vectors, float32; their products are Bhattacharyya coefficients. Descriptors are
        interpolated between pixel centres.
        """
        mirrored = np.stack([self.side - px[:, 0], px[:, 1]], axis=1)
        parts = [
            root_probabilities(anchors, bilinear(grid, places).astype(np.float32))
            for grid, places in zip(self.descriptor, (px, mirrored), strict=False)
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts, axis=1) / np.float32(np.sqrt(2.0))


def root_probabilities(anchors: Anchors, descriptor: Floats) -> Floats:
    """(N, A) square roots of the anchor probabilities of (N, D) float32 descriptors."""
    vectors = torch.from_numpy(anchors.scale * anchors.descriptor.T)
    log_odds = torch.from_numpy(descriptor) @ vectors
    return cast(Floats, torch.softmax(log_odds, dim=1).sqrt().numpy())


@torch.no_grad()
def describe_crop(net: Network, image: Bytes, *, mirrored: bool) -> CropFeatures:
    """The features of an (S, S, 3) RGB crop, ``mirrored``: and of its mirror image."""
    images = [image, np.ascontiguousarray(image[:, ::-1])] if mirrored else [image]
    descriptors, logits = [], []
    for one in images:
        features = net(image_batch(torch.from_numpy(one[None])))
        descriptors.append(features.descriptor[0].permute(1, 2, 0).float().numpy())
        logits.append(features.face_logit[0].float().numpy())
    if mirrored:
        logits[1] = logits[1][:, ::-1]
    return CropFeatures(np.stack(descriptors), np.asarray(np.mean(logits, axis=0), np.float32))


def pixel_centres(pixels: Ints, side: int) -> Floats:
    """(N, 2) output px of the centres of (N,) pixels, counted row by row in ``side`` columns."""
    return np.stack([pixels % side, pixels // side], axis=1) + 0.5


def find_peaks(score: Floats, candidates: Ints, side: int) -> Floats:
    """(N, 2) output px where (N, C) scores of (C,) candidate pixels are highest, refined.

    The candidates are pixels of a square grid of ``side`` columns, counted row by row.
    """
    # The others get less than any score, so that no peak lies there or is drawn towards it.
    everywhere = np.full((len(score), side * side), LOWEST, dtype=np.float32)
    everywhere[:, candidates] = score
    return cast(Floats, refine_peak(torch.from_numpy(everywhere), side).numpy())


def refine_peak(cosine: Tensor, width: int) -> Tensor:
    """Refine the maxima of (N, P) maps of ``width`` columns to a fraction of a pixel.

    Returns (N, 2) output px (x, y), the first centre at 0.5: the mean of the 3 x 3 pixels around a
    maximum, weighted by the exponential of ``PEAK_SHARPNESS`` times their cosine.
    """
    best = cosine.argmax(1)
    steps = torch.arange(-1, 2, device=cosine.device)
    x = (best % width)[:, None, None] + steps.expand(3, 3)
    y = (best // width)[:, None, None] + steps.expand(3, 3).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < cosine.shape[1] // width)
    around = cosine.gather(
        1, (torch.where(inside, y * width + x, best[:, None, None])).flatten(1)
    ).reshape(x.shape)
    weight = torch.exp(PEAK_SHARPNESS * (around - cosine.amax(1)[:, None, None])) * inside
    weight = weight / weight.sum((1, 2), keepdim=True)
    return torch.stack([(weight * (x + 0.5)).sum((1, 2)), (weight * (y + 0.5)).sum((1, 2))], dim=1)
