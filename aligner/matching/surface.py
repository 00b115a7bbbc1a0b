"""The fitted mesh of a face as its camera sees it: surface points of pixels, and their pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from dff.aligner.alignment import Alignment
from dff.face.arrays import Array, Bools, Float, Floats, Integer, Ints
from dff.face.geometry.camera import Box, NearPerspective
from dff.face.geometry.mesh import SurfacePoints
from dff.face.render.frame import Frame, render
from dff.face.render.kernels import smooth_normals


@dataclass(frozen=True)
class Projection:
    """N surface points in a photo."""

    px: Float[Array, "points 2"]  # pixels of the photo
    facing: Float[Array, " points"]  # cosine to the camera of the smooth surface
    behind: Float[Array, " points"]  # metres behind the visible surface of the mesh, at least 0


@dataclass(frozen=True, eq=False)
class FaceSurface:
    """A fitted mesh in its camera, and the frame that it makes in a part of the photo."""

    faces: Integer[Array, "triangles 3"]
    cam: Float[Array, "vertices 3"]  # metres in ``cam``
    normal: Float[Array, "vertices 3"]  # smooth, in ``cam``
    camera: NearPerspective  # of the photo
    corner: Float[Array, " 2"]  # pixels of the photo, upper left corner of the frame
    scale: float  # frame pixels for each pixel of the photo
    frame: Frame

    @staticmethod
    def of(alignment: Alignment, faces: Ints, part: Box, side: int) -> FaceSurface:
        """Render an alignment's mesh in ``part`` of its photo, ``side`` pixels along its longer
        side.
        """
        cam = alignment.cam_from_head.apply(alignment.vertices)
        scale = side / max(part.width, part.height)
        corner = np.array([part.x0, part.y0])
        size = max(1, round(part.height * scale)), max(1, round(part.width * scale))
        frame = render(cam, faces, alignment.camera.cropped(corner, scale), size)
        normal = smooth_normals(cam, faces)
        return FaceSurface(faces, cam, normal, alignment.camera, corner, scale, frame)

    def locate(self, px: Floats, reach: float) -> tuple[SurfacePoints, Bools]:
        """The visible surface points at (N, 2) pixels of the photo, and whether there are any.

        Pixels beside the mesh get its nearest visible point within ``reach`` pixels of the photo.
        """
        mask = self.frame.mask
        cell = np.floor((px - self.corner) * self.scale).astype(int)
        inside = ((cell >= 0) & (cell < mask.shape[::-1])).all(1)
        column, row = np.clip(cell, 0, np.array(mask.shape[::-1]) - 1).T
        if not mask.any():
            return self._points(row, column), np.zeros(len(px), dtype=bool)
        distance, nearest = ndimage.distance_transform_edt(~mask, return_indices=True)
        found = inside & (distance[row, column] <= reach * self.scale)
        return self._points(nearest[0, row, column], nearest[1, row, column]), found

    def _points(self, row: Ints, column: Ints) -> SurfacePoints:
        triangle = np.maximum(self.frame.triangle[row, column], 0)
        return SurfacePoints(triangle, self.frame.barycentric[row, column])

    def project(self, points: SurfacePoints) -> Projection:
        """Where N surface points lie in the photo, and what hides them."""
        return self._project(points.of(self.cam, self.faces), points.of(self.normal, self.faces))

    def project_vertices(self, vertices: Ints) -> Projection:
        """The same for (N,) vertices."""
        return self._project(self.cam[vertices], self.normal[vertices])

    def _project(self, cam: Floats, normal: Floats) -> Projection:
        px = self.camera.px_from_cam(cam)
        length = np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        shape = self.frame.triangle.shape
        cell = np.floor((px - self.corner) * self.scale).astype(int)
        inside = ((cell >= 0) & (cell < shape[::-1])).all(1)
        column, row = np.clip(cell, 0, np.array(shape[::-1]) - 1).T
        covered = inside & self.frame.mask[row, column]
        behind = np.where(covered, cam[:, 2] - self.frame.depth[row, column], 0.0)
        return Projection(px, -normal[:, 2] / length, np.maximum(behind, 0.0))
