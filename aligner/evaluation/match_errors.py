"""Systematic errors of matches, estimated on views whose truth is known.

The network's errors at neighbouring pixels, and at all pixels of one photo, are not independent: a
whole face may be matched as if it were turned by some degrees. A few *error fields* span most of
it: displacements of the anchors in the head frame, of which each photo has its own linear
combination. The fit estimates them beside pose and shape, as latent directions that move anchors
but not the face. They are the factors of a factor analysis of the errors in many views, of which
each shows some of the anchors in the image plane only (expectation-maximisation; Rubin and Thayer,
"EM algorithms for ML factor analysis", 1982).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.fitting.crop import frame_boxes
from dff.aligner.fitting.observation import Observer
from dff.face.arrays import Array, Float, Floats
from dff.face.descriptor import Anchors
from dff.face.errors import BadDataset
from dff.face.geometry.camera import Box
from dff.face.model.landmarks import NAMES
from dff.face.model.morphable import MorphableModel
from dff.infra.datasets.dataset import Dataset, spread_views
from dff.infra.datasets.shards import ViewRow
from dff.infra.datasets.split import Split


@dataclass(frozen=True)
class MatchErrorConfig:
    """The factor analysis of match errors. Raises ValueError for counts that make no sense."""

    views: int = 900  # at most
    fields: int = 12
    pixels: int = 1200  # of each view that are matched
    least_mask: float = 0.5  # probability that a pixel shows the face
    least_match: float = 0.3  # probability that it shows one of its candidates
    outlier: float = 0.02  # metres: larger errors are wrong matches
    most: int = 3  # pixels of one anchor in a view that count
    noise: float = 0.003  # metres, of an anchor's error that no field explains
    dependent: float = 8.0  # anchors whose remaining errors count as one observation
    ridge: float = 5.0  # observations that draw a field to zero at an anchor
    steps: int = 15  # of the expectation-maximisation
    fewest_landmarks: int = 13  # visible, of a view that is used

    def __post_init__(self) -> None:
        if min(self.views, self.fields, self.pixels, self.steps, self.most) < 1:
            raise ValueError(f"MatchErrorConfig wants positive counts: {self}")


@dataclass(frozen=True)
class MatchErrors:
    """Errors of the matches of N views at each anchor: from where it lies to where it is seen."""

    away: Float[Array, "views anchors 2"]  # metres in the image plane
    count: Float[Array, "views anchors"]  # pixels that were matched to the anchor
    rows: Float[Array, "views 2 3"]  # of cam_from_head: right and down in the image


def estimate_match_errors(
    aligner: Aligner,
    dataset: Dataset,
    *,
    split: Split | None,
    config: MatchErrorConfig | None = None,
) -> Floats:
    """(A, 3, K) metres: fields of one standard deviation at the anchors, in the head frame.

    From views of a ``split``: "dev", or None for all where the dataset was not trained on.
    Raises BadDataset when it has too few.
    """
    config = config or MatchErrorConfig()
    views = spread_views(
        dataset,
        config.views,
        split=split,
        fewest_visible=config.fewest_landmarks,
    )
    if len(views) < 2 * config.fields:
        raise BadDataset(
            f"{dataset.storage.uri} has {len(views)} views to estimate match errors from; at least "
            f"{2 * config.fields} are needed"
        )
    settings = replace(aligner.config.observation, pixels=config.pixels)
    none = np.zeros((len(NAMES), aligner.anchors.descriptor.shape[1]), np.float32)
    observer = Observer(aligner.net, aligner.anchors, none, settings)
    found = [_measure(aligner, observer, view, config) for view in views]
    errors = MatchErrors(*(np.stack(part) for part in zip(*found, strict=True)))
    return find_error_fields(errors, config)


def _measure(
    aligner: Aligner, observer: Observer, view: ViewRow, config: MatchErrorConfig
) -> tuple[Floats, Floats, Floats]:
    """One row of each array of ``MatchErrors``."""
    model, anchors = aligner.model, aligner.anchors
    box = Box.around(view.landmarks_3d.astype(np.float64))
    crops = frame_boxes([box], aligner.config.later_margin, aligner.config.crop)
    observation = observer.observe([view.pixels()], crops)
    matches = observation.matches
    vertices, px = _project_anchors(view, model, anchors)
    design = np.column_stack([vertices, np.ones(len(vertices))])
    affine = np.linalg.lstsq(design, px, rcond=None)[0][:3].T  # pixels of a metre of the head
    scale = np.sqrt((affine**2).sum() / 2.0)
    anchor, probability = matches.anchor[0], matches.probability[0].astype(np.float64)
    total = probability.sum(1)
    predicted = (probability[..., None] * px[anchor]).sum(1) / np.maximum(total, 1e-9)[:, None]
    away = (observation.px[0] - predicted) / scale
    good = (matches.mask[0] > config.least_mask) & (total > config.least_match)
    good &= np.linalg.norm(away, axis=1) < config.outlier
    sums, count = np.zeros((len(px), 2)), np.zeros(len(px))
    np.add.at(sums, anchor[good, 0], away[good])
    np.add.at(count, anchor[good, 0], 1.0)
    mean = sums / np.maximum(count, 1.0)[:, None]
    return mean, np.minimum(count, config.most), affine / scale


def _project_anchors(
    view: ViewRow, model: MorphableModel, anchors: Anchors
) -> tuple[Floats, Floats]:
    """(A, 3) metres in ``head`` and (A, 2) pixels of the anchors of a view."""
    vertices = model.vertices(view.coefficients(model))[anchors.vertex]
    return vertices, view.camera.px_from_cam(view.cam_from_head.apply(vertices))


def find_error_fields(errors: MatchErrors, config: MatchErrorConfig) -> Floats:
    """(A, 3, K) metres: the factors of match errors, each of unit variance over the views."""
    views, anchors, _ = errors.away.shape
    k = config.fields
    fields = np.random.default_rng(0).normal(size=(anchors, 3, k)) * 0.3 * config.noise
    weight = errors.count / (config.noise**2 * config.dependent)
    seen = np.einsum("vij,vik->vjk", errors.rows, errors.rows)
    back = np.einsum("vij,vai->vaj", errors.rows, errors.away)  # errors in the head frame
    for _ in range(config.steps):
        # Expectation: the combination of fields in each view, and its covariance.
        precision = np.stack(
            [_moment(weight[v], seen[v], fields) + np.eye(k) for v in range(views)]
        )
        covariance = np.linalg.inv(precision)
        pull = np.einsum("va,vaj,ajk->vk", weight, back, fields, optimize=True)
        share = np.einsum("vkl,vl->vk", covariance, pull)
        second = np.einsum("vk,vl->vkl", share, share) + covariance
        # Maximisation: the fields at each anchor, then their unit variance.
        matrix = np.einsum("va,vjm,vkl->ajkml", errors.count, seen, second, optimize=True)
        matrix = matrix.reshape(anchors, 3 * k, 3 * k) + config.ridge * np.eye(3 * k)
        target = np.einsum("va,vaj,vk->ajk", errors.count, back, share, optimize=True)
        flat = np.linalg.solve(matrix, target.reshape(anchors, 3 * k, 1))[..., 0]
        fields = flat.reshape(anchors, 3, k) @ np.linalg.cholesky(second.mean(0))
    return np.asarray(fields)


def _moment(weight: Floats, seen: Floats, fields: Floats) -> Floats:
    """(K, K) weighted squares of (A, 3, K) ``fields`` as a view sees them: (3, 3) ``seen``."""
    turned = np.einsum("ij,ajk->aik", seen, fields) * weight[:, None, None]
    size = fields.shape[0] * 3
    return np.asarray(turned.reshape(size, -1).T @ fields.reshape(size, -1))
