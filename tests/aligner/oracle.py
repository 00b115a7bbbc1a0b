"""A network whose answer is known: images that show at each pixel where on the template it lies,
read back exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dff.aligner.config import AlignConfig, MultiImageConfig
from dff.face.arrays import Bytes, Floats
from dff.face.descriptor import Anchors, Features, choose_anchors
from dff.face.geometry.camera import Box, NearPerspective
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import interpolate, render

DIMS = 32
REACH = 0.02  # metres on the template within which descriptors are alike
DARKEST, RANGE = 40.0, 215.0


READING = AlignConfig(mirror=False, multi_image=MultiImageConfig(scales=(1.0,)))
"""For photos that an oracle reads.

A mirrored code reads the same, while a mirrored face has changed sides; at another size it reads
the same as well.
"""


@dataclass(frozen=True)
class PositionCode:
    """Template positions as colours, and colours as random Fourier features of the position."""

    low: Floats  # (3,) metres
    high: Floats  # (3,)
    frequency: Floats  # (3, DIMS / 2) radians for each metre

    @staticmethod
    def of(model: MorphableModel) -> PositionCode:
        frequency = np.random.default_rng(5).normal(size=(3, DIMS // 2)) / REACH
        return PositionCode(model.template.min(0), model.template.max(0), frequency)

    def colours(self, positions: Floats) -> Floats:
        return DARKEST + RANGE * (positions - self.low) / (self.high - self.low)

    def positions(self, colours: Floats) -> Floats:
        return self.low + (colours - DARKEST) / RANGE * (self.high - self.low)

    def descriptors(self, positions: Floats) -> Floats:
        phase = positions @ self.frequency.astype(positions.dtype)
        waves: Floats = np.concatenate([np.cos(phase), np.sin(phase)], axis=-1)
        return waves / float(np.sqrt(DIMS / 2))


@dataclass(frozen=True)
class OracleNet:
    """Reads the code; ``noise`` is added to the descriptors, a share ``wrong`` of the pixels shows
    other points.
    """

    code: PositionCode
    noise: float = 0.0
    wrong: float = 0.0

    def __call__(self, image: Tensor) -> Features:
        pixels = image.permute(0, 2, 3, 1).numpy() * np.float32(255.0)
        b, h, w, _ = pixels.shape
        one, two, three, four = (pixels[:, y::2, x::2] for y in (0, 1) for x in (0, 1))
        darkest = np.minimum(np.minimum(one, two), np.minimum(three, four)).min(-1)
        inside = (darkest > DARKEST - 6).astype(np.float32)
        positions = self.code.positions((one + two + three + four) / 4).astype(np.float32)
        rng = np.random.default_rng(7)
        if self.wrong:
            other = rng.uniform(self.code.low, self.code.high, positions.shape)
            positions = np.where(rng.random((b, h // 2, w // 2, 1)) < self.wrong, other, positions)
        descriptor = self.code.descriptors(positions)  # of length 1
        if self.noise:
            noise = rng.normal(size=descriptor.shape) * self.noise / np.sqrt(DIMS)
            descriptor = descriptor + noise
            descriptor /= np.linalg.norm(descriptor, axis=-1, keepdims=True)
        logit = torch.from_numpy(inside * 12.0 - 6.0)
        return Features(torch.from_numpy(np.moveaxis(descriptor, 3, 1).astype(np.float32)), logit)


def oracle_anchors(model: MorphableModel, code: PositionCode, count: int = 800) -> Anchors:
    vertex = choose_anchors(model, count)
    position = model.template[vertex].astype(np.float32)
    return Anchors(vertex, position, code.descriptors(position).astype(np.float32), 16.0)


@dataclass(frozen=True)
class Scene:
    """A coded image and the truth about it."""

    image: Bytes  # (H, W, 3)
    landmarks: Floats  # (68, 2) pixels, 3D scheme
    landmarks_2d: Floats  # (68, 2) visible contour
    rotation: Floats  # (3, 3) cam_from_head
    box: Box


def make_scene(
    model: MorphableModel,
    code: PositionCode,
    *,
    yaw: float,
    pitch: float = 0.0,
    roll: float = 0.0,
    rng: np.random.Generator,
    size: int = 320,
    spread: float = 0.8,
    inverse_depth: float = READING.inverse_depth,
) -> Scene:
    identity = np.zeros(len(model.identity))
    identity[:40] = rng.normal(size=min(40, len(identity))) * spread
    expression = (
        np.clip(rng.normal(size=len(model.expression)), 0, 1.5) * model.expression_sd * 0.5 * spread
    )
    pose = {"yaw": yaw, "pitch": pitch, "roll": roll}
    return scene_of(
        model, code, identity, expression, **pose, rng=rng, size=size, inverse_depth=inverse_depth
    )


def scene_of(
    model: MorphableModel,
    code: PositionCode,
    identity: Floats,
    expression: Floats,
    *,
    yaw: float,
    pitch: float = 0.0,
    roll: float = 0.0,
    rng: np.random.Generator,
    size: int = 320,
    inverse_depth: float = READING.inverse_depth,
    residual: Floats | float = 0.0,
) -> Scene:
    """The coded image of one face, near the middle, by a camera at that ``inverse_depth``.

    (V, 3) metres ``residual`` are added to the model's vertices.
    """
    vertices = model.vertices(Coefficients(identity, expression)) + residual
    rotation = rotation_from_angles(yaw, pitch, roll)
    cam = Rigid(rotation, np.zeros(3)).apply(vertices)
    middle = np.array([size / 2 + rng.uniform(-9, 9), size / 2 + rng.uniform(-9, 9)])
    camera = NearPerspective(size * 3.2, middle, inverse_depth)
    frame = render(cam, model.faces, camera, (size, size))
    image = interpolate(frame, code.colours(model.template), model.faces)
    image[~frame.mask] = 0
    px = camera.px_from_cam(cam)
    landmarks = px[model.landmarks.vertex]
    contour = px[model.landmarks.contour_vertices(px, model.template)]
    return Scene(
        np.rint(image).astype(np.uint8), landmarks, contour, rotation, Box.around(landmarks)
    )
