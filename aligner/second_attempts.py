"""Other starts for faces whose boxes are given, and whose fit from an upright face is in doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.config import AlignConfig
from dff.aligner.detection import Detection, same_face
from dff.aligner.face_request import FaceRequest, Steps
from dff.aligner.fitting.change import turns_about_z
from dff.aligner.fitting.fit_model import FitModel
from dff.aligner.fitting.fitters import DenseFitter
from dff.aligner.fitting.loop import FaceFitter
from dff.aligner.report import Reporter
from dff.face.arrays import Bytes
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


@dataclass(frozen=True)
class SecondAttempts:
    """Aligns faces of given boxes from other starts, where the upright fit is in doubt."""

    config: AlignConfig
    fit_model: FitModel  # of dense fits
    fitter: FaceFitter
    reporter: Callable[[FitModel], Reporter]  # of the fits of a fit model

    def align_in_steps(
        self,
        images: Sequence[Bytes],
        faces: Sequence[tuple[int, Detection]],
        upright: Sequence[Alignment],
        step: int,
    ) -> Steps[list[Alignment]]:
        """The surest alignments of faces in given boxes, by number of their image.

        ``upright``: those from upright starts in the boxes. Where they are in doubt, one pass is
        made from each other start, and the promising ones are fitted, ``step`` at a time.
        """
        others = {
            k: some
            for k, ((_, given), face) in enumerate(zip(faces, upright, strict=True))
            if (some := OtherStarts.of(face, given.box, self.fit_model, self.config)) is not None
        }
        doubted = [faces[k] for k in others]
        promising = yield from self._choose_starts(images, doubted, [*others.values()], step)
        found = yield from self._align_starts(images, doubted, promising, step)
        out = [*upright]
        for k, other in zip(others, found, strict=True):
            before = upright[k]
            if other is not None and (
                before.failed or other.face_confidence > before.face_confidence
            ):
                out[k] = other
        return out

    def _choose_starts(
        self,
        images: Sequence[Bytes],
        faces: Sequence[tuple[int, Detection]],
        others: Sequence[OtherStarts],
        step: int,
    ) -> Steps[list[list[Detection]]]:
        """The starts from which one pass in a small crop is confident enough, of each face.

        All starts where other fitters than dense ones are used, or turned ones are not.
        """
        config = self.config.turned_starts
        if config is None or not isinstance(self.fitter, DenseFitter):
            return [other.starts for other in others]
        fitter = self.fitter.with_crop(self.config.crop_side(config.crop))
        reporter = self.reporter(fitter.fit_model)
        wanted = [
            (images[i], start)
            for (i, _), other in zip(faces, others, strict=True)
            for start in other.starts
        ]
        confidence = list[float]()
        for begin in range(0, len(wanted), step):
            some, starts = zip(*wanted[begin : begin + step], strict=True)
            seen = yield from fitter.step(0, some, fitter.begin(starts))
            yield None
            confidence += reporter.face_confidence(seen).tolist()
        rest = iter(confidence)
        return [other.choose([next(rest) for _ in other.starts]) for other in others]

    def _align_starts(
        self,
        images: Sequence[Bytes],
        faces: Sequence[tuple[int, Detection]],
        starts: Sequence[Sequence[Detection]],
        step: int,
    ) -> Steps[list[Alignment | None]]:
        """The surest fit of each of ``faces`` from its ``starts``; None: all failed."""
        wanted = [(face, start) for face, some in zip(faces, starts, strict=True) for start in some]
        found: list[Alignment] = []
        for begin in range(0, len(wanted), step):
            some = wanted[begin : begin + step]
            answer = yield FaceRequest(
                [images[i] for (i, _), _ in some],
                [start for _, start in some],
                left=len(wanted) - begin - len(some),
                beside_sure=[False] * len(some),
            )
            found += answer or ()
        rest = iter(found)
        out: list[Alignment | None] = []
        for (_, given), some_starts in zip(faces, starts, strict=True):
            surest = find_surest([next(rest) for _ in some_starts], given.box)
            out.append(None if surest is None else replace(surest, box=given.box))
        return out
