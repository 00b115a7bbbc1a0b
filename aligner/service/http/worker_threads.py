"""Work of requests in other threads, which ends when it ends, though its client may have left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def run_to_end(call: Callable[[], T]) -> T:
    """Run ``call`` in a thread; returns what it returns.

    When cancelled, waits for its end before that takes effect: a thread can't be stopped, and what
    the request holds for it, as memory, must not be given to others meanwhile.
    """
    running = asyncio.ensure_future(anyio.to_thread.run_sync(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
