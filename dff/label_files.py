"""Photos that have no landmarks made ready for synthesis: the aligner's answer as an iBUG ``.pts``
beside each.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from tqdm import tqdm

from dff.aligner.alignment import Alignment
from dff.face.arrays import Bytes, Floats
from dff.face.errors import BadPhoto
from dff.face.model.landmarks import MIRROR
from dff.infra.images import as_stored, decode
from dff.infra.landmark_files import format_pts
from dff.infra.storage import Storage
from dff.pipeline.recovery.photos import PhotoRef, list_photos


class FindsFaces(Protocol):
    """What is needed of an aligner. Called from threads."""

    def align(self, image: Bytes) -> list[Alignment]: ...


@dataclass(frozen=True)
class Labelled:
    """What became of one photo."""

    key: str
    reason: str = ""  # why it has no landmarks still; "" when they were written


def label_photos(
    storage: Storage,
    aligner: FindsFaces,
    *,
    confidence: float,
    workers: int = 1,
    progress: bool = False,
) -> Iterator[Labelled]:
    """Write the landmarks of every photo that has none, ``workers`` photos at a time; told in the
    order of the keys.

    Of several faces the largest counts; one of which the aligner is less sure than ``confidence``
    (0 to 1) is not written, since a wrong label teaches what is wrong, nor are those of photos
    whose names differ in the suffix only. What has a ``.pts`` or ``.mat`` already is left alone, so
    a stopped run goes on. Raises BadPhoto when the storage holds no photo, else what the storage
    raises.
    """
    refs = list_photos(storage)
    if not refs:
        raise BadPhoto(f"no photo in {storage.uri}")
    todo = [ref for ref in refs if ref.landmark_key is None]

    def label(ref: PhotoRef) -> Labelled:
        if ref.id == ref.image_key:  # ids have suffixes where names are not unique
            return Labelled(
                ref.image_key, "another image has this name, and one .pts would be taken for both"
            )
        data = storage.read(ref.image_key)
        try:
            points = landmarks_of(data, aligner, confidence=confidence)
        except BadPhoto as error:
            return Labelled(ref.image_key, str(error))
        storage.write(str(PurePosixPath(ref.image_key).with_suffix(".pts")), format_pts(points))
        return Labelled(ref.image_key)

    # Threads are enough: the aligner is safe to share, and decoding, network and fit run outside of
    # the interpreter.
    pool = ThreadPoolExecutor(workers)
    try:
        yield from tqdm(pool.map(label, todo), total=len(todo), unit="photo", disable=not progress)
    finally:
        pool.shutdown(cancel_futures=True)


def landmarks_of(data: bytes, aligner: FindsFaces, *, confidence: float) -> Floats:
    """(68, 2) pixels of an image file as it is stored, 2D scheme. Raises BadPhoto with the reason
    why there are none.

    Label files count in stored pixels, before any EXIF orientation, which faces are found after.
    """
    faces = aligner.align(decode(data))
    if not faces:
        raise BadPhoto("no face found")
    face = max(faces, key=lambda face: face.camera.scale)
    if face.failed:
        raise BadPhoto(face.reason)
    if face.face_confidence < confidence:
        raise BadPhoto(f"confidence {face.face_confidence:.2f} is below {confidence:g}")
    points, mirrored = as_stored(data, face.landmarks_2d)
    return points[MIRROR] if mirrored else points
