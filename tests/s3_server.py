"""moto's S3 server on a loopback port, with a layer before it that answers chosen requests with a
fault.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "faces"

Fault = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def refuse(status: str, code: str) -> Fault:
    """Answer with an S3 error document."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = f"<Error><Code>{code}</Code><Message>an injected fault</Message></Error>".encode()
        start_response(
            status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        )
        return [body]

    return answer


def truncate(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Promise a thousand bytes, send ten, hang up."""
    start_response("200 OK", [("Content-Length", "1000")])
    return [b"0123456789"]


def stall(seconds: float) -> Fault:
    """Take the request and say nothing for so long."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        time.sleep(seconds)
        return refuse("500 Internal Server Error", "InternalError")(environ, start_response)

    return answer


def stall_halfway(seconds: float) -> Fault:
    """Promise a thousand bytes, send ten, say nothing for so long."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "1000")])
        yield b"0123456789"
        time.sleep(seconds)

    return answer


def no_conditions(environ: dict[str, Any]) -> Fault | None:
    """Older Ceph: a conditional write is not implemented."""
    if "HTTP_IF_NONE_MATCH" in environ:
        return refuse("501 Not Implemented", "NotImplemented")
    return None


def ignored_conditions(environ: dict[str, Any]) -> Fault | None:
    """Older MinIO: the condition of a write is not looked at."""
    environ.pop("HTTP_IF_NONE_MATCH", None)
    return None


def no_checksums(environ: dict[str, Any]) -> Fault | None:
    """Gateways that refuse every header of a checksum."""
    if any("CHECKSUM" in name or name == "HTTP_X_AMZ_TRAILER" for name in environ):
        return refuse("400 Bad Request", "InvalidArgument")
    return None


def content_md5(environ: dict[str, Any]) -> Fault | None:
    """Older MinIO: many objects are deleted only with an MD5 of the request."""
    asked = environ["REQUEST_METHOD"] == "POST" and "delete" in environ["QUERY_STRING"]
    if asked and "HTTP_CONTENT_MD5" not in environ:
        return refuse("400 Bad Request", "MissingContentMD5")
    return None


def first_listing_only(environ: dict[str, Any]) -> Fault | None:
    if "list-type=2" in environ["QUERY_STRING"]:
        return refuse("501 Not Implemented", "NotImplemented")
    return None


DIALECTS: dict[str, tuple[Callable[[dict[str, Any]], Fault | None], ...]] = {
    "no conditions": (no_conditions,),
    "ignored conditions": (ignored_conditions,),
    "no checksums": (no_checksums,),
    "content md5": (content_md5,),
    "first listing only": (first_listing_only,),
    "all": (no_conditions, no_checksums, content_md5, first_listing_only),
}


@dataclass
class FaultyS3:
    """A running server; each of ``faults`` is used up by the next request with its method.

    "lost" does what the request asks, and loses the answer. ``dialect``, a name of ``DIALECTS``,
    makes it answer as other servers do.
    """

    url: str
    dialect: str = ""
    faults: list[tuple[str, Fault | Literal["lost"]]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)  # WSGI, that were answered


@contextmanager
def serve_s3() -> Iterator[FaultyS3]:
    """Raises whatever starting moto raises."""
    inner = DomainDispatcherApplication(create_backend_app)
    server = FaultyS3("")

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if server.faults and server.faults[0][0] == environ["REQUEST_METHOD"]:
            fault = server.faults.pop(0)[1]
            if callable(fault):
                return fault(environ, start_response)
            b"".join(inner(environ, lambda status, headers: None))
            return refuse("500 Internal Server Error", "InternalError")(environ, start_response)
        for refusal in DIALECTS.get(server.dialect, ()):
            if (refused := refusal(environ)) is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return refused(environ, start_response)
        server.requests.append(dict(environ))
        answer: Iterable[bytes] = inner(environ, start_response)
        return answer

    running = make_server("127.0.0.1", 0, app, threaded=True)
    server.url = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket=BUCKET)
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()
            running.server_close()
