"""The aligner over HTTP: an ASGI application that runs under uvicorn as under Ray Serve.

A request carries one image; the answer has every face in it. Images are never fetched from an address, never stored,
and their names and metadata never read.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import anyio
import numpy as np
from fastapi import Depends, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import TypeAdapter, ValidationError
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligner.alignment import Alignment
from aligner.mesh_file import glb
from aligner.problems import Problem, TooLarge, install, problem, responses
from aligner.schema import ALIGN_RESPONSES, GLB_RESPONSES
from face.arrays import Bytes, Ints
from face.camera import Box
from face.morphable import MorphableModel
from infra.images import decode

PAGE = Path(__file__).parent / "page"
INSIDE = ("teeth", "tongue", "mouth")  # regions behind the lips: only clutter in a drawing of the mesh
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Boxes = Sequence[Box] | None
AlignOne = Callable[[Bytes, Boxes], Awaitable[list[Alignment]]]


class FaceAligner(Protocol):
    """What is served: ``aligner.align.Aligner``, or anything that answers like it. Called from threads."""

    @property
    def model(self) -> MorphableModel: ...

    @property
    def card(self) -> Mapping[str, Any]:
        """Where the weights come from and under which terms."""
        ...

    def align(self, image: Bytes, boxes: Boxes = None) -> list[Alignment]: ...


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. Raises ValueError for what would refuse everything."""

    body: int = 16 << 20  # bytes
    pixels: int = 40_000_000  # of the decoded image
    boxes: int = 64
    at_once: int = 1  # alignments that run at the same time; more wait. One already uses every core

    def __post_init__(self) -> None:
        if min(self.body, self.pixels, self.boxes, self.at_once) < 1:
            raise ValueError(f"Limits wants positive numbers: {self}")


@dataclass(frozen=True)
class Aligned:
    """What the image of a request holds."""

    faces: list[Alignment]
    width: int  # pixels
    height: int
    timing: dict[str, float]  # milliseconds


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def warm_up(aligner: FaceAligner) -> None:
    """One alignment of an empty picture, so that what is compiled or loaded at first use is there."""
    aligner.align(np.full((256, 256, 3), 128, np.uint8), [Box(64, 64, 192, 192)])


_BOXES = TypeAdapter(list[tuple[float, float, float, float]])


def create_app(
    aligner: FaceAligner,
    *,
    limits: Limits = Limits(),
    align: AlignOne | None = None,
) -> FastAPI:
    """The application. ``align`` replaces direct calls of ``aligner.align`` in threads: a server that batches requests
    gives its own.

    Run it with ``uvicorn.run(create_app(load_aligner()))``.
    """
    slots = anyio.CapacityLimiter(limits.at_once)

    async def in_thread(image: Bytes, boxes: Boxes) -> list[Alignment]:
        return await anyio.to_thread.run_sync(aligner.align, image, boxes, limiter=slots)

    align_one = align or in_thread
    about = {
        "face_model": aligner.model.name,
        "face_model_licence": aligner.model.licence,
        "weights": dict(aligner.card),
    }
    drawn = drawn_triangles(aligner.model).tolist()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def warm() -> None:
            try:
                await anyio.to_thread.run_sync(warm_up, aligner, limiter=slots)
            except Exception:
                logging.getLogger(__name__).exception("warming up failed: this server never gets ready")
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
    app.add_middleware(RequestRim, body=limits.body)

    async def faces(
        image: Annotated[UploadFile, File(description="a JPEG, PNG or WebP file")],
        boxes: Annotated[
            str | None, Form(description="JSON [[x0, y0, x1, y1], ...] in pixels; else faces are found")
        ] = None,
    ) -> Aligned:
        data = await image.read()
        started = time.perf_counter()
        pixels = await anyio.to_thread.run_sync(lambda: decode(data, max_pixels=limits.pixels))
        places = None if boxes is None else parse_boxes(boxes, pixels.shape[1], pixels.shape[0], limits.boxes)
        decoded = time.perf_counter()
        found = await align_one(pixels, places)
        if not found:
            raise Problem("no-face")
        timing = {"decode_ms": _ms(decoded - started), "align_ms": _ms(time.perf_counter() - decoded)}
        return Aligned(found, pixels.shape[1], pixels.shape[0], timing)

    @app.post("/v1/align", responses=ALIGN_RESPONSES, tags=["align"])
    async def align_image(
        request: Request,
        aligned: Annotated[Aligned, Depends(faces)],
        mesh: Annotated[bool, Query(description="also the mesh in pixels, and its triangles")] = False,
        trace: Annotated[bool, Query(description="also the state after each iteration")] = False,
    ) -> JSONResponse:
        """Every face of a photo: 68 landmarks in 2D and 3D, pose in degrees, visibility, confidence.

        Pixels count from the photo's upper left corner after its EXIF orientation, the first pixel's centre at 0.5.
        A face that was found but does not match has `failed: true` and a `reason`.
        """
        out: dict[str, Any] = {
            "faces": [face.to_json(mesh=mesh, trace=trace) for face in aligned.faces],
            "image": {"width": aligned.width, "height": aligned.height},
            "model": about,
            "timing": aligned.timing,
            "request_id": request.state.request_id,
        }
        if mesh:
            out["triangles"] = drawn
        return JSONResponse(out)

    @app.post("/v1/align.glb", responses=GLB_RESPONSES, response_class=Response, tags=["align"])
    async def align_glb(
        aligned: Annotated[Aligned, Depends(faces)],
        face: Annotated[int, Query(ge=0, description="which face, in the order of /v1/align")] = 0,
    ) -> Response:
        """The fitted mesh of one face as binary glTF: metres, y up, looking along z."""
        if face >= len(aligned.faces):
            raise Problem("no-face", f"the photo has {len(aligned.faces)} faces, so there is no face {face}")
        data = await anyio.to_thread.run_sync(glb, aligned.faces[face], aligner.model)
        return Response(data, media_type="model/gltf-binary")

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


def parse_boxes(text: str, width: int, height: int, most: int) -> list[Box]:
    """Boxes of a form field; raises Problem ``bad-boxes`` for one that is empty, not finite or beside the image."""
    try:
        rows = _BOXES.validate_json(text)
        boxes = [Box(*row) for row in rows]
    except (ValidationError, ValueError) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise Problem("bad-boxes", f"boxes: {detail}") from error
    if not 0 < len(boxes) <= most:
        raise Problem("bad-boxes", f"{len(boxes)} boxes; one to {most} are taken")
    for box in boxes:
        if box.x0 >= width or box.y0 >= height or box.x1 <= 0 or box.y1 <= 0:
            raise Problem("bad-boxes", f"{box} lies beside the image of {width} x {height} pixels")
        if box.size < 1 or max(box.width, box.height) > 8 * max(width, height):
            raise Problem("bad-boxes", f"{box} has no size that a face could have in {width} x {height} pixels")
    return boxes


def drawn_triangles(model: MorphableModel) -> Ints:
    """(F, 3) triangles of the model's outside."""
    inside = [i for i, name in enumerate(model.region_names) if name in INSIDE]
    return np.asarray(model.faces[~np.isin(model.region, inside)])


class RequestRim:
    """ASGI middleware: names each request, counts its bytes, and refuses a body over the limit with 413."""

    def __init__(self, app: ASGIApp, *, body: int) -> None:
        self.app, self.body = app, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        received = 0

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.body:
                # the form parser lets HTTP exceptions through and hides all others
                raise TooLarge(self.body)
            return message

        declared = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if declared.isdigit() and int(declared) > self.body:
                raise TooLarge(self.body)
            await self.app(scope, receive_counted, send_named)
        except TooLarge as error:
            refusal = problem("too-large", str(error.detail), request_id=request_id, headers={"Connection": "close"})
            await refusal(scope, receive, send_named)
