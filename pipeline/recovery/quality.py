"""One number from 0 to 1 for how far a recovered face can be trusted.

It is the logistic function of a weighted sum of what the fit itself shows: do the points lie where
a face has them, does the rendering have the photo's structure and colours, is what was found a
likely face. The weights come from photos whose landmarks were deliberately corrupted against
untouched ones (``benchmarks.quality --refit``).
"""

from __future__ import annotations

import numpy as np

from dff.face.arrays import Floats

EVIDENCE = (
    "landmark_error_typical",
    "landmark_error",
    "wrong_points",
    "colour_error_with_occluders",
    "structure",
    "occluded",
    "identity",
    "outside",
)
"""What of ``Recovery.quality`` the score weighs, each in units of how much it differs between
photos.
"""

USUAL = np.array([0.012, 0.02, 0.02, 0.065, 0.65, 0.08, 0.6, 0.0])
UNIT = np.array([0.005, 0.01, 0.05, 0.03, 0.12, 0.1, 0.2, 0.05])
REACH = 5.0  # units: what lies further off says no more
WEIGHTS = np.array(
    [0.3, -3.11, 0.96, 0.59, 1.79, -0.74, 1.06, -2.18, 5.82]
)  # of the evidence; the bias last
"""A logistic regression: evidence that goes along with other evidence may weigh against its own
meaning.
"""


def evidence_of(quality: dict[str, float]) -> Floats:
    """(E,) evidence in units, 0 for a usual photo."""
    values = np.array([quality[name] for name in EVIDENCE])
    return np.asarray(np.clip((values - USUAL) / UNIT, -REACH, REACH))


def score_of(evidence: Floats, weights: Floats | None = None) -> float:
    """0 (a bad fit) to 1 (a good one) of (E,) evidence."""
    chosen = WEIGHTS if weights is None else weights
    return float(1.0 / (1.0 + np.exp(-(evidence @ chosen[:-1] + chosen[-1]))))
