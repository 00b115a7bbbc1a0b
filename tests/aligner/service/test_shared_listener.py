from __future__ import annotations

import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from dff.aligner.service.http.front import Front, FrontConfig
from dff.aligner.service.http.server import ServerThread, make_server
from dff.aligner.service.shared_listener import SharedListener, TakenListener
from dff.face.errors import ClusterError
from dff.infra.clusters.socket_folder import SOCKET_BYTES


@pytest.fixture
def listener() -> Iterator[SharedListener]:
    with closing(SharedListener("127.0.0.1", 0, FrontConfig())) as listener:
        yield listener


def address(listener: SharedListener) -> tuple[str, int]:
    with closing(TakenListener(listener.path)) as taken:
        host, port = taken.listening.getsockname()
        return host, port


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers what it was sent."""
    request = Request(scope, receive)
    said = [request.method, request.url.path, request.url.query, (await request.body()).decode()]
    answer = JSONResponse(said, 201, {"X-Kept": request.headers.get("x-given", "")})
    await answer(scope, receive, send)


@contextmanager
def replica(listener: SharedListener) -> Iterator[None]:
    """Something that answers the listener's connections by ``echo``."""
    front = FrontConfig()
    taken = TakenListener(listener.path)
    server = ServerThread(make_server(Front(echo, config=front), "", 0, front), taken.listening)
    try:
        yield
    finally:
        server.stop()
        taken.close()


def test_requests_are_answered_before_anybody_has_taken_the_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with closing(SharedListener("127.0.0.1", port, FrontConfig(root_path="/faces"))):
        for path in ("/readyz", "/faces/v1/align"):
            answer = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=20)
            assert answer.status_code == 503
            assert answer.json()["type"] == "/faces/problems/not-ready"
            assert answer.headers["retry-after"]


def wait_for_gap(url: str) -> None:
    """Wait until requests wait."""
    with suppress(httpx.ReadTimeout):
        while True:
            with suppress(httpx.NetworkError):  # of a connection to the server before
                httpx.get(f"{url}/v1/models", timeout=0.5)


def test_requests_wait_for_the_next_one_who_takes_the_socket(listener: SharedListener) -> None:
    host, port = address(listener)  # a process took it, and has ended
    url = f"http://{host}:{port}"
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(2) as threads:
        for _ in range(2):  # the second one replaces the first one
            wait_for_gap(url)
            posted = {"content": b"photo", "headers": {"X-Given": "me", "X-Request-ID": "mine"}}
            waiting = [
                threads.submit(client.post, "/v1/align?mesh=1", **posted),
                threads.submit(client.get, "/v1/models"),
            ]
            health = client.get("/readyz")
            assert (health.status_code, health.json()["type"]) == (503, "/problems/not-ready")
            assert not any(each.done() for each in waiting)
            with replica(listener):
                answers = [each.result(60) for each in waiting]
            assert [each.status_code for each in answers] == [201, 201]
            assert answers[0].json() == ["POST", "/v1/align", "mesh=1", "photo"]
            assert answers[0].headers["x-kept"] == "me"
            assert answers[0].headers.get_list("x-request-id") == ["mine"]
            assert answers[1].json() == ["GET", "/v1/models", "", ""]


def test_waiting_requests_are_answered_when_the_listener_is_closed(
    listener: SharedListener,
) -> None:
    host, port = address(listener)
    url = f"http://{host}:{port}"
    wait_for_gap(url)
    with ThreadPoolExecutor(1) as threads, httpx.Client(base_url=url, timeout=60) as client:
        waiting = threads.submit(client.get, "/v1/models")
        time.sleep(1.0)  # the request has arrived
        listener.close()
        assert waiting.result(60).json()["type"] == "/problems/not-ready"


def test_other_users_may_not_take_the_socket(listener: SharedListener) -> None:
    folder = Path(listener.path).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_socket_is_handed_out_where_the_temporary_folder_has_a_long_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * SOCKET_BYTES)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with closing(SharedListener("127.0.0.1", 0, FrontConfig())) as listener:
        assert address(listener)


def test_a_taker_that_has_ended_stops_no_other(listener: SharedListener) -> None:
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as gone:
            gone.connect(listener.path)
    assert address(listener)


def test_a_closed_listener_refuses_connections_and_hands_out_nothing(
    listener: SharedListener,
) -> None:
    where = address(listener)
    threads = threading.active_count()
    listener.close()
    listener.close()
    assert threading.active_count() < threads
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where, timeout=20)
    with pytest.raises(OSError, match="No such file"):
        TakenListener(listener.path)


def test_a_taken_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"can't serve on 127.0.0.1:{port}: Address"):
            SharedListener("127.0.0.1", port, FrontConfig())
