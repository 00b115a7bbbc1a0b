"""The aligner over HTTP: an ASGI application for uvicorn and Ray Serve.

Images are never fetched from an address and never stored; their names and metadata, but for the
EXIF orientation, are never read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from dff.aligner.service.align_service import AlignService
from dff.aligner.service.batching import AlignPhotos, FaceAligner
from dff.aligner.service.limits import LIMITS, Limits
from dff.aligner.service.middleware import RequestGuard
from dff.aligner.service.problems import add_problem_handlers
from dff.aligner.service.routes import align as align_routes
from dff.aligner.service.routes import batch, health, pages, person


def create_app(
    aligner: FaceAligner, *, limits: Limits = LIMITS, align: AlignPhotos | None = None
) -> FastAPI:
    """The application, for example ``uvicorn.run(create_app(load_aligner()), http="h11")``.

    ``align`` replaces direct calls of ``aligner.align_batch`` in threads: a server that batches the
    photos of all requests gives its own. The number of connections is the server's affair.
    """
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
    for routes in (align_routes, batch, person, health, pages):
        app.include_router(routes.router)
    return app
