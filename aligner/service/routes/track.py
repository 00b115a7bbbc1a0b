"""``WS /v1/track``: frames of a video in, the tracked faces of each out."""

from __future__ import annotations

import asyncio
import io
import time
from contextlib import suppress
from http import HTTPStatus

from fastapi import APIRouter, UploadFile, WebSocket
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocketDisconnect

from dff.aligner.align import Aligner
from dff.aligner.config import SmoothingConfig, TrackingConfig
from dff.aligner.face_description import FaceDescriber, parse_extras
from dff.aligner.intrinsics import Intrinsics
from dff.aligner.service.align_service import AlignService, count_faces, image_size
from dff.aligner.service.http.fields import check_query
from dff.aligner.service.http.json_response import encode_answer
from dff.aligner.service.http.keys import PROTOCOL
from dff.aligner.service.http.measures import MESSAGE_KEY, measuring
from dff.aligner.service.http.problems import (
    RETRY_AFTER,
    PhotoProblem,
    Problem,
    log_defect,
    to_problem,
)
from dff.aligner.service.routes.dependencies import choose_service
from dff.aligner.service.schema import Answer, FaceAnswer, ImageSize
from dff.aligner.tracking.tracker import Tracked, Tracker
from dff.face.errors import BadPhoto

PATH = "/v1/track"
TRY_LATER, UNSUITED, SILENT = 1013, 1011, 1000  # codes of closing (RFC 6455 and its registry)
# OpenAPI has no place for web sockets but text.
DESCRIPTION = """
Frames of a video: a web socket at `/v1/track` takes each frame as a binary message, a JPEG, PNG or
WebP file, and answers it by a text message, JSON as in the schema `FrameAnswer`. A face has the
number of its `track`, which stays the same from frame to frame. The query may have `smooth=0`, and
`landmarks` and `weights` as in `/v1/align`. A request that asks for no web socket gets status 426.
"""
UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade"}  # headers of that answer (RFC 9110)
router = APIRouter()


class TrackedFace(FaceAnswer):
    """A face of a frame."""

    track: int = Field(description="the same number is the same face, from frame to frame")


class FrameAnswer(Answer):
    """The message for each frame: its faces or its problem."""

    frame: int = Field(description="number of the frame, from 0")
    time: float = Field(description="seconds since the first frame, as they arrived")
    faces: list[TrackedFace] | None = Field(default=None, description="its faces, maybe none")
    image: ImageSize | None = Field(default=None, description="its size")
    problem: PhotoProblem | None = Field(default=None, description="why it could not be aligned")


class TrackSession:
    """The faces that one client's frames show.

    Raises Problem ``bad-request`` for an unknown name in ``landmarks``.
    """

    def __init__(self, service: AlignService, *, smooth: bool, landmarks: str | None) -> None:
        assert isinstance(service.aligner, Aligner)
        config = TrackingConfig(smoothing=SmoothingConfig() if smooth else None)
        self._service = service
        self._tracker = Tracker(service.aligner, config=config)
        self._count, self._began = 0, time.monotonic()
        try:
            self._describer = FaceDescriber(service.model, parse_extras(landmarks))
        except ValueError as error:
            raise Problem("bad-request", str(error)) from error

    async def answer(self, data: bytes | None, request_id: str) -> FrameAnswer:
        """The faces of the next frame, or its problem; the session goes on after one."""
        number, at = self._count, time.monotonic()
        self._count += 1
        seconds = round(at - self._began, 3)
        try:
            if data is None:
                raise Problem(
                    "bad-request", "a frame is a binary message: a JPEG, PNG or WebP file"
                )
            return await self._track(data, number, seconds, at)
        except (Problem, BadPhoto) as error:
            problem = to_problem(error)
        except Exception as error:
            log_defect(error, request_id)
            problem = Problem("internal")
        told = problem.describe(self._service.root_path)
        return FrameAnswer(frame=number, time=seconds, problem=told)

    async def _track(self, data: bytes, number: int, seconds: float, at: float) -> FrameAnswer:
        service = self._service
        upload = UploadFile(io.BytesIO(data), size=len(data), filename="frame")
        deadline = at + service.limits.deadline
        async with service.admit(deadline), service.decoded_photos(upload) as (photo,):
            pixels = photo.pixels
            steps = self._tracker.step_in_steps(pixels, at, faces=service.limits.step)
            faces = await service.scheduler.run_steps(
                steps, self._tracker.aligner, like=(pixels, None)
            )
            count_faces([one.face for one in faces])
            size = image_size(pixels)
        camera = Intrinsics.of(size.width, size.height)
        told = await asyncio.to_thread(self._describe, faces, camera)
        return FrameAnswer(frame=number, time=seconds, faces=told, image=size)

    def _describe(self, faces: list[Tracked], camera: Intrinsics) -> list[TrackedFace]:
        return [
            TrackedFace.model_validate(
                {"track": one.track, **self._describer.describe(one.face, camera)}
            )
            for one in faces
        ]


@router.websocket(PATH)
async def track(
    socket: WebSocket,
    smooth: bool = True,
    landmarks: str | None = None,
    weights: str | None = None,
) -> None:
    """Track the faces of the frames that a client sends, until it closes the socket.

    Each binary message is a frame, a JPEG, PNG or WebP file, and is answered by one text message of
    JSON, in order: a client that waits for the answer before it sends another frame has no delay.
    """
    try:
        asked = (name for name, _ in socket.query_params.multi_items())
        check_query(asked, ("smooth", "landmarks", "weights"))
        service = choose_service(socket.app, weights)
        if not isinstance(service.aligner, Aligner):
            raise Problem("bad-request", "the aligner of this service can't track")
        if service.sessions >= service.limits.sessions:
            wait = {"Retry-After": str(RETRY_AFTER)}
            raise Problem("busy", "too many sessions: try again later", wait)
        session = TrackSession(service, smooth=smooth, landmarks=landmarks)
    except Problem as problem:
        await _refuse(socket, problem)
        return
    service.sessions += 1
    try:
        with suppress(WebSocketDisconnect):  # the client went away
            await _accept(socket)
            await _converse(socket, session, service.limits.silence)
    finally:
        service.sessions -= 1


@router.get(PATH, include_in_schema=False)
async def ask_for_upgrade() -> None:
    """The answer to who opens the address of the web socket as that of a page."""
    raise HTTPException(
        HTTPStatus.UPGRADE_REQUIRED,
        "this path takes web sockets: open one at it, and send each frame as a binary message",
        UPGRADE,
    )


async def _accept(socket: WebSocket) -> None:
    known = PROTOCOL in socket.scope.get("subprotocols", ())
    await socket.accept(subprotocol=PROTOCOL if known else None)


async def _refuse(socket: WebSocket, problem: Problem) -> None:
    """Answer the handshake by the problem; a web page gets it as the end of a session.

    Browsers keep the answers to refused handshakes from pages, which they always name.
    """
    if "origin" in socket.headers:
        await _accept(socket)
        code = TRY_LATER if problem.kind == "busy" else UNSUITED
        await socket.close(code, str(problem.detail)[:100])
    else:
        await socket.send_denial_response(
            problem.to_response(str(socket.state.request_id), socket.scope.get("root_path", ""))
        )


async def _converse(socket: WebSocket, session: TrackSession, silence: float) -> None:
    request_id = str(getattr(socket.state, "request_id", ""))
    while True:
        try:
            async with asyncio.timeout(silence):
                message = await socket.receive()
        except TimeoutError:
            await socket.close(SILENT, f"no frame for {silence:.0f} s")
            return
        if message["type"] == "websocket.disconnect":
            return
        with measuring() as measures:
            answer = await session.answer(message.get("bytes"), request_id)
        text = encode_answer(answer).decode()
        # for the front, which keeps them from the client
        await socket.send({"type": "websocket.send", "text": text, MESSAGE_KEY: vars(measures)})
