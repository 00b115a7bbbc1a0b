"""``/v1/align/person``: one person in several photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, UploadFile

from dff.aligner.alignment import PersonAlignment
from dff.aligner.mesh_file import glb
from dff.aligner.service.align_service import (
    AlignService,
    PersonResult,
    RenderPerson,
    refuse_photo,
)
from dff.aligner.service.http.fields import FormRoute
from dff.aligner.service.http.forms import BOX_OF_EACH, BoxCorners, parse_boxes_of_each
from dff.aligner.service.http.json_response import respond
from dff.aligner.service.http.problems import Problem
from dff.aligner.service.routes.dependencies import (
    DescribeFace,
    FocalLength,
    Images,
    LongDeadline,
    Mesh,
    Service,
)
from dff.aligner.service.schema import (
    GLB,
    GLB_RESPONSES,
    PERSON_RESPONSES,
    PersonAnswer,
    PhotoFace,
)
from dff.aligner.texture import texture_person
from dff.face.arrays import Bytes
from dff.face.model.morphable import MorphableModel

PATH, GLB_PATH = "/v1/align/person", "/v1/align/person.glb"
router = APIRouter(tags=["align"], route_class=FormRoute)


@dataclass(frozen=True)
class PersonRequest:
    """Photos of a person."""

    service: AlignService
    images: list[UploadFile]
    corners: Sequence[BoxCorners | None]
    deadline: float
    focal: float | None

    async def align(self, render: RenderPerson | None = None) -> PersonResult:
        """The person in the photos, rendered on demand."""
        return await self.service.align_person(
            self.images, self.corners, focal=self.focal, deadline=self.deadline, render=render
        )


async def read_person_request(
    service: Service,
    images: Images,
    deadline: LongDeadline,
    boxes: Annotated[
        str | None,
        BOX_OF_EACH.parameter(
            "JSON: for each image null (the largest face) or [x0, y0, x1, y1] in pixels"
        ),
    ] = None,
    focal_px: FocalLength = None,
) -> PersonRequest:
    """The photos in the form."""
    corners = parse_boxes_of_each(BOX_OF_EACH, boxes, len(images), service.limits)
    return PersonRequest(service, images, corners, deadline, focal_px)


Photos = Annotated[PersonRequest, Depends(read_person_request)]


@router.post(PATH, response_model=PersonAnswer, responses=PERSON_RESPONSES)
async def align_person(
    request: Request,
    service: Service,
    photos: Photos,
    describe: DescribeFace,
    mesh: Mesh = False,
) -> Response:
    """One person in several photos: one identity, and pose, expression and landmarks of each photo.

    Photos in which the person is not found, or does not match, have a problem in their place.
    """
    result = await photos.align()

    def build() -> PersonAnswer:
        return PersonAnswer(
            identity=result.person.identity.round(4).tolist(),
            photos=[
                refuse_photo(photo, service.root_path)
                if isinstance(photo, Problem)
                else PhotoFace(
                    face=describe(photo[0], photo[2]),
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
async def align_person_glb(photos: Photos) -> Response:
    """The person's neutral face as binary glTF: metres, y up, the face looking along z.

    With the texture of the photo that shows the person best.
    """
    result = await photos.align(partial(_encode_glb, photos.service.model))
    return Response(result.rendered, media_type=GLB)


def _encode_glb(model: MorphableModel, person: PersonAlignment, images: Sequence[Bytes]) -> bytes:
    texture = texture_person(person, model, images)
    return glb(person, model, texture=None if texture is None else texture.lit)
