"""uvicorn servers of an application behind a front."""

from __future__ import annotations

import logging
import resource
import signal
import socket
import threading
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.http_parser import IdleConnections, TimedH11Protocol
from dff.aligner.service.http.slow_readers import SocketProtocol

DRAIN = 60.0  # seconds that requests in flight have to end; as long as Ray Serve gives them


# What uvicorn logs as a fault of the server: of refused web sockets whose answer has a body, and of
# text in a message that is no text.
CLIENTS_FAULTS = (
    "ASGI callable returned without completing handshake.",
    "Invalid UTF-8 sequence received from client.",
)


def _is_own_fault(record: logging.LogRecord) -> bool:
    return record.msg not in CLIENTS_FAULTS


def open_many_files() -> None:
    """Let this process open as many files and connections as it may; by default it is often 1,024.

    The connections that a front accepts, and the uploads that lie on disk, may be more.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Server(uvicorn.Server):
    """Logs no traceback for each request that a second interrupt cuts off."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at once if an interrupt comes while requests in flight are waited for."""
        if self.should_exit and sig == signal.SIGINT:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)


def make_server(
    app: ASGIApp, host: str, port: int, front: FrontConfig, *, drain: float = DRAIN
) -> uvicorn.Server:
    """A uvicorn server of ``app`` that ends slow clients and drains ``drain`` seconds."""
    uploads = front.uploads

    class FrontProtocol(TimedH11Protocol):
        header_seconds = uploads.header_seconds
        prefix = front.root_path
        idle = IdleConnections(uploads.idle)
        read_seconds, read_rate = uploads.chunk_seconds, uploads.rate

    class FrontSocket(SocketProtocol):
        read_seconds, read_rate = uploads.chunk_seconds, uploads.rate

    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_is_own_fault)  # the front logs these, too
    return _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=FrontProtocol,
            ws=FrontSocket,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(drain),
            ws_max_size=front.uploads.body,
            ws_max_queue=4,  # frames that wait; a client that sends more is held back
        )
    )


class ServerThread:
    """A server that runs in a thread and accepts connections of a listening socket.

    Raises RuntimeError when it does not start.
    """

    def __init__(self, server: uvicorn.Server, listening: socket.socket) -> None:
        self._server = server
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="http"
        )
        self._thread.start()
        while not server.started:
            if not self.running:
                raise RuntimeError("uvicorn did not start")
            time.sleep(0.01)

    @property
    def running(self) -> bool:
        """Whether it answers requests."""
        return self._thread.is_alive()

    @property
    def accepting(self) -> bool:
        """Whether it accepts connections."""
        return any(each.is_serving() for each in self._server.servers)

    def begin_stop(self) -> None:
        """Accept no further connection, and end when the requests in flight are answered."""
        self._server.should_exit = True

    def stop(self) -> None:
        """The same, and wait for the end."""
        self.begin_stop()
        self._thread.join()
