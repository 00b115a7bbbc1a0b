"""One listening socket for two processes: ``dff serve`` opens it, a replica answers."""

from __future__ import annotations

import socket
import tempfile
import threading
from contextlib import suppress

from starlette.applications import Starlette
from starlette.types import ASGIApp

from dff.aligner.service.http.front import Front, FrontConfig
from dff.aligner.service.http.server import DRAIN, ServerThread, make_server
from dff.aligner.service.ports import listen
from dff.aligner.service.standby import Standby
from dff.infra.clusters.socket_folder import choose_folder

NAME = "/listener"


class SharedListener:
    """Listens on ``host:port`` for whoever takes the socket at ``path`` (``take_listener``).

    Until the first one has, requests are answered here: status 503, ``not-ready``. When all who
    took it are gone, requests wait here for the next one. Raises ClusterError where nothing can
    listen on ``host:port``.
    """

    def __init__(self, host: str, port: int, front: FrontConfig) -> None:
        self._host, self._port, self._front = host, port, front
        self._listening = listen(host, port)
        folder = choose_folder(len("/dff-abcdefgh" + NAME))
        self._folder = tempfile.TemporaryDirectory(prefix="dff-", dir=folder)  # for this user only
        self.path = self._folder.name + NAME
        self._handing = socket.socket(socket.AF_UNIX)
        self._handing.bind(self.path)
        self._handing.listen()
        self._lock = threading.Lock()  # of the next attributes
        self._closed, self._takers = False, 0
        self._taken = threading.Event()
        self._interim = self._answer_by(Starlette(), drain=1)
        self._thread = threading.Thread(target=self._hand_out, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening in this process, and hand out the socket no more. Can be repeated."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._handing.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._handing.close()
        self._listening.close()
        self._taken.set()  # ends the waiting for a taker
        self._interim.stop()
        self._folder.cleanup()

    def _answer_by(self, app: ASGIApp, *, drain: float) -> ServerThread:
        """Let an application answer here, each connection one request: the next is a replica's."""
        behind_front = Front(app, config=self._front)
        server = make_server(behind_front, self._host, self._port, self._front, drain=drain)
        server.config.headers.append(("connection", "close"))
        return ServerThread(server, self._listening.dup())

    def _hand_out(self) -> None:
        """Give the listening socket to each process that asks."""
        while True:
            try:
                taker, _ = self._handing.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._lend, args=(taker,), daemon=True).start()

    def _lend(self, taker: socket.socket) -> None:
        """Give the listening socket to a process, and let it answer until its end."""
        with taker:
            try:
                socket.send_fds(taker, [b"."], [self._listening.fileno()])
            except OSError:  # it is gone already
                return
            with self._lock:
                self._takers += 1
                self._taken.set()
                self._interim.begin_stop()
            with suppress(OSError):
                taker.recv(1)  # returns when the process has ended
        with self._lock:
            self._takers -= 1
            if not self._takers and not self._closed:
                host, port = self._listening.getsockname()[:2]
                self._taken = taken = threading.Event()

                def replaced() -> bool:
                    return taken.is_set() and not self._interim.accepting

                self._interim = self._answer_by(Standby((host, port), replaced), drain=DRAIN)


class TakenListener:
    """The listening socket of the ``SharedListener`` with that ``path``, taken by this process.

    It counts as taken until it is closed or the process ends. Raises OSError when the
    ``SharedListener`` has been closed.
    """

    def __init__(self, path: str) -> None:
        self._lender = socket.socket(socket.AF_UNIX)
        self._lender.connect(path)
        _, descriptors, _, _ = socket.recv_fds(self._lender, 1, 1)
        if not descriptors:
            raise ConnectionResetError(f"nothing was handed out at {path}")
        self.listening = socket.socket(fileno=descriptors[0])

    def close(self) -> None:
        """Give it back."""
        self.listening.close()
        self._lender.close()
