"""Forward passes of the network through crops of photos, matched to the anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numba
import numpy as np

from dff.aligner.config import ObservationConfig
from dff.aligner.detection import Search, search_to_end
from dff.aligner.fitting.batch import replace_rows, take_rows, with_fields
from dff.aligner.fitting.correspondence import (
    Matches,
    choose_pixels,
    match_chosen_pixels,
    match_pixels,
)
from dff.aligner.fitting.crop import Crops
from dff.aligner.fitting.face_fit import FaceFit
from dff.face.arrays import Array, Bytes, Float, Floats, Int
from dff.face.descriptor import STRIDE, Anchors, Network
from dff.face.fused_network import SparseFeatures, describe_in_batches, describe_sparsely
from dff.face.model.landmarks import MIRROR
from dff.face.numba_cache import CACHE


@dataclass(frozen=True)
class MatchedPixels:
    """The pixels of the crops of B faces that were matched."""

    crops: Crops  # through which the photos were observed
    matches: Matches
    px: Float[Array, "faces pixels 2"]  # pixels of the photo

    @property
    def matched(self) -> Floats:
        """(B,) number of matched pixels."""
        return np.asarray((self.matches.mask > 0).sum(1))

    @property
    def area(self) -> Floats:
        """(B,) square pixels of the photo that show the face."""
        pixels = self.matched * self.matches.pitch**2
        return np.asarray(pixels * (self.crops.side / self.crops.size) ** 2)


@dataclass(frozen=True)
class Observation(MatchedPixels):
    """One forward pass of the network over crops of B faces."""

    # unit descriptors of the crops' pixels, STRIDE wide
    descriptor: Float[Array, "faces channels height width"]
    face_logit: Float[Array, "faces height width"]  # log odds that they show the face


@dataclass(frozen=True)
class SparseObservation(MatchedPixels):
    """One forward pass over the crop of one face, of which only some pixels are described."""

    features: SparseFeatures


class Observer:
    """Runs the network on crops of photos, and matches its descriptors to the anchors."""

    def __init__(
        self, net: Network, anchors: Anchors, landmark_descriptor: Floats, config: ObservationConfig
    ) -> None:
        """(68, D) ``landmark_descriptor``: the expected descriptor of each landmark."""
        self.net, self.anchors, self.config = net, anchors, config
        self.landmark_descriptor = landmark_descriptor

    def observe(self, images: Sequence[Bytes], crops: Crops) -> Observation:
        """Observe B photos through their crops."""
        return search_to_end(self.observe_in_steps(images, crops))

    def observe_in_steps(self, images: Sequence[Bytes], crops: Crops) -> Search[Observation]:
        """``observe`` in steps: each cuts a crop, or describes ``network_batch`` of them."""
        cut = []
        for i, image in enumerate(images):
            cut.append(crops.cut(image, i))
            yield
        descriptor, face_logit = yield from self._describe(np.stack(cut))
        matches = self.match(descriptor, face_logit)
        px = crops.photo_from_crop(matches.grid)
        return Observation(crops, matches, px, descriptor, face_logit)

    def _describe(self, pixels: Bytes) -> Search[tuple[Floats, Floats]]:
        """(B, D, h, w) descriptors and (B, h, w) log odds of the face of (B, S, S, 3) crops."""
        found = yield from describe_in_batches(self.net, pixels, self.config.network_batch)
        yield
        descriptor, face_logit = found  # rows of pixels, as the fast networks write them
        return descriptor.transpose(0, 3, 1, 2), face_logit

    def match(self, descriptor: Floats, face_logit: Floats) -> Matches:
        """The chosen pixels of the face and their most similar anchors."""
        return match_pixels(descriptor, face_logit, self.anchors.descriptor, **self._matching())

    def _matching(self) -> dict[str, Any]:
        """Settings of matches."""
        return {
            "stride": STRIDE,
            "pixels": self.config.pixels,
            "candidates": self.config.candidates,
            "place": self.anchors.position,
            "candidate_radius": self.config.candidate_radius,
            "sharpness": self.anchors.scale,
            "no_match_cosine": self.config.no_match_cosine,
        }

    def probe(self, observation: Observation, landmarks: Floats) -> Floats:
        """(B, 68, 4) ``probe`` at (B, 68, 2) ``landmarks``, pixels of the photos."""
        places = observation.crops.crop_from_photo(landmarks) / STRIDE
        return probe(
            observation.descriptor, observation.face_logit, places, self.landmark_descriptor
        )


class MirroredObserver(Observer):
    """Observes the crops' mirror images.

    Their pixels are matched to the counterparts of the anchors on the other side of the face, which
    follow the anchors in a fit model of both sides.
    """

    def __init__(
        self, net: Network, anchors: Anchors, landmark_descriptor: Floats, config: ObservationConfig
    ) -> None:
        super().__init__(net, anchors, landmark_descriptor[MIRROR], config)

    def _describe(self, pixels: Bytes) -> Search[tuple[Floats, Floats]]:
        mirrored = np.stack([cv2.flip(one, 1) for one in pixels])
        descriptor, face_logit = yield from super()._describe(mirrored)
        return descriptor[..., ::-1], face_logit[..., ::-1]

    def match(self, descriptor: Floats, face_logit: Floats) -> Matches:
        matches = super().match(descriptor, face_logit)
        return with_fields(matches, anchor=matches.anchor + len(self.anchors.vertex))


class SparseObserver(Observer):
    """Observes faces whose crops are not probed: describes only the pixels that are asked for."""

    def observe_matches(self, image: Bytes, crops: Crops) -> SparseObservation:
        """The matches of ``observe`` in one photo."""
        features = describe_sparsely(self.net, crops.cut(image, 0))
        chosen = choose_pixels(features.face_logit, self.config.pixels)
        described = chosen, features.describe(chosen), features.face_logit
        matches = match_chosen_pixels(*described, self.anchors.descriptor, **self._matching())
        return SparseObservation(crops, matches, crops.photo_from_crop(matches.grid), features)


@dataclass(frozen=True)
class SeenFaces:
    """Those of the faces of a pass that enough pixels are matched to."""

    observation: Observation
    before: FaceFit
    rows: Int[Array, " seen"]  # of all faces
    all_faces: FaceFit  # the others are lost and keep their states

    def join(self, after: FaceFit) -> FaceFit:
        """The fits of all faces: ``after`` of those that are seen."""
        if len(self.rows) == len(self.all_faces.lost):
            return after
        return replace_rows(self.all_faces, self.rows, after)


def observe_faces(
    observer: Observer, images: Sequence[Bytes], crops: Crops, before: FaceFit
) -> Search[SeenFaces]:
    """Observe B faces in their photos, one crop each, in the steps of ``observe_in_steps``."""
    observation = yield from observer.observe_in_steps(images, crops)
    seen = observation.matched >= observer.config.fewest
    rows, all_faces = np.flatnonzero(seen), with_fields(before, lost=~seen)
    if 0 < len(rows) < len(seen):  # the maps are large, so they are copied only if necessary
        observation, before = take_rows(observation, rows), before[rows]
    return SeenFaces(observation, before, rows, all_faces)


def describe_landmarks(anchors: Anchors, landmark_mean: Floats) -> Floats:
    """(68, D) descriptors of the anchors that are nearest to (68, 3) landmarks of the template."""
    apart = np.linalg.norm(landmark_mean[:, None] - anchors.position, axis=2)
    return np.asarray(anchors.descriptor[apart.argmin(1)])


def probe(descriptor: Floats, face_logit: Floats, places: Floats, expected: Floats) -> Floats:
    """(B, L, 4) mean mask and best cosine about each landmark, within one and two grid pixels.

    (B, D, h, w) ``descriptor`` and (B, h, w) ``face_logit`` at (B, L, 2) ``places`` of the grid;
    (L, D) ``expected`` descriptors. Zero outside of the grid.
    """
    out = np.zeros((*places.shape[:2], 4))
    rows = descriptor.transpose(0, 2, 3, 1)  # as the fast networks write them
    for face in range(len(out)):
        _probe(rows[face], face_logit[face], places[face], expected, out[face])
    return out


@numba.njit(cache=CACHE, nogil=True, fastmath=True)
def _probe(descriptor, face_logit, places, expected, out):  # type: ignore[no-untyped-def]
    height, width, dims = descriptor.shape
    for n in range(len(places)):
        column, row = int(np.floor(places[n, 0])), int(np.floor(places[n, 1]))
        if not (0 <= column < width and 0 <= row < height):
            continue
        column, row = min(max(column, 2), width - 3), min(max(row, 2), height - 3)
        inner, outer, near, far = 0.0, 0.0, -2.0, -2.0
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                y, x = row + dy, column + dx
                mask = 1.0 / (1.0 + np.exp(-face_logit[y, x]))
                cosine = 0.0
                for d in range(dims):
                    cosine += descriptor[y, x, d] * expected[n, d]
                outer += mask
                far = max(far, cosine)
                if abs(dx) < 2 and abs(dy) < 2:
                    inner += mask
                    near = max(near, cosine)
        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = inner / 9.0, outer / 25.0, near, far
