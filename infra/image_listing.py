"""Which files among others are images: by their suffix, else by how their content begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from dff.face.errors import StorageError, TransientStorageError
from dff.infra.images import OWN_FILES, recognise
from dff.infra.printing import printable

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng"),
        *(".webp", ".avif", ".heic", ".heif", ".hif"),
    }
)
"""Files of these names are images whatever they hold: a bad one is named as a bad image."""
OTHER_SUFFIXES = frozenset(
    {
        *(".pts", ".mat", ".csv", ".json", ".jsonl", ".txt", ".md", ".xml", ".yaml"),
        *(".npy", ".npz", ".parquet", ".safetensors", ".obj", ".glb"),
        *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp", ".ts", ".wmv"),
        *(".mpg", ".mpeg", ".flv", ".mts", ".zip", ".gz", ".tar", ".tgz"),
    }
)
"""Files of these names are not opened to see whether they are images."""
NAMED = 5  # files that are passed over and named; the others are counted


def find_other_kind(name: str, read: Callable[[], bytes]) -> str | None:
    """None for an image; else the file's name with what is known of its kind.

    ``read`` gives the beginning of the file, at least ``dff.infra.images.HEAD`` bytes; it is called
    only where the name does not decide. Raises TransientStorageError as ``read`` does.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    if suffix in OTHER_SUFFIXES:
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
    named = ", ".join(printable(name) for name in others[:NAMED])
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    files = "1 file" if len(others) == 1 else f"{len(others)} files"
    return f"{files} passed over, no image that can be read: {named}{more}"
