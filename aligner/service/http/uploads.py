"""Bodies of requests, read completely before the application sees them.

A slow sender therefore holds nothing but a connection: no place in Ray Serve's queue, no thread,
and at most ``UploadLimits.memory`` bytes. Senders that fall silent or trickle are ended.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO

from starlette.types import Message, Receive

from dff.aligner.service.http.limits import UploadLimits
from dff.aligner.service.http.problems import RETRY_AFTER, Problem

PIECE = 1 << 20  # bytes that are handed on at a time
CLOSE = {"Connection": "close"}  # the rest of the body stays unread


class Disconnected(Exception):
    """The client went away before it was answered."""


class Upload:
    """The body of one request: small ones in memory, the rest on disk."""

    def __init__(self, memory: int, now: float) -> None:
        self.size = 0  # bytes that have arrived
        self.heard = now  # when the last of them came, seconds of the loop's clock
        self.timeout: asyncio.Timeout | None = None  # of the wait for the next ones
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=memory)  # noqa: SIM115

    def write(self, data: bytes, now: float) -> None:
        """Append bytes that have just arrived."""
        self._file.write(data)
        self.size += len(data)
        self.heard = now

    def replay(self, receive: Receive) -> Receive:
        """An ASGI ``receive`` that gives the body, and then what ``receive`` gives."""
        self._file.seek(0)
        left, ended = self.size, False

        async def replayed() -> Message:
            nonlocal left, ended
            if ended:
                return await receive()
            data = self._file.read(PIECE)
            left -= len(data)
            ended = left == 0
            return {"type": "http.request", "body": data, "more_body": not ended}

        return replayed

    def close(self) -> None:
        """Let the bytes go."""
        self._file.close()


class Uploads:
    """All uploads that a process receives, within limits."""

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits
        self._open: set[Upload] = set()  # that still arrive
        self._stored = 0  # bytes of those and of the complete ones

    @property
    def arriving(self) -> int:
        """Number of uploads that are not complete."""
        return len(self._open)

    @property
    def stored(self) -> int:
        """Bytes of all uploads whose requests are not answered."""
        return self._stored

    @asynccontextmanager
    async def receive(self, receive: Receive, *, limit: int) -> AsyncIterator[Upload]:
        """A complete body of at most ``limit`` bytes, for the length of a ``with`` block.

        Raises Problem ``too-large``, ``too-slow`` or ``busy``, and Disconnected.
        """
        upload = Upload(self._limits.memory, asyncio.get_running_loop().time())
        try:
            self._make_room()
            self._open.add(upload)
            try:
                await self._fill(upload, receive, limit)
            finally:
                self._open.discard(upload)
            yield upload
        finally:
            self._stored -= upload.size
            upload.close()

    def _make_room(self) -> None:
        """End the upload that has been silent longest where there are too many."""
        if len(self._open) < self._limits.uploads:
            return
        silent = min(self._open, key=lambda upload: upload.heard)
        self._open.discard(silent)
        if silent.timeout is not None:
            silent.timeout.reschedule(asyncio.get_running_loop().time())

    async def _fill(self, upload: Upload, receive: Receive, limit: int) -> None:
        loop = asyncio.get_running_loop()
        patience = self._limits.chunk_seconds
        began = loop.time()
        more = True
        while more:
            latest = began + patience + upload.size / self._limits.rate
            try:
                async with asyncio.timeout_at(min(loop.time() + patience, latest)) as timeout:
                    upload.timeout = timeout
                    message = await receive()
            except TimeoutError:
                raise Problem("too-slow", headers=CLOSE) from None
            if message["type"] != "http.request":
                raise Disconnected
            data = message.get("body", b"")
            if upload.size + len(data) > limit:
                raise refuse_size(limit)
            if self._stored + len(data) > self._limits.stored:
                raise Problem("busy", headers={"Retry-After": str(RETRY_AFTER), **CLOSE})
            self._stored += len(data)
            upload.write(data, loop.time())
            more = message.get("more_body", False)


def refuse_size(limit: int) -> Problem:
    """The answer to a body over the limit, of which the rest is not read."""
    return Problem(
        "too-large",
        f"a request to this path may have at most {limit} bytes: send smaller or fewer files",
        CLOSE,
    )
