"""The camera of a whole photo, and heads placed before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from dff.face.arrays import Array, Float, Floats
from dff.face.geometry.camera import NearPerspective
from dff.face.geometry.transform import Rigid

Source = Literal["given", "exif", "assumed"]
ASSUMED = 1.2
"""Focal length over the longer side of a photo that says nothing. Source: COLMAP's default."""
EXIF_DIAGONAL = 43.27
"""Millimetres of the diagonal of 35 mm film (36 x 24 mm), to which EXIF's focal length refers."""


@dataclass(frozen=True)
class Intrinsics:
    """The camera of a photo without distortion. Raises ValueError for a focal length below 1."""

    focal: float  # pixels
    centre: Float[Array, " 2"]  # pixels, the principal point
    source: Source

    def __post_init__(self) -> None:
        if not (np.isfinite(self.focal) and self.focal >= 1.0):
            raise ValueError(f"a focal length is at least one pixel, got {self.focal}")
        object.__setattr__(self, "centre", np.asarray(self.centre, np.float64).reshape(2))

    @staticmethod
    def of(
        width: int, height: int, *, focal: float | None = None, source: Source = "given"
    ) -> Intrinsics:
        """A camera that looks through the middle of a photo; ``focal`` None: one is assumed."""
        centre = np.array([width / 2, height / 2])
        if focal is None:
            return Intrinsics(ASSUMED * max(width, height), centre, "assumed")
        return Intrinsics(focal, centre, source)

    @staticmethod
    def of_photo(
        width: int, height: int, *, focal: float | None, focal_35mm: float | None
    ) -> Intrinsics:
        """The camera of a given focal length in pixels, else of that in EXIF, else assumed."""
        if focal is not None:
            return Intrinsics.of(width, height, focal=focal)
        if focal_35mm is not None:
            pixels = focal_from_35mm(focal_35mm, width, height)
            return Intrinsics.of(width, height, focal=pixels, source="exif")
        return Intrinsics.of(width, height)

    @property
    def matrix(self) -> Floats:
        """(3, 3) from ``cam`` to homogeneous pixels."""
        (x, y), f = self.centre, self.focal
        return np.array([[f, 0.0, x], [0.0, f, y], [0.0, 0.0, 1.0]])

    def place_head(self, vertices: Floats, camera: NearPerspective, cam_from_head: Rigid) -> Rigid:
        """The head's rotation and translation, metres, before this camera.

        A fit sees a face as if the camera looked at it, from a set distance: ``camera``. Here the
        (V, 3) ``vertices`` project to the same pixels as nearly as they can (least squares).
        """
        depth = self.focal / camera.scale
        ray = np.append((camera.centre - self.centre) / self.focal, 1.0)
        rotation = _look_along(ray) @ cam_from_head.rotation
        translation = depth * ray + rotation @ (
            cam_from_head.rotation.T @ cam_from_head.translation
        )
        some = np.ascontiguousarray(vertices[:: max(len(vertices) // 100, 1)], dtype=np.float64)
        px = camera.px_from_cam(cam_from_head.apply(some))
        vector, _ = cv2.Rodrigues(rotation)
        vector, moved = cv2.solvePnPRefineLM(
            some, px, self.matrix, None, vector, translation[:, None]
        )
        refined, _ = cv2.Rodrigues(vector)
        if not (np.isfinite(refined).all() and np.isfinite(moved).all() and moved[2, 0] > 0):
            return Rigid(rotation, translation)
        return Rigid(refined, moved[:, 0])


def find_quaternion(rotation: Floats) -> Floats:
    """(4,) x, y, z, w of a (3, 3) rotation; w is not negative."""
    vector = cv2.Rodrigues(rotation)[0][:, 0]
    angle = float(np.linalg.norm(vector))
    # sin(angle / 2) / angle, also for no rotation
    return np.append(vector * 0.5 * np.sinc(angle / (2.0 * np.pi)), np.cos(angle / 2.0))


def focal_from_35mm(millimetres: float, width: int, height: int) -> float:
    """Pixels of the focal length that EXIF gives for 35 mm film, of an uncropped photo."""
    return millimetres / EXIF_DIAGONAL * float(np.hypot(width, height))


def _look_along(ray: Floats) -> Floats:
    """(3, 3) the smallest rotation from the z axis to a (3,) direction before the camera."""
    x, y, z = ray / np.linalg.norm(ray)
    return np.array(
        [
            [1.0 - x * x / (1.0 + z), -x * y / (1.0 + z), x],
            [-x * y / (1.0 + z), 1.0 - y * y / (1.0 + z), y],
            [-x, -y, z],
        ]
    )
