"""One listening socket for two processes of a machine: ``dff serve`` opens it, a replica answers.

The kernel keeps the connections that arrive while a replica is restarted, until the next one takes
the socket.
"""

from __future__ import annotations

import socket
import tempfile
import threading
from contextlib import suppress

from starlette.applications import Starlette

from dff.aligner.service.http.front import Front, FrontConfig
from dff.aligner.service.http.server import ServerThread, make_server
from dff.aligner.service.ports import listen
from dff.infra.clusters.socket_folder import choose_folder

NAME = "/listener"


class SharedListener:
    """Listens on ``host:port`` for whoever takes the socket at ``path`` (``take_listener``).

    Until the first one has, requests are answered here: status 503, ``not-ready``. Raises
    ClusterError where nothing can listen on ``host:port``.
    """

    def __init__(self, host: str, port: int, front: FrontConfig) -> None:
        self._listening = listen(host, port)
        folder = choose_folder(len("/dff-abcdefgh" + NAME))
        self._folder = tempfile.TemporaryDirectory(prefix="dff-", dir=folder)  # for this user only
        self.path = self._folder.name + NAME
        self._handing = socket.socket(socket.AF_UNIX)
        self._handing.bind(self.path)
        self._handing.listen()
        unready = Front(Starlette(), config=front)  # makes problem details of its status 404
        server = make_server(unready, host, port, front, drain=1)
        self._unready = ServerThread(server, self._listening.dup())
        self._thread = threading.Thread(target=self._hand_out, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening in this process, and hand out the socket no more. Can be repeated."""
        if self._listening.fileno() < 0:
            return
        self._handing.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._handing.close()
        self._listening.close()
        self._unready.stop()
        self._folder.cleanup()

    def _hand_out(self) -> None:
        """Give the listening socket to each process that asks, and let it answer from then on."""
        while True:
            try:
                taker, _ = self._handing.accept()
            except OSError:  # closed
                return
            with taker, suppress(OSError):  # it may be gone
                socket.send_fds(taker, [b"."], [self._listening.fileno()])
                self._unready.begin_stop()


def take_listener(path: str) -> socket.socket:
    """The listening socket of the ``SharedListener`` with that ``path``.

    Raises OSError when that has been closed.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    if not descriptors:
        raise ConnectionResetError(f"nothing was handed out at {path}")
    return socket.socket(fileno=descriptors[0])
