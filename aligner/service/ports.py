"""Ports that a server may listen on."""

from __future__ import annotations

import socket

from dff.face.errors import ClusterError

BACKLOG = 2048  # connections that wait to be accepted, as many as uvicorn lets wait


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host:port``. Raises ClusterError where nothing can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ClusterError(f"can't serve on {host}:{port}: {error.strerror}") from error


def check_free(host: str, port: int) -> None:
    """Raises ClusterError where nothing can listen on ``host:port``."""
    listen(host, port).close()
