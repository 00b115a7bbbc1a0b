"""Calibrated probabilities of a match: that the second photo shows the point, and that it is right.

Logistic maps of four features, fitted by ``python -m benchmarks.matching fit`` to pairs of rendered
views. The constants here are part of what a feature means, so they are no settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from dff.aligner.matching.surface import Projection
from dff.face.arrays import Array, Float, Floats

FEATURES = ("facing", "clear", "mask", "similarity")
"""How the fitted mesh of the second photo turns the point to the camera, near the edge; how little
of the mesh lies before it; log odds that the pixel there shows the face; and the Bhattacharyya
coefficient at the match."""

EDGE = 0.1  # cosine to the camera on either side of which visibility falls
HIDDEN = 0.03  # metres: lying farther behind the visible surface says nothing more
SURE = 6.0  # log odds of the face: larger ones say nothing more

CLOSE = 0.05
"""Fraction of the face's landmark box (root of its area): a match is right when it errs less."""


@dataclass(frozen=True)
class MatchCalibration:
    """Logistic weights of ``FEATURES`` and, last, an offset."""

    visible: Float[Array, " weights"]  # that the second photo shows the point
    right: Float[Array, " weights"]  # that it does, and the match lies within ``CLOSE`` of it

    def probabilities(self, features: Floats) -> tuple[Floats, Floats]:
        """(N,) probabilities of visibility and of a right match, from (N, 4) features."""
        visible, right = (
            np.asarray(expit(features @ weight[:-1] + weight[-1]))
            for weight in (self.visible, self.right)
        )
        return visible, np.minimum(right, visible)


def match_features(projection: Projection, face_logit: Floats, similarity: Floats) -> Floats:
    """(N, 4) ``FEATURES`` of N points: projected by the fit, (N,) log odds of the face there, and
    (N,) Bhattacharyya coefficients at their matches.
    """
    return np.stack(
        [
            np.clip(projection.facing, -EDGE, EDGE),
            -np.minimum(projection.behind, HIDDEN),
            np.clip(face_logit, -SURE, SURE),
            similarity,
        ],
        axis=1,
    )


CALIBRATION = MatchCalibration(
    visible=np.array([6.58, 144.41, 0.43, 2.73, -2.04]),
    right=np.array([2.76, 111.61, 0.28, 3.79, -3.19]),
)
"""Of ``dff-open``; docs/experiments/descriptor.md has the figures."""
