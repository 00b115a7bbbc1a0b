"""The models that are served: ``/v1/models``, and the Open Inference Protocol's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import Field

from dff.aligner.service.align_service import AlignService
from dff.aligner.service.http.problems import Problem, describe_problems
from dff.aligner.service.routes.dependencies import Readiness
from dff.aligner.service.schema import Answer, ModelInfo

NAME = "aligner"
router = APIRouter(tags=["models"])


class Models(Answer):
    """Answer of `/v1/models`."""

    models: list[ModelInfo] = Field(description="the models that requests are answered with")
    names: list[str] = Field(description="of each of them, for `weights` in a request")


class Tensor(Answer):
    """An input or output of the Open Inference Protocol."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any number")


class ModelMetadata(Answer):
    """Answer of `/v2/models/{name}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class Live(Answer):
    """Answer of `/v2/health/live`."""

    live: bool


class Ready(Answer):
    """Answer of `/v2/health/ready`."""

    ready: bool


@router.get("/v1/models", responses=describe_problems("unauthorized"))
async def list_models(request: Request) -> Models:
    """The face models and the weights."""
    services: Mapping[str, AlignService] = request.app.state.services
    infos = [service.model_info for service in services.values()]
    return Models(models=infos, names=[*services])


@router.get("/v2/health/live")
async def server_live() -> Live:
    """The process answers."""
    return Live(live=True)


@router.get("/v2/health/ready", responses=describe_problems("not-ready", "stopping", "bad-request"))
async def server_ready(_: Readiness) -> Ready:
    """The aligners of all weights, or that of the named ones, have aligned once."""
    return Ready(ready=True)


@router.get(
    "/v2/models/{name}",
    responses=describe_problems("unauthorized", "no-model", "bad-request"),
)
async def describe_model(
    request: Request,
    name: Annotated[
        str, Path(description=f"{NAME}, or the name of weights that are served, as in `/v1/models`")
    ],
) -> ModelMetadata:
    """Names and shapes of what `/v1/align` takes and answers for each face."""
    known = [NAME, *request.app.state.services]
    if name not in known:
        raise Problem(
            "no-model", f"there is no model {name[:40]!r}: the server has {', '.join(known)}"
        )
    outputs = {
        "box": [-1, 4],
        "landmarks_2d": [-1, 68, 2],
        "landmarks_3d": [-1, 68, 3],
        "pose": [-1, 3, 3],
        "visibility": [-1, 68],
        "confidence": [-1, 68],
        "face_confidence": [-1],
        "identity": [-1, -1],
        "expression": [-1, -1],
    }
    return ModelMetadata(
        name=name,
        versions=["1"],
        platform="dff",
        inputs=[Tensor(name="image", datatype="BYTES", shape=[1])],
        outputs=[Tensor(name=key, datatype="FP32", shape=shape) for key, shape in outputs.items()],
    )
