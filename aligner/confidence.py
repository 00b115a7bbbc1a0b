"""How far a photo bears a fit out: for each landmark and for the whole face.

A fit's *evidence* is a few named numbers, each oriented so that more of it speaks for the fit. What
they are worth is a ``Calibration``: logistic maps with weights that are never negative, fitted on
held-out data by ``dff.aligner.evaluation.calibration``. They turn the evidence into probabilities:

* a face's confidence: that the mean error of its 68 landmarks is below ``GOOD`` of the face's box;
* a landmark's visibility: that the photo shows it, neither turned away nor covered;
* a landmark's confidence: that the photo shows it and it lies within ``CLOSE`` of the face's box of the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dff.aligner.fitting.correspondence import Matches, disagreement
from dff.face.arrays import Bools, Floats, Ints

NEAR_MATCH = 0.035  # fraction of the unit: a match this far from its prediction agrees to 60 %
GATE = 0.1  # fraction of the unit beyond which a match is another point altogether
HIDDEN = 0.03  # metres: lying farther behind the visible surface says nothing more
NEAR = (0.03, 0.06)  # fractions of the unit: the neighbourhoods that speak for a landmark
OFFSETS = np.array(
    sorted(
        ((x, y) for x in range(-2, 3) for y in range(-2, 3)),
        key=lambda o: max(abs(o[0]), abs(o[1])),
    )
)
INNERMOST = 9  # of the offsets: those within one pixel of the grid

# fraction of the face's box (root of its area): a face is aligned when its landmarks err less on
# average
GOOD = 0.08
CLOSE = 0.05  # fraction of the face's box: a landmark is right when it errs less

FAILED_BELOW = 0.5
"""A face whose confidence lies below this is reported as failed: it is more likely wrong than
right.
"""

FACE = ("agreement", "precision", "support", "cover", "stillness")
"""Evidence for a face: odds of the share of its pixels that agree; how near they lie to the fit;
how fully its exposed landmarks are surrounded by pixels that agree, and by pixels of the face; how
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
"""Evidence for a landmark: how the fitted mesh turns it to the camera, near the edge and at all,
and how little lies before it; pixels that agree about it, within both of ``NEAR``; the network's
mask and its likeness to the landmark's own descriptor, within one and two pixels of the network's
grid."""


def agreement(
    matches: Matches, px: Floats, predicted: Floats, visible: Floats, unit: Floats
) -> tuple[Floats, Floats]:
    """(B, N) agreement of each pixel, and (B,) mean distance of the agreeing matches as a fraction
    of the unit.

    Agreement is the probability that the pixel shows the face and matches a visible point that the
    fit puts close to it. The arguments are those of ``matching.vote``; (B,) ``unit`` pixels.
    """
    offset, weight = disagreement(matches, px, predicted, GATE * unit, visible)
    distance = np.linalg.norm(offset, axis=2) / unit[:, None]
    agrees = weight * np.exp(-0.5 * (distance / NEAR_MATCH) ** 2)
    total = np.maximum(agrees.sum(1), 1e-9)
    return agrees, (agrees * distance).sum(1) / total


def surroundings(
    agrees: Floats, mask: Floats, px: Floats, landmarks: Floats, unit: Floats, pitch: Floats
) -> Floats:
    """(B, L, 2, 2): for each of ``NEAR``, how fully pixels of the face and pixels that agree
    surround each landmark.

    (B, N) ``agrees`` and ``mask`` at (B, N, 2) ``px``, zero in unused rows; (B, L, 2)
    ``landmarks``; (B,) ``pitch``: pixels of the photo between neighbouring matched pixels. One is a
    full disc: face's edges have about a half.
    """
    # In units of the face about its middle, where single precision is plenty.
    middle = landmarks.mean(axis=1, keepdims=True)
    places, pixels = ((points - middle) / unit[:, None, None] for points in (landmarks, px))
    places, pixels = places.astype(np.float32), pixels.astype(np.float32)
    square = (places[:, :, None, 0] - pixels[:, None, :, 0]) ** 2 + (
        places[:, :, None, 1] - pixels[:, None, :, 1]
    ) ** 2
    both = np.stack([mask, agrees], axis=2).astype(np.float32)
    out = []
    for reach in NEAR:
        near = np.exp(square * np.float32(-0.5 / reach**2))
        disc = 2 * np.pi * (reach * unit / pitch) ** 2
        out.append(np.matmul(near, both) / disc[:, None, None])
    return np.stack(out, axis=2)


def probe(descriptor: Floats, face_logit: Floats, places: Floats, expected: Floats) -> Floats:
    """(B, L, 4): mean mask and best cosine about each landmark, within one and two pixels of the
    grid.
    """
    b, _, height, width = descriptor.shape
    cell = np.floor(places).astype(int)
    inside = ((cell >= 0) & (cell < [width, height])).all(2)
    row = np.clip(cell[..., 1], 2, height - 3)[..., None] + OFFSETS[:, 1]
    column = np.clip(cell[..., 0], 2, width - 3)[..., None] + OFFSETS[:, 0]
    face = np.arange(b)[:, None, None]
    mask = 1.0 / (1.0 + np.exp(-face_logit[face, row, column]))
    cosine = np.einsum("blnd,ld->bln", descriptor[face, :, row, column], expected)
    out = np.stack(
        [
            mask[..., :INNERMOST].mean(2),
            mask.mean(2),
            cosine[..., :INNERMOST].max(2),
            cosine.max(2),
        ],
        axis=2,
    )
    return np.where(np.asarray(inside)[..., None], out, 0.0)


def landmark_evidence(exposure: Floats, around: Floats, probes: Floats) -> Floats:
    """(B, 68, len(LANDMARK)) from the ``exposure`` by the mesh, the ``surroundings`` and what
    ``probe`` saw.
    """
    facing, behind = exposure[..., 0], exposure[..., 1]
    agreeing = np.log(np.clip(around[..., 1], 0.03, 1.0))
    return np.stack(
        [
            np.clip(facing, -0.1, 0.1),
            np.clip(facing, -0.2, 0.6),
            -np.minimum(behind, HIDDEN),
            agreeing[..., 0],
            agreeing[..., 1],
            _odds(probes[..., 0], 0.01),
            _odds(probes[..., 1], 0.01),
            probes[..., 2],
            probes[..., 3],
        ],
        axis=2,
    )


def face_evidence(
    agrees: Floats, mask: Floats, residual: Floats, motion: Floats, exposure: Floats, around: Floats
) -> Floats:
    """(B, len(FACE)) from the (B, N) agreement and mask of the pixels, their mean distance, how far
    the landmarks last moved (fractions of the unit), and what is known of the landmarks, of which
    the exposed ones count."""
    exposed = np.clip((exposure[..., 0] + 0.1) / 0.2, 0.0, 1.0) * (exposure[..., 1] < HIDDEN / 2)
    weight = exposed / np.maximum(exposed.sum(1, keepdims=True), 1e-9)
    # Half a disc is full, as at the face's edges.
    cover, support = (np.minimum(2 * around[:, :, 1], 1.0) * weight[..., None]).sum(1).T
    return np.stack(
        [
            _odds(agrees.sum(1) / np.maximum(mask.sum(1), 1e-9), 0.01),
            -np.log(np.maximum(residual, 0.006)),
            _odds(support, 0.02),
            np.log(np.clip(cover, 0.05, 1.0)),
            -np.log(np.clip(motion, 0.001, 1.0)),
        ],
        axis=1,
    )


@dataclass(frozen=True)
class Evidence:
    """What is known of B fits, or of one without the leading axis. More speaks for the fit."""

    face: Floats  # (B, len(FACE))
    landmarks: Floats  # (B, 68, len(LANDMARK))
    lost: Bools  # (B,) hardly a pixel looked like a face: nothing else counts

    def __getitem__(self, rows: Bools | Ints | int) -> Evidence:
        return Evidence(self.face[rows], self.landmarks[rows], self.lost[rows])

    @staticmethod
    def stacked(some: Sequence[Evidence]) -> Evidence:
        """One of many single ones."""
        return Evidence(
            np.array([one.face for one in some]),
            np.array([one.landmarks for one in some]),
            np.array([one.lost for one in some], dtype=bool),
        )


@dataclass(frozen=True)
class Calibration:
    """What evidence is worth: logistic weights. Raises ValueError for weights of other evidence, or
    negative ones.
    """

    face: Floats  # (len(FACE) + 1,) the last is the offset
    visible: Floats  # (len(LANDMARK) + 1 + 68,) the last are each landmark's offset
    right: Floats  # (the same,)

    def __post_init__(self) -> None:
        lengths = {"face": len(FACE), "visible": len(LANDMARK) + 1, "right": len(LANDMARK) + 1}
        for name, evidences in lengths.items():
            weight = np.asarray(getattr(self, name), dtype=np.float64)
            wanted = evidences + (1 if name == "face" else 68)
            if (
                weight.shape != (wanted,)
                or not np.isfinite(weight).all()
                or (weight[:evidences] < 0).any()
            ):
                raise ValueError(
                    f"Calibration.{name} must be {wanted} finite numbers, weights not negative: {weight}"
                )
            object.__setattr__(self, name, weight)

    @staticmethod
    def from_json(table: Mapping[str, Any]) -> Calibration:
        """Raises ValueError when it was made for other evidence than this program gathers."""
        if [list(table.get(name, ())) for name in ("evidence", "landmark_evidence")] != [
            list(FACE),
            list(LANDMARK),
        ]:
            raise ValueError(
                "the calibration was made for other evidence: make it again with dff calibrate"
            )
        return Calibration(
            *(np.array(table.get(name, ()), np.float64) for name in ("face", "visible", "right"))
        )

    def to_json(self) -> dict[str, Any]:
        weights = {
            name: [round(float(w), 4) for w in getattr(self, name)]
            for name in ("face", "visible", "right")
        }
        return {"evidence": list(FACE), "landmark_evidence": list(LANDMARK), **weights}

    def face_confidence(self, evidence: Evidence) -> Floats:
        """(B,) probability that the mean error is below ``GOOD``; zero for the lost."""
        return face_probability(evidence, self.face)

    def landmark_confidence(self, evidence: Evidence) -> tuple[Floats, Floats]:
        """(B, 68) probabilities that each landmark is seen, and that it is seen and right; zero for
        the lost.
        """
        rows = with_face(evidence, self.face_confidence(evidence))
        found = np.where(evidence.lost, 0.0, 1.0)[:, None]
        seen, right = (
            found * _sigmoid(rows @ weight[: len(LANDMARK) + 1] + weight[len(LANDMARK) + 1 :])
            for weight in (self.visible, self.right)
        )
        return seen, np.minimum(right, seen)


def face_probability(evidence: Evidence, weight: Floats) -> Floats:
    """(B,) ``Calibration.face_confidence`` by (len(FACE) + 1,) weights."""
    return np.where(evidence.lost, 0.0, _sigmoid(evidence.face @ weight[:-1] + weight[-1]))


def with_face(evidence: Evidence, face_confidence: Floats) -> Floats:
    """(B, 68, len(LANDMARK) + 1): the evidence for each landmark and, last, for its face."""
    face = np.broadcast_to(
        _odds(face_confidence, 0.02)[:, None, None], (*evidence.landmarks.shape[:2], 1)
    )
    return np.concatenate([evidence.landmarks, face], axis=2)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -50, 50))))


def _odds(p: Floats, least: float) -> Floats:
    p = np.clip(p, least, 1.0 - least)
    return np.asarray(np.log(p / (1.0 - p)))


DEFAULT = Calibration(
    face=np.array([0.633, 3.99, 1.24, 0.929, 0.753, -21.3]),
    visible=np.array([6.31, 0, 95.9, 0, 0.275, 0, 0.0789, 0, 6.14, 0.0765] + [-3.56] * 68),
    right=np.array([2.46, 0, 92.5, 0, 0.716, 0, 0.0599, 5.78, 0, 0.264] + [-4.18] * 68),
)
"""For weights whose file has none; ``dff calibrate`` measures it for each."""
