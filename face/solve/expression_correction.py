"""The correction of expressions: from descriptors of a fitted face to what its activations miss.

Two small networks of one hidden layer. One reads the descriptors in a grid over each eye, the other
those at the 68 landmarks; a linear part reads the fitted activations themselves. It follows the
learned regression of expressions from appearance, as in Jiang, Zhang, Deng, Guo, Liu, "Deep Face
Feature for Face Alignment" (arXiv 1708.02721), whose cascade is linear: lids that are open or
closed are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from dff.face.arrays import Array, Float, Floats, Ints
from dff.face.numba_cache import CACHE

EYE_CORNERS = (36, 39, 42, 45)
"""Landmarks: from left to right in the photo of an upright face."""

COLUMNS = (0.2, 0.5, 0.8)
"""Of the grid over an eye: from one corner, at the left in the photo, to the other."""

ROWS = (-0.4, -0.2, 0.0, 0.2, 0.4)
"""Of the grid over an eye: above the line of the corners, in widths of the eye."""

EYE_POINTS = 2 * len(COLUMNS) * len(ROWS)

STRONGEST = 50.0
"""Length of the weights of one unit, hidden or not, or its offset: those that ship are below 15."""


@dataclass(frozen=True)
class ExpressionCorrection:
    """A map from a fitted face and its descriptors to the change of its expression.

    Raises ValueError when the tables disagree, hold numbers that are not finite, or numbers beyond
    ``STRONGEST``.
    """

    # descriptors of the landmarks where they are visible, then of ``EYE_POINTS`` by eye
    mean: Float[Array, "points channels"]
    # point by point: a descriptor without its mean; zeros where a landmark is hidden
    landmarks: Float[Array, "landmarkfeatures landmarkhidden"]
    eyes: Float[Array, "eyefeatures eyehidden"]
    hidden_offset: Float[Array, " hidden"]  # of those of the landmarks, then of the eyes
    weight: Float[Array, "hidden expressions"]  # activations
    fitted: Float[Array, "expressions expressions"]  # for each fitted activation
    offset: Float[Array, " expressions"]

    def __post_init__(self) -> None:
        hidden, units = self.weight.shape if self.weight.ndim == 2 else (-1, -1)
        channels = self.mean.shape[1] if self.mean.ndim == 2 else -1
        if (
            self.mean.shape != (68 + EYE_POINTS, channels)
            or self.landmarks.shape[:1] != (68 * channels,)
            or self.eyes.shape[:1] != (EYE_POINTS * channels,)
            or self.landmarks.ndim != 2
            or self.eyes.ndim != 2
            or self.landmarks.shape[1] + self.eyes.shape[1] != hidden
            or self.hidden_offset.shape != (hidden,)
            or self.fitted.shape != (units, units)
            or self.offset.shape != (units,)
        ):
            shapes = ", ".join(f"{name} {table.shape}" for name, table in vars(self).items())
            raise ValueError(f"ExpressionCorrection with {shapes}")
        if not all(np.isfinite(table).all() for table in vars(self).values()):
            raise ValueError("ExpressionCorrection holds numbers that are not finite")
        weights = (self.landmarks, self.eyes, self.weight, self.fitted)
        strength = max(float(np.sqrt((table**2).sum(0)).max(initial=0.0)) for table in weights)
        offsets = (self.hidden_offset, self.offset)
        strength = max(strength, *(float(np.abs(some).max(initial=0.0)) for some in offsets))
        if strength > STRONGEST:
            raise ValueError(
                f"ExpressionCorrection has numbers as large as {strength:.3g}: is it damaged?"
            )

    @property
    def eye_units(self) -> Ints:
        """(N,) the expressions that the network of the eyes changes."""
        return np.flatnonzero(self.weight[self.landmarks.shape[1] :].any(0))

    def in_single_precision(self) -> ExpressionCorrection:
        """The same map for ``change``: its tables are read from memory for each face."""
        return ExpressionCorrection(
            **{name: np.ascontiguousarray(each, np.float32) for name, each in vars(self).items()}
        )

    def change(self, features: Floats, expression: Floats) -> Floats:
        """(B, E) change of activations.

        (B, points * channels) ``features``: as ``mean``, without it. (B, E) ``expression``: fitted.
        """
        split, first = len(self.landmarks), self.landmarks.shape[1]
        hidden = np.empty((len(features), len(self.weight)), features.dtype)
        np.matmul(features[:, :split], self.landmarks, out=hidden[:, :first])
        np.matmul(features[:, split:], self.eyes, out=hidden[:, first:])
        hidden = np.maximum(hidden + self.hidden_offset, 0.0)
        return np.asarray(hidden @ self.weight + expression @ self.fitted + self.offset)


def place_eye_points(corners: Floats) -> Floats:
    """(B, ``EYE_POINTS``, 2) the grids over both eyes.

    (B, 4, 2) ``corners``: the landmarks ``EYE_CORNERS`` in a photo.
    """
    corners = np.ascontiguousarray(corners)  # one kernel for corners of every layout
    out = np.empty((len(corners), EYE_POINTS, 2))
    for face in range(len(out)):
        fill_eye_points(corners[face], out[face])
    return out


@numba.njit(cache=CACHE, nogil=True)
def fill_eye_points(corners, out):  # type: ignore[no-untyped-def]
    """Fill the (``EYE_POINTS``, 2) grids over both eyes of one face."""
    n = 0
    for eye in range(2):
        first, last = corners[2 * eye], corners[2 * eye + 1]
        along_x, along_y = last[0] - first[0], last[1] - first[1]
        for column in COLUMNS:
            for row in ROWS:
                out[n, 0] = first[0] + column * along_x + row * along_y
                out[n, 1] = first[1] + column * along_y - row * along_x
                n += 1


def _mirror_eye_points() -> Ints:
    grid = np.arange(EYE_POINTS).reshape(2, len(COLUMNS), len(ROWS))
    return np.asarray(grid[::-1, ::-1].ravel())


MIRRORED_EYE_POINTS = _mirror_eye_points()
"""``points[MIRRORED_EYE_POINTS]`` renames the eye points of a mirrored photo."""
