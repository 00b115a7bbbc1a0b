"""Images of an inverse rendering: the photo, the fit and the residual."""

from __future__ import annotations

import cv2
import numpy as np

from dff.face.arrays import Bytes
from dff.face.geometry.lighting import shade
from dff.face.model.albedo import AlbedoModel
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import render, sample_texture
from dff.face.texture.fitted_head import mask_skin
from dff.pipeline.recovery.inverse import Recovery

RESIDUAL_GAIN = 3.0  # grey is a residual of zero, white and black of 1 / (2 * gain)
WIRE = (255, 255, 255)
FITTED, GIVEN = (40, 220, 90), (250, 70, 60)
DOTS = 180  # radii of a landmark's dot in an image, so that they show where it is shown small
COVERED = np.array([235, 60, 160], dtype=np.float32)


def draw_recovery(
    recovery: Recovery, *, model: MorphableModel, albedo: AlbedoModel
) -> dict[str, Bytes]:
    """Named uint8 (S, S, 3) RGB images of a recovery.

    ``photo`` with the given landmarks in red and the fitted ones in green, ``mesh`` over the photo,
    ``albedo``, ``light`` (shading, scaled to a fixed median), ``rendering``, and ``residual`` (grey
    is zero) with occluded pixels in pink.
    """
    size = len(recovery.crop)
    vertices = recovery.cam_from_head.apply(model.vertices(recovery.coefficients))
    frame = render(vertices, model.faces, recovery.camera, (size, size))
    seen, skin = frame.mask[..., None], mask_skin(frame, model)
    colour = sample_texture(frame, albedo.texture(recovery.albedo), model.uv, model.uv_faces)
    shading = shade(frame.normal, recovery.light)
    image = recovery.crop.astype(np.float32) / 255.0
    rendering = colour * shading
    residual = np.where(skin[..., None], 0.5 + RESIDUAL_GAIN * (image - rendering), 0.5)
    residual_bytes = _to_bytes(residual)
    covered = recovery.occluded[..., None]
    mixed = np.where(covered, 0.6 * residual_bytes + 0.4 * COVERED, residual_bytes)

    points = _enlarge(recovery.crop)
    radius = max(12, round(16 * size / DOTS))  # eighths of a pixel of the enlarged image
    for given, fitted in zip(recovery.given, recovery.landmarks, strict=True):
        cv2.circle(points, _to_fixed_point(given), radius, GIVEN, -1, cv2.LINE_AA, 3)
        cv2.circle(points, _to_fixed_point(fitted), radius, FITTED, -1, cv2.LINE_AA, 3)

    wire = _enlarge(recovery.crop)
    px = recovery.camera.px_from_cam(vertices)
    for corners in model.faces[np.unique(frame.triangle[skin])]:
        cv2.polylines(
            wire,
            [np.array([_to_fixed_point(p) for p in px[corners]])],
            True,
            WIRE,
            1,
            cv2.LINE_AA,
            3,
        )
    wire = cv2.addWeighted(wire, 0.6, _enlarge(recovery.crop), 0.4, 0)

    return {
        "photo": _reduce(points, size),
        "mesh": _reduce(wire, size),
        "albedo": _to_bytes(np.where(seen, colour, 0.5)),
        "light": _to_bytes(np.where(seen, 0.7 * shading / np.median(shading[skin]), 0.5)),
        "rendering": _to_bytes(np.where(seen, rendering, 0.5)),
        "residual": mixed.astype(np.uint8),
    }


def _to_bytes(image: np.ndarray) -> Bytes:
    return np.asarray((np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))


def _enlarge(image: Bytes) -> Bytes:
    """The image at twice its size, on which lines and dots are drawn before it is reduced."""
    return np.ascontiguousarray(np.repeat(np.repeat(image, 2, axis=0), 2, axis=1))


def _reduce(image: Bytes, size: int) -> Bytes:
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))


def _to_fixed_point(px: np.ndarray) -> tuple[int, int]:
    """A point of the original as OpenCV draws it in the enlarged image, in eighths of a pixel."""
    x, y = (px * 2.0 - 0.5) * 8.0
    return round(float(x)), round(float(y))
