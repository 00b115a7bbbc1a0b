"""The program that pytest-xdist starts for a worker, in the place of Python.

It hands its open files to the server (``server.py``), whose fork is the worker, and ends with it.
Without a server it becomes Python itself.
"""

import os
import socket
import sys
from contextlib import suppress


def main(path: str, *arguments: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.connect(path)
        socket.send_fds(connection, [b"+"], [0, 1, 2])
        if connection.recv(1):
            connection.recv(1)
            return
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
