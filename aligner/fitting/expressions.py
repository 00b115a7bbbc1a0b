"""Correction of expressions: what the descriptors about a fitted face say about its activations.

A fit explains the matches of all pixels by few latent directions, under a prior. Activations that
move few pixels are drawn towards rest: closed lids stay half open. The descriptors there show more;
the map is learned on rendered views (``dff.aligner.evaluation.expression_correction``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numba
import numpy as np

from dff.aligner.config import VisibilityConfig
from dff.aligner.fitting.correction import center_features, sample_descriptors
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.visibility import Visibility
from dff.face.arrays import Floats, Ints
from dff.face.descriptor import STRIDE
from dff.face.fused_network import SparseFeatures
from dff.face.geometry.camera import NearPerspective
from dff.face.geometry.transform import Rigid
from dff.face.model.landmarks import MIRROR
from dff.face.numba_cache import CACHE
from dff.face.solve.expression_correction import (
    EYE_CORNERS,
    EYE_POINTS,
    MIRRORED_EYE_POINTS,
    ExpressionCorrection,
    fill_eye_points,
    place_eye_points,
)

MIRRORED_POINTS = np.concatenate([MIRROR, 68 + MIRRORED_EYE_POINTS])


class ExpressionCorrector(Protocol):
    """Finds what the expressions of a pass's fits miss, by what its observation shows."""

    def correct(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> Floats:
        """(B, E) activations to add to those of the fits.

        ``visibility``: of their meshes. ``mirrored``: whether the network saw the mirrored crops.
        """
        ...


class LearnedExpressionCorrector:
    """Applies an ``ExpressionCorrection`` to the fits of a fit model."""

    def __init__(
        self, fit_model: FitModel, correction: ExpressionCorrection, config: VisibilityConfig
    ) -> None:
        self.fit_model, self.config = fit_model, config
        self.correction = correction.in_single_precision()
        self.mirrored_units = mirror_units(fit_model.model.expression_names)

    def correct(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> Floats:
        """As ``ExpressionCorrector.correct``."""
        seen, visible = read_face_descriptors(
            self.fit_model, self.config, observation, state, visibility, mirrored=mirrored
        )
        features = center_features(seen, visible, self.correction.mean)
        fitted = read_expressions(self.fit_model, state).astype(np.float32)
        units = self.mirrored_units if mirrored else slice(None)
        change = self.correction.change(features, fitted[:, units])
        return np.asarray(change[:, units], np.float64)


class EyeReader:
    """Applies the eyes' network of an ``ExpressionCorrection`` to few pixels of a crop.

    Each point over the eyes takes the descriptor of its pixel, without interpolation.
    """

    def __init__(self, correction: ExpressionCorrection) -> None:
        single, first = correction.in_single_precision(), correction.landmarks.shape[1]
        self.units = correction.eye_units
        self.mean, self.hidden = single.mean[68:], single.eyes
        self.hidden_offset = single.hidden_offset[first:]
        self.weight = np.ascontiguousarray(single.weight[first:, self.units])
        self.fitted = correction.fitted[:, self.units]  # for each fitted activation

    def read(
        self,
        features: SparseFeatures,
        crops: Crops,
        corners: Floats,
        cam_from_head: Rigid,
        camera: NearPerspective,
    ) -> Floats:
        """(N,) change of the activations ``units`` of one face, but for ``fitted`` and constants.

        ``features`` of the first of the ``crops``. (4, 3) ``corners`` of the eyes in head:
        ``EYE_CORNERS``.
        """
        pixels = np.empty(EYE_POINTS, np.int64)
        _find_eye_pixels(
            corners,
            cam_from_head.rotation,
            cam_from_head.translation,
            camera.scale,
            camera.centre,
            camera.inverse_depth,
            crops.centre[0],
            crops.size / crops.side[0] / STRIDE,
            crops.angle[0],
            features.face_logit.shape,
            pixels,
        )
        out = np.empty(len(self.units))
        described = features.describe(pixels)
        _apply_network(described, self.mean, self.hidden, self.hidden_offset, self.weight, out)
        return out


def read_expressions(fit_model: FitModel, state: FitState) -> Floats:
    """(B, E) the activations of B fits."""
    count, identities = fit_model.moving_modes, len(fit_model.model.identity)
    return np.asarray(state.coefficients[:, :count] @ fit_model.modes[:count, identities:])


def read_face_descriptors(
    fit_model: FitModel,
    config: VisibilityConfig,
    observation: Observation,
    state: FitState,
    visibility: Visibility,
    *,
    mirrored: bool,
) -> tuple[Floats, Floats]:
    """(B, P, D) descriptors at landmarks and eye points of B faces, and (B, P) what counts of them.

    Float32. A landmark counts by its visibility, an eye point always. Of the mirrored faces where
    the network saw the ``mirrored`` crops.
    """
    landmarks = fit_model.landmarks(state)
    eyes = place_eye_points(landmarks[:, EYE_CORNERS])
    points = np.concatenate([landmarks, eyes], axis=1)
    places = observation.crops.crop_from_photo(points) / STRIDE
    seen = sample_descriptors(observation.descriptor, places).astype(np.float32)
    visible = np.ones(seen.shape[:2], np.float32)
    visible[:, :68] = visibility.landmarks(config.occlusion)
    return (seen[:, MIRRORED_POINTS], visible[:, MIRRORED_POINTS]) if mirrored else (seen, visible)


def find_blinks(names: Sequence[str]) -> list[int]:
    """The rows of the expressions that shut an eye."""
    return [row for row, name in enumerate(names) if name.startswith("eyeBlink")]


def mirror_units(names: Sequence[str]) -> Ints:
    """(E,) for each expression the row of that of the mirrored face; its own where there is none.

    Names as ARKit's: ``eyeBlinkLeft`` and ``eyeBlinkRight``.
    """
    row = {name: i for i, name in enumerate(names)}
    swapped = [name.replace("Left", "#").replace("Right", "Left") for name in names]
    return np.array([row.get(name.replace("#", "Right"), i) for i, name in enumerate(swapped)])


@numba.njit(cache=CACHE, nogil=True)
def _find_eye_pixels(  # type: ignore[no-untyped-def]
    corners,
    rotation,
    translation,
    scale,
    centre,
    inverse_depth,
    crop_centre,
    ratio,
    angle,
    shape,
    pixels,
):
    """Fill (``EYE_POINTS``,) ``pixels``: numbers, row by row, of those that show the points.

    ``ratio``: pixels of the map of ``shape``, for each of the photo.
    """
    px = np.empty((4, 2))
    for n in range(4):
        z = translation[2]
        for k in range(3):
            z += rotation[2, k] * corners[n, k]
        for c in range(2):
            at = translation[c]
            for k in range(3):
                at += rotation[c, k] * corners[n, k]
            px[n, c] = at * scale / (1.0 + inverse_depth * z) + centre[c] - crop_centre[c]
    points = np.empty((len(pixels), 2))
    fill_eye_points(px, points)
    cos, sin = ratio * np.cos(angle), ratio * np.sin(angle)
    height, width = shape
    for n in range(len(pixels)):
        x, y = points[n]
        column = int(np.floor(cos * x + sin * y + 0.5 * width))
        row = int(np.floor(cos * y - sin * x + 0.5 * height))
        column, row = min(max(column, 0), width - 1), min(max(row, 0), height - 1)
        pixels[n] = row * width + column


@numba.njit(cache=CACHE, nogil=True, fastmath=True)
def _apply_network(seen, mean, hidden, hidden_offset, weight, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with the answers of a hidden layer to (points, channels) descriptors."""
    inner, channels = hidden_offset.copy(), seen.shape[1]
    for n in range(len(seen)):
        for d in range(channels):
            value, row = seen[n, d] - mean[n, d], hidden[n * channels + d]
            for k in range(len(inner)):
                inner[k] += value * row[k]
    out[:] = 0.0
    for k in range(len(inner)):
        if inner[k] > 0.0:
            for unit in range(len(out)):
                out[unit] += inner[k] * weight[k, unit]
