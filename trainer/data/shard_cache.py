"""A bounded cache of shards on a machine's own disk, shared by all processes of the machine.

A shard is fetched whole, its SHA-256 is compared with the manifest's, and it is kept as a view file
(``dff.infra.datasets.view_file``) named by that hash. When the cache is full, the files that were
asked for longest ago are removed; only files that are being written come on top of its size. A
process whose file was removed fetches it again; one that has the file open reads on undisturbed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import queue
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from dff.face.arrays import Floats
from dff.face.errors import BadDataset, DffError, StorageError, TransientStorageError
from dff.face.model.morphable import MorphableModel
from dff.face.private_folder import make_private_folder
from dff.infra.datasets.dataset import Dataset
from dff.infra.datasets.view_file import (
    FORMAT,
    EncodedView,
    ViewFile,
    open_view_file,
    read_views,
    write_view_file,
)
from dff.infra.files import replaced_file

_log = logging.getLogger(__name__)

CACHE_BYTES = 20 * 10**9  # of a cache, unless told otherwise
RETRY_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)  # seconds; after the storage's own tries
ABANDONED = 3600.0  # seconds after which an unfinished file has no writer any more
FILES = 4096  # of which a process remembers the layout
_LOCKS = 256


@dataclass(frozen=True)
class CacheConfig:
    """Where shards are kept, and how much of them."""

    folder: Path  # on the machine's own disk
    capacity: int = CACHE_BYTES
    fetchers: int = 2  # threads of a process that fetch ahead

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.fetchers < 1:
            raise ValueError(f"a cache needs positive sizes: {self}")


def choose_cache(folder: Path | None, capacity: int | None) -> CacheConfig:
    """The cache in ``folder``, of ``capacity`` bytes, on the machine that asks.

    By default it lies in a folder of this user in the temporary folder, and takes CACHE_BYTES or
    half of what is free there. Raises OSError where there is no such folder.
    """
    if folder is not None:
        return CacheConfig(folder, capacity or CACHE_BYTES)
    folder = make_private_folder("shards")
    used = sum(path.stat().st_size for path in folder.glob("*.views"))
    half = (shutil.disk_usage(folder).free + used) // 2
    return CacheConfig(folder, capacity or min(CACHE_BYTES, half))


class ShardCache:
    """The views of some datasets by shard and row, through a cache on disk.

    Any number of processes may use one folder. A forked process starts its own threads.
    """

    def __init__(
        self, datasets: Sequence[Dataset], model: MorphableModel, config: CacheConfig
    ) -> None:
        """``model``: the face model that all rows must show."""
        self.datasets, self.model, self.config = tuple(datasets), model, config
        self._files: OrderedDict[tuple[int, int], ViewFile] = OrderedDict()
        self._wanted: queue.SimpleQueue[tuple[int, int]] | None = None
        self._process = os.getpid()
        self._version = _digest(model)

    def path(self, source: int, shard: int) -> Path:
        """The view file of a shard of the dataset number ``source``, which need not be there."""
        digest = self.datasets[source].shards.digests[shard].tobytes().hex()
        return self.config.folder / f"{digest}.{self._version}.{FORMAT}.views"

    def views(self, source: int, shard: int, rows: Sequence[int]) -> list[EncodedView]:
        """Some views of a shard, which is fetched if it is not in the cache.

        Raises BadDataset for a shard that is altered, damaged or of another model; StorageError
        when it can't be fetched or the disk is full.
        """
        while True:
            try:
                return read_views(self._open(source, shard), rows)
            except FileNotFoundError:  # removed since it was fetched
                self.fetch(source, shard)

    def fetch(self, source: int, shard: int) -> None:
        """Put a shard into the cache, and mark it as the one asked for last.

        Raises as ``views``.
        """
        path = self.path(source, shard)
        with suppress(FileNotFoundError):
            os.utime(path)
            return
        number = int(path.name[:2], 16) % _LOCKS
        with self._locked(f"shard-{number:02x}"):
            if path.exists():  # fetched by another process meanwhile
                return
            data = self._read(source, shard)
            with (
                self._lock_file("room") as room,
                _full_disk_named(self.config.folder),
                replaced_file(path) as temporary,
            ):
                with self._locked("room"):
                    self._make_room(len(data))
                with temporary.open("wb") as file:
                    self._write(data, file, self.datasets[source].shard_name(shard))
                    file.flush()
                    os.fsync(file.fileno())
                # Locked until the file has its name: two processes must not fill the same room.
                fcntl.flock(room, fcntl.LOCK_EX)
                self._make_room(temporary.stat().st_size)

    def _write(self, data: bytes, file: BinaryIO, name: str) -> None:
        """The view file of a shard's bytes. Raises BadDataset."""
        rest = np.zeros(0)

        def build_shape(stored: Floats) -> Floats:
            try:
                vertices = self.model.vertices(self.model.unpack_identity(stored, rest))
            except ValueError as error:
                raise BadDataset(
                    f"{name} was made with another version of {self.model.name}: {error}"
                ) from error
            return np.asarray(vertices - self.model.template)

        write_view_file(data, file, name, model=self.model.name, build_shape=build_shape)

    def fetch_ahead(self, shards: Sequence[tuple[int, int]]) -> None:
        """Fetch shards (source, shard) in the background, in their order.

        Errors are left to ``views``, which meets them again.
        """
        if self._wanted is None or self._process != os.getpid():
            self._wanted, self._process = queue.SimpleQueue(), os.getpid()
            for _ in range(self.config.fetchers):
                threading.Thread(
                    target=self._fetch_wanted, args=(self._wanted,), daemon=True
                ).start()
        for item in shards:
            self._wanted.put(item)

    def _fetch_wanted(self, wanted: queue.SimpleQueue[tuple[int, int]]) -> None:
        while True:
            source, shard = wanted.get()
            with suppress(DffError, OSError):
                self.fetch(source, shard)

    def _open(self, source: int, shard: int) -> ViewFile:
        key = source, shard
        if key in self._files:
            self._files.move_to_end(key)
            return self._files[key]
        self.fetch(source, shard)
        path, dataset = self.path(source, shard), self.datasets[source]
        try:
            file = open_view_file(path)
        except BadDataset as error:  # by a failing disk
            _log.warning("%s; it is fetched again", error)
            path.unlink(missing_ok=True)
            self.fetch(source, shard)
            file = open_view_file(path)
        if file.rows != dataset.shards[shard].rows:
            raise BadDataset(
                f"{dataset.shard_name(shard)} has {file.rows} rows, "
                f"the manifest says {dataset.shards[shard].rows}"
            )
        self._files[key] = file
        if len(self._files) > FILES:
            self._files.popitem(last=False)
        return file

    def _read(self, source: int, shard: int) -> bytes:
        """A shard's bytes; a storage that fails for a while is asked again."""
        for wait in RETRY_WAITS:
            try:
                return self.datasets[source].shard_bytes(shard)
            except TransientStorageError as error:
                _log.warning("%s; trying again in %.0f s", error, wait)
            time.sleep(wait)
        return self.datasets[source].shard_bytes(shard)

    def _make_room(self, size: int) -> None:
        """Remove the files asked for longest ago until ``size`` more bytes fit.

        The room must be locked.
        """
        folder, capacity = self.config.folder, self.config.capacity
        if size > capacity:
            raise StorageError(
                f"a shard of {size} bytes does not fit into the cache of {capacity} bytes: "
                "give it more (--cache-bytes)"
            )
        files = []
        for path in folder.glob("*.views"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                files.append((stat.st_mtime_ns, stat.st_size, path))
        for path in folder.glob(".*.tmp"):  # of processes that were killed
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
        used = sum(size for _, size, _ in files)
        for _, freed, path in sorted(files):
            if used + size <= capacity:
                break
            path.unlink(missing_ok=True)
            used -= freed

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Let one process or thread of this machine at a time into the block; killed ones leave."""
        with self._lock_file(name) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lock_file(self, name: str) -> IO[str]:
        """An open file to lock, which is free again when it is closed."""
        folder = self.config.folder / "locks"
        with _full_disk_named(self.config.folder):
            folder.mkdir(parents=True, exist_ok=True)
            return open(folder / name, "w")


@cache
def _digest(model: MorphableModel) -> str:
    """A name for the shapes of a model: view files hold some of them."""
    parts = (model.name.encode(), model.template.tobytes(), model.identity.tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()[:8]


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    """A disk that is full or can't be written as a StorageError that names the option."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise StorageError(
            f"can't write to the cache {folder}: {error.strerror} ({free / 1e9:.1f} GB free); "
            "name another place (--cache) or a smaller size (--cache-bytes)"
        ) from error
