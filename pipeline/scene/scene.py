"""A scene, and what a camera records of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dff.face.arrays import Array, Bool, Float, Integer
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.transform import Rigid
from dff.pipeline.scene.backgrounds import Background
from dff.pipeline.scene.camera_sensor import Sensor

RERENDER = "rerender"
"""Mode of a view in which the textured model is rendered before a background."""

PROFILE = "profile"
"""Mode of a view by 3D face profiling: the photo itself, rotated with its head."""


@dataclass(frozen=True, eq=False)
class Scene:
    """All of a view but the person."""

    expression: Float[Array, " E"]  # activations
    cam_from_head: Rigid
    camera: Pinhole | WeakPerspective
    light: Float[Array, "9 3"]  # float32, cam
    background: Background | None  # None: the photo itself
    sensor: Sensor
    accessories: tuple[str, ...]  # names of the person's accessories that this view shows
    notes: dict[str, Any]  # what was drawn, for people: movement, framing
    mode: str = RERENDER  # or PROFILE


@dataclass(frozen=True, eq=False)
class Landmarks:
    """The 68 landmarks of a view in both schemes."""

    contour: Float[Array, "68 2"]  # px, 2D scheme
    fixed: Float[Array, "68 2"]  # px, 3D scheme
    contour_visible: Bool[Array, " 68"]
    fixed_visible: Bool[Array, " 68"]


@dataclass(frozen=True, eq=False)
class Shot:
    """The image of a scene and its ground truth."""

    image: bytes  # JPEG
    triangle_ids: Integer[Array, "H W"]  # int32, as in ViewRow
    landmarks: Landmarks
