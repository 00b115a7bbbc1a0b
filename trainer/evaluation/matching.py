"""Descriptor matching: how accurately points of one view are found in another.

A pair of views has points that both show, whose positions in the second view are known exactly: the
point of the mesh, moved with the second view's mesh and projected. A method describes points of a
crop by unit vectors. The match of a point is the output pixel of the second view's face with the
highest cosine, refined to a fraction of a pixel. Views of two people correspond by the surface
points of the face model, photos by their landmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dff.face.arrays import Bytes, Floats
from dff.face.descriptor import STRIDE, DescriptorNet, image_batch
from dff.face.matching import find_peaks, pixel_centres, refine_peak
from dff.trainer.evaluation.config import EVALUATION, MATCHING, EvaluationConfig, MatchingConfig
from dff.trainer.evaluation.pairs import DevPair, ViewPair

Describe = Callable[[Bytes, Floats], Floats]
"""((S, S, 3) RGB crop, (N, 2) px of it) to (N, D) unit vectors that describe these points."""


@dataclass(frozen=True)
class MatchRow:
    """A method's figures on the pairs of one cell: same or different identities, one yaw bin."""

    method: str
    identity: str  # "same" or "different"
    yaw: str  # of ``MatchingConfig.yaw_bins``
    pairs: int
    points: int
    px_mean: float  # end-point error, px at a crop of ``MatchingConfig.crop_side``
    px_median: float
    pck: tuple[float, ...]  # percent of points within each limit of ``MatchingConfig.pck``


@dataclass(frozen=True)
class Threshold:
    """A figure and the value that it should reach."""

    name: str
    measured: float
    wanted: str
    met: bool


@dataclass(frozen=True)
class Matching:
    """The figures of all methods. The thresholds apply to the first one."""

    rows: tuple[MatchRow, ...]
    baselines: tuple[str, ...] = ()  # methods that the first is compared with
    config: MatchingConfig = MATCHING

    def lines(self) -> list[str]:
        """The table and the thresholds as text."""
        names = ("method", "identity", "yaw", "pairs", "points", "px mean", "median")
        out = [_format_line((*names, *(f"PCK {p:g} %" for p in self.config.pck)))]
        for r in self.rows:
            errors = f"{r.px_mean:.2f}", f"{r.px_median:.2f}", *(f"{p:.1f}" for p in r.pck)
            out.append(_format_line((r.method, r.identity, r.yaw, r.pairs, r.points, *errors)))
        return out + [
            f"{t.name}: {t.measured:.2f} (wanted {t.wanted}: {'met' if t.met else 'missed'})"
            for t in self.thresholds()
        ]

    def thresholds(self) -> list[Threshold]:
        """The thresholds of the first method; those of cells without pairs are left out."""
        method = self.rows[0].method if self.rows else ""
        cells = {(r.method, r.identity, r.yaw): r for r in self.rows}
        out = []
        for yaw in self.config.yaw_bins:
            pair = [cells.get((method, identity, yaw)) for identity in ("same", "different")]
            for ours in pair:
                if ours is not None and yaw in self.config.wanted_pck:
                    out += self._cell_thresholds(ours, cells)
            same, different = pair
            if same and different:
                ratio, limit = (
                    different.px_mean / max(same.px_mean, 1e-9),
                    self.config.identity_ratio,
                )
                name = f"yaw {yaw}: different over same identity"
                out.append(Threshold(name, ratio, f"<= {limit:g}", ratio <= limit))
        return out

    def _cell_thresholds(
        self, ours: MatchRow, cells: Mapping[tuple[str, str, str], MatchRow]
    ) -> list[Threshold]:
        """The PCK of one cell, and the error of the best baseline over the method's."""
        name = f"{ours.identity} identity, yaw {ours.yaw}"
        pck, limit = ours.pck[-1], self.config.wanted_pck[ours.yaw]
        out = [
            Threshold(f"{name}: PCK {self.config.pck[-1]:g} %", pck, f">= {limit:g}", pck >= limit)
        ]
        if self.baselines:
            rows = [cells[baseline, ours.identity, ours.yaw] for baseline in self.baselines]
            best = min(rows, key=lambda row: row.px_mean)
            ratio, limit = best.px_mean / max(ours.px_mean, 1e-9), self.config.baseline_ratio
            title = f"{name}: mean error of {best.method} over it"
            out.append(Threshold(title, ratio, f">= {limit:g}", ratio >= limit))
        return out


def _format_line(cells: Sequence[object]) -> str:
    return "".join(f"{cell:>10}" for cell in cells)


def match_points(pair: ViewPair, describe: Describe) -> Floats:
    """Match a pair's points: (N, 2) output px of the second crop."""
    half = pair.images.shape[1] // STRIDE
    candidates = np.flatnonzero(pair.face)
    wanted = describe(pair.images[0], pair.first * STRIDE)
    cosine = wanted @ describe(pair.images[1], pixel_centres(candidates, half) * STRIDE).T
    return find_peaks(cosine, candidates, half)


def compare_descriptors(
    pairs: Sequence[ViewPair],
    methods: Mapping[str, Describe],
    baselines: Mapping[str, Describe] | None = None,
    *,
    config: MatchingConfig = MATCHING,
) -> Matching:
    """Measure methods and baselines on the same pairs.

    The thresholds apply to the first method and compare it with the baselines.
    """
    baselines = baselines or {}
    methods = {**methods, **baselines}
    cells: dict[tuple[str, str, str], list[Floats]] = {}
    for pair in pairs:
        for name, describe in methods.items():
            error = np.linalg.norm(match_points(pair, describe) - pair.second, axis=1)
            yaw = config.yaw_bins[config.find_yaw_bin(pair.yaw)]
            key = (name, "same" if pair.same else "different", yaw)
            pixel = config.crop_side / (pair.images.shape[1] / STRIDE)
            cells.setdefault(key, []).append(np.stack([error * pixel, 100.0 * error / pair.box]))
    rows = []
    for name in methods:
        for identity in ("same", "different"):
            for yaw in config.yaw_bins:
                errors = cells.get((name, identity, yaw), [])
                if errors:
                    px, percent = np.concatenate(errors, axis=1)
                    pck = tuple(float(100.0 * (percent <= limit).mean()) for limit in config.pck)
                    figures = float(px.mean()), float(np.median(px)), pck
                    rows.append(MatchRow(name, identity, yaw, len(errors), len(px), *figures))
    return Matching(tuple(rows), tuple(baselines), config)


@torch.no_grad()
def measure_matches(
    net: DescriptorNet,
    class_vectors: Tensor,
    anchor_coordinate: Tensor,
    scale: float,
    pairs: Sequence[DevPair],
    config: EvaluationConfig = EVALUATION,
) -> dict[str, float]:
    """The validation figures of a network; empty without pairs.

    ``class_vectors``: (M, D) unit vectors; ``anchor_coordinate``: (M, 6) metres; ``scale`` of the
    log odds. ``match_px_mean``, ``match_px_median``: end-point error in px at a crop of
    ``crop_side``; ``match_pck_8``: fraction of points within 8 px (``pck_px``); ``vote_mm_median``:
    median distance in mm, on the template, of a pixel's expected surface point under the anchor
    probabilities from its true one.
    """
    if not pairs:
        return {}
    device = class_vectors.device
    net.eval()
    pixel_errors, surface_errors = [], []
    for pair in pairs:
        features = net(image_batch(torch.from_numpy(pair.images).to(device)))
        d = features.descriptor.flatten(2)  # (2, D, P)
        wanted = d[0][:, torch.from_numpy(pair.first).to(device)].T  # (N, D)
        found = refine_peak(wanted @ d[1], features.face_logit.shape[-1]).cpu().numpy()
        pixel = config.crop_side / features.face_logit.shape[-1]
        pixel_errors.append(np.linalg.norm(found - pair.second, axis=1) * pixel)
        probability = torch.softmax(scale * wanted @ class_vectors.T, dim=1)
        coordinate = (probability @ anchor_coordinate[:, :3]).cpu().numpy()
        surface_errors.append(np.linalg.norm(coordinate - pair.coordinate[:, :3], axis=1) * 1e3)
    px, mm = np.concatenate(pixel_errors), np.concatenate(surface_errors)
    return {
        "match_px_mean": float(px.mean()),
        "match_px_median": float(np.median(px)),
        f"match_pck_{config.pck_px}": float((px < config.pck_px).mean()),
        "vote_mm_median": float(np.median(mm)),
    }
