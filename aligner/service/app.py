"""The aligner over HTTP: an ASGI application that runs under uvicorn as under Ray Serve.

A request carries one photo, and the answer has every face in it; ``dff.aligner.service.several``
takes more at once. Images are never fetched from an address, never stored, and their names and
metadata never read.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio
import numpy as np
from fastapi import Depends, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import HTMLResponse
from pydantic import TypeAdapter
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dff.aligner.alignment import Alignment
from dff.aligner.mesh_file import glb
from dff.aligner.service import several
from dff.aligner.service.admission import WaitingRoom
from dff.aligner.service.answers import answered
from dff.aligner.service.forms import Row, boxes_of, check_count, milliseconds, parsed, pixels_of
from dff.aligner.service.limits import (
    LIMITS,
    AlignAll,
    Asked,
    FaceAligner,
    Limits,
    Outcome,
    align_each,
    warm_up,
)
from dff.aligner.service.problems import Problem, TooLarge, install, problem, responses
from dff.aligner.service.schema import ALIGN_RESPONSES, GLB_RESPONSES
from dff.face.arrays import Ints
from dff.face.model.morphable import MorphableModel

PAGE = Path(__file__).parent / "page"
INSIDE = (
    "teeth",
    "tongue",
    "mouth",
)  # regions behind the lips: only clutter in a drawing of the mesh
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Aligned:
    """What the image of a request holds."""

    faces: list[Alignment]
    width: int  # pixels
    height: int
    timing: dict[str, float]  # milliseconds


_ROWS = TypeAdapter(list[Row])


def create_app(
    aligner: FaceAligner,
    *,
    limits: Limits = LIMITS,
    align: AlignAll | None = None,
) -> FastAPI:
    """The application. ``align`` replaces direct calls of ``aligner.align_batch`` in threads: a
    server that batches the images of all requests gives its own.

    Run it with ``uvicorn.run(create_app(load_aligner()))``. Requests count when their bytes are
    there, so that slow senders keep nobody out; how many connections there may be is the server's
    affair.
    """
    slots = anyio.CapacityLimiter(limits.at_once)
    waiting = WaitingRoom(limits)

    async def in_thread(asked: Sequence[Asked]) -> list[Outcome]:
        return await anyio.to_thread.run_sync(align_each, aligner, asked, limiter=slots)

    align_all = align or in_thread
    about = {
        "face_model": aligner.model.name,
        "face_model_licence": aligner.model.licence,
        "expression_names": list(aligner.model.expression_names),
        "weights": dict(aligner.card),
    }
    drawn = drawn_triangles(aligner.model).tolist()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def warm() -> None:
            try:
                await anyio.to_thread.run_sync(warm_up, aligner, limiter=slots)
            except Exception:
                logging.getLogger(__name__).exception(
                    "warming up failed: this server never gets ready"
                )
            else:
                app.state.ready = True

        warming = asyncio.create_task(warm())
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
    app.state.ready = False
    install(app)
    app.add_middleware(GZipMiddleware, minimum_size=2048)
    app.add_middleware(
        RequestRim, body=limits.body, bodies=dict.fromkeys(several.PATHS, limits.bodies)
    )

    async def faces(
        request: Request,
        image: Annotated[UploadFile, File(description="a JPEG, PNG or WebP file")],
        boxes: Annotated[
            str | None,
            Form(description="JSON [[x0, y0, x1, y1], ...] in pixels; else faces are found"),
        ] = None,
    ) -> Aligned:
        if len((await request.form()).getlist("image")) > 1:
            raise Problem(
                "too-many-images",
                f"one photo is taken here; send several as `images` to {several.MANY}",
            )
        rows = None if boxes is None else parsed(_ROWS, boxes)
        check_count(len(rows or ()), limits)
        with waiting.place():
            async with waiting.decoding:
                return await faces_of(image, rows)

    async def faces_of(image: UploadFile, rows: Sequence[Row] | None) -> Aligned:
        started = time.perf_counter()
        pixels = await pixels_of(image, limits)
        places = None if rows is None else boxes_of(rows, pixels)
        decoded = time.perf_counter()
        (found,) = await align_all([(pixels, places)])
        if isinstance(found, Exception):
            raise found
        if not found:
            raise Problem("no-face")
        timing = {
            "decode_ms": milliseconds(decoded - started),
            "align_ms": milliseconds(time.perf_counter() - decoded),
        }
        return Aligned(found, pixels.shape[1], pixels.shape[0], timing)

    @app.post("/v1/align", responses=ALIGN_RESPONSES, tags=["align"])
    async def align_image(
        request: Request,
        aligned: Annotated[Aligned, Depends(faces)],
        mesh: Annotated[
            bool, Query(description="also the mesh in pixels, and its triangles")
        ] = False,
        trace: Annotated[bool, Query(description="also the state after each iteration")] = False,
    ) -> Response:
        """Every face of a photo: 68 landmarks in 2D and 3D, pose in degrees, visibility,
        confidence.

        Pixels count from the photo's upper left corner after its EXIF orientation, the first
        pixel's centre at 0.5. A face that was found but does not match has `failed: true` and a
        `reason`.
        """

        def answer() -> dict[str, Any]:
            return {
                "faces": [face.to_json(mesh=mesh, trace=trace) for face in aligned.faces],
                "image": {"width": aligned.width, "height": aligned.height},
                "model": about,
                "timing": aligned.timing,
                "request_id": request.state.request_id,
            } | ({"triangles": drawn} if mesh else {})

        return await answered(answer)

    @app.post("/v1/align.glb", responses=GLB_RESPONSES, response_class=Response, tags=["align"])
    async def align_glb(
        aligned: Annotated[Aligned, Depends(faces)],
        face: Annotated[int, Query(ge=0, description="which face, in the order of /v1/align")] = 0,
    ) -> Response:
        """The fitted mesh of one face as binary glTF: metres, y up, looking along z."""
        if face >= len(aligned.faces):
            raise Problem(
                "no-face", f"the photo has {len(aligned.faces)} faces, so there is no face {face}"
            )
        data = await anyio.to_thread.run_sync(glb, aligned.faces[face], aligner.model)
        return Response(data, media_type="model/gltf-binary")

    several.add_routes(
        app,
        aligner,
        limits=limits,
        align=align_all,
        slots=slots,
        waiting=waiting,
        about=about,
        drawn=drawn,
    )

    @app.get("/healthz", tags=["health"])
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/readyz", responses=responses("not-ready"), tags=["health"])
    async def ready() -> dict[str, str]:
        """The aligner has aligned once, so the next request is fast."""
        if not app.state.ready:
            raise Problem("not-ready", headers={"Retry-After": "5"})
        return {"status": "ready"}

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse((PAGE / "index.html").read_text("utf-8"), headers=SECURITY_HEADERS)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse((PAGE / "docs.html").read_text("utf-8"), headers=SECURITY_HEADERS)

    return app


def drawn_triangles(model: MorphableModel) -> Ints:
    """(F, 3) triangles of the model's outside."""
    inside = [i for i, name in enumerate(model.region_names) if name in INSIDE]
    return np.asarray(model.faces[~np.isin(model.region, inside)])


class RequestRim:
    """ASGI middleware: names each request, counts its bytes, and refuses a body over the limit with
    413.

    ``bodies``: other limits than ``body``, by path.
    """

    def __init__(self, app: ASGIApp, *, body: int, bodies: Mapping[str, int]) -> None:
        self.app, self.body, self.bodies = app, body, bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        received = 0
        most = self.bodies.get(scope["path"].removeprefix(scope.get("root_path", "")), self.body)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                # the form parser lets HTTP exceptions through and hides all others
                raise TooLarge(most)
            return message

        declared = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if declared.isdigit() and int(declared) > most:
                raise TooLarge(most)
            await self.app(scope, receive_counted, send_named)
        except TooLarge as error:
            refusal = problem(
                "too-large",
                str(error.detail),
                request_id=request_id,
                headers={"Connection": "close"},
            )
            await refusal(scope, receive, send_named)
