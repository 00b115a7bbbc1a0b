"""A fitted head in the crop of its photo: geometry and masks that several estimates share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import cv2
import numpy as np

from dff.face.arrays import Array, Bool, Bools, Bytes, Float, Floats
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import Rigid
from dff.face.model.landmarks import CHIN, head_up
from dff.face.model.morphable import Coefficients, MorphableModel
from dff.face.render.frame import Frame, render
from dff.face.solve.photometric import skin_triangles

REFERENCE_SIDE = 256.0  # px of a crop, to which lengths in pixels refer


class ExplainedPhoto(Protocol):
    """The crop of a photo with the face, albedo and light that explain it. Pixels of the crop."""

    @property
    def crop(self) -> Bytes:
        """(S, S, 3) uint8 RGB."""
        ...

    @property
    def valid(self) -> Bools:
        """(S, S) False where the photo ended and its border was repeated."""
        ...

    @property
    def occluded(self) -> Bools:
        """(S, S) skin that is occluded, or that the model cannot explain."""
        ...

    @property
    def camera(self) -> WeakPerspective | Pinhole: ...

    @property
    def cam_from_head(self) -> Rigid: ...

    @property
    def coefficients(self) -> Coefficients: ...

    @property
    def albedo(self) -> Floats:
        """(A,) standard deviations."""
        ...

    @property
    def light(self) -> Floats:
        """(9, 3) spherical harmonics in cam."""
        ...

    @property
    def landmarks(self) -> Floats:
        """(68, 2) of the fitted face."""
        ...


@dataclass(frozen=True, eq=False)
class FittedHead:
    """The head that was fitted to a photo. Pixels are those of the crop."""

    recovery: ExplainedPhoto
    model: MorphableModel
    vertices: Float[Array, "V 3"]  # metres, cam
    normals: Float[Array, "V 3"]  # unit, cam
    frame: Frame  # of the crop
    skin: Bool[Array, "S S"]  # pixels whose surface is face, lips or brows

    @property
    def size(self) -> int:
        """Pixels along a side of the crop."""
        return len(self.recovery.crop)

    @property
    def unit(self) -> float:
        """Pixels for each pixel of a crop of ``REFERENCE_SIDE``."""
        return self.size / REFERENCE_SIDE

    @property
    def pixel(self) -> float:
        """Metres that a pixel spans at the head."""
        camera = self.recovery.camera
        if isinstance(camera, Pinhole):
            return float(self.recovery.cam_from_head.translation[2]) / camera.focal
        return 1.0 / camera.scale

    @cached_property
    def outside(self) -> Floats:
        """(S, S) metres from the head's silhouette; 0 inside it."""
        mask = (~self.frame.mask).astype(np.uint8)
        return np.asarray(cv2.distanceTransform(mask, cv2.DIST_L2, 5) * self.pixel)

    @cached_property
    def height(self) -> Floats:
        """(S, S) height of each pixel in the face: 0 at the chin, 1 at the eyes."""
        chin, up = self.recovery.landmarks[CHIN], head_up(self.recovery.landmarks)
        rows, columns = np.mgrid[: self.size, : self.size] + 0.5
        return np.asarray((columns - chin[0]) * up[0] + (rows - chin[1]) * up[1]) / float(up @ up)

    def mask_region(self, name: str) -> Bools:
        """(S, S) where a region of the model is visible; nowhere if the model has no such one."""
        member = np.zeros(len(self.model.faces) + 1, dtype=bool)  # the last is the background's -1
        if name in self.model.region_names:
            member[self.model.find_triangles(name)] = True
        return np.asarray(member[self.frame.triangle] & self.frame.mask)

    def fill_hull(self, points: Floats, margin: float = 0.0) -> Bytes:
        """(S, S) 1 in the convex hull of (N, 2) points and within ``margin`` px of it, else 0."""
        out = np.zeros((self.size, self.size), dtype=np.uint8)
        outline = cv2.convexHull(np.round(points).astype(np.int32))
        cv2.fillConvexPoly(out, outline, 1)
        if margin:
            cv2.polylines(out, [outline], True, 1, max(round(2.0 * margin), 1))
        return out


def build_fitted_head(
    recovery: ExplainedPhoto, model: MorphableModel, *, vertices: Floats | None = None
) -> FittedHead:
    """The head of an explained photo. Raises ValueError when that is of another model.

    ``vertices``: (V, 3) metres in ``head``, where they are not those of the coefficients.
    """
    in_head = model.vertices(recovery.coefficients) if vertices is None else vertices
    vertices = recovery.cam_from_head.apply(in_head)
    size = recovery.crop.shape[0]
    frame = render(vertices, model.faces, recovery.camera, (size, size))
    return FittedHead(
        recovery,
        model,
        vertices,
        vertex_normals(vertices, model.faces),
        frame,
        mask_skin(frame, model),
    )


def mask_skin(frame: Frame, model: MorphableModel) -> Bools:
    """(H, W) pixels of a frame that show skin: face, lips or brows."""
    skin = np.zeros(len(model.faces) + 1, dtype=bool)  # the last row is the background's -1
    skin[skin_triangles(model)] = True
    return np.asarray(skin[frame.triangle])
