"""Objects in a bucket of S3, or of a store with its protocol, through boto3."""

from __future__ import annotations

import base64
import builtins
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dff.face.errors import (
    BadPlace,
    Conflict,
    NotFound,
    StorageError,
    TransientStorageError,
    UnreadableObject,
)
from dff.face.extras import require_extra
from dff.infra.storage.protocol import WITH_CREDENTIALS, ObjectInfo, S3Access, check_key, check_same

with require_extra("s3"):
    import boto3
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        EndpointConnectionError as Unreachable,
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
        NoCredentialsError,
        PartialCredentialsError,
    )

T = TypeVar("T")
_log = logging.getLogger(__name__)

CONNECT_TIMEOUT, READ_TIMEOUT = 5.0, 30.0  # seconds of silence; the client tries five times
BODY_WAITS = (0.2, 1.0)  # seconds; the client itself tries again only until an object's first byte
CONFLICT_WAITS = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds; 409: another writer of the key is at work
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


_REFUSED = {
    "NotImplemented",
    "NotSupported",
    "MethodNotAllowed",
    "InvalidArgument",
    "InvalidRequest",
    "InvalidDigest",
    "BadRequest",
    "MissingContentMD5",
    "MissingContentLength",
    "MalformedXML",
    "UnsupportedOperation",
    "XNotImplemented",
}
"""Codes by which stores say that they do not know a header or a request."""

NOTES = {
    "conditions": "has no conditional writes; whether a key is taken is asked before each write, "
    "so let only one job at a time write to a place",
    "checksums": "takes no SHA-256 checksums; writes carry an MD5",
    "multi_delete": "deletes one object at a time",
    "list_v2": "lists by the first version of the protocol",
}
"""Messages for stores that lack a feature of ``S3Dialect``."""


@dataclass(frozen=True)
class S3Dialect:
    """The features of S3 that a store has."""

    conditions: bool = True  # If-None-Match of a write
    checksums: bool = True  # x-amz-checksum headers
    multi_delete: bool = True  # DeleteObjects, with any checksum
    list_v2: bool = True

    def without(self, features: Sequence[str]) -> Iterator[S3Dialect]:
        """This dialect, then with fewer and fewer of ``features``: first each alone, then all."""
        had = [name for name in features if getattr(self, name)]
        for count in range(len(had) + 1):
            for lost in combinations(had, count):
                yield replace(self, **dict.fromkeys(lost, False))


@dataclass(frozen=True)
class S3Storage:
    """A prefix in a bucket of S3 or of a store that speaks its protocol.

    Stores other than AWS's lack some requests. What one refuses is asked in another way, which is
    then kept (``S3Dialect``) and logged in one line.
    """

    bucket: str
    prefix: str  # "" or ends in "/"
    endpoint_url: str | None = None
    access: S3Access = WITH_CREDENTIALS
    _connection: _Connection = field(
        default_factory=lambda: _Connection(), compare=False, repr=False
    )

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def _client(self, dialect: S3Dialect) -> Any:
        """One client for each process: a forked child must not share its parent's sockets."""
        place = (os.getpid(), dialect.checksums)
        client = self._connection.clients.get(place)
        if client is None:
            custom = self._custom_endpoint()
            if custom and urlsplit(custom).scheme not in ("http", "https"):
                raise BadPlace(
                    f"can't open {self.uri}: its endpoint is no address "
                    "http://HOST:PORT or https://HOST"
                )
            checksums = "when_supported" if dialect.checksums else "when_required"
            config = Config(
                retries={"mode": "standard", "total_max_attempts": 5},
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                max_pool_connections=32,
                # other stores rarely have a DNS name for each bucket
                s3={"addressing_style": "path" if custom else "auto"},
                request_checksum_calculation=checksums,
                response_checksum_validation=checksums,
                signature_version=UNSIGNED if self.access.anonymous else None,
            )
            session = _new_session()
            with self._explained("open", ""):
                client = session.client("s3", endpoint_url=self.endpoint_url, config=config)
            self._connection.clients[place] = client
        return client

    def _custom_endpoint(self) -> str | None:
        return (
            self.endpoint_url
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
        )

    def _at(self, key: str) -> dict[str, str]:
        check_key(key)
        return {"Bucket": self.bucket, "Key": self.prefix + key, **self._payer}

    @property
    def _payer(self) -> dict[str, str]:
        return {"RequestPayer": "requester"} if self.access.request_payer else {}

    def _adapt(self, request: Callable[[S3Dialect], T], *features: str) -> T:
        """The answer to a request, asked without some of ``features`` when the server refuses it.

        What it then accepts is the dialect of all later requests. Raises the first refusal when
        it accepts none.
        """
        first: _Refused | None = None
        for dialect in self._connection.dialect.without(features):
            try:
                answer = request(dialect)
            except _Refused as error:
                first = first or error
                continue
            self._learn(dialect)
            return answer
        assert first is not None
        raise _RefusedForObject(str(first)) from first

    def _learn(self, dialect: S3Dialect) -> None:
        known = self._connection.dialect
        lost = [name for name in NOTES if getattr(known, name) > getattr(dialect, name)]
        if not lost:
            return
        self._connection.dialect = replace(known, **dict.fromkeys(lost, False))
        for name in lost:
            _log.warning("%s%s: the server %s", self.uri, self._where(), NOTES[name])

    def check_writable(self) -> None:
        """Write an object, ask for it to be kept, and delete it: does the server do so?

        A server that ignores the condition of a write, instead of refusing it, is seen only here.
        Raises StorageError where nothing can be written.
        """
        key = f".dff-probe-{secrets.token_hex(8)}"
        self.write(key, b"first", if_absent=True)
        try:
            self.write(key, b"second", if_absent=True)
        except Conflict:
            pass
        else:
            self._learn(replace(self._connection.dialect, conditions=False))
        finally:
            self.delete(key)

    def read(self, key: str) -> bytes:
        try:
            return self._adapt(lambda dialect: self._read(key, dialect), "checksums")
        except _RefusedForObject as error:
            # Who may list may be able to read the other objects.
            kind = UnreadableObject if self._may_list() else StorageError
            raise kind(str(error)) from error

    def _may_list(self) -> bool:
        asked = {"Bucket": self.bucket, "Prefix": self.prefix, "MaxKeys": 1, **self._payer}
        dialect = self._connection.dialect
        client = self._client(dialect)
        try:
            with self._explained("list", ""):
                if dialect.list_v2:
                    client.list_objects_v2(**asked)
                else:
                    client.list_objects(**asked)
        except StorageError:
            return False
        return True

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        wanted = {"Range": f"bytes={start}-{stop - 1}"}
        return self._adapt(lambda dialect: self._read(key, dialect, wanted), "checksums")

    def _read(
        self, key: str, dialect: S3Dialect, wanted: Mapping[str, str] = MappingProxyType({})
    ) -> bytes:
        waits = iter(BODY_WAITS)
        while True:
            with self._explained("read", key):
                answer = self._client(dialect).get_object(**self._at(key), **wanted)
                try:
                    body: bytes = answer["Body"].read()
                    return body
                except _BROKEN:
                    if (wait := next(waits, None)) is None:
                        raise
            time.sleep(wait)

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        features = ("conditions", "checksums") if if_absent else ("checksums",)
        self._adapt(lambda dialect: self._write(key, data, if_absent, dialect), *features)

    def _write(self, key: str, data: bytes, if_absent: bool, dialect: S3Dialect) -> None:
        if if_absent and not dialect.conditions and self.exists(key):
            check_same(self.read(key), data, self.uri + key)
            return
        # The server compares: nothing that was damaged on its way is kept.
        if dialect.checksums:
            digest = {"ChecksumSHA256": _base64(hashlib.sha256(data))}
        else:
            digest = {"ContentMD5": _base64(hashlib.md5(data, usedforsecurity=False))}
        condition = {"IfNoneMatch": "*"} if if_absent and dialect.conditions else {}
        for wait in (*CONFLICT_WAITS, None):
            try:
                with self._explained("write", key):
                    self._client(dialect).put_object(
                        **self._at(key), Body=data, **digest, **condition
                    )
                return
            except _AlreadyThere:
                # Also after a retry whose first try arrived although its answer was lost.
                check_same(self.read(key), data, self.uri + key)
                return
            except _OtherWriter:
                if wait is None:
                    raise TransientStorageError(
                        f"can't write {self.uri}{key}: another writer is at work on it"
                    ) from None
                time.sleep(wait)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        if prefix:
            check_key(prefix.removesuffix("/"))
        return self._adapt(lambda dialect: self._list(prefix, dialect), "list_v2", "checksums")

    def _list(self, prefix: str, dialect: S3Dialect) -> builtins.list[ObjectInfo]:
        found = []
        with self._explained("list", prefix):
            pages = self._client(dialect).get_paginator(
                "list_objects_v2" if dialect.list_v2 else "list_objects"
            )
            asked = {"Bucket": self.bucket, "Prefix": self.prefix + prefix, **self._payer}
            for page in pages.paginate(**asked):
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self.prefix)
                    if not key.endswith("/"):  # consoles mark folders by empty objects
                        modified = _parse_time(entry.get("LastModified", ""))
                        found.append(ObjectInfo(key, int(entry["Size"]), modified))
        return sorted(found, key=lambda info: info.key.encode())

    def exists(self, key: str) -> bool:
        def head(dialect: S3Dialect) -> bool:
            try:
                with self._explained("look at", key):
                    self._client(dialect).head_object(**self._at(key))
            except NotFound:
                return False
            return True

        return self._adapt(head, "checksums")

    def delete(self, *keys: str) -> None:
        for key in keys:
            check_key(key)
        for start in range(0, len(keys), DELETED_AT_ONCE):
            some = keys[start : start + DELETED_AT_ONCE]
            self._adapt(partial(self._delete, some), "multi_delete", "checksums")

    def _delete(self, keys: tuple[str, ...], dialect: S3Dialect) -> None:
        client = self._client(dialect)
        if not dialect.multi_delete:
            for key in keys:
                with self._explained("delete", key):
                    client.delete_object(**self._at(key))
            return
        objects = [{"Key": self.prefix + key} for key in keys]
        with self._explained("delete", keys[0]):
            answer = client.delete_objects(
                Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}, **self._payer
            )
            for error in answer.get("Errors", []):
                raise ClientError({"Error": error}, "DeleteObjects")

    @contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        """Raise AWS errors as StorageErrors that name bucket, key and code.

        AWS's own messages are left out, since they may hold key ids.
        """
        what = f"can't {verb} {self.uri}{key}"
        try:
            yield
        except BadPlace:  # which is a ValueError, too
            raise
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
            if status in (400, 405, 411, 501) and (code in _REFUSED or code == str(status)):
                raise _Refused(f"{what}: {code}{self._where()}") from error
            if code == "InvalidObjectState":
                raise UnreadableObject(f"{what}: it is archived; restore it first") from error
            if code == "RequestTimeTooSkewed":
                raise StorageError(
                    f"{what}: the server{self._where()} refuses the time of this machine's clock, "
                    f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: set the clock"
                ) from error
            if code in _DENIED or status in (401, 403):
                if self.access.anonymous:
                    raise _RefusedForObject(
                        f"{what}: it is not public ({code}){self._where()}; leave out --anonymous"
                    ) from error
                kind = _RefusedForObject if code in ("AccessDenied", "403") else StorageError
                raise kind(
                    f"{what}: the credentials were refused ({code}){self._where()}"
                ) from error
            if status >= 500 or code in _TRANSIENT:
                raise TransientStorageError(f"{what}: {code or status}{self._where()}") from error
            # such as an object that was encrypted with a key of its own
            raise _RefusedForObject(f"{what}: {code or status}{self._where()}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StorageError(
                f"{what}: no complete AWS credentials; "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile; a public bucket is "
                "read with --anonymous"
            ) from error
        except Unreachable as error:
            raise TransientStorageError(f"{what}: nothing answers{self._where()}") from error
        except _BROKEN as error:
            raise TransientStorageError(f"{what}: {type(error).__name__}{self._where()}") from error
        except (BotoCoreError, ValueError) as error:
            raise StorageError(f"{what}: {type(error).__name__}{self._where()}") from error

    def _where(self) -> str:
        """The endpoint, without a user and password in its URL."""
        url = self._custom_endpoint()
        if url is None:
            return ""
        parts = urlsplit(url)
        return f" at {parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _new_session() -> Any:
    """A session of its own (boto3's default one is not safe among threads) that leaves timestamps
    as text, like the AWS command line: reading them is three quarters of the time of a listing.
    """
    session = botocore.session.get_session()
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=str)
    return boto3.session.Session(botocore_session=session)


def _parse_time(text: str) -> float:
    """Seconds since 1970 of a listing's ISO 8601 time; 0 for another text, which stops nothing."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def _base64(digest: Any) -> str:
    return base64.b64encode(digest.digest()).decode()


class _Connection:
    """The state of a storage in use: clients, and the dialect learned so far.

    A copy that travels to another process takes the dialect along.
    """

    def __init__(self, dialect: S3Dialect | None = None) -> None:
        self.dialect = dialect or S3Dialect()
        self.clients: dict[tuple[int, bool], Any] = {}  # by process and use of checksums

    def __reduce__(self) -> tuple[type[_Connection], tuple[S3Dialect]]:
        return _Connection, (self.dialect,)


class _Refused(StorageError):
    """The server does not know what was asked: another request may do."""


class _RefusedForObject(StorageError):
    """The server refuses a request for a reason that may be the object's own."""


class _AlreadyThere(Exception):
    """412: the key exists."""


class _OtherWriter(Exception):
    """409: another conditional write of the key is under way."""
