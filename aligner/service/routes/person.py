"""``/v1/align/person``: one person in several photos."""

from __future__ import annotations

from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Form, Request, Response

from dff.aligner.mesh_file import glb
from dff.aligner.service.align_service import PersonResult, answer_face, refuse_photo
from dff.aligner.service.fields import FormRoute
from dff.aligner.service.forms import BOX_OF_EACH, parse_boxes_of_each
from dff.aligner.service.json_response import respond
from dff.aligner.service.problems import Problem
from dff.aligner.service.routes.dependencies import Images, LongDeadline, Mesh, Service
from dff.aligner.service.schema import (
    GLB_RESPONSES,
    PERSON_RESPONSES,
    PersonAnswer,
    PhotoFace,
)

PATH, GLB_PATH = "/v1/align/person", "/v1/align/person.glb"
router = APIRouter(tags=["align"], route_class=FormRoute)


async def align_uploads(
    service: Service,
    images: Images,
    deadline: LongDeadline,
    boxes: Annotated[
        str | None,
        Form(
            description="JSON: for each image null (the largest face) or [x0, y0, x1, y1] in pixels"
        ),
    ] = None,
) -> PersonResult:
    """Align the person in the photos of the form."""
    corners = parse_boxes_of_each(BOX_OF_EACH, boxes, len(images), service.limits)
    return await service.align_person(images, corners, deadline=deadline)


Result = Annotated[PersonResult, Depends(align_uploads)]


@router.post(PATH, response_model=PersonAnswer, responses=PERSON_RESPONSES)
async def align_person(
    request: Request, service: Service, result: Result, mesh: Mesh = False
) -> Response:
    """One person in several photos: one identity, and pose, expression and landmarks of each photo.

    Photos in which the person is not found, or does not match, have a problem in their place.
    """

    def build() -> PersonAnswer:
        return PersonAnswer(
            identity=result.person.identity.round(4).tolist(),
            photos=[
                refuse_photo(photo, service.root_path)
                if isinstance(photo, Problem)
                else PhotoFace(
                    face=answer_face(photo[0], mesh=mesh),
                    image=photo[1],
                    doubt=result.doubts.get(number),
                )
                for number, photo in enumerate(result.photos)
            ],
            model=service.model_info,
            timing=result.timing,
            request_id=request.state.request_id,
            rest=result.person.vertices.round(6).tolist() if mesh else None,
            triangles=service.triangles if mesh else None,
        )

    return await respond(build)


@router.post(GLB_PATH, responses=GLB_RESPONSES, response_class=Response)
async def align_person_glb(service: Service, result: Result) -> Response:
    """The person's neutral face as binary glTF: metres, y up, the face looking along z."""
    data = await anyio.to_thread.run_sync(glb, result.person, service.model)
    return Response(data, media_type="model/gltf-binary")
