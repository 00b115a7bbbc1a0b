"""Image and video files that a command is given: found, and named in its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dff.face.errors import BadPhoto

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
UNSUPPORTED = {".heic", ".heif", ".avif", ".gif", ".bmp", ".tif", ".tiff"}
VIDEOS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"}


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its name."""
    return path.suffix.lower() in VIDEOS


def list_images(places: Iterable[Path]) -> list[Path]:
    """The files and the images in the folders among ``places``, folders sorted by name.

    Raises BadPhoto for a missing place, and when there is no image.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES)
        elif place.is_file():
            found.append(place)
        else:
            raise BadPhoto(f"{place} is neither a file nor a folder")
    if not found:
        raise BadPhoto(f"no image ({', '.join(sorted(SUFFIXES))}) in {', '.join(map(str, places))}")
    return found


def list_unsupported(places: Iterable[Path]) -> list[Path]:
    """Images in the folders among ``places`` whose format ``list_images`` leaves out."""
    return sorted(
        path
        for place in places
        if place.is_dir()
        for path in place.iterdir()
        if path.suffix.lower() in UNSUPPORTED
    )


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Names of files, or whole paths where two folders hold files of one name."""
    times = Counter(path.name for path in paths)
    return [path.name if times[path.name] == 1 else str(path) for path in paths]
