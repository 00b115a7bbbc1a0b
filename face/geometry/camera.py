"""Cameras. Pixels: the centre of the first pixel is (0.5, 0.5), x right, y down."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from dff.face.arrays import Array, Float, Floats


class Camera(Protocol):
    """The interface of cameras."""

    def px_from_cam(self, points: Floats) -> Floats:
        """(..., 3) points in ``cam`` to (..., 2) pixels."""
        ...

    def screen_depth(self, points: Floats) -> Floats:
        """(...,) an ordering of depth that is affine in the image; smaller is nearer."""
        ...

    def depth_on_screen(self, screen_depth: Floats) -> Floats:
        """(...,) metres along the z axis of ``cam`` of a ``screen_depth``."""
        ...

    def screen_weight(self, points: Floats) -> Floats:
        """(...,) weights of perspective-correct interpolation.

        Barycentrics on the surface are those on the screen times these, normalised. Positive before
        the camera, NaN for points that do not project.
        """
        ...

    def cropped(self, corner: Floats, scale: float) -> Camera:
        """The camera of the image after ``px -> (px - corner) * scale``."""
        ...


@dataclass(frozen=True)
class WeakPerspective:
    """Scaled orthographic projection: ``px = scale * (x, y) + centre``."""

    scale: float  # pixels per metre
    centre: Float[Array, " 2"]  # pixels, where the cam origin falls

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"WeakPerspective.scale must be positive, got {self.scale}")
        object.__setattr__(self, "centre", np.asarray(self.centre, dtype=np.float64).reshape(2))

    def px_from_cam(self, points: Floats) -> Floats:
        return np.asarray(points[..., :2] * self.scale + self.centre)

    def screen_depth(self, points: Floats) -> Floats:
        return np.asarray(points[..., 2])

    def depth_on_screen(self, screen_depth: Floats) -> Floats:
        return np.asarray(screen_depth)

    def screen_weight(self, points: Floats) -> Floats:
        return np.ones(points.shape[:-1])

    def cropped(self, corner: Floats, scale: float) -> WeakPerspective:
        return replace(self, scale=self.scale * scale, centre=(self.centre - corner) * scale)


@dataclass(frozen=True)
class NearPerspective(WeakPerspective):
    """Perspective relative to the cam origin.

    ``px = scale * (x, y) / (1 + inverse_depth * z) + centre``. The camera stands 1 /
    ``inverse_depth`` metres before the cam origin, where ``scale`` holds. An inverse depth of zero
    is weak perspective.
    """

    inverse_depth: float = 0.0  # 1 / metres

    def px_from_cam(self, points: Floats) -> Floats:
        return np.asarray(
            points[..., :2] * (self.scale / (1.0 + self.inverse_depth * points[..., 2:3]))
            + self.centre
        )

    def screen_depth(self, points: Floats) -> Floats:
        return np.asarray(points[..., 2] / (1.0 + self.inverse_depth * points[..., 2]))

    def depth_on_screen(self, screen_depth: Floats) -> Floats:
        return np.asarray(screen_depth / (1.0 - self.inverse_depth * screen_depth))

    def screen_weight(self, points: Floats) -> Floats:
        away = 1.0 + self.inverse_depth * points[..., 2]
        return np.where(away > 0, 1.0 / np.where(away > 0, away, 1.0), np.nan)


@dataclass(frozen=True)
class Pinhole:
    """Perspective projection: ``px = focal * (x, y) / z + centre``; points must have z > 0."""

    focal: float  # pixels
    centre: Float[Array, " 2"]  # pixels, the principal point

    def __post_init__(self) -> None:
        if not (np.isfinite(self.focal) and self.focal > 0):
            raise ValueError(f"Pinhole.focal must be positive, got {self.focal}")
        object.__setattr__(self, "centre", np.asarray(self.centre, dtype=np.float64).reshape(2))

    def px_from_cam(self, points: Floats) -> Floats:
        return np.asarray(points[..., :2] * (self.focal / points[..., 2:3]) + self.centre)

    def screen_depth(self, points: Floats) -> Floats:
        return np.asarray(-1.0 / points[..., 2])

    def depth_on_screen(self, screen_depth: Floats) -> Floats:
        return np.asarray(-1.0 / screen_depth)

    def screen_weight(self, points: Floats) -> Floats:
        z = points[..., 2]
        in_front = z > 0
        return np.where(in_front, 1.0 / np.where(in_front, z, 1.0), np.nan)

    def cropped(self, corner: Floats, scale: float) -> Pinhole:
        return replace(self, focal=self.focal * scale, centre=(self.centre - corner) * scale)


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in pixels; ``x1 - x0`` is the width. Raises ValueError when empty."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.x0, self.y0, self.x1, self.y1))):
            raise ValueError(f"a box has four finite numbers x0, y0, x1, y1: {self._corners}")
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError(
                f"the box is empty, since x0 < x1 and y0 < y1 must hold: {self._corners}"
            )

    @property
    def _corners(self) -> list[float]:
        return [float(corner) for corner in (self.x0, self.y0, self.x1, self.y1)]

    @property
    def width(self) -> float:
        """Pixels."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Pixels."""
        return self.y1 - self.y0

    @property
    def size(self) -> float:
        """Geometric mean of the sides in pixels: normalises ``nme_box``."""
        return math.sqrt(self.width * self.height)

    @property
    def centre(self) -> Floats:
        """(2,) pixels."""
        return np.array([(self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2])

    @property
    def corners(self) -> Floats:
        """(4,) pixels: x0, y0, x1, y1."""
        return np.array([self.x0, self.y0, self.x1, self.y1])

    def square(self, margin: float) -> Box:
        """The square of side ``margin * max(width, height)`` about the same centre."""
        half = margin * max(self.width, self.height) / 2
        cx, cy = self.centre
        return Box(cx - half, cy - half, cx + half, cy + half)

    @staticmethod
    def around(points: Floats) -> Box:
        """The tight box of (N, 2) pixels."""
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        return Box(float(x0), float(y0), float(x1), float(y1))
