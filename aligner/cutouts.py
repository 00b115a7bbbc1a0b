"""Parts of a photo that show a face: upright crops, and masks of head and skin."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from dff.aligner.alignment import Alignment
from dff.face.arrays import Bytes
from dff.face.model.landmarks import head_up
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render
from dff.face.texture.fitted_head import mask_skin

HEAD, SKIN = 128, 255
"""Levels of ``mask_faces``."""
MARGIN = 1.7
"""Side of a crop over that of the landmarks' box: forehead, chin and ears fit in."""


def crop_face(image: Bytes, face: Alignment, size: int) -> Bytes:
    """(size, size, 3) of an (H, W, 3) uint8 RGB image: the face, with its eyes above its chin.

    Black beyond the image.
    """
    marks = face.landmarks_2d
    up = head_up(marks)
    up = up / max(float(np.linalg.norm(up)), 1e-9)
    axes = np.array([[-up[1], up[0]], [-up[0], -up[1]]])  # right and down of the crop
    upright = marks @ axes.T
    low, high = upright.min(0), upright.max(0)
    scale = size / (MARGIN * float((high - low).max()))
    turn = scale * axes
    move = size / 2 - scale * (low + high) / 2
    # OpenCV counts from the middle of the first pixel
    move = move + turn @ (0.5, 0.5) - 0.5
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    if scale < 0.5:  # warping samples single pixels: shrink before
        small = cv2.resize(image, None, fx=2 * scale, fy=2 * scale, interpolation=cv2.INTER_AREA)
        ratio = np.array(small.shape[1::-1]) / image.shape[1::-1]
        move = move - turn @ (0.5, 0.5) + (turn / ratio) @ (0.5, 0.5)
        turn, image, method = turn / ratio, small, cv2.INTER_LINEAR
    warp = np.column_stack([turn, move])
    return np.asarray(cv2.warpAffine(image, warp, (size, size), flags=method), dtype=np.uint8)


def mask_faces(size: tuple[int, int], faces: Sequence[Alignment], model: MorphableModel) -> Bytes:
    """(H, W) uint8 of ``size`` = (H, W): SKIN of face, lips and brows, HEAD for the rest, else 0.

    What the fitted heads show; hands and hair before them are not cut out.
    """
    out = np.zeros(size, dtype=np.uint8)
    for face in faces:
        if face.failed:
            continue
        cam = face.cam_from_head.apply(face.vertices)
        px = face.camera.px_from_cam(cam)
        low = np.clip(np.floor(px.min(0)), 0, size[::-1]).astype(int)
        high = np.clip(np.ceil(px.max(0)), 0, size[::-1]).astype(int)
        if (high - low < 1).any():
            continue
        part = out[low[1] : high[1], low[0] : high[0]]
        camera = face.camera.cropped(low.astype(np.float64), 1.0)
        frame = render(cam, model.faces, camera, part.shape)
        part[frame.mask] = np.maximum(part[frame.mask], HEAD)
        part[mask_skin(frame, model)] = SKIN
    return out
