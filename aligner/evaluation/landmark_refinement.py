"""Learning the refinement of landmarks on labelled photos.

Every training photo is aligned as it is and mirrored. The descriptors at the landmarks after the
last pass are recorded, with the displacements from the landmarks, offsets included, to the labels.
A ridge regression maps one to the other; its penalty is that of least error on photos of their own.
Where no penalty lowers the error, there is no refinement.

This trains on photos, as a network does: the terms of the photos hold for the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.config import VisibilityConfig
from dff.aligner.evaluation.benchmarks import list_300w, read_sample
from dff.aligner.evaluation.landmark_offsets import place_face
from dff.aligner.fitting.batch import join_rows
from dff.aligner.fitting.correction import prepare_features, read_landmark_descriptors
from dff.aligner.fitting.fit_model import FitModel, FitState
from dff.aligner.fitting.observation import Observation
from dff.aligner.fitting.refinement import mirror_displacements
from dff.aligner.fitting.visibility import Visibility
from dff.face.arrays import Array, Bytes, Float, Floats, Int
from dff.face.errors import BadLandmarks
from dff.face.geometry.camera import Box
from dff.face.model.landmark_offsets import LandmarkOffsets, UprightPose
from dff.face.model.landmarks import MIRROR
from dff.face.solve.landmark_refinement import LandmarkRefinement
from dff.face.solve.least_squares import ridge
from dff.infra.storage import open_storage


@dataclass(frozen=True)
class RefinementConfig:
    """The regression of landmark refinements."""

    # of the ridge, in mean squares of a feature row: those that are tried
    penalties: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)
    folds: int = 5  # one in ``folds`` photos is held out to choose the penalty
    worst: float = 0.015  # metres: mean displacement beyond which a fit failed, and tells nothing


@dataclass(frozen=True)
class LandmarkReadings:
    """N fitted faces of photos, and where their labels lie."""

    seen: Float[Array, "faces 68 channels"]  # descriptors, float16; of mirrored faces as mirrored
    visible: Float[Array, "faces 68"]
    away: Float[Array, "faces 68 2"]  # metres from landmarks to labels, right and down; the same
    photo: Int[Array, " faces"]  # number of the photo, the same for its mirror image


class _LandmarkReader:
    """A ``Refiner`` that moves nothing, and records what it could move by."""

    def __init__(self, fit_model: FitModel, visibility: VisibilityConfig) -> None:
        self.fit_model, self.visibility = fit_model, visibility
        self.seen: Floats = np.empty((0, 68, 0))
        self.visible: Floats = np.empty((0, 68))
        self.mirrored = False

    def refine(
        self, observation: Observation, state: FitState, visibility: Visibility, *, mirrored: bool
    ) -> Floats:
        self.seen, self.visible = read_landmark_descriptors(
            self.fit_model, self.visibility, observation, state, visibility, mirrored=mirrored
        )
        self.mirrored = mirrored
        return np.zeros((len(self.seen), 68, 2))


def learn_landmark_refinement(
    aligner: Aligner,
    folders: Sequence[Path | str],
    offsets: LandmarkOffsets,
    *,
    config: RefinementConfig | None = None,
    watch: Callable[[int], object] = lambda photos: None,
) -> LandmarkRefinement | None:
    """What the descriptors say beside the ``offsets``, or None where they would not help.

    From the training photos of ``folders`` with ``.pts`` files. ``watch`` is told the number of
    photos after each. Raises BadLandmarks when none of their faces can be fitted.
    """
    config = config or RefinementConfig()
    readings = read_training_photos(aligner, folders, offsets, config=config, watch=watch)
    return fit_landmark_refinement(readings, config)


def read_training_photos(
    aligner: Aligner,
    folders: Sequence[Path | str],
    offsets: LandmarkOffsets,
    *,
    config: RefinementConfig,
    watch: Callable[[int], object] = lambda photos: None,
) -> LandmarkReadings:
    """The training photos and their mirror images, fitted. Raises BadLandmarks without any."""
    recorder = _LandmarkReader(aligner.fit_model, aligner.config.visibility)
    reader = aligner.without_annotation_bias().with_refiner(recorder)
    out: list[LandmarkReadings] = []
    for number, (image, labels) in enumerate(_training_photos(folders)):
        flipped = np.ascontiguousarray(image[:, ::-1])
        opposite = (np.array([image.shape[1], 0.0]) + labels * [-1.0, 1.0])[MIRROR]
        for picture, truth in ((image, labels), (flipped, opposite)):
            face = reader.align(picture, [Box.around(truth)])[0]
            if face.failed:
                continue
            placed = place_face(aligner.model, offsets, face).landmarks_2d
            upright = UprightPose.of(face.cam_from_head.rotation[None]).upright[0]
            away = ((truth - placed) @ upright.T / face.camera.scale)[None]
            if np.linalg.norm(away, axis=2).mean() > config.worst:
                continue
            if recorder.mirrored:
                away = mirror_displacements(away)
            seen = recorder.seen.astype(np.float16)
            out.append(LandmarkReadings(seen, recorder.visible, away, np.array([number])))
        watch(number + 1)
    if not out:
        raise BadLandmarks("no face could be fitted on the photos")
    return join_rows(out)


def _training_photos(folders: Sequence[Path | str]) -> Iterator[tuple[Bytes, Floats]]:
    """Images and labels."""
    for folder in folders:
        storage = open_storage(str(folder))
        for sample in list_300w(storage, "train"):
            yield read_sample(storage, sample), sample.landmarks


def fit_landmark_refinement(
    readings: LandmarkReadings, config: RefinementConfig
) -> LandmarkRefinement | None:
    """The ridge regression from descriptors to displacements; None: it does not help."""
    rows, mean = prepare_features(readings.seen, readings.visible)
    targets = readings.away.reshape(len(rows), -1).astype(np.float32)
    judged = readings.photo % config.folds == 0
    if judged.all() or not judged.any():
        return None

    def error(predicted: Floats) -> float:
        left = readings.away[judged] - predicted.reshape(-1, 68, 2)
        return float(np.linalg.norm(left, axis=2).mean())

    maps = ridge(rows[~judged], targets[~judged], config.penalties)
    left = [error(np.zeros((judged.sum(), targets.shape[1])))]
    left += [error(rows[judged] @ weight + offset) for weight, offset in maps]
    best = int(np.argmin(left))
    if best == 0:
        return None
    ((weight, offset),) = ridge(rows, targets, [config.penalties[best - 1]])
    return LandmarkRefinement(mean, weight, offset)
