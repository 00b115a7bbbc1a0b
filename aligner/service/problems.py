"""Errors that a client sees: problem details (RFC 9457), each kind with its status, and how
exceptions become them.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from dff.face.errors import BadPhoto
from dff.infra.images import BadImage

MEDIA_TYPE = "application/problem+json"

KINDS: dict[str, tuple[int, str, str]] = {
    "empty": (422, "The image is empty", "The field `image` of the form holds a file of no bytes."),
    "not-an-image": (
        415,
        "Not an image that is read here",
        "JPEG, PNG and WebP are read, whatever the file's name.",
    ),
    "damaged": (
        422,
        "The image is damaged",
        "The file begins like an image but ends early or can't be decoded.",
    ),
    "animated": (422, "The image is animated", "Send one frame as a still image."),
    "too-many-pixels": (
        413,
        "The image has too many pixels",
        "The size is checked before anything is decoded.",
    ),
    "too-large": (
        413,
        "The request is too large",
        "Bytes are counted as they arrive. Send a smaller file.",
    ),
    "too-many-images": (413, "Too many images in one request", "Send several requests."),
    "unusable-image": (422, "The image can't hold a face", "It is too small."),
    "bad-boxes": (
        422,
        "The boxes make no sense",
        "`boxes` is JSON: a list of [x0, y0, x1, y1] in pixels, x1 > x0 and y1 > y0, each meeting the image. With "
        "several images: a list that has the same for each image, or null where faces shall be found.",
    ),
    "bad-request": (
        422,
        "The request is not as described",
        "See /openapi.json for the fields of the form.",
    ),
    "no-face": (
        422,
        "No face was found",
        "Send a box around the face in `boxes`, or another photo.",
    ),
    "not-ready": (503, "Still warming up", "Try again in a few seconds."),
    "busy": (
        503,
        "Too many requests wait already",
        "Try again after the seconds of the header Retry-After.",
    ),
    "internal": (500, "Something broke here", "The request id helps to find out what."),
}
"""Kind: status, title, and what to do about it."""


class Problem(Exception):
    """A request that is answered with a problem of a known kind."""

    def __init__(self, kind: str, detail: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(detail or KINDS[kind][1])
        self.kind, self.detail, self.headers = kind, detail, headers


class TooLarge(HTTPException):
    """A body over the limit. An HTTPException because form parsers let those through and swallow
    all others.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"at most {limit} bytes are taken")


def described(kind: str, detail: str = "") -> dict[str, Any]:
    """A problem's own members, for one image among several."""
    status, title, help_text = KINDS[kind]
    return {
        "type": f"/problems/{kind}",
        "title": title,
        "status": status,
        "detail": detail or help_text,
    }


def problem(
    kind: str, detail: str = "", *, request_id: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The response for a problem."""
    body = described(kind, detail) | {"request_id": request_id}
    return JSONResponse(body, body["status"], headers, media_type=MEDIA_TYPE)


def problem_of(error: Problem | BadPhoto) -> Problem:
    """What a client is told about a photo."""
    if isinstance(error, Problem):
        return error
    return Problem(error.fault if isinstance(error, BadImage) else "unusable-image", str(error))


def report(error: Exception, request_id: str) -> None:
    """Log a defect under the id that the client is told."""
    logging.getLogger(__name__).error("request %s failed", request_id, exc_info=error)


def responses(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says about these problems."""
    out: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status, title, _ = KINDS[kind]
        entry = out.setdefault(
            status, {"description": "", "content": {MEDIA_TYPE: {"schema": _SCHEMA}}}
        )
        entry["description"] += ("; " if entry["description"] else "") + f"`{kind}`: {title}"
    return out


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem, and let each kind explain itself at its ``type``."""

    @app.exception_handler(Problem)
    async def known(request: Request, error: Problem) -> JSONResponse:
        return problem(
            error.kind, error.detail, request_id=request.state.request_id, headers=error.headers
        )

    @app.exception_handler(TooLarge)
    async def too_large(request: Request, error: TooLarge) -> JSONResponse:
        return problem(
            "too-large",
            error.detail,
            request_id=request.state.request_id,
            headers={"Connection": "close"},
        )

    @app.exception_handler(BadPhoto)
    async def bad_photo(request: Request, error: BadPhoto) -> JSONResponse:
        return await known(request, problem_of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # only places and messages: echoing the input would send a stranger's bytes back
        detail = "; ".join(
            f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()
        )
        return problem("bad-request", detail, request_id=request.state.request_id)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        title = HTTPStatus(error.status_code).phrase
        body = {
            "type": "about:blank",
            "title": title,
            "status": error.status_code,
            "detail": str(error.detail),
            "request_id": request.state.request_id,
        }
        return JSONResponse(body, error.status_code, error.headers, media_type=MEDIA_TYPE)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        report(error, request.state.request_id)
        return problem("internal", request_id=request.state.request_id)

    @app.get("/problems/{kind}", include_in_schema=False)
    def explain(kind: str) -> PlainTextResponse:
        if kind not in KINDS:
            raise HTTPException(404, "no problem of this kind")
        status, title, help_text = KINDS[kind]
        return PlainTextResponse(f"{title} ({status})\n\n{help_text}\n")


_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string", "examples": ["/problems/no-face"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
    },
}
