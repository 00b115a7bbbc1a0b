"""Ports that a server may listen on."""

from __future__ import annotations

import socket

from dff.face.errors import ClusterError


def check_free(host: str, port: int) -> None:
    """Raises ClusterError where nothing can listen on ``host:port``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(f"can't serve on {host}:{port}: {error.strerror}") from error
