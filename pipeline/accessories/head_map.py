"""The outside of a head as a map over directions, on which accessories are placed.

Directions are unit vectors in head from a centre inside the skull. The ears are left out, so that
the map is the smooth surface under hair and hats.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Array, Float, Floats, Int, Ints
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.mesh import SurfacePoints
from dff.face.model.landmarks import JAW_ENDS
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render

ROWS, COLUMNS = 60, 120  # of the map: 3 degrees each
SKIN = ("face", "neck", "scalp", "lips", "brows", "eyes")


@dataclass(frozen=True, eq=False)
class DirectionMap:
    """The surface point of a model under each direction, row by row from the top.

    Azimuth 0, in front of the face, is in the middle of a row.
    """

    points: SurfacePoints  # ROWS * COLUMNS
    nearest_vertex: Int[Array, " D"]  # of the model; ROWS * COLUMNS
    # radians from the top at which the scalp ends; 0 for a model without scalp
    hairline: Float[Array, " C"]

    @staticmethod
    def build(model: MorphableModel) -> DirectionMap:
        """The map of a model's template, of its skin alone."""
        names = [n for n in SKIN if n in model.region_names]
        chosen = model.find_triangles(*names)
        relative = model.template.astype(np.float64) - find_head_centre(model, model.template)
        radius = np.linalg.norm(relative, axis=1)
        azimuth = np.arctan2(relative[:, 0], relative[:, 2])
        polar = np.arccos(np.clip(relative[:, 1] / np.maximum(radius, 1e-9), -1.0, 1.0))
        flat = np.stack(
            [azimuth * COLUMNS / (2 * np.pi) + COLUMNS / 2, polar * ROWS / np.pi], axis=1
        )
        # The map is rendered from outside, where the outermost surface is the nearest. Triangles
        # across the seam at the back are rendered at both of its ends; the triangle around the top
        # is filled by its neighbours.
        faces = model.faces[chosen]
        columns = flat[faces, 0]
        across = np.ptp(columns, axis=1) > COLUMNS / 2
        shifted = np.where(columns[across] < COLUMNS / 2, COLUMNS, 0) + columns[across]
        corners = np.concatenate(
            [flat[faces[~across]], *(_at(flat[faces[across]], shifted - s) for s in (0, COLUMNS))]
        )
        depth = 1.0 - np.concatenate(
            [radius[faces[~across]], radius[faces[across]], radius[faces[across]]]
        )
        number = np.concatenate([chosen[~across], chosen[across], chosen[across]])
        soup = np.concatenate([corners, depth[..., None]], axis=2).reshape(-1, 3)
        frame = render(
            soup,
            np.arange(len(soup)).reshape(-1, 3),
            WeakPerspective(1.0, np.zeros(2)),
            (ROWS, COLUMNS),
        )
        _, label = cv2.distanceTransformWithLabels(
            np.tile(~frame.mask, (1, 3)).astype(np.uint8),
            cv2.DIST_L2,
            5,
            labelType=cv2.DIST_LABEL_PIXEL,
        )
        source = np.zeros(label.max() + 1, dtype=np.int64)
        whole = np.tile(np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS), (1, 3))
        seen = np.tile(frame.mask, (1, 3))
        source[label[seen]] = whole[seen]
        row = source[label[:, COLUMNS : 2 * COLUMNS]].ravel()
        triangle, weight = (
            number[frame.triangle.ravel()[row]],
            frame.barycentric.reshape(-1, 3)[row].astype(np.float64),
        )
        points = SurfacePoints(triangle, weight / weight.sum(1, keepdims=True))
        nearest = model.faces[triangle, weight.argmax(1)]
        return DirectionMap(points, nearest, _hairline(model, triangle.reshape(ROWS, COLUMNS)))

    def fit(self, model: MorphableModel, neutral: Floats) -> HeadMap:
        """The map of a head of (V, 3) ``neutral`` vertices at rest."""
        places = self.points.of(neutral, model.faces).reshape(ROWS, COLUMNS, 3)
        return HeadMap(self, find_head_centre(model, neutral), np.ascontiguousarray(places))


def _at(corners: Floats, columns: Floats) -> Floats:
    return np.stack([columns, corners[..., 1]], axis=-1)


def _hairline(model: MorphableModel, triangle: NDArray[np.int64]) -> Floats:
    if "scalp" not in model.region_names:
        return np.zeros(COLUMNS)
    scalp = model.region[triangle] == model.region_names.index("scalp")
    last = np.where(scalp.any(0), ROWS - 1 - scalp[::-1].argmax(0), 0)
    kernel = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0
    smooth = np.convolve(np.concatenate([last[-2:], last, last[:2]]), kernel, mode="valid")
    return np.asarray((smooth + smooth[::-1]) / 2.0 * np.pi / ROWS)


def find_head_centre(model: MorphableModel, vertices: Floats) -> Floats:
    """(3,) the point between the ears from which directions start."""
    jaw = vertices[model.landmarks.vertex[list(JAW_ENDS)]].astype(np.float64)
    breadth = float(np.linalg.norm(jaw[1] - jaw[0]))
    return np.asarray(jaw.mean(0) + breadth * np.array([0.0, 0.12, -0.15]))


@dataclass(frozen=True, eq=False)
class HeadMap:
    """The map of one head."""

    directions: DirectionMap
    middle: Float[Array, " 3"]  # metres, head: where directions start
    places: Float[Array, "R C 3"]  # metres, head: the surface under each direction

    def at(self, azimuth: Floats, polar: Floats) -> Floats:
        """(..., 3) metres: surface points by azimuth, to the face's left, and polar angle."""
        row = np.clip(polar * (ROWS / np.pi) - 0.5, 0.0, ROWS - 1.001)
        column = (azimuth * (COLUMNS / (2 * np.pi)) + COLUMNS / 2 - 0.5) % COLUMNS
        top, left = row.astype(np.int64), column.astype(np.int64) % COLUMNS
        right = (left + 1) % COLUMNS
        fy, fx = (row - top)[..., None], (column - np.floor(column))[..., None]
        p = self.places
        upper = p[top, left] * (1 - fx) + p[top, right] * fx
        lower = p[top + 1, left] * (1 - fx) + p[top + 1, right] * fx
        return np.asarray(upper * (1 - fy) + lower * fy)

    def towards(self, direction: Floats) -> Floats:
        """(..., 3) metres: surface points under (..., 3) directions of any length."""
        return self.at(*angles_from_direction(direction))

    def vertex(self, azimuth: Floats, polar: Floats) -> Ints:
        """(...) the model's vertex nearest to the surface point of a direction."""
        row = np.clip((polar * (ROWS / np.pi)).astype(np.int64), 0, ROWS - 1)
        column = (
            np.floor(azimuth * (COLUMNS / (2 * np.pi)) + COLUMNS / 2).astype(np.int64) % COLUMNS
        )
        return np.asarray(self.directions.nearest_vertex.reshape(ROWS, COLUMNS)[row, column])

    def hairline(self, azimuth: Floats) -> Floats:
        """(...) radians from the top at which the scalp ends."""
        column = (azimuth * (COLUMNS / (2 * np.pi)) + COLUMNS / 2 - 0.5) % COLUMNS
        left = column.astype(np.int64) % COLUMNS
        share = column - np.floor(column)
        line = self.directions.hairline
        return np.asarray(line[left] * (1 - share) + line[(left + 1) % COLUMNS] * share)

    def depth_inside(self, points: Floats) -> Floats:
        """(N,) metres by which (N, 3) points lie inside the head, along their directions."""
        away = points - self.middle
        surface = self.towards(away) - self.middle
        return np.asarray(np.linalg.norm(surface, axis=-1) - np.linalg.norm(away, axis=-1))


def angles_from_direction(direction: Floats) -> tuple[Floats, Floats]:
    """Azimuth and polar angle, radians, of (..., 3) directions of any length."""
    x, y, z = np.moveaxis(np.asarray(direction, dtype=np.float64), -1, 0)
    return np.arctan2(x, z), np.arctan2(np.hypot(x, z), y)


def direction_from_angles(azimuth: Floats, polar: Floats) -> Floats:
    """(..., 3) unit directions of angles in radians."""
    s = np.sin(polar)
    return np.stack(
        [s * np.sin(azimuth), np.cos(polar) + 0.0 * azimuth, s * np.cos(azimuth)], axis=-1
    )


@lru_cache(maxsize=4)
def find_direction_map(model: MorphableModel) -> DirectionMap:
    """The direction map of a model; the last few are kept."""
    return DirectionMap.build(model)
