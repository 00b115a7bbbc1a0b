"""Clients of the aligner over HTTP: a ``dff serve`` on another machine, used like an ``Aligner``.

A client keeps its connections until the end of a ``with`` block:

    with dff.Client("http://faces.example.org") as client:
        faces = client.align("photo.jpg")  # list[dff.Alignment]
        points = client.match("a.jpg", [(120, 80)], "b.jpg")  # FoundPoints: px, probability, ...
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from dff.aligner.alignment import Alignment
from dff.aligner.matching.found_points import NO_POINTS, FoundPoints
from dff.face.arrays import Bytes, Floats
from dff.face.errors import BadPhoto, NoFace, ServiceError
from dff.face.extras import require_extra
from dff.face.geometry.camera import Box
from dff.face.io.assets import load_model
from dff.face.model.morphable import MorphableModel

with require_extra("client"):
    import httpx

Photo = Path | str | bytes | Bytes  # a file, its bytes, or (H, W, 3) uint8 RGB

_RETRIED = (429, 503)
_BAD_PHOTO = ("empty", "not-an-image", "damaged", "animated", "too-many-pixels", "unusable-image")
_load_model = cache(load_model)


class _Settings:
    """The common part of both clients: requests, responses, and retries."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        deadline: float,
        patience: float,
        model: MorphableModel | None,
    ) -> None:
        self.url = url.rstrip("/")
        self.deadline, self.patience = deadline, patience
        self._model = model
        self.options: dict[str, Any] = {
            "timeout": httpx.Timeout(deadline + 10.0),
            "headers": {"Deadline": str(deadline)} | ({"X-API-Key": key} if key else {}),
        }

    def align_form(self, photo: Photo, boxes: Sequence[Box] | None) -> dict[str, Any]:
        """The form of ``/v1/align``. Raises BadPhoto for a file that can't be read."""
        form: dict[str, Any] = {"files": {"image": _encode(photo)}}
        if boxes is not None:
            form["data"] = {"boxes": json.dumps([_corners(box) for box in boxes])}
        return form

    def match_form(
        self,
        photo_a: Photo,
        points: Floats | Sequence[Sequence[float]],
        photo_b: Photo,
        landmarks: Sequence[str],
        vertices: Sequence[int],
        boxes: tuple[Box | None, Box | None],
    ) -> dict[str, Any]:
        """The form of ``/v1/match``.

        Raises BadPhoto for a file that can't be read, ValueError where nothing is to be matched.
        """
        fields: dict[str, Any] = {
            "points": np.asarray(points, dtype=np.float64).tolist(),
            "landmarks": [*landmarks],
            "vertices": [int(number) for number in vertices],
        }
        if not any(fields.values()):
            raise ValueError(NO_POINTS)
        for name, box in zip(("box_a", "box_b"), boxes, strict=True):
            if box is not None:
                fields[name] = _corners(box)
        return {
            "files": {"image_a": _encode(photo_a), "image_b": _encode(photo_b)},
            "data": {name: json.dumps(value) for name, value in fields.items()},
        }

    def wait(self, response: httpx.Response | None, attempt: int, spent: float) -> float | None:
        """Seconds until the next attempt; None where there is none.

        ``response``: None for a connection that failed. ``spent``: seconds since the first attempt.
        """
        if response is not None and response.status_code not in _RETRIED:
            return None
        told = "" if response is None else response.headers.get("Retry-After", "")
        seconds = float(told) if told.isdecimal() else min(0.5 * 2**attempt, 10.0)
        return seconds if spent + seconds <= self.patience else None

    def parse_faces(self, response: httpx.Response) -> list[Alignment]:
        """The faces of an answer, none for the problem ``no-face``; logs the server's warnings.

        Raises BadPhoto, ValueError for boxes, and ServiceError.
        """
        try:
            answer = self._parse(response)
        except NoFace:
            return []
        for warning in answer.get("warnings", ()):
            logging.getLogger(__name__).warning("%s", warning)
        model = self._model or _load_model(answer["model"]["face_model"])
        return [Alignment.from_json(face, model) for face in answer["faces"]]

    def parse_points(self, response: httpx.Response) -> FoundPoints:
        """The points of an answer. Raises NoFace, BadPhoto, ValueError for boxes, ServiceError."""
        return FoundPoints.from_json(self._parse(response))

    def parse_model(self, response: httpx.Response) -> MorphableModel:
        """The face model of the weights that answer by default. Raises ServiceError, BadModel."""
        answer = self._parse(response)
        default = answer["names"].index("default")
        return _load_model(answer["models"][default]["face_model"])

    def _parse(self, response: httpx.Response) -> Any:
        """The answer of a success. Raises NoFace, BadPhoto, ValueError for boxes, ServiceError."""
        try:
            answer = response.json()
            if response.is_success:
                return answer
            kind, detail = answer["type"].rpartition("/")[2], answer["detail"]
        except (ValueError, KeyError, TypeError, AttributeError):
            kind, detail = "", f"{self.url} is no aligner: {response.text[:200]}"
        if kind == "no-face":
            raise NoFace(detail)
        if kind in _BAD_PHOTO:
            raise BadPhoto(detail)
        if kind == "bad-boxes":
            raise ValueError(detail)
        raise ServiceError(response.status_code, kind, detail)

    def unreachable(self, error: httpx.TransportError) -> ServiceError:
        """The error that is raised when the last attempt got no answer."""
        return ServiceError(0, "unreachable", f"no answer from {self.url}: {error}")


class Client:
    """A blocking client. Threads may share it."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        deadline: float = 10.0,
        patience: float = 60.0,
        model: MorphableModel | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """``key``: API key. ``deadline``: seconds within which the server must answer a request.

        ``patience``: seconds over which a request is repeated if the server cannot be reached or is
        busy (after ``Retry-After``). ``model``: the server's face model, by default the one of that
        name.
        """
        self._settings = _Settings(url, key=key, deadline=deadline, patience=patience, model=model)
        self._http = httpx.Client(transport=transport, **self._settings.options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @cached_property
    def model(self) -> MorphableModel:
        """The server's face model. Raises ServiceError, and BadModel where it is not found here."""
        return self._settings.parse_model(self._send("GET", "/v1/models", {}))

    def align(self, photo: Photo, boxes: Sequence[Box] | None = None) -> list[Alignment]:
        """The faces of a photo, as ``Aligner.align`` returns them; without trace and features.

        Raises BadPhoto, ValueError for boxes that do not meet the photo, and ServiceError when the
        server refuses or does not answer.
        """
        form = self._settings.align_form(photo, boxes)
        return self._settings.parse_faces(self._send("POST", "/v1/align", form))

    def match(
        self,
        photo_a: Photo,
        points: Floats | Sequence[Sequence[float]],
        photo_b: Photo,
        *,
        landmarks: Sequence[str] = (),
        vertices: Sequence[int] = (),
        box_a: Box | None = None,
        box_b: Box | None = None,
    ) -> FoundPoints:
        """Find points of the first photo in the second, as ``dff.match`` does.

        Raises as ``align``, NoFace where a photo shows none, and ValueError without points.
        """
        settings = self._settings
        form = settings.match_form(photo_a, points, photo_b, landmarks, vertices, (box_a, box_b))
        return settings.parse_points(self._send("POST", "/v1/match", form))

    def align_batch(
        self, photos: Sequence[Photo], boxes: Sequence[Sequence[Box] | None] | None = None
    ) -> list[list[Alignment]]:
        """``align`` of several photos, one after the other."""
        asked = [None] * len(photos) if boxes is None else boxes
        return [self.align(photo, some) for photo, some in zip(photos, asked, strict=True)]

    def _send(self, method: str, path: str, form: dict[str, Any]) -> httpx.Response:
        """The response; requests are repeated as the settings say. Raises ServiceError."""
        settings = self._settings
        started, attempt = time.monotonic(), 0
        while True:
            response, failure = None, None
            try:
                response = self._http.request(method, f"{settings.url}{path}", **form)
            except httpx.TransportError as error:
                failure = error
            wait = settings.wait(response, attempt, time.monotonic() - started)
            if wait is None:
                break
            time.sleep(wait)
            attempt += 1
        if response is None:
            raise settings.unreachable(failure or httpx.TransportError(""))
        return response


class AsyncClient:
    """``Client`` for asyncio."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        deadline: float = 10.0,
        patience: float = 60.0,
        model: MorphableModel | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As ``Client``."""
        self._settings = _Settings(url, key=key, deadline=deadline, patience=patience, model=model)
        self._http = httpx.AsyncClient(transport=transport, **self._settings.options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def align(self, photo: Photo, boxes: Sequence[Box] | None = None) -> list[Alignment]:
        """As ``Client.align``."""
        settings = self._settings
        form = await asyncio.to_thread(settings.align_form, photo, boxes)
        response = await self._post("/v1/align", form)
        return await asyncio.to_thread(settings.parse_faces, response)

    async def match(
        self,
        photo_a: Photo,
        points: Floats | Sequence[Sequence[float]],
        photo_b: Photo,
        *,
        landmarks: Sequence[str] = (),
        vertices: Sequence[int] = (),
        box_a: Box | None = None,
        box_b: Box | None = None,
    ) -> FoundPoints:
        """As ``Client.match``."""
        settings = self._settings
        boxes = (box_a, box_b)
        form = await asyncio.to_thread(
            settings.match_form, photo_a, points, photo_b, landmarks, vertices, boxes
        )
        return settings.parse_points(await self._post("/v1/match", form))

    async def align_batch(
        self, photos: Sequence[Photo], boxes: Sequence[Sequence[Box] | None] | None = None
    ) -> list[list[Alignment]]:
        """``align`` of several photos at the same time; the server orders them."""
        asked = [None] * len(photos) if boxes is None else boxes
        calls = (self.align(photo, some) for photo, some in zip(photos, asked, strict=True))
        return [*await asyncio.gather(*calls)]

    async def _post(self, path: str, form: dict[str, Any]) -> httpx.Response:
        """The response; requests are repeated as the settings say. Raises ServiceError."""
        settings = self._settings
        started, attempt = time.monotonic(), 0
        while True:
            response, failure = None, None
            try:
                response = await self._http.post(f"{settings.url}{path}", **form)
            except httpx.TransportError as error:
                failure = error
            wait = settings.wait(response, attempt, time.monotonic() - started)
            if wait is None:
                break
            await asyncio.sleep(wait)
            attempt += 1
        if response is None:
            raise settings.unreachable(failure or httpx.TransportError(""))
        return response


def _corners(box: Box) -> list[float]:
    return [box.x0, box.y0, box.x1, box.y1]


def _encode(photo: Photo) -> bytes:
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    try:
        return Path(photo).read_bytes()
    except OSError as error:
        raise BadPhoto(f"can't read {photo}: {error.strerror}") from error
