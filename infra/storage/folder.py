"""Objects as files in a folder of this machine."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dff.face.errors import NotFound, StorageError, TransientStorageError, UnreadableObject
from dff.infra.storage.protocol import ObjectInfo, check_key, check_same

_log = logging.getLogger(__name__)

_OWN_FAULTS = (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors in reading a file that say nothing of the other files."""
NAMED = 5  # entries that are passed over and named; the others are counted
_FILE_NAME = re.compile(r".+\.[A-Za-z]{2,5}")  # what a folder is seldom called, such as a.jpg
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{16}\.tmp")


@dataclass(frozen=True)
class LocalStorage:
    """A folder. It comes into being with the first write."""

    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def _path(self, key: str) -> Path:
        check_key(key)
        return self.root / key

    def check_writable(self) -> None:
        with _explained("write", self.root):
            folder = self.root
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a folder")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "permission denied")
            if os.statvfs(folder).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, "read-only")

    def read(self, key: str) -> bytes:
        path = self._path(key)
        with _explained("read", path):
            return path.read_bytes()

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        path = self._path(key)
        with _explained("read", path), open(path, "rb") as file:
            return os.pread(file.fileno(), max(stop - start, 0), start)

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        path = self._path(key)
        with _explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if if_absent and path.exists():
                check_same(path.read_bytes(), data, str(path))
                return
            # One name for all writers of a key, so that each finds what a killed one left behind.
            stem = f".{hashlib.sha256(path.name.encode()).hexdigest()[:16]}"
            for name in os.listdir(path.parent):
                if name.startswith(stem) and _LEFTOVER.fullmatch(name):
                    _remove_if_abandoned(path.parent / name)
            with _temporary(path.parent, stem) as (file, temporary):
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                _publish(temporary, path, data, if_absent=if_absent)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        start = self._path(folder) if folder else self.root
        with _explained("list", start):
            if not start.is_dir():
                return []
            troubles: list[str] = []
            at = f"{folder}/" if folder else ""
            found = list(_files(os.fspath(start), at, prefix, troubles))
        if troubles:
            more = f" and {len(troubles) - NAMED} more" if len(troubles) > NAMED else ""
            entries = "1 entry" if len(troubles) == 1 else f"{len(troubles)} entries"
            _log.warning("%s passed over: %s%s", entries, ", ".join(troubles[:NAMED]), more)
        return sorted(found, key=lambda info: info.key.encode())

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with _explained("look at", path):
            return path.is_file()

    def delete(self, *keys: str) -> None:
        for path in [self._path(key) for key in keys]:
            with _explained("delete", path):
                path.unlink(missing_ok=True)


def _files(
    folder: str,
    at: str,
    prefix: str,
    troubles: list[str],
    above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[ObjectInfo]:
    """The objects below ``folder``, whose own key is ``at``, that begin with ``prefix``.

    Links are followed, but not to one of the folders ``above``, by device and inode. A name that
    can't be a key, a link that leads nowhere, a named pipe and the like are passed over and added
    to ``troubles``.
    """

    def pass_over(entry: os.DirEntry[str], why: str) -> None:
        troubles.append(f"{ascii(entry.path)[1:-1]} ({why})")

    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        own = os.stat(folder)
        above |= {(own.st_dev, own.st_ino)}
        for entry in entries:
            key = at + entry.name
            if _LEFTOVER.fullmatch(entry.name):
                continue
            try:
                info = entry.stat()
            except OSError as error:
                # A file that is no longer there was deleted by another process while we look.
                if entry.is_symlink():
                    pass_over(entry, f"a link that can't be followed: {error.strerror}")
                elif not isinstance(error, FileNotFoundError):
                    raise
                continue
            if not _is_text(key):
                pass_over(entry, "its name is not UTF-8; rename it")
            elif stat.S_ISDIR(info.st_mode):
                if not (f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/")):
                    continue
                if (info.st_dev, info.st_ino) in above:
                    pass_over(entry, "a link to a folder that it lies in")
                    continue
                if _FILE_NAME.fullmatch(entry.name) and not os.listdir(entry.path):
                    pass_over(entry, "an empty folder")
                yield from _files(entry.path, f"{key}/", prefix, troubles, above)
            elif not key.startswith(prefix):
                continue
            elif stat.S_ISREG(info.st_mode):
                yield ObjectInfo(key, info.st_size, info.st_mtime)
            else:
                pass_over(entry, "not a file")


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _temporary(folder: Path, stem: str) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file, locked while its writer lives, and gone afterwards."""
    while True:
        path = folder / f"{stem}.{secrets.token_hex(8)}.tmp"
        with open(path, "xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 0:
                continue  # another writer of the key took it for abandoned, before it was locked
            try:
                yield file, path
                return
            finally:
                path.unlink(missing_ok=True)


def _remove_if_abandoned(temporary: Path) -> None:
    """Remove a temporary file whose writer is dead: a live writer holds its lock."""
    with suppress(FileNotFoundError, BlockingIOError), open(temporary, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()


def _publish(temporary: Path, path: Path, data: bytes, *, if_absent: bool) -> None:
    """Give a finished temporary file its name, atomically."""
    if not if_absent:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        check_same(path.read_bytes(), data, str(path))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        # A file system without hard links: the check before and the rename are two steps, which
        # only matters to two writers of different bytes at the same instant.
        os.replace(temporary, path)


@contextmanager
def _explained(verb: str, path: Path) -> Iterator[None]:
    """Operating system errors as StorageErrors that name the path and what to do."""
    try:
        yield
    except FileNotFoundError as error:
        if verb == "write":
            raise TransientStorageError(
                f"can't write {path}: its folder vanished meanwhile"
            ) from error
        raise NotFound(f"there is no {path}") from error
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "permission denied",
            errno.EPERM: "permission denied",
            errno.EROFS: "the file system is read-only",
            errno.ENAMETOOLONG: "the name is too long for this file system",
            errno.ENOTDIR: "a part of the path is a file, not a folder",
            errno.EEXIST: "a part of the path is a file, not a folder",
            errno.EISDIR: "it is a folder",
        }
        # A file may be shut, or its whole folder.
        shut = error.errno in (errno.EACCES, errno.EPERM) and os.access(path.parent, os.X_OK)
        own = verb == "read" and (error.errno in _OWN_FAULTS or shut)
        kind = UnreadableObject if own else StorageError
        raise kind(
            f"can't {verb} {path}: {reasons.get(error.errno or 0, error.strerror)}"
        ) from error
