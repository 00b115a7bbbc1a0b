"""Which files among others are images: by their suffix, or by how their content begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from dff.face.errors import StorageError, TransientStorageError
from dff.infra.photos.images import OWN_FILES, recognise
from dff.infra.photos.landmark_files import LANDMARK_SUFFIXES
from dff.infra.printing import counted, listed

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng"),
        *(".webp", ".avif", ".heic", ".heif", ".hif"),
    }
)
"""Files of these names are images whatever they hold: a bad one is named as a bad image."""


def find_other_kind(name: str, read: Callable[[], bytes]) -> str | None:
    """None for an image; else the file's name with what is known of its kind.

    ``read`` gives the beginning of the file, at least ``dff.infra.photos.images.HEAD`` bytes. It is
    not called for files whose suffix is that of an image or of landmarks, of which there may be as
    many as photos. Raises TransientStorageError as ``read`` does.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    if suffix in LANDMARK_SUFFIXES:
        return name
    try:
        kind = recognise(read())
    except TransientStorageError:
        raise  # or the same files would give another list tomorrow
    except (OSError, StorageError):
        return f"{name} (unreadable)"
    if kind in OWN_FILES.formats:
        return None
    return name if kind is None else f"{name} ({kind})"


def describe_passed_over(others: Sequence[str]) -> str:
    """Files that are no images, in a line for people."""
    files = counted(len(others), "file")
    return f"{files} passed over, not images that can be read: {listed(others)}"
