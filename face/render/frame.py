"""Frames of a rendered mesh: the surface point of each pixel, colours, textures, visibility.

Backends decide only which triangle a pixel centre shows; ``resolve`` computes the rest, so a frame
follows exactly from its triangle ids, vertices and camera.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dff.face.arrays import Array, Bools, Float, Floats, Integer, Ints
from dff.face.geometry.camera import Camera, Pinhole
from dff.face.geometry.mesh import SurfacePoints
from dff.face.render import kernels, zbuffer
from dff.face.render.visibility import Visibility

Image = NDArray[np.float32]

OUTLINE = 0.01
"""Depth step in metres between neighbouring pixels that makes an outline."""

OCCLUDER = -2
"""Triangle id of a pixel that shows an occluder in front of the mesh."""

HIDDEN_DEPTH = 0.004
"""Metres behind the nearest surface from which on a surface point counts as hidden."""

PIXEL_CENTRES: Floats = np.empty((0, 0, 2))
"""Sample positions of a frame: the centres of its pixels."""


@dataclass(frozen=True)
class Frame:
    """The surface point at each pixel centre. Raises ValueError when shapes disagree."""

    triangle: Integer[
        Array, "rows columns"
    ]  # int32 row of the mesh's faces; -1 background, or OCCLUDER
    # weights of the triangle's corners on the surface, none negative; background 0
    barycentric: Float[Array, "rows columns 3"]
    depth: Float[Array, "rows columns"]  # metres along the z axis of ``cam``; background 0
    # smooth unit normals in ``cam``, outward also where the inside is visible; background 0
    normal: Float[Array, "rows columns 3"]

    def __post_init__(self) -> None:
        size = self.triangle.shape
        if len(size) != 2 or self.depth.shape != size:
            raise ValueError("Frame.triangle and Frame.depth want one (H, W)")
        if self.barycentric.shape != (*size, 3) or self.normal.shape != (*size, 3):
            raise ValueError("Frame.barycentric and Frame.normal want (H, W, 3)")

    @property
    def mask(self) -> Bools:
        """(H, W) where the mesh is visible."""
        return self.triangle >= 0

    def points(self) -> SurfacePoints:
        """The (N,) surface points that the pixels of ``mask`` show, row by row."""
        seen = self.mask
        return SurfacePoints(self.triangle[seen], self.barycentric[seen])


@dataclass(frozen=True, eq=False)
class Mesh:
    """A mesh in front of a camera, and its projection."""

    vertices: Float[Array, "vertices 3"]  # metres in ``cam``
    faces: Integer[Array, "faces 3"]  # int32
    camera: Camera
    px: Float[Array, "vertices 2"]  # pixels; NaN behind the camera
    weight: Float[Array, " vertices"]  # the camera's ``screen_weight``
    screen_depth: Float[Array, " vertices"]

    @staticmethod
    def of(vertices_cam: Floats, faces: Ints, camera: Camera) -> Mesh:
        """Raises ValueError for vertices that are not finite and triangles that name no vertex."""
        vertices, triangles = _checked(vertices_cam, faces)
        if isinstance(camera, Pinhole):  # the same numbers as the camera's own, in one pass
            px, weight, depth = (
                np.empty((len(vertices), 2)),
                np.empty(len(vertices)),
                np.empty(len(vertices)),
            )
            kernels.through_pinhole(vertices, float(camera.focal), camera.centre, px, weight, depth)
        else:
            px, weight = _projected(vertices, camera)
            with np.errstate(divide="ignore", invalid="ignore"):
                depth = np.ascontiguousarray(camera.screen_depth(vertices), dtype=np.float64)
        return Mesh(vertices, triangles, camera, px, weight, depth)

    def seen(
        self, size: tuple[int, int], visibility: Visibility = zbuffer.visibility
    ) -> NDArray[np.int32]:
        """(H, W) triangles at ``size`` = (height, width). Raises ValueError for an empty size."""
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"an image wants a positive (height, width), got {size}")
        return visibility(self.px, self.screen_depth, self.faces, size)


def render(
    vertices_cam: Floats,
    faces: Ints,
    camera: Camera,
    size: tuple[int, int],
    *,
    visibility: Visibility = zbuffer.visibility,
) -> Frame:
    """The frame of (V, 3) ``vertices_cam``, metres, and (F, 3) ``faces``.

    ``size``: (height, width) in pixels.

    Triangles that reach behind the camera are left out. Raises ValueError for vertices that are not
    finite, triangles that name no vertex, or an empty size.
    """
    mesh = Mesh.of(vertices_cam, faces, camera)
    return _resolve(mesh.seen(size, visibility), mesh.vertices, mesh.faces, mesh.px, mesh.weight)


def resolve(triangle_ids: Ints, vertices_cam: Floats, faces: Ints, camera: Camera) -> Frame:
    """The frame of (H, W) ``triangle_ids``: the same numbers that ``render`` gave.

    -1 is background; OCCLUDER stays, without a surface point.

    Raises ValueError where ``render`` does, and for ids that name no triangle or one that reaches
    behind the camera.
    """
    vertices, triangles = _checked(vertices_cam, faces)
    ids = np.ascontiguousarray(triangle_ids, dtype=np.int32)
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"triangle ids want (H, W), got {ids.shape}")
    if ids.min() < OCCLUDER or ids.max() >= len(triangles):
        raise ValueError(
            f"triangle ids from {ids.min()} to {ids.max()} for {len(triangles)} triangles"
        )
    return _resolve(ids, vertices, triangles, *_projected(vertices, camera))


def supersampled(
    frame: Frame,
    vertices_cam: Floats,
    faces: Ints,
    camera: Camera,
    colour: Callable[[Frame], Image],
    *,
    factor: int = 3,
    visibility: Visibility = zbuffer.visibility,
) -> tuple[Image, Image]:
    """Anti-aliased colours of a ``frame``: (H, W, C) colours times coverage, (H, W) coverage.

    ``colours + (1 - coverage) * background`` is the image. ``colour`` gives the (H, W, C) colours
    of a frame. Only pixels at outlines (of the background, or where depth jumps by OUTLINE) are
    split into ``factor`` x ``factor`` samples about the pixel's centre, which ``colour`` gets as a
    frame of (pixels, samples). Each sample is coloured by itself: the reference implementation of
    ``shading.antialias``. Raises ValueError for an even factor, which has no middle sample.
    """
    if factor < 1 or factor % 2 == 0:
        raise ValueError(f"supersampling wants an odd factor, got {factor}")
    height, width = frame.triangle.shape
    colours, coverage = colour(frame), frame.mask.astype(np.float32)
    outline = np.zeros((height, width), dtype=np.bool_)
    kernels.edges(frame.triangle, frame.depth, OUTLINE, outline)
    row, column = np.nonzero(outline)
    vertices, triangles = _checked(vertices_cam, faces)
    px, weight = _projected(vertices, camera)
    with np.errstate(divide="ignore", invalid="ignore"):
        fine = visibility(
            px * factor, camera.screen_depth(vertices), triangles, (height * factor, width * factor)
        )
    within_y, within_x = np.divmod(np.arange(factor * factor), factor)
    y, x = row[:, None] * factor + within_y, column[:, None] * factor + within_x
    xy = (np.stack([x, y], axis=2) + 0.5) / factor
    samples = _resolve(fine[y, x], vertices, triangles, px, weight, xy)
    if len(row):
        colours[row, column] = np.where(samples.mask[..., None], colour(samples), 0.0).mean(axis=1)
        coverage[row, column] = samples.mask.mean(axis=1)
    return colours, coverage


def interpolate(frame: Frame, values: Floats, faces: Ints) -> Image:
    """(H, W, C) of (V, C) values at the vertices; background 0."""
    _, triangles = _checked(np.zeros((len(values), 3)), faces)
    out = np.zeros((*frame.triangle.shape, values.shape[1]), dtype=np.float32)
    values = np.ascontiguousarray(values, dtype=np.float64)
    kernels.interpolate(_ids_within(frame, triangles), frame.barycentric, values, triangles, out)
    return out


def sample_texture(frame: Frame, texture: Floats, uv: Floats, uv_faces: Ints) -> Image:
    """(H, W, C) bilinear samples of an (S, T, C) texture; background 0.

    (T, 2) ``uv`` in [0, 1]: u right, v down the texture; texel = uv * size, the first texel's
    centre at 0.5. Beyond the outermost texel centres the border is repeated.
    """
    _, triangles = _checked(np.zeros((len(uv), 3)), uv_faces)
    if texture.ndim != 3 or texture.size == 0 or uv.shape[1:] != (2,):
        raise ValueError(
            f"sample_texture wants (S, T, C) and (T, 2), got {texture.shape} and {uv.shape}"
        )
    if not np.isfinite(uv).all():
        raise ValueError("uv wants finite numbers")
    out = np.zeros((*frame.triangle.shape, texture.shape[2]), dtype=np.float32)
    image = np.ascontiguousarray(texture, dtype=np.float32)
    places = np.ascontiguousarray(uv, dtype=np.float64)
    kernels.sample_texture(
        _ids_within(frame, triangles), frame.barycentric, image, places, triangles, out
    )
    return out


def shaded(frame: Frame, albedo: Floats, light: Floats) -> Image:
    """(H, W, 3) colours: (H, W, 3) ``albedo`` times the shading under (9, 3) ``light``.

    Shading is that of ``dff.face.geometry.lighting``.
    """
    if albedo.shape != frame.normal.shape or light.shape != (9, 3):
        raise ValueError(
            f"shaded wants {frame.normal.shape} and (9, 3), got {albedo.shape} and {light.shape}"
        )
    out = np.zeros(frame.normal.shape, dtype=np.float32)
    colours = np.ascontiguousarray(albedo, dtype=np.float32)
    kernels.shaded(
        frame.triangle, frame.normal, colours, np.ascontiguousarray(light, dtype=np.float64), out
    )
    return out


class DepthImage(Protocol):
    """The part of a rendered image that ``visible`` reads."""

    @property
    def triangle(self) -> NDArray[np.int32]: ...

    @property
    def depth(self) -> Image: ...


def visible(frame: DepthImage, points_cam: Floats, camera: Camera, tolerance: float) -> Bools:
    """(N,) whether each of (N, 3) surface points is visible in ``frame``.

    A point is hidden when all four pixel centres round it show something nearer by more than
    ``tolerance`` metres, and when it falls outside the image or behind the camera; so points on the
    silhouette are visible. An OCCLUDER without depth is nearer than anything.
    """
    points = np.ascontiguousarray(points_cam, dtype=np.float64)
    px, _ = _projected(points, camera)
    out = np.empty(len(points), dtype=np.bool_)
    kernels.unoccluded(frame.triangle, frame.depth, px, points[:, 2].copy(), float(tolerance), out)
    return out


def _checked(vertices: Floats, faces: Ints) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    points = np.ascontiguousarray(vertices, dtype=np.float64)
    triangles = np.ascontiguousarray(faces, dtype=np.int32)
    if points.ndim != 2 or points.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(
            f"a mesh wants (V, 3) and (F, 3), got {points.shape} and {triangles.shape}"
        )
    if not kernels.finite(points):
        raise ValueError("vertices want finite numbers")
    if not kernels.within(triangles, len(points)):
        raise ValueError("a triangle names no vertex")
    return points, triangles


def _projected(
    vertices: NDArray[np.float64], camera: Camera
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(V, 2) pixels and (V,) screen weights, both NaN for what lies behind the camera."""
    weight = np.asarray(camera.screen_weight(vertices), dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        px = np.asarray(camera.px_from_cam(vertices), dtype=np.float64)
    behind = np.isnan(weight)
    if behind.any():
        px[behind] = np.nan
    return px, weight


def _ids_within(frame: Frame, faces: NDArray[np.int32]) -> NDArray[np.int32]:
    if frame.triangle.size and frame.triangle.max() >= len(faces):
        raise ValueError("the frame shows triangles that this mesh does not have")
    return frame.triangle


def _resolve(
    ids: NDArray[np.int32],
    vertices: NDArray[np.float64],
    faces: NDArray[np.int32],
    px: NDArray[np.float64],
    weight: NDArray[np.float64],
    xy: Floats = PIXEL_CENTRES,
) -> Frame:
    size = ids.shape
    barycentric = np.zeros((*size, 3), dtype=np.float32)
    depth = np.zeros(size, dtype=np.float32)
    normal = np.zeros((*size, 3), dtype=np.float32)
    normals = kernels.smooth_normals(vertices, faces)
    if not kernels.resolve(
        ids, xy, vertices, faces, px, weight, normals, barycentric, depth, normal
    ):
        raise ValueError("triangle ids name a triangle that reaches behind the camera")
    return Frame(ids, barycentric, depth, normal)


__all__ = [
    "HIDDEN_DEPTH",
    "OCCLUDER",
    "Frame",
    "Mesh",
    "interpolate",
    "render",
    "resolve",
    "sample_texture",
    "shaded",
    "supersampled",
    "visible",
]
