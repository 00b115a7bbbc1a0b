"""Profiling: the photo itself, turned with its head; hair, neck and surroundings stay those of the
photo.

The face is the fitted model in the photo's own colours, its light included: a pixel shows the photo
where the photo shows that point of the surface well, and else ``fill``, the completed texture under
the photo's light. So the ground truth is that of the model's rendering, as in every other view.
What lies around the head is a sheet behind it: a grid over the photo whose depth continues the
head's outline. Near the head it turns with it, towards the photo's border it stays; where it is
torn apart, the photo's blurred surroundings show. Source of the idea: Zhu et al., "Face Alignment
Across Large Poses: A 3D Solution" (2016), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numba
import numpy as np

from dff.face.arrays import Floats, Ints
from dff.face.geometry.camera import Pinhole, WeakPerspective
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import (
    Rigid,
    angles_from_rotation,
    rotation_from_angles,
    rotation_from_vector,
)
from dff.face.model.morphable import MorphableModel
from dff.face.render import zbuffer
from dff.face.render.frame import HIDDEN_DEPTH, Frame, render, sample_texture

MODE = "profile"
OUTWARD = 45.0  # degrees of yaw that a head may turn further away from the camera than in its photo
INWARD = 18.0  # degrees back
MAX_YAW = 90.0
FRONTAL = 8.0  # degrees of yaw below which both ways are outward
NOD, TURN = (
    7.0,
    7.0,
)  # degrees, standard deviations of pitch and of the turn in the image; at most twice that
ZOOM = 1.25  # at most: a view shows the photo's crop or a part of it

GRID = 48  # cells of the sheet along a side
REACH = (
    0.03,
    0.13,
)  # metres from the head's outline up to which the sheet turns with it, and where it stays
BORDER = 0.03  # metres from the crop's border at which it begins to stay
BODY = (
    -0.9,
    -0.2,
)  # heights below which all stays, and above which it moves: 0 the chin, 1 the eyes
RECEDING = 0.4  # metres of depth for each metre away from the outline
TORN = (1.8, 3.2)  # lengthening of the sheet from which it begins to fade and is gone
LEFT = 12.0  # degrees of turning after which hair has left its place and shows what was behind it
SHOWN = (
    0.30,
    0.70,
)  # how steeply the photo showed a point, over how steeply the view does: fades in, counts fully
SETTLED = (
    3.0,
    20.0,
)  # degrees of turning from which the photo's silhouettes begin to be mistrusted, and fully are


@dataclass(frozen=True, eq=False)
class PhotoScene:
    """How the photo shows its own face. Raises ValueError when shapes disagree."""

    expression: Floats  # (E,)
    camera: Pinhole | WeakPerspective  # of the photo's crop
    cam_from_head: Rigid
    light: Floats  # (9, 3)
    # (S, S, 4) float32 0..1: the crop, completed where the photo ended; how sure it shows the
    # surface
    photo: Floats
    surroundings: Floats  # (R, R, 4) float32: the crop without the person; where the person stood
    # (T, T, 4) float32 in the model's uv: the whole head in the photo's light; what clothes cover
    fill: Floats

    def __post_init__(self) -> None:
        shapes = [image.shape for image in (self.photo, self.surroundings, self.fill)]
        if any(shape[2:] != (4,) for shape in shapes):
            raise ValueError(f"PhotoScene wants (S, S, 4), (R, R, 4) and (T, T, 4), got {shapes}")


def draw_pose(own: PhotoScene, *, rng: np.random.Generator) -> Rigid:
    """A pose near the photo's: mostly turned further away, up to a profile."""
    yaw, pitch, roll = angles_from_rotation(own.cam_from_head.rotation)
    way = float(np.sign(yaw)) if abs(yaw) > FRONTAL else (1.0 if rng.random() < 0.5 else -1.0)
    turned = float(np.clip(yaw + way * rng.uniform(-INWARD, OUTWARD), -MAX_YAW, MAX_YAW))
    nod = float(np.clip(rng.normal(0.0, NOD), -2.0 * NOD, 2.0 * NOD))
    turn = float(np.clip(rng.normal(0.0, TURN), -2.0 * TURN, 2.0 * TURN))
    in_plane = rotation_from_vector(np.array([0.0, 0.0, np.deg2rad(turn)]))
    return Rigid(
        in_plane @ rotation_from_angles(turned, pitch + nod, roll), own.cam_from_head.translation
    )


def draw_camera(
    own: PhotoScene, size: int, *, rng: np.random.Generator
) -> Pinhole | WeakPerspective:
    """The photo's camera on a square part of the crop, brought to ``size`` px."""
    zoom = float(rng.uniform(1.0, ZOOM))
    room = len(own.photo) * (1.0 - 1.0 / zoom)
    corner = room * np.clip(0.5 + 0.2 * rng.standard_normal(2), 0.0, 1.0)
    return own.camera.cropped(corner, size / len(own.photo) * zoom)


def own_camera(own: PhotoScene, size: int) -> Pinhole | WeakPerspective:
    """The photo's camera on its whole crop, brought to ``size`` px."""
    return own.camera.cropped(np.zeros(2), size / len(own.photo))


@dataclass(frozen=True, eq=False)
class Stage:
    """A photo made ready to be turned: all that its views share."""

    own: PhotoScene
    surface: (
        Floats  # (V, 4) of the model's vertices in the photo: px, depth, cosine towards the camera
    )
    depth: Floats  # (S, S) metres, what the photo shows of the model; background 0
    sheet: Floats  # (G, 3) vertices in cam
    sheet_px: Floats  # (G, 2) of the photo
    still: Floats  # (G,) 0: turns with the head, 1: stays
    faces: Ints  # (T, 3) of the sheet, without what the head hides
    photo: Floats  # (S, S, 4) float32: its colours; how far it shows the person
    leaving: Floats  # (S, S) float32: how far what it shows there turns away with the head


_stages: dict[int, Stage] = {}


def stage_of(own: PhotoScene, head: Floats, model: MorphableModel) -> Stage:
    """The stage of a photo whose face has (V, 3) ``head`` vertices; that of the last photo is
    kept.
    """
    key = id(own)  # a kept stage holds its photo, so the id can't be given away meanwhile
    if key not in _stages:
        _stages.clear()
        _stages[key] = _make_stage(own, own.cam_from_head.apply(head), model)
    return _stages[key]


def _make_stage(own: PhotoScene, vertices: Floats, model: MorphableModel) -> Stage:
    size = len(own.photo)
    frame = render(vertices, model.faces, own.camera, (size, size))
    cosine = -vertex_normals(vertices, model.faces)[:, 2]
    vertices_px = own.camera.px_from_cam(vertices)
    surface = np.column_stack([vertices_px, vertices[:, 2], cosine])
    table = model.landmarks.vertex
    up = vertices_px[table[36:48]].mean(0) - vertices_px[table[8]]

    mask = frame.mask.astype(np.uint8)
    pixel = _pixel_size(own)
    rim = mask - cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=0)
    nodes = GRID + 1
    px = (
        np.stack(np.meshgrid(np.arange(nodes), np.arange(nodes)), axis=2) * (size / GRID)
    ).reshape(-1, 2)
    away = _at(cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5), px) * pixel
    inside = _at(cv2.distanceTransform(mask, cv2.DIST_L2, 5), px)
    depth = _continued(frame.depth, rim.astype(np.float32), nodes) + RECEDING * away
    border = np.minimum(px, size - px).min(1) * pixel
    height = (px - vertices_px[table[8]]) @ up / max(float(up @ up), 1.0)
    still = 1.0 - (1.0 - _smoothstep(away, *REACH)) * _smoothstep(
        border, 0.0, BORDER
    ) * _smoothstep(height, *BODY)
    cell = np.arange(GRID * nodes).reshape(GRID, nodes)[:, :-1].ravel()
    faces = np.concatenate(
        [
            np.stack([cell, cell + nodes, cell + 1], 1),
            np.stack([cell + 1, cell + nodes, cell + nodes + 1], 1),
        ]
    ).astype(np.int32)
    faces = faces[(inside[faces] < 1.5 * size / GRID).any(1)]
    person = cv2.resize(own.surroundings[..., 3], (size, size), interpolation=cv2.INTER_LINEAR)
    grown = cv2.dilate(person, np.ones((5, 5), np.uint8), iterations=max(size // 128, 1))
    moving = cv2.resize(1.0 - still.reshape(nodes, nodes).astype(np.float32), (size, size))
    photo = np.dstack([own.photo[..., :3], person]).astype(np.float32)
    leaving = grown * np.minimum(2.0 * moving, 1.0)
    return Stage(
        own, surface, frame.depth, _unprojected(own, px, depth), px, still, faces, photo, leaving
    )


def _pixel_size(own: PhotoScene) -> float:
    """Metres at the head's distance."""
    if isinstance(own.camera, Pinhole):
        return float(own.cam_from_head.translation[2]) / own.camera.focal
    return 1.0 / own.camera.scale


def _unprojected(own: PhotoScene, px: Floats, depth: Floats) -> Floats:
    """(N, 3) points in cam of (N, 2) pixels at (N,) depths."""
    camera = own.camera
    if isinstance(camera, Pinhole):
        return np.column_stack([(px - camera.centre) * (depth / camera.focal)[:, None], depth])
    return np.column_stack([(px - camera.centre) / camera.scale, depth])


def _at(image: Floats, px: Floats) -> Floats:
    """(N,) nearest values of an (H, W) image at (N, 2) pixels."""
    column, row = np.clip(px, 0, np.array(image.shape[::-1]) - 1).astype(np.int64).T
    return np.asarray(image[row, column], dtype=np.float64)


def _continued(depth: Floats, rim: Floats, nodes: int) -> Floats:
    """(nodes * nodes,) depth of the (S, S) ``rim`` continued over the whole image, smoother further
    away.
    """
    weight = cv2.resize(rim, (nodes, nodes), interpolation=cv2.INTER_AREA)
    values = cv2.resize(rim * depth, (nodes, nodes), interpolation=cv2.INTER_AREA)
    if not weight.any():
        return np.full(nodes * nodes, float(depth.max(initial=0.0)) or 1.0)
    total, sure = np.zeros_like(values), np.zeros_like(weight)
    spread = 1.0
    while spread < nodes:
        near = cv2.GaussianBlur(weight, (0, 0), spread, borderType=cv2.BORDER_REPLICATE) * (
            1.0 - sure
        )
        far = cv2.GaussianBlur(values, (0, 0), spread, borderType=cv2.BORDER_REPLICATE) * (
            1.0 - sure
        )
        total += far
        sure = sure + near
        spread *= 2.0
    return np.asarray((total / np.maximum(sure, 1e-9)).ravel(), dtype=np.float64)


def _smoothstep(values: Floats, low: float, high: float) -> Floats:
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def angle_between(a: Rigid, b: Rigid) -> float:
    """Degrees between two poses."""
    return float(
        np.rad2deg(np.arccos(np.clip((np.trace(a.rotation @ b.rotation.T) - 1.0) / 2.0, -1.0, 1.0)))
    )


def face_colours(stage: Stage, frame: Frame, cam_from_head: Rigid, model: MorphableModel) -> Floats:
    """(H, W, 4) float32 colours of the model in ``frame``, whose pose is ``cam_from_head``, and
    what clothes cover.

    The background is covered by what lies behind.
    """
    own = stage.own
    out = sample_texture(frame, own.fill, model.uv, model.uv_faces)
    turned = float(_smoothstep(np.array(angle_between(cam_from_head, own.cam_from_head)), *SETTLED))
    _project(
        frame.triangle,
        frame.barycentric,
        frame.normal,
        np.ascontiguousarray(model.faces, dtype=np.int32),
        stage.surface,
        own.photo,
        stage.depth,
        turned,
        out,
    )
    out[frame.triangle < 0, 3] = 1.0
    return out


@numba.njit(cache=True, nogil=True)
def _mixed(image, left, top, n, a, b, c, d):  # type: ignore[no-untyped-def]
    """Channel ``n`` of the four texels from (left, top) on, by their weights: upper left, upper
    right, lower ones.
    """
    upper = a * image[top, left, n] + b * image[top, left + 1, n]
    return upper + c * image[top + 1, left, n] + d * image[top + 1, left + 1, n]


@numba.njit(cache=True, nogil=True)
def _lay(pixel, share, image, left, top, a, b, c, d):  # type: ignore[no-untyped-def]
    """Cover a ``share`` of a (3,) pixel by the image's colour there."""
    for n in range(3):
        pixel[n] += share * (_mixed(image, left, top, n, a, b, c, d) - pixel[n])


@numba.njit(cache=True, nogil=True)
def _project(ids, barycentric, normal, faces, surface, photo, depth, turned, out):  # type: ignore[no-untyped-def]
    """Lay the photo over the fill in ``out`` where it shows the surface."""
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
            x, y = min(max(x, 0.0), columns - 1.0), min(max(y, 0.0), rows - 1.0)
            left, top = min(int(x), columns - 2), min(int(y), rows - 2)
            fx, fy = x - left, y - top
            seen = False
            for r in range(top, top + 2):
                for q in range(left, left + 2):
                    if depth[r, q] == 0.0 or depth[r, q] >= z - HIDDEN_DEPTH:
                        seen = True
            if not seen:
                continue
            a, b, c, d = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
            share = 1.0
            if turned > 0.0:
                steep = max(shown, 0.0) / max(-normal[row, column, 2], 0.05)
                share = min(max((steep - SHOWN[0]) / (SHOWN[1] - SHOWN[0]), 0.0), 1.0)
                share = share * share * (3.0 - 2.0 * share)
                share *= _mixed(photo, left, top, 3, a, b, c, d)
                share = 1.0 - turned * (1.0 - share)
            if share > 0.0:
                _lay(out[row, column], share, photo, left, top, a, b, c, d)


def behind(
    stage: Stage, cam_from_head: Rigid, camera: Pinhole | WeakPerspective, size: int
) -> Floats:
    """(size, size, 3) float32: what of the photo lies around a head turned to ``cam_from_head``."""
    own = stage.own
    angle = angle_between(cam_from_head, own.cam_from_head)
    turn = cam_from_head.rotation @ own.cam_from_head.rotation.T
    swung = (stage.sheet - own.cam_from_head.translation) @ turn.T + cam_from_head.translation
    vertices = swung + stage.still[:, None] * (stage.sheet - swung)
    whole = 1.0 - _smoothstep(_lengthening(own.camera.px_from_cam(vertices), stage.sheet_px), *TORN)
    px = camera.px_from_cam(vertices)
    zoom = _scale(camera) / _scale(own.camera)
    out = np.empty((size, size, 3), dtype=np.float32)
    _compose(
        zbuffer.visibility(px, camera.screen_depth(vertices), stage.faces, (size, size)),
        stage.faces,
        px,
        np.column_stack([stage.sheet_px, whole]),
        stage.photo,
        stage.leaving,
        own.surroundings,
        zoom,
        camera.centre - own.camera.centre * zoom,
        float(_smoothstep(np.array(angle), 0.0, LEFT)),
        out,
    )
    return out


@numba.njit(cache=True, nogil=True)
def _corners(x, y, columns, rows):  # type: ignore[no-untyped-def]
    """Of a bilinear sample at a pixel (x, y): the upper left texel and the place between it and the
    others.
    """
    x, y = min(max(x - 0.5, 0.0), columns - 1.0), min(max(y - 0.5, 0.0), rows - 1.0)
    left, top = min(int(x), columns - 2), min(int(y), rows - 2)
    return left, top, np.float32(x - left), np.float32(y - top)


@numba.njit(cache=True, nogil=True)
def _compose(ids, faces, px, source, photo, leaving, surroundings, zoom, shift, turned, out):  # type: ignore[no-untyped-def]
    """The photo; where the head has left, its surroundings; before both the sheet (``ids``) where
    it is the person's.

    ``source`` (G, 3) says for the sheet's (G, 2) ``px`` where in the photo they were, and how whole
    the sheet is.
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
                out[row, column, n] = _mixed(photo, left, top, n, a, b, c, d)
            gone = a * leaving[top, left] + b * leaving[top, left + 1]
            gone = np.float32(turned) * (
                gone + c * leaving[top + 1, left] + d * leaving[top + 1, left + 1]
            )
            if gone > 0.0:
                left, top, u, v = _corners(
                    x * ratio, y * ratio, surroundings.shape[1], surroundings.shape[0]
                )
                a, b, c, d = (one - u) * (one - v), u * (one - v), (one - u) * v, u * v
                _lay(out[row, column], gone, surroundings, left, top, a, b, c, d)
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
            whole *= _mixed(photo, left, top, 3, a, b, c, d)
            if whole > 0.0:
                _lay(out[row, column], whole, photo, left, top, a, b, c, d)


def _scale(camera: Pinhole | WeakPerspective) -> float:
    return camera.focal if isinstance(camera, Pinhole) else camera.scale


def _lengthening(px: Floats, before: Floats) -> Floats:
    """(G,) the longest edge at each node of the sheet, over what it was, for (G, 2) pixels."""
    nodes = GRID + 1
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
