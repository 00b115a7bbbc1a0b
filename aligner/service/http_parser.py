"""Which parser uvicorn reads HTTP with."""

from __future__ import annotations

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS


def use_h11() -> list[Middleware]:
    """Make h11 the default parser of uvicorn servers that this process starts from now on.

    httptools, uvicorn's own choice, drops the body of a request that offers ``Upgrade: h2c``, as
    clients in Java and ``curl --http2`` do; h11 leaves the offer unanswered, as HTTP allows. Ray
    Serve calls this in its proxies (``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``) and wants a list
    of middleware, which is empty.
    """
    HTTP_PROTOCOLS["auto"] = HTTP_PROTOCOLS["h11"]
    return []
