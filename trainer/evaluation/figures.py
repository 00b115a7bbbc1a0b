"""Pictures of descriptor matches, for reports and experiment tracking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch

from dff.face.arrays import Bytes, Floats
from dff.face.descriptor import STRIDE, Anchors, DescriptorNet, image_batch
from dff.face.matching import refine_peak
from dff.trainer.evaluation.config import FIGURES, MATCHING, FigureConfig, MatchingConfig
from dff.trainer.evaluation.matching import Describe, match_points
from dff.trainer.evaluation.pairs import DevPair, ViewPair


@torch.no_grad()
def draw_match_maps(
    net: DescriptorNet,
    anchors: Anchors,
    image_a: Bytes,
    image_b: Bytes,
    points: Floats,
    config: FigureConfig = FIGURES,
) -> Bytes:
    """Match (N, 2) points of one crop in another and draw the matches, (H, W, 3) RGB.

    Both images are (S, S, 3) crops of a size that the network takes; points in px of the first. The
    first tile is ``image_a`` with the points marked. One tile for each point follows: ``image_b``
    under the match map, which is the softmax of the cosines relative to the best one, with the best
    match marked. Raises ValueError without points, or when one lies outside.
    """
    size = image_a.shape[0]
    if len(points) == 0 or points.min() < 0 or points.max() >= size:
        raise ValueError(f"draw_match_maps needs points within 0 .. {size}")
    device = next(net.parameters()).device
    both = torch.from_numpy(np.stack([image_a, image_b])).to(device)
    descriptor = net.eval()(image_batch(both)).descriptor.cpu()
    half = size // STRIDE
    column, row = torch.from_numpy(np.floor(points / STRIDE).astype(np.int64)).T
    wanted = descriptor[0, :, row, column].T  # (N, D)
    cosine = wanted @ descriptor[1].flatten(1)
    found = refine_peak(cosine, half).numpy() * STRIDE
    relative = cosine - cosine.amax(1, keepdim=True)
    maps = torch.exp(config.sharpness * anchors.scale * relative).reshape(-1, half, half).numpy()
    first = _enlarge(image_a, config.zoom)
    tiles = [first]
    for i, match_map in enumerate(maps):
        colour = config.colours[i % len(config.colours)]
        _draw_mark(first, points[i] * config.zoom, colour)
        tile = _overlay_map(_enlarge(image_b, config.zoom), match_map)
        _draw_mark(tile, found[i] * config.zoom, colour)
        tiles.append(tile)
    gap = np.full((size * config.zoom, 4, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def draw_dev_pair(net: DescriptorNet, anchors: Anchors, pair: DevPair, *, points: int = 5) -> Bytes:
    """``draw_match_maps`` of a validation pair, at up to ``points`` points far from each other."""
    half = pair.images.shape[1] // STRIDE
    centre = np.stack([pair.first % half, pair.first // half], axis=1) + 0.5
    chosen = [0]
    while len(chosen) < min(points, len(centre)):
        distance = np.linalg.norm(centre[:, None] - centre[chosen][None], axis=2).min(1)
        chosen.append(int(distance.argmax()))
    return draw_match_maps(net, anchors, pair.images[0], pair.images[1], centre[chosen] * STRIDE)


def _enlarge(image: Bytes, zoom: int) -> Bytes:
    size = image.shape[0] * zoom
    return np.asarray(
        cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.uint8
    )


def _overlay_map(tile: Bytes, match_map: Floats) -> Bytes:
    """The (S, S, 3) tile in grey under a (h, w) map of 0..1."""
    size = tile.shape[0]
    grey = tile.mean(2, keepdims=True) * 0.6
    level = cv2.resize(match_map.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    bgr = cv2.applyColorMap((level * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    level = level[..., None]
    return np.clip(grey * (1.0 - level) + bgr[..., ::-1] * level, 0, 255).astype(np.uint8)


def _draw_mark(tile: Bytes, point: Floats, colour: tuple[int, int, int]) -> None:
    """Draw a ring around a (2,) px of the tile, in place."""
    # OpenCV draws from pixel centres at 0, here in sixteenths.
    x, y = np.round((point - 0.5) * 16).astype(int)
    cv2.circle(tile, (int(x), int(y)), 4 * 16, (255, 255, 255), 3, cv2.LINE_AA, 4)
    cv2.circle(tile, (int(x), int(y)), 4 * 16, colour, 2, cv2.LINE_AA, 4)


def draw_view_pairs(
    pairs: Sequence[ViewPair],
    methods: Mapping[str, Describe],
    *,
    lines: int = 24,
    config: MatchingConfig = MATCHING,
) -> Bytes:
    """Draw pairs in rows and methods in columns, (H, W, 3) RGB: a line from a point to its match.

    Green means no error, red twice the largest limit of ``config.pck`` or more, yellow is between.
    ``lines``: most lines of a pair.
    """
    rows = []
    for pair in pairs:
        tiles = [
            _draw_view_pair(pair, name, match_points(pair, describe), lines, config)
            for name, describe in methods.items()
        ]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)


def _draw_view_pair(
    pair: ViewPair, name: str, found: Floats, lines: int, config: MatchingConfig
) -> Bytes:
    side = config.crop_side
    zoom = side / pair.images.shape[1]
    tile = np.concatenate(
        [cv2.resize(i, (side, side), interpolation=cv2.INTER_LINEAR) for i in pair.images], axis=1
    )
    start = pair.first * STRIDE * zoom
    end = found * STRIDE * zoom + [side, 0.0]
    percent = np.linalg.norm(found - pair.second, axis=1) / pair.box * 100.0
    for a, b, error in list(zip(start, end, percent, strict=True))[:lines]:
        level = min(float(error) / (2.0 * config.pck[-1]), 1.0)
        colour = (round(230 * min(2 * level, 1.0)), round(230 * min(2 - 2 * level, 1.0)), 30)
        p, q = (tuple(int(c) for c in np.round((point - 0.5) * 16)) for point in (a, b))
        cv2.line(tile, p, q, colour, 1, cv2.LINE_AA, 4)
        cv2.circle(tile, p, 2 * 16, colour, -1, cv2.LINE_AA, 4)
        cv2.circle(tile, q, 2 * 16, colour, -1, cv2.LINE_AA, 4)
    text = f"{name}, {'one person' if pair.same else 'two people'}, {pair.yaw:.0f} degrees"
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(
            tile, text, (6, side - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, width, cv2.LINE_AA
        )
    return np.asarray(np.pad(tile, ((0, 4), (0, 4), (0, 0)), constant_values=255), dtype=np.uint8)
