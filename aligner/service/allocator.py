"""How much freed memory the process keeps."""

from __future__ import annotations

import ctypes

# parameters of glibc's mallopt, from malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

LARGE = 8 << 20  # bytes: larger blocks are returned to the system when they are freed

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
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, LARGE)
    mallopt(_TRIM_THRESHOLD, 4 * LARGE)
