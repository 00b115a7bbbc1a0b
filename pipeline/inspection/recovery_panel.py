"""Pictures of a recovery, for people: what was seen, what was fitted, and what is left."""

from __future__ import annotations

import cv2
import numpy as np

from dff.face.arrays import Bytes
from dff.face.geometry.lighting import shade
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render, sample_texture
from dff.pipeline.recovery.inverse import Recovery, skin_mask

RESIDUAL_GAIN = 3.0  # the residual's picture: grey is zero, white and black are 1 / (2 * gain)
WIRE = (255, 255, 255)
FITTED, GIVEN = (40, 220, 90), (250, 70, 60)
COVERED = np.array([235, 60, 160], dtype=np.float32)


def recovery_panel(
    recovery: Recovery, *, model: MorphableModel, albedo: AlbedoModel
) -> dict[str, Bytes]:
    """Named uint8 (S, S, 3) RGB pictures of a recovery.

    ``photo`` with the given landmarks (red) and the fitted (green), ``mesh`` over the photo,
    ``albedo``, ``light`` (shading, its median brought to the same grey), ``rendering`` on grey,
    ``residual`` (grey is zero) with what counts as covered in pink.
    """
    size = len(recovery.crop)
    vertices = recovery.cam_from_head.apply(model.vertices(recovery.coefficients))
    frame = render(vertices, model.faces, recovery.camera, (size, size))
    seen, skin = frame.mask[..., None], skin_mask(frame, model)
    colour = sample_texture(frame, albedo.texture(recovery.albedo), model.uv, model.uv_faces)
    shading = shade(frame.normal, recovery.light)
    image = recovery.crop.astype(np.float32) / 255.0
    rendering = colour * shading
    residual = np.where(skin[..., None], 0.5 + RESIDUAL_GAIN * (image - rendering), 0.5)
    residual_bytes = _bytes(residual)
    covered = recovery.occluded[..., None]
    mixed = np.where(covered, 0.6 * residual_bytes + 0.4 * COVERED, residual_bytes)

    points = _enlarged(recovery.crop)
    for given, fitted in zip(recovery.given, recovery.landmarks, strict=True):
        cv2.circle(points, _fixed(given), 12, GIVEN, -1, cv2.LINE_AA, 3)
        cv2.circle(points, _fixed(fitted), 12, FITTED, -1, cv2.LINE_AA, 3)

    wire = _enlarged(recovery.crop)
    px = recovery.camera.px_from_cam(vertices)
    for corners in model.faces[np.unique(frame.triangle[skin])]:
        cv2.polylines(
            wire, [np.array([_fixed(p) for p in px[corners]])], True, WIRE, 1, cv2.LINE_AA, 3
        )
    wire = cv2.addWeighted(wire, 0.6, _enlarged(recovery.crop), 0.4, 0)

    return {
        "photo": _reduced(points, size),
        "mesh": _reduced(wire, size),
        "albedo": _bytes(np.where(seen, colour, 0.5)),
        "light": _bytes(np.where(seen, 0.7 * shading / np.median(shading[skin]), 0.5)),
        "rendering": _bytes(np.where(seen, rendering, 0.5)),
        "residual": mixed.astype(np.uint8),
    }


def _bytes(image: np.ndarray) -> Bytes:
    return np.asarray((np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))


def _enlarged(image: Bytes) -> Bytes:
    """Twice the size, so that thin lines and dots stay thin when it is reduced again."""
    return np.ascontiguousarray(np.repeat(np.repeat(image, 2, axis=0), 2, axis=1))


def _reduced(image: Bytes, size: int) -> Bytes:
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))


def _fixed(px: np.ndarray) -> tuple[int, int]:
    """A pixel of the original as OpenCV wants it in the enlarged image: from 0 at the first centre,
    eighths.
    """
    x, y = (px * 2.0 - 0.5) * 8.0
    return round(float(x)), round(float(y))
