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
from dff.aligner.fitting.crop import row_turns
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
    crops, size = observation.crops, fit_model.face_size(state)
    # from pixels of the photo to those of the map
    turn = row_turns(crops.angle) * (crops.size / STRIDE / crops.side)[:, None, None]
    for face in range(b):
        _fill_lines(
            observation.face_logit[face],
            turn[face],
            crops.centre[face],
            crops.size / 2 / STRIDE - 0.5,
            contour.px[face],
            contour.outward[face],
            contour.vertices[face],
            contour.share[face],
            contour.count[face],
            config.steps,
            config.reach / config.steps * size[face],
            config.observations,
            fit_model.model.template,
            fit_model.vertex_basis,
            out.mean[face],
            out.basis[face],
            out.targets[face],
            out.normal[face],
            out.weights[face],
        )
    return out


@numba.njit(cache=CACHE, nogil=True)
def _fill_lines(  # type: ignore[no-untyped-def]
    logit,
    turn,
    centre,
    middle,
    px,
    outward,
    vertices,
    share,
    count,
    steps,
    stride,
    observations,
    template,
    vertex_basis,
    mean,
    basis,
    targets,
    normal,
    weights,
):
    """Fill the ``Lines`` of one face with its first contour points near a border.

    ``turn``, ``centre`` and ``middle``: map pixels of a photo pixel p are ``turn @ (p - centre) +
    middle``. ``stride``: pixels of the photo for each of the ``steps``.
    """
    start, step, away = np.empty((count, 2)), np.empty((count, 2)), np.empty(count)
    for n in range(count):
        x, y = px[n, 0] - centre[0], px[n, 1] - centre[1]
        dx, dy = outward[n, 0] * stride, outward[n, 1] * stride
        for c in range(2):
            start[n, c] = turn[c, 0] * x + turn[c, 1] * y + middle
            step[n, c] = turn[c, 0] * dx + turn[c, 1] * dy
    find_ends(logit, start, step, count, steps, away)
    found, used = 0, 0
    for n in range(count):
        if np.isnan(away[n]):
            continue
        found += 1
        if used == len(weights):  # points are evenly spread, by the order of the contour
            continue
        i, j = vertices[n, 0], vertices[n, 1]
        part = np.float32(share[n])
        for c in range(3):
            mean[used, c] = (1.0 - share[n]) * template[i, c] + share[n] * template[j, c]
            for k in range(basis.shape[2]):
                basis[used, c, k] = (np.float32(1.0) - part) * vertex_basis[i, c, k] + (
                    part * vertex_basis[j, c, k]
                )
        for c in range(2):
            normal[used, c] = outward[n, c]
            targets[used, c] = px[n, c] + outward[n, c] * away[n] * stride
        used += 1
    for n in range(used):
        weights[n] = observations * found / count / used


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
