"""Whether the views of a photo stay the same person: the nearest neighbour among the photos of
many.

No network that knows faces is asked: none is shipped. A picture is brought to a frontal view
through its row's own correspondence (``Chart``), where grey values are made independent of the
light by their local mean and contrast; two pictures are compared where both show the face. Because
the geometry of view and photo comes from the same fit, the figure says whether the *texture* of a
person survives unwrapping, new light, pose and expression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Bools, Bytes, Floats
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.mesh import SurfacePoints
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import HIDDEN_DEPTH, render
from dff.infra.shards import ViewRow, resolve_frame

SIDE = 96  # px of the frontal chart
REGIONS = ("face", "brows", "lips")  # eyes and mouths move on their own
GRAZING = 0.3  # cosine below which skin is seen too flat
FINE = 1.0  # px: finer detail than this is the sensor's
LOCAL = 6.0  # px: what is wider than this is light
LEAST_COMMON = 0.08  # of the chart that two pictures must both show


@dataclass(frozen=True, eq=False)
class Chart:
    """The surface points that the pixels of a frontal view of a model's mean face show."""

    points: SurfacePoints  # (N,)
    inside: Bools  # (SIDE, SIDE), N of them

    @staticmethod
    def of(model: MorphableModel) -> Chart:
        wanted = np.zeros(len(model.faces), dtype=np.bool_)
        wanted[model.triangles_of(*(name for name in REGIONS if name in model.region_names))] = True
        corners = model.template[model.faces[wanted].ravel()]
        low, high = corners.min(0)[:2], corners.max(0)[:2]
        scale = SIDE / float((high - low).max())
        middle = (low + high) / 2.0
        camera = WeakPerspective(
            scale, np.array([SIDE / 2 - scale * middle[0], SIDE / 2 + scale * middle[1]])
        )
        front = Rigid(rotation_from_angles(0.0, 0.0, 0.0), np.array([0.0, 0.0, 1.0]))
        frame = render(front.apply(model.template), model.faces, camera, (SIDE, SIDE))
        inside = frame.mask & wanted[np.maximum(frame.triangle, 0)]
        return Chart(SurfacePoints(frame.triangle[inside], frame.barycentric[inside]), inside)


@dataclass(frozen=True, eq=False)
class Look:
    """A face brought to the front, its light taken out."""

    values: Floats  # (SIDE, SIDE) float32, 0 where nothing is seen
    seen: Bools  # (SIDE, SIDE)


def look_of(pixels: Bytes, row: ViewRow, model: MorphableModel, chart: Chart) -> Look:
    """What (H, W, 3) ``pixels`` in the place of a row's image show of the face. Raises BadDataset
    as ``resolve_frame``.
    """
    frame = resolve_frame(row, model)
    cam = chart.points.of(
        row.cam_from_head.apply(model.vertices(row.coefficients(model))), model.faces
    )
    px = row.camera.px_from_cam(cam)
    column, line = np.floor(px).astype(np.int64).T
    seen = (column >= 0) & (line >= 0) & (column < row.width) & (line < row.height)
    column[~seen] = line[~seen] = 0
    # What stands before the face is no triangle of the model.
    seen &= (frame.triangle[line, column] >= 0) & (
        np.abs(frame.depth[line, column] - cam[:, 2]) < HIDDEN_DEPTH
    )
    seen &= -frame.normal[line, column, 2] > GRAZING
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    x, y = (px - 0.5).astype(np.float32).T
    shown = cv2.remap(grey, x[None], y[None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
    values, mask = np.zeros(chart.inside.shape, np.float32), np.zeros(chart.inside.shape, np.bool_)
    values[chart.inside], mask[chart.inside] = np.where(seen, shown, 0.0), seen
    return Look(_local(values, mask), mask)


def _local(values: Floats, seen: Bools) -> Floats:
    """Values by how far they lie from their neighbourhood's mean, in its standard deviations."""
    share = seen.astype(np.float32)

    def mean(of: Floats, sd: float) -> Floats:
        return np.asarray(
            cv2.GaussianBlur(of * share, (0, 0), sd)
            / np.maximum(cv2.GaussianBlur(share, (0, 0), sd), 1e-3)
        )

    fine = mean(values, FINE)
    centred = fine - mean(fine, LOCAL)
    spread = np.sqrt(np.maximum(mean(centred**2, LOCAL), 1.0))
    return np.where(seen, np.clip(centred / spread, -3.0, 3.0), 0.0).astype(np.float32)


def likeness(one: Sequence[Look], other: Sequence[Look]) -> Floats:
    """(N, M) correlation of looks where both see the face; -1 where they have too little in
    common.
    """
    a, b = (np.stack([look.values.ravel() for look in looks]) for looks in (one, other))
    seen_a, seen_b = (
        np.stack([look.seen.ravel() for look in looks]).astype(np.float32) for looks in (one, other)
    )
    energy = ((a**2) @ seen_b.T) * (seen_a @ (b**2).T)
    common = seen_a @ seen_b.T
    whole = max(float(seen_b.sum(1).max()), 1.0)
    return np.where(
        common < LEAST_COMMON * whole, -1.0, (a @ b.T) / np.sqrt(np.maximum(energy, 1e-6))
    )


@dataclass(frozen=True)
class Recognition:
    """How often the nearest photo is that of the same person, with its 95 % interval over
    people.
    """

    rate: float
    low: float
    high: float
    looks: int
    people: int  # among whom the nearest is sought: chance is one by this


def recognised(
    looks: Sequence[Look], people: Sequence[int], photos: Sequence[Look], *, seed: int
) -> Recognition:
    """Seek each look's nearest photo; ``people`` says whose (row of ``photos``) each look is.

    Raises ValueError when there is nothing to seek.
    """
    if not looks or not photos or len(looks) != len(people):
        raise ValueError(
            f"recognition wants looks, their people and photos, got {len(looks)} and {len(photos)}"
        )
    right = likeness(looks, photos).argmax(1) == np.array(people)
    count = len(photos)
    whose = np.bincount(people, minlength=count)
    tallies = np.stack([whose, np.bincount(people, right, count)]).astype(float)[:, whose > 0]
    rng = np.random.default_rng(seed)
    drawn = (
        rng.multinomial(tallies.shape[1], np.full(tallies.shape[1], 1.0 / tallies.shape[1]), 1000)
        @ tallies.T
    )
    low, high = np.percentile(drawn[:, 1] / np.maximum(drawn[:, 0], 1.0), (2.5, 97.5))
    return Recognition(float(right.mean()), float(low), float(high), len(looks), count)
