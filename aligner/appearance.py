"""Appearance, which distinguishes people: the identity of the fitted face, and its brightness.

Two measures of one person agree in both: the cosine between the coefficients of identity, and the
correlation of the blurred brightness at the points of the mesh that face the camera in both
images. The first knows no light, the second no error of the fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from dff.aligner.alignment import Alignment
from dff.face.arrays import Array, Bytes, Float, Floats, Ints
from dff.face.geometry.camera import Box
from dff.face.geometry.interpolation import bilinear
from dff.face.model.morphable import MorphableModel
from dff.face.render.kernels import smooth_normals

POINTS = 600  # of the mesh whose brightness is compared
SIDE = 64  # pixels that a face is shrunk to before it is compared
BLUR = 2.5  # of these pixels, standard deviation
DARK = 8.0  # grey levels added before the logarithm: noise of dark pixels counts little
SHARED = 0.05  # mean weight of the points below which two views have too little in common
# side of a head over the longer side of its landmarks' box: what lies within may be of that head
HEAD = 1.5


@dataclass(frozen=True)
class AppearanceDescriptor:
    """The appearance of a face, independent of pose. Two are comparable if of one model."""

    identity: Float[Array, " identities"]  # standard deviations
    brightness: Float[Array, " points"]  # logarithm of grey levels
    weight: Float[Array, " points"]  # 0 to 1: how far a point faces the camera

    def texture_agreement(self, other: AppearanceDescriptor, *, unknown: float = 1.0) -> float:
        """Correlation (-1 to 1) of the brightness; ``unknown`` where too few points are shared."""
        weight = self.weight * other.weight
        if weight.mean() < SHARED:
            return unknown
        weight = weight / weight.sum()
        a = self.brightness - weight @ self.brightness
        b = other.brightness - weight @ other.brightness
        spread = float(np.sqrt((weight @ a**2) * (weight @ b**2)))
        return float(weight @ (a * b)) / spread if spread > 1e-9 else 1.0

    def identity_agreement(self, other: AppearanceDescriptor) -> float:
        """Cosine (-1 to 1) between the identities; 1 where one is the mean face."""
        lengths = float(np.linalg.norm(self.identity) * np.linalg.norm(other.identity))
        return float(self.identity @ other.identity) / lengths if lengths > 1e-9 else 1.0

    def blended(self, new: AppearanceDescriptor, share: float) -> AppearanceDescriptor:
        """This appearance with a ``share`` (0 to 1) of a new one of the same person."""
        weight = (1 - share) * self.weight + share * new.weight
        both = (1 - share) * self.weight * self.brightness + share * new.weight * new.brightness
        brightness = np.where(weight > 1e-9, both / np.maximum(weight, 1e-9), new.brightness)
        identity = (1 - share) * self.identity + share * new.identity
        return AppearanceDescriptor(identity, brightness, weight)


class AppearanceMeter:
    """Measures the appearance of faces of one model."""

    def __init__(self, model: MorphableModel) -> None:
        self.model = model
        self.points = _face_points(model)
        away = model.template[self.points, None] - model.template[model.landmarks.vertex]
        self.nearest_landmark = np.linalg.norm(away, axis=2).argmin(1)
        around = model.faces[np.isin(model.faces, self.points).any(1)]
        # the vertices on which the normals at the points depend, and their numbers among these
        self.around, numbers = np.unique(around, return_inverse=True)
        self.triangles = numbers.reshape(-1, 3).astype(model.faces.dtype)
        self.places = np.searchsorted(self.around, self.points)

    def measure(
        self,
        image: Bytes,
        face: Alignment,
        *,
        others: Iterable[Alignment] = (),
        covers: bool = False,
        blur: float = BLUR,
    ) -> AppearanceDescriptor:
        """The appearance of a face of an (H, W, 3) uint8 RGB image.

        Where heads of ``others`` may lie before the face, its points tell nothing. ``covers``:
        neither do those near landmarks that something else hides. ``blur``: standard deviation,
        pixels of the shrunk face.
        """
        weight = np.clip(-self.normals(face)[:, 2], 0.0, None)
        px = face.camera.px_from_cam(face.cam_from_head.apply(face.vertices[self.points]))
        height, width = image.shape[:2]
        inside = ((px >= 0) & (px <= (width, height))).all(1)
        weight = weight * inside
        if covers:
            weight = weight * face.visibility[self.nearest_landmark]
        for other in others:
            head = Box.around(other.landmarks_3d[:, :2]).square(HEAD)
            weight *= ((px < [head.x0, head.y0]) | (px > [head.x1, head.y1])).any(1)
        if not inside.any():
            return AppearanceDescriptor(face.coefficients.identity, np.zeros(len(px)), weight)
        low = np.clip(np.floor(px[inside].min(0)), 0, (width - 1, height - 1)).astype(int)
        high = np.maximum(np.ceil(px[inside].max(0)).astype(int), low + 1)
        crop = image[low[1] : high[1], low[0] : high[0]]
        shrink = min(SIDE / Box.around(face.landmarks_3d[:, :2]).size, 1.0)
        size = (
            max(round(crop.shape[1] * shrink), 1),
            max(round(crop.shape[0] * shrink), 1),
        )
        grey = shrink_by_samples(crop, size, 2).astype(np.float32) @ np.full(3, 1 / 3, np.float32)
        small = cv2.GaussianBlur(grey, (0, 0), blur, borderType=cv2.BORDER_REPLICATE)
        at = (px - low) * (np.array(size) / (crop.shape[1], crop.shape[0]))
        brightness = np.log(bilinear(small[..., None], at)[:, 0] + DARK)
        return AppearanceDescriptor(face.coefficients.identity, brightness, weight)

    def normals(self, face: Alignment) -> Floats:
        """(points, 3) unit normals at the points, in the camera's frame."""
        in_head = smooth_normals(face.vertices[self.around], self.triangles)[self.places]
        return np.asarray(in_head @ face.cam_from_head.rotation.T)


def shrink_by_samples(image: Bytes, size: tuple[int, int], samples: int) -> Bytes:
    """An image shrunk to ``size``, across and down: means of samples x samples places of a pixel.

    Means over all pixels take ten times as long where the sizes have no whole ratio.
    """
    finer = samples * size[0], samples * size[1]
    sampled = cv2.resize(image, finer, interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(sampled, size, interpolation=cv2.INTER_AREA))


def _face_points(model: MorphableModel) -> Ints:
    """Vertices about the landmarks: face and forehead, without neck, ears and the back."""
    marks = model.template[model.landmarks.vertex]
    centre, size = marks.mean(0), np.ptp(marks, axis=0)
    off = np.abs(model.template - centre)
    near = (off[:, 0] < 0.55 * size[0]) & (off[:, 1] < 0.75 * size[1])
    places = np.flatnonzero(near)
    return np.asarray(places[:: max(len(places) // POINTS, 1)], dtype=np.int64)
