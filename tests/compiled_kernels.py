"""Kernels that this tree has compiled, given to copies of it: compiling takes half a minute.

A kernel that is not compiled yet, or whose source has changed since, is compiled as usual.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from numba.core.caching import _CacheLocator

ROOT = Path(__file__).parents[1]
ROOMS = ("face", "infra", "pipeline", "trainer", "aligner", "dff")


def give_to_package(package: Path) -> None:
    """Copy compiled kernels to an installed ``dff``, whose sources are those of this tree."""
    for source in _sources():
        room = source.relative_to(ROOT)
        copy = package / (room.relative_to("dff") if room.parts[0] == "dff" else room)
        _copy_kernels(source, copy.parent / "__pycache__")
        stat = source.stat()  # numba compares the times of the sources
        os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def give_to_folder(folder: Path) -> None:
    """Copy compiled kernels to a folder that numba takes for its cache."""
    for source in _sources():
        _copy_kernels(source, folder / _CacheLocator.get_suitable_cache_subpath(str(source)))


def _sources() -> list[Path]:
    """Sources with compiled kernels beside them."""
    indices = [path for room in ROOMS for path in (ROOT / room).rglob("__pycache__/*.nbi")]
    names = {path.parents[1] / f"{path.name.partition('.')[0]}.py" for path in indices}
    return sorted(name for name in names if name.exists())


def _copy_kernels(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in (source.parent / "__pycache__").glob(f"{source.stem}.*.nb[ic]"):
        shutil.copy(path, folder)
