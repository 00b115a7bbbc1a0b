"""Alignments drawn over their photo: mesh, landmarks, axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.labels import BadgeWriter, PixelColour, Rectangle, SteadySizes
from dff.face.arrays import Bools, Bytes, Floats
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import (
    INNER_LIPS,
    JAW,
    LEFT_BROW,
    LEFT_EYE,
    NOSE_BOTTOM,
    NOSE_BRIDGE,
    NOSE_TIP,
    OUTER_LIPS,
    RIGHT_BROW,
    RIGHT_EYE,
)
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render

SEEN: PixelColour = (60, 230, 90)
HIDDEN: PixelColour = (240, 160, 40)
FAILED: PixelColour = (230, 50, 50)
AXES: tuple[PixelColour, ...] = (
    (235, 60, 60),
    (60, 220, 60),
    (70, 110, 250),
)  # x to the face's left, y up, z out
TRACKS: tuple[PixelColour, ...] = (
    SEEN,
    (80, 170, 255),
    (215, 120, 255),
    (245, 245, 245),
    (60, 225, 225),
    (255, 140, 190),
)
"""Colours of tracks, in order of their numbers, repeated when there are more."""

SUBPIXEL = 4  # bits of fraction that OpenCV draws with
OPACITY = 0.45  # of the mesh
FEATHER = 0.02  # of the head's size: reach of the smoothing of the border between face and scalp

# Runs of landmarks that are joined by lines; the closed ones are rings.
OPEN_RUNS = (JAW, RIGHT_BROW, LEFT_BROW, NOSE_BRIDGE, NOSE_BOTTOM)
RINGS = (RIGHT_EYE, LEFT_EYE, OUTER_LIPS, INNER_LIPS)


@dataclass
class FilmDrawing:
    """What the frames of one film share, so that lines and numbers do not flicker."""

    badges: BadgeWriter = field(default_factory=BadgeWriter)
    faces: SteadySizes = field(default_factory=SteadySizes)  # by track


def draw(
    image: Bytes,
    faces: Sequence[Alignment],
    model: MorphableModel,
    *,
    mesh: bool = True,
    axes: bool = True,
    tracks: Sequence[int] | None = None,
    film: FilmDrawing | None = None,
) -> Bytes:
    """(H, W, 3) RGB: the photo with every face on it. A failed face is only its box.

    ``tracks``: of a frame of a video, the number of each face, which is written near it; its lines
    have the colour of its number. ``film``: one for all frames.
    """
    out = image.copy()
    numbers = range(len(faces)) if tracks is None else tracks
    colours = [SEEN if tracks is None else TRACKS[number % len(TRACKS)] for number in numbers]
    film = film or FilmDrawing()
    for number, face, colour in zip(numbers, faces, colours, strict=True):
        if face.failed:
            _rectangle(out, face.box)
            continue
        if mesh:
            _mesh(out, face, model)
        size = film.faces.keep(number, Box.around(face.landmarks_2d).size)
        draw_landmarks(out, face.landmarks_2d, face.visibility, colour, size=size)
        if axes:
            _axes(out, face, size)
    if tracks is not None:
        _write_numbers(film.badges, out, faces, tracks, colours)
    return out


def _write_numbers(
    badges: BadgeWriter,
    image: Bytes,
    faces: Sequence[Alignment],
    tracks: Sequence[int],
    colours: Sequence[PixelColour],
) -> None:
    boxes = [np.array([[one.box.x0, one.box.y0], [one.box.x1, one.box.y1]]) for one in faces]
    heads = [
        box if face.failed else face.vertices_px[:, :2]
        for face, box in zip(faces, boxes, strict=True)
    ]
    shown = [
        box if face.failed else face.landmarks_2d for face, box in zip(faces, boxes, strict=True)
    ]
    badges.write(
        image,
        [str(number) for number in tracks],
        colours,
        [Rectangle.of_points(points) for points in heads],
        [Rectangle.of_points(points) for points in shown],
    )


def draw_landmarks(
    image: Bytes,
    landmarks: Floats,
    visibility: Floats,
    colour: PixelColour = SEEN,
    *,
    size: float | None = None,
) -> None:
    """Draw (68, 2) pixels into (H, W, 3) ``image``: dots, and rings around hidden landmarks.

    A landmark counts as hidden when its (68,) visibility is below one half. The image shows
    through the rings. ``size``: pixels of the face that lines and dots suit, by default those that
    the landmarks span.
    """
    thick = max(1, round((Box.around(landmarks).size if size is None else size) / 200))
    dots, ring = _fixed(landmarks).tolist(), (thick + 3) << SUBPIXEL
    bare, rings = image.copy(), np.zeros(image.shape[:2], np.uint8)
    for run in (*OPEN_RUNS, *RINGS):
        line = _fixed(landmarks[run])
        cv2.polylines(image, [line], run in RINGS, colour, thick, cv2.LINE_AA, SUBPIXEL)
    hidden = [dot for dot, seen in zip(dots, visibility, strict=True) if seen < 0.5]
    for dot in hidden:
        cv2.circle(rings, dot, ring, 1, -1, cv2.LINE_8, SUBPIXEL)
    np.copyto(image, bare, where=rings[..., None] == 1)
    for dot in hidden:
        cv2.circle(image, dot, ring, HIDDEN, thick, cv2.LINE_AA, SUBPIXEL)
    for dot, seen in zip(dots, visibility, strict=True):
        if seen >= 0.5:
            cv2.circle(image, dot, (thick + 1) << SUBPIXEL, colour, -1, cv2.LINE_AA, SUBPIXEL)


def _mesh(image: Bytes, face: Alignment, model: MorphableModel) -> None:
    """Blend the shaded mesh into the part of the image that it covers."""
    cam = face.cam_from_head.apply(face.vertices)
    px = face.camera.px_from_cam(cam)
    low = np.maximum(np.floor(px.min(0)), 0).astype(int)
    high = np.minimum(np.ceil(px.max(0)), image.shape[1::-1]).astype(int)
    if (high - low < 1).any():
        return
    part = image[low[1] : high[1], low[0] : high[0]]
    frame = render(
        cam, model.faces, face.camera.cropped(low.astype(np.float64), 1.0), part.shape[:2]
    )
    front = np.isin(
        model.region,
        [i for i, name in enumerate(model.region_names) if name not in ("scalp", "neck")],
    )
    opacity = feather_border(frame.mask, frame.mask & front[frame.triangle], Box.around(px).size)
    shown = opacity > 0.0
    light = 90.0 + 150.0 * np.clip(-frame.normal[shown][:, 2:], 0.0, 1.0) * np.array(
        [0.75, 0.85, 1.0]
    )
    blend = OPACITY * opacity[shown][:, None]
    part[shown] = ((1.0 - blend) * part[shown] + blend * light).astype(np.uint8)


def feather_border(head: Bools, face: Bools, size: float) -> Floats:
    """(H, W) 0 to 1: how much a pixel of the ``head`` belongs to the ``face``, a part of it.

    The border between them runs along the triangles of the mesh; it is smoothed over a share of
    ``size``, pixels of the head.
    """
    side = max(1, round(FEATHER * size)) * 2 + 1
    inside = head.astype(np.float32)
    around, shown = (
        cv2.blur(cv2.blur(each, (side, side)), (side, side))
        for each in (inside, face.astype(np.float32))
    )
    share = shown / np.maximum(around, 1e-6)
    antialiased = inside * cv2.blur(inside, (3, 3))
    return np.asarray(antialiased * np.clip(2.0 * share - 0.5, 0.0, 1.0))


def _axes(image: Bytes, face: Alignment, size: float) -> None:
    """The frame of AFLW2000-3D's frontal face, drawn from the nose tip.

    ``size``: pixels of the face that the lines suit.
    """
    nose = face.landmarks_3d[NOSE_TIP, :2]
    length = 0.5 * Box.around(face.landmarks_3d[:, :2]).size
    thick = max(1, round(size / 80))
    start = _fixed(nose)
    for axis, colour in enumerate(AXES):
        end = _fixed(nose + length * face.pose.matrix[:2, axis])
        cv2.line(image, start.tolist(), end.tolist(), colour, thick, cv2.LINE_AA, SUBPIXEL)


def _rectangle(image: Bytes, box: Box) -> None:
    corners = _fixed(np.array([[box.x0, box.y0], [box.x1, box.y1]]))
    cv2.rectangle(image, corners[0].tolist(), corners[1].tolist(), FAILED, 2, cv2.LINE_AA, SUBPIXEL)


def _fixed(points: Floats) -> Floats:
    """Pixels to OpenCV's fixed-point coordinates, which count the first pixel's centre as 0."""
    return np.rint((points - 0.5) * (1 << SUBPIXEL)).astype(np.int32)
