"""The head of a film's longest track, animated."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dff.aligner.alignment import Alignment
from dff.aligner.intrinsics import Intrinsics
from dff.aligner.mesh_file import HeadMotion, animated_glb
from dff.aligner.texture import FaceTexture, rate_for_texture, texture_face
from dff.aligner.tracking.tracker import Tracked
from dff.face.arrays import Floats
from dff.face.errors import NoFace
from dff.face.geometry.transform import Rigid
from dff.face.model.morphable import MorphableModel
from dff.files.video_io import TimedFrame

BETTER = 1.3
"""How much better a frame must show a face for its texture to be taken again."""


@dataclass
class _Track:
    times: list[float] = field(default_factory=list)
    faces: list[tuple[Floats, Floats, float]] = field(default_factory=list)
    poses: list[Rigid] = field(default_factory=list)
    texture: FaceTexture | None = None
    rating: float = 0.0


class MotionRecorder:
    """Keeps the motion of every track, and the texture of the frame that shows it best."""

    def __init__(self, model: MorphableModel) -> None:
        self._model = model
        self._tracks: dict[int, _Track] = {}

    def add(self, frame: TimedFrame, faces: list[Tracked], camera: Intrinsics) -> None:
        """Take in the faces of a frame. Failed ones are left out."""
        for one in faces:
            if not one.face.failed:
                self._add(self._tracks.setdefault(one.track, _Track()), frame, one.face, camera)

    def encode(self) -> bytes:
        """The GLB of the longest track. Raises NoFace without a track."""
        if not self._tracks:
            raise NoFace("no face for a mesh")
        track = max(self._tracks.values(), key=lambda each: len(each.times))
        identities, expressions, weights = zip(*track.faces, strict=True)
        motion = HeadMotion(
            identity=np.average(identities, axis=0, weights=np.maximum(weights, 1e-3)),
            times=np.array(track.times) - track.times[0],
            expressions=np.stack(expressions),
            cam_from_head=tuple(track.poses),
        )
        lit = None if track.texture is None else track.texture.lit
        return animated_glb(motion, self._model, texture=lit)

    def _add(self, track: _Track, frame: TimedFrame, face: Alignment, camera: Intrinsics) -> None:
        track.times.append(frame.time)
        coefficients = face.coefficients
        track.faces.append((coefficients.identity, coefficients.expression, face.face_confidence))
        track.poses.append(camera.place_head(face.vertices, face.camera, face.cam_from_head))
        rating = rate_for_texture(face)
        if rating > BETTER * track.rating:
            texture = texture_face(face, self._model, frame.image)
            if texture is not None:
                track.texture, track.rating = texture, rating
