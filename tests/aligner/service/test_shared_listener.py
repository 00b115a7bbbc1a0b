from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from dff.aligner.service.http.front import FrontConfig
from dff.aligner.service.shared_listener import SharedListener, take_listener
from dff.face.errors import ClusterError
from dff.infra.clusters.socket_folder import SOCKET_BYTES

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


@pytest.fixture
def listener() -> Iterator[SharedListener]:
    with closing(SharedListener("127.0.0.1", 0, FrontConfig())) as listener:
        yield listener


def address(listener: SharedListener) -> tuple[str, int]:
    with take_listener(listener.path) as taken:
        host, port = taken.getsockname()
        return host, port


def answer_one(taken: socket.socket) -> None:
    taken.setblocking(True)
    client, _ = taken.accept()
    with client:
        client.recv(1 << 16)
        client.sendall(ANSWER)


def test_requests_are_answered_before_anybody_has_taken_the_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with closing(SharedListener("127.0.0.1", port, FrontConfig(root_path="/faces"))):
        for path in ("/readyz", "/faces/v1/align"):
            answer = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=20)
            assert answer.status_code == 503
            assert answer.json()["type"] == "/faces/problems/not-ready"
            assert answer.headers["retry-after"]


def test_connections_wait_for_the_next_one_who_takes_the_socket(listener: SharedListener) -> None:
    host, port = address(listener)  # somebody took it, and is gone
    listener._unready.stop()
    with socket.create_connection((host, port), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        with take_listener(listener.path) as taken:
            answer_one(taken)
        assert client.recv(1 << 16) == ANSWER


def test_nobody_else_may_take_the_socket(listener: SharedListener) -> None:
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


def test_a_taker_that_is_gone_stops_nobody(listener: SharedListener) -> None:
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
        take_listener(listener.path)


def test_a_taken_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"can't serve on 127.0.0.1:{port}: Address"):
            SharedListener("127.0.0.1", port, FrontConfig())
