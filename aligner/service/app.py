"""The aligner over HTTP: an ASGI application for uvicorn and Ray Serve.

Images are never fetched from an address and never stored; their names and metadata, but for
orientation and focal length in EXIF, are never read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from dff.aligner.service.align_service import AlignService
from dff.aligner.service.allocator import keep_trimming
from dff.aligner.service.face_aligner import FaceAligner
from dff.aligner.service.http.front import DEFAULT_FRONT, Front, FrontConfig
from dff.aligner.service.http.limits import LIMITS, Limits
from dff.aligner.service.http.measures import TellMeasures
from dff.aligner.service.http.middleware import HeadAndOptions
from dff.aligner.service.http.problems import add_problem_handlers
from dff.aligner.service.openapi import describe
from dff.aligner.service.routes import (
    align as align_routes,
    batch,
    health,
    match as match_routes,
    models,
    pages,
    person,
    track as track_routes,
)
from dff.aligner.service.routes.dependencies import DEFAULT
from dff.aligner.service.weights_watch import WeightsWatch
from dff.face.fused_network import drop_spare_memory

ROUTES = (align_routes, batch, person, match_routes, track_routes, models, health, pages)
"""Modules with a ``router``. A new route is a module here and, if its requests are larger than one
photo, a line in ``limits.LARGE_BODIES``."""

COMPRESSED = 8 << 10  # bytes from which on an answer is compressed: those of two faces


class AlignerApp(FastAPI):
    """A FastAPI application behind a ``Front``, or without one if a proxy has it."""

    def __init__(
        self, front: FrontConfig | None, *, keys: bool, root_path: str, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root_path = root_path  # FastAPI deprecates the parameter, not the attribute
        self._front, self._keys = front, keys

    def openapi(self) -> dict[str, Any]:
        """The API's description."""
        return describe(self, keys=self._keys)

    def build_middleware_stack(self) -> ASGIApp:
        """The front lies outside of everything, so that it sees the answers to errors as well."""
        stack = super().build_middleware_stack()
        return _TakeRequestId(stack) if self._front is None else Front(stack, config=self._front)


class _TakeRequestId:
    """Puts the id that a front in a proxy gave a request where the application looks for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            given = dict(scope["headers"]).get(b"x-request-id", b"")
            scope.setdefault("state", {})["request_id"] = given.decode("latin-1")
        await self._app(scope, receive, send)


def create_app(
    aligner: FaceAligner,
    *,
    limits: Limits = LIMITS,
    front: FrontConfig | None = DEFAULT_FRONT,
    root_path: str = "",
    keys: bool = False,
    watch: WeightsWatch | None = None,
    also: Mapping[str, FaceAligner] | None = None,
    on_warm: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application, served by ``uvicorn_server`` or ``ray_serve``.

    ``front``: None when the requests come through a proxy that has it. ``root_path``: prefix under
    which a proxy shows the service, and ``keys``: whether it asks for API keys; by default as
    ``front`` has it. ``watch`` changes the weights while the application runs.
    ``also``: aligners by name that answer requests with ``weights=NAME``. ``on_warm`` is called
    when all aligners have aligned once.
    """
    root_path = root_path or (front.root_path if front else "")
    service = AlignService(aligner, limits=limits, root_path=root_path)
    services = {DEFAULT: service}
    for name, other in (also or {}).items():
        services[name] = AlignService(other, limits=limits, root_path=root_path)

    async def warm_up() -> None:
        await asyncio.gather(*(each.warm_up() for each in services.values()))
        drop_spare_memory()
        on_warm()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        trimming = keep_trimming(drop_unused=partial(drop_spare_memory, if_unused=True))
        tasks = [asyncio.create_task(each) for each in (warm_up(), trimming)]
        if watch is not None:
            tasks.append(asyncio.create_task(watch.run(service)))
        yield
        for task in tasks:
            task.cancel()

    app = AlignerApp(
        front,
        keys=keys or bool(front and front.keys),
        root_path=root_path,
        generate_unique_id_function=lambda route: route.name,
        title="DFF face aligner",
        summary="Landmarks, pose and a 3D mesh of every face in a photo.",
        description=track_routes.DESCRIPTION.strip(),
        version="1",
        docs_url=None,  # FastAPI's own pages load scripts from other hosts
        redoc_url=None,
        # to the address in the header Host, whoever wrote it
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service, app.state.services = service, services
    add_problem_handlers(app)
    app.add_middleware(GZipMiddleware, minimum_size=COMPRESSED, compresslevel=4)
    app.add_middleware(HeadAndOptions)
    app.add_middleware(TellMeasures)
    for routes in ROUTES:
        app.include_router(routes.router)
    return app
