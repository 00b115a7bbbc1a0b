"""Pictures of what a descriptor has learned, for reports and experiment tracking."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from dff.face.arrays import Bytes, Floats
from dff.face.descriptor import STRIDE, Anchors, DescriptorNet, image_batch
from dff.trainer.evaluation.pairs import Pair, peak

ZOOM = 2
SOFTER = 0.3
_MARKS = (
    (230, 60, 60),
    (60, 160, 240),
    (250, 200, 40),
    (80, 210, 90),
    (200, 90, 220),
    (255, 140, 0),
)


@torch.no_grad()
def match_picture(
    net: DescriptorNet, anchors: Anchors, image_a: Bytes, image_b: Bytes, points: Floats
) -> Bytes:
    """Where each of (N, 2) points of one crop is found in another: (H, W, 3) RGB, side by side.

    The first tile is ``image_a`` with the points marked; one tile for each point then shows
    ``image_b`` under how well its pixels match (softmax of the cosines relative to the best, at
    ``SOFTER`` times the trained sharpness, at which a good match would hide under its own mark),
    the best marked. Both images are (S, S, 3) crops of one size that the network takes; points in
    pixels of the first. Raises ValueError without points or when one lies outside.
    """
    size = image_a.shape[0]
    if len(points) == 0 or points.min() < 0 or points.max() >= size:
        raise ValueError(f"match_picture wants points within 0 .. {size}")
    device = next(net.parameters()).device
    both = torch.from_numpy(np.stack([image_a, image_b])).to(device)
    descriptor = net.eval()(image_batch(both)).descriptor.cpu()
    half = size // STRIDE
    column, row = torch.from_numpy(np.floor(points / STRIDE).astype(np.int64)).T
    wanted = descriptor[0, :, row, column].T  # (N, D)
    cosine = wanted @ descriptor[1].flatten(1)
    found = peak(cosine, half).numpy() * STRIDE
    likeness = (
        torch.exp(SOFTER * anchors.scale * (cosine - cosine.amax(1, keepdim=True)))
        .reshape(-1, half, half)
        .numpy()
    )
    first = _enlarged(image_a)
    tiles = [first]
    for i, heat in enumerate(likeness):
        colour = _MARKS[i % len(_MARKS)]
        _mark(first, points[i], colour)
        tile = _heated(image_b, heat)
        _mark(tile, found[i], colour)
        tiles.append(tile)
    gap = np.full((size * ZOOM, 4, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def pair_picture(net: DescriptorNet, anchors: Anchors, pair: Pair, *, points: int = 5) -> Bytes:
    """``match_picture`` of a pair of dev views at ``points`` places spread over what both show."""
    half = pair.images.shape[1] // STRIDE
    centre = np.stack([pair.first % half, pair.first // half], axis=1) + 0.5
    chosen = [0]
    while len(chosen) < min(points, len(centre)):
        apart = np.linalg.norm(centre[:, None] - centre[chosen][None], axis=2).min(1)
        chosen.append(int(apart.argmax()))
    return match_picture(net, anchors, pair.images[0], pair.images[1], centre[chosen] * STRIDE)


def _enlarged(image: Bytes) -> Bytes:
    size = image.shape[0] * ZOOM
    return np.asarray(
        cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.uint8
    )


def _heated(image: Bytes, heat: Floats) -> Bytes:
    """Grey image with a (h, w) map of 0 .. 1 over it."""
    size = image.shape[0] * ZOOM
    grey = _enlarged(image).mean(2, keepdims=True) * 0.6
    level = cv2.resize(heat.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    table = cv2.applyColorMap((level * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[
        ..., ::-1
    ]
    return np.clip(grey * (1.0 - level[..., None]) + table * level[..., None], 0, 255).astype(
        np.uint8
    )


def _mark(tile: Bytes, point: Floats, colour: tuple[int, int, int]) -> None:
    """A ring about (2,) image px; drawn in place. OpenCV draws from pixel centres at 0, here in
    sixteenths.
    """
    x, y = np.round((point * ZOOM - 0.5) * 16).astype(int)
    cv2.circle(tile, (int(x), int(y)), 4 * 16, (255, 255, 255), 3, cv2.LINE_AA, 4)
    cv2.circle(tile, (int(x), int(y)), 4 * 16, colour, 2, cv2.LINE_AA, 4)
