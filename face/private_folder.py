"""Folders for processes that have no home, for example under a container's foreign user id."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def make_private_folder(purpose: str) -> Path:
    """A folder in the temporary folder that belongs to this user and no other user can write.

    Raises OSError where there is none.
    """
    folder = Path(tempfile.gettempdir()) / f"dff-{purpose}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is open to other users")
    tempfile.TemporaryFile(dir=folder).close()
    return folder


def set_missing_temporary_folder() -> None:
    """Name a temporary folder where Python finds none that can be written.

    Libraries ask for its name when they are imported, and would end the process. Shared memory
    serves where it can be written; elsewhere only what needs the folder fails.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else "/tmp"


def set_missing_home() -> None:
    """Set HOME for this process and its children where the user has none. Raises OSError."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(make_private_folder("home"))
