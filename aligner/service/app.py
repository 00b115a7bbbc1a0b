"""The aligner over HTTP: an ASGI application for uvicorn and Ray Serve.

Images are never fetched from an address and never stored; their names and metadata, but for the
EXIF orientation, are never read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from dff.aligner.service.align_service import AlignService
from dff.aligner.service.batching import AlignPhotos, FaceAligner
from dff.aligner.service.front import DEFAULT_FRONT, Front, FrontConfig
from dff.aligner.service.limits import LIMITS, Limits
from dff.aligner.service.middleware import HeadAndOptions
from dff.aligner.service.problems import add_problem_handlers
from dff.aligner.service.routes import align as align_routes
from dff.aligner.service.routes import batch, health, pages, person

ROUTES = (align_routes, batch, person, health, pages)
"""Modules with a ``router``. A new route is a module here and, if its requests are larger than one
photo, a line in ``limits.LARGE_BODIES``."""


class AlignerApp(FastAPI):
    """A FastAPI application behind a ``Front``, or without one if a proxy has it."""

    def __init__(self, front: FrontConfig | None, **options: Any) -> None:
        super().__init__(**options)
        self._front = front

    def build_middleware_stack(self) -> ASGIApp:
        """The front lies outside of everything, so that it sees the answers to errors as well."""
        stack = super().build_middleware_stack()
        return _TakeRequestId(stack) if self._front is None else Front(stack, config=self._front)


class _TakeRequestId:
    """Puts the id that a front in a proxy gave a request where the application looks for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"x-request-id", b"")
            scope.setdefault("state", {})["request_id"] = given.decode("latin-1")
        await self._app(scope, receive, send)


def create_app(
    aligner: FaceAligner,
    *,
    limits: Limits = LIMITS,
    align: AlignPhotos | None = None,
    front: FrontConfig | None = DEFAULT_FRONT,
    root_path: str = "",
) -> FastAPI:
    """The application, for example ``uvicorn.run(create_app(load_aligner()), http="h11")``.

    ``align`` replaces direct calls of ``aligner.align_batch`` in threads: a server that batches the
    photos of all requests gives its own. The number of connections is the server's affair.

    ``front``: None when the requests come through a proxy that has it. ``root_path``: prefix under
    which a proxy shows the service; by default that of ``front``.
    """
    root_path = root_path or (front.root_path if front else "")
    service = AlignService(aligner, limits=limits, align=align, root_path=root_path)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.warm_up())
        yield
        warming.cancel()

    app = AlignerApp(
        front,
        title="DFF face aligner",
        summary="Landmarks, pose and a 3D mesh of every face in a photo.",
        version="1",
        docs_url=None,  # FastAPI's own pages load scripts from other hosts
        redoc_url=None,
        lifespan=lifespan,
        root_path=root_path,
    )
    app.state.service = service
    add_problem_handlers(app)
    app.add_middleware(GZipMiddleware, minimum_size=2048)
    app.add_middleware(HeadAndOptions)
    for routes in ROUTES:
        app.include_router(routes.router)
    return app
