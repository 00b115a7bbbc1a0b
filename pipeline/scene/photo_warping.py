"""3D face profiling: the photo itself, rotated with its head.

The face is the fitted model in the photo's own colours, its light included: a pixel takes the photo
where the photo shows that point of the surface well, and else the completed texture under the
photo's light. So the ground truth is that of the model's rendering, as in every other view.
Around the head lies a depth-warped image mesh: a grid over the photo whose depth continues that of
the head's silhouette. Near the head it rotates with it, towards the photo's border it stays; where
it is stretched, the photo's blurred surroundings show. Source: Zhu et al., "Face Alignment Across
Large Poses: A 3D Solution" (2016), section 4, where it made 300W-LP.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numba
import numpy as np

from dff.face.arrays import Array, Float, Floats, Integer, Ints
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.interpolation import bilinear_cell, smoothstep
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import Rigid, angles_from_rotation, rotation_from_angles
from dff.face.model.landmarks import CHIN, head_up
from dff.face.model.morphable import MorphableModel
from dff.face.numba_cache import CACHE
from dff.face.render import zbuffer
from dff.face.render.frame import HIDDEN_DEPTH, Frame, render, sample_texture
from dff.pipeline.scene.poses import rotate_in_plane
from dff.pipeline.subjects.subject import PhotoScene


@dataclass(frozen=True)
class ProfilingConfig:
    """The distribution of rotated photos. Angles are degrees."""

    outward: float = 45.0  # of yaw that a head may turn further away than in its photo
    inward: float = 18.0  # of yaw back towards the camera
    max_yaw: float = 90.0
    frontal: float = 8.0  # of yaw below which both ways are outward
    pitch_sd: float = 7.0  # cut at twice that
    turn_sd: float = 7.0  # in the image; cut at twice that
    max_zoom: float = 1.25  # a view shows the photo's crop or a part of it
    centre_sd: float = 0.2  # of the part's place, over the room that it has


@dataclass(frozen=True)
class PhotoWarpConfig:
    """The image mesh, and how photo, texture and surroundings are blended.

    Pairs are the ends of a smooth step. Lengths are metres, angles degrees.
    """

    cells: int = 48  # of the mesh along a side
    reach: tuple[float, float] = (0.03, 0.13)  # from the silhouette: rotates fully, stays
    border: float = 0.03  # from the crop's border within which the mesh begins to stay
    body: tuple[float, float] = (-0.9, -0.2)  # height: stays, rotates; 0 the chin, 1 the eyes
    recession: float = 0.4  # depth gained for each metre from the silhouette
    stretch: tuple[float, float] = (1.8, 3.2)  # lengthening of the mesh: opaque, gone
    departure: float = 12.0  # of rotation after which what was behind the hair is shown
    # Cosine towards the photo's camera over that towards the view's: texture, photo.
    obliqueness: tuple[float, float] = (0.30, 0.70)
    # Of rotation: the photo's silhouettes are trusted, are not.
    silhouettes: tuple[float, float] = (3.0, 20.0)
    hidden_depth: float = HIDDEN_DEPTH  # behind the nearest surface: the photo does not show it


PROFILING = ProfilingConfig()
WARP = PhotoWarpConfig()


def draw_pose(
    photo: PhotoScene, *, rng: np.random.Generator, config: ProfilingConfig = PROFILING
) -> Rigid:
    """Draw a pose near the photo's: mostly turned further away, up to a profile."""
    c = config
    yaw, pitch, roll = angles_from_rotation(photo.cam_from_head.rotation)
    way = float(np.sign(yaw)) if abs(yaw) > c.frontal else (1.0 if rng.random() < 0.5 else -1.0)
    turned = float(np.clip(yaw + way * rng.uniform(-c.inward, c.outward), -c.max_yaw, c.max_yaw))
    nod = float(np.clip(rng.normal(0.0, c.pitch_sd), -2.0 * c.pitch_sd, 2.0 * c.pitch_sd))
    turn = float(np.clip(rng.normal(0.0, c.turn_sd), -2.0 * c.turn_sd, 2.0 * c.turn_sd))
    rotation = rotate_in_plane(turn) @ rotation_from_angles(turned, pitch + nod, roll)
    return Rigid(rotation, photo.cam_from_head.translation)


def draw_camera(
    photo: PhotoScene, size: int, *, rng: np.random.Generator, config: ProfilingConfig = PROFILING
) -> Pinhole | WeakPerspective:
    """The photo's camera on a random square part of the crop, scaled to ``size`` px."""
    zoom = float(rng.uniform(1.0, config.max_zoom))
    room = len(photo.crop) * (1.0 - 1.0 / zoom)
    corner = room * np.clip(0.5 + config.centre_sd * rng.standard_normal(2), 0.0, 1.0)
    return photo.camera.cropped(corner, size / len(photo.crop) * zoom)


def scale_camera(photo: PhotoScene, size: int) -> Pinhole | WeakPerspective:
    """The photo's camera on its whole crop, scaled to ``size`` px."""
    return photo.camera.cropped(np.zeros(2), size / len(photo.crop))


@dataclass(frozen=True, eq=False)
class ImageMesh:
    """A photo prepared for 3D face profiling: all that its views share."""

    photo: PhotoScene
    config: PhotoWarpConfig
    # Of the model's vertices in the photo: px, depth in metres, cosine towards the camera
    surface: Float[Array, "V 4"]
    depth: Float[Array, "S S"]  # metres, of the model in the photo; background 0
    nodes: Float[Array, "G 3"]  # metres, cam
    nodes_px: Float[Array, "G 2"]  # of the photo
    fixed: Float[Array, " G"]  # 0: rotates with the head, 1: stays
    faces: Integer[Array, "T 3"]  # of the nodes, without what the head hides
    colours: Float[Array, "S S 4"]  # float32: RGB of the photo; the person's alpha matte
    leaving: Float[Array, "S S"]  # float32 0..1: how far what is there rotates away


def build_image_mesh(
    photo: PhotoScene, head: Floats, model: MorphableModel, config: PhotoWarpConfig = WARP
) -> ImageMesh:
    """The image mesh of a photo whose face has (V, 3) ``head`` vertices."""
    vertices = photo.cam_from_head.apply(head)
    size = len(photo.crop)
    frame = render(vertices, model.faces, photo.camera, (size, size))
    cosine = -vertex_normals(vertices, model.faces)[:, 2]
    vertices_px = photo.camera.px_from_cam(vertices)
    landmarks = vertices_px[model.landmarks.vertex]
    px = _place_nodes(size, config.cells)
    mask = frame.mask.astype(np.uint8)
    pixel = _pixel_size(photo)
    outside = _nearest(cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5), px) * pixel
    inside = _nearest(cv2.distanceTransform(mask, cv2.DIST_L2, 5), px)
    silhouette = mask - cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=0)
    depth = _continue_depth(frame.depth, silhouette.astype(np.float32), config.cells + 1)
    depth = depth + config.recession * outside
    fixed = _fix_nodes(px, outside, landmarks, size, pixel, config)
    faces = _connect_nodes(config.cells)
    colours, leaving = _split_person(photo, fixed)
    return ImageMesh(
        photo=photo,
        config=config,
        surface=np.column_stack([vertices_px, vertices[:, 2], cosine]),
        depth=frame.depth,
        nodes=_unproject(photo, px, depth),
        nodes_px=px,
        fixed=fixed,
        faces=faces[(inside[faces] < 1.5 * size / config.cells).any(1)],
        colours=colours,
        leaving=leaving,
    )


def _place_nodes(size: int, cells: int) -> Floats:
    """(G, 2) px of a regular grid over an image of ``size`` px, row by row."""
    along = np.arange(cells + 1)
    return (np.stack(np.meshgrid(along, along), axis=2) * (size / cells)).reshape(-1, 2)


def _connect_nodes(cells: int) -> Ints:
    """(T, 3) int32: two triangles for each cell of the grid."""
    nodes = cells + 1
    corner = np.arange(cells * nodes).reshape(cells, nodes)[:, :-1].ravel()
    upper = np.stack([corner, corner + nodes, corner + 1], 1)
    lower = np.stack([corner + 1, corner + nodes, corner + nodes + 1], 1)
    return np.concatenate([upper, lower]).astype(np.int32)


def _fix_nodes(
    px: Floats, outside: Floats, landmarks: Floats, size: int, pixel: float, config: PhotoWarpConfig
) -> Floats:
    """(G,) 0..1: how far nodes at (G, 2) px, (G,) metres outside the silhouette, stay in place."""
    border = np.minimum(px, size - px).min(1) * pixel
    up = head_up(landmarks)
    height = (px - landmarks[CHIN]) @ up / max(float(up @ up), 1.0)
    near = 1.0 - smoothstep(outside, *config.reach)
    inside = smoothstep(border, 0.0, config.border)
    return np.asarray(1.0 - near * inside * smoothstep(height, *config.body))


def _split_person(photo: PhotoScene, fixed: Floats) -> tuple[Floats, Floats]:
    """(S, S, 4) colours and matte of the photo, and (S, S) how far it rotates away with the head.

    Both float32; ``fixed`` (G,) of the grid's nodes.
    """
    size, nodes = len(photo.crop), round(len(fixed) ** 0.5)
    matte = cv2.resize(photo.surroundings[..., 3], (size, size), interpolation=cv2.INTER_LINEAR)
    grown = cv2.dilate(matte, np.ones((5, 5), np.uint8), iterations=max(size // 128, 1))
    moving = cv2.resize(1.0 - fixed.reshape(nodes, nodes).astype(np.float32), (size, size))
    colours = np.dstack([photo.crop[..., :3], matte]).astype(np.float32)
    return colours, grown * np.minimum(2.0 * moving, 1.0)


def _pixel_size(photo: PhotoScene) -> float:
    """Metres that a pixel spans at the head's distance."""
    if isinstance(photo.camera, Pinhole):
        return float(photo.cam_from_head.translation[2]) / photo.camera.focal
    return 1.0 / photo.camera.scale


def _unproject(photo: PhotoScene, px: Floats, depth: Floats) -> Floats:
    """(N, 3) points in cam of (N, 2) pixels at (N,) depths."""
    camera = photo.camera
    if isinstance(camera, Pinhole):
        return np.column_stack([(px - camera.centre) * (depth / camera.focal)[:, None], depth])
    return np.column_stack([(px - camera.centre) / camera.scale, depth])


def _nearest(image: Floats, px: Floats) -> Floats:
    """(N,) nearest values of an (H, W) image at (N, 2) pixels."""
    column, row = np.clip(px, 0, np.array(image.shape[::-1]) - 1).astype(np.int64).T
    return np.asarray(image[row, column], dtype=np.float64)


def _continue_depth(depth: Floats, silhouette: Floats, nodes: int) -> Floats:
    """(nodes * nodes,) depth of an (S, S) ``silhouette`` continued over the whole image.

    The depth becomes smoother away from the silhouette.
    """
    weight = cv2.resize(silhouette, (nodes, nodes), interpolation=cv2.INTER_AREA)
    values = cv2.resize(silhouette * depth, (nodes, nodes), interpolation=cv2.INTER_AREA)
    if not weight.any():
        return np.full(nodes * nodes, float(depth.max(initial=0.0)) or 1.0)
    total, sure = np.zeros_like(values), np.zeros_like(weight)
    spread = 1.0
    while spread < nodes:
        blurred = [
            cv2.GaussianBlur(field, (0, 0), spread, borderType=cv2.BORDER_REPLICATE) * (1.0 - sure)
            for field in (weight, values)
        ]
        total += blurred[1]
        sure = sure + blurred[0]
        spread *= 2.0
    return np.asarray((total / np.maximum(sure, 1e-9)).ravel(), dtype=np.float64)


def angle_between(a: Rigid, b: Rigid) -> float:
    """Degrees of rotation between two poses."""
    return float(
        np.rad2deg(np.arccos(np.clip((np.trace(a.rotation @ b.rotation.T) - 1.0) / 2.0, -1.0, 1.0)))
    )


def colour_face(
    mesh: ImageMesh, frame: Frame, cam_from_head: Rigid, model: MorphableModel
) -> Floats:
    """(H, W, 4) float32: RGB of the model in ``frame``, and the share covered by clothes.

    ``cam_from_head`` is the pose in the frame. The frame's background counts as covered.
    """
    photo, config = mesh.photo, mesh.config
    out = sample_texture(frame, photo.lit_texture, model.uv, model.uv_faces)
    angle = angle_between(cam_from_head, photo.cam_from_head)
    _project_photo(
        frame.triangle,
        frame.barycentric,
        frame.normal,
        np.ascontiguousarray(model.faces, dtype=np.int32),
        mesh.surface,
        photo.crop,
        mesh.depth,
        float(smoothstep(np.array(angle), *config.silhouettes)),
        config.obliqueness,
        config.hidden_depth,
        out,
    )
    out[frame.triangle < 0, 3] = 1.0
    return out


@numba.njit(cache=CACHE, nogil=True)
def _interpolate(image, left, top, n, a, b, c, d):  # type: ignore[no-untyped-def]
    """Channel ``n`` of the four texels from (left, top) on.

    Their weights are ``a`` (upper left), ``b`` (upper right), ``c`` and ``d`` (the lower ones).
    """
    upper = a * image[top, left, n] + b * image[top, left + 1, n]
    return upper + c * image[top + 1, left, n] + d * image[top + 1, left + 1, n]


@numba.njit(cache=CACHE, nogil=True)
def _blend(pixel, share, image, left, top, a, b, c, d):  # type: ignore[no-untyped-def]
    """Blend a (3,) pixel with the image's colour there, of which it takes a ``share``."""
    for n in range(3):
        pixel[n] += share * (_interpolate(image, left, top, n, a, b, c, d) - pixel[n])


@numba.njit(cache=CACHE, nogil=True)
def _project_photo(  # type: ignore[no-untyped-def]
    ids,
    barycentric,
    normal,
    faces,
    surface,
    photo,
    depth,
    rotated,
    obliqueness,
    hidden_depth,
    out,
):
    """Blend the photo over ``out`` (the lit texture) where it shows the surface.

    ``rotated`` 0..1: how little the photo's silhouettes are trusted.
    """
    height, width = ids.shape
    rows, columns = depth.shape
    for row in range(height):
        for column in range(width):
            f = ids[row, column]
            if f < 0:
                continue
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            a, b, c = (
                barycentric[row, column, 0],
                barycentric[row, column, 1],
                barycentric[row, column, 2],
            )
            x = a * surface[i, 0] + b * surface[j, 0] + c * surface[k, 0] - 0.5
            y = a * surface[i, 1] + b * surface[j, 1] + c * surface[k, 1] - 0.5
            z = a * surface[i, 2] + b * surface[j, 2] + c * surface[k, 2]
            shown = a * surface[i, 3] + b * surface[j, 3] + c * surface[k, 3]
            if not (-0.5 <= x <= columns - 0.5 and -0.5 <= y <= rows - 0.5):
                continue
            left, top, fx, fy = bilinear_cell(x, y, columns, rows)
            seen = False
            for r in range(top, top + 2):
                for q in range(left, left + 2):
                    if depth[r, q] == 0.0 or depth[r, q] >= z - hidden_depth:
                        seen = True
            if not seen:
                continue
            a, b, c, d = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
            share = 1.0
            if rotated > 0.0:
                ratio = max(shown, 0.0) / max(-normal[row, column, 2], 0.05)
                low, high = obliqueness
                share = min(max((ratio - low) / (high - low), 0.0), 1.0)
                share = share * share * (3.0 - 2.0 * share)
                share *= _interpolate(photo, left, top, 3, a, b, c, d)
                share = 1.0 - rotated * (1.0 - share)
            if share > 0.0:
                _blend(out[row, column], share, photo, left, top, a, b, c, d)


def warp_surroundings(
    mesh: ImageMesh, cam_from_head: Rigid, camera: Pinhole | WeakPerspective, size: int
) -> Floats:
    """(size, size, 3) float32: the photo around a head that is rotated to ``cam_from_head``."""
    photo, config = mesh.photo, mesh.config
    angle = angle_between(cam_from_head, photo.cam_from_head)
    turn = cam_from_head.rotation @ photo.cam_from_head.rotation.T
    rotated = (mesh.nodes - photo.cam_from_head.translation) @ turn.T + cam_from_head.translation
    vertices = rotated + mesh.fixed[:, None] * (mesh.nodes - rotated)
    stretch = _measure_stretch(photo.camera.px_from_cam(vertices), mesh.nodes_px, config.cells)
    opacity = 1.0 - smoothstep(stretch, *config.stretch)
    px = camera.px_from_cam(vertices)
    zoom = _scale(camera) / _scale(photo.camera)
    out = np.empty((size, size, 3), dtype=np.float32)
    _compose(
        zbuffer.visibility(px, camera.screen_depth(vertices), mesh.faces, (size, size)),
        mesh.faces,
        px,
        np.column_stack([mesh.nodes_px, opacity]),
        mesh.colours,
        mesh.leaving,
        photo.surroundings,
        zoom,
        camera.centre - photo.camera.centre * zoom,
        float(smoothstep(np.array(angle), 0.0, config.departure)),
        out,
    )
    return out


@numba.njit(cache=CACHE, nogil=True)
def _corners(x, y, columns, rows):  # type: ignore[no-untyped-def]
    """The upper left texel of a bilinear sample at pixel (x, y), and the float32 place in it."""
    left, top, u, v = bilinear_cell(x - 0.5, y - 0.5, columns, rows)
    return left, top, np.float32(u), np.float32(v)


@numba.njit(cache=CACHE, nogil=True)
def _compose(  # type: ignore[no-untyped-def]
    ids, faces, px, source, photo, leaving, surroundings, zoom, shift, departed, out
):
    """Compose the photo, its surroundings where the head has left, and the image mesh over both.

    The mesh (``ids`` of its triangles) covers as far as the person's matte. ``source`` (G, 3) holds
    for the nodes at (G, 2) ``px`` where in the photo they were, and the mesh's opacity.
    """
    height, width = ids.shape
    rows, columns = leaving.shape
    one = np.float32(1.0)
    ratio = surroundings.shape[1] / columns
    for row in range(height):
        y = (row + 0.5 - shift[1]) / zoom
        for column in range(width):
            x = (column + 0.5 - shift[0]) / zoom
            left, top, u, v = _corners(x, y, columns, rows)
            a, b, c, d = (one - u) * (one - v), u * (one - v), (one - u) * v, u * v
            for n in range(3):
                out[row, column, n] = _interpolate(photo, left, top, n, a, b, c, d)
            gone = a * leaving[top, left] + b * leaving[top, left + 1]
            gone = np.float32(departed) * (
                gone + c * leaving[top + 1, left] + d * leaving[top + 1, left + 1]
            )
            if gone > 0.0:
                left, top, u, v = _corners(
                    x * ratio, y * ratio, surroundings.shape[1], surroundings.shape[0]
                )
                a, b, c, d = (one - u) * (one - v), u * (one - v), (one - u) * v, u * v
                _blend(out[row, column], gone, surroundings, left, top, a, b, c, d)
            if ids[row, column] < 0:
                continue
            i, j, k = (
                faces[ids[row, column], 0],
                faces[ids[row, column], 1],
                faces[ids[row, column], 2],
            )
            x0, y0 = px[j, 0] - px[i, 0], px[j, 1] - px[i, 1]
            x1, y1 = px[k, 0] - px[i, 0], px[k, 1] - px[i, 1]
            area = x0 * y1 - x1 * y0
            if area == 0.0:
                continue
            x2, y2 = column + 0.5 - px[i, 0], row + 0.5 - px[i, 1]
            q, s = (x2 * y1 - x1 * y2) / area, (x0 * y2 - x2 * y0) / area
            # A sliver may cover a pixel's centre by the renderer's grid only, and is no place to go
            # on beyond.
            q = min(max(q, 0.0), 1.0)
            s = min(max(s, 0.0), 1.0 - q)
            p = 1.0 - q - s
            whole = np.float32(p * source[i, 2] + q * source[j, 2] + s * source[k, 2])
            left, top, u, v = _corners(
                p * source[i, 0] + q * source[j, 0] + s * source[k, 0],
                p * source[i, 1] + q * source[j, 1] + s * source[k, 1],
                columns,
                rows,
            )
            a, b, c, d = (one - u) * (one - v), u * (one - v), (one - u) * v, u * v
            whole *= _interpolate(photo, left, top, 3, a, b, c, d)
            if whole > 0.0:
                _blend(out[row, column], whole, photo, left, top, a, b, c, d)


def _scale(camera: Pinhole | WeakPerspective) -> float:
    return camera.focal if isinstance(camera, Pinhole) else camera.scale


def _measure_stretch(px: Floats, before: Floats, cells: int) -> Floats:
    """(G,) the longest edge at each node of the mesh over its length before, for (G, 2) pixels."""
    nodes = cells + 1
    now, was = px.reshape(nodes, nodes, 2), before.reshape(nodes, nodes, 2)
    out = np.zeros((nodes, nodes))
    for axis in (0, 1):
        ratio = np.linalg.norm(np.diff(now, axis=axis), axis=2) / np.linalg.norm(
            np.diff(was, axis=axis), axis=2
        )
        along = np.moveaxis(out, axis, 0)  # a view: writing there writes to ``out``
        ratio = np.moveaxis(ratio, axis, 0)
        along[:-1] = np.maximum(along[:-1], ratio)
        along[1:] = np.maximum(along[1:], ratio)
    return out.ravel()
