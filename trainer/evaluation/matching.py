"""How well pixels of one view are found in another: the descriptor beside general ones, on the same
points.

A pair of views has points that both show. Where a point of the first lies in the second is known
exactly: its place on the mesh, moved with the second's mesh and projected. A method describes
places of a crop by unit vectors; the match of a point is the output pixel of the second's face with
the highest cosine, refined as in ``dff.trainer.evaluation.pairs``. Views of two people correspond
by the surface point of the face model, photos by their landmarks.

Foils: Lowe, "Distinctive image features from scale-invariant keypoints" (2004), dense; Tola,
Lepetit, Fua, "DAISY: an efficient dense descriptor" (2010).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import cv2
import numpy as np
import torch
from torch.nn import functional

from dff.face.arrays import Bools, Bytes, Floats
from dff.face.descriptor import STRIDE, Anchors, Network, image_batch
from dff.face.extras import require_extra
from dff.face.geometry.camera import Box
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import Frame
from dff.infra.shards import ViewRow, resolve_frame
from dff.trainer.data.crops import (
    COHERENT,
    Chart,
    Framing,
    chart_of,
    grid_in_source,
    input_from_source,
    warp,
)
from dff.trainer.evaluation.pairs import POINTS, SIDE, peak

with require_extra("train"):
    from skimage.feature import daisy

Describe = Callable[[Bytes, Floats], Floats]
"""((S, S, 3) RGB crop, (N, 2) px of it) to (N, D) unit vectors that describe these places."""

YAW_EDGES = (0.0, 30.0, 60.0, 90.0, np.inf)
"""Degrees of yaw between two views that part the bins: each has its lower edge."""
YAW_BINS = ("0-30", "30-60", "60-90", "> 90")
PCK = (1.0, 2.0, 5.0)
"""Percent of the face box within which a match counts."""
FEWEST = 8
"""Points that a pair must share."""
SAME = 0.005
"""Metres in surface coordinates within which the second's pixel must show the point; further,
something hides it.
"""

PCK_BARS = {"0-30": 90.0, "30-60": 80.0}
BETTER = 3.0  # the best foil's mean error over the descriptor's
TRANSFER = 1.3  # mean error between identities over that within one


@dataclass(frozen=True, eq=False)
class ViewPair:
    """Two plain crops and points that both show. Output pixels are ``STRIDE`` pixels of a crop
    wide.
    """

    images: Bytes  # (2, S, S, 3) RGB
    first: Floats  # (N, 2) points in the first crop, output px
    second: Floats  # (N, 2) where the same surface points lie in the second
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
    """All figures; the first method is the one judged."""

    rows: tuple[MatchRow, ...]
    foils: tuple[str, ...] = ()  # the methods that it is compared with

    def lines(self) -> list[str]:
        """The table and the bars as text."""
        head = (
            "method",
            "identity",
            "yaw",
            "pairs",
            "points",
            "px mean",
            "median",
            *(f"PCK {p:g} %" for p in PCK),
        )
        out = ["".join(f"{cell:>10}" for cell in head)]
        for r in self.rows:
            cells = (
                r.method,
                r.identity,
                r.yaw,
                r.pairs,
                r.points,
                f"{r.px_mean:.2f}",
                f"{r.px_median:.2f}",
            )
            out.append("".join(f"{cell:>10}" for cell in (*cells, *(f"{p:.1f}" for p in r.pck))))
        return out + [
            f"{bar.name}: {bar.measured:.2f} (wanted {bar.wanted}: {'met' if bar.met else 'missed'})"
            for bar in self.bars()
        ]

    def bars(self) -> list[Bar]:
        """What the judged method should reach, beside what it does; cells without pairs are left
        out.
        """
        method = self.rows[0].method if self.rows else ""
        cell = {(r.method, r.identity, r.yaw): r for r in self.rows}
        out = []
        for yaw in YAW_BINS:
            for identity in ("same", "different"):
                ours = cell.get((method, identity, yaw))
                if ours is None or yaw not in PCK_BARS:
                    continue
                name = f"{identity} identity, yaw {yaw}"
                pck, bar = ours.pck[-1], PCK_BARS[yaw]
                out.append(Bar(f"{name}: PCK {PCK[-1]:g} %", pck, f">= {bar:g}", pck >= bar))
                if self.foils:
                    best = min(
                        (cell[foil, identity, yaw] for foil in self.foils), key=lambda r: r.px_mean
                    )
                    times = best.px_mean / max(ours.px_mean, 1e-9)
                    out.append(
                        Bar(
                            f"{name}: mean error of {best.method} over it",
                            times,
                            f">= {BETTER:g}",
                            times >= BETTER,
                        )
                    )
            same, different = cell.get((method, "same", yaw)), cell.get((method, "different", yaw))
            if same and different:
                ratio = different.px_mean / max(same.px_mean, 1e-9)
                out.append(
                    Bar(
                        f"yaw {yaw}: different over same identity",
                        ratio,
                        f"<= {TRANSFER:g}",
                        ratio <= TRANSFER,
                    )
                )
        return out


def yaw_bin(degrees: float) -> int:
    """Index in YAW_BINS of a difference of yaws."""
    return int(np.searchsorted(YAW_EDGES, abs(degrees), side="right")) - 1


def view_pairs(
    rows: Sequence[ViewRow],
    model: MorphableModel,
    *,
    count: int,
    size: int,
    rng: np.random.Generator,
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


def _pair(
    a: ViewRow, b: ViewRow, model: MorphableModel, chart: Chart, size: int, rng: np.random.Generator
) -> ViewPair:
    boxes = [Box.around(row.landmarks_3d) for row in (a, b)]
    matrices = [input_from_source(box, size, Framing()) for box in boxes]
    frames = [resolve_frame(row, model) for row in (a, b)]
    vertices = b.cam_from_head.apply(model.vertices(b.coefficients(model)))
    known, place, cam = _followed(frames[0], grid_in_source(matrices[0], size), chart, vertices)
    source = b.camera.px_from_cam(cam)
    skin = chart.skin[
        frames[1].triangle
    ]  # occluders and background are negative: the row for none and one more
    skin &= frames[1].mask
    known &= _shows(frames[1], skin, source, place, chart)
    second = (source @ matrices[1][:, :2].T + matrices[1][:, 2]) / STRIDE
    half = size // STRIDE
    known &= ((second >= 0) & (second < half)).all(1)
    chosen = rng.permutation(np.flatnonzero(known))[:POINTS]
    return ViewPair(
        images=np.stack(
            [
                warp(row.pixels(), m, size, (0, 0, 0))
                for row, m in zip((a, b), matrices, strict=True)
            ]
        ),
        first=np.stack([chosen % half, chosen // half], axis=1) + 0.5,
        second=second[chosen],
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


def _followed(
    frame: Frame, px: Floats, chart: Chart, vertices: Floats
) -> tuple[Bools, Floats, Floats]:
    """Whether (N, 2) ``px`` show one sheet of the face, their (N, 6) surface coordinates, and (N,
    3) on ``vertices``.

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
    half = pair.images.shape[1] // STRIDE
    candidate = np.flatnonzero(pair.face)
    centre = np.stack([candidate % half, candidate // half], axis=1) + 0.5
    wanted = describe(pair.images[0], pair.first * STRIDE)
    # Below any cosine beside the face: never found there, and without weight about the peak.
    cosine = np.full((len(wanted), half * half), -2.0, dtype=np.float32)
    cosine[:, candidate] = wanted @ describe(pair.images[1], centre * STRIDE).T
    return cast(Floats, peak(torch.from_numpy(cosine), half).numpy())


def measure(
    pairs: Sequence[ViewPair],
    methods: Mapping[str, Describe],
    foils: Mapping[str, Describe] | None = None,
) -> Matching:
    """Figures of each method and foil on the same pairs; the bars judge the first method beside the
    foils.
    """
    foils = foils or {}
    methods = {**methods, **foils}
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
    return Matching(tuple(rows), tuple(foils))


def by_network(net: Network) -> Describe:
    """The Deep Face Feature of a network, between the centres of its pixels."""

    def describe(image: Bytes, px: Floats) -> Floats:
        return _unit(_descriptors(net, image, px))

    return describe


def by_anchors(net: Network, anchors: Anchors, *, mirrored: bool = False) -> Describe:
    """The probabilities that a place shows each anchor, as unit vectors: their square roots.

    The cosine is Bhattacharyya's coefficient of two places' probabilities. A descriptor's direction
    between those of the anchors carries what training left open; what it says of the anchors is all
    that was taught. ``mirrored``: of which anchors the mirrored crop would show there counts as
    much, and the cosine is the mean of both coefficients.
    """
    vectors = torch.from_numpy(anchors.scale * anchors.descriptor.T)

    def root(image: Bytes, px: Floats) -> Floats:
        log_odds = torch.from_numpy(_descriptors(net, image, px)) @ vectors
        return cast(Floats, torch.softmax(log_odds, dim=1).sqrt().numpy())

    def describe(image: Bytes, px: Floats) -> Floats:
        if not mirrored:
            return root(image, px)
        there = np.stack([image.shape[1] - px[:, 0], px[:, 1]], axis=1)
        both = root(image, px), root(np.ascontiguousarray(image[:, ::-1]), there)
        return np.concatenate(both, axis=1) / np.float32(np.sqrt(2.0))

    return describe


@torch.no_grad()
def _descriptors(net: Network, image: Bytes, px: Floats) -> Floats:
    """(N, D) what a network says at (N, 2) px of a crop."""
    features = net(image_batch(torch.from_numpy(image[None])))
    return _sampled(features.descriptor[0].permute(1, 2, 0).numpy(), px / image.shape[0])


def _sampled(grid: Floats, place: Floats) -> Floats:
    """(N, D) bilinear values of a (H, W, D) map at (N, 2) places, 0 .. 1 of its sides; beyond the
    centres the rim's.
    """
    at = torch.from_numpy(np.asarray(2.0 * place - 1.0, dtype=np.float32))[None, None]
    values = torch.from_numpy(np.ascontiguousarray(grid.transpose(2, 0, 1)))[None]
    out = functional.grid_sample(
        values, at, mode="bilinear", padding_mode="border", align_corners=False
    )
    return cast(Floats, out[0, :, 0].T.numpy())


def by_patches(side: int) -> Describe:
    """Grey squares of ``side`` px, less their mean, scaled to length one: cosine is normalised
    correlation.
    """
    steps = np.arange(side) - (side - 1) / 2
    window = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)

    def describe(image: Bytes, px: Floats) -> Floats:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        x, y = np.asarray(px[:, None] + window - 0.5, dtype=np.float32).transpose(2, 0, 1)
        flat = np.asarray(
            cv2.remap(grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), dtype=np.float32
        )
        return _unit(flat - flat.mean(1, keepdims=True))

    return describe


def by_sift(width: float) -> Describe:
    """SIFT (OpenCV), upright; its sixteen cells cover ``width`` px."""
    sift = cv2.SIFT.create()

    def describe(image: Bytes, px: Floats) -> Floats:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        # OpenCV's cells are 1.5 times the keypoint's size wide.
        points = [cv2.KeyPoint(float(x), float(y), width / 6.0, 0.0) for x, y in px - 0.5]
        _, found = sift.compute(grey, points)
        return _unit(np.asarray(found, np.float32))

    return describe


def by_daisy(radius: int) -> Describe:
    """DAISY (scikit-image), its outer ring ``radius`` px away, between the output pixels where it
    is computed.
    """

    def describe(image: Bytes, px: Floats) -> Floats:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
        # scikit-image describes pixel centres; means of 2 x 2 pixels have theirs where output
        # pixels do.
        padded = np.pad(cv2.blur(grey, (2, 2), anchor=(0, 0)), radius, mode="reflect")
        grid = np.asarray(daisy(padded, step=STRIDE, radius=radius), np.float32)
        return _unit(_sampled(grid, px / image.shape[0]))

    return describe


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-6), dtype=np.float32)


def foils() -> dict[str, Describe]:
    """General descriptors to compare with: raw patches, dense SIFT of three extents, and DAISY.

    Extents in px of the crop. SIFT's best one depends on the views, so that it has three tries;
    patches and DAISY have one each, chosen without a search.
    """
    sift = {f"sift {width}": by_sift(width) for width in (24, 48, 72)}
    return {"patches": by_patches(16), **sift, "daisy": by_daisy(16)}


def pairs_picture(
    pairs: Sequence[ViewPair], methods: Mapping[str, Describe], *, lines: int = 24
) -> Bytes:
    """(H, W, 3) RGB: pairs in rows, methods in columns; a line from a point to where it was found.

    Green: no error, through yellow, to red: twice the last of PCK or more. ``lines``: at most so
    many to a pair.
    """
    rows = []
    for pair in pairs:
        tiles = [
            _matches_drawn(pair, name, matched(pair, describe), lines)
            for name, describe in methods.items()
        ]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)


def _matches_drawn(pair: ViewPair, name: str, found: Floats, lines: int) -> Bytes:
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
