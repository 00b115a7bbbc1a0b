"""Memory that decoded photos may take, admitted by the bytes that their headers announce."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# Bytes a pixel while a photo is decoded: Pillow's image has 4 and the result 3; a progressive JPEG
# is held as 6 bytes of coefficients beside Pillow's image. Measured: 10.3 with the file.
DECODING = 11


class Lane:
    """A number of bytes that requests hold, first come, first served."""

    def __init__(self, total: int) -> None:
        self.total, self.held = total, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, count: int) -> None:
        """Wait for ``count`` bytes, at most ``total``, and hold them."""
        if not self._waiting and self.held + count <= self.total:
            self.held += count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give(count)
            raise

    def give(self, count: int) -> None:
        """Give back bytes, and let those that wait have them."""
        self.held -= count
        while self._waiting:
            needed, turn = self._waiting[0]
            if not turn.done() and self.held + needed > self.total:
                return
            self._waiting.popleft()
            if not turn.done():
                self.held += needed
                turn.set_result(None)


class Holding:
    """Bytes of a lane that one request holds."""

    def __init__(self, lane: Lane, count: int) -> None:
        self._lane, self.count = lane, count

    def shrink(self, count: int) -> None:
        """Keep ``count`` bytes, where that is less."""
        if count < self.count:
            self._lane.give(self.count - count)
            self.count = count


class DecodingMemory:
    """Two lanes of bytes: large photos wait for each other, but small ones never for them."""

    def __init__(self, total: int, *, small: int) -> None:
        """``small``: bytes of the lane of photos that need at most a quarter of it each."""
        self._lanes = Lane(small), Lane(max(total - small, 1))
        self._small = small // 4

    @property
    def held(self) -> int:
        """Bytes that are held."""
        return sum(lane.held for lane in self._lanes)

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[Holding]:
        """Hold ``count`` bytes for the length of a ``with`` block; a whole lane at most."""
        small, large = self._lanes
        lane = small if count <= self._small else large
        count = min(count, lane.total)
        await lane.take(count)
        holding = Holding(lane, count)
        try:
            yield holding
        finally:
            holding.shrink(0)
