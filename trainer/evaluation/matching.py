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
from typing import cast

import numpy as np
import torch
from torch import Tensor

from dff.face.arrays import Bytes, Floats
from dff.face.descriptor import STRIDE, DescriptorNet, image_batch
from dff.trainer.evaluation.pairs import YAW_EDGES, DevPair, ViewPair

Describe = Callable[[Bytes, Floats], Floats]
"""((S, S, 3) RGB crop, (N, 2) px of it) to (N, D) unit vectors that describe these places."""
SIDE = 256
"""Crop side that pixel errors are given at."""
YAW_BINS = ("0-30", "30-60", "60-90", "> 90")


PCK = (1.0, 2.0, 5.0)
"""Percent of the face box within which a match counts."""


PCK_THRESHOLDS = {"0-30": 90.0, "30-60": 80.0}


BASELINE_RATIO = 3.0  # the best foil's mean error over the descriptor's


IDENTITY_RATIO = 1.3  # mean error between identities over that within one


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
class Threshold:
    """One figure and what it should reach."""

    name: str
    measured: float
    wanted: str
    met: bool


@dataclass(frozen=True)
class Matching:
    """All figures; the first method is the one judged."""

    rows: tuple[MatchRow, ...]
    make_baselines: tuple[str, ...] = ()  # the methods that it is compared with

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
            f"{t.name}: {t.measured:.2f} (wanted {t.wanted}: {'met' if t.met else 'missed'})"
            for t in self.thresholds()
        ]

    def thresholds(self) -> list[Threshold]:
        """What the judged method should reach, beside what it does; cells without pairs are left
        out.
        """
        method = self.rows[0].method if self.rows else ""
        cell = {(r.method, r.identity, r.yaw): r for r in self.rows}
        out = []
        for yaw in YAW_BINS:
            for identity in ("same", "different"):
                ours = cell.get((method, identity, yaw))
                if ours is None or yaw not in PCK_THRESHOLDS:
                    continue
                name = f"{identity} identity, yaw {yaw}"
                pck, threshold = ours.pck[-1], PCK_THRESHOLDS[yaw]
                out.append(
                    Threshold(
                        f"{name}: PCK {PCK[-1]:g} %", pck, f">= {threshold:g}", pck >= threshold
                    )
                )
                if self.make_baselines:
                    best = min(
                        (cell[foil, identity, yaw] for foil in self.make_baselines),
                        key=lambda r: r.px_mean,
                    )
                    times = best.px_mean / max(ours.px_mean, 1e-9)
                    out.append(
                        Threshold(
                            f"{name}: mean error of {best.method} over it",
                            times,
                            f">= {BASELINE_RATIO:g}",
                            times >= BASELINE_RATIO,
                        )
                    )
            same, different = cell.get((method, "same", yaw)), cell.get((method, "different", yaw))
            if same and different:
                ratio = different.px_mean / max(same.px_mean, 1e-9)
                out.append(
                    Threshold(
                        f"yaw {yaw}: different over same identity",
                        ratio,
                        f"<= {IDENTITY_RATIO:g}",
                        ratio <= IDENTITY_RATIO,
                    )
                )
        return out


def yaw_bin(degrees: float) -> int:
    """Index in YAW_BINS of a difference of yaws."""
    return int(np.searchsorted(YAW_EDGES, abs(degrees), side="right")) - 1


def match_points(pair: ViewPair, describe: Describe) -> Floats:
    """(N, 2) output px of the second crop where the pair's points are found."""
    half = pair.images.shape[1] // STRIDE
    candidate = np.flatnonzero(pair.face)
    centre = np.stack([candidate % half, candidate // half], axis=1) + 0.5
    wanted = describe(pair.images[0], pair.first * STRIDE)
    # Below any cosine beside the face: never found there, and without weight about the peak.
    cosine = np.full((len(wanted), half * half), -2.0, dtype=np.float32)
    cosine[:, candidate] = wanted @ describe(pair.images[1], centre * STRIDE).T
    return cast(Floats, refine_peak(torch.from_numpy(cosine), half).numpy())


def compare_descriptors(
    pairs: Sequence[ViewPair],
    methods: Mapping[str, Describe],
    make_baselines: Mapping[str, Describe] | None = None,
) -> Matching:
    """Figures of each method and foil on the same pairs; the bars judge the first method beside the
    foils.
    """
    make_baselines = make_baselines or {}
    methods = {**methods, **make_baselines}
    cells: dict[tuple[str, str, str], list[Floats]] = {}
    for pair in pairs:
        for name, describe in methods.items():
            error = np.linalg.norm(match_points(pair, describe) - pair.second, axis=1)
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
    return Matching(tuple(rows), tuple(make_baselines))


@torch.no_grad()
def measure_matches(
    net: DescriptorNet,
    class_vectors: Tensor,
    anchor_coordinate: Tensor,
    scale: float,
    pairs: list[DevPair],
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
        found = refine_peak(wanted @ d[1], features.face_logit.shape[-1]).cpu().numpy()
        pixel = SIDE / features.face_logit.shape[-1]
        pixel_errors.append(np.linalg.norm(found - pair.second, axis=1) * pixel)
        probability = torch.softmax(scale * wanted @ class_vectors.T, dim=1)
        coordinate = (probability @ anchor_coordinate[:, :3]).cpu().numpy()
        vote_errors.append(np.linalg.norm(coordinate - pair.coordinate[:, :3], axis=1) * 1e3)
    px, mm = np.concatenate(pixel_errors), np.concatenate(vote_errors)
    return {
        "match_px_mean": float(px.mean()),
        "match_px_median": float(np.median(px)),
        "match_pck_8": float((px < 8.0).mean()),
        "vote_mm_median": float(np.median(mm)),
    }


def refine_peak(cosine: Tensor, width: int) -> Tensor:
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
