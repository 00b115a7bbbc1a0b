"""A folder for sockets whose path is short enough for one."""

from __future__ import annotations

import os
import tempfile
from multiprocessing import util

SOCKET_BYTES = 107
"""Longest path of a socket under Linux."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
"""Where sockets may lie when the folder for temporary files has too long a path."""
_OWN_BYTES = len("/pymp-abcdefgh/listener-abcdefgh")


def fits(folder: str, below: int) -> bool:
    """Whether sockets may lie in ``folder``, with ``below`` bytes of path below it."""
    return len(os.fsencode(folder)) + below <= SOCKET_BYTES


def find_short_folder() -> str | None:
    """A folder for temporary files with a short path; None where none can be written to."""
    writable = (folder for folder in SHORT_FOLDERS if os.access(folder, os.W_OK | os.X_OK))
    return next(writable, None)


def choose_folder(below: int) -> str:
    """The folder for temporary files, or a shorter one where sockets with ``below`` bytes of path
    below it need that.
    """
    usual = tempfile.gettempdir()
    return usual if fits(usual, below) else find_short_folder() or usual


def shorten_socket_paths() -> None:
    """Let the processes that this one starts exchange data over sockets with short paths.

    ``multiprocessing`` puts them into the folder for temporary files, whose path may be too long.
    """
    usual, chosen = tempfile.gettempdir(), choose_folder(_OWN_BYTES)
    if chosen == usual:
        return
    tempfile.tempdir = chosen
    try:
        util.get_temp_dir()  # it is made once for each process, and removed at its end
    finally:
        tempfile.tempdir = usual
