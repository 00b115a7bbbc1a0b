"""Training and validation split: decided for each group of photos, by the group's name alone.

A group holds what must not fall on both sides: the faces of one photo, near-duplicates of a photo,
and all photos of one person where ``persons.csv`` beside the photos names the person.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from dff.face.arrays import Ints
from dff.face.errors import BadPhoto, NotFound, UnreadableObject
from dff.infra.datasets.near_duplicates import find_near_duplicates, perceptual_hash
from dff.infra.photos.images import decode
from dff.infra.storage import Storage

Split = Literal["train", "dev"]

PERSONS = "persons.csv"
COLUMNS = ["photo", "person"]  # the header of PERSONS
DECODED_SIDE = 128  # px that are enough for the hash
CHUNK = 1024  # images queued at a time

# AFW and Helen name the faces of one photo 134212_1, 134212_2; LFPW's image_0012 counts photos, not
# faces.
_FACE_NUMBER = re.compile(r"_[1-9][0-9]?$")


@dataclass(frozen=True)
class SplitGroups:
    """The groups of some photos."""

    names: Mapping[str, str]  # photo id to the name of its group
    # Ids of photos, in groups of two and more; faces of one photo alone are no group
    near_duplicates: tuple[tuple[str, ...], ...]

    def split(self, photo_id: str) -> Split:
        """The side of the split on which a photo falls. Raises KeyError for an unknown photo."""
        return assign_split(self.names[photo_id])


def assign_split(group: str) -> Split:
    """ "dev" for one group in ten, by the SHA-256 of its name."""
    digest = hashlib.sha256(group.encode()).digest()
    return "dev" if int.from_bytes(digest[:8]) % 10 == 0 else "train"


def default_group(photo_id: str) -> str:
    """The group of a photo without known person or duplicates: its name without folder and number
    of the face. The group of a sampled identity is its id.
    """
    return _FACE_NUMBER.sub("", photo_id.rpartition("/")[2])


def find_split_groups(
    storage: Storage,
    image_keys: Mapping[str, str],
    *,
    hashes: Mapping[str, Ints | None] = MappingProxyType({}),
    workers: int = 8,
) -> SplitGroups:
    """The groups of the photos ``image_keys`` (photo id to image key) of a storage.

    Every image without an entry in ``hashes`` (image key to ``hash_photo``) is read and decoded
    once, in ``workers`` threads; one without a hash has no near-duplicates. A group with known
    persons has the name of the first of these, another one the first of its photos' default names.
    Raises BadPhoto for a malformed ``persons.csv``, and StorageError.
    """
    from scipy.cluster.hierarchy import DisjointSet  # takes a fifth of a second to import

    persons = _read_persons(storage, image_keys)
    unread = {photo: key for photo, key in image_keys.items() if key not in hashes}
    found = _hash_images(storage, unread, workers)
    found |= {photo: hashes[key] for photo, key in image_keys.items() if key in hashes}
    near = find_near_duplicates({p: value for p, value in found.items() if value is not None})
    sets = DisjointSet(image_keys)
    one_photo = {photo: _FACE_NUMBER.sub("", photo) for photo in image_keys}
    for same in (persons, one_photo):
        first: dict[str, str] = {}
        for photo, value in same.items():
            sets.merge(photo, first.setdefault(value, photo))
    for photos in near:
        for photo in photos:
            sets.merge(photo, photos[0])
    names = {photo: name for group in sets.subsets() for photo, name in _named(group, persons)}
    copies = tuple(group for group in near if len({one_photo[photo] for photo in group}) > 1)
    return SplitGroups({photo: names[photo] for photo in image_keys}, copies)


def _named(group: Iterable[str], persons: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    photos = sorted(group)
    known = sorted(persons[photo] for photo in photos if photo in persons)
    name = known[0] if known else min(default_group(photo) for photo in photos)
    return ((photo, name) for photo in photos)


def hash_photo(data: bytes) -> Ints | None:
    """The perceptual hash of an image file; None where it can't be decoded."""
    try:
        return perceptual_hash(decode(data, reduce_to=DECODED_SIDE))
    except BadPhoto:
        return None


def _hash_images(
    storage: Storage, image_keys: Mapping[str, str], workers: int
) -> dict[str, Ints | None]:
    def hash_image(key: str) -> Ints | None:
        try:
            return hash_photo(storage.read(key))
        except (NotFound, UnreadableObject):
            return None  # the job reports it

    hashes: dict[str, Ints | None] = {}
    ids = list(image_keys)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(ids), CHUNK):  # all at once, a million photos would fill memory
            chunk = ids[start : start + CHUNK]
            found = pool.map(hash_image, [image_keys[photo] for photo in chunk])
            hashes |= dict(zip(chunk, found, strict=True))
    return hashes


def _read_persons(storage: Storage, image_keys: Mapping[str, str]) -> dict[str, str]:
    """Photo id to person, of the photos that ``persons.csv`` lists by image key or id."""
    try:
        data = storage.read(PERSONS)
    except NotFound:
        return {}
    ids = {key: photo for photo, key in image_keys.items()}
    ids |= {photo: photo for photo in image_keys}
    persons: dict[str, str] = {}
    try:
        rows = list(csv.reader(data.decode("utf-8-sig").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadPhoto(f"{PERSONS} is not a CSV file in UTF-8: {error}") from error
    if not rows or rows[0] != COLUMNS:
        raise BadPhoto(f"{PERSONS} must begin with the line {','.join(COLUMNS)!r}")
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(COLUMNS) or not all(row):
            raise BadPhoto(f"{PERSONS}, row {number}: want a photo and a person, got {row}")
        if row[0] not in ids:
            raise BadPhoto(f"{PERSONS}, row {number}: there is no photo {row[0]!r}")
        if persons.setdefault(ids[row[0]], row[1]) != row[1]:
            raise BadPhoto(f"{PERSONS}, row {number}: a second person for {row[0]!r}")
    return persons
