"""Image files that a command is given: found, and named in its answers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dff.face.errors import BadPhoto
from dff.files.video_io import is_video
from dff.infra.files import strip_suffix
from dff.infra.photos.image_listing import IMAGE_SUFFIXES, describe_passed_over, find_other_kind
from dff.infra.photos.images import HEAD
from dff.infra.photos.landmark_files import LANDMARK_SUFFIXES

VIDEO = "a video: align it alone"


@dataclass(frozen=True)
class FoundImages:
    """The images of some files and folders."""

    images: tuple[Path, ...]  # folders sorted by path
    passed_over: tuple[str, ...]  # the other files in the folders, but for images' landmarks


def find_images(places: Iterable[Path], *, without: Collection[Path] = ()) -> FoundImages:
    """The files, and the images in the folders and their sub-folders, among ``places``.

    Images are recognised as in ``dff.infra.photos.image_listing``. Links are followed. Sub-folders
    in ``without``, which results are written to, are passed over. Raises BadPhoto for a missing
    place, and when there is no image.
    """
    some = list(places)
    results = {path.resolve() for path in without} - {place.resolve() for place in some}
    found: dict[Path, None] = {}
    others: dict[Path, str] = {}
    missing: list[Path] = []
    for place in some:
        if place.is_dir():
            before = len(found) + len(others)
            for path, trouble in sorted(_walk(place, results, frozenset())):
                other = trouble or find_other_kind(str(path), partial(_read_head, path))
                if other is None:
                    found[path] = None
                else:
                    others[path] = f"{path} ({VIDEO})" if is_video(path) else other
            if len(found) + len(others) == before:
                others[place] = f"{place} (an empty folder)"
        elif place.is_file():
            found[place] = None
        else:
            missing.append(place)
            found[place] = None
    if len(missing) == len(found):
        if missing:
            raise BadPhoto(f"{missing[0]} is neither a file nor a folder")
        passed = f"; {describe_passed_over([*others.values()])}" if others else ""
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise BadPhoto(f"no image ({known}) in {', '.join(map(str, some))}{passed}")
    stems = {*map(strip_suffix, found)}
    return FoundImages(
        tuple(found),
        tuple(
            text
            for path, text in others.items()
            if path.suffix.lower() not in LANDMARK_SUFFIXES or strip_suffix(path) not in stems
        ),
    )


def _walk(
    folder: Path, results: Collection[Path], above: frozenset[Path]
) -> Iterable[tuple[Path, str]]:
    """Each file below ``folder``, or what can't be opened with a description of the trouble.

    ``above``: the resolved folders that this one lies in.
    """
    real = folder.resolve()
    if real in results:
        yield folder, f"{folder} (results are written there)"
        return
    if real in above:
        yield folder, f"{folder} (a link to a folder that it lies in)"
        return
    try:
        names = os.listdir(folder)
    except OSError as error:
        yield folder, f"{folder} ({error.strerror})"
        return
    if not names and folder.suffix.lower() in IMAGE_SUFFIXES:
        yield folder, f"{folder} (an empty folder)"
    for path in (folder / name for name in names):
        if path.is_dir():
            yield from _walk(path, results, above | {real})
        elif path.is_file():
            yield path, ""
        else:
            kind = "a broken link" if path.is_symlink() else "not a file"
            yield path, f"{path} ({kind})"


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Names of files, or whole paths where two folders hold files of one name."""
    times = Counter(path.name for path in paths)
    return [path.name if times[path.name] == 1 else str(path) for path in paths]
