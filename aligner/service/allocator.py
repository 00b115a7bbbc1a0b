"""How much freed memory the process keeps."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

# parameters of glibc's mallopt, from malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

LARGE = 8 << 20  # bytes: larger blocks are returned to the system when they are freed
INTERVAL = 10.0  # seconds after which freed memory between used blocks is returned

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


async def keep_trimming(interval: float = INTERVAL) -> None:
    """Return freed memory that lies between used blocks, again and again until cancelled.

    70 MB after some load. Does nothing with another C library than glibc.
    """
    malloc_trim = _find("malloc_trim")
    while malloc_trim is not None:
        await asyncio.sleep(interval)
        await asyncio.to_thread(malloc_trim, 0)


def _find(name: str) -> Callable[..., int] | None:
    """A function of the process's C library."""
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except AttributeError:
        return None
    return found
