"""Objects in a bucket of S3, or of a store with its protocol, through boto3."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from dff.face.errors import NotFound, StorageError, TransientStorageError
from dff.face.extras import require_extra
from dff.infra.storage.protocol import ObjectInfo, check_key, check_same

with require_extra("s3"):
    import boto3
    import botocore.session
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
                    f"can't open {self.uri}: its endpoint is no address "
                    "http://HOST:PORT or https://HOST"
                )
            session = _new_session()
            with self._explained("open", ""):
                client = session.client("s3", endpoint_url=self.endpoint_url, config=config)
            self._clients[os.getpid()] = client
        return client

    def _at(self, key: str) -> dict[str, str]:
        check_key(key)
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
        """Raise AWS errors as StorageErrors that name bucket, key and code.

        AWS's own messages are left out, since they may hold key ids.
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
                f"{what}: no complete AWS credentials; "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            ) from error
        except Unreachable as error:
            raise TransientStorageError(f"{what}: nothing answers{self._where()}") from error
        except _BROKEN as error:
            raise TransientStorageError(f"{what}: {type(error).__name__}{self._where()}") from error
        except (BotoCoreError, ValueError) as error:
            raise StorageError(f"{what}: {type(error).__name__}{self._where()}") from error

    def _where(self) -> str:
        """The endpoint, without a user and password in its URL."""
        url = (
            self.endpoint_url
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
        )
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


class _AlreadyThere(Exception):
    """412: the key exists."""


class _OtherWriter(Exception):
    """409: another conditional write of the key is under way."""
