"""Soft (dense) correspondence: pixels are matched to anchors by their descriptors.

Every chosen pixel keeps the few anchors whose descriptors are most similar to its own. It
corresponds to the weighted mean of their surface points. The weights are a softmax of the cosines;
once a fit predicts the anchors' pixels, they also depend on the distance of these from the pixel
and on the anchors' visibility. This is the E step of expectation-maximisation (Myronenko and Song
2010).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np

from dff.aligner.fitting.kernels import blend_rows, share_candidates
from dff.face.arrays import Array, Float, Floats, Integer, Ints
from dff.face.numba_cache import CACHE

GROUPS = 64  # of anchors, whose largest similarities rule out most anchors


@dataclass(frozen=True)
class Matches:
    """The chosen N pixels of B faces with their K most similar anchors; unused rows: mask zero."""

    grid: Float[Array, "faces pixels 2"]  # pixels of the crop
    mask: Float[Array, "faces pixels"]  # probability that the pixel shows the face
    anchor: Integer[Array, "faces pixels candidates"]  # int32, most similar first
    # float32, softmax over these anchors and "none of them"
    probability: Float[Array, "faces pixels candidates"]
    pitch: Float[Array, " faces"]  # crop pixels between neighbouring chosen pixels

    @staticmethod
    def none(faces: int, pixels: int, candidates: int) -> Matches:
        """No pixel matched."""
        return Matches(
            grid=np.zeros((faces, pixels, 2)),
            mask=np.zeros((faces, pixels)),
            anchor=np.zeros((faces, pixels, candidates), np.int32),
            probability=np.zeros((faces, pixels, candidates), np.float32),
            pitch=np.ones(faces),
        )


def pool(a: Matches, b: Matches) -> Matches:
    """Every second pixel of two forward passes over the same faces.

    There are as many pixels as in one pass, but their errors are less correlated.
    """
    return Matches(
        interleave(a.grid, b.grid),
        interleave(a.mask, b.mask),
        interleave(a.anchor, b.anchor),
        interleave(a.probability, b.probability),
        b.pitch,
    )


def interleave(a: Any, b: Any) -> Any:
    """The even rows (axis 1) of one array, then the odd rows of another."""
    return np.concatenate([a[:, ::2], b[:, 1::2]], axis=1)


def match_pixels(
    descriptor: Floats,
    face_logit: Floats,
    anchors: Floats,
    *,
    stride: float,
    pixels: int,
    candidates: int,
    sharpness: float,
    no_match_cosine: float,
    place: Floats | None = None,
    candidate_radius: float = np.inf,
) -> Matches:
    """Match (B, D, H, W) unit descriptors with (B, H, W) face logits to (A, D) unit anchors.

    Of each face at most ``pixels`` pixels of the mask are taken, evenly, by an order that does not
    depend on the mask: where its border moves a little, the other pixels stay. ``stride`` is the
    crop's pixels for each pixel of the grid. The softmax multiplies cosines by ``sharpness``; at
    ``no_match_cosine`` a pixel is as likely to match nothing as its anchor. With the anchors' (A,
    3) ``place`` on the template a pixel's candidates lie within ``candidate_radius`` metres of its
    best one, since the mean of two distant points is far from both.
    """
    out = Matches.none(len(descriptor), pixels, candidates)
    rows = descriptor.transpose(0, 2, 3, 1)  # as the fast networks write them
    table = np.ascontiguousarray(anchors, dtype=np.float32)
    places = np.zeros((0, 3), np.float32) if place is None else place
    for face in range(len(out.pitch)):
        logit = face_logit[face]
        chosen = choose_pixels(logit, pixels)
        limits = sharpness, no_match_cosine, places, candidate_radius
        _match(out, face, _gather(rows[face], chosen), logit, chosen, table, *limits, stride)
    return out


def match_chosen_pixels(
    chosen: Ints,
    descriptor: Floats,
    face_logit: Floats,
    anchors: Floats,
    *,
    stride: float,
    pixels: int,
    candidates: int,
    sharpness: float,
    no_match_cosine: float,
    place: Floats,
    candidate_radius: float,
) -> Matches:
    """``match_pixels`` of one face, by the descriptors of the chosen pixels alone.

    (N, D) ``descriptor`` of those that ``choose_pixels`` has ``chosen`` from (H, W) ``face_logit``.
    """
    out = Matches.none(1, pixels, candidates)
    table = np.ascontiguousarray(anchors, dtype=np.float32)
    limits = sharpness, no_match_cosine, place, candidate_radius
    _match(out, 0, descriptor, face_logit, chosen, table, *limits, stride)
    return out


def _match(
    out: Matches,
    face: int,
    descriptor: Floats,
    logit: Floats,
    chosen: Ints,
    table: Floats,
    sharpness: float,
    no_match_cosine: float,
    place: Floats,
    candidate_radius: float,
    stride: float,
) -> None:
    """Fill the row of one face."""
    _match_chosen(
        descriptor,
        logit,
        chosen,
        table,
        sharpness,
        no_match_cosine,
        place,
        candidate_radius,
        float(stride),
        out.anchor[face],
        out.probability[face],
        out.grid[face],
        out.mask[face],
        out.pitch[face : face + 1],
    )


def choose_pixels(face_logit: Floats, most: int) -> Ints:
    """The numbers of the at most ``most`` pixels of a face that are matched.

    (H, W) ``face_logit``, whose pixels are numbered row by row.
    """
    logit = np.ascontiguousarray(face_logit).ravel()
    return np.asarray(_first_inside(logit, spread_order(*face_logit.shape), most))


@cache
def spread(height: int, width: int) -> Floats:
    """(height * width,) keys in 0 to 1: pixels whose key is below any threshold are evenly spread.

    Roberts' R2 sequence (2018) on the grid: the keys of neighbours differ by irrational numbers.
    """
    y, x = np.indices((height, width))
    keys = (0.7548776662466927 * x + 0.5698402909980532 * y) % 1.0
    keys.flags.writeable = False
    return keys.ravel()


@cache
def spread_order(height: int, width: int) -> Ints:
    """(height * width,) int32 pixels by rising key of ``spread``."""
    order = np.argsort(spread(height, width), kind="stable").astype(np.int32)
    order.flags.writeable = False
    return order


@numba.njit(cache=CACHE, nogil=True)
def _first_inside(logit, order, most):  # type: ignore[no-untyped-def]
    """The first ``most`` pixels of positive (N,) ``logit`` in this order.

    The first half of them comes in the even places, the second in the odd ones: ``pool`` takes one
    half of each forward pass, and either is evenly spread.
    """
    chosen, n = np.empty(most, np.int64), 0
    for i in range(len(order)):
        if n == most:
            break
        if logit[order[i]] > 0.0:
            chosen[n] = order[i]
            n += 1
    out, half = np.empty(n, np.int64), (n + 1) // 2
    out[::2], out[1::2] = chosen[:half], chosen[half:n]
    return out


@numba.njit(cache=CACHE, nogil=True)
def _gather(rows, chosen):  # type: ignore[no-untyped-def]
    """(N, D) descriptors of the chosen pixels of (H, W, D) ``rows``."""
    width, dims = rows.shape[1], rows.shape[2]
    out = np.empty((len(chosen), dims), np.float32)
    for i in range(len(chosen)):
        row, column = chosen[i] // width, chosen[i] % width
        for d in range(dims):
            out[i, d] = rows[row, column, d]
    return out


@numba.njit(cache=CACHE, nogil=True)
def _match_chosen(  # type: ignore[no-untyped-def]
    pixel,
    logit,
    chosen,
    table,
    sharpness,
    doubt,
    place,
    radius,
    stride,
    anchor,
    probability,
    grid,
    mask,
    pitch,
):
    """Fill the ``Matches`` of one face.

    (N, D) descriptors of the ``chosen`` ``pixel``, (H, W) ``logit``, (A, D) ``table``; (A, 3)
    ``place``, or none.
    """
    n, width = len(chosen), logit.shape[1]
    inside = 0
    for row in range(logit.shape[0]):
        for column in range(width):
            inside += logit[row, column] > 0.0
    share = inside / len(mask)  # of the face over what is matched
    pitch[0] = stride * np.sqrt(max(share, 1.0))
    if n == 0:
        return
    for i in range(n):
        row, column = chosen[i] // width, chosen[i] % width
        grid[i, 0], grid[i, 1] = (column + 0.5) * stride, (row + 0.5) * stride
        mask[i] = 1.0 / (1.0 + np.exp(-np.float64(logit[row, column])))
    similarity = np.dot(pixel, table.T)
    _best(similarity, sharpness, doubt, anchor[:n], probability[:n])
    if len(place):
        _keep_near(place, radius, anchor[:n], probability[:n])


@numba.njit(cache=CACHE, nogil=True)
def _keep_near(place, radius, anchor, probability):  # type: ignore[no-untyped-def]
    """Give the candidates near each pixel's first one the probability of those farther away."""
    for i in range(len(anchor)):
        first = anchor[i, 0]
        mass, kept = np.float32(0.0), np.float32(0.0)
        for j in range(anchor.shape[1]):
            a = anchor[i, j]
            dx, dy = place[a, 0] - place[first, 0], place[a, 1] - place[first, 1]
            dz = place[a, 2] - place[first, 2]
            mass += probability[i, j]
            if np.sqrt(dx * dx + dy * dy + dz * dz) > radius:
                probability[i, j] = 0.0
            kept += probability[i, j]
        for j in range(anchor.shape[1]):
            probability[i, j] *= mass / kept


def soft_correspondence(
    matches: Matches,
    px: Floats,
    predicted: Floats,
    gate: Floats,
    visible: Floats,
    mean: Floats,
    basis: Floats,
) -> tuple[Floats, Floats, Floats]:
    """(B, N, 3) mean and (B, N, 3, P) basis of each pixel's surface point, (B, N) its weight.

    (B, N, 2) ``px`` of the matches; (B, A, 2) ``predicted`` pixels of the anchors, which count
    within (B,) ``gate`` pixels (infinite: no prediction); (B, A) ``visible`` 0 to 1; (A, 3)
    ``mean`` and (A, 3, P) ``basis``, float32. The weight is the probability that the pixel shows
    the face and matches something that passes the gate.
    """
    b, n, _ = px.shape
    modes = basis.shape[2]
    out_mean = np.zeros((b, n, 3))
    out_basis = np.zeros((b, n, 3, modes), np.float32)
    weight = np.zeros((b, n))
    for face in range(b):
        _blend(
            matches.anchor[face],
            matches.probability[face],
            matches.mask[face],
            px[face],
            predicted[face],
            -0.5 / gate[face] ** 2,
            visible[face],
            mean,
            basis.reshape(len(basis), -1),
            out_mean[face],
            out_basis[face].reshape(n, -1),
            weight[face],
        )
    return out_mean, out_basis, weight


@numba.njit(cache=CACHE, nogil=True)
def _insert(new, number, value, numbers):  # type: ignore[no-untyped-def]
    """Insert a value, with its number, into some sorted by falling value, then rising number."""
    j = len(value) - 1
    if new < value[j] or (new == value[j] and number > numbers[j]):
        return
    while j > 0 and (value[j - 1] < new or (value[j - 1] == new and numbers[j - 1] > number)):
        value[j], numbers[j] = value[j - 1], numbers[j - 1]
        j -= 1
    value[j], numbers[j] = new, number


@numba.njit(cache=CACHE, nogil=True, fastmath=True)
def _best(similarity, sharpness, doubt, anchor, probability):  # type: ignore[no-untyped-def]
    """Fill one face's (N, K) anchors of largest (N, A) ``similarity``, and their probabilities.

    Of equal ones the first wins. Most anchors are ruled out by the K-th largest maximum of
    interleaved groups of groups, which take few instructions: K anchors at least are as similar as
    that.
    """
    n, anchors = similarity.shape
    keep = anchor.shape[1]
    value, groups = np.empty(keep, np.float32), np.empty(GROUPS, np.float32)
    whole, few = anchors - anchors % GROUPS, max(GROUPS // 4, keep)
    largest = np.empty(few, np.float32)
    for i in range(n):
        row = similarity[i]
        groups[:] = -2.0
        for begin in range(0, whole, GROUPS):
            for g in range(GROUPS):
                groups[g] = max(groups[g], row[begin + g])
        for a in range(whole, anchors):
            groups[a - whole] = max(groups[a - whole], row[a])
        value[:] = -2.0
        largest[:] = -2.0
        for begin in range(0, GROUPS, few):
            for g in range(min(few, GROUPS - begin)):
                largest[g] = max(largest[g], groups[begin + g])
        for g in range(few):
            _insert(largest[g], g, value, anchor[i])
        least = value[keep - 1]
        value[:] = -2.0
        for g in range(GROUPS):
            if groups[g] >= least:
                for a in range(g, anchors, GROUPS):
                    if row[a] >= least:
                        _insert(row[a], a, value, anchor[i])
        total = np.exp(np.float32(sharpness) * (np.float32(doubt) - value[0]))
        for j in range(keep):
            probability[i, j] = np.exp(np.float32(sharpness) * (value[j] - value[0]))
            total += probability[i, j]
        for j in range(keep):
            probability[i, j] /= total


@numba.njit(cache=CACHE, nogil=True, fastmath=True)
def _blend(  # type: ignore[no-untyped-def]
    anchor,
    probability,
    mask,
    px,
    predicted,
    slope,
    visible,
    mean,
    basis,
    out_mean,
    out_basis,
    weight,
):
    n, keep = anchor.shape
    share = np.empty(keep, np.float32)
    for i in range(n):
        if mask[i] <= 0.0:
            continue
        total = share_candidates(anchor[i], probability[i], px[i], predicted, slope, visible, share)
        if total < 1e-6:
            continue
        weight[i] = mask[i] * total
        blend_rows(anchor[i], share, total, mean, basis, out_mean[i], out_basis[i])
