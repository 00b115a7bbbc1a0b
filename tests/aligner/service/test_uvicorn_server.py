"""The application under uvicorn, over real connections."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import httpx
import pytest

from dff.aligner.service.app import create_app
from dff.aligner.service.server_config import ServerConfig
from dff.aligner.service.uvicorn_server import serve_aligner_with_uvicorn
from dff.face.errors import ClusterError
from dff.face.model.morphable import MorphableModel
from tests.aligner.known_aligner import KnownAligner
from tests.aligner.service.server_checks import CHECKS, FRONT
from tests.aligner.service.uvicorn_thread import serving_with_uvicorn


@pytest.fixture(scope="module")
def url(toy_model: MorphableModel) -> Iterator[str]:
    app = create_app(KnownAligner(toy_model), front=FRONT)
    with serving_with_uvicorn(app, front=FRONT) as url:
        while httpx.get(f"{url}/readyz").status_code == 503:
            pass
        yield url


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_uvicorn(check: Callable[[str], None], url: str) -> None:
    check(url)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_the_end_on_a_signal_is_no_failure(which: signal.Signals) -> None:
    command = [sys.executable, "-m", "dff", "serve", "--no-ray", "--port", str(free_port())]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        assert b"serving at" in server.stdout.readline()
        server.send_signal(which)
        assert server.wait(60) == 0
    finally:
        server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_taken_port_is_reported_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"127.0.0.1:{port}"):
            serve_aligner_with_uvicorn(ServerConfig(port=port))
