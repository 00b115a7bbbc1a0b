"""Identity retention: whether a view's nearest neighbour among photos is that of its person.

No face recognition network is used, since none is shipped. A view is resampled to the front by the
correspondence of its row (``FrontalMap``), and its grey values are made independent of the light by
their local mean and contrast. Two views are compared where both show the face. View and photo have
the same fitted geometry, so the figure measures whether the *texture* of a person survives
unwrapping, new light, pose and expression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dff.face.arrays import Array, Bool, Bools, Bytes, Float, Floats
from dff.face.geometry.camera import WeakPerspective
from dff.face.geometry.mesh import SurfacePoints
from dff.face.geometry.transform import Rigid, rotation_from_angles
from dff.face.model.morphable import MorphableModel
from dff.face.render.frame import HIDDEN_DEPTH, render
from dff.infra.datasets.shards import ViewRow, resolve_frame


@dataclass(frozen=True)
class RetentionConfig:
    """How frontal textures are made and compared."""

    side: int = 96  # px of the frontal map
    # Eyes and the inside of the mouth move on their own
    regions: tuple[str, ...] = ("face", "brows", "lips")
    grazing: float = 0.3  # cosine to the viewing direction below which skin is left out
    fine: float = 1.0  # px: finer detail is the sensor's
    local: float = 6.0  # px: coarser differences are the light's
    least_common: float = 0.08  # share of the map that two textures must both show
    resamples: int = 1000  # of the people, for the confidence interval


CONFIG = RetentionConfig()


@dataclass(frozen=True, eq=False)
class FrontalMap:
    """The surface points that the pixels of a frontal view of a model's mean face show."""

    points: SurfacePoints  # N
    inside: Bool[Array, "S S"]  # N pixels

    @staticmethod
    def build(model: MorphableModel, config: RetentionConfig = CONFIG) -> FrontalMap:
        """The frontal view of a model's template, of the regions of ``config``."""
        side = config.side
        wanted = np.zeros(len(model.faces), dtype=np.bool_)
        wanted[
            model.find_triangles(*(name for name in config.regions if name in model.region_names))
        ] = True
        corners = model.template[model.faces[wanted].ravel()]
        low, high = corners.min(0)[:2], corners.max(0)[:2]
        scale = side / float((high - low).max())
        middle = (low + high) / 2.0
        camera = WeakPerspective(
            scale, np.array([side / 2 - scale * middle[0], side / 2 + scale * middle[1]])
        )
        front = Rigid(rotation_from_angles(0.0, 0.0, 0.0), np.array([0.0, 0.0, 1.0]))
        frame = render(front.apply(model.template), model.faces, camera, (side, side))
        inside = frame.mask & wanted[np.maximum(frame.triangle, 0)]
        return FrontalMap(SurfacePoints(frame.triangle[inside], frame.barycentric[inside]), inside)


@dataclass(frozen=True, eq=False)
class FrontalTexture:
    """A face in the frontal map, normalised by its local mean and contrast."""

    values: Float[Array, "S S"]  # float32, 0 where nothing is seen
    seen: Bool[Array, "S S"]


def extract_frontal_texture(
    pixels: Bytes,
    row: ViewRow,
    model: MorphableModel,
    frontal: FrontalMap,
    config: RetentionConfig = CONFIG,
) -> FrontalTexture:
    """The face in (H, W, 3) ``pixels``, whose geometry is that of a row.

    The row's own image may be given, or another of the same view. Raises BadDataset when the row is
    of another model.
    """
    frame = resolve_frame(row, model)
    cam = frontal.points.of(
        row.cam_from_head.apply(model.vertices(row.coefficients(model))), model.faces
    )
    px = row.camera.px_from_cam(cam)
    column, line = np.floor(px).astype(np.int64).T
    seen = (column >= 0) & (line >= 0) & (column < row.width) & (line < row.height)
    column[~seen] = line[~seen] = 0
    # An occluder is no triangle of the model.
    seen &= (frame.triangle[line, column] >= 0) & (
        np.abs(frame.depth[line, column] - cam[:, 2]) < HIDDEN_DEPTH
    )
    seen &= -frame.normal[line, column, 2] > config.grazing
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    x, y = (px - 0.5).astype(np.float32).T
    shown = cv2.remap(grey, x[None], y[None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
    values, mask = (
        np.zeros(frontal.inside.shape, np.float32),
        np.zeros(frontal.inside.shape, np.bool_),
    )
    values[frontal.inside], mask[frontal.inside] = np.where(seen, shown, 0.0), seen
    return FrontalTexture(_normalize_locally(values, mask, config), mask)


def _normalize_locally(values: Floats, seen: Bools, config: RetentionConfig) -> Floats:
    """Values less their local mean, in local standard deviations."""
    share = seen.astype(np.float32)

    def mean(of: Floats, sd: float) -> Floats:
        return np.asarray(
            cv2.GaussianBlur(of * share, (0, 0), sd)
            / np.maximum(cv2.GaussianBlur(share, (0, 0), sd), 1e-3)
        )

    fine = mean(values, config.fine)
    centred = fine - mean(fine, config.local)
    spread = np.sqrt(np.maximum(mean(centred**2, config.local), 1.0))
    return np.where(seen, np.clip(centred / spread, -3.0, 3.0), 0.0).astype(np.float32)


def correlate(
    one: Sequence[FrontalTexture],
    other: Sequence[FrontalTexture],
    config: RetentionConfig = CONFIG,
) -> Floats:
    """(N, M) correlations over the pixels that both show; -1 where these are too few."""
    a, b = (np.stack([t.values.ravel() for t in textures]) for textures in (one, other))
    seen_a, seen_b = (
        np.stack([t.seen.ravel() for t in textures]).astype(np.float32) for textures in (one, other)
    )
    energy = ((a**2) @ seen_b.T) * (seen_a @ (b**2).T)
    common = seen_a @ seen_b.T
    whole = max(float(seen_b.sum(1).max()), 1.0)
    return np.where(
        common < config.least_common * whole, -1.0, (a @ b.T) / np.sqrt(np.maximum(energy, 1e-6))
    )


@dataclass(frozen=True)
class IdentityRetention:
    """How often the nearest photo is that of the same person, with its 95 % interval."""

    rate: float
    low: float
    high: float
    views: int
    people: int  # number of photos; the chance level is one over it


def measure_identity_retention(
    views: Sequence[FrontalTexture],
    people: Sequence[int],
    photos: Sequence[FrontalTexture],
    *,
    seed: int,
    config: RetentionConfig = CONFIG,
) -> IdentityRetention:
    """Find the nearest photo of each view; ``people`` are the indices of the views' own photos.

    The interval is bootstrapped over the people. Raises ValueError when there are no views or
    photos, or not one index per view.
    """
    if not views or not photos or len(views) != len(people):
        raise ValueError(
            f"need views, the index of each and photos, got {len(views)}, {len(people)} and "
            f"{len(photos)}"
        )
    right = correlate(views, photos, config).argmax(1) == np.array(people)
    count = len(photos)
    whose = np.bincount(people, minlength=count)
    counts = np.stack([whose, np.bincount(people, right, count)]).astype(float)[:, whose > 0]
    rng = np.random.default_rng(seed)
    drawn = (
        rng.multinomial(
            counts.shape[1], np.full(counts.shape[1], 1.0 / counts.shape[1]), config.resamples
        )
        @ counts.T
    )
    low, high = np.percentile(drawn[:, 1] / np.maximum(drawn[:, 0], 1.0), (2.5, 97.5))
    return IdentityRetention(float(right.mean()), float(low), float(high), len(views), count)
