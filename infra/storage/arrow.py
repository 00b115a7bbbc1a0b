"""Arrow file systems of storages, for libraries that take no other."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dff.face.extras import require_extra

with require_extra("train"):
    from pyarrow import NativeFile, PythonFile
    from pyarrow.fs import (
        AwsStandardS3RetryStrategy,
        FileInfo,
        FileSelector,
        FileSystem,
        FileSystemHandler,
        PyFileSystem,
        S3FileSystem,
    )

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

ATTEMPTS = 8
"""Tries of a request, with growing waits between them: about half a minute in all."""
CONNECT_TIMEOUT, REQUEST_TIMEOUT = 5.0, 30.0
"""Seconds of silence until a try is given up. Arrow's 3 are too few for a server that is busy."""
WAITS = (1.0, 5.0, 25.0)
"""Seconds before each further request, after Arrow's own tries of one that fails for a while.

Of one that is answered by 409 there is one try: S3 answers so while it changes the same object or
bucket for another request.
"""
_PASSING = re.compile(r"HTTP status (409|5\d\d)|NETWORK_CONNECTION|REQUEST_TIMEOUT")
_MOST_IN_MEMORY = 1 << 24  # bytes of a file that is being written; the rest lies on disk
_CHUNK = 1 << 24  # bytes


def open_filesystem(uri: str, *, endpoint_url: str | None = None) -> tuple[FileSystem | None, str]:
    """(file system, path in it) of a folder's path or of ``s3://bucket/prefix``.

    None stands for the machine's own file system. The file system of a bucket can be pickled and
    holds no credentials: each process looks for its own, where AWS clients do. It repeats what a
    server answers by an error that passes.
    """
    if not uri.startswith("s3://"):
        return None, str(Path(uri).absolute())
    endpoint = (
        endpoint_url
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or ""
    )
    # Arrow's own FileSystem.from_uri asks AWS for the bucket's region, whatever the endpoint.
    inner = S3FileSystem(
        endpoint_override=endpoint,
        scheme=urlsplit(endpoint).scheme or "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        allow_bucket_creation=False,
        connect_timeout=CONNECT_TIMEOUT,
        request_timeout=REQUEST_TIMEOUT,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # Uploads in the background can wait for one another for ever (Arrow's issue 32372).
        background_writes=False,
    )
    return PyFileSystem(PatientHandler(inner, WAITS)), uri.removeprefix("s3://").strip("/")


class PatientHandler(FileSystemHandler):
    """The requests of ``inner``, repeated after each of ``waits`` seconds while S3 is unwell.

    A file is written when it is closed, and as a whole.
    """

    def __init__(self, inner: FileSystem, waits: tuple[float, ...]) -> None:
        self.inner, self.waits = inner, waits

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PatientHandler) and self.inner == other.inner

    def __ne__(self, other: object) -> bool:  # which Arrow's base class wants
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer of a request. Raises OSError."""
        for wait in self.waits:
            try:
                return question()
            except OSError as error:
                if not _PASSING.search(str(error)):
                    raise
                _log.warning("%s; trying again in %.0f s", str(error).partition("\n")[0], wait)
                time.sleep(wait)
        return question()

    def get_type_name(self) -> str:
        return str(self.inner.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.inner.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return self.ask(lambda: self.inner.get_file_info(paths))

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        return self.ask(lambda: self.inner.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self.ask(lambda: self.inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self.ask(lambda: self.inner.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.ask(lambda: self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise OSError("the buckets of a server are not deleted")

    def delete_file(self, path: str) -> None:
        self.ask(lambda: self.inner.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        self.ask(lambda: self.inner.move(src, dest))

    def copy_file(self, src: str, dest: str) -> None:
        self.ask(lambda: self.inner.copy_file(src, dest))

    def open_input_stream(self, path: str) -> NativeFile:
        return self.ask(lambda: self.inner.open_input_stream(path))

    def open_input_file(self, path: str) -> NativeFile:
        return self.ask(lambda: self.inner.open_input_file(path))

    def open_output_stream(self, path: str, metadata: Any) -> NativeFile:
        return PythonFile(_PatientWriter(self, path, metadata), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> NativeFile:
        raise OSError(f"S3 appends to no object: {path}")


class _PatientWriter:
    """A file that is stored when it is closed."""

    def __init__(self, handler: PatientHandler, path: str, metadata: Any) -> None:
        self._handler, self._path, self._metadata = handler, path, metadata
        # Closed by ``close``.
        self._content = tempfile.SpooledTemporaryFile(_MOST_IN_MEMORY)  # noqa: SIM115
        self.closed = False

    def write(self, data: bytes) -> int:
        return self._content.write(data)

    def tell(self) -> int:
        return self._content.tell()

    def flush(self) -> None:
        """Nothing is stored before the file is closed."""

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with self._content:
                self._handler.ask(self._store)

    def _store(self) -> None:
        self._content.seek(0)
        inner = self._handler.inner
        with inner.open_output_stream(self._path, metadata=self._metadata) as stream:
            shutil.copyfileobj(self._content, stream, _CHUNK)
