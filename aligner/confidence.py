"""Confidence: how well a photo supports a fit, for each landmark and for the whole face.

The *calibration features* of a fit are a few named numbers, each oriented so that more of it speaks
for the fit. A ``Calibration`` turns them into probabilities: logistic maps with weights that are
never negative, fitted on held-out data by ``dff.aligner.evaluation.calibration``.

* A face's confidence: that the mean error of its 68 landmarks is below ``GOOD`` of the face's box.
* A landmark's visibility: that the photo shows it, neither turned away nor covered.
* A landmark's confidence: that the photo shows it and it lies within ``CLOSE`` of the face's box of
  the truth.

The constants here are part of what a feature means: calibrations in weights files are fitted to
them, so they are no settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from scipy.special import expit, logit

from dff.aligner.alignment import CalibrationFeatures
from dff.aligner.fitting.face_fit import FaceFit
from dff.aligner.fitting.visibility import soft_facing
from dff.face.arrays import Array, Float, Floats
from dff.face.model.landmarks import LEFT_EYE, LOWER_JAW, MOUTH, NOSE_BOTTOM, RIGHT_EYE
from dff.face.numba_cache import CACHE

HIDDEN = 0.03  # metres: lying farther behind the visible surface says nothing more
FAINTEST = -16.0  # logarithm of a share of a pixel that no longer counts
NEAR = (0.03, 0.06)  # fractions of the face size: the neighbourhoods that support a landmark

# fraction of the face's box (root of its area): a face is aligned when its landmarks err less on
# average
GOOD = 0.08
CLOSE = 0.05  # fraction of the face's box: a landmark is right when it errs less

FAILED_BELOW = 0.5
"""A face of lower confidence is reported as failed: it is more likely wrong than right."""

SURE_FROM = 0.75
"""A face of lower confidence is reported as unsure, and searched for in quarter turns too."""

FACE = ("agreement", "precision", "support", "cover", "stillness")
"""Features of a face: log odds of the share of its pixels that agree; how near they lie to the fit;
how fully its visible landmarks are surrounded by pixels that agree, and by pixels of the face; how
little the last pass changed."""

LANDMARK = (
    "facing",
    "turn",
    "clear",
    "support_near",
    "support",
    "mask_near",
    "mask",
    "match_near",
    "match",
)
"""Features of a landmark: how the fitted mesh turns it to the camera, near the edge and at all, and
how little lies before it; pixels around it that agree, within both of ``NEAR``; the network's mask
and its similarity to the landmark's own descriptor, within one and two pixels of the network's
grid."""


def calibration_features(fit: FaceFit, face_size: Floats) -> CalibrationFeatures:
    """The features of B fits whose faces are (B,) ``face_size`` pixels large."""
    around = surroundings(
        fit.agreement, fit.matches.mask, fit.px, fit.landmarks, face_size, fit.pitch
    )
    return CalibrationFeatures(face_features(fit, around), landmark_features(fit, around), fit.lost)


def surroundings(
    agreement: Floats, mask: Floats, px: Floats, landmarks: Floats, face_size: Floats, pitch: Floats
) -> Floats:
    """(B, L, 2, 2) how fully pixels of the face, and those that agree, surround each landmark.

    For each of ``NEAR``. (B, N) ``agreement`` and ``mask`` at (B, N, 2) ``px``, zero in unused
    rows; (B, L, 2) ``landmarks``; (B,) ``pitch``: pixels of the photo between neighbouring matched
    pixels. One is a full disc: the edge of a face has about a half.
    """
    out = np.zeros((*landmarks.shape[:2], len(NEAR), 2))
    for face in range(len(out)):
        reach = np.array(NEAR) * face_size[face]
        _surround(landmarks[face], px[face], mask[face], agreement[face], reach, out[face])
        out[face] /= (2 * np.pi * (reach / pitch[face]) ** 2)[:, None]
    return out


@numba.njit(cache=CACHE, nogil=True, error_model="numpy")
def _surround(places, px, mask, agreement, reach, out):  # type: ignore[no-untyped-def]
    """Add the mask and the agreement of pixels to (L, R, 2) ``out``, by Gaussians of each reach."""
    slope = -0.5 / reach**2
    for n in range(len(px)):
        if mask[n] == 0.0 and agreement[n] == 0.0:
            continue
        for place in range(len(places)):
            dx, dy = places[place, 0] - px[n, 0], places[place, 1] - px[n, 1]
            square = dx * dx + dy * dy
            for r in range(len(reach)):
                if square * slope[r] > FAINTEST:
                    near = np.exp(square * slope[r])
                    out[place, r, 0] += near * mask[n]
                    out[place, r, 1] += near * agreement[n]


def landmark_features(fit: FaceFit, around: Floats) -> Floats:
    """(B, 68, len(LANDMARK)), from the fits and the ``surroundings`` of their landmarks."""
    facing, behind = fit.visibility.facing, fit.visibility.depth_behind
    agreeing = np.log(_limit(around[..., 1], 0.03, 1.0))
    return np.stack(
        [
            _limit(facing, -0.1, 0.1),
            _limit(facing, -0.2, 0.6),
            -np.minimum(behind, HIDDEN),
            agreeing[..., 0],
            agreeing[..., 1],
            _log_odds(fit.probes[..., 0], 0.01),
            _log_odds(fit.probes[..., 1], 0.01),
            fit.probes[..., 2],
            fit.probes[..., 3],
        ],
        axis=2,
    )


def face_features(fit: FaceFit, around: Floats) -> Floats:
    """(B, len(FACE)) features of faces: of the fits, and ``around`` their visible landmarks.

    ``around``: as ``surroundings`` returns them.
    """
    visibility, mask = fit.visibility, fit.matches.mask
    visible = soft_facing(visibility.facing) * (visibility.depth_behind < HIDDEN / 2)
    weight = visible / np.maximum(visible.sum(1, keepdims=True), 1e-9)
    # Half a disc is full, as at the face's edges.
    cover, support = (np.minimum(2 * around[:, :, 1], 1.0) * weight[..., None]).sum(1).T
    return np.stack(
        [
            _log_odds(fit.agreement.sum(1) / np.maximum(mask.sum(1), 1e-9), 0.01),
            -np.log(np.maximum(fit.residual, 0.006)),
            _log_odds(support, 0.02),
            np.log(_limit(cover, 0.05, 1.0)),
            -np.log(_limit(fit.motion, 0.001, 1.0)),
        ],
        axis=1,
    )


@dataclass(frozen=True)
class Calibration:
    """Logistic weights of the features.

    Raises ValueError for weights of other features, or negative ones.
    """

    face: Float[Array, " face_weights"]  # len(FACE) + 1: the last is the offset
    # len(LANDMARK) + 1 + 68: of the features, of the face's confidence, offsets of the landmarks
    visible: Float[Array, " landmark_weights"]
    right: Float[Array, " landmark_weights"]

    def __post_init__(self) -> None:
        lengths = {"face": len(FACE), "visible": len(LANDMARK) + 1, "right": len(LANDMARK) + 1}
        for name, features in lengths.items():
            weight = np.asarray(getattr(self, name), dtype=np.float64)
            wanted = features + (1 if name == "face" else 68)
            finite = weight.shape == (wanted,) and bool(np.isfinite(weight).all())
            if not finite or (weight[:features] < 0).any():
                raise ValueError(
                    f"Calibration.{name} must be {wanted} finite numbers, weights not negative: "
                    f"{weight}"
                )

    @staticmethod
    def from_json(table: Mapping[str, Any]) -> Calibration:
        """Raises ValueError when it was made for other features than this program computes."""
        names = [list(table.get(name, ())) for name in ("face_features", "landmark_features")]
        if names != [list(FACE), list(LANDMARK)]:
            raise ValueError(
                "the calibration was made for other features: make it again with dff calibrate"
            )
        return Calibration(
            *(np.array(table.get(name, ()), np.float64) for name in ("face", "visible", "right"))
        )

    def to_json(self) -> dict[str, Any]:
        """Plain lists, weights rounded to four digits, and the names of the features."""
        weights = {
            name: [round(float(w), 4) for w in getattr(self, name)]
            for name in ("face", "visible", "right")
        }
        return {"face_features": list(FACE), "landmark_features": list(LANDMARK), **weights}

    def face_confidence(self, features: CalibrationFeatures) -> Floats:
        """(B,) probability that the mean error is below ``GOOD``; zero for the lost."""
        return face_probability(features, self.face)

    def landmark_confidence(self, features: CalibrationFeatures) -> tuple[Floats, Floats]:
        """(B, 68) probabilities that each landmark is seen, and that it is seen and right.

        Zero for the lost.
        """
        rows = append_face(features, self.face_confidence(features))
        found = np.where(features.lost, 0.0, 1.0)[:, None]
        weighted = len(LANDMARK) + 1
        seen, right = (
            found * _sigmoid(rows @ weight[:weighted] + weight[weighted:])
            for weight in (self.visible, self.right)
        )
        seen = doubt_mouths(seen)
        return seen, np.minimum(right, seen)


def eye_similarity(features: CalibrationFeatures) -> Floats:
    """(...) the network's mean similarity to the landmarks of the eyes, of the lesser eye.

    Cosines. ``features`` of one fit or of many.
    """
    match = features.landmarks[..., LANDMARK.index("match")]
    return np.minimum(match[..., RIGHT_EYE].mean(-1), match[..., LEFT_EYE].mean(-1))


def doubt_mouths(seen: Floats) -> Floats:
    """(B, 68) visibilities, without those of mouths between a hidden nose base and a hidden jaw.

    A mask hides the mouth between them: what looks like one is printed on it. Where both are more
    likely hidden than visible, no point of the mouth is more likely visible than they are. The
    chin alone does not tell: the lower edge of a mask looks like one.
    """
    around = np.maximum(seen[:, NOSE_BOTTOM].mean(1), seen[:, LOWER_JAW].mean(1))[:, None]
    out = seen.copy()
    out[:, MOUTH] = np.where(around < 0.5, np.minimum(seen[:, MOUTH], around), seen[:, MOUTH])
    return out


def face_probability(features: CalibrationFeatures, weight: Floats) -> Floats:
    """(B,) ``Calibration.face_confidence`` by (len(FACE) + 1,) weights."""
    return np.where(features.lost, 0.0, _sigmoid(features.face @ weight[:-1] + weight[-1]))


def append_face(features: CalibrationFeatures, face_confidence: Floats) -> Floats:
    """(B, 68, len(LANDMARK) + 1) the features of each landmark and, last, its face's log odds."""
    log_odds = _log_odds(face_confidence, 0.02)[:, None, None]
    face = np.broadcast_to(log_odds, (*features.landmarks.shape[:2], 1))
    return np.concatenate([features.landmarks, face], axis=2)


def _limit(x: Floats, least: float, most: float) -> Floats:
    # np.clip takes longer than the rest of what is done to so few numbers
    return np.minimum(np.maximum(x, least), most)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(expit(_limit(x, -50, 50)))


def _log_odds(p: Floats, least: float) -> Floats:
    return np.asarray(logit(_limit(p, least, 1.0 - least)))


DEFAULT = Calibration(
    face=np.array([0.633, 3.99, 1.24, 0.929, 0.753, -21.3]),
    visible=np.array([6.31, 0, 95.9, 0, 0.275, 0, 0.0789, 0, 6.14, 0.0765] + [-3.56] * 68),
    right=np.array([2.46, 0, 92.5, 0, 0.716, 0, 0.0599, 5.78, 0, 0.264] + [-4.18] * 68),
)
"""For weights whose file has none; ``dff calibrate`` measures it for each."""
