"""A score from 0 to 1 for how far a recovered face can be trusted.

It is the logistic function of a weighted sum of what the fit itself shows: do the points lie where
a face has them, has the rendering the photo's structure and colours, is what was found a likely
face. The weights come from photos whose landmarks were deliberately corrupted against untouched
ones (``benchmarks.quality --refit``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from dff.face.arrays import Array, Float, Floats


@dataclass(frozen=True)
class Feature:
    """A figure of ``Recovery.quality`` that the score weighs."""

    usual: float  # value of a usual photo
    unit: float  # how much it differs between photos
    weight: float  # in the score, for each unit


FEATURES: Mapping[str, Feature] = {
    "landmark_error_typical": Feature(0.012, 0.005, 0.3),
    "landmark_error": Feature(0.02, 0.01, -3.11),
    "wrong_points": Feature(0.02, 0.05, 0.96),
    "colour_error_with_occluders": Feature(0.065, 0.03, 0.59),
    "structure": Feature(0.65, 0.12, 1.79),
    "occluded": Feature(0.08, 0.1, -0.74),
    "identity": Feature(0.6, 0.2, 1.06),
    "outside": Feature(0.0, 0.05, -2.18),
}
"""Of a logistic regression, where a feature that goes along with others may weigh against its own
meaning."""

BIAS = 5.82
LIMIT = 5.0  # units: what lies further off says no more


@dataclass(frozen=True)
class ScoreWeights:
    """The weights of the score."""

    features: Float[Array, " features"]  # in the order of ``FEATURES``, for each unit
    bias: float


SHIPPED = ScoreWeights(np.array([feature.weight for feature in FEATURES.values()]), BIAS)


def measure_features(quality: Mapping[str, float]) -> Floats:
    """(features,) in units, 0 for a usual photo, of ``Recovery.quality``."""
    values = np.array([quality[name] for name in FEATURES])
    usual = np.array([feature.usual for feature in FEATURES.values()])
    unit = np.array([feature.unit for feature in FEATURES.values()])
    return np.asarray(np.clip((values - usual) / unit, -LIMIT, LIMIT))


def score_fit(features: Floats, weights: ScoreWeights = SHIPPED) -> float:
    """0 (a bad fit) to 1 (a good one) of (features,) ``measure_features``."""
    return float(expit(features @ weights.features + weights.bias))
