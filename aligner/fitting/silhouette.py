"""Silhouette terms: the fitted contour ends where the network's mask of the face ends.

Soft correspondences are biased to the mean face; the border of the mask is not. The correspondence
along the contour is unknown, so each contour point is fitted to a line
(``dff.face.solve.gauss_newton.Lines``).
"""

from __future__ import annotations

import numba
import numpy as np

from dff.aligner.config import SilhouetteConfig
from dff.aligner.fitting.contour import OccludingContour
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.observation import Observation
from dff.face.descriptor import STRIDE
from dff.face.numba_cache import CACHE
from dff.face.solve.gauss_newton import Lines


def match_silhouette(
    fit_model: FitModel,
    state: FitState,
    contour: OccludingContour,
    observation: Observation,
    config: SilhouetteConfig,
) -> Lines:
    """Lines along the mask borders of B faces, one for each contour point near a border."""
    b, modes, kept_points = len(state.scale), len(fit_model.modes), config.points
    out = Lines(
        mean=np.zeros((b, kept_points, 3)),
        basis=np.zeros((b, kept_points, 3, modes), np.float32),
        targets=np.zeros((b, kept_points, 2)),
        normal=np.zeros((b, kept_points, 2)),
        weights=np.zeros((b, kept_points)),
    )
    stride = config.reach / config.steps * fit_model.face_size(state)  # pixels of the photo
    crop_from_photo = observation.crops.crop_from_photo
    start = crop_from_photo(contour.px) / STRIDE - 0.5
    beside = contour.px + contour.outward * stride[:, None, None]
    step = crop_from_photo(beside) / STRIDE - 0.5 - start
    away = np.empty(contour.share.shape[1])
    for face in range(b):
        count = contour.count[face]
        find_ends(observation.face_logit[face], start[face], step[face], count, config.steps, away)
        found = np.flatnonzero(np.isfinite(away[:count]))
        if len(found) == 0:
            continue
        n = min(len(found), kept_points)
        kept = found[:n]  # evenly spread, by the order of the contour
        vertices, share = contour.vertices[face, kept], contour.share[face, kept, None]
        corner = fit_model.model.template[vertices].astype(np.float64)
        out.mean[face, :n] = (1.0 - share) * corner[:, 0] + share * corner[:, 1]
        basis, part = fit_model.vertex_basis[vertices], share[..., None].astype(np.float32)
        out.basis[face, :n] = (1.0 - part) * basis[:, 0] + part * basis[:, 1]
        normal = out.normal[face, :n] = contour.outward[face, kept]
        out.targets[face, :n] = (
            contour.px[face, kept] + normal * (away[kept] * stride[face])[:, None]
        )
        out.weights[face, :n] = config.observations * len(found) / count / n
    return out


@numba.njit(cache=CACHE, nogil=True)
def find_ends(logit, start, step, count, steps, away):  # type: ignore[no-untyped-def]
    """Fill ``away``: steps from each of ``count`` places on a (H, W) map of logits to its border.

    Searched from ``start - steps * step`` (map pixels) to ``start + steps * step``. NaN without a
    border, the nearest of several.
    """
    height, width = logit.shape
    for n in range(count):
        away[n] = np.nan
        before = 0.0
        for s in range(-steps, steps + 1):
            x, y = start[n, 0] + s * step[n, 0], start[n, 1] + s * step[n, 1]
            if not (0.0 <= x <= width - 1.001 and 0.0 <= y <= height - 1.001):
                before = -1.0  # beyond the crop
                continue
            c, r = int(x), int(y)
            fx, fy = x - c, y - r
            above = (1.0 - fx) * logit[r, c] + fx * logit[r, c + 1]
            below = (1.0 - fx) * logit[r + 1, c] + fx * logit[r + 1, c + 1]
            value = (1.0 - fy) * above + fy * below
            if before > 0.0 and value <= 0.0:
                end = s - 1 + before / (before - value)
                if np.isnan(away[n]) or abs(end) < abs(away[n]):
                    away[n] = end
            before = value
