"""Other starts for faces whose boxes are given, and whose fit from an upright face is in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.config import AlignConfig
from dff.aligner.detection import Detection, same_face
from dff.aligner.fitting.change import turns_about_z
from dff.aligner.fitting.fit_model import FitModel
from dff.face.geometry.camera import Box
from dff.face.solve.gauss_newton import FaceState


@dataclass(frozen=True)
class OtherStarts:
    """Other starts for the face of a given box, and from which of them it is fitted."""

    starts: list[Detection]
    least: float  # confidence after one pass in a small crop from which one is fitted
    least_share: float  # the same over that of the surest one

    @staticmethod
    def of(
        upright: Alignment, box: Box, fit_model: FitModel, config: AlignConfig
    ) -> OtherStarts | None:
        """The starts after an ``upright`` fit; None for one that is not in doubt.

        Where it failed, the first is in the middle of the box, which may hold parts of other faces
        beside its own. Where hardly a pixel of the box looks like a face, its middle shows none,
        nor is there one that is turned slightly.
        A wrong fit that is trusted mostly lies upside down on the face: so the start beside a
        doubtful fit is half a turn away from it.
        """
        turns, depth = config.turned_starts, config.inverse_depth
        if upright.failed:
            lost = upright.features is not None and bool(upright.features.lost)
            starts = [] if lost else [start_in_middle(box, config.second_attempt)]
            if turns is None:
                return OtherStarts(starts, 0.0, 0.0) if starts else None
            degrees = turns.degrees if lost else (*turns.slight, *turns.degrees)
            starts += start_turned(fit_model, box, degrees, depth)
            return OtherStarts(starts, turns.least, turns.least_share)
        if turns is None or upright.face_confidence >= turns.doubtful:
            return None
        up = upright.cam_from_head.rotation[:2, 1]  # the image's y axis points down
        half_turn = 180.0 + np.degrees(np.arctan2(up[0], -up[1]))
        starts = start_turned(fit_model, box, [half_turn], depth)
        return OtherStarts(starts, turns.least_instead, turns.least_share)

    def choose(self, confidences: Sequence[float]) -> list[Detection]:
        """The starts from which the face is fitted, by their confidences after one pass."""
        least = max(self.least, self.least_share * max(confidences))
        return [
            start
            for start, confidence in zip(self.starts, confidences, strict=True)
            if confidence >= least
        ]


def start_in_middle(box: Box, share: float) -> Detection:
    """A start in the middle of a box, ``share`` times as wide and as high."""
    half = share / 2 * np.array([box.width, box.height])
    middle = Box(*(box.centre - half).tolist(), *(box.centre + half).tolist())
    return Detection(middle, given=True)


def start_turned(
    fit_model: FitModel, box: Box, degrees: Sequence[float], inverse_depth: float
) -> list[Detection]:
    """The mean face in a box, turned in the image plane about its middle by each angle."""
    upright = fit_model.state_in_boxes([box], inverse_depth)
    turns = turns_about_z(np.radians(degrees))
    away = upright.centre[0] - box.centre
    return [
        Detection(
            box,
            given=True,
            pose=FaceState(
                upright.scale,
                turn @ upright.rotation,
                (box.centre + turn[:2, :2] @ away)[None],
                upright.coefficients,
            ),
        )
        for turn in turns
    ]


def find_surest(faces: Sequence[Alignment], box: Box) -> Alignment | None:
    """The surest of the faces that did not fail and are that of the box; None: there is none."""
    there = [
        face
        for face in faces
        if not face.failed and same_face(Box.around(face.landmarks_3d[:, :2]), box)
    ]
    return max(there, key=lambda face: face.face_confidence, default=None)
