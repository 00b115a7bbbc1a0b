"""Correction of fits: what the descriptors at a face's landmarks say that its fit still misses.

Errors of a dense fit are systematic where the face model's prior or the network's errors pull all
matches together. The descriptors at the landmarks of the fitted face tell part of them, since they
are those of other points of the face. A linear map, learned on rendered views
(``dff.aligner.evaluation.fit_correction``), predicts the remaining change of pose and shape.
"""

from __future__ import annotations

from typing import Protocol

import numba
import numpy as np

from dff.aligner.config import VisibilityConfig
from dff.aligner.fitting.change import apply_change, mirror_change
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.visibility import Visibility
from dff.face.arrays import Floats
from dff.face.descriptor import STRIDE
from dff.face.model.landmarks import MIRROR
from dff.face.model.morphable import Coefficients
from dff.face.numba_cache import CACHE
from dff.face.solve.fit_correction import FitCorrection
from dff.face.solve.gauss_newton import POSE


class Corrector(Protocol):
    """Changes the fits of a pass by what its observation shows at their landmarks."""

    def correct(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> FitState:
        """The corrected states of B faces.

        ``visibility``: of their meshes. ``mirrored``: whether the network saw the mirrored crops.
        """
        ...


class LinearCorrector:
    """Applies a ``FitCorrection`` to the fits of a fit model."""

    def __init__(
        self, fit_model: FitModel, correction: FitCorrection, config: VisibilityConfig
    ) -> None:
        self.fit_model, self.correction, self.config = fit_model, correction, config
        identities = len(fit_model.model.identity)
        latent = np.stack(
            [
                fit_model.latent(Coefficients(row[:identities], row[identities:]))
                for row in correction.directions.astype(np.float64)
            ]
        )
        both = np.column_stack([correction.weight.T, correction.offset]).astype(np.float64)
        changes = np.concatenate([both[:POSE], latent.T @ both[POSE:]])
        # in single precision: it is read from memory for each face
        self.weight = np.ascontiguousarray(changes[:, :-1].T, np.float32)
        self.offset = changes[:, -1]

    def correct(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> FitState:
        """As ``Corrector.correct``."""
        change = self.predict(observation, state, visibility, mirrored=mirrored)
        if mirrored:
            change = mirror_change(change, self.fit_model.mirrored_latents)
        size = self.fit_model.face_size(state)
        return apply_change(state, change, observation.crops.angle, size)

    def predict(
        self,
        observation: Observation,
        state: FitState,
        visibility: Visibility,
        *,
        mirrored: bool = False,
    ) -> Floats:
        """(B, 6 + P) changes that the fits still miss, as of ``change_between``.

        Of the mirrored faces where the network saw the ``mirrored`` crops.
        """
        seen, visible = read_landmark_descriptors(
            self.fit_model, self.config, observation, state, visibility, mirrored=mirrored
        )
        rows = center_features(seen, visible, self.correction.mean)
        return np.asarray(rows.astype(np.float32) @ self.weight + self.offset)


def read_landmark_descriptors(
    fit_model: FitModel,
    config: VisibilityConfig,
    observation: Observation,
    state: FitState,
    visibility: Visibility,
    *,
    mirrored: bool,
) -> tuple[Floats, Floats]:
    """(B, 68, D) descriptors at the landmarks of B faces, and (B, 68) their visibility, 0 to 1.

    Of the mirrored faces where the network saw the ``mirrored`` crops.
    """
    places = observation.crops.crop_from_photo(fit_model.landmarks(state)) / STRIDE
    seen = sample_descriptors(observation.descriptor, places)
    visible = visibility.landmarks(config.occlusion)
    return (seen[:, MIRROR], visible[:, MIRROR]) if mirrored else (seen, visible)


def center_features(seen: Floats, visible: Floats, mean: Floats) -> Floats:
    """(B, P * D) features of (B, P, D) descriptors: zero where points are hidden."""
    return np.asarray((seen - mean) * visible[..., None]).reshape(len(seen), -1)


def prepare_features(seen: Floats, visible: Floats) -> tuple[Floats, Floats]:
    """The features of N faces as a map is learned from, and the (68, D) mean that they lack.

    (N, 68, D) ``seen`` descriptors, float16, and (N, 68) ``visible``; float32 features.
    """
    mean = (seen.astype(np.float64) * visible[..., None]).sum(0)
    mean /= np.maximum(visible.sum(0)[:, None], 1.0)
    return center_features(seen.astype(np.float32), visible, mean).astype(np.float32), mean


def sample_descriptors(descriptor: Floats, places: Floats) -> Floats:
    """(B, L, D) descriptors at (B, L, 2) places of the grid, interpolated between its pixels.

    (B, D, h, w) ``descriptor``. Places outside of the grid take the nearest pixel's.
    """
    rows = descriptor.transpose(0, 2, 3, 1)  # as the fast networks write them
    out = np.empty((*places.shape[:2], rows.shape[3]))
    for face in range(len(out)):
        _interpolate(rows[face], places[face], out[face])
    return out


@numba.njit(cache=CACHE, nogil=True)
def _interpolate(descriptor, places, out):  # type: ignore[no-untyped-def]
    height, width, dims = descriptor.shape
    for n in range(len(places)):
        x = min(max(places[n, 0] - 0.5, 0.0), width - 1.0)
        y = min(max(places[n, 1] - 0.5, 0.0), height - 1.0)
        left, top = min(int(x), width - 2), min(int(y), height - 2)
        right_share, low_share = x - left, y - top
        for d in range(dims):
            upper = descriptor[top, left, d] * (1.0 - right_share)
            upper += descriptor[top, left + 1, d] * right_share
            lower = descriptor[top + 1, left, d] * (1.0 - right_share)
            lower += descriptor[top + 1, left + 1, d] * right_share
            out[n, d] = upper * (1.0 - low_share) + lower * low_share
