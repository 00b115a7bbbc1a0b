"""The interface of every storage, and the rules for keys and conditional writes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

from dff.face.errors import Conflict, UnreadableObject


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object in a listing."""

    key: str
    size: int  # bytes
    modified: float = field(default=0.0, compare=False)  # Unix seconds of the last write


@dataclass(frozen=True)
class S3Access:
    """As whom a bucket is asked. A folder takes no notice of it."""

    anonymous: bool = False  # without credentials, as a public bucket may be read
    request_payer: bool = False  # who asks pays for the transfer


WITH_CREDENTIALS = S3Access()


class Storage(Protocol):
    """Objects by key. Storages can be pickled. Every method raises StorageError, naming the object
    and the trouble, or its TransientStorageError when another try may succeed; never with a secret
    in the message.
    """

    def __hash__(self) -> int: ...

    @property
    def uri(self) -> str:
        """Where it is, for people and for ``open_storage``."""
        ...

    def check_writable(self) -> None:
        """Raises StorageError where nothing can be written: to be asked before long work."""
        ...

    def read(self, key: str) -> bytes:
        """All bytes of an object.

        Raises NotFound, and UnreadableObject when this one object can't be read by us.
        """
        ...

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """The bytes ``start`` .. ``stop - 1`` of an object; fewer where it ends before.

        Raises as ``read``.
        """
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


def check_key(key: str) -> None:
    """Raises UnreadableObject for a key that is no relative path."""
    if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise UnreadableObject(
            f"{key!r} can't be a key: a key is a relative path without '.', '..' or empty parts"
        )


def check_same(found: bytes, wanted: bytes, name: str) -> None:
    """Raises Conflict if an object already holds other bytes than those to be written."""
    if found != wanted:
        a, b = (hashlib.sha256(data).hexdigest()[:12] for data in (found, wanted))
        raise Conflict(f"{name} already holds other bytes (sha256 {a}..., to be written {b}...)")
