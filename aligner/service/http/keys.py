"""API keys: kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from starlette.datastructures import Headers

VARIABLE = "DFF_API_KEYS"  # keys, separated by commas
GUARDED = ("/v1/", "/v2/models", "/metrics")  # beginnings of the paths that need a key
PROTOCOL, KEY_PROTOCOL = "dff", "dff-key."  # of web sockets
SHORTEST = 16  # characters of a key


def hash_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Hashes of keys for ``FrontConfig.keys``. Raises ValueError for a key that is too short."""
    found = [key.strip() for key in keys if key.strip()]
    if any(len(key) < SHORTEST for key in found):
        raise ValueError(f"an API key has at least {SHORTEST} characters")
    return tuple(hashlib.sha256(key.encode()).hexdigest() for key in found)


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Hashes of the keys in a file, one a line, and in the environment variable ``DFF_API_KEYS``.

    Raises ValueError when a named file holds none, and OSError when it can't be read.
    """
    lines = file.read_text().splitlines() if file else []
    keys = hash_keys(line for line in lines if not line.startswith("#"))
    if file and not keys:
        raise ValueError(f"{file} holds no API keys")
    return keys + hash_keys(os.environ.get(VARIABLE, "").split(","))


def is_allowed(headers: Headers, keys: Sequence[str]) -> bool:
    """Whether a request has one of the keys, as ``Authorization: Bearer`` or ``X-API-Key``.

    Pages can't set headers of web sockets: these may offer the protocol ``dff-key.KEY`` instead.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(KEY_PROTOCOL):
            given = protocol.strip().removeprefix(KEY_PROTOCOL)
    digest = hashlib.sha256(given.strip().encode()).hexdigest()
    found = False
    for key in keys:  # all of them, so that the time tells nothing
        found |= hmac.compare_digest(digest, key)
    return found
