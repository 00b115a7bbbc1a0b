"""How well descriptors match: the dev figures, on pairs of views of identities that training never
sees.

A surface point seen in both views is matched from the first to the second by the pixel of highest
cosine; and each pixel votes for a place on the model through the anchors. Errors are in pixels of
the face scaled so that a crop is 256 pixels wide, and in millimetres on the template.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dff.face.arrays import Bytes, Floats, Ints
from dff.face.descriptor import STRIDE, DescriptorNet, image_batch
from dff.trainer.data.crops import (
    Chart,
    Framing,
    grid_in_source,
    input_from_source,
    places_at,
    warp,
)
from dff.trainer.data.view_cache import Store

SIDE = 256
"""Crop side that pixel errors are given at."""
POINTS = 64
"""Points matched in a pair of views."""
SAME = 0.003
"""Metres in surface coordinates up to which two pixels show the same point."""


@dataclass(frozen=True)
class Pair:
    """Two plain crops of one identity and points that both show."""

    images: Bytes  # (2, S, S, 3)
    first: Ints  # (N,) output pixels of the first crop, counted row by row
    second: Floats  # (N, 2) where the same points lie in the second, output pixels
    place: Floats  # (N, 6) surface coordinates of the points, metres


def dev_pairs(store: Store, chart: Chart, *, count: int, size: int) -> list[Pair]:
    """Up to ``count`` pairs of held-out views, the same for the same store: empty when none is held
    out.

    Pairs whose views share fewer than eight points are left out.
    """
    rng = np.random.default_rng(0)
    held = np.flatnonzero(store.is_dev)
    identity = store.identity[held]
    out: list[Pair] = []
    for _ in range(4 * count):
        if len(out) == count or not len(held):
            break
        a = int(rng.integers(len(held)))
        others = held[(identity == identity[a]) & (held != held[a])]
        if len(others):
            pair = _pair(store, chart, int(held[a]), int(rng.choice(others)), size, rng)
            if len(pair.first) >= 8:
                out.append(pair)
    return out


def _pair(store: Store, chart: Chart, a: int, b: int, size: int, rng: np.random.Generator) -> Pair:
    images, places, known = [], [], []
    for number in (a, b):
        view = store.view(number)
        matrix = input_from_source(view.box, size, Framing())
        images.append(warp(view.image, matrix, size, (0, 0, 0)))
        place, ok = places_at(view, grid_in_source(matrix, size), chart)
        places.append(place)
        known.append(ok)
    first = rng.permutation(np.flatnonzero(known[0]))[: 4 * POINTS]
    seen = np.flatnonzero(known[1])
    if not len(first) or not len(seen):
        return Pair(np.stack(images), first[:0], np.zeros((0, 2)), np.zeros((0, 6)))
    apart = np.linalg.norm(places[0][first][:, None] - places[1][seen][None], axis=2)
    nearest = apart.argmin(1)
    same = np.flatnonzero(apart[np.arange(len(first)), nearest] < SAME)[:POINTS]
    pixel = seen[nearest[same]]
    half = size // STRIDE
    centre = np.stack([pixel % half, pixel // half], axis=1) + 0.5
    return Pair(np.stack(images), first[same], centre, places[0][first[same]])


@torch.no_grad()
def match_figures(
    net: DescriptorNet, class_vectors: Tensor, anchor_place: Tensor, scale: float, pairs: list[Pair]
) -> dict[str, float]:
    """The dev figures of a network; empty without pairs.

    ``match_px_mean``, ``match_px_median``: end-point error at a crop of ``SIDE``; ``match_pck_8``:
    fraction of points within 8 px; ``vote_mm_median``: distance on the template of a pixel's
    expected place from its true one.
    """
    if not pairs:
        return {}
    device = class_vectors.device
    net.eval()
    pixel_errors, vote_errors = [], []
    for pair in pairs:
        features = net(image_batch(torch.from_numpy(pair.images).to(device)))
        d = features.descriptor.flatten(2)  # (2, D, P)
        wanted = d[0][:, torch.from_numpy(pair.first).to(device)].T  # (N, D)
        found = peak(wanted @ d[1], features.face_logit.shape[-1]).cpu().numpy()
        pixel = SIDE / features.face_logit.shape[-1]
        pixel_errors.append(np.linalg.norm(found - pair.second, axis=1) * pixel)
        probability = torch.softmax(scale * wanted @ class_vectors.T, dim=1)
        place = (probability @ anchor_place[:, :3]).cpu().numpy()
        vote_errors.append(np.linalg.norm(place - pair.place[:, :3], axis=1) * 1e3)
    px, mm = np.concatenate(pixel_errors), np.concatenate(vote_errors)
    return {
        "match_px_mean": float(px.mean()),
        "match_px_median": float(np.median(px)),
        "match_pck_8": float((px < 8.0).mean()),
        "vote_mm_median": float(np.median(mm)),
    }


def peak(cosine: Tensor, width: int) -> Tensor:
    """(N, 2) output pixels (x, y), first centre at 0.5, of the maximum of each of (N, P) maps of
    ``width``.

    Finer than a pixel: the mean of the 3 x 3 pixels round the maximum, weighted by how near they
    come to it.
    """
    best = cosine.argmax(1)
    steps = torch.arange(-1, 2, device=cosine.device)
    x = (best % width)[:, None, None] + steps.expand(3, 3)
    y = (best // width)[:, None, None] + steps.expand(3, 3).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < cosine.shape[1] // width)
    around = cosine.gather(
        1, (torch.where(inside, y * width + x, best[:, None, None])).flatten(1)
    ).reshape(x.shape)
    weight = torch.exp(32.0 * (around - cosine.amax(1)[:, None, None])) * inside
    weight = weight / weight.sum((1, 2), keepdim=True)
    return torch.stack([(weight * (x + 0.5)).sum((1, 2)), (weight * (y + 0.5)).sum((1, 2))], dim=1)
