"""Pages for people: the aligner, the API's description, and an explanation of each problem."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.staticfiles import StaticFiles

from dff.aligner.service.http.problems import KINDS

PAGES = Path(__file__).parents[1] / "page"
FILES = {
    path.relative_to(PAGES).as_posix(): path
    for path in sorted(PAGES.rglob("*"))
    if path.suffix in (".css", ".js", ".jpg", ".md")
}
"""Files that the pages load, by path below ``page/``."""
CACHING = StaticFiles(directory=PAGES)
"""Knows what of a file a client has already."""
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
router = APIRouter(include_in_schema=False)


@router.get("/")
def index() -> HTMLResponse:
    """The aligner's page."""
    return HTMLResponse((PAGES / "index.html").read_text("utf-8"), headers=SECURITY_HEADERS)


@router.get("/docs")
def docs() -> HTMLResponse:
    """The API's description."""
    return HTMLResponse((PAGES / "docs.html").read_text("utf-8"), headers=SECURITY_HEADERS)


@router.get("/page/{name:path}")
def file(name: str, request: Request) -> Response:
    """A script, style sheet or picture of the pages, whole."""
    if name not in FILES:
        raise HTTPException(404, f"the pages have no file {name!r}")
    # asked for each time, and answered with 304 while it is the same
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "Accept-Ranges": "none"}
    # Starlette takes thousands of ranges, and answers by text that it has none like that.
    request.scope["headers"] = [each for each in request.scope["headers"] if each[0] != b"range"]
    answer = FileResponse(FILES[name], headers=headers, stat_result=FILES[name].stat())
    if CACHING.is_not_modified(answer.headers, request.headers):
        return Response(status_code=304, headers={**headers, "ETag": answer.headers["etag"]})
    return answer


@router.get("/problems/{kind}")
def explain(kind: str) -> PlainTextResponse:
    """The explanation of a kind of problem, at its ``type``."""
    if kind not in KINDS:
        raise HTTPException(404, f"no problem is called {kind!r}")
    status, title, help_text = KINDS[kind]
    return PlainTextResponse(f"{title} ({status})\n\n{help_text}\n")
