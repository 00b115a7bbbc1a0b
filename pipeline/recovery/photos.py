"""Photos with their 68 landmarks, read from storage under limits.

A photo is an image file with an iBUG ``.pts`` (2D scheme) or an AFLW2000-3D ``.mat`` (3D scheme) of
the same name beside it. Landmarks refer to the pixels as they are stored: an EXIF orientation is
deliberately not applied, since the annotators of both sets worked on the stored pixels.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from dff.face.arrays import Bytes, Floats
from dff.face.errors import BadLandmarks, BadPhoto
from dff.infra.cards import CARD, CROISSANT
from dff.infra.datasets.split import PERSONS, SplitGroups, default_group, find_split_groups
from dff.infra.files import strip_suffix
from dff.infra.photos.image_listing import find_other_kind
from dff.infra.photos.images import HEAD, decode_image
from dff.infra.photos.landmark_files import LANDMARK_SUFFIXES, parse_mat, parse_pts
from dff.infra.storage import Storage

Scheme = Literal["2d", "3d"]

_log = logging.getLogger(__name__)

READERS = 8  # threads that read the beginnings of files whose names are not those of images
MIN_SIDE = 16
FAR_OUTSIDE = 0.5  # of the image's longer side: how far beyond the border a landmark may be guessed


@dataclass(frozen=True, slots=True)
class PhotoRef:
    """Where a photo and its landmarks lie in a storage."""

    id: str  # the image's key without its suffix
    image_key: str
    landmark_key: str | None  # None when no landmark file lies beside the image
    # bytes of both: another file in the place of one is, nearly always, seen as another input
    size: int = 0
    # the group of dff.infra.datasets.split whose split its rows take; "" when it is the photo's
    # default group
    split_group: str = ""


@dataclass(frozen=True)
class Photo:
    """A decoded photo. Raises ValueError when the shapes are wrong."""

    id: str
    pixels: Bytes  # (H, W, 3) RGB
    landmarks: Floats  # (68, 2) pixels
    scheme: Scheme  # "2d": jaw on the visible contour; "3d": jaw fixed to the surface
    sha256: str  # of the image file's bytes

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise ValueError(
                f"Photo.pixels must be uint8 (H, W, 3), got {self.pixels.dtype} {self.pixels.shape}"
            )
        if self.landmarks.shape != (68, 2) or not np.isfinite(self.landmarks).all():
            raise ValueError("Photo.landmarks must be (68, 2) and finite")


@dataclass(frozen=True)
class PhotoListing:
    """The files of a storage."""

    photos: tuple[PhotoRef, ...]  # in the order of the keys
    # the other files, but for the photos' landmarks, persons and description
    passed_over: tuple[str, ...]


def list_photos(storage: Storage) -> list[PhotoRef]:
    """The photos of ``find_photos``."""
    return list(find_photos(storage).photos)


def find_photos(storage: Storage) -> PhotoListing:
    """Every image of the storage, with or without landmarks, and the files that are passed over.

    Images are recognised as in ``dff.infra.photos.image_listing``. Two images of one name and
    different suffixes keep their suffixes in their ids, since ids must be unique.
    """
    known = {info.key: info.size for info in storage.list("")}
    images, others = _tell_images(storage, sorted(known))
    beside = {
        (strip_suffix(key), PurePosixPath(key).suffix.lower()): key
        for key in sorted(known)  # of a.PTS and a.pts the second
        if PurePosixPath(key).suffix.lower() in LANDMARK_SUFFIXES
    }
    times = Counter(strip_suffix(key) for key in images)
    keys = set(images)  # with their suffixes: a.jpg.png has another's key without its own
    refs = []
    for key in images:
        stem = strip_suffix(key)
        labels = [beside[stem, end] for end in LANDMARK_SUFFIXES if (stem, end) in beside]
        size = known[key] + sum(known[landmarks] for landmarks in labels[:1])
        alone = times[stem] == 1 and stem not in keys
        refs.append(PhotoRef(stem if alone else key, key, labels[0] if labels else None, size))
    used = {PERSONS, CARD, CROISSANT} | {key for (stem, _), key in beside.items() if stem in times}
    return PhotoListing(tuple(refs), tuple(text for key, text in others.items() if key not in used))


def _tell_images(storage: Storage, keys: list[str]) -> tuple[list[str], dict[str, str]]:
    """The keys of images, and the other keys each with a description."""

    def find_kind(key: str) -> str | None:
        return find_other_kind(key, partial(storage.read_range, key, 0, HEAD))

    with ThreadPoolExecutor(READERS) as pool:
        kinds = list(pool.map(find_kind, keys))
    pairs = list(zip(keys, kinds, strict=True))
    return [key for key, kind in pairs if kind is None], {
        key: kind for key, kind in pairs if kind is not None
    }


def name_split_groups(
    storage: Storage, refs: Iterable[PhotoRef]
) -> tuple[list[PhotoRef], SplitGroups]:
    """The photos with the groups that decide their split, and all groups; every image is read.

    Raises BadPhoto for a malformed ``persons.csv``, and StorageError.
    """
    listed = list(refs)
    groups = find_split_groups(storage, {ref.id: ref.image_key for ref in listed})
    named = [(ref, groups.names[ref.id]) for ref in listed]
    return [
        ref if name == default_group(ref.id) else replace(ref, split_group=name)
        for ref, name in named
    ], groups


def read_photo(storage: Storage, ref: PhotoRef) -> Photo:
    """The photo of a reference. Raises BadPhoto or BadLandmarks naming the file, or what the
    storage raises.
    """
    data = storage.read(ref.image_key)
    try:
        image = decode_image(data, upright=False)
    except BadPhoto as error:
        raise BadPhoto(f"{ref.image_key}: {error}") from error
    if image.warning:
        _log.warning("%s: %s", ref.image_key, image.warning)
    pixels = image.pixels
    if min(pixels.shape[:2]) < MIN_SIDE:
        raise BadPhoto(
            f"{ref.image_key}: {pixels.shape[1]} x {pixels.shape[0]}, "
            f"a side is shorter than {MIN_SIDE}"
        )
    if ref.landmark_key is None:
        raise BadLandmarks(
            f"{ref.image_key}: no .pts or .mat file beside it (`dff label` makes one)"
        )
    try:
        landmarks, scheme = parse_landmarks(storage.read(ref.landmark_key), ref.landmark_key)
        check_landmarks(landmarks, (pixels.shape[0], pixels.shape[1]))
    except BadLandmarks as error:
        raise BadLandmarks(f"{ref.landmark_key}: {error}") from error
    return Photo(ref.id, pixels, landmarks, scheme, hashlib.sha256(data).hexdigest())


def parse_landmarks(data: bytes, name: str) -> tuple[Floats, Scheme]:
    """(68, 2) pixels and their scheme from a ``.pts`` or ``.mat`` file; raises BadLandmarks."""
    if PurePosixPath(name).suffix.lower() == ".mat":
        return parse_mat(data).landmarks[:, :2], "3d"
    return parse_pts(data), "2d"


def check_landmarks(landmarks: Floats, size: tuple[int, int]) -> None:
    """Raise BadLandmarks when (68, 2) pixels cannot belong to an image of (height, width)
    ``size``.
    """
    height, width = size
    far = FAR_OUTSIDE * max(height, width)
    low, high = landmarks.min(0), landmarks.max(0)
    if (low < -far).any() or high[0] > width + far or high[1] > height + far:
        spans = " and ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))
        raise BadLandmarks(f"points span {spans}, the image is {width} x {height}")
    if (high - low).min() <= 0:
        raise BadLandmarks("all points lie on one line")
