"""How many requests a server holds at the same time: the others are told when to come again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from dff.aligner.service.limits import Limits
from dff.aligner.service.problems import Problem

AGAIN = 5  # seconds after which whoever was sent away may try again


class WaitingRoom:
    """Requests whose photos have arrived. Encoded they wait on disk; decoded, which takes memory,
    only ``decoding``.
    """

    def __init__(self, limits: Limits) -> None:
        self._most, self._inside = limits.requests, 0
        self.decoding = asyncio.Semaphore(limits.decoded)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for the length of a ``with`` block; raises Problem ``busy`` when none is free."""
        if self._inside >= self._most:
            raise Problem("busy", headers={"Retry-After": str(AGAIN)})
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
