"""Several looks of the network at the same crops: at other sizes and turned, brought back to one
grid and averaged.

One look errs with the size and the turn at which it sees a face, and another look errs otherwise.
The log odds of an anchor are a scale times the cosine of its descriptor and the pixel's, so the
mean of the looks' descriptors holds the mean of their log odds, whatever the anchors.
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
    """How a crop is looked at: on ``scale`` times its sides, turned clockwise by ``turn`` degrees
    about its middle.
    """

    scale: float = 1.0
    turn: float = 0.0


class TtaNetwork:
    """A network that answers with the mean over ``glances``.

    Its descriptors are means of unit vectors: at most one long, and the shorter the less the looks
    agree.
    """

    def __init__(self, net: Network, glances: Sequence[TtaTransform], *, multiple: int) -> None:
        """``multiple``: what sides the network takes are multiples of. Raises ValueError without
        glances.
        """
        if not glances:
            raise ValueError("several looks want one glance at least")
        self.net, self.glances, self.multiple = net, tuple(glances), multiple

    def __call__(self, image: Tensor) -> Features:
        """(B, 3, H, W) float RGB in 0..1, as the network wants them, to the mean ``Features`` on a
        single look's grid.

        What a turned look leaves beyond its corners is the mean of the others.
        """
        seen = [self._seen(image, glance) for glance in self.glances]
        looks = torch.stack([share for _, _, share in seen]).sum(0).clamp_(min=1.0)
        descriptor, logit = (
            torch.stack([look[part] * look[2] for look in seen]).sum(0) / looks for part in range(2)
        )
        return Features(descriptor, logit[:, 0])

    def _seen(self, image: Tensor, glance: TtaTransform) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D, h, w) unit descriptors, (B, 1, h, w) log odds of the face, and 1 where this look
        saw, else 0.
        """
        plain = list(image.shape[2:])
        sides = [
            max(1, round(side * glance.scale / self.multiple)) * self.multiple for side in plain
        ]
        if sides == plain and not glance.turn:
            found = self.net(image)
            return (
                found.descriptor,
                found.face_logit[:, None],
                torch.ones_like(found.face_logit[:, None]),
            )
        grid = [side // STRIDE for side in plain]
        found = self.net(
            resampled(image, sides, glance.turn).contiguous(memory_format=torch.channels_last)
        )
        back = [
            resampled(part, grid, -glance.turn)
            for part in (found.descriptor, found.face_logit[:, None])
        ]
        inside = (
            resampled(
                resampled(torch.ones_like(image[:, :1]), sides, glance.turn), grid, -glance.turn
            )
            > 0.5
        )
        return functional.normalize(back[0], dim=1), back[1], inside.to(image)


def resampled(image: Tensor, sides: Sequence[int], turn: float) -> Tensor:
    """(B, C, H, W) turned clockwise by ``turn`` degrees about its middle, on ``sides``; zero where
    nothing was.
    """
    c, s = float(np.cos(np.deg2rad(turn))), float(np.sin(np.deg2rad(turn)))
    height, width = image.shape[2:]
    # ``affine_grid`` asks from which place a pixel comes, in halves of the sides.
    source = image.new_tensor([[c, s * height / width, 0.0], [-s * width / height, c, 0.0]])
    places = functional.affine_grid(
        source.expand(len(image), 2, 3), [len(image), 1, *sides], align_corners=False
    )
    return functional.grid_sample(
        image, places, mode="bilinear", padding_mode="zeros", align_corners=False
    )
