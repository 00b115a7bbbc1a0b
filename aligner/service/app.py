"""The aligner over HTTP: an ASGI application for uvicorn and Ray Serve.

Images are never fetched from an address and never stored; their names and metadata, but for the
EXIF orientation, are never read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from dff.aligner.service.align_service import AlignService
from dff.aligner.service.batching import AlignPhotos, FaceAligner
from dff.aligner.service.limits import LIMITS, Limits
from dff.aligner.service.middleware import HeadAndOptions, RequestGuard, check_origins
from dff.aligner.service.problems import add_problem_handlers
from dff.aligner.service.routes import align as align_routes
from dff.aligner.service.routes import batch, health, pages, person


def create_app(
    aligner: FaceAligner,
    *,
    limits: Limits = LIMITS,
    align: AlignPhotos | None = None,
    origins: Sequence[str] = (),
) -> FastAPI:
    """The application, for example ``uvicorn.run(create_app(load_aligner()), http="h11")``.

    ``align`` replaces direct calls of ``aligner.align_batch`` in threads: a server that batches the
    photos of all requests gives its own. The number of connections is the server's affair.

    ``origins``: web pages of these, as ``https://example.org``, may use the service from a browser;
    ``*`` stands for all. Raises ValueError for other text.
    """
    allowed = check_origins(origins)
    service = AlignService(aligner, limits=limits, align=align)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.warm_up())
        yield
        warming.cancel()

    app = FastAPI(
        title="DFF face aligner",
        summary="Landmarks, pose and a 3D mesh of every face in a photo.",
        version="1",
        docs_url=None,  # FastAPI's own pages load scripts from other hosts
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    add_problem_handlers(app)
    app.add_middleware(GZipMiddleware, minimum_size=2048)
    several = (batch.PATH, person.PATH, person.GLB_PATH)
    app.add_middleware(
        RequestGuard, body=limits.body, bodies=dict.fromkeys(several, limits.batch_body)
    )
    app.add_middleware(HeadAndOptions)
    if allowed:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    for routes in (align_routes, batch, person, health, pages):
        app.include_router(routes.router)
    return app
