"""``/v1/align/batch``: every face of several photos."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response

from dff.aligner.service.http.fields import FormRoute
from dff.aligner.service.http.forms import BOXES_OF_EACH, check_count, parse_boxes_of_each
from dff.aligner.service.http.json_response import respond
from dff.aligner.service.routes.dependencies import (
    DescribeFace,
    FocalLength,
    Images,
    LongDeadline,
    Mesh,
    Service,
)
from dff.aligner.service.schema import BATCH_RESPONSES, BatchAnswer

PATH = "/v1/align/batch"
router = APIRouter(tags=["align"], route_class=FormRoute)


@router.post(PATH, response_model=BatchAnswer, responses=BATCH_RESPONSES)
async def align_batch(
    request: Request,
    service: Service,
    images: Images,
    deadline: LongDeadline,
    describe: DescribeFace,
    boxes: Annotated[
        str | None,
        BOXES_OF_EACH.parameter(
            "JSON: for each image null (faces are detected) or [[x0, y0, x1, y1], ...] in pixels"
        ),
    ] = None,
    focal_px: FocalLength = None,
    mesh: Mesh = False,
) -> Response:
    """Every face of several photos, each as from `/v1/align`.

    Each photo fails alone: its problem stands in its place, and the others have their faces.
    """
    corners = parse_boxes_of_each(BOXES_OF_EACH, boxes, len(images), service.limits)
    check_count(sum(len(some or ()) for some in corners), service.limits)
    request_id: str = request.state.request_id
    result = await service.align_batch(
        images,
        corners,
        describe=describe,
        request_id=request_id,
        focal=focal_px,
        deadline=deadline,
    )

    def build() -> BatchAnswer:
        return BatchAnswer(
            photos=result.photos,
            model=service.model_info,
            timing=result.timing,
            request_id=request_id,
            triangles=service.triangles if mesh else None,
        )

    return await respond(build)
