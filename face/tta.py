"""Test-time augmentation (TTA): the network's mean output over rescaled and rotated crops.

Errors that depend on the size and the rotation of a face average out. The log odds of an anchor are
a scale times the cosine of its descriptor and the pixel's, so the mean of the descriptors gives the
mean of the log odds, whatever the anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dff.face.descriptor import STRIDE, Features, Network


@dataclass(frozen=True)
class TtaTransform:
    """An augmentation of a crop."""

    scale: float = 1.0  # of its sides
    turn: float = 0.0  # degrees clockwise about its centre


class TtaNetwork:
    """A network whose output is the mean over ``transforms``.

    Its descriptors are means of unit vectors: of length one at most, and shorter where the passes
    disagree.
    """

    def __init__(self, net: Network, transforms: Sequence[TtaTransform], *, multiple: int) -> None:
        """``multiple``: the network takes sides that are multiples of this.

        Raises ValueError without transforms.
        """
        if not transforms:
            raise ValueError("test-time augmentation wants at least one transform")
        self.net, self.transforms, self.multiple = net, tuple(transforms), multiple

    def __call__(self, image: Tensor) -> Features:
        """(B, 3, H, W) float RGB in 0..1 to the mean ``Features`` on the grid of one pass.

        Pixels that a rotated crop leaves out get the mean of the other passes.
        """
        passes = [self._forward(image, transform) for transform in self.transforms]
        count = torch.stack([covered for _, _, covered in passes]).sum(0).clamp_(min=1.0)
        descriptor, logit = (
            torch.stack([one[part] * one[2] for one in passes]).sum(0) / count for part in range(2)
        )
        return Features(descriptor, logit[:, 0])

    def _forward(self, image: Tensor, transform: TtaTransform) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D, h, w) unit descriptors, (B, 1, h, w) log odds of the face, (B, 1, h, w) coverage.

        Coverage is 1 where the transformed crop covers the pixel, else 0.
        """
        plain = list(image.shape[2:])
        sides = [
            max(1, round(side * transform.scale / self.multiple)) * self.multiple for side in plain
        ]
        if sides == plain and not transform.turn:
            found = self.net(image)
            logit = found.face_logit[:, None]
            return found.descriptor, logit, torch.ones_like(logit)
        grid, turn = [side // STRIDE for side in plain], transform.turn
        crop = resampled(image, sides, turn).contiguous(memory_format=torch.channels_last)
        found = self.net(crop)
        back = [
            resampled(part, grid, -turn) for part in (found.descriptor, found.face_logit[:, None])
        ]
        ones = resampled(torch.ones_like(image[:, :1]), sides, turn)
        inside = resampled(ones, grid, -turn) > 0.5
        return functional.normalize(back[0], dim=1), back[1], inside.to(image)


def resampled(image: Tensor, sides: Sequence[int], turn: float) -> Tensor:
    """(B, C, H, W) rotated clockwise by ``turn`` degrees about its centre and resized to ``sides``.

    Pixels from outside the image are zero.
    """
    c, s = float(np.cos(np.deg2rad(turn))), float(np.sin(np.deg2rad(turn)))
    height, width = image.shape[2:]
    # ``affine_grid`` takes the map from output to input, in halves of the sides.
    source = image.new_tensor([[c, s * height / width, 0.0], [-s * width / height, c, 0.0]])
    places = functional.affine_grid(
        source.expand(len(image), 2, 3), [len(image), 1, *sides], align_corners=False
    )
    return functional.grid_sample(
        image, places, mode="bilinear", padding_mode="zeros", align_corners=False
    )
