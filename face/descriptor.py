"""The Deep Face Feature (DFF): one unit vector for each pixel and for each point of the model.

A pixel shows anchor m with probability ``softmax(scale * descriptor . anchor)``. Source: Jiang,
Zhang, Deng, Guo, Liu, "Deep Face Feature for Face Alignment" (arXiv 1708.02721): classification
against normalised class vectors.

Grids: the output pixel (i, j) covers the input pixels 2i, 2i+1 x 2j, 2j+1, so ``output_px =
input_px / 2`` in the project's convention (first centre at 0.5). Every step keeps centres aligned:
even kernels where the grid halves, nearest copies where it doubles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dff.face.arrays import Array, Bools, Float, Floats, Integer, Ints
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.landmarks import NOSE_TIP
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render

STRIDE = 2
"""Input pixels for one output pixel."""

NORMAL_LENGTH = 0.006
"""Metres that ``surface_coordinates`` give a unit normal; touching lips are twice this apart."""

FRAMING = 1.5
"""Side of a square crop over the longer side of the box of the 68 landmarks (3D scheme)."""

SKIN_REGIONS = ("face", "ears", "lips", "brows", "eyes", "lashes")
"""Regions that are the positive class of ``face_logit``."""

ANCHOR_DENSITY = {
    "face": 1.0,
    "ears": 1.0,
    "lips": 1.0,
    "brows": 1.0,
    "eyes": 1.0,
    "neck": 0.35,
    "scalp": 0.25,
}
"""Anchor density of a region, as a factor on distances; regions not named here get no anchors."""


class Features(NamedTuple):
    """The network's output for B images of (H, W) pixels."""

    descriptor: Tensor  # (B, D, H/2, W/2) unit vectors
    face_logit: Tensor  # (B, H/2, W/2) log odds that the pixel shows the face


class Network(Protocol):
    """The descriptor network, or anything with its interface."""

    def __call__(self, image: Tensor) -> Features:
        """(B, 3, H, W) RGB 0..1 to features on a grid of half the size."""
        ...


@dataclass(frozen=True)
class NetConfig:
    """Size of the network. Raises ValueError for sizes that cannot be built."""

    dims: int = 32  # D, length of a descriptor
    widths: tuple[int, ...] = (32, 64, 128, 192, 256)  # channels at stride 2, 4, 8, ...
    depths: tuple[int, ...] = (1, 2, 2, 4, 6)  # residual blocks at each stride
    groups: int = 8  # of the group normalisation

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "depths", tuple(self.depths))
        if self.dims < 2 or not self.widths or len(self.widths) != len(self.depths):
            raise ValueError(f"NetConfig wants dims >= 2 and as many widths as depths: {self}")
        if any(w <= 0 or w % self.groups for w in self.widths) or any(d < 0 for d in self.depths):
            raise ValueError(
                f"NetConfig.widths must be positive multiples of {self.groups} groups: {self}"
            )

    @property
    def multiple(self) -> int:
        """Sides of input images must be multiples of this."""
        return int(2 ** len(self.widths))


class Separable(nn.Module):
    """A residual block: depthwise and pointwise convolution, group norm, ReLU.

    The depthwise kernel is 3x3, or 4x4 where it halves the grid. The input is added where its shape
    is that of the output. Group norm is independent of the batch, so features do not depend on the
    batch's other images or on the number of workers.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, *, halve: bool = False) -> None:
        super().__init__()
        kernel, stride = (4, 2) if halve else (3, 1)
        self.depthwise = nn.Conv2d(inputs, inputs, kernel, stride, 1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.GroupNorm(groups, outputs)
        self.residual = inputs == outputs and not halve

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), of half the height and width with ``halve``."""
        y = functional.relu_(self.norm(self.pointwise(self.depthwise(x))))
        if not self.residual:
            return y
        # Allocating a large map costs as much as the sum, so inference adds in place; training
        # needs the map as it was.
        return x + y if torch.is_grad_enabled() else y.add_(x)


def build_encoder(widths: tuple[int, ...], depths: tuple[int, ...], groups: int) -> nn.ModuleList:
    """The stages of an encoder of separable convolutions; each after the first halves the grid."""
    encoder = nn.ModuleList()
    for level, depth in enumerate(depths):
        wide = widths[level]
        down = [Separable(widths[level - 1], wide, groups, halve=True)] if level else []
        encoder.append(nn.Sequential(*down, *(Separable(wide, wide, groups) for _ in range(depth))))
    return encoder


class DescriptorNet(nn.Module):
    """U-Net of separable convolutions: (B, 3, H, W) float RGB in 0..1 to ``Features``.

    H and W must be multiples of ``config.multiple`` (ValueError). Channels-last memory is the fast
    one on CPUs.
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        w, g = config.widths, config.groups
        self.stem = nn.Sequential(
            nn.Conv2d(3, w[0], 4, 2, 1, bias=False), nn.GroupNorm(g, w[0]), nn.ReLU()
        )
        self.encoder = build_encoder(w, config.depths, g)
        self.lateral = nn.ModuleList(nn.Conv2d(w[i + 1], w[i], 1) for i in range(len(w) - 1))
        self.decoder = nn.ModuleList(Separable(w[i], w[i], g) for i in range(len(w) - 1))
        self.to_descriptor = nn.Conv2d(w[0], config.dims, 1)
        self.to_face = nn.Conv2d(w[0], 1, 1)

    def trunk(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) images to the (B, C, H/2, W/2) map that both heads read."""
        if (
            image.ndim != 4
            or image.shape[1] != 3
            or any(s % self.config.multiple for s in image.shape[2:])
        ):
            raise ValueError(
                f"want (B, 3, H, W) with sides in multiples of {self.config.multiple}: "
                f"{image.shape}"
            )
        x = self.stem((image - 0.5).mul_(4.0))
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        for level in reversed(range(len(self.lateral))):
            up = functional.interpolate(self.lateral[level](x), scale_factor=2.0, mode="nearest")
            x = self.decoder[level](skips[level] + up)
        return cast(Tensor, x)

    def face_logit(self, trunk: Tensor) -> Tensor:
        """(B, H/2, W/2) log odds that a pixel shows the face."""
        return cast(Tensor, self.to_face(trunk))[:, 0].float()

    def descriptor_at(self, rows: Tensor) -> Tensor:
        """(..., C) rows of the trunk, any choice of its pixels, to (..., D) unit vectors."""
        weight = self.to_descriptor.weight[:, :, 0, 0]
        return functional.normalize(
            functional.linear(rows, weight, self.to_descriptor.bias).float(), dim=-1
        )

    def forward(self, image: Tensor) -> Features:
        """The features of (B, 3, H, W) images: RGB in 0..1, sides in multiples of 32."""
        trunk = self.trunk(image)
        descriptor = self.descriptor_at(trunk.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return Features(descriptor, self.face_logit(trunk))


class DeviceNetwork:
    """A network on a device of torch, such as "cuda"; takes and returns tensors of the CPU."""

    def __init__(self, net: nn.Module, device: str) -> None:
        """Raises RuntimeError, as torch, when there is no such device."""
        self.device = torch.device(device)
        self.net = net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config: NetConfig = net.config  # type: ignore[assignment]

    def __call__(self, image: Tensor) -> Features:
        """(B, 3, H, W) RGB 0..1 to features on a grid of half the size."""
        with torch.inference_mode():
            found = self.net(image.to(self.device))
        return Features(found.descriptor.cpu(), found.face_logit.cpu())


def image_batch(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 RGB to the network's (B, 3, H, W) float 0..1, channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255.0)


@dataclass(frozen=True)
class Anchors:
    """Points of a model, each with its descriptor. Raises ValueError when the tables disagree."""

    vertex: Integer[Array, " anchors"]  # int32, of the model
    position: Float[Array, "anchors 3"]  # float32 metres in ``head``, on the template
    descriptor: Float[Array, "anchors dims"]  # float32 unit vectors
    scale: float  # log odds are scale * cosine
    # metres in ``head`` of one standard deviation: systematic errors of matches, of which each
    # photo shows its own combination (``dff.aligner.evaluation.match_errors``); none by default
    error_fields: Float[Array, "anchors 3 fields"] = field(
        default_factory=lambda: np.zeros((0, 3, 0), np.float32)
    )

    def __post_init__(self) -> None:
        m = len(self.vertex)
        if self.error_fields.size == 0:
            object.__setattr__(self, "error_fields", np.zeros((m, 3, 0), np.float32))
        if (
            self.vertex.shape != (m,)
            or self.position.shape != (m, 3)
            or self.descriptor.shape[:1] != (m,)
            or self.error_fields.shape[:2] != (m, 3)
        ):
            raise ValueError("Anchors' tables disagree about their number")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"Anchors.scale must be positive, got {self.scale}")
        if m and np.abs(np.linalg.norm(self.descriptor, axis=1) - 1.0).max() > 1e-3:
            raise ValueError("Anchors.descriptor must be unit vectors")

    def __getitem__(self, rows: Ints) -> Anchors:
        """Some of the anchors."""
        return Anchors(
            self.vertex[rows],
            self.position[rows],
            self.descriptor[rows],
            self.scale,
            self.error_fields[rows],
        )


def surface_coordinates(model: MorphableModel) -> Floats:
    """(V, 6) float32: template position and normal times ``NORMAL_LENGTH``, metres.

    Distances in them are those of the surface near a point, but keep sheets that touch apart (upper
    and lower lip, lids), as straight distances do not. Source: Pottmann et al., "The isophotic
    metric" (2004).
    """
    normal = vertex_normals(model.template.astype(np.float64), model.faces)
    return np.concatenate([model.template, NORMAL_LENGTH * normal], axis=1).astype(np.float32)


def outside_triangles(model: MorphableModel, *, size: int = 192) -> Bools:
    """(F,) triangles of the template that are visible in any of 21 views from front and sides."""
    seen = np.zeros(len(model.faces), dtype=bool)
    centre = (model.template.min(0) + model.template.max(0)) / 2
    points = model.template - centre
    camera = WeakPerspective(
        0.48 * size / float(np.linalg.norm(points, axis=1).max()), np.full(2, size / 2)
    )
    for yaw in range(-90, 91, 30):
        for pitch in (-40.0, 0.0, 40.0):
            cam = points @ rotation_from_angles(float(yaw), pitch, 0.0).T
            triangle = render(cam, model.faces, camera, (size, size)).triangle
            seen[triangle[triangle >= 0]] = True
    return seen


def choose_anchors(model: MorphableModel, count: int) -> Ints:
    """(M,) int32 vertices by farthest-point sampling in ``surface_coordinates``, from the nose tip.

    M = min(count, eligible); eligible are the vertices of ``outside_triangles`` in the regions of
    ``ANCHOR_DENSITY``. No randomness. Source: Gonzalez, "Clustering to minimize the maximum
    intercluster distance" (1985).
    """
    density_of = np.array([ANCHOR_DENSITY.get(name, 0.0) for name in model.region_names])[
        model.region
    ]
    density = np.zeros(len(model.template))
    outside = outside_triangles(model)
    for corner in range(3):
        np.maximum.at(density, model.faces[outside, corner], density_of[outside])
    eligible = np.flatnonzero(density > 0)
    place = surface_coordinates(model)[eligible].astype(np.float64)
    first = int(
        np.abs(place[:, :3] - model.template[model.landmarks.vertex[NOSE_TIP]]).sum(1).argmin()
    )
    chosen = [first]
    nearest = np.linalg.norm(place - place[first], axis=1)
    for _ in range(min(count, len(eligible)) - 1):
        chosen.append(int((nearest * density[eligible]).argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(place - place[chosen[-1]], axis=1))
    return np.sort(eligible[chosen]).astype(np.int32)


def parameter_count(net: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in cast("list[Tensor]", list(net.parameters())))
