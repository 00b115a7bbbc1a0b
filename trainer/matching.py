"""How well pixels of one view are found in another: the descriptor beside general ones, on the same points.

A pair of views has points that both show. Where a point of the first lies in the second is known exactly: its place on
the mesh, moved with the second's mesh and projected. A method describes each output pixel of a crop by a unit vector;
the match of a point is the pixel of the second's face with the highest cosine, refined as in ``trainer.evaluate``.
Views of two people correspond by the surface point of the face model.

Foils: Lowe, "Distinctive image features from scale-invariant keypoints" (2004), dense; Tola, Lepetit, Fua, "DAISY: an
efficient dense descriptor" (2010).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import cv2
import numpy as np
import torch
from skimage.feature import daisy

from face.arrays import Bools, Bytes, Floats, Ints
from face.camera import Box
from face.descriptor import STRIDE, DescriptorNet, image_batch
from face.morphable import MorphableModel
from face.render.frame import Frame
from infra.shards import ViewRow, frame_of
from trainer.crops import COHERENT, Chart, Framing, chart_of, grid_in_source, input_from_source, warp
from trainer.evaluate import POINTS, SIDE, peak

Describe = Callable[[Bytes], Floats]
"""(S, S, 3) RGB crop to (S / STRIDE, S / STRIDE, D) unit vectors at the centres of the output pixels."""

YAW_EDGES = (0.0, 30.0, 60.0, 90.0, np.inf)
"""Degrees of yaw between two views that part the bins: each has its lower edge."""
YAW_BINS = ("0-30", "30-60", "60-90", "> 90")
PCK = (1.0, 2.0, 5.0)
"""Percent of the face box within which a match counts."""
FEWEST = 8
"""Points that a pair must share."""
SAME = 0.005
"""Metres in surface coordinates within which the second's pixel must show the point; further, something hides it."""

PCK_BARS = {"0-30": 90.0, "30-60": 80.0}
BETTER = 3.0  # the best foil's mean error over the descriptor's
TRANSFER = 1.3  # mean error between identities over that within one


@dataclass(frozen=True, eq=False)
class ViewPair:
    """Two plain crops and points that both show. Output pixels are ``STRIDE`` pixels of a crop wide."""

    images: Bytes  # (2, S, S, 3) RGB
    first: Ints  # (N,) output pixels of the first crop, counted row by row
    second: Floats  # (N, 2) where the same surface points lie in the second, output px
    face: Bools  # (P,) output pixels of the second that show its face: the candidates
    box: float  # geometric mean of the sides of the second's landmark box, output px
    yaw: float  # degrees of yaw between the views
    same: bool  # one identity


@dataclass(frozen=True)
class MatchRow:
    """A method's figures on the pairs of one cell."""

    method: str
    identity: str  # "same" or "different"
    yaw: str  # of YAW_BINS
    pairs: int
    points: int
    px_mean: float  # end-point error at a crop of SIDE
    px_median: float
    pck: tuple[float, ...]  # percent of points within each of PCK


@dataclass(frozen=True)
class Bar:
    """One figure and what it should reach."""

    name: str
    measured: float
    wanted: str
    met: bool


@dataclass(frozen=True)
class Matching:
    """All figures; the first method is the one judged, the others are its foils."""

    rows: tuple[MatchRow, ...]

    def lines(self) -> list[str]:
        """The table and the bars as text."""
        head = ("method", "identity", "yaw", "pairs", "points", "px mean", "median", *(f"PCK {p:g} %" for p in PCK))
        out = ["".join(f"{cell:>10}" for cell in head)]
        for r in self.rows:
            cells = (r.method, r.identity, r.yaw, r.pairs, r.points, f"{r.px_mean:.2f}", f"{r.px_median:.2f}")
            out.append("".join(f"{cell:>10}" for cell in (*cells, *(f"{p:.1f}" for p in r.pck))))
        return out + [
            f"{bar.name}: {bar.measured:.2f} (wanted {bar.wanted}: {'met' if bar.met else 'missed'})"
            for bar in self.bars()
        ]

    def bars(self) -> list[Bar]:
        """What the judged method should reach, beside what it does; cells without pairs are left out."""
        method = self.rows[0].method if self.rows else ""
        cell = {(r.method, r.identity, r.yaw): r for r in self.rows}
        foils = sorted({r.method for r in self.rows} - {method})
        out = []
        for yaw in YAW_BINS:
            for identity in ("same", "different"):
                ours = cell.get((method, identity, yaw))
                if ours is None or yaw not in PCK_BARS:
                    continue
                name = f"{identity} identity, yaw {yaw}"
                pck, bar = ours.pck[-1], PCK_BARS[yaw]
                out.append(Bar(f"{name}: PCK {PCK[-1]:g} %", pck, f">= {bar:g}", pck >= bar))
                if foils:
                    best = min((cell[foil, identity, yaw] for foil in foils), key=lambda r: r.px_mean)
                    times = best.px_mean / max(ours.px_mean, 1e-9)
                    out.append(Bar(f"{name}: mean error of {best.method} over it", times, ">= 3", times >= BETTER))
            same, different = cell.get((method, "same", yaw)), cell.get((method, "different", yaw))
            if same and different:
                ratio = different.px_mean / max(same.px_mean, 1e-9)
                out.append(Bar(f"yaw {yaw}: different over same identity", ratio, "<= 1.3", ratio <= TRANSFER))
        return out


def yaw_bin(degrees: float) -> int:
    """Index in YAW_BINS of a difference of yaws."""
    return int(np.searchsorted(YAW_EDGES, abs(degrees), side="right")) - 1


def view_pairs(
    rows: Sequence[ViewRow], model: MorphableModel, *, count: int, size: int, rng: np.random.Generator
) -> list[ViewPair]:
    """Up to ``count`` pairs of views for each yaw bin, of the same identity and of different ones.

    ``size``: side of the crops, px. Raises BadDataset when a row is of another model.
    """
    chart = chart_of(model)
    yaw = np.array([row.pose[0] for row in rows])
    identity = np.unique([row.identity_id for row in rows], return_inverse=True)[1]
    apart = np.abs(yaw[:, None] - yaw[None])
    same = identity[:, None] == identity[None]
    others = ~np.eye(len(rows), dtype=bool)
    out = []
    for low, high in pairwise(YAW_EDGES):
        for wanted in (same, ~same):
            cell = np.argwhere((apart >= low) & (apart < high) & wanted & others)
            found: list[ViewPair] = []
            # Views from two sides of a face share little: some draws give no pair.
            for a, b in cell[rng.permutation(len(cell))[: 4 * count]]:
                if len(found) == count:
                    break
                pair = _pair(rows[a], rows[b], model, chart, size, rng)
                if len(pair.first) >= FEWEST:
                    found.append(pair)
            out += found
    return out


def _pair(a: ViewRow, b: ViewRow, model: MorphableModel, chart: Chart, size: int, rng: np.random.Generator) -> ViewPair:
    boxes = [Box.around(row.landmarks_3d) for row in (a, b)]
    matrices = [input_from_source(box, size, Framing()) for box in boxes]
    frames = [frame_of(row, model) for row in (a, b)]
    vertices = b.cam_from_head.apply(model.vertices(b.coefficients))
    known, place, cam = _followed(frames[0], grid_in_source(matrices[0], size), chart, vertices)
    source = b.camera.px_from_cam(cam)
    skin = chart.skin[frames[1].triangle]  # occluders and background are negative: the row for none and one more
    skin &= frames[1].mask
    known &= _shows(frames[1], skin, source, place, chart)
    second = (source @ matrices[1][:, :2].T + matrices[1][:, 2]) / STRIDE
    half = size // STRIDE
    known &= ((second >= 0) & (second < half)).all(1)
    first = rng.permutation(np.flatnonzero(known))[:POINTS]
    return ViewPair(
        images=np.stack([warp(row.pixels(), m, size, (0, 0, 0)) for row, m in zip((a, b), matrices, strict=True)]),
        first=first,
        second=second[first],
        face=_at(skin, grid_in_source(matrices[1], size)),
        box=boxes[1].size * float(matrices[1][0, 0]) / STRIDE,
        yaw=abs(a.pose[0] - b.pose[0]),
        same=a.identity_id == b.identity_id,
    )


def _at(mask: Bools, px: Floats) -> Bools:
    """(N,) a mask's value in the pixel that holds each of (N, 2) ``px``; False outside."""
    height, width = mask.shape
    column, row = np.floor(px).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return cast(Bools, inside & mask[np.where(inside, row, 0), np.where(inside, column, 0)])


def _followed(frame: Frame, px: Floats, chart: Chart, vertices: Floats) -> tuple[Bools, Floats, Floats]:
    """Whether (N, 2) ``px`` show one sheet of the face, their (N, 6) surface coordinates, and (N, 3) on ``vertices``.

    Bilinear between the four pixel centres round a place, whose surface points are exact.
    """
    height, width = frame.triangle.shape
    at = px - 0.5
    corner = np.floor(at).astype(np.int64)
    inside = ((corner >= 0) & (corner < [width - 1, height - 1])).all(1)
    fx, fy = (at - corner).T
    corner = np.where(inside[:, None], corner, 0)
    columns = corner[:, :1] + np.array([0, 1, 0, 1])
    rows = corner[:, 1:] + np.array([0, 0, 1, 1])
    ids = frame.triangle[rows, columns]  # (N, 4)
    known = inside & ((ids >= 0) & chart.skin[ids]).all(1)
    corners = chart.faces[np.where(known[:, None], ids, 0)]  # (N, 4, 3)
    weight = frame.barycentric[rows, columns]
    place = np.einsum("npk,npkc->npc", weight, chart.places[corners])
    known &= np.linalg.norm(place - place[:, :1], axis=2).max(1) < COHERENT
    blend = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], axis=1)
    cam = np.einsum("np,npk,npkc->nc", blend, weight, vertices[corners])
    # A point that is not known has no place: any before the camera will do.
    cam[~known] = vertices.mean(0)
    return known, np.einsum("np,npc->nc", blend, place), cam


def _shows(frame: Frame, skin: Bools, px: Floats, place: Floats, chart: Chart) -> Bools:
    """(N,) whether the pixels that hold (N, 2) ``px`` show the surface at ``place`` (N, 6)."""
    seen = _at(skin, px)
    column, row = np.where(seen[:, None], np.floor(px), 0).astype(np.int64).T
    corners = chart.faces[np.where(seen, frame.triangle[row, column], 0)]
    there = np.einsum("nk,nkc->nc", frame.barycentric[row, column], chart.places[corners])
    return cast(Bools, seen & (np.linalg.norm(there - place, axis=1) < SAME))


def matched(pair: ViewPair, describe: Describe) -> Floats:
    """(N, 2) output px of the second crop where the pair's points are found."""
    one, two = (describe(image) for image in pair.images)
    dims = one.shape[-1]
    cosine = one.reshape(-1, dims)[pair.first] @ two.reshape(-1, dims).T
    cosine[:, ~pair.face] = -2.0  # below any cosine: never found, and without weight about the peak
    return cast(Floats, peak(torch.from_numpy(cosine), two.shape[1]).numpy())


def measure(pairs: Sequence[ViewPair], methods: Mapping[str, Describe]) -> Matching:
    """Figures of each method on the same pairs; the first method is the one that the bars judge."""
    cells: dict[tuple[str, str, str], list[Floats]] = {}
    for pair in pairs:
        for name, describe in methods.items():
            error = np.linalg.norm(matched(pair, describe) - pair.second, axis=1)
            key = (name, "same" if pair.same else "different", YAW_BINS[yaw_bin(pair.yaw)])
            pixel = SIDE / (pair.images.shape[1] / STRIDE)
            cells.setdefault(key, []).append(np.stack([error * pixel, 100.0 * error / pair.box]))
    rows = []
    for name in methods:
        for identity in ("same", "different"):
            for yaw in YAW_BINS:
                got = cells.get((name, identity, yaw), [])
                if got:
                    px, percent = np.concatenate(got, axis=1)
                    pck = tuple(float(100.0 * (percent <= limit).mean()) for limit in PCK)
                    figures = float(px.mean()), float(np.median(px)), pck
                    rows.append(MatchRow(name, identity, yaw, len(got), len(px), *figures))
    return Matching(tuple(rows))


def by_network(net: DescriptorNet) -> Describe:
    """The Deep Face Feature of a network."""

    @torch.no_grad()
    def describe(image: Bytes) -> Floats:
        features = net.eval()(image_batch(torch.from_numpy(image[None])))
        return cast(Floats, features.descriptor[0].permute(1, 2, 0).contiguous().numpy())

    return describe


def by_patches(side: int) -> Describe:
    """Grey squares of ``side`` px (even), less their mean, scaled to length one: cosine is normalised correlation."""

    def describe(image: Bytes) -> Floats:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        padded = np.pad(grey, side // 2, mode="reflect")
        # The centre of output pixel i lies on the corner 2i + 1 between four pixels.
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))[1::STRIDE, 1::STRIDE]
        flat = windows.reshape(*windows.shape[:2], -1)
        return _unit(flat - flat.mean(2, keepdims=True))

    return describe


def by_sift(width: float) -> Describe:
    """SIFT (OpenCV) upright at every output pixel; its sixteen cells cover ``width`` px."""
    sift = cv2.SIFT.create()

    def describe(image: Bytes) -> Floats:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        centres = (np.arange(image.shape[0] // STRIDE) + 0.5) * STRIDE - 0.5
        # OpenCV's cells are 1.5 times the keypoint's size wide.
        points = [cv2.KeyPoint(float(x), float(y), width / 6.0, 0.0) for y in centres for x in centres]
        _, found = sift.compute(grey, points)
        return _unit(np.asarray(found, np.float32).reshape(len(centres), len(centres), -1))

    return describe


def by_daisy(radius: int) -> Describe:
    """DAISY (scikit-image) at every output pixel, its outer ring ``radius`` px away."""

    def describe(image: Bytes) -> Floats:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
        # scikit-image describes pixel centres; means of 2 x 2 pixels have theirs where output pixels do.
        padded = np.pad(cv2.blur(grey, (2, 2), anchor=(0, 0)), radius, mode="reflect")
        return _unit(np.asarray(daisy(padded, step=STRIDE, radius=radius), np.float32))

    return describe


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-6), dtype=np.float32)


def foils() -> dict[str, Describe]:
    """General descriptors; patches and SIFT of the extents that matched as well as any of 16 to 48 px."""
    return {"patches": by_patches(16), "sift": by_sift(24.0), "daisy": by_daisy(16)}


def pairs_picture(pairs: Sequence[ViewPair], methods: Mapping[str, Describe], *, lines: int = 24) -> Bytes:
    """(H, W, 3) RGB: pairs in rows, methods in columns; a line from a point to where it was found.

    Green: no error, through yellow, to red: twice the last of PCK or more. ``lines``: at most so many to a pair.
    """
    rows = []
    for pair in pairs:
        tiles = [_matches_drawn(pair, name, matched(pair, describe), lines) for name, describe in methods.items()]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)


def _matches_drawn(pair: ViewPair, name: str, found: Floats, lines: int) -> Bytes:
    size = pair.images.shape[1]
    zoom = SIDE / size
    tile = np.concatenate([cv2.resize(i, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for i in pair.images], axis=1)
    half = size // STRIDE
    start = (np.stack([pair.first % half, pair.first // half], axis=1) + 0.5) * STRIDE * zoom
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
        cv2.putText(tile, text, (6, SIDE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, width, cv2.LINE_AA)
    return np.asarray(np.pad(tile, ((0, 4), (0, 4), (0, 0)), constant_values=255), dtype=np.uint8)
