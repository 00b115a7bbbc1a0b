"""Objects by key, in a folder or an S3 bucket, under the same laws.

A write is whole or not there: what a reader finds under a key is always the full bytes of one
write. A key is a relative path with forward slashes, the same in a folder and in a bucket.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from dff.face.errors import BadPlace, StorageError
from dff.infra.redaction import hide_secrets
from dff.infra.storage.folder import LocalStorage
from dff.infra.storage.protocol import WITH_CREDENTIALS, ObjectInfo, S3Access, Storage, check_key

__all__ = [
    "WITH_CREDENTIALS",
    "LocalStorage",
    "ObjectInfo",
    "S3Access",
    "Storage",
    "is_missing",
    "open_storage",
]


def open_storage(
    uri: str, *, endpoint_url: str | None = None, access: S3Access = WITH_CREDENTIALS
) -> Storage:
    """The storage of a folder's path or ``s3://bucket/prefix``; nothing is read or written yet.

    S3 credentials, region and endpoint come from where AWS clients look for them (environment,
    profile, role), an ``endpoint_url`` goes first; ``access`` asks without credentials, or pays for
    the transfer. Raises BadPlace for a URI of another kind, StorageError
    for a file, MissingExtra for S3 without boto3.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        if not parts.netloc or not uri.startswith("s3://"):  # S3:// is the same to urlsplit
            raise BadPlace(f"{hide_secrets(uri)!r} names no bucket; a bucket is s3://bucket/prefix")
        if "@" in parts.netloc:
            raise BadPlace(
                f"{hide_secrets(uri)!r} holds credentials: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or a profile"
            )
        # urlsplit would take a ? or # in a prefix for a query
        prefix = uri.removeprefix(f"s3://{parts.netloc}").strip("/")
        if prefix:
            check_key(prefix)
        from dff.infra.storage.s3 import S3Storage

        return S3Storage(parts.netloc, f"{prefix}/" if prefix else "", endpoint_url, access)
    if "://" in uri or not uri:
        raise BadPlace(f"{hide_secrets(uri)!r} is neither a folder nor s3://bucket/prefix")
    place = Path(uri).absolute()
    if place.is_file():
        raise StorageError(f"{uri} is a file, not a folder")
    return LocalStorage(place)


def is_missing(storage: Storage) -> bool:
    """Whether the storage is a folder that does not exist, as a mistyped one."""
    return isinstance(storage, LocalStorage) and not storage.root.exists()
