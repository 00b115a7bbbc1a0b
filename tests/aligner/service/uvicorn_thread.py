"""The application under uvicorn in a thread of the test."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.http.server import ServerThread, make_server


@contextmanager
def serving_with_uvicorn(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, front: FrontConfig | None = None
) -> Iterator[str]:
    """Serve ``app`` from a thread for the length of a ``with`` block; yields the URL.

    ``port`` 0 stands for any free one. Raises RuntimeError when the server does not start.
    """
    listening = socket.create_server((host, port))
    server = ServerThread(make_server(app, host, port, front or FrontConfig()), listening)
    try:
        yield f"http://{host}:{listening.getsockname()[1]}"
    finally:
        server.stop()
