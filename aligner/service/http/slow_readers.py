"""Connections whose clients do not read what they have asked for, and their end."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from typing import cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from dff.aligner.service.http.limits import UploadLimits


class EndsSlowReaders(asyncio.Protocol):
    """Base of a connection, which ends when its client reads more slowly than it may send.

    Else the connection would hold the rest of an answer, a mesh file of a megabyte for example, for
    as long as the client likes, and that of a web socket one of the few sessions: the server's own
    timeouts close a connection only when the rest is sent.
    """

    read_seconds = UploadLimits.chunk_seconds  # in which the bytes below must be read
    read_rate: float = UploadLimits.rate  # bytes a second

    transport: asyncio.Transport
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be told whenever there are bytes that the kernel does not take yet."""
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """Begin to watch the client."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Stop."""
        super().resume_writing()
        self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop."""
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        before = count_unread(self.transport)

        def check() -> None:
            if before - count_unread(self.transport) < self.read_seconds * self.read_rate:
                self.transport.abort()
            else:
                self._watch()

        self._reading = asyncio.get_running_loop().call_later(self.read_seconds, check)

    def _stop_watching(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None


def count_unread(transport: asyncio.Transport) -> int:
    """Bytes sent to a client that it has not read yet, in this process and in the kernel.

    The latter takes further ones only when a third of its megabytes are free again.
    """
    kernel = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return transport.get_write_buffer_size() + int.from_bytes(kernel, sys.byteorder)


class SocketProtocol(EndsSlowReaders, WebSocketsSansIOProtocol):
    """One web socket."""
