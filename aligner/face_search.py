"""Searches of a photo for faces: the first one, and later ones where it found too little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.area_shrinking import shrink_in_steps
from dff.aligner.centre_detector import CentreDetector, StagedDetector
from dff.aligner.confidence import SURE_FROM
from dff.aligner.config import AlignConfig, DetectorConfig
from dff.aligner.detection import Detection, FaceDetector, Search
from dff.aligner.detector import DescriptorDetector
from dff.aligner.fitting.fit_model import FitModel
from dff.face.arrays import Bytes
from dff.face.descriptor import Anchors, Network
from dff.face.fused_network import FusedDetectorNet

Fits: TypeAlias = Sequence[tuple[Detection, Alignment]]
"""Detections of a photo and their fits."""


@dataclass(frozen=True)
class LaterSearch:
    """A search of the photos in which those before found too little."""

    find: Callable[[Bytes], Search[list[Detection]]]
    # whether a photo is searched, of whose detections these are the fits and the accepted faces
    is_due: Callable[[Fits, Sequence[Alignment]], bool]
    upright: bool = True
    # whether its detections are so unlikely that their fits must show eyes
    needs_eyes: bool = False


def build_detector(
    net: Network,
    anchors: Anchors,
    fit_model: FitModel,
    config: AlignConfig,
    detector_net: FusedDetectorNet | None,
    *,
    multiple: int,
) -> FaceDetector:
    """The detector of the descriptor network, after a quick search by ``detector_net``, if any.

    ``multiple``: the sides of the network's input images are multiples of this.
    """
    thorough = DescriptorDetector(
        net, anchors, fit_model, multiple=multiple, config=config.detector
    )
    if detector_net is None:
        return thorough
    return StagedDetector(CentreDetector(detector_net, fit_model, config.centre_detector), thorough)


def find_faces(detector: FaceDetector, image: Bytes) -> Search[list[Detection]]:
    """The detections in a photo, in steps where the detector can."""
    if isinstance(detector, DescriptorDetector | StagedDetector):
        found = yield from detector.find_in_steps(image)
        return found
    return detector.find(image)


def find_turned_faces(
    detector: FaceDetector, image: Bytes, *, longest: int
) -> Search[list[Detection]]:
    """Detections in three quarter turns of a photo, in pixels of the photo.

    It is searched with its longer side shrunk to at most ``longest`` pixels.
    """
    height, width = image.shape[:2]
    shrink = longest / max(height, width)
    if shrink < 1.0:
        size = max(round(width * shrink), 1), max(round(height * shrink), 1)
        image = yield from shrink_in_steps(image, size)
    scale = np.array([width / image.shape[1], height / image.shape[0]])
    turned = [np.ascontiguousarray(np.rot90(image, turns)) for turns in (1, 2, 3)]
    found: list[list[Detection]] = []
    if isinstance(detector, StagedDetector):
        for one in turned:
            some = yield from detector.find_sure(one)
            found.append(some)
    if not any(found):
        found = []
        for one in turned:
            some = yield from find_faces(detector, one)
            found.append(some)
    return [
        detection.turned_back(turns, image.shape).in_photo(scale)
        for turns, some in enumerate(found, start=1)
        for detection in some
    ]


def later_searches(
    detector: FaceDetector,
    config: AlignConfig,
    find_turned: Callable[[Bytes], Search[list[Detection]]],
) -> Iterator[LaterSearch]:
    """The searches after the first; ``find_turned``: that of the quarter turns."""
    if isinstance(detector, StagedDetector):
        sure = config.centre_detector.sure

        def is_unfounded(fits: Fits, accepted: Sequence[Alignment]) -> bool:
            """Whether the faces for whose sake a thorough search was left out are none.

            Where it was left out, ``find`` has answered at least one of these.
            """
            relied_on = [face.failed for detection, face in fits if detection.score >= sure]
            return bool(relied_on) and all(relied_on)

        yield LaterSearch(detector.find_what_was_left_out, is_unfounded)
        if config.centre_detector.unlikely:
            yield LaterSearch(detector.find_unlikely, _is_without_face, needs_eyes=True)
    if config.quarter_turns:
        yield LaterSearch(find_turned, _is_unsure, upright=False)


def _is_without_face(fits: Fits, accepted: Sequence[Alignment]) -> bool:
    return not accepted


def _is_unsure(fits: Fits, accepted: Sequence[Alignment]) -> bool:
    return all(face.face_confidence < SURE_FROM for face in accepted)


def describe_coarse_search(detector: FaceDetector, config: AlignConfig, image: Bytes) -> str:
    """A note that an image is searched coarser than by default: small faces may be missing.

    "" for an image that is not: a quick search leaves out the tiles of images of more than
    ``DetectorConfig.untiled`` pixels.
    """
    longest = 0
    if isinstance(detector, StagedDetector):
        detector, longest = detector.thorough, config.centre_detector.longest
    side = max(image.shape[:2])
    if not isinstance(detector, DescriptorDetector):
        return ""
    if not DetectorConfig.untiled < side <= detector.config.untiled:
        return ""
    longest = longest or detector.config.longest
    return (
        f"the photo was searched for faces only as a whole, shrunk from {side} to {longest} "
        "pixels, so small faces may be missing: send their boxes or parts of the photo, or use "
        "`dff align`, which also searches at full size"
    )
