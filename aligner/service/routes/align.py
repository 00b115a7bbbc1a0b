"""``/v1/align``: every face of one photo."""

from __future__ import annotations

from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile

from dff.aligner.mesh_file import glb
from dff.aligner.service.align_service import PhotoResult, answer_face
from dff.aligner.service.fields import FormRoute
from dff.aligner.service.forms import BOXES, check_count, parse_boxes
from dff.aligner.service.json_response import respond
from dff.aligner.service.problems import Problem
from dff.aligner.service.routes.dependencies import Deadline, Mesh, Service
from dff.aligner.service.schema import ALIGN_RESPONSES, GLB_RESPONSES, AlignAnswer

router = APIRouter(prefix="/v1", tags=["align"], route_class=FormRoute)


async def align_upload(
    request: Request,
    service: Service,
    deadline: Deadline,
    image: Annotated[UploadFile, File(description="a JPEG, PNG or WebP file")],
    boxes: Annotated[
        str | None,
        Form(
            description="JSON [[x0, y0, x1, y1], ...] in pixels, one box for each face. "
            "Default: faces are detected"
        ),
    ] = None,
) -> PhotoResult:
    """Align the faces of the photo in the form."""
    if len((await request.form()).getlist("image")) > 1:
        raise Problem(
            "too-many-images", "this route takes one photo: send several to /v1/align/batch"
        )
    corners = None if boxes is None else parse_boxes(BOXES, boxes)
    check_count(len(corners or ()), service.limits)
    return await service.align_photo(image, corners, deadline=deadline)


Result = Annotated[PhotoResult, Depends(align_upload)]


@router.post("/align", response_model=AlignAnswer, responses=ALIGN_RESPONSES)
async def align(
    request: Request,
    service: Service,
    result: Result,
    mesh: Mesh = False,
    trace: Annotated[bool, Query(description="also the state after each iteration")] = False,
) -> Response:
    """Every face of a photo: 68 landmarks in 2D and 3D, pose, visibility, confidence, 3D shape.

    Pixels count from the photo's upper left corner after its EXIF orientation; the first pixel's
    centre is (0.5, 0.5). A face whose fit was rejected has `failed: true` and a `reason`. With
    `Accept: model/gltf-binary` the answer is that of `/v1/align.glb`.
    """
    if "model/gltf-binary" in request.headers.get("accept", ""):
        return await align_glb(service, result)

    def build() -> AlignAnswer:
        return AlignAnswer(
            faces=[answer_face(face, mesh=mesh, trace=trace) for face in result.faces],
            image=result.image,
            model=service.model_info,
            timing=result.timing,
            request_id=request.state.request_id,
            triangles=service.triangles if mesh else None,
        )

    return await respond(build)


@router.post("/align.glb", responses=GLB_RESPONSES, response_class=Response)
async def align_glb(
    service: Service,
    result: Result,
    face: Annotated[int, Query(ge=0, description="which face, in the order of /v1/align")] = 0,
) -> Response:
    """The fitted mesh of one face as binary glTF: metres, y up, the face looking along z."""
    if face >= len(result.faces):
        raise Problem(
            "no-face", f"there is no face {face}: {len(result.faces)} found, counted from 0"
        )
    data = await anyio.to_thread.run_sync(glb, result.faces[face], service.model)
    return Response(data, media_type="model/gltf-binary")
