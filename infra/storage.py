"""Objects by key, in a folder or an S3 bucket, under the same laws.

A write is whole or not there: what a reader finds under a key is always the full bytes of one
write. A key is a relative path with forward slashes, the same in a folder and in a bucket.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import html
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import EndpointConnectionError as Unreachable

from dff.face.errors import Conflict, NotFound, StorageError, TransientStorageError

CONNECT_TIMEOUT, READ_TIMEOUT = 5.0, 30.0  # seconds of silence; the client tries five times
BODY_WAITS = (0.2, 1.0)  # seconds; the client itself tries again only until an object's first byte
CONFLICT_WAITS = (
    0.1,
    0.2,
    0.4,
    0.8,
    1.6,
)  # seconds; 409 means that another writer of the key is at work
DELETED_AT_ONCE = 1000  # by S3's own limit
_BROKEN = (ConnectionError, HTTPClientError, IncompleteReadError, FlexibleChecksumError)
_DENIED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "403",
}
_MISSING = {"NoSuchKey", "NotFound", "404"}
_TRANSIENT = {
    "SlowDown",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "InternalError",
    "BadDigest",
}
_ENTRY, _KEY, _SIZE = (
    re.compile(rb"<%s>(.*?)</%s>" % (tag, tag), re.S) for tag in (b"Contents", b"Key", b"Size")
)
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{16}\.tmp")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of an object."""

    key: str
    size: int  # bytes


class Storage(Protocol):
    """Objects by key. Storages can be pickled. Every method raises StorageError, naming the object
    and the trouble, or its TransientStorageError when another try may succeed; never with a secret
    in the message.
    """

    @property
    def uri(self) -> str:
        """Where it is, for people and for ``open_storage``."""
        ...

    def read(self, key: str) -> bytes:
        """All bytes of an object. Raises NotFound."""
        ...

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Store an object, whole or not at all.

        With ``if_absent`` an object that is already there must hold the same bytes; Conflict says
        that it does not.
        """
        ...

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Every object whose key starts with ``prefix``, in the order of the keys' UTF-8 bytes."""
        ...

    def exists(self, key: str) -> bool: ...

    def delete(self, *keys: str) -> None:
        """Remove objects, many in one request; nothing happens for those that are not there."""
        ...


def open_storage(uri: str, *, endpoint_url: str | None = None) -> Storage:
    """The storage of a folder's path or ``s3://bucket/prefix``; nothing is touched yet.

    S3 credentials, region and endpoint come from where AWS clients look for them (environment,
    profile, role), an ``endpoint_url`` goes first. Raises StorageError for a URI of another kind.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise StorageError(f"{uri!r} names no bucket; a bucket is s3://bucket/prefix")
        # urlsplit would take a ? or # in a prefix for a query
        prefix = uri.removeprefix(f"s3://{parts.netloc}").strip("/")
        if prefix:
            _check(prefix)
        return S3Storage(parts.netloc, f"{prefix}/" if prefix else "", endpoint_url)
    if "://" in uri or not uri:
        raise StorageError(f"{uri!r} is neither a folder nor s3://bucket/prefix")
    return LocalStorage(Path(uri).absolute())


def _check(key: str) -> None:
    if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise StorageError(
            f"{key!r} can't be a key: a key is a relative path without '.', '..' or empty parts"
        )


@dataclass(frozen=True)
class LocalStorage:
    """A folder. It comes into being with the first write."""

    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def _path(self, key: str) -> Path:
        _check(key)
        return self.root / key

    def read(self, key: str) -> bytes:
        path = self._path(key)
        with _explained("read", path):
            return path.read_bytes()

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        path = self._path(key)
        with _explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if if_absent and path.exists():
                _same(path.read_bytes(), data, str(path))
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
            found = list(_files(os.fspath(start), f"{folder}/" if folder else "", prefix))
        return sorted(found, key=lambda info: info.key.encode())

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with _explained("look at", path):
            return path.is_file()

    def delete(self, *keys: str) -> None:
        for path in [self._path(key) for key in keys]:
            with _explained("delete", path):
                path.unlink(missing_ok=True)


def _files(folder: str, at: str, prefix: str) -> Iterator[ObjectInfo]:
    """The objects below ``folder``, whose own key is ``at``, that begin with ``prefix``."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            key = at + entry.name
            with suppress(FileNotFoundError):  # another process may delete while we look
                if entry.is_dir(follow_symlinks=False):
                    if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                        yield from _files(entry.path, f"{key}/", prefix)
                    continue
                if not key.startswith(prefix) or _LEFTOVER.fullmatch(entry.name):
                    continue
                info = entry.stat()
                if not stat.S_ISREG(info.st_mode):
                    continue
                if not _is_text(key):
                    raise StorageError(
                        f"the file name {os.fsencode(entry.path)!r} is not UTF-8; rename it"
                    )
                yield ObjectInfo(key, info.st_size)


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
        _same(path.read_bytes(), data, str(path))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        # A file system without hard links: the check before and the rename are two steps, which
        # only matters to two writers of different bytes at the same instant.
        os.replace(temporary, path)


def _same(found: bytes, wanted: bytes, name: str) -> None:
    if found != wanted:
        a, b = (hashlib.sha256(data).hexdigest()[:12] for data in (found, wanted))
        raise Conflict(f"{name} already holds other bytes (sha256 {a}..., to be written {b}...)")


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
        raise StorageError(
            f"can't {verb} {path}: {reasons.get(error.errno or 0, error.strerror)}"
        ) from error


@dataclass(frozen=True)
class S3Storage:
    """A prefix in a bucket of S3 or of a store that speaks its protocol."""

    bucket: str
    prefix: str  # "" or ends in "/"
    endpoint_url: str | None = None
    _clients: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def __getstate__(self) -> dict[str, Any]:
        return {
            "bucket": self.bucket,
            "prefix": self.prefix,
            "endpoint_url": self.endpoint_url,
            "_clients": {},
        }

    @property
    def _client(self) -> Any:
        """One client for each process: a forked child must not share its parent's sockets."""
        client = self._clients.get(os.getpid())
        if client is None:
            custom = (
                self.endpoint_url
                or os.environ.get("AWS_ENDPOINT_URL_S3")
                or os.environ.get("AWS_ENDPOINT_URL")
            )
            config = Config(
                retries={"mode": "standard", "total_max_attempts": 5},
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                max_pool_connections=32,
                # other stores rarely have a DNS name for each bucket
                s3={"addressing_style": "path" if custom else "auto"},
            )
            if custom and urlsplit(custom).scheme not in ("http", "https"):
                raise StorageError(
                    f"can't open {self.uri}: its endpoint is no address http://HOST:PORT or https://HOST"
                )
            # A session of its own, since boto3's default one is not safe among threads.
            session = boto3.session.Session()
            with self._explained("open", ""):
                client = session.client("s3", endpoint_url=self.endpoint_url, config=config)
            client.meta.events.register_first("before-parse.s3.ListObjectsV2", _read_listing)
            self._clients[os.getpid()] = client
        return client

    def _at(self, key: str) -> dict[str, str]:
        _check(key)
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def read(self, key: str) -> bytes:
        waits = iter(BODY_WAITS)
        while True:
            with self._explained("read", key):
                answer = self._client.get_object(**self._at(key))
                try:
                    body: bytes = answer["Body"].read()
                    return body
                except _BROKEN:
                    if (wait := next(waits, None)) is None:
                        raise
            time.sleep(wait)

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        for wait in (*CONFLICT_WAITS, None):
            try:
                with self._explained("write", key):
                    self._client.put_object(
                        **self._at(key), Body=data, ChecksumSHA256=checksum, **condition
                    )
                return
            except _AlreadyThere:
                # Also after a retry whose first try arrived although its answer was lost.
                _same(self.read(key), data, self.uri + key)
                return
            except _OtherWriter:
                if wait is None:
                    raise TransientStorageError(
                        f"can't write {self.uri}{key}: another writer is at work on it"
                    ) from None
                time.sleep(wait)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        if prefix:
            _check(prefix.removesuffix("/"))
        found = []
        with self._explained("list", prefix):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self.prefix)
                    if not key.endswith("/"):  # consoles mark folders by empty objects
                        found.append(ObjectInfo(key, int(entry["Size"])))
        return sorted(found, key=lambda info: info.key.encode())

    def exists(self, key: str) -> bool:
        try:
            with self._explained("look at", key):
                self._client.head_object(**self._at(key))
        except NotFound:
            return False
        return True

    def delete(self, *keys: str) -> None:
        found = [{"Key": self._at(key)["Key"]} for key in keys]
        for start in range(0, len(found), DELETED_AT_ONCE):
            some = {"Objects": found[start : start + DELETED_AT_ONCE], "Quiet": True}
            with self._explained("delete", keys[start]):
                answer = self._client.delete_objects(Bucket=self.bucket, Delete=some)
                for error in answer.get("Errors", []):
                    raise ClientError({"Error": error}, "DeleteObjects")

    @contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        """AWS errors as StorageErrors that name bucket, key and code; messages of AWS may hold key
        ids, so not them.
        """
        what = f"can't {verb} {self.uri}{key}"
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code == "NoSuchBucket":
                raise StorageError(
                    f"{what}: there is no bucket {self.bucket!r}{self._where()}"
                ) from error
            if code in _MISSING:
                raise NotFound(f"there is no {self.uri}{key}") from error
            if status == 412:
                raise _AlreadyThere from error
            if status == 409:
                raise _OtherWriter from error
            if code in _DENIED or status in (401, 403):
                raise StorageError(
                    f"{what}: the credentials were refused ({code}){self._where()}"
                ) from error
            if status >= 500 or code in _TRANSIENT:
                raise TransientStorageError(f"{what}: {code or status}{self._where()}") from error
            raise StorageError(f"{what}: {code or status}{self._where()}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StorageError(
                f"{what}: no complete AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            ) from error
        except Unreachable as error:
            raise TransientStorageError(f"{what}: nothing answers{self._where()}") from error
        except _BROKEN as error:
            raise TransientStorageError(f"{what}: {type(error).__name__}{self._where()}") from error
        except (BotoCoreError, ValueError) as error:
            raise StorageError(f"{what}: {type(error).__name__}{self._where()}") from error

    def _where(self) -> str:
        """The endpoint, without what a URL may carry of a user and password."""
        url = (
            self.endpoint_url
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
        )
        if url is None:
            return ""
        parts = urlsplit(url)
        return f" at {parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _read_listing(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object
) -> None:
    """Read the entries of a listing and leave botocore the rest: its own reader takes ten times as
    long.
    """
    found = []

    def take(entry: re.Match[bytes]) -> bytes:
        key, size = _KEY.search(entry[0]), _SIZE.search(entry[0])
        if key is None or size is None:
            return entry[0]
        found.append({"Key": html.unescape(key[1].decode()), "Size": int(size[1])})
        return b""

    response_dict["body"] = _ENTRY.sub(take, response_dict["body"])
    if found:
        customized_response_dict["Contents"] = found


class _AlreadyThere(Exception):
    """412: the key exists."""


class _OtherWriter(Exception):
    """409: another conditional write of the key is under way."""
