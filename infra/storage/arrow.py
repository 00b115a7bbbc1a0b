"""Arrow file systems of storages, for libraries that take no other."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from dff.face.extras import require_extra

with require_extra("train"):
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

ATTEMPTS = 8
"""Tries of a request, with growing waits between them: about half a minute in all."""
CONNECT_TIMEOUT, REQUEST_TIMEOUT = 5.0, 30.0
"""Seconds of silence until a try is given up. Arrow's 3 are too few for a server that is busy."""


def open_filesystem(uri: str, *, endpoint_url: str | None = None) -> tuple[FileSystem | None, str]:
    """(file system, path in it) of a folder's path or of ``s3://bucket/prefix``.

    None stands for the machine's own file system. The file system of a bucket can be pickled and
    holds no credentials: each process looks for its own, where AWS clients do.
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
    filesystem = S3FileSystem(
        endpoint_override=endpoint,
        scheme=urlsplit(endpoint).scheme or "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        allow_bucket_creation=False,
        connect_timeout=CONNECT_TIMEOUT,
        request_timeout=REQUEST_TIMEOUT,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )
    return filesystem, uri.removeprefix("s3://").strip("/")
