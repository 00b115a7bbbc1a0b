"""Parameters that several routes share.

The dependencies are coroutines because FastAPI runs plain functions in threads, one after another.
They are few, since FastAPI takes 0.1 ms for each, also where several share one. Those of
``/v1/align`` therefore declare the parameters they share, instead of a dependency.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends, FastAPI, File, Header, Query, Request, UploadFile

from dff.aligner.face_description import FaceDescriber, parse_extras
from dff.aligner.service.align_service import AlignService, Describe, answer_face
from dff.aligner.service.http.limits import LIMITS, Limits
from dff.aligner.service.http.problems import RETRY_AFTER, Problem

DEFAULT = "default"
"""Name of the weights that answer requests without ``weights``."""


Weights = Annotated[
    str | None,
    Query(description="name of the weights that answer, as in `/v1/models`; default: default"),
]


async def get_service(request: Request, weights: Weights = None) -> AlignService:
    """The service of the weights that are asked for. Raises Problem ``bad-request``."""
    return choose_service(request.app, weights)


def choose_service(app: FastAPI, weights: str | None) -> AlignService:
    """The service of the weights of that name. Raises Problem ``bad-request``."""
    services: Mapping[str, AlignService] = app.state.services
    if weights is None:
        weights = DEFAULT
    if weights not in services:
        known = ", ".join(services)
        raise Problem("bad-request", f"no weights are called {weights[:40]!r}: there are {known}")
    return services[weights]


Service = Annotated[AlignService, Depends(get_service)]


async def check_ready(request: Request, weights: Weights = None) -> None:
    """Raises Problem ``not-ready`` while one of the services, or that of ``weights``, is not ready.

    Raises Problem ``bad-request`` for unknown ``weights``.
    """
    services: Mapping[str, AlignService] = request.app.state.services
    chosen = services.values() if weights is None else [choose_service(request.app, weights)]
    if not all(service.ready for service in chosen):
        raise Problem("not-ready", headers={"Retry-After": str(RETRY_AFTER)})


Readiness = Annotated[None, Depends(check_ready)]


@dataclass(frozen=True)
class Patience:
    """How long the client of a request with one photo waits."""

    deadline: float  # when the answer must be ready, seconds of the monotonic clock
    # how many times as long as alone a photo of many faces may take; any, where a deadline is named
    slowdown: float


ShortDeadline = Annotated[
    float | None,
    Header(
        gt=0,
        allow_inf_nan=False,
        le=LIMITS.longest_deadline,
        description="seconds from the arrival of the request, default "
        f"{LIMITS.deadline:.0f}: what can't be answered by then is refused at once",
    ),
]


def find_patience(request: Request, deadline: float | None) -> Patience:
    """The patience of the client of a request, who named a ``deadline`` in seconds or none."""
    limits: Limits = request.app.state.service.limits
    if deadline is None:
        return Patience(_arrived(request) + limits.deadline, limits.slowdown)
    return Patience(_arrived(request) + deadline, math.inf)


async def get_long_deadline(
    request: Request,
    deadline: Annotated[
        float | None,
        Header(
            gt=0,
            allow_inf_nan=False,
            le=LIMITS.longest_deadline,
            description="seconds from the arrival of the request, default "
            f"{LIMITS.longest_deadline:.0f}: what can't be answered by then is refused at once",
        ),
    ] = None,
) -> float:
    """When the answer to a request with several photos must be ready, of the same clock."""
    return _arrived(request) + (deadline or LIMITS.longest_deadline)


def _arrived(request: Request) -> float:
    arrived: float = getattr(request.state, "arrived", time.monotonic())
    return arrived


LongDeadline = Annotated[float, Depends(get_long_deadline)]
Images = Annotated[
    list[UploadFile],
    File(
        description="JPEG, PNG or WebP files: repeat the field for each",
        json_schema_extra={"minItems": 1, "maxItems": LIMITS.photos},
    ),
]
FocalLength = Annotated[
    float | None,
    Query(
        ge=1.0,
        le=1e6,
        allow_inf_nan=False,
        description="focal length of the camera in pixels, of every photo of the request. Default: "
        "of EXIF, else assumed",
    ),
]
Mesh = Annotated[
    bool, Query(description="also the meshes in pixels, and the triangles of the face model")
]

Trace = Annotated[bool, Query(description="also the state after each iteration")]


async def get_describe(
    request: Request,
    weights: Weights = None,
    mesh: Mesh = False,
    landmarks: Annotated[
        str | None,
        Query(
            description="more sets of landmarks, with commas: 5, wflw98, dense478, aflw21; "
            "also irises and blendshapes (by MediaPipe's names)",
            examples=["wflw98,irises"],
        ),
    ] = None,
    trace: Trace = False,
) -> Describe:
    """How faces are answered. Raises Problem ``bad-request``."""
    model = choose_service(request.app, weights).model
    try:
        describer = FaceDescriber(model, parse_extras(landmarks))
    except ValueError as error:
        raise Problem("bad-request", str(error)) from error
    return partial(answer_face, describer, mesh=mesh, trace=trace)


DescribeFace = Annotated[Describe, Depends(get_describe)]
