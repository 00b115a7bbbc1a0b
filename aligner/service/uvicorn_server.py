"""The HTTP application under uvicorn: one process without Ray, with the same front and limits."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from dff.aligner.service.allocator import return_freed_memory
from dff.aligner.service.app import create_app
from dff.aligner.service.face_aligner import warm_up
from dff.aligner.service.garbage import exempt_objects
from dff.aligner.service.http.access_log import print_access_log
from dff.aligner.service.http.server import make_server, open_many_files
from dff.aligner.service.ports import check_free
from dff.aligner.service.server_config import ServerConfig
from dff.aligner.service.weights_watch import WeightsWatch

if TYPE_CHECKING:
    from dff.aligner.align import Aligner


def serve_aligner_with_uvicorn(
    config: ServerConfig, *, on_ready: Callable[[str], None] = lambda url: None
) -> None:
    """Serve from this process until SIGINT or SIGTERM; ``on_ready`` is called with the URL.

    Raises ClusterError when the port is taken, BadWeights or BadModel as
    ``dff.aligner.load.load_aligner``.
    """
    from dff.aligner.load import load_aligner
    from dff.aligner.threads import share_interpreter, use_threads

    check_free(config.host, config.port)
    return_freed_memory()
    open_many_files()
    use_threads(config.cpus)
    share_interpreter()
    print_access_log()

    def load(path: Path | str | None = config.weights) -> Aligner:
        return load_aligner(
            path, preset=config.preset, endpoint_url=config.endpoint_url, access=config.access
        ).with_quick_search()

    def load_warm() -> Aligner:
        aligner = load()
        warm_up(aligner)
        return aligner

    watch = None
    if config.poll is not None:
        watch = WeightsWatch(str(config.weights), load_warm, config.poll)
    others = {name: load(path) for name, path in config.also.items()}
    app = create_app(load(), front=config.front, watch=watch, also=others, on_warm=exempt_objects)
    server = make_server(app, config.host, config.port, config.front)
    announced = (server, config.host, config.port, on_ready)
    threading.Thread(target=_announce, args=announced, daemon=True).start()
    with _ended_by_signals(server):
        server.run()


@contextmanager
def _ended_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the server and not the process.

    When uvicorn has drained, it raises them again for the handlers before its own; by default they
    would make a failure of an orderly end.
    """

    def end(*_: object) -> None:
        server.should_exit = True

    before = {which: signal.signal(which, end) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _announce(
    server: uvicorn.Server, host: str, port: int, on_ready: Callable[[str], None]
) -> None:
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.05)
    on_ready(f"http://{host}:{port}")
