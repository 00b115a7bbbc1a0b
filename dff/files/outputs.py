"""Files that a command writes, and never over a file that it reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from dff.face.errors import StorageError


def assign_outputs(place: Path, files: Sequence[Path], suffixes: Sequence[str]) -> dict[Path, Path]:
    """The file to write for each input: ``place`` itself, or a file in the folder ``place``.

    ``place`` is a file when it ends in one of ``suffixes``. Raises ValueError when one file would
    hold the results of several inputs, for other suffixes, and when an input would be overwritten.
    """
    if place.suffix.lower() in suffixes and not place.is_dir():
        if len(files) > 1:
            raise ValueError(
                f"{place} is one file, and there are {len(files)} images: name a folder"
            )
        assigned = {files[0]: place}
    elif place.suffix and not place.is_dir():
        raise ValueError(f"{place} should end in {' or '.join(suffixes)}, or be a folder")
    else:
        times = Counter(path.stem for path in files)
        assigned = {}
        for path in files:
            name = path.stem
            if times[name] > 1:
                name = "_".join(part for part in path.parts if part != path.anchor)
            suffix = path.suffix if path.suffix.lower() in suffixes else suffixes[0]
            assigned[path] = place / f"{name}{suffix}"
    check_not_inputs(files, assigned.values())
    return assigned


def check_suffix(file: Path, suffixes: Sequence[str]) -> None:
    """Raise ValueError unless ``file`` ends in one of ``suffixes`` and is no folder."""
    if file.suffix.lower() not in suffixes or file.is_dir():
        raise ValueError(f"{file} should be a file that ends in {' or '.join(suffixes)}")


def check_not_inputs(inputs: Iterable[Path | None], outputs: Iterable[Path | None]) -> None:
    """Raise ValueError when an input file would be overwritten; None stands for no file."""
    originals = {path.resolve() for path in inputs if path}
    for path in outputs:
        if path and path.resolve() in originals:
            raise ValueError(f"{path} is one of the input files: name another place")


def write_json(path: Path, content: object) -> None:
    """``write_file`` of ``content`` as JSON."""
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def write_file(path: Path, data: bytes) -> None:
    """Write ``data``, and the folder when it is missing. Raises StorageError with the file."""
    _write(path, data, "wb")


def append_file(path: Path, data: bytes) -> None:
    """``write_file`` at the end of the file."""
    _write(path, data, "ab")


def _write(path: Path, data: bytes, mode: Literal["wb", "ab"]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode) as file:
            file.write(data)
    except OSError as error:
        raise StorageError(f"can't write {path}: {error.strerror}") from error
