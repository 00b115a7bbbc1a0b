"""How much memory the process keeps that it no longer needs."""

from __future__ import annotations

import asyncio
import ctypes
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

# parameters of glibc's mallopt, from malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_DONTNEED = 4  # of madvise
_MAPPINGS, _COUNTS = Path("/proc/self/smaps"), Path("/proc/self/statm")
# address range, permissions and file of a mapping
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (r-[x-]p) \S+ \S+ \S+ +(/.*\.so[.0-9]*)")

LARGE = 8 << 20  # bytes: larger blocks are returned to the system when they are freed
INTERVAL = 10.0  # seconds after which freed memory between used blocks is returned
MOST_CODE = 64 << 20  # bytes of libraries that are kept; requests use some 20 MB

ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(LARGE),
    "MALLOC_TRIM_THRESHOLD_": str(4 * LARGE),
}
"""Variables with the effect of ``return_freed_memory``, for processes that begin with threads."""


def return_freed_memory() -> None:
    """Let all threads share one heap, and return large freed blocks to the system at once.

    By default glibc keeps a heap for each thread that decodes photos, and the memory of photos in
    it: a server under load held 120 MB more. Does nothing with another C library. To be called
    before threads begin.
    """
    mallopt = _find("mallopt")
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(_TRIM_THRESHOLD, 4 * LARGE)


async def keep_trimming(
    interval: float = INTERVAL, *, drop_unused: Callable[[], None] = lambda: None
) -> None:
    """Return freed memory between used blocks and unused code, again and again until cancelled.

    70 MB after some load, and 120 MB; only with glibc. ``drop_unused`` is called before, to free
    what was not used since the last time.
    """
    malloc_trim = _find("malloc_trim")
    while True:
        drop_unused()
        if malloc_trim is not None:
            await asyncio.to_thread(malloc_trim, 0)
            if count_file_bytes() > MOST_CODE:
                await asyncio.to_thread(drop_code)
        await asyncio.sleep(interval)


def count_file_bytes() -> int:
    """Bytes of files that are mapped and resident, nearly all of them code; 0 where it is unknown.

    Counted in a moment, unlike the mappings themselves, which take 20 ms.
    """
    try:
        return int(_COUNTS.read_text().split()[2]) * resource.getpagesize()
    except OSError:
        return 0


def drop_code() -> None:
    """Let go of the pages of libraries, which come back from their files where they are used.

    Most of them were used at the start only: the compiler, to link cached kernels, and torch, to
    load weights. Pages that the process has changed, as by relocation, are kept. Does nothing where
    the system does not tell the mappings of a process, as Linux does.
    """
    madvise = _find("madvise")
    if madvise is None or not _MAPPINGS.exists():
        return
    for start, end in find_unchanged(_MAPPINGS.read_text()):
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def find_unchanged(mappings: str) -> Iterator[tuple[int, int]]:
    """Addresses of the mappings of libraries that can't be written and have no changed page."""
    found: tuple[int, int] | None = None
    changed = 0  # kB
    for line in mappings.splitlines():
        name, _, value = line.partition(":")
        if name in ("Private_Dirty", "Shared_Dirty", "Anonymous"):
            changed += int(value.split()[0])
        elif name == "VmFlags":  # the last line of a mapping
            if found and not changed:
                yield found
            found, changed = None, 0
        elif match := _MAPPING.fullmatch(line):
            found = int(match[1], 16), int(match[2], 16)


def _find(name: str) -> Callable[..., int] | None:
    """A function of the process's C library."""
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except AttributeError:
        return None
    return found
