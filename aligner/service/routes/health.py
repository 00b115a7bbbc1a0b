"""Health checks."""

from __future__ import annotations

from fastapi import APIRouter

from dff.aligner.service.http.problems import describe_problems
from dff.aligner.service.routes.dependencies import Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses=describe_problems("not-ready", "stopping", "bad-request"))
async def ready(_: Readiness) -> dict[str, str]:
    """The aligners of all weights, or that of the named ones, have aligned once.

    So the next request is fast.
    """
    return {"status": "ready"}
