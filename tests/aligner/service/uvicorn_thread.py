"""The application under uvicorn in a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.uvicorn_server import make_server


@contextmanager
def serving_with_uvicorn(
    app: FastAPI, *, host: str = "127.0.0.1", port: int = 0, front: FrontConfig | None = None
) -> Iterator[str]:
    """Serve ``app`` from a thread for the length of a ``with`` block; yields the URL.

    ``port`` 0 stands for any free one. Raises RuntimeError when the server does not start.
    """
    server = make_server(app, host, port, front or FrontConfig())
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError(f"uvicorn did not start on {host}:{port}")
            time.sleep(0.01)
        yield f"http://{host}:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
