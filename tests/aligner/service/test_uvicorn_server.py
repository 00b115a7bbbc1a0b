"""The application under uvicorn, over real connections."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial

import httpx
import pytest

from dff.aligner.alignment import Alignment
from dff.aligner.face_request import Steps
from dff.aligner.service.app import create_app
from dff.aligner.service.face_aligner import Boxes
from dff.aligner.service.http.server import ServerThread, make_server
from dff.aligner.service.server_config import ServerConfig
from dff.aligner.service.uvicorn_server import serve_aligner_with_uvicorn
from dff.face.arrays import Bytes
from dff.face.errors import ClusterError
from dff.face.model.morphable import MorphableModel
from tests.aligner.image_files import encoded, pixels
from tests.aligner.known_aligner import KnownAligner
from tests.aligner.service.server_checks import (
    CHECKS,
    FRONT,
    check_refused_sockets,
    connection,
    multipart,
)
from tests.aligner.service.uvicorn_thread import serving_with_uvicorn


@pytest.fixture(scope="module")
def url(toy_model: MorphableModel) -> Iterator[str]:
    app = create_app(KnownAligner(toy_model), front=FRONT)
    with serving_with_uvicorn(app, front=FRONT) as url:
        while httpx.get(f"{url}/readyz").status_code == 503:
            pass
        yield url


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_uvicorn_serves_as_documented(check: Callable[[str], None], url: str) -> None:
    check(url)


def test_a_refused_web_socket_is_no_fault_in_the_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_refused_sockets(url)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Endless(KnownAligner):
    """Never ends with a photo whose faces it has to find."""

    steps = 0

    def align_in_steps(
        self, images: Sequence[Bytes], boxes: Sequence[Boxes] | None = None, *, faces: int
    ) -> Steps[list[list[Alignment]]]:
        while boxes is None or boxes[0] is None:
            time.sleep(0.01)
            self.steps += 1
            yield None
        return self.align_batch(images, boxes)


def test_requests_whose_clients_leave_are_dropped(toy_model: MorphableModel) -> None:
    """While they are aligned and while they wait; they count as 499, and others are answered."""
    aligner = Endless(toy_model)
    app = create_app(aligner)
    body, headers = multipart(encoded(pixels()))
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    head = f"POST /v1/align HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{''.join(lines)}"
    with (
        serving_with_uvicorn(app, front=FRONT) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        while client.get("/readyz").status_code == 503:
            pass
        held, begun = app.state.service, aligner.steps
        with ExitStack() as clients:
            for _ in range(3):
                clients.enter_context(connection(url, f"{head}\r\n".encode() + body))
            while aligner.steps == begun or held.held < 3:
                time.sleep(0.01)
        answer = client.post(
            "/v1/align", files={"image": encoded(pixels())}, data={"boxes": "[[40, 30, 120, 110]]"}
        )
        assert answer.status_code == 200
        ended = time.monotonic() + 5  # well before the requests' deadline
        while held.scheduler.busy and time.monotonic() < ended:
            time.sleep(0.01)
        assert not held.scheduler.busy
        assert not held.held
        assert held.memory.held == 0
        counted = client.get("/metrics").text
    assert 'dff_requests_total{path="/v1/align",status="499"} 3.0' in counted


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_the_end_on_a_signal_is_no_failure(which: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "dff", "serve", "--no-ray", "--port", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        wait_until_ready(port)  # a client may know before the process has said it
        server.send_signal(which)
        assert server.wait(60) == 0
    finally:
        server.kill()


def test_a_second_interrupt_ends_requests_without_a_traceback(
    toy_model: MorphableModel, caplog: pytest.LogCaptureFixture
) -> None:
    aligner, listening = Endless(toy_model), socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    log, level = logging.getLogger("uvicorn.error"), logging.getLogger("uvicorn.error").level
    server = make_server(create_app(aligner), "127.0.0.1", 0, FRONT)
    running = ServerThread(server, listening)
    try:
        while httpx.get(f"{url}/readyz").status_code == 503:
            pass
        begun, body = aligner.steps, multipart(encoded(pixels()))
        ask = partial(httpx.post, f"{url}/v1/align", content=body[0], headers=body[1], timeout=20)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask)
            while aligner.steps == begun:
                time.sleep(0.01)
            for _ in range(2):
                server.handle_exit(signal.SIGINT, None)
            assert isinstance(answer.exception(), httpx.HTTPError) or answer.result().is_error
    finally:
        running.stop()
        log.setLevel(level)
    assert "Traceback" not in caplog.text


def wait_until_ready(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        while True:
            with suppress(httpx.HTTPError):
                if client.get("/readyz").status_code == 200:
                    return
            time.sleep(0.1)  # asking takes time from the process that starts


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
