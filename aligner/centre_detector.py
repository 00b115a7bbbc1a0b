"""The quick face detector: a small network of its own over the whole photo.

The network (``dff.face.detector_net``) answers for each cell of the photo whether it is the centre
of a face, with the face's box and rotation. The photo is searched at its own resolution, up to a
limit, and at each halving, so that faces of 14 pixels and faces that fill the photo are detected
alike, in any in-plane rotation.

``StagedDetector`` searches with it first, and with the thorough ``DescriptorDetector`` only where
it is unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import cv2
import numba
import numpy as np
from scipy.special import expit, logit

from dff.aligner.area_shrinking import resize_in_steps, shrink_by_area
from dff.aligner.config import CentreDetectorConfig
from dff.aligner.detection import (
    INSIDE,
    OVERLAP,
    Detection,
    Search,
    distinct,
    overlap,
    same_face,
    search_to_end,
)
from dff.aligner.detector import DescriptorDetector, pad_to_multiple
from dff.aligner.fitting.fit_model import FitModel
from dff.face.arrays import Bytes, Floats
from dff.face.detector_net import decode_cells
from dff.face.fused_network import FusedDetectorNet
from dff.face.geometry.camera import Box
from dff.face.numba_cache import CACHE
from dff.face.solve.gauss_newton import FaceState


class CentreDetector:
    """Detects faces of any yaw and in-plane rotation. Frozen once made: threads may share it."""

    def __init__(
        self,
        net: FusedDetectorNet,
        fit_model: FitModel,
        config: CentreDetectorConfig | None = None,
    ) -> None:
        self.net, self.multiple = net, net.config.multiple
        self.landmarks = fit_model.landmark_mean  # (68, 3) metres
        self.config = config or CentreDetectorConfig()

    def find(self, image: Bytes) -> list[Detection]:
        """Faces of an (H, W, 3) RGB image by falling score; none when no face is seen.

        The score is the network's probability, at most ``unsharp_score`` for faces that all levels
        show smaller than ``sharp``; those from ``CentreDetectorConfig.least`` on are answered, and
        from ``least_large`` on those about as large as the largest sure face, or larger.
        """
        return search_to_end(self.find_in_steps(image))

    def find_in_steps(self, image: Bytes) -> Search[list[Detection]]:
        """``find`` in steps: each shrinks the photo to a level, or searches levels."""
        score, corners, rows = yield from self._search_levels(image)
        kept = self._probable(_distinct(score, corners, self.config.sure), score, corners)
        return self._detections(kept, score, corners, rows)

    def find_largest_unsure(self, image: Bytes, most: int) -> Search[list[Detection]]:
        """The largest of the faces that may be there and are not sure, however unlikely."""
        score, corners, rows = yield from self._search_levels(image)
        kept = _distinct(score, corners, self.config.sure)
        unsure = [i for i in kept if score[i] < self.config.sure]
        size = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
        unsure.sort(key=lambda i: -size[i])
        return self._detections(unsure[:most], score, corners, rows)

    def _search_levels(self, image: Bytes) -> Search[tuple[Floats, Floats, Floats]]:
        """Scores, boxes and rows of rotations, as ``_search``, of all levels that are searched."""
        pyramid = yield from self._build_levels(image)
        first = pyramid if self.config.all_levels else pyramid[1:]
        parts = [self._search(level, scale) for level, scale in first]
        if len(first) < len(pyramid) and not self._is_settled(parts):
            yield
            parts.insert(0, self._search(*pyramid[0]))
        score, corners, rows = (np.concatenate(some) for some in zip(*parts, strict=True))
        return score, corners, rows

    def _detections(
        self, kept: Sequence[int], score: Floats, corners: Floats, rows: Floats
    ) -> list[Detection]:
        """The detections of the ``kept`` rows of what ``_search_levels`` returns."""
        rotations = _nearest_rotations(rows[list(kept)])
        out = []
        for i, rotation in zip(kept, rotations, strict=True):
            box = Box(*corners[i].tolist())
            out.append(Detection(box, float(score[i]), self._pose(box, rotation)))
        return out

    def sees(self, box: Box, image: Bytes, size: float) -> bool:
        """Whether a face may lie in a box of the photo, enlarged or shrunk to ``size`` pixels."""
        level, scale, corner = crop_surroundings(image, box, size, self.config.surroundings)
        if level is None:
            return False
        score, corners, _ = self._search(level, scale)
        boxes = (corners.reshape(-1, 2, 2) + corner).reshape(-1, 4)
        return any(
            same_face(box, Box(*one.tolist())) for one in boxes[score >= self.config.least_large]
        )

    def _probable(self, kept: Sequence[int], score: Floats, corners: Floats) -> list[int]:
        """The ``kept`` rows that are likely enough for their size."""
        size = np.sqrt(np.prod(corners[:, 2:] - corners[:, :2], axis=1))
        sure = [size[i] for i in kept if score[i] >= self.config.sure]
        large = self.config.large * max(sure, default=np.inf)
        return [i for i in kept if score[i] >= self.config.least or size[i] >= large]

    def _is_settled(self, parts: Sequence[tuple[Floats, Floats, Floats]]) -> bool:
        """Whether some levels surely show a face, and none that is too small to be sure of."""
        if not parts:
            return False
        score, corners = (np.concatenate(some) for some in [*zip(*parts, strict=True)][:2])
        kept = score[_distinct(score, corners, self.config.sure)]
        return bool((kept >= self.config.sure).any() and (kept != self.config.unsharp_score).all())

    def _build_levels(self, image: Bytes) -> Search[list[tuple[Bytes, Floats]]]:
        """The photo at falling sizes, each with (2,) photo pixels (x, y) for one of its own."""
        height, width = image.shape[:2]
        config, longest = self.config, max(height, width)
        wanted = min(max(longest, min(2 * longest, config.enlarged)), config.longest)
        side = max(round(wanted / self.multiple), 1) * self.multiple
        scale = side / longest
        size = max(1, round(width * scale)), max(1, round(height * scale))
        level = yield from resize_in_steps(image, size)
        found = list[tuple[Bytes, Floats]]()
        while True:
            found.append((level, np.array([width / level.shape[1], height / level.shape[0]])))
            yield
            half = level.shape[1] // 2, level.shape[0] // 2
            if max(half) < config.coarsest or min(half) < 1:
                return found
            level = shrink_by_area(level, half)

    def _search(self, level: Bytes, scale: Floats) -> tuple[Floats, Floats, Floats]:
        """(N,) scores, (N, 4) boxes in the photo and (N, 2, 3) rows of rotations of a level."""
        answer = self.net(pad_to_multiple(level, self.multiple))
        cells = decode_cells(answer, float(logit(self.config.least_large)))
        longest = (cells.box[:, 2:] - cells.box[:, :2]).max(1, initial=0.0)
        possible = (longest >= self.config.smallest) & (longest <= self.config.largest)
        corners = (cells.box[possible].reshape(-1, 2, 2) * scale).reshape(-1, 4)
        highest = np.where(longest < self.config.sharp, self.config.unsharp_score, 1.0)[possible]
        score = np.minimum(expit(cells.logit[possible]), highest)
        return np.asarray(score), corners, cells.rows[possible]

    def _pose(self, box: Box, rotation: Floats) -> FaceState:
        """The mean face in this (3, 3) ``rotation``, as large as its landmark ``box``."""
        turned = self.landmarks @ rotation[:2].T
        low, high = turned.min(0), turned.max(0)
        scale = box.size / float(np.sqrt(np.prod(high - low)))
        centre = box.centre - scale * (low + high) / 2
        return FaceState(np.array([scale]), rotation[None], centre[None], np.zeros((1, 0)))


def _distinct(score: Floats, corners: Floats, sure: float) -> list[int]:
    """Rows of the best box of each face, as ``dff.aligner.detection.distinct``; best first.

    Two boxes of scores from ``sure`` on, one within the other but of other sizes, are both kept: a
    part of a face may look like one, and their fits tell which it is.
    """
    order = np.argsort(-score, kind="stable")
    many = int((score >= sure).sum())
    kept: list[int] = order[_are_distinct(np.ascontiguousarray(corners[order]), many)].tolist()
    return kept


def _with_rivals(kept: Sequence[Detection], sure: Sequence[Detection]) -> list[Detection]:
    """The ``kept`` detections, and of the ``sure`` ones those that overlap none of them by much.

    By falling score.
    """
    rivals = [
        one
        for one in sure
        if all(overlap(one.box.corners, other.box.corners) < OVERLAP for other in kept)
    ]
    return sorted([*kept, *rivals], key=lambda one: -one.score)


@numba.njit(cache=CACHE, nogil=True)
def _are_distinct(corners, sure):  # type: ignore[no-untyped-def]
    """(N,) whether each of (N, 4) boxes is no face of those before it.

    The first ``sure`` ones may lie within each other.
    """
    kept = np.ones(len(corners), np.bool_)
    for i in range(len(corners)):
        x0, y0, x1, y1 = corners[i]
        area = (x1 - x0) * (y1 - y0)
        for j in range(i):
            if kept[j]:
                left, top, right, bottom = corners[j]
                wide, high = min(x1, right) - max(x0, left), min(y1, bottom) - max(y0, top)
                shared = max(wide, 0.0) * max(high, 0.0)
                other = (right - left) * (bottom - top)
                union, smaller = area + other - shared, min(area, other)
                within = i >= sure and shared >= INSIDE * smaller
                if within or shared >= OVERLAP * union:
                    kept[i] = False
                    break
    return kept


def _nearest_rotations(rows: Floats) -> Floats:
    """(N, 3, 3) the rotations whose first two rows are nearest to (N, 2, 3) ``rows``."""
    if not len(rows):
        return np.zeros((0, 3, 3))
    u, _, vt = np.linalg.svd(rows, full_matrices=False)
    out = np.empty((len(rows), 3, 3))
    out[:, :2] = u @ vt
    (ax, ay, az), (bx, by, bz) = out[:, 0].T, out[:, 1].T
    out[:, 2] = np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx]).T
    return out


def crop_surroundings(
    image: Bytes, box: Box, size: float, share: float
) -> tuple[Bytes | None, Floats, Floats]:
    """The part of a photo about a box, resized so that the box is ``size`` pixels large.

    ``share``: side of the part over the size of the box. With (2,) photo pixels (x, y) for one of
    its own, and its corner (x, y) in the photo; None where the photo ends before it begins.
    """
    side = share * box.size
    corner = np.maximum(np.floor(box.centre - side / 2), 0).astype(int)
    end = np.minimum(np.ceil(box.centre + side / 2).astype(int), image.shape[1::-1])
    if (end - corner < 4).any():
        return None, np.ones(2), corner
    scale = size / box.size
    # means over whole blocks first: over areas that are no whole pixels they are slow
    block = int(min(max(1.0 / scale, 1.0), (end - corner).min()))
    end = corner + (end - corner) // block * block
    part = image[corner[1] : end[1], corner[0] : end[0]]
    if block > 1:
        across, down = ((end - corner) // block).tolist()
        part = cv2.resize(part, (across, down), interpolation=cv2.INTER_AREA)
    sides = tuple(np.maximum(np.rint((end - corner) * scale), 1).astype(int).tolist())
    return cv2.resize(part, sides, interpolation=cv2.INTER_LINEAR), (end - corner) / sides, corner


class StagedDetector:
    """The quick detector, then the thorough one for uncertain faces. Threads may share it."""

    def __init__(self, quick: CentreDetector, thorough: DescriptorDetector) -> None:
        self.quick, self.thorough, self.config = quick, thorough, quick.config

    def without_tiles(self) -> StagedDetector:
        """The same detector, which searches large photos shrunk as a whole only."""
        whole = copy(self)
        whole.thorough = self.thorough.without_tiles()
        return whole

    def find(self, image: Bytes) -> list[Detection]:
        """Faces of an (H, W, 3) RGB image by falling score; none when no face is seen."""
        return search_to_end(self.find_in_steps(image))

    def find_in_steps(self, image: Bytes) -> Search[list[Detection]]:
        """``find`` in the steps of both detectors, and one for each face that is verified."""
        found = yield from self.quick.find_in_steps(image)
        sure = self._sure(found)
        if self._is_conclusive(found, image):
            most = self.config.verified
            more = yield from self._verify(found, image, most + len(sure) - 1 if most else 0)
            return _with_rivals(distinct([*sure, *more]), sure)
        if not sure:
            alone = yield from self._verify(found, image, self.config.verified_alone)
            if alone:
                return distinct(alone)
        thorough = yield from self._find_thoroughly(found, image)
        return distinct([*sure, *thorough])

    def _find_thoroughly(self, found: Sequence[Detection], image: Bytes) -> Search[list[Detection]]:
        """The confident detections of the thorough search, and those ``found`` by the quick one.

        In tiles, unsure ones that the quick search sees there, too.
        """
        config = self.config
        tiled = max(image.shape[:2]) > self.thorough.config.untiled
        least = config.lowest_alone_in_tiles if tiled else config.lowest_alone

        def seen_in_tile(one: Detection) -> bool:
            return one.score >= config.lowest_alone and all(
                self.quick.sees(one.box, image, size) for size in config.seen_sizes
            )

        everything = yield from self.thorough.find_in_steps(image)
        return [
            one
            for one in everything
            if one.score >= least
            or any(same_face(one.box, other.box) for other in found)
            or (tiled and seen_in_tile(one))
        ]

    def find_sure(self, image: Bytes) -> Search[list[Detection]]:
        """The confident detections of the quick search."""
        found = yield from self.quick.find_in_steps(image)
        return self._sure(found)

    def find_what_was_left_out(self, image: Bytes) -> Search[list[Detection]]:
        """Faces of the thorough search of the whole photo, where ``find`` left it out; else none.

        For photos in which none of the faces that it found is one.
        """
        found = yield from self.quick.find_in_steps(image)
        if not self._is_conclusive(found, image):
            return []
        everything = yield from self.thorough.find_in_steps(image)
        return everything

    def find_unlikely(self, image: Bytes) -> Search[list[Detection]]:
        """The largest faces that the quick search is not sure of, as it sees them.

        For photos without a face otherwise. The thorough search sees less of a face with a mask.
        """
        return self.quick.find_largest_unsure(image, self.config.unlikely)

    def _is_conclusive(self, found: Sequence[Detection], image: Bytes) -> bool:
        """Whether a quick search found a confident face and saw all that a thorough one would."""
        return bool(self._sure(found)) and max(image.shape[:2]) <= self.thorough.config.untiled

    def _sure(self, found: Sequence[Detection]) -> list[Detection]:
        return [one for one in found if one.score >= self.config.sure]

    def _verify(
        self, found: Sequence[Detection], image: Bytes, most: int
    ) -> Search[list[Detection]]:
        """Detections of the thorough detector around uncertain detections of the quick one.

        Around ``most`` of the likeliest, and as many of those that are answered for their size. The
        likeliest of the size of the largest sure one is kept as it is where the search would shrink
        it: a face with a mask is hardly seen then, and its fit tells.
        """
        least = self.config.verified_least
        sure = [one.box.corners for one in self._sure(found)]
        unsure = [
            one
            for one in found
            if one.score < self.config.sure
            and all(overlap(one.box.corners, box) < self.config.overlapping for box in sure)
        ]
        largest = max((one.box.size for one in self._sure(found)), default=np.inf)
        large = [one for one in unsure if one.box.size >= self.config.large * largest]
        kept = (
            large[0] if most and large and large[0].box.size > self.config.verified_size else None
        )
        verified = [] if kept is None else [kept]
        likely = [one for one in unsure if one.score >= least and one is not kept]
        # many small ones have the same score, ``unsharp_score``
        likely.sort(key=lambda one: (-one.score, -one.box.size))
        less_likely = [one for one in large if one.score < least and one is not kept]
        for one in [*likely[:most], *less_likely[:most]]:
            yield
            level, scale, corner = crop_surroundings(
                image, one.box, self.config.verified_size, self.config.surroundings
            )
            if level is not None:
                verified += [
                    again.in_photo(scale, corner)
                    for again in self.thorough.find_on_level(level, self.config.verified_pixels)
                ]
        return verified
