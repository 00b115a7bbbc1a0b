"""Pictures of what a descriptor has learned, for reports and experiment tracking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch

from dff.face.arrays import Bytes, Floats
from dff.face.descriptor import STRIDE, Anchors, DescriptorNet, image_batch
from dff.trainer.evaluation.matching import PCK, SIDE, Describe, match_points, refine_peak
from dff.trainer.evaluation.pairs import DevPair, ViewPair

ZOOM = 2


SHARPNESS = 0.3


_MARK_COLOURS = (
    (230, 60, 60),
    (60, 160, 240),
    (250, 200, 40),
    (80, 210, 90),
    (200, 90, 220),
    (255, 140, 0),
)


@torch.no_grad()
def draw_matches(
    net: DescriptorNet, anchors: Anchors, image_a: Bytes, image_b: Bytes, points: Floats
) -> Bytes:
    """Where each of (N, 2) points of one crop is found in another: (H, W, 3) RGB, side by side.

    The first tile is ``image_a`` with the points marked; one tile for each point then shows
    ``image_b`` under how well its pixels match (softmax of the cosines relative to the best, at
    ``SHARPNESS`` times the trained sharpness, at which a good match would hide under its own mark),
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
    found = refine_peak(cosine, half).numpy() * STRIDE
    likeness = (
        torch.exp(SHARPNESS * anchors.scale * (cosine - cosine.amax(1, keepdim=True)))
        .reshape(-1, half, half)
        .numpy()
    )
    first = _enlarge(image_a)
    tiles = [first]
    for i, heat in enumerate(likeness):
        colour = _MARK_COLOURS[i % len(_MARK_COLOURS)]
        _draw_mark(first, points[i], colour)
        tile = _overlay_heat(image_b, heat)
        _draw_mark(tile, found[i], colour)
        tiles.append(tile)
    gap = np.full((size * ZOOM, 4, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def draw_dev_pair(net: DescriptorNet, anchors: Anchors, pair: DevPair, *, points: int = 5) -> Bytes:
    """``draw_matches`` of a pair of dev views at ``points`` places spread over what both show."""
    half = pair.images.shape[1] // STRIDE
    centre = np.stack([pair.first % half, pair.first // half], axis=1) + 0.5
    chosen = [0]
    while len(chosen) < min(points, len(centre)):
        apart = np.linalg.norm(centre[:, None] - centre[chosen][None], axis=2).min(1)
        chosen.append(int(apart.argmax()))
    return draw_matches(net, anchors, pair.images[0], pair.images[1], centre[chosen] * STRIDE)


def _enlarge(image: Bytes) -> Bytes:
    size = image.shape[0] * ZOOM
    return np.asarray(
        cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.uint8
    )


def _overlay_heat(image: Bytes, heat: Floats) -> Bytes:
    """Grey image with a (h, w) map of 0 .. 1 over it."""
    size = image.shape[0] * ZOOM
    grey = _enlarge(image).mean(2, keepdims=True) * 0.6
    level = cv2.resize(heat.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    table = cv2.applyColorMap((level * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[
        ..., ::-1
    ]
    return np.clip(grey * (1.0 - level[..., None]) + table * level[..., None], 0, 255).astype(
        np.uint8
    )


def _draw_mark(tile: Bytes, point: Floats, colour: tuple[int, int, int]) -> None:
    """A ring about (2,) image px; drawn in place. OpenCV draws from pixel centres at 0, here in
    sixteenths.
    """
    x, y = np.round((point * ZOOM - 0.5) * 16).astype(int)
    cv2.circle(tile, (int(x), int(y)), 4 * 16, (255, 255, 255), 3, cv2.LINE_AA, 4)
    cv2.circle(tile, (int(x), int(y)), 4 * 16, colour, 2, cv2.LINE_AA, 4)


def draw_view_pairs(
    pairs: Sequence[ViewPair], methods: Mapping[str, Describe], *, lines: int = 24
) -> Bytes:
    """(H, W, 3) RGB: pairs in rows, methods in columns; a line from a point to where it was found.

    Green: no error, through yellow, to red: twice the last of PCK or more. ``lines``: at most so
    many to a pair.
    """
    rows = []
    for pair in pairs:
        tiles = [
            _draw_view_pair(pair, name, match_points(pair, describe), lines)
            for name, describe in methods.items()
        ]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)


def _draw_view_pair(pair: ViewPair, name: str, found: Floats, lines: int) -> Bytes:
    size = pair.images.shape[1]
    zoom = SIDE / size
    tile = np.concatenate(
        [cv2.resize(i, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for i in pair.images], axis=1
    )
    start = pair.first * STRIDE * zoom
    end = found * STRIDE * zoom + [SIDE, 0.0]
    wrong = np.linalg.norm(found - pair.second, axis=1) / pair.box * 100.0 / (2.0 * PCK[-1])
    for a, b, error in list(zip(start, end, wrong, strict=True))[:lines]:
        level = min(float(error), 1.0)
        colour = (round(230 * min(2 * level, 1.0)), round(230 * min(2 - 2 * level, 1.0)), 30)
        p, q = (tuple(int(c) for c in np.round((point - 0.5) * 16)) for point in (a, b))
        cv2.line(tile, p, q, colour, 1, cv2.LINE_AA, 4)
        cv2.circle(tile, p, 2 * 16, colour, -1, cv2.LINE_AA, 4)
        cv2.circle(tile, q, 2 * 16, colour, -1, cv2.LINE_AA, 4)
    text = f"{name}, {'one person' if pair.same else 'two people'}, {pair.yaw:.0f} degrees"
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(
            tile, text, (6, SIDE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, width, cv2.LINE_AA
        )
    return np.asarray(np.pad(tile, ((0, 4), (0, 4), (0, 0)), constant_values=255), dtype=np.uint8)
