"""Health checks."""

from __future__ import annotations

from fastapi import APIRouter

from dff.aligner.service.http.problems import RETRY_AFTER, Problem, describe_problems
from dff.aligner.service.routes.dependencies import Service

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses=describe_problems("not-ready", "bad-request"))
async def ready(service: Service) -> dict[str, str]:
    """The aligner has aligned once, so that the next request is fast."""
    if not service.ready:
        raise Problem("not-ready", headers={"Retry-After": str(RETRY_AFTER)})
    return {"status": "ready"}
