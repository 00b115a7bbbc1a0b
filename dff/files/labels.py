"""Label photos for synthesis: the aligner's landmarks as an iBUG ``.pts`` file beside each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from dff.aligner.alignment import Alignment
from dff.aligner.found_faces import describe_missing_face
from dff.face.arrays import Bytes, Floats, Ints
from dff.face.errors import BadPhoto, NoFace, NotFound, StorageError, UnreadableObject
from dff.face.model.landmarks import MIRROR
from dff.files.photo_bar import PhotoBar
from dff.infra.datasets.split import find_split_groups, hash_photo
from dff.infra.files import strip_suffix
from dff.infra.photos.image_listing import describe_passed_over
from dff.infra.photos.images import as_stored, decode_image
from dff.infra.photos.landmark_files import format_pts
from dff.infra.printing import counted, listed
from dff.infra.storage import Storage, is_missing
from dff.pipeline.recovery.photos import PhotoListing, PhotoRef, find_photos

_log = logging.getLogger(__name__)


class PhotoAligner(Protocol):
    """The part of an aligner that is needed here. It is called from threads."""

    def align(self, image: Bytes) -> list[Alignment]: ...


class Refusal(StrEnum):
    """Why a photo can't be labelled, whatever it shows."""

    UNREAD = "could not be read"
    SHARED_NAME = "share their name with another"  # their landmarks would be another photo's, too
    DEFECT = "met an unexpected error"


@dataclass(frozen=True)
class PhotoLabel:
    """The outcome for one photo."""

    key: str
    reason: str = ""  # why it remains without landmarks; "" when they were written
    refused: Refusal | None = None
    warning: str = ""  # what is wrong with a photo that was labelled
    # by which near-duplicates are found; None for a photo that was not read or decoded
    hash: Ints | None = field(default=None, compare=False, repr=False)


@dataclass
class LabelCounts:
    """Counts of a command's photos, by outcome."""

    before: int = 0  # photos that had landmarks already
    labelled: int = 0
    unlabelled: int = 0
    refused: dict[Refusal, list[str]] = field(default_factory=dict)  # keys of photos, by reason

    def add(self, photo: PhotoLabel) -> None:
        """Count a photo."""
        self.labelled += not photo.reason
        self.unlabelled += bool(photo.reason)
        if photo.refused:
            self.refused.setdefault(photo.refused, []).append(photo.key)

    def describe(self, place: str) -> str:
        """One line; ``place``: address of the photos."""
        done = f"{counted(self.before + self.labelled, 'photo')} labelled in {place}"
        if self.before:
            done += f" ({self.before} before, {self.labelled} new)"
        parts = [f"{done}; {self.unlabelled} without landmarks"]
        for why in Refusal:
            if keys := self.refused.get(why):
                parts.append(f"{len(keys)} of these {why} ({listed(keys)})")
        return "; ".join(parts)


def label_photos(
    storage: Storage,
    aligner: PhotoAligner,
    *,
    confidence: float,
    workers: int = 1,
    listing: PhotoListing | None = None,
    progress: bool = False,
) -> Iterator[PhotoLabel]:
    """Label every photo that has no landmarks, ``workers`` photos at a time.

    Yields the outcomes in the order of the keys; no photo stops the others. The face of the highest
    confidence is labelled, with a warning where a photo shows several. Faces of a confidence below
    ``confidence`` (0 to 1) are not, since wrong labels spoil the training data, nor are photos
    whose names differ in their suffix only. Photos with a ``.pts`` or ``.mat`` file are left alone,
    so running again completes a stopped run. Files that are no images are named in the log.
    ``listing``: of ``find_photos``, if it is known. Raises BadPhoto when the storage holds no
    photo, and as the storage does.
    """
    if listing is None:
        listing = find_photos(storage)
    if listing.passed_over:
        _log.warning("%s", describe_passed_over(listing.passed_over))
    if not listing.photos:
        missing = is_missing(storage)
        raise BadPhoto(f"{'there is no folder' if missing else 'no photo in'} {storage.uri}")
    todo = [ref for ref in listing.photos if ref.landmark_key is None]
    times = Counter(strip_suffix(ref.image_key) for ref in listing.photos)

    def label(ref: PhotoRef) -> PhotoLabel:
        stem = strip_suffix(ref.image_key)
        if times[stem] > 1:
            return PhotoLabel(
                ref.image_key,
                "another image has this name, so a .pts file would label both",
                refused=Refusal.SHARED_NAME,
            )
        value: Ints | None = None
        bar.begin(ref.image_key, ref.size)
        try:
            data = storage.read(ref.image_key)
            value = hash_photo(data)
            points, warning = find_landmarks(data, aligner, confidence=confidence)
        except NoFace as error:
            return PhotoLabel(ref.image_key, str(error), hash=value)
        except (BadPhoto, NotFound, UnreadableObject) as error:
            return PhotoLabel(ref.image_key, str(error), refused=Refusal.UNREAD, hash=value)
        except StorageError:
            raise  # the other photos can't be read either
        except Exception as error:  # the others are worth more than a defect that one shows
            why = f"{type(error).__name__}: {error}"
            return PhotoLabel(ref.image_key, why, refused=Refusal.DEFECT, hash=value)
        storage.write(f"{stem}.pts", format_pts(points))
        return PhotoLabel(ref.image_key, warning=warning, hash=value)

    # threads are enough: the aligner is thread-safe, and decoding, network and fit release the GIL
    pool = ThreadPoolExecutor(workers)
    with PhotoBar(len(todo), shown=progress) as bar:
        try:
            for outcome in pool.map(label, todo):
                bar.end()
                yield outcome
        finally:
            pool.shutdown(cancel_futures=True)


def find_duplicate_photos(
    storage: Storage,
    hashes: Mapping[str, Ints] = MappingProxyType({}),
    *,
    listing: PhotoListing | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Groups of near-duplicates among the photos, by photo id.

    Every photo without an entry in ``hashes``, by image key, is read. ``listing``: of
    ``find_photos``, if it is known.
    """
    photos = (listing or find_photos(storage)).photos
    keys = {ref.id: ref.image_key for ref in photos}
    return find_split_groups(storage, keys, hashes=hashes).near_duplicates


def find_landmarks(data: bytes, aligner: PhotoAligner, *, confidence: float) -> tuple[Floats, str]:
    """(68, 2) landmarks of the most confident face of an image file, 2D scheme; a warning or "".

    Of faces whose confidences agree to a hundredth, the largest is taken. Label files count in
    stored pixels, before the EXIF orientation that alignment applies. Raises BadPhoto for a file
    that can't be read, and NoFace where no face is found or aligned with confidence.
    """
    image = decode_image(data)
    faces = aligner.align(image.pixels)
    if not faces:
        raise NoFace(describe_missing_face(faces))
    face = max(faces, key=lambda face: (round(face.face_confidence, 2), face.camera.scale))
    if face.failed:
        raise NoFace(face.reason)
    if face.face_confidence < confidence:
        raise NoFace(f"confidence {face.face_confidence:.2f} is below {confidence:g}")
    points, mirrored = as_stored(data, face.landmarks_2d)
    warnings = [image.warning] if image.warning else []
    if len(faces) > 1:
        x, y = face.box.centre
        warnings.append(f"{len(faces)} faces found; the one at {x:.0f},{y:.0f} is labelled")
    return points[MIRROR] if mirrored else points, "; ".join(warnings)
