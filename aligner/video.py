"""Faces tracked from frame to frame: each begins where it was, and is smoothed over time.

A frame's alignments begin from the last frame's, so that nothing is detected and mostly one pass is
enough. The whole frame is searched when a face is lost, when the shot changes, and now and then for
faces that came in.

Smoothing is the One Euro filter (Casiez, Roussel and Vogel 2012), a low-pass whose cutoff rises
with speed: a face at rest stands still, a moving one is not held back. Speeds are face sizes a
second. Pose and shape are filtered each at its own speed; the landmarks follow from both, so that
mesh, pose and landmarks remain one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment, Pose, place_landmarks
from dff.aligner.config import SmoothingConfig, TrackingConfig
from dff.aligner.detection import same_face
from dff.face.arrays import Bytes, Floats
from dff.face.geometry.camera import Box
from dff.face.geometry.transform import Rigid, angles_from_rotation
from dff.face.model.landmarks import LandmarkOffsets
from dff.face.model.morphable import Coefficients, MorphableModel

CLOCK_ERROR = 1e-6  # seconds: times that differ by less are the same


class OneEuro:
    """The filter of one signal: numbers that move together, in units of comparable speed."""

    def __init__(self, smoothing: SmoothingConfig) -> None:
        self.smoothing = smoothing
        self.last: Floats | None = None
        self.velocity = np.zeros(1)

    def share(self, value: Floats, interval: float) -> float:
        """The share of the new (N,) ``value`` in the filtered one, which becomes ``last``.

        ``interval``: seconds since the value before.
        """
        if self.last is None:
            self.last, self.velocity = value, np.zeros_like(value)
            return 1.0
        # Measured from the filtered value, so that lag itself counts as speed and opens the filter.
        velocity = (value - self.last) / interval
        self.velocity = self.velocity + self._share(self.smoothing.speed, interval) * (
            velocity - self.velocity
        )
        moving = max(float(np.linalg.norm(self.velocity)) - self.smoothing.quiet, 0.0)
        share = self._share(self.smoothing.rest + self.smoothing.gain * moving, interval)
        self.last = self.last + share * (value - self.last)
        return share

    @staticmethod
    def _share(cutoff: float, interval: float) -> float:
        return 1.0 / (1.0 + 1.0 / (2.0 * np.pi * cutoff * interval))


class Smoother:
    """Smooths the alignments of one face over time."""

    def __init__(
        self,
        model: MorphableModel,
        smoothing: SmoothingConfig,
        *,
        landmark_offsets: LandmarkOffsets | None = None,
    ) -> None:
        self.model, self.landmark_offsets = model, landmark_offsets or LandmarkOffsets()
        self.size = Box.around(model.template[model.landmarks.vertex][:, :2]).size  # metres
        self.pose, self.shape = OneEuro(smoothing), OneEuro(smoothing)
        self.before: Alignment | None = None
        self.time = 0.0  # seconds, of the face before

    def __call__(self, face: Alignment, time: float) -> Alignment:
        """The face, seen at ``time`` in seconds, smoothed by those before it."""
        interval, self.time = time - self.time, time
        rotation, camera = face.cam_from_head.rotation, face.camera
        posed = self._pose_share(face, interval)
        points = face.vertices[self.model.landmarks.vertex] / self.size
        shaped = self.shape.share(
            (points - points.mean(0)).ravel() / np.sqrt(len(points)), interval
        )
        before = self.before or face
        vertices = _blend(before.vertices, face.vertices, shaped)
        coefficients = Coefficients(
            _blend(before.coefficients.identity, face.coefficients.identity, shaped),
            _blend(before.coefficients.expression, face.coefficients.expression, shaped),
        )
        u, _, vt = np.linalg.svd(_blend(before.cam_from_head.rotation, rotation, posed))
        turned = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        scale = float(np.exp(_blend(np.log(before.camera.scale), np.log(camera.scale), posed)))
        camera = replace(
            camera, scale=scale, centre=_blend(before.camera.centre, camera.centre, posed)
        )
        matrix = turned @ (
            rotation.T @ face.pose.matrix
        )  # the reference frame stands still in the head
        posed_head = Rigid(turned, face.cam_from_head.translation)
        flat, deep = place_landmarks(
            self.model, self.landmark_offsets, vertices, coefficients, posed_head, camera
        )
        self.before = replace(
            face,
            landmarks_2d=flat,
            landmarks_3d=deep,
            pose=Pose(*angles_from_rotation(matrix), matrix),
            vertices=vertices,
            coefficients=coefficients,
            cam_from_head=posed_head,
            camera=camera,
        )
        return self.before

    def _pose_share(self, face: Alignment, interval: float) -> float:
        """How much of the pose of ``face`` the smoothed one takes."""
        rotation, camera = face.cam_from_head.rotation, face.camera
        # A turn by one radian moves the landmarks by about half the face size.
        moves = np.concatenate(
            [
                camera.centre / (camera.scale * self.size),
                [np.log(camera.scale)],
                0.5 * rotation[:2].ravel(),
            ]
        )
        if self.pose.last is not None and self.before is not None:
            # Positions are counted in the size of the face before, or growing would look like
            # moving.
            moves[:2] = camera.centre / (self.before.camera.scale * self.size)
            self.pose.last[:2] = self.before.camera.centre / (self.before.camera.scale * self.size)
        return self.pose.share(moves, interval)


def _blend(old: Floats, new: Floats, share: float) -> Floats:
    return np.asarray(old + share * (new - old))


@dataclass(frozen=True)
class Tracked:
    """A face of a frame."""

    track: int  # the same number is the same face, from frame to frame
    face: Alignment
    raw: Alignment  # as it was found, before smoothing


class Tracker:
    """Tracks the faces of a video, given frame by frame."""

    def __init__(self, aligner: Aligner, *, config: TrackingConfig | None = None) -> None:
        self.aligner, self.config = aligner, config or TrackingConfig()
        self.tracks: dict[int, Alignment] = {}
        self.smoothers: dict[int, Smoother] = {}
        self.time = -np.inf  # seconds, of the last frame
        self.searched = -np.inf  # and of the last search
        self.count = 0  # of tracks
        self.thumbnail: Floats | None = None

    def step(self, frame: Bytes, time: float) -> list[Tracked]:
        """The faces of the next (H, W, 3) uint8 RGB frame, taken at ``time`` in seconds.

        Raises BadPhoto as ``Aligner.align``, ValueError unless times increase.
        """
        if not (np.isfinite(time) and time > self.time):
            raise ValueError(f"the times of frames increase: {time} s comes after {self.time} s")
        self.time = time
        if self._is_cut(frame):
            self.tracks.clear()
            self.smoothers.clear()
        known = self.tracks
        kept = self._track(frame, known)
        due = time - self.searched > self.config.search_interval - CLOCK_ERROR
        if not kept or len(kept) < len(known) or due:
            self.searched = time
            lost = {track: face for track, face in known.items() if track not in kept}
            kept |= self._search(frame, kept, lost)
        self.tracks = kept
        self.smoothers = {track: one for track, one in self.smoothers.items() if track in kept}
        return [
            Tracked(track, self._smoothed(track, face), face)
            for track, face in sorted(kept.items())
        ]

    def _track(self, frame: Bytes, known: dict[int, Alignment]) -> dict[int, Alignment]:
        """The known faces that align where they were, each face once."""
        kept: dict[int, Alignment] = {}
        found = self.aligner.track([frame], [[*known.values()]])[0]
        for track, face in zip(known, found, strict=True):
            if not face.failed and not _among(face, [*kept.values()]):
                kept[track] = face
        return kept

    def _search(
        self, frame: Bytes, kept: dict[int, Alignment], lost: dict[int, Alignment]
    ) -> dict[int, Alignment]:
        """Faces of the whole frame beside those ``kept``; a ``lost`` one keeps its number."""
        found: dict[int, Alignment] = {}
        for face in self.aligner.align(frame):
            if _among(face, [*kept.values(), *found.values()]):
                continue
            again = next((track for track, old in lost.items() if _among(face, [old])), None)
            if again is None:
                again, self.count = self.count, self.count + 1
            lost.pop(again, None)
            found[again] = face
        return found

    def _smoothed(self, track: int, face: Alignment) -> Alignment:
        if self.config.smoothing is None:
            return face
        if track not in self.smoothers:
            self.smoothers[track] = Smoother(
                self.aligner.model,
                self.config.smoothing,
                landmark_offsets=self.aligner.landmark_offsets,
            )
        return self.smoothers[track](face, self.time)

    def _is_cut(self, frame: Bytes) -> bool:
        """Whether the frame begins another shot."""
        grey = cv2.resize(frame, self.config.thumbnail, interpolation=cv2.INTER_AREA).mean(2)
        before, self.thumbnail = self.thumbnail, grey
        return before is not None and float(np.abs(grey - before).mean()) > self.config.cut


def _among(face: Alignment, others: Sequence[Alignment]) -> bool:
    box = Box.around(face.landmarks_3d[:, :2])
    return any(same_face(box, Box.around(other.landmarks_3d[:, :2])) for other in others)
