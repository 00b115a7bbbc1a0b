"""Errors that a client sees: problem details (RFC 9457), each kind with its HTTP status."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from dff.face.errors import BadPhoto
from dff.infra.photos.images import BadImage

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 5  # seconds after which a client may try again, where nothing better is known


class Kind(NamedTuple):
    """A kind of problem."""

    status: int  # HTTP status
    title: str
    help: str  # what to do about it


KINDS: dict[str, Kind] = {
    "empty": Kind(422, "Empty image", "The file has no bytes: send a photo."),
    "not-an-image": Kind(
        415,
        "Unsupported image format",
        "Send a JPEG, PNG or WebP file: its content is decisive, not its name.",
    ),
    "damaged": Kind(
        422,
        "Damaged image",
        "The file begins like an image but cannot be decoded: save it again and send it.",
    ),
    "animated": Kind(
        422, "Animated image", "The file has several frames: send one of them as a still image."
    ),
    "too-many-pixels": Kind(
        413, "Too many pixels", "The photo has more pixels than the server accepts: shrink it."
    ),
    "too-large": Kind(
        413,
        "Request too large",
        "The request has more bytes than the server accepts: send smaller or fewer files.",
    ),
    "too-many-images": Kind(
        413,
        "Too many images in one request",
        "The request has more photos than the server accepts: send several requests.",
    ),
    "unusable-image": Kind(
        422, "Image too small", "The photo is too small to hold a face: send a larger one."
    ),
    "bad-boxes": Kind(
        422,
        "Invalid boxes",
        "The field `boxes` is JSON: for /v1/align a list of [x0, y0, x1, y1] in pixels, with "
        "x0 < x1 and y0 < y1, each of which overlaps the image; for /v1/align/batch such a list "
        "for each image; for /v1/align/person one box for each image. With null, faces are "
        "detected.",
    ),
    "bad-request": Kind(
        422, "Invalid request", "/openapi.json lists the fields and parameters of each request."
    ),
    "bad-form": Kind(
        400,
        "Malformed form",
        "The body cannot be parsed: let your HTTP library make the form and its Content-Type.",
    ),
    "bad-http": Kind(
        400,
        "Not an HTTP request",
        "The headers or the framing of the body break the rules of HTTP/1.1, such as a "
        "Content-Length that is no number. Let your HTTP library write them.",
    ),
    "headers-too-large": Kind(
        431,
        "Headers too large",
        "The headers of the request have more bytes than the server accepts, 64 KiB: send fewer.",
    ),
    "no-face": Kind(
        422,
        "No face found",
        "The photo shows no face that was found. Only upright faces are searched, tilted by up to "
        "about 75°: turn a photo that lies on its side or upside down, send a box around the face "
        "in `boxes`, or another photo.",
    ),
    "no-model": Kind(404, "No such model", "The server has one model: `/v2/models/aligner`."),
    "unauthorized": Kind(
        401,
        "API key missing or wrong",
        "Send a key in the header `Authorization: Bearer KEY` or `X-API-Key`.",
    ),
    "too-slow": Kind(
        408, "Request too slow", "The bytes of the request arrived too slowly: send it again."
    ),
    "deadline": Kind(
        503,
        "Not in time",
        "The server has too much work to answer in time: try again after the seconds in the "
        "header `Retry-After`, or allow more seconds in the header `Deadline`.",
    ),
    "not-ready": Kind(
        503, "Warming up", "The server is loading its weights: try again in some seconds."
    ),
    "stopping": Kind(
        503,
        "Shutting down",
        "The server is shutting down, and ends the requests that it has: send this one to another "
        "server, or try again after the seconds in the header `Retry-After`.",
    ),
    "busy": Kind(
        503,
        "Too many requests",
        "The server holds as many requests as it can: try again after the seconds in the header "
        "`Retry-After`.",
    ),
    "internal": Kind(
        500,
        "Internal error",
        "The server failed: tell its operator the `request_id`, by which its log names the cause.",
    ),
}


class PhotoProblem(BaseModel):
    """Why one photo among several has no answer."""

    type: str = Field(examples=["/problems/no-face"], description="path of an explanation")
    title: str
    status: int = Field(description="HTTP status that the photo alone would have")
    detail: str


class ProblemDetails(PhotoProblem):
    """Why a request has no answer (RFC 9457)."""

    status: int = Field(description="HTTP status")
    request_id: str


class Problem(Exception):
    """A request, or one photo of it, that is answered with a problem of a known kind."""

    def __init__(self, kind: str, detail: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(detail or KINDS[kind].title)
        self.kind, self.detail, self.headers = kind, detail, headers

    def describe(self, root_path: str = "") -> PhotoProblem:
        """The problem of one photo among several. ``root_path``: prefix of the service's paths."""
        status, title, help_text = KINDS[self.kind]
        return PhotoProblem(
            type=f"{root_path}/problems/{self.kind}",
            title=title,
            status=status,
            detail=self.detail or help_text,
        )

    def to_response(self, request_id: str, root_path: str = "") -> JSONResponse:
        """The answer to a request."""
        description = self.describe(root_path).model_dump()
        return _response(ProblemDetails(**description, request_id=request_id), self.headers)


def to_problem(error: Problem | BadPhoto) -> Problem:
    """The problem of a photo, as sent to the client."""
    if isinstance(error, Problem):
        return error
    return Problem(error.fault if isinstance(error, BadImage) else "unusable-image", str(error))


def log_defect(error: Exception, request_id: str) -> None:
    """Log an unexpected error under the id that the client is told."""
    logging.getLogger(__name__).error("request %s failed", request_id, exc_info=error)


def describe_problems(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for these problems."""
    schema = ProblemDetails.model_json_schema()
    out: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status, title, _ = KINDS[kind]
        entry = out.setdefault(
            status, {"description": "", "content": {MEDIA_TYPE: {"schema": schema}}}
        )
        entry["description"] += ("; " if entry["description"] else "") + f"`{kind}`: {title}"
    return out


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every error of ``app`` with problem details."""
    for error in (
        Problem,
        BadPhoto,
        RequestValidationError,
        WebSocketRequestValidationError,
        HTTPException,
        Exception,
    ):
        app.add_exception_handler(error, _answer_error)


async def _answer_error(request: HTTPConnection, error: Exception) -> JSONResponse:
    request_id: str = request.state.request_id
    root_path: str = request.scope.get("root_path", "")
    match error:
        case Problem() | BadPhoto():
            return to_problem(error).to_response(request_id, root_path)
        case RequestValidationError() | WebSocketRequestValidationError():
            # dependencies may share a parameter
            detail = "; ".join(dict.fromkeys(map(_describe_invalid, error.errors())))
            return Problem("bad-request", detail).to_response(request_id, root_path)
        case HTTPException():
            return answer_status(error, request_id, root_path)
    log_defect(error, request_id)
    return Problem("internal").to_response(request_id, root_path)


def answer_status(error: HTTPException, request_id: str, root_path: str = "") -> JSONResponse:
    """The answer to a request of which only a status tells what is wrong.

    RFC 9457: then the title is the status's phrase.
    """
    details = ProblemDetails(
        type="about:blank",
        title=HTTPStatus(error.status_code).phrase,
        status=error.status_code,
        detail=_describe_status(error, root_path),
        request_id=request_id,
    )
    return _response(details, error.headers)


def _describe_status(error: HTTPException, root_path: str) -> str:
    """What is wrong with the path or the method, where the router has nothing to say."""
    if error.detail != HTTPStatus(error.status_code).phrase:
        return error.detail
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return f"the service has no such path: {root_path}/docs lists its paths"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            methods = (error.headers or {}).get("Allow", "another method")
            return f"this path takes {methods}: {root_path}/docs describes each path"
    return error.detail


def _describe_invalid(error: Mapping[str, Any]) -> str:
    """What a parameter must be, of an error of pydantic: the input of a stranger is not sent back.

    The first part of a location says whether it is in the query, the form or a header.
    """
    name = ".".join(map(str, error["loc"][1:])) or "the request"
    limits = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return f"{name} is missing"
        case "bool_parsing" | "bool_type":
            return f"{name} must be 1 or 0"
        case "int_parsing" | "int_from_float" | "int_type" | "int_parsing_size":
            return f"{name} must be a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return f"{name} must be a number"
        case "greater_than":
            return f"{name} must be more than {limits['gt']:g}"
        case "greater_than_equal":
            return f"{name} must be at least {limits['ge']:g}"
        case "less_than_equal":
            return f"{name} must be at most {limits['le']:g}"
    return f"{name}: {error['msg']}"


def _response(details: ProblemDetails, headers: Any) -> JSONResponse:
    return JSONResponse(details.model_dump(), details.status, headers, media_type=MEDIA_TYPE)
