"""The 68 landmarks of iBUG / Multi-PIE, by name, in both jaw schemes.

The *3D scheme* (AFLW2000-3D) fixes every landmark to the surface: the jaw points stay on the jaw
line and may be hidden. The *2D scheme* (300-W) lets the 17 jaw points slide to the visible contour
of the face. Left and right are those of the person. Source of the numbering: Sagonas et
al., "300 Faces in-the-Wild".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numba
import numpy as np

from dff.face.arrays import Array, Bools, Floats, Integer, Ints
from dff.face.numba_cache import CACHE


def _names() -> tuple[str, ...]:
    jaw = (
        [f"jaw_right_{8 - i}" for i in range(8)]
        + ["chin"]
        + [f"jaw_left_{i + 1}" for i in range(8)]
    )
    brow = ["outer", "outer_mid", "mid", "inner_mid", "inner"]
    brows = [f"brow_right_{n}" for n in brow] + [f"brow_left_{n}" for n in reversed(brow)]
    nose = ["nose_bridge_1", "nose_bridge_2", "nose_bridge_3", "nose_tip"]
    base = ["nostril_right_outer", "nostril_right_inner", "nose_base"]
    base += ["nostril_left_inner", "nostril_left_outer"]
    eye_r = ["outer", "upper_outer", "upper_inner", "inner", "lower_inner", "lower_outer"]
    eye_l = ["inner", "upper_inner", "upper_outer", "outer", "lower_outer", "lower_inner"]
    eyes = [f"eye_right_{n}" for n in eye_r] + [f"eye_left_{n}" for n in eye_l]
    outer = ["mouth_right", "lip_upper_right_outer", "lip_upper_right_peak", "lip_upper_middle"]
    outer += ["lip_upper_left_peak", "lip_upper_left_outer", "mouth_left", "lip_lower_left_outer"]
    outer += ["lip_lower_left", "lip_lower_middle", "lip_lower_right", "lip_lower_right_outer"]
    inner = ["mouth_inner_right", "lip_upper_inner_right", "lip_upper_inner_middle"]
    inner += ["lip_upper_inner_left", "mouth_inner_left", "lip_lower_inner_left"]
    inner += ["lip_lower_inner_middle", "lip_lower_inner_right"]
    return tuple(jaw + brows + nose + base + eyes + outer + inner)


NAMES: tuple[str, ...] = _names()
INDEX: dict[str, int] = {name: number for number, name in enumerate(NAMES)}
Scheme = Literal["3d", "2d"]
SCHEMES: tuple[Scheme, ...] = ("3d", "2d")

# Groups: ``points[EYES]``. Right and left are the person's own.
JAW = slice(0, 17)
INNER = slice(17, 68)  # all but the jaw
CHIN_ARC = slice(6, 11)  # the chin and two points of the jaw on either side
LOWER_JAW = slice(3, 14)  # the chin and five points of the jaw on either side
RIGHT_BROW, LEFT_BROW, BROWS = slice(17, 22), slice(22, 27), slice(17, 27)
BELOW_BROWS = slice(27, 68)  # nose, eyes and mouth
NOSE_BRIDGE, NOSE_BOTTOM, NOSE = slice(27, 31), slice(31, 36), slice(27, 36)
RIGHT_EYE, LEFT_EYE, EYES = slice(36, 42), slice(42, 48), slice(36, 48)
OUTER_LIPS, INNER_LIPS, MOUTH = slice(48, 60), slice(60, 68), slice(48, 68)
UPPER_INNER_LIP, LOWER_INNER_LIP = slice(61, 64), slice(67, 64, -1)  # opposite each other
LOWER_LIP_POINTS = (*range(55, 60), *range(65, 68))  # without the corners

# Single landmarks: ``points[CHIN]``.
CHIN = INDEX["chin"]
NOSE_ROOT, NOSE_TIP, NOSE_BASE = (INDEX[n] for n in ("nose_bridge_1", "nose_tip", "nose_base"))
UPPER_LIP, LOWER_LIP = INDEX["lip_upper_middle"], INDEX["lip_lower_middle"]  # outer edges

# Pairs, the right one first: ``points[list(MOUTH_CORNERS)]``.
JAW_ENDS = (INDEX["jaw_right_8"], INDEX["jaw_left_8"])
OUTER_EYE_CORNERS = (INDEX["eye_right_outer"], INDEX["eye_left_outer"])
MOUTH_CORNERS = (INDEX["mouth_right"], INDEX["mouth_left"])


def head_up(points: Floats) -> Floats:
    """(D,) from the chin to the middle of the eyes, of (68, D) landmarks."""
    return np.asarray(points[EYES].mean(0) - points[CHIN])


def chin_to_brows(points: Floats) -> Floats:
    """(D,) from the middle of the chin's arc to the middle of the brows, of (68, D) landmarks."""
    return np.asarray(points[BROWS].mean(0) - points[CHIN_ARC].mean(0))


def _mirror() -> Ints:
    def other(name: str) -> str:
        if "right" in name:
            return name.replace("right", "left")
        return name.replace("left", "right")

    return np.array([INDEX[other(n)] for n in NAMES])


MIRROR: Ints = _mirror()
"""``points[MIRROR]`` renames the landmarks of a mirrored photo."""


CONTOUR_STEPS = 12
"""Number of candidates that ``contour_lines`` gives each jaw landmark."""

CONTOUR_PATHS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((7.0, -4.2), (14.0, -6.4), (28.0, -9.0)),
    ((7.0, -2.2), (13.0, -3.5), (36.0, -5.0)),
    ((7.0, 3.7), (14.0, 3.6), (36.0, 4.0)),
    ((5.0, 4.9), (12.0, 5.6), (34.0, 7.0)),
    ((5.0, 7.3), (13.0, 9.2), (32.0, 13.0)),
    ((4.0, 8.7), (15.0, 11.8), (27.0, 16.0)),
    ((1.0, 5.7), (6.0, 8.9), (17.0, 17.0)),
    ((0.0, 2.0), (1.0, 4.0), (6.0, 11.0)),
    ((0.0, 3.0), (0.0, 6.0), (0.0, 12.0)),
)
"""Paths of the right jaw landmarks and the chin as the face turns away: millimetres inwards, up.

Annotators spread the jaw points evenly over the visible contour, so that most of them move up as it
comes forward. The first two points of each path are medians over the far sides of 300-W faces of 20
to 30 and 30 to 60 degrees yaw.
"""


@dataclass(frozen=True)
class LandmarkTable:
    """The vertices of the landmarks on a model.

    The schemes differ in more than the jaw: their annotators end the brows and begin the nose at
    different points. Raises ValueError when the shapes are wrong.
    """

    vertex: Integer[Array, " 68"]  # of each landmark in the 3D scheme
    # vertices that each jaw landmark may take in the 2D scheme, from the jaw line inwards
    contour: Integer[Array, "17 candidates"]
    # vertices of the other landmarks in the 2D scheme; by default those of the 3D scheme
    inner: Integer[Array, " 51"] = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        if self.vertex.shape != (68,) or self.contour.ndim != 2 or len(self.contour) != 17:
            raise ValueError(
                f"LandmarkTable wants (68,) and (17, L): {self.vertex.shape}, {self.contour.shape}"
            )
        if len(self.inner) == 0:
            object.__setattr__(self, "inner", self.vertex[INNER])
        if self.inner.shape != (51,):
            raise ValueError(f"LandmarkTable.inner wants (51,): {self.inner.shape}")

    @cached_property
    def used(self) -> Ints:
        """(U,) every vertex that a landmark may take, in order."""
        return np.unique(np.concatenate([self.vertex, self.contour.ravel(), self.inner]))

    @cached_property
    def among_used(self) -> LandmarkTable:
        """The same landmarks on a mesh whose vertices are those of ``used``, in their order."""
        vertex, contour, inner = (
            np.searchsorted(self.used, some) for some in (self.vertex, self.contour, self.inner)
        )
        return LandmarkTable(vertex, contour, inner)

    def contour_vertices(self, vertices_px: Floats, template: Floats) -> Ints:
        """(68,) vertices of the 2D scheme for a face that projects to (V, 2) ``vertices_px``.

        Each jaw landmark takes its outermost candidate: sideways, or for the chin and its
        neighbours away from the middle of the frontal ``template`` (V, 3), rotated with the face in
        the image.
        """
        reach = self._reach(vertices_px, np.asarray(template, np.float64))
        chosen = np.take_along_axis(self.contour, reach.argmax(1)[:, None], 1)[:, 0]
        return np.concatenate([chosen, self.inner])

    def _reach(self, vertices_px: Floats, template: Floats) -> Floats:
        """(17, L) pixels by which each candidate of a jaw landmark lies outwards."""
        out = np.empty(self.contour.shape)
        fill_reach(vertices_px, template, self.vertex, self.contour, out)
        return out


@numba.njit(cache=CACHE, nogil=True)
def _mean_place(points, rows, begin, end):  # type: ignore[no-untyped-def]
    x, y = 0.0, 0.0
    for i in range(begin, end):
        x += points[rows[i], 0]
        y += points[rows[i], 1]
    return x / (end - begin), y / (end - begin)


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def fill_reach(px, template, vertex, contour, out):  # type: ignore[no-untyped-def]
    """Fill (17, L) ``out`` of ``LandmarkTable._reach``."""
    # In-plane rotation of the face, by the direction from the chin to the brows.
    brow_x, brow_y = _mean_place(template, vertex, BROWS.start, BROWS.stop)
    chin_x, chin_y = _mean_place(template, vertex, CHIN_ARC.start, CHIN_ARC.stop)
    tx, ty = brow_x - chin_x, chin_y - brow_y  # y of photos points down
    brow_x, brow_y = _mean_place(px, vertex, BROWS.start, BROWS.stop)
    chin_x, chin_y = _mean_place(px, vertex, CHIN_ARC.start, CHIN_ARC.stop)
    ux, uy = brow_x - chin_x, brow_y - chin_y
    cos, sin = tx * ux + ty * uy, tx * uy - ty * ux
    norm = np.hypot(cos, sin)
    if norm > 0.0:
        cos, sin = cos / norm, sin / norm
    middle_x, middle_y = _mean_place(template, vertex, NOSE_BRIDGE.start, NOSE_BRIDGE.stop)
    for j in range(len(contour)):
        x = template[vertex[j], 0] - middle_x
        y = middle_y - template[vertex[j], 1]
        if not 7 <= j <= 9:
            y = 0.0  # the sides slide with yaw, the chin with pitch
        # A side landmark of a coarse model may lie on the midline: it has no direction.
        length = max(np.hypot(x, y), 1e-9)
        x, y = x / length, y / length
        out_x, out_y = cos * x - sin * y, sin * x + cos * y
        for k in range(contour.shape[1]):
            v = contour[j, k]
            out[j, k] = px[v, 0] * out_x + px[v, 1] * out_y


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def fill_contour(reach, tolerance, vertices, contour, out):  # type: ignore[no-untyped-def]
    """Fill (17, D) ``out`` with the means of candidates, by their softmax over reach."""
    for j in range(len(contour)):
        most, total = reach[j].max(), 0.0
        out[j] = 0.0
        for k in range(contour.shape[1]):
            share = np.exp((reach[j, k] - most) / tolerance)
            total += share
            for c in range(out.shape[1]):
                out[j, c] += share * vertices[contour[j, k], c]
        for c in range(out.shape[1]):
            out[j, c] /= total


def contour_lines(template: Floats, vertex: Ints, mirror: Ints, usable: Bools) -> Ints:
    """(17, L) candidates of the visible contour, from each jaw vertex along ``CONTOUR_PATHS``.

    ``template`` (V, 3) metres in ``head``, ``vertex`` (68,) the 3D scheme, ``usable`` (V,) marks
    the skin.
    """
    rows = np.flatnonzero(usable & (template[:, 2] > template[vertex[JAW], 2].min() - 0.01))
    lines = np.empty((17, CONTOUR_STEPS), np.int64)
    for j, path in enumerate(CONTOUR_PATHS):
        corners = template[vertex[j], :2] + 0.001 * np.array([(0.0, 0.0), *path])
        along = np.linspace(0, len(path), CONTOUR_STEPS)
        aims = np.stack(
            [np.interp(along, np.arange(len(corners)), corners[:, c]) for c in (0, 1)], axis=1
        )
        flat = np.linalg.norm(template[rows, :2][None] - aims[:, None], axis=2)
        # Among vertices at about one place of the frontal view, the front one is on visible skin.
        lines[j] = rows[(flat - 0.2 * template[rows, 2]).argmin(1)]
        lines[j, 0] = vertex[j]
    for j in range(8):
        lines[MIRROR[j]] = mirror[lines[j]]
        lines[MIRROR[j], 0] = vertex[MIRROR[j]]
    return lines


def nme_box(found: Floats, truth: Floats) -> float:
    """Normalised mean error of (N, 2) points: mean distance over sqrt(w * h) of the truth's box."""
    w, h = truth.max(0) - truth.min(0)
    return float(np.linalg.norm(found - truth, axis=1).mean() / np.sqrt(w * h))


def nme_iod(found: Floats, truth: Floats, points: slice = slice(0, 68)) -> float:
    """Normalised mean error of the chosen ``points`` of (68, 2) landmarks.

    Their mean distance over the distance of the outer eye corners.
    """
    a, b = OUTER_EYE_CORNERS
    iod = np.linalg.norm(truth[a] - truth[b])
    return float(np.linalg.norm(found[points] - truth[points], axis=1).mean() / iod)
