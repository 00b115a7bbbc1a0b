"""``/v1/align``: every face of one photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import cv2
from fastapi import APIRouter, Depends, File, Query, Request, Response, UploadFile

from dff.aligner.alignment import Alignment
from dff.aligner.draw import draw
from dff.aligner.mesh_file import glb
from dff.aligner.service.align_service import AlignService, PhotoResult, Render
from dff.aligner.service.http.accept import JSON, choose_media_type, vary_by_accept
from dff.aligner.service.http.fields import FormRoute
from dff.aligner.service.http.forms import BOXES, BoxCorners, check_count
from dff.aligner.service.http.json_response import respond
from dff.aligner.service.http.problems import Problem
from dff.aligner.service.routes.dependencies import (
    DescribeFace,
    FocalLength,
    Mesh,
    Patience,
    ShortDeadline,
    Trace,
    Weights,
    choose_service,
    find_patience,
)
from dff.aligner.service.schema import ALIGN_RESPONSES, GLB, GLB_RESPONSES, PNG, AlignAnswer
from dff.aligner.texture import texture_face
from dff.face.arrays import Bytes
from dff.face.model.morphable import MorphableModel

router = APIRouter(prefix="/v1", tags=["align"], route_class=FormRoute)
SHORT = 2  # faces of an answer that is written at once


@dataclass(frozen=True)
class PhotoRequest:
    """A photo whose faces are asked for."""

    service: AlignService
    image: UploadFile
    corners: Sequence[BoxCorners] | None
    patience: Patience
    focal: float | None

    async def align(self, render: Render | None = None) -> PhotoResult:
        """The faces of the photo, rendered on demand."""
        return await self.service.align_photo(
            self.image,
            self.corners,
            focal=self.focal,
            deadline=self.patience.deadline,
            slowdown=self.patience.slowdown,
            render=render,
        )


async def read_photo_request(
    request: Request,
    image: Annotated[UploadFile, File(description="a JPEG, PNG or WebP file")],
    boxes: Annotated[
        str | None,
        BOXES.parameter(
            "JSON [[x0, y0, x1, y1], ...] in pixels, one box for each face. "
            "Default: faces are detected"
        ),
    ] = None,
    focal_px: FocalLength = None,
    weights: Weights = None,
    deadline: ShortDeadline = None,
) -> PhotoRequest:
    """The photo in the form. Raises Problem ``bad-request`` and those of its fields."""
    service = choose_service(request.app, weights)
    if len((await request.form()).getlist("image")) > 1:
        raise Problem(
            "too-many-images", "this route takes one photo: send several to /v1/align/batch"
        )
    corners = None if boxes is None else BOXES.parse("boxes", boxes)
    check_count(len(corners or ()), service.limits)
    return PhotoRequest(service, image, corners, find_patience(request, deadline), focal_px)


Photo = Annotated[PhotoRequest, Depends(read_photo_request)]
FaceNumber = Annotated[int, Query(ge=0, description="which face, in the order of /v1/align")]


@router.post("/align", response_model=AlignAnswer, responses=ALIGN_RESPONSES)
async def align(
    request: Request,
    photo: Photo,
    describe: DescribeFace,
    mesh: Mesh = False,
    trace: Trace = False,
) -> Response:
    """Every face of a photo: 68 landmarks in 2D and 3D, pose, visibility, confidence, 3D shape.

    Pixels count from the photo's upper left corner after its EXIF orientation; the first pixel's
    centre is (0.5, 0.5). A face whose fit was rejected has `failed: true` and a `reason`. With
    `Accept: model/gltf-binary` the answer is that of `/v1/align.glb`, with `Accept: image/png` the
    photo with the faces drawn on it.
    """
    service = photo.service
    wanted = choose_media_type(request.headers.get("accept", ""), (JSON, GLB, PNG))
    if wanted == GLB:
        return vary_by_accept(await align_glb(photo))
    if wanted == PNG:
        drawn = await photo.align(partial(draw_png, service.model))
        return vary_by_accept(Response(drawn.rendered, media_type=PNG))
    result = await photo.align()

    def build() -> AlignAnswer:
        return AlignAnswer(
            faces=[describe(face, result.camera) for face in result.faces],
            image=result.image,
            model=service.model_info,
            timing=result.timing,
            request_id=request.state.request_id,
            warnings=result.warnings,
            triangles=service.triangles if mesh else None,
        )

    short = len(result.faces) <= SHORT and not (mesh or trace)
    return vary_by_accept(await respond(build, short=short))


@router.post("/align.glb", responses=GLB_RESPONSES, response_class=Response)
async def align_glb(photo: Photo, face: FaceNumber = 0) -> Response:
    """The fitted mesh of one face as binary glTF: metres, y up, the face looking along z.

    With the texture of the photo, and the expressions as morph targets.
    """
    result = await photo.align(partial(_encode_glb, photo.service.model, face))
    return Response(result.rendered, media_type=GLB)


def draw_png(model: MorphableModel, faces: Sequence[Alignment], image: Bytes) -> bytes:
    """A PNG of the photo with landmarks, mesh and axes of every face."""
    good, data = cv2.imencode(".png", cv2.cvtColor(draw(image, faces, model), cv2.COLOR_RGB2BGR))
    assert good
    return bytes(data)


def choose_face(faces: Sequence[Alignment], number: int) -> Alignment:
    """The face of that number. Raises Problem ``no-face``."""
    if number >= len(faces):
        raise Problem(
            "no-face", f"there is no face {number}: the photo has {len(faces)}, counted from 0"
        )
    return faces[number]


def _encode_glb(
    model: MorphableModel, number: int, faces: Sequence[Alignment], image: Bytes
) -> bytes:
    face = choose_face(faces, number)
    texture = texture_face(face, model, image)
    return glb(face, model, texture=None if texture is None else texture.lit)
