"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path, PurePath

from dff.face.errors import BadPlace, StorageError

_log = logging.getLogger(__name__)


def strip_suffix(path: PurePath | str) -> str:
    """A path or key without its suffix: what a photo and its landmarks have in common.

    Also of ``..jpg``, where pathlib raises ValueError.
    """
    return str(path).removesuffix(PurePath(path).suffix)


def check_output_file(path: Path | str | None, suffixes: Sequence[str] = ()) -> None:
    """Raises StorageError when no file can be written at ``path``: to be asked before long work.

    It is BadPlace for a folder and for an address. None stands for no file. Nothing is made.
    ``suffixes``: of the format that is written; raises ValueError as ``check_format``.
    """
    if path is None:
        return
    path = check_local(path)
    if suffixes:
        check_format(path, suffixes)
    if path.is_dir():
        raise BadPlace(f"{path} is a folder: name a file in it, such as {path / 'NAME'}")
    check_output_folder(path.parent)


def check_format(path: Path | str, suffixes: Sequence[str]) -> None:
    """Raise ValueError for a file whose suffix is not one of ``suffixes``.

    A name without a suffix, as of ``/dev/stdout``, is the user's choice. A suffix without a letter
    is none: ``weights-1.0`` and ``faces.2026``.
    """
    suffix = Path(path).suffix.lower()
    if any(map(str.isalpha, suffix)) and suffix not in suffixes:
        raise ValueError(f"{path} should end in {' or '.join(suffixes)}")


def check_output_folder(path: Path | str | None) -> None:
    """Raises StorageError when no files can be written in the folder ``path``, new or not.

    None stands for no folder. Nothing is made; a folder that will be is named in the log.
    """
    if path is None:
        return
    folder = check_local(path).absolute()
    new = not folder.exists()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise StorageError(f"can't write in {path}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"can't write in {path}: {folder} may not be written to")
    if new:
        _log.info("%s is a new folder", path)


def check_local(path: Path | str) -> Path:
    """Raises BadPlace for an address, such as ``s3://bucket/key``: ``Path`` takes it for a file in
    the folder ``s3:``, without the second slash.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.IGNORECASE):
        address = re.sub(r"^(?!models:)([^:]+:)/(?!/)", r"\1//", str(path))
        raise BadPlace(f"{address} is an address: only a file on this machine can be named here")
    return Path(path)


def write_file(path: Path | str, data: bytes) -> None:
    """Write a whole file, and its folder when it is missing. Raises StorageError with the path."""
    with storage_errors(path), replaced_file(path) as temporary:
        temporary.write_bytes(data)


def append_file(path: Path, data: bytes) -> None:
    """Add to a file, or begin it, all of ``data`` or nothing. Raises StorageError with the path."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            append_whole(file, data)


def append_whole(file: FileIO, data: bytes) -> None:
    """Add all of ``data`` to the end of an unbuffered file, or nothing. Raises OSError."""
    before = os.fstat(file.fileno()).st_size
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        if file.seekable():
            file.truncate(before)
        raise


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Errors of the operating system in writing ``path`` as StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"can't write {path}: {error.strerror or error}") from error


@contextmanager
def replaced_file(path: Path | str) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the name when the block ends, in one step.

    What was at ``path`` stays until then, and for good when the block raises. Makes the folder. A
    link is followed. What is no file, such as ``/dev/stdout``, is written to directly. Raises
    StorageError for an address, and OSError with the path for a full disk.
    """
    path = check_local(path)
    if path.exists() and not path.is_file():
        yield path
        return
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
