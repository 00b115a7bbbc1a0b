"""Files that a command writes, and never over a file that it reads."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from dff.infra.files import strip_suffix, write_file


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
        assigned = {}
        for path, stem in zip(files, _distinct_stems(files), strict=True):
            suffix = path.suffix if path.suffix.lower() in suffixes else suffixes[0]
            assigned[path] = place / f"{stem}{suffix}"
    check_not_inputs(files, assigned.values())
    return assigned


def _distinct_stems(files: Sequence[Path]) -> list[str]:
    """A name without suffix for each file: its own, with its folders and its suffix where several
    files would have the same.
    """
    times = Counter(path.stem for path in files)
    top = Path(os.path.commonpath([path.absolute().parent for path in files]))
    stems = [
        path.stem
        if times[path.stem] == 1
        else strip_suffix(path.absolute().relative_to(top)).replace(os.sep, "_")
        for path in files
    ]
    times = Counter(stems)
    stems = [
        stem if times[stem] == 1 else f"{stem}_{path.suffix.removeprefix('.')}"
        for stem, path in zip(stems, files, strict=True)
    ]
    taken: set[str] = set()
    for i, stem in enumerate(stems):
        numbers = count(2)
        while stems[i] in taken:
            stems[i] = f"{stem}_{next(numbers)}"
        taken.add(stems[i])
    return stems


def check_suffix(file: Path, suffixes: Sequence[str]) -> None:
    """Raise ValueError unless ``file`` ends in one of ``suffixes`` and is no folder."""
    if file.suffix.lower() not in suffixes or file.is_dir():
        raise ValueError(f"{file} should be a file that ends in {' or '.join(suffixes)}")


def check_not_inputs(inputs: Iterable[Path | None], outputs: Iterable[Path | None]) -> None:
    """Raise ValueError when an input file, or one output by another, would be overwritten.

    None stands for no file. Raises it for ``-`` too, which other programs write to the terminal.
    """
    originals = {path.resolve() for path in inputs if path}
    written: set[Path] = set()
    for path in outputs:
        if path == Path("-"):
            raise ValueError("- is no file: name one, such as /dev/stdout for standard output")
        if path and path.resolve() in originals:
            raise ValueError(f"{path} is one of the input files: name another place")
        if path and path.resolve() in written:
            raise ValueError(f"{path} is named for two outputs: name another place for one")
        if path:
            written.add(path.resolve())


def write_json(path: Path, content: object) -> None:
    """``write_file`` of ``content`` as JSON."""
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())
