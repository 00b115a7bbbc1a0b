"""The HTTP application under uvicorn: one process without Ray, with the same front and limits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from dff.aligner.preset import AlignPreset
from dff.aligner.service.app import create_app
from dff.aligner.service.face_aligner import warm_up
from dff.aligner.service.front import FrontConfig, print_access_log
from dff.aligner.service.http_parser import TimedH11Protocol
from dff.aligner.service.ports import check_free
from dff.aligner.service.weights_watch import WeightsWatch, check_poll
from dff.infra.storage import WITH_CREDENTIALS, S3Access

if TYPE_CHECKING:
    from dff.aligner.align import Aligner

DRAIN = 60.0  # seconds that requests in flight have to end; as long as Ray Serve gives them


def serve_aligner_with_uvicorn(
    weights: Path | str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    front: FrontConfig | None = None,
    threads: int = 1,
    preset: AlignPreset = AlignPreset.balanced,
    endpoint_url: str | None = None,
    access: S3Access = WITH_CREDENTIALS,
    poll: float | None = None,
    also: Mapping[str, str] | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve from this process until SIGINT or SIGTERM; ``on_ready`` is called with the URL.

    ``threads``: cores that the aligner uses. ``poll``: seconds between questions which version the
    alias of the ``weights`` names. ``also``: other weights by name, side by side.

    Raises ClusterError when the port is taken, BadWeights or BadModel as
    ``dff.aligner.align.load_aligner``.
    """
    from dff.aligner.align import load_aligner
    from dff.aligner.service.threads import use_threads

    check_free(host, port)
    use_threads(threads)
    print_access_log()
    front = front or FrontConfig()
    check_poll(weights, poll)

    def load(path: Path | str | None = weights) -> Aligner:
        aligner = load_aligner(path, preset=preset, endpoint_url=endpoint_url, access=access)
        return aligner.with_quick_search()

    def load_warm() -> Aligner:
        aligner = load()
        warm_up(aligner)
        return aligner

    watch = None if poll is None else WeightsWatch(str(weights), load_warm, poll)
    others = {name: load(path) for name, path in (also or {}).items()}
    app = create_app(load(), front=front, watch=watch, also=others)
    server = make_server(app, host, port, front)
    threading.Thread(target=_announce, args=(server, host, port, on_ready), daemon=True).start()
    server.run()


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


def make_server(app: FastAPI, host: str, port: int, front: FrontConfig) -> uvicorn.Server:
    """A uvicorn server of ``app`` that ends slow headers and drains on SIGTERM."""

    class Protocol(TimedH11Protocol):
        header_seconds = front.uploads.header_seconds

    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=Protocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(DRAIN),
            ws_max_size=front.uploads.body,
            ws_max_queue=4,  # frames that wait; a client that sends more is held back
        )
    )


def _announce(
    server: uvicorn.Server, host: str, port: int, on_ready: Callable[[str], None]
) -> None:
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.05)
    on_ready(f"http://{host}:{port}")
