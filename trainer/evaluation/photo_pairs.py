"""Pairs of real photos for ``dff.trainer.evaluation.matching``: what is known of them is landmarks,
so these are what is matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes, Floats
from dff.face.descriptor import STRIDE
from dff.face.geometry.camera import Box
from dff.face.geometry.mesh import vertex_normals
from dff.face.geometry.transform import rotation_from_angles
from dff.face.model.landmarks import INNER
from dff.face.model.morphable import MorphableModel
from dff.trainer.data.crops import Framing, input_from_source, warp
from dff.trainer.evaluation.matching import FEWEST, YAW_EDGES, ViewPair

FACING = 0.3
"""Cosine between a landmark's normal and the way to the camera from which it counts as seen."""
AROUND = 1.15
"""Matches are sought in the hull of the landmarks, enlarged by this about its centre: about what
the face covers.
"""


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo of one face."""

    image: Bytes  # (H, W, 3) RGB
    landmarks: Floats  # (68, 2) px, 3D scheme
    pose: tuple[float, float, float]  # yaw, pitch, roll in degrees


def photo_pairs(
    photos: Sequence[LabelledPhoto],
    model: MorphableModel,
    *,
    count: int,
    size: int,
    rng: np.random.Generator,
) -> list[ViewPair]:
    """Up to ``count`` pairs of photos, each of two people, for each bin of yaw. ``size``: side of
    the crops, px.

    Points are the 51 inner landmarks that both show, by the normals of ``model``'s template in the
    labelled poses: the outline has no texture of its own, and is annotated where it happens to lie.
    """
    normal = vertex_normals(model.template, model.faces)[model.landmarks.vertex]
    seen = np.array([_seen(normal, photo.pose) for photo in photos])
    yaw = np.array([photo.pose[0] for photo in photos])
    apart = np.abs(yaw[:, None] - yaw[None])
    shared = (seen[:, None] & seen[None]).sum(2) >= FEWEST
    out = []
    for low, high in pairwise(YAW_EDGES):
        cell = np.argwhere(
            (apart >= low) & (apart < high) & shared & ~np.eye(len(photos), dtype=bool)
        )
        out += [
            _pair(photos[a], photos[b], seen[a] & seen[b], size)
            for a, b in rng.permutation(cell)[:count]
        ]
    return out


def _seen(normal: Floats, pose: tuple[float, float, float]) -> Bools:
    """(68,) which landmarks are inner ones and face the camera."""
    facing = -(normal @ rotation_from_angles(*pose).T)[:, 2] > FACING
    inner = np.zeros(len(normal), dtype=bool)
    inner[INNER] = True
    return np.asarray(facing & inner)


def _pair(a: LabelledPhoto, b: LabelledPhoto, seen: Bools, size: int) -> ViewPair:
    boxes = [Box.around(photo.landmarks) for photo in (a, b)]
    matrices = [input_from_source(box, size, Framing()) for box in boxes]
    first, second = (
        (photo.landmarks @ matrix[:, :2].T + matrix[:, 2]) / STRIDE
        for photo, matrix in zip((a, b), matrices, strict=True)
    )
    half = size // STRIDE
    hull = cv2.convexHull(second.astype(np.float32))[:, 0]
    hull = hull.mean(0) + AROUND * (hull - hull.mean(0))
    face = np.zeros((half, half), np.uint8)
    # OpenCV counts from pixel centres at 0, here in sixteenths.
    cv2.fillConvexPoly(face, np.round((hull - 0.5) * 16).astype(np.int32), 1, cv2.LINE_8, 4)
    return ViewPair(
        images=np.stack(
            [warp(p.image, m, size, (0, 0, 0)) for p, m in zip((a, b), matrices, strict=True)]
        ),
        first=first[seen],
        second=second[seen],
        face=face.ravel() > 0,
        box=boxes[1].size * float(matrices[1][0, 0]) / STRIDE,
        yaw=abs(a.pose[0] - b.pose[0]),
        same=False,
    )
