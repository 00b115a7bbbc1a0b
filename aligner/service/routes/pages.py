"""Pages for people: the aligner, the API's description, and an explanation of each problem."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from dff.aligner.service.problems import KINDS

PAGES = Path(__file__).parents[1] / "page"
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
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


@router.get("/problems/{kind}")
def explain(kind: str) -> PlainTextResponse:
    """What a kind of problem means, at its ``type``."""
    if kind not in KINDS:
        raise HTTPException(404, f"no problem is called {kind!r}")
    status, title, help_text = KINDS[kind]
    return PlainTextResponse(f"{title} ({status})\n\n{help_text}\n")
